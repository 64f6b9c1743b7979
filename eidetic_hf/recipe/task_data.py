"""The data of a task of a recipe: its splits, as they were read and as the model takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from .kinds import recipe_kind_of
from .kinds.preparation import TRAIN, Preparation
from .recipe import Recipe, RecipeError, TaskRecipe

VALIDATION_SHARE = 0.1
SPLITS = (TRAIN, "validation", "test")


@dataclass(frozen=True)
class TaskData:
    """A task's splits, read and checked, and encoded by a tokenizer.

    Attributes:
        preparation: what knows the task's labels and how its texts are encoded.
        rows: `train`, `validation` and `test` as they were read.
        splits: the same as the model takes them; a row may have become several.
    """

    preparation: Preparation
    rows: dict[str, datasets.Dataset]
    splits: dict[str, datasets.Dataset]

    @property
    def labels(self) -> list[str]:
        """Names of the labels in the order of the logits; for regression, names of the targets; empty without."""
        return self.preparation.labels

    def texts_to_route(self, split: str) -> datasets.Dataset:
        """An encoded split with one row for each text that a router would be asked about."""
        return self.preparation.texts_to_route(self.splits[split], split)


@dataclass(frozen=True)
class RawData:
    """A task's splits before there is a tokenizer."""

    preparation: Preparation
    rows: dict[str, datasets.Dataset]

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> TaskData:
        """What the model takes.

        Raises:
            RecipeError: if the tokenizer can not do it, or a text does not fit.
        """
        self.preparation.check_tokenizer(tokenizer)
        splits = {name: self.preparation.encode(rows, name, tokenizer) for name, rows in self.rows.items()}
        return TaskData(self.preparation, self.rows, splits)


def read_task_data(recipe: Recipe, task: TaskRecipe) -> RawData:
    """Load a task's data set and check every row.

    Raises:
        RecipeError: if it can not be loaded, is empty, lacks a column, or has a row that the task can not have.
    """
    rows = load_splits(recipe, task)
    preparation = recipe_kind_of(task.type).preparation(task, recipe.length_of(task), recipe.seed)
    preparation.read(rows)
    return RawData(preparation, rows)


def load_task_data(recipe: Recipe, task: TaskRecipe, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """Load a task's data set, check it, and encode it (see `read_task_data`)."""
    return read_task_data(recipe, task).encode(tokenizer)


def load_splits(recipe: Recipe, task: TaskRecipe) -> dict[str, datasets.Dataset]:
    """`train`, `validation` and `test` of a task; missing ones are made as the recipe's documentation says."""
    try:
        loaded = datasets.load_dataset(**_absolute(task.data, recipe.folder))
    except Exception as error:  # Builders raise whatever they like: StopIteration for an empty file, for one.
        reason = str(error.__cause__ or error) or type(error).__name__
        if isinstance(error, StopIteration) or "corresponds to no data" in reason:
            reason = "a split is empty, every one needs at least one row"
        raise RecipeError(
            f"Task '{task.name}': its data could not be loaded ({reason}). `data:` is {task.data}; relative "
            f"files are looked for in {recipe.folder}."
        ) from error
    parts = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    found: dict[str, datasets.Dataset] = {}
    for role in SPLITS:
        name = getattr(task.splits, role)
        if name is not None and name not in parts:
            raise RecipeError(f"Task '{task.name}' has no split '{name}' for {role}; its data set has {list(parts)}.")
        if (name or role) in parts:
            found[role] = parts[name or role]
            if len(found[role]) == 0:
                raise RecipeError(
                    f"Task '{task.name}': the {role} split is empty. Every split needs at least one row."
                )
    if "train" not in found:
        raise RecipeError(
            f"Task '{task.name}' has no split 'train'; its data set has {list(parts)}. Say which one to train "
            "on, with `splits: {train: NAME}`."
        )
    if "validation" not in found:
        if len(found["train"]) < 2:
            raise RecipeError(
                f"Task '{task.name}': one row to train on leaves none for validation. Give at least two."
            )
        halves = found["train"].train_test_split(test_size=VALIDATION_SHARE, seed=recipe.seed)
        found["train"], found["validation"] = halves["train"], halves["test"]
    found.setdefault("test", found["validation"])
    return {role: found[role] for role in SPLITS}


def described(task: TaskRecipe, rows: Mapping[str, datasets.Dataset]) -> dict[str, Any]:
    """What a task was learned and measured from, for its record: see `TaskRecord.data`.

    Of files nothing is said but how many rows they have: where this machine keeps them is nobody's business.
    """
    path, made = str(task.data.get("path", "")), {"data_files", "data_dir"} & set(task.data)
    is_on_hub = ("/" in path or not made) and "://" not in path and not Path(path).exists()
    named = {"dataset": path, "config": task.data.get("name"), "revision": task.data.get("revision")}
    split = rows["validation"].split
    found = {**(named if is_on_hub else {}), "split": None if split is None else str(split)}
    return {
        **{key: str(value) for key, value in found.items() if value},
        "rows": {role: len(each) for role, each in rows.items()},
    }


def _absolute(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`data` with its relative files and folders resolved against the recipe's folder; addresses stay as they are."""

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolve(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [resolve(inner) for inner in value]
        return value if "://" in str(value) else str(folder / str(value))

    resolved = {key: resolve(value) if key in ("data_files", "data_dir") else value for key, value in data.items()}
    if "data_dir" in data and not (folder / str(data["data_dir"])).exists():
        resolved["data_dir"] = data["data_dir"]  # a folder of a data set on the Hub
    return resolved
