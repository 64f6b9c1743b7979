"""A recipe: a YAML file that says which tasks to learn on which backbone, and the run that does it.

From top to bottom: what a recipe may say (`Recipe`, `TaskRecipe`) and how it is checked; the data of a task
(`TaskData`); the run (`run_recipe`), which learns every task in order, evaluates all committed ones after each, and
writes `results.json` as it goes. A run that was cut off continues where it stopped when it is started again.

One process, one device. For several, build the same from `EideticTrainer` in a script of your own.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
import yaml
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, TrainerControl, TrainerState
from transformers.trainer_utils import get_last_checkpoint, set_seed

from .certificate import environment
from .checkpoint import COMMITTED, CONFIG_FILE, TRUNK, owner_of, sha256_of, shard_file
from .configuration import POOLINGS, PROBLEM_TYPES, TASK_TYPES, TaskError, TaskRecord, check_task_name
from .layers import task_key
from .model import EideticModel
from .pruning import PruningConfig
from .trainer import EideticTrainer, task_metrics
from .version import __version__

MODEL_FOLDER, CHECKPOINTS_FOLDER, RESULTS_FILE = "model", "checkpoints", "results.json"
RESULTS_VERSION = 1
VALIDATION_SHARE = 0.1
PACKAGE_PREFIX = "package:"

# The first of each is the default.
BUILT_IN_METRICS = {
    "single_label_classification": ("accuracy", "f1"),
    "multi_label_classification": ("f1", "accuracy"),
    "regression": ("pearson", "spearman", "mse"),
}
LOWER_IS_BETTER = ("mse",)
ROUTING_BATCH = 64
_ROUTING_SCORES = ("oracle_accuracy", "routed_accuracy", "merged_label_accuracy")

Say = Callable[[str], None]


class RecipeError(ValueError):
    """A recipe, or the data it names, can not be run. The message says what was given and expected, and what to do."""


# -- what a recipe says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """Names of a data set's columns: the text, the second text of a pair if there is one, and the label."""

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"


@dataclass(frozen=True)
class Splits:
    """Names of a data set's splits; `None` takes the usual name, and makes do without if there is no such split."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None


@dataclass(frozen=True)
class TaskRecipe:
    """One task of a recipe.

    Attributes:
        name: the task's name.
        data: keyword arguments of `datasets.load_dataset`; relative files are looked for in the recipe's folder.
        type: `"sequence-classification"`.
        problem_type: `"single_label_classification"`, `"multi_label_classification"` or `"regression"`.
        columns: names of the data set's columns.
        labels: names of the labels in the order of the logits; by default those of the `ClassLabel` feature, or else
            the sorted labels of the training split. For regression, names of the targets.
        metric: the score of the accuracy matrix; see `BUILT_IN_METRICS`, any other name is given to `evaluate.load`.
        splits: names of the data set's splits.
        training: fields of `TrainingArguments`, over the recipe's.
        pruning: fields of `PruningConfig`, over the recipe's.
        forward_transfer: which earlier tasks this one reads; the recipe's by default.
        pooling: how the head reads the sequence; the recipe's by default.
    """

    name: str
    data: dict[str, Any]
    type: str = "sequence-classification"
    problem_type: str = "single_label_classification"
    columns: Columns = Columns()
    labels: list[str] | None = None
    metric: str = ""
    splits: Splits = Splits()
    training: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] = field(default_factory=dict)
    forward_transfer: str | list[str] | None = None
    pooling: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A whole recipe, checked: every key is known, every value that can be checked without the data is allowed.

    Attributes:
        name: the file's name without its suffix.
        folder: where the file lies; relative data files and backbones are looked for here.
        source: the file's text.
        backbone: a folder, a Hub id, or `package:NAME/FOLDER`, a folder inside of an installed Python package.
        tasks: the tasks, in the order in which they are learned.
        output: folder of the results, relative to the current directory; `runs/<name>` by default.
        trunk_layers: layers that stay at their pretrained values; a third of the depth by default.
        forward_transfer: which earlier tasks a task reads: `"all"`, `"none"` or a list of names.
        max_length: longest sequence, in tokens; longer ones are cut.
        pooling: `"mean"` over real tokens or `"first"`.
        seed: of every task's training, and of the split of missing validation data.
        training: fields of `TrainingArguments` for every task.
        pruning: fields of `PruningConfig` for every task.
    """

    name: str
    folder: Path
    source: str
    backbone: str
    tasks: list[TaskRecipe]
    output: Path
    trunk_layers: int | None = None
    forward_transfer: str | list[str] = "all"
    max_length: int = 128
    pooling: str = "mean"
    seed: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] = field(default_factory=dict)

    def task(self, name: str) -> TaskRecipe:
        """The task of this name.

        Raises:
            RecipeError: if the recipe has none.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise RecipeError(f"The recipe has no task '{name}'; it has {[task.name for task in self.tasks]}.")

    def pruning_config(self, task: TaskRecipe) -> PruningConfig:
        """How to cut out a task's subnetwork.

        Raises:
            RecipeError: if a value is not allowed.
        """
        try:
            return PruningConfig(**{"seed": self.seed, **self.pruning, **task.pruning})
        except (TypeError, ValueError) as error:
            raise RecipeError(f"Task '{task.name}', pruning: {error}") from error

    def training_arguments(self, task: TaskRecipe, **overrides: Any) -> TrainingArguments:
        """How to train a task: the defaults of a recipe, the recipe's values, the task's, then `overrides`.

        Raises:
            RecipeError: if a value is not allowed.
        """
        defaults = {
            "save_strategy": "no",
            "eval_strategy": "epoch",
            "report_to": [],
            "disable_tqdm": not sys.stderr.isatty(),
            "seed": self.seed,
        }
        values = {**defaults, **self.training, **task.training}
        if values.get("metric_for_best_model") is None:  # what a search for a budget and the best checkpoint go by
            values["metric_for_best_model"] = task.metric
            values["greater_is_better"] = task.metric not in LOWER_IS_BETTER
        keeps_checkpoints = values["save_strategy"] not in ("no", False)
        folder = self.output / CHECKPOINTS_FOLDER / task.name if keeps_checkpoints else self.output
        try:
            return TrainingArguments(**{"output_dir": str(folder), **values, **overrides})
        except (TypeError, ValueError, ImportError) as error:
            raise RecipeError(f"Task '{task.name}', training: {error}") from error


class _RecipeLoader(yaml.SafeLoader):
    """YAML without two traps: `1e-4` is a number, as people mean it, and a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_recipe(path: str | os.PathLike, output: str | os.PathLike | None = None) -> Recipe:
    """Read a recipe and check everything that can be checked without its data.

    Args:
        path: the YAML file.
        output: folder of the results, instead of the recipe's.

    Raises:
        RecipeError: naming what is wrong, where, and what is allowed.
    """
    path = Path(path)
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} can not be read ({error}). Give the path of a YAML file.") from error
    try:
        values = yaml.load(source, Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"The recipe {path} is no valid YAML: {error}") from error
    if values is None:
        raise RecipeError(f"The recipe {path} is empty. It needs at least `backbone:` and `tasks:`.")
    allowed = [f.name for f in dataclasses.fields(Recipe) if f.name not in ("name", "folder", "source")]
    values = dict(_mapping(values, allowed, f"the recipe {path}"))
    for key in ("backbone", "tasks"):
        if not values.get(key):
            raise RecipeError(f"The recipe {path} has no `{key}:`. It needs at least `backbone:` and `tasks:`.")
    if not isinstance(values["tasks"], list):
        raise RecipeError(
            f"`tasks:` is {values['tasks']!r}, expected a list of tasks, each with `- name:` and `data:`."
        )
    _check_common(values, "the recipe")
    values["tasks"] = [_read_task(task, number) for number, task in enumerate(values["tasks"], 1)]
    values["output"] = Path(output or values.get("output") or Path("runs") / path.stem)
    recipe = Recipe(name=path.stem, folder=path.resolve().parent, source=source, **_given(values))
    _check_tasks(recipe)
    return recipe


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a section says; a key without a value means the default."""
    return {key: value for key, value in values.items() if value is not None}


def _mapping(values: Any, allowed: list[str], where: str) -> dict[str, Any]:
    """A section of the recipe, all of whose keys are allowed."""
    if not isinstance(values, dict):
        raise RecipeError(
            f"{where[0].upper()}{where[1:]} is {values!r}, expected keys and values, one `key: value` a line."
        )
    for key in values:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0.5)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise RecipeError(f"Unknown key {key!r} in {where}.{hint} Allowed are: {', '.join(sorted(allowed))}.")
    return values


def _check_type(values: Mapping[str, Any], key: str, kind: type, expected: str, where: str) -> None:
    value = values.get(key)
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise RecipeError(f"`{key}: {value!r}` in {where}: expected {expected}.")


def _check_common(values: dict[str, Any], where: str) -> None:
    """Check the keys that a recipe and its tasks share, and a recipe's own simple ones."""
    for key in ("backbone", "output"):
        _check_type(values, key, str, "a text", where)
    for key, least in (("trunk_layers", 0), ("max_length", 3), ("seed", 0)):
        _check_type(values, key, int, f"a whole number >= {least}", where)
        if values.get(key) is not None and values[key] < least:
            raise RecipeError(f"`{key}: {values[key]}` in {where}: expected a whole number >= {least}.")
    if values.get("pooling") not in (None, *POOLINGS):
        raise RecipeError(f"`pooling: {values['pooling']!r}` in {where}: expected one of {list(POOLINGS)}.")
    transfer = values.get("forward_transfer")
    is_list = isinstance(transfer, list) and all(isinstance(name, str) for name in transfer)
    if transfer not in (None, "all", "none") and not is_list:
        raise RecipeError(f"`forward_transfer: {transfer!r}` in {where}: expected all, none or a list of task names.")
    _check_training(values.get("training") or {}, f"`training:` of {where}")
    _mapping(
        values.get("pruning") or {}, [f.name for f in dataclasses.fields(PruningConfig)], f"`pruning:` of {where}"
    )


def _check_training(values: Any, where: str) -> None:
    """Check the names of `TrainingArguments` fields, and that numbers are numbers: transformers checks only few."""
    hints = typing.get_type_hints(TrainingArguments)
    names = [f.name for f in dataclasses.fields(TrainingArguments) if f.init]
    for key, value in _mapping(values, names, where).items():
        if value is None:
            continue
        if key == "output_dir":
            raise RecipeError(
                f"`output_dir` in {where} is not yours to set: the recipe's `output:` says where all goes."
            )
        hint = hints[key]
        kinds = set(typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) else [hint])
        is_number = bool(kinds & {int, float}) and kinds <= {int, float, bool, types.NoneType}
        if is_number and not isinstance(value, (int, float)):
            raise RecipeError(f"`{key}: {value!r}` in {where}: expected a number.")
        if kinds == {int} and not float(value).is_integer():
            raise RecipeError(f"`{key}: {value!r}` in {where}: expected a whole number.")


def _read_task(values: Any, number: int) -> TaskRecipe:
    """One entry of `tasks:`."""
    name = values.get("name") if isinstance(values, dict) else None
    where = f"task '{name}'" if isinstance(name, str) else f"task {number} of the recipe"
    values = dict(_mapping(values, [f.name for f in dataclasses.fields(TaskRecipe)], where))
    try:
        check_task_name(name)
    except TaskError as error:
        raise RecipeError(f"{where[0].upper()}{where[1:]}: `name:` {error}") from error
    _check_common(values, where)
    data = values.get("data")
    if not data or not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise RecipeError(
            f"{where[0].upper()}{where[1:]} has `data: {data!r}`; expected the keyword arguments of "
            "datasets.load_dataset, such as `data: {path: json, data_files: {train: train.jsonl, test: test.jsonl}}`."
        )
    if data.get("streaming"):
        raise RecipeError(f"`streaming: true` in `data:` of {where}: expected a data set of known size; leave it out.")
    for key, allowed in (("type", TASK_TYPES), ("problem_type", PROBLEM_TYPES)):
        if values.get(key) not in (None, *allowed):
            raise RecipeError(f"`{key}: {values[key]!r}` in {where}: expected one of {list(allowed)}.")
    sections: list[tuple[str, type]] = [("columns", Columns), ("splits", Splits)]
    for key, section in sections:
        keys = [f.name for f in dataclasses.fields(section)]
        inner = _mapping(values.get(key) or {}, keys, f"`{key}:` of {where}")
        for name in inner:
            _check_type(inner, name, str, "a name", f"`{key}:` of {where}")
        values[key] = section(**_given(inner))
    _check_labels(values.get("labels"), where)
    problem_type = values.get("problem_type") or PROBLEM_TYPES[0]
    _check_type(values, "metric", str, "the name of a metric", where)
    values["metric"] = values.get("metric") or BUILT_IN_METRICS[problem_type][0]
    built_in = {metric for metrics in BUILT_IN_METRICS.values() for metric in metrics}
    if values["metric"] in built_in - set(BUILT_IN_METRICS[problem_type]):
        raise RecipeError(
            f"`metric: {values['metric']}` in {where} does not fit `problem_type: {problem_type}`; its built-in "
            f"metrics are {list(BUILT_IN_METRICS[problem_type])}."
        )
    return TaskRecipe(**_given(values))


def _check_labels(labels: Any, where: str) -> None:
    if labels is None:
        return
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise RecipeError(
            f"`labels: {labels!r}` in {where}: expected a list of texts. Put quotes around labels that YAML reads as "
            "something else, such as 'yes', 'no' and '1'."
        )
    if len(set(labels)) != len(labels):
        raise RecipeError(f"`labels: {labels!r}` in {where}: every label may be given once.")


def _check_tasks(recipe: Recipe) -> None:
    """Check what takes more than one task, and the values that only `PruningConfig` and `TrainingArguments` know."""
    names = [task.name for task in recipe.tasks]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"The recipe has {names.count(name)} tasks named '{name}'. Give each a name of its own.")
    unknown = (
        [name for name in recipe.forward_transfer if name not in names]
        if recipe.forward_transfer not in ("all", "none")
        else []
    )
    if unknown:
        raise RecipeError(f"`forward_transfer:` names {unknown[0]!r}; the recipe's tasks are {names}.")
    for number, task in enumerate(recipe.tasks):
        for ancestor in task.forward_transfer if isinstance(task.forward_transfer, list) else []:
            if ancestor not in names[:number]:
                raise RecipeError(
                    f"`forward_transfer:` of task '{task.name}' names {ancestor!r}, which is no task before it; those "
                    f"are {names[:number]}."
                )
        recipe.pruning_config(task)
        recipe.training_arguments(task)


# -- the data of a task -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskData:
    """A task's splits as the model takes them, and the names of its labels.

    Attributes:
        labels: names of the labels in the order of the logits; for regression, names of the targets.
        splits: `train`, `validation` and `test`: token ids, attention masks and `labels`.
    """

    labels: list[str]
    splits: dict[str, datasets.Dataset]


def load_task_data(recipe: Recipe, task: TaskRecipe, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """Load a task's data set, check it, and tokenize it.

    Raises:
        RecipeError: if it can not be loaded, is empty, lacks a column, or has a label outside of the task's list.
    """
    raw = _load_splits(recipe, task)
    for name, split in raw.items():
        _check_columns(task, name, split)
    column = task.columns.label
    if task.problem_type == "regression":
        labels = task.labels or ["score"]
        encode: Callable[[Any], Any] = lambda value: value  # noqa: E731
        _check_numbers(task, labels, raw)
    else:
        labels, numbers = _label_numbers(task, raw)
        if task.problem_type == "multi_label_classification":

            def encode(value: Any) -> list[float]:
                chosen = {numbers[name] for name in value}
                return [float(index in chosen) for index in range(len(labels))]
        else:
            encode = numbers.__getitem__

    def prepare(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pair = batch[task.columns.text_pair] if task.columns.text_pair else None
        tokens = tokenizer(batch[task.columns.text], pair, truncation=True, max_length=recipe.max_length)
        return {**tokens, "labels": [encode(value) for value in batch[column]]}

    splits = {name: split.map(prepare, batched=True, remove_columns=split.column_names) for name, split in raw.items()}
    return TaskData(labels, splits)


def _load_splits(recipe: Recipe, task: TaskRecipe) -> dict[str, datasets.Dataset]:
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
    for role in ("train", "validation", "test"):
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
    return {role: found[role] for role in ("train", "validation", "test")}


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


def _check_columns(task: TaskRecipe, split: str, data: datasets.Dataset) -> None:
    wanted = {"text": task.columns.text, "text_pair": task.columns.text_pair, "label": task.columns.label}
    for role, column in wanted.items():
        if column is None:
            continue
        if column not in data.column_names:
            raise RecipeError(
                f"Task '{task.name}': the {split} split has no column '{column}'; it has {data.column_names}. Say "
                f"which one is the {role}, with `columns: {{{role}: NAME}}`."
            )
        dtype = getattr(data.features[column], "dtype", "a list")
        if role != "label" and dtype not in ("string", "large_string"):
            raise RecipeError(
                f"Task '{task.name}': the column '{column}' of the {split} split holds {dtype}, expected texts."
            )
        missing = data.data.column(column).null_count
        if missing:
            raise RecipeError(
                f"Task '{task.name}': {missing} rows of the {split} split have no '{column}'. Remove them."
            )


def _check_numbers(task: TaskRecipe, targets: list[str], splits: Mapping[str, datasets.Dataset]) -> None:
    """Check that regression targets are numbers: one, or a list of as many as there are names of targets."""
    for split, data in splits.items():
        for row, value in enumerate(data[task.columns.label]):
            values = value if isinstance(value, list) else [value]
            if len(values) != len(targets) or not all(type(v) in (int, float) and np.isfinite(v) for v in values):
                raise RecipeError(
                    f"Task '{task.name}': row {row} of the {split} split has the label {value!r}; regression expects "
                    f"{len(targets)} finite number(s), for {targets}. Name several targets with `labels: [...]`."
                )


def _label_order(value: Any) -> tuple[bool, float, str]:
    """Sorts numbers before texts, and by size: 10 comes after 9."""
    is_number = isinstance(value, (int, float))
    return not is_number, float(value) if is_number else 0.0, str(value)


def _label_numbers(task: TaskRecipe, splits: Mapping[str, datasets.Dataset]) -> tuple[list[str], dict[Any, int]]:
    """Names of the labels in the order of the logits, and the number of each value of the label column.

    Whole numbers are the names of a `ClassLabel` feature, else names if the recipe lists them as such, else positions
    in the recipe's list.
    """
    column, many = task.columns.label, task.problem_type == "multi_label_classification"
    feature: Any = splits["train"].features[column]
    if many != isinstance(feature, (datasets.List, datasets.LargeList)):
        expected = "lists of label names" if many else "one label a row"
        raise RecipeError(
            f"Task '{task.name}' ({task.problem_type}): the column '{column}' holds {feature}, expected {expected}."
        )
    feature = feature.feature if many else feature
    values: dict[str, list[Any]] = {}
    for split, data in splits.items():
        found = {label for row in data[column] for label in row} if many else set(data.unique(column))
        values[split] = sorted(found, key=_label_order)
    everything = {value for found in values.values() for value in found}
    names = {value: str(value) for value in everything}
    if isinstance(feature, datasets.ClassLabel):
        names = {
            value: feature.int2str(value) if value in range(len(feature.names)) else str(value) for value in everything
        }
    elif task.labels and not set(names.values()) <= set(task.labels):
        places = range(len(task.labels))
        if all(type(value) is int and value in places for value in everything):
            names = {value: task.labels[value] for value in everything}
    labels = task.labels or getattr(feature, "names", None) or [names[value] for value in values["train"]]
    for split, listed in values.items():
        wrong = [value for value in listed if names[value] not in labels]
        if wrong:
            row = next(i for i, v in enumerate(splits[split][column]) if wrong[0] in (v if many else [v]))
            raise RecipeError(
                f"Task '{task.name}': row {row} of the {split} split has the label {names[wrong[0]]!r}, which is not "
                f"among its labels {labels}. Add it to `labels:`, correct the data, or name a labelled split with "
                "`splits:`."
            )
    return list(labels), {value: labels.index(name) for value, name in names.items()}


# -- the score of a task ----------------------------------------------------------------------------------------------


def load_metric(task: TaskRecipe, folder: Path) -> evaluate.EvaluationModule | None:
    """The `evaluate` module of a task's metric, or `None` if it is built in.

    Raises:
        RecipeError: if it can not be loaded.
    """
    if task.metric in BUILT_IN_METRICS[task.problem_type]:
        return None
    local = folder / task.metric
    options = {"config_name": "multilabel"} if task.problem_type == "multi_label_classification" else {}
    try:
        return evaluate.load(str(local) if local.exists() else task.metric, **options)
    except Exception as error:  # Modules are code that is downloaded: any error is possible.
        built_in = ", ".join(BUILT_IN_METRICS[task.problem_type])
        raise RecipeError(
            f"`metric: {task.metric}` of task '{task.name}' could not be loaded with evaluate.load ({error}). Built "
            f"in, and there without network, are: {built_in}."
        ) from error


@dataclass(frozen=True)
class TaskScore:
    """`compute_metrics` of one task: the built-in metrics, and the one of its recipe."""

    record: TaskRecord
    metric: str
    module: evaluate.EvaluationModule | None = None

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics of logits `(examples, labels)`."""
        scores = task_metrics(self.record, prediction)
        if self.module is not None:
            logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
            answers = {
                "single_label_classification": lambda: (logits.argmax(-1), labels),
                "multi_label_classification": lambda: ((logits > 0).astype(int), labels.astype(int)),
                "regression": lambda: (logits.reshape(-1), labels.reshape(-1)),
            }[self.record.problem_type]()
            found = self.module.compute(predictions=answers[0], references=answers[1]) or {}
            numbers = [float(value) for value in found.values() if np.ndim(value) == 0]
            scores[self.metric] = float(found.get(self.metric, numbers[0] if numbers else np.nan))
        return scores


def evaluate_task(
    model: EideticModel,
    task: str,
    data: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    score: TaskScore,
) -> dict[str, float]:
    """Metrics of a committed task on one of its splits; the task is given (oracle)."""
    trainer = EideticTrainer(
        model=model, task=task, args=arguments, processing_class=tokenizer, compute_metrics=score, eval_dataset=data
    )
    trainer.remove_callback(PrinterCallback)
    found = trainer.evaluate()
    skip = ("runtime", "per_second", "epoch", "time")
    return {name.removeprefix("eval_"): float(value) for name, value in found.items() if not name.endswith(skip)}


def evaluate_recipe(
    model: EideticModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    split: str = "test",
    tasks: list[str] | None = None,
) -> dict[str, Any]:
    """Metrics of a model's committed tasks on the data of a recipe, the task given and the task not given.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        recipe: says where each task's data is.
        split: `"train"`, `"validation"` or `"test"`.
        tasks: names of the tasks; by default all that both the model and the recipe have.

    Returns:
        `split`; `oracle`, all metrics of each task when it is given; `routing`, what `evaluate_routing` returns.

    Raises:
        RecipeError: if there is nothing to evaluate, or the labels differ.
    """
    if split not in ("train", "validation", "test"):
        raise RecipeError(f"split={split!r}: expected train, validation or test.")
    chosen = tasks or [task.name for task in recipe.tasks if task.name in model.tasks]
    if not chosen:
        ours = [task.name for task in recipe.tasks]
        raise RecipeError(f"The model has the tasks {model.tasks}, the recipe {ours}: none in common.")
    oracle, texts = {}, {}
    for name in chosen:
        task, record = recipe.task(name), model.record(name)
        data = load_task_data(recipe, task, tokenizer)
        _check_record(record, task, data)
        texts[name] = data.splits[split]
        with tempfile.TemporaryDirectory() as folder:
            arguments = recipe.training_arguments(
                task, output_dir=folder, save_strategy="no", load_best_model_at_end=False
            )
            score = TaskScore(record, task.metric, load_metric(task, recipe.folder))
            oracle[name] = evaluate_task(model, name, texts[name], tokenizer, arguments, score)
    return {"split": split, "oracle": oracle, "routing": evaluate_routing(model, tokenizer, texts)}


def evaluate_routing(
    model: EideticModel, tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, datasets.Dataset]
) -> dict[str, Any] | None:
    """How often the router finds a text's own task, and how often the answer is right when it chooses.

    A text is answered right if the label is, or, for a task of many labels, all of them are.

    Args:
        model: the model.
        tokenizer: its tokenizer, which pads.
        texts: tokenized texts with their `labels`, by task.

    Returns:
        `tasks`, those that the router chooses from; `confusion`, for each task of `texts`, how many of its texts went
        to each of `tasks`; `scores`, for each task of `texts` and for their `mean`: `routing_accuracy`, and
        `oracle_accuracy` (the task given), `routed_accuracy` (a wrong route is wrong) and `merged_label_accuracy` (a
        wrong route is right if it answers with labels of the right names). The latter three are `None` for regression.
        Instead of all this `None`, if there is nothing to choose: one task only, or one without router sums.
    """
    if len(model.tasks) < 2 or not all(model.router.has(name) for name in model.tasks):
        return None
    confusion: dict[str, dict[str, int]] = {}
    scores: dict[str, dict[str, Any]] = {}
    for name, data in texts.items():
        sent, right = dict.fromkeys(model.tasks, 0), dict.fromkeys(_ROUTING_SCORES, 0)
        for batch in DataLoader(data, ROUTING_BATCH, collate_fn=DataCollatorWithPadding(tokenizer)):
            found = _count_routed(model, name, batch.to(model.device))
            for task in found.pop("tasks"):
                sent[task] += 1
            for key, value in found.items():
                right[key] += value
        confusion[name] = sent
        is_number = model.record(name).problem_type == "regression"
        scores[name] = {
            "texts": len(data),
            "routing_accuracy": sent[name] / len(data),
            **{key: None if is_number else value / len(data) for key, value in right.items()},
        }
    mean: dict[str, float | None] = {}
    for key in ("routing_accuracy", *_ROUTING_SCORES):
        known = [row[key] for row in scores.values() if row[key] is not None]
        mean[key] = float(np.mean(known)) if known else None
    return {"tasks": model.tasks, "confusion": confusion, "scores": scores, "mean": mean}


@torch.inference_mode()
def _count_routed(model: EideticModel, name: str, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Where the texts of a task's batch went, and how many were answered right."""
    model.eval()
    record, inputs = model.record(name), {key: value for key, value in batch.items() if key != "labels"}
    routed = model(**inputs)
    if record.problem_type == "regression":
        return {"tasks": routed.tasks}
    spans = model.config.label_spans()
    truth = _label_names(record, batch["labels"])
    named = _label_names(record, model(**inputs, task=name).logits)
    chosen = [
        _label_names(model.record(task), logits[spans[task]].unsqueeze(0))[0]
        for task, logits in zip(routed.tasks, routed.logits, strict=True)
    ]
    merged = [answer == true for answer, true in zip(chosen, truth, strict=True)]
    return {
        "tasks": routed.tasks,
        "oracle_accuracy": sum(answer == true for answer, true in zip(named, truth, strict=True)),
        "routed_accuracy": sum(ok and task == name for ok, task in zip(merged, routed.tasks, strict=True)),
        "merged_label_accuracy": sum(merged),
    }


def _label_names(record: TaskRecord, values: torch.Tensor) -> list[set[str] | None]:
    """Names of the labels in logits `(texts, labels)` or in the `labels` of a batch; `None` for numbers."""
    if record.problem_type == "regression":
        return [None] * len(values)
    if record.problem_type == "multi_label_classification":
        return [{record.labels[index] for index in row.nonzero().flatten().tolist()} for row in values > 0]
    numbers = values if values.dim() == 1 else values.argmax(-1)
    return [{record.labels[index]} for index in numbers.tolist()]


def _check_record(record: TaskRecord, task: TaskRecipe, data: TaskData) -> None:
    for what, has, wants in (
        ("problem_type", record.problem_type, task.problem_type),
        ("labels", record.labels, data.labels),
    ):
        if has != wants:
            raise RecipeError(
                f"The model learned the task '{task.name}' with {what} {has}, the recipe says {wants}. Name the task "
                "differently, or use another output folder."
            )


# -- results ----------------------------------------------------------------------------------------------------------


def continual_metrics(matrix: list[dict[str, Any]], metrics: Mapping[str, str]) -> dict[str, Any]:
    """Average accuracy, backward transfer and forgetting of an accuracy matrix.

    With a[i][j] the score on task j after task i, of T: the mean over j of a[T][j]; the mean over j < T of
    a[T][j] - a[j][j]; and the mean over j < T of max_i a[i][j] - a[T][j] (Lopez-Paz & Ranzato, arXiv 1706.08840, and
    Chaudhry et al., arXiv 1801.10112). Tasks whose metric is an error, of which less is better, do not count.

    Args:
        matrix: a row per task learned, `{"task": name, "scores": {task: score}}`.
        metrics: name of each task's metric.

    Returns:
        The three, `None` where there is nothing to average, and `averaged_tasks`.
    """
    counted = [row["task"] for row in matrix if metrics[row["task"]] not in LOWER_IS_BETTER]
    final = matrix[-1]["scores"] if matrix else {}
    at_commit = {row["task"]: row["scores"][row["task"]] for row in matrix}
    earlier = [name for name in counted if name in final and name != matrix[-1]["task"]]
    best = {name: max(row["scores"][name] for row in matrix if name in row["scores"]) for name in earlier}
    scored = [final[name] for name in counted if name in final]
    return {
        "average_accuracy": float(np.mean(scored)) if scored else None,
        "backward_transfer": float(np.mean([final[name] - at_commit[name] for name in earlier])) if earlier else None,
        "forgetting": float(np.mean([best[name] - final[name] for name in earlier])) if earlier else None,
        "averaged_tasks": counted,
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# -- the run ----------------------------------------------------------------------------------------------------------


def run_recipe(recipe: Recipe, say: Say = print) -> dict[str, Any]:
    """Learn every task of a recipe that is not committed yet, in order; evaluate all committed tasks after each.

    Writes `model/` (the checkpoint folder, with the tokenizer) and `results.json` to `recipe.output` after every task.
    Started again, it continues with the first task that is not committed.

    Args:
        recipe: what to do.
        say: takes one line of progress at a time.

    Returns:
        What `results.json` holds.

    Raises:
        RecipeError: before any training, if the recipe, its data or the model in its output folder do not allow it.
    """
    run = _Run(recipe, say)
    run.prepare()
    for task in recipe.tasks:
        if run.model.is_committed(task.name):
            say(f"{task.name}: already committed, skipped")
        else:
            run.learn(task)
    return run.finish()


def resolve_backbone(backbone: str, folder: Path) -> str:
    """A recipe's backbone as `from_backbone` takes it: a folder or a Hub id.

    Raises:
        RecipeError: if a package is not installed, or a folder does not exist.
    """
    if backbone.startswith(PACKAGE_PREFIX):
        package, _, inner = backbone.removeprefix(PACKAGE_PREFIX).partition("/")
        try:
            path = Path(str(importlib.resources.files(package).joinpath(inner)))
        except (ModuleNotFoundError, ValueError) as error:
            raise RecipeError(
                f"`backbone: {backbone}`: the Python package '{package}' is not installed. Install it with: pip "
                f"install {package.replace('_', '-')}"
            ) from error
        if not path.is_dir():
            raise RecipeError(f"`backbone: {backbone}`: the package '{package}' has no folder '{inner}'.")
        return str(path)
    local = folder / Path(backbone).expanduser()
    if not local.exists() and backbone.startswith((".", "/", "~")):
        raise RecipeError(
            f"`backbone: {backbone}`: there is no folder {local}. Give a folder, a Hub id or package:NAME/FOLDER."
        )
    return str(local) if local.exists() else backbone


class _ProgressLines(TrainerCallback):
    """A line per evaluation, where no progress bar shows what is going on."""

    def __init__(self, say: Say, model: EideticModel, metric: str) -> None:
        self.say, self.model, self.metric = say, model, metric

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say the step, the phase, the share of free units kept and the validation metric."""
        learner, value = self.model.learner, (kwargs.get("metrics") or {}).get(f"eval_{self.metric}")
        if learner is not None:
            score = f", validation {self.metric} {value:.3f}" if value is not None else ""
            self.say(
                f"  step {state.global_step}/{state.max_steps}: {learner.phase(state.global_step)}, "
                f"{learner.kept_share():.0%} of the free units{score}"
            )


class _Run:
    """One run of a recipe. Invariant: `results.json` describes the model in `model/`, or is about to be rewritten."""

    model: EideticModel
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, recipe: Recipe, say: Say) -> None:
        self.recipe, self.say = recipe, say
        self.model_folder = recipe.output / MODEL_FOLDER
        self.data: dict[str, TaskData] = {}
        self.metric_modules: dict[str, evaluate.EvaluationModule | None] = {}
        self.steps: list[dict[str, Any]] = []

    def prepare(self) -> None:
        """Load and check everything that the run needs, so that no mistake shows only after hours of training."""
        recipe = self.recipe
        if recipe.output.exists() and not recipe.output.is_dir():
            raise RecipeError(f"The output {recipe.output} is a file, expected a folder.")
        self.metric_modules = {task.name: load_metric(task, recipe.folder) for task in recipe.tasks}
        backbone = resolve_backbone(recipe.backbone, recipe.folder)
        self.tokenizer = AutoTokenizer.from_pretrained(backbone)
        self.model = EideticModel.from_backbone(
            backbone, trunk_layers=recipe.trunk_layers, forward_transfer=recipe.forward_transfer
        )
        # A path on this machine has no place in the model card.
        self.model.config.base_config._name_or_path = recipe.backbone
        longest = getattr(self.model.backbone.config, "max_position_embeddings", recipe.max_length)
        if recipe.max_length > longest:
            raise RecipeError(
                f"`max_length: {recipe.max_length}`: the backbone {recipe.backbone} reads up to {longest} tokens."
            )
        self.tokenizer.model_max_length = recipe.max_length
        self.data = {task.name: load_task_data(recipe, task, self.tokenizer) for task in recipe.tasks}
        if (self.model_folder / CONFIG_FILE).exists() or (self.model_folder / COMMITTED).is_dir():
            self._continue()

    def _continue(self) -> None:
        """Go on with the model in the output folder, if it is this recipe's."""
        fresh, model = self.model, EideticModel.from_pretrained(self.model_folder)
        way_out = f"Use another output folder, or delete {self.model_folder} to start anew."
        if model.config.trunk_layers != fresh.config.trunk_layers:
            raise RecipeError(
                f"The model in {self.model_folder} has a trunk of {model.config.trunk_layers} layers, the recipe asks "
                f"for {fresh.config.trunk_layers}. {way_out}"
            )
        ours, theirs = (
            {n: t for n, t in m.backbone.state_dict().items() if owner_of(n) == TRUNK} for m in (fresh, model)
        )
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
            raise RecipeError(
                f"The model in {self.model_folder} was made from another backbone than the recipe's "
                f"{self.recipe.backbone}. {way_out}"
            )
        for record in model.config.tasks:
            if record.name not in self.data:
                raise RecipeError(
                    f"The model in {self.model_folder} has the task '{record.name}', which the recipe lacks. {way_out}"
                )
            _check_record(record, self.recipe.task(record.name), self.data[record.name])
        model.config.forward_transfer = fresh.config.forward_transfer
        self.model = model
        self._read_steps()
        if model.tasks and (not self.steps or self.steps[-1]["task"] != model.tasks[-1]):
            # The last run was cut off between saving the model and writing its results.
            self._evaluate(model.tasks[-1], None)

    def _read_steps(self) -> None:
        """Take over the rows of an earlier run that belong to the tasks of this model."""
        try:
            steps = json.loads((self.recipe.output / RESULTS_FILE).read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, KeyError):
            return
        now = self._shards()
        for step in steps:
            file = shard_file(task_key(step["task"]))
            if self.model.is_committed(step["task"]) and step["shards"].get(file, {}) == now.get(file):
                self.steps.append(step)

    def learn(self, task: TaskRecipe) -> None:
        """Fit, prune, recover and commit a task; save; evaluate all committed tasks."""
        recipe, data, say = self.recipe, self.data[task.name], self.say
        sizes = ", ".join(f"{name} {len(split)}" for name, split in data.splits.items())
        place = f"task {recipe.tasks.index(task) + 1} of {len(recipe.tasks)}"
        say(f"{task.name}: {place}, {len(data.labels)} labels, {sizes}")
        if task.name not in self.model._pending:
            self.model.add_task(
                task.name,
                task_type=task.type,
                labels=data.labels,
                problem_type=task.problem_type,
                forward_transfer=task.forward_transfer,
                pooling=task.pooling or recipe.pooling,
            )
        arguments = recipe.training_arguments(task)
        set_seed(arguments.seed)
        score = TaskScore(self.model.record(task.name), task.metric, self.metric_modules[task.name])
        trainer = EideticTrainer(
            model=self.model,
            task=task.name,
            args=arguments,
            pruning=recipe.pruning_config(task),
            processing_class=self.tokenizer,
            compute_metrics=score,
            train_dataset=data.splits["train"],
            eval_dataset=data.splits["validation"],
            callbacks=[_ProgressLines(say, self.model, task.metric)],
        )
        trainer.remove_callback(PrinterCallback)  # It prints dictionaries; `say` has the lines.
        checkpoints = recipe.output / CHECKPOINTS_FOLDER / task.name
        last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
        if last is not None:
            say(f"  resumed from {last}")
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=last)
        seconds = time.perf_counter() - start
        self._save()
        shutil.rmtree(checkpoints, ignore_errors=True)
        if checkpoints.parent.is_dir() and not any(checkpoints.parent.iterdir()):
            checkpoints.parent.rmdir()
        self._evaluate(task.name, seconds)

    def _save(self) -> None:
        if not (self.model_folder / "tokenizer_config.json").exists():
            self.tokenizer.save_pretrained(self.model_folder)
        self.model.save_pretrained(self.model_folder)

    def _evaluate(self, after: str, seconds: float | None) -> None:
        """Add the row of the accuracy matrix after a task, and write the results."""
        scores = {}
        for name in self.model.tasks:
            task = self.recipe.task(name)
            # Checkpoints and the choice of the best are the training's business.
            arguments = self.recipe.training_arguments(
                task,
                output_dir=str(self.recipe.output),
                save_strategy="no",
                load_best_model_at_end=False,
                disable_tqdm=True,
            )
            score = TaskScore(self.model.record(name), task.metric, self.metric_modules[name])
            test = self.data[name].splits["test"]
            scores[name] = evaluate_task(self.model, name, test, self.tokenizer, arguments, score)
        self.steps.append(
            {
                "task": after,
                "scores": scores,
                "seconds": seconds,
                "units": self.model.record(after).units,
                "capacity": self.model.capacity(),
                "shards": self._shards(),
            }
        )
        shown = ", ".join(f"{name} {found[self.recipe.task(name).metric]:.3f}" for name, found in scores.items())
        took = "" if seconds is None else f" in {seconds:.0f} s"
        self.say(f"  committed {sum(self.steps[-1]['units'].values())} units{took}; test scores now: {shown}")
        self._write_results(self.model)

    def _shards(self) -> dict[str, dict[str, Any]]:
        """Size and SHA-256 of every shard, read from the disk: what a person would see with sha256sum."""
        paths = sorted(self.model_folder.glob("eidetic-*.safetensors"))
        return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths}

    def _write_results(self, verified: EideticModel, routing: dict[str, Any] | None = None) -> dict[str, Any]:
        recipe, model = self.recipe, self.model
        metrics = {task.name: task.metric for task in recipe.tasks}
        matrix = [
            {"task": step["task"], "scores": {name: found[metrics[name]] for name, found in step["scores"].items()}}
            for step in self.steps
        ]
        verdict = verified.verify()
        results = {
            "format_version": RESULTS_VERSION,
            "name": recipe.name,
            "recipe": recipe.source,
            "backbone": recipe.backbone,
            "trunk_layers": model.config.trunk_layers,
            "environment": {
                "eidetic_hf": __version__,
                "python": platform.python_version(),
                "datasets": datasets.__version__,
                **environment(model.device, model.dtype, model.backbone.config._attn_implementation),
            },
            "tasks": [self._describe(record) for record in model.config.tasks],
            "metrics": metrics,
            "matrix": matrix,
            **continual_metrics(matrix, metrics),
            "routing": routing,
            "verify": {"ok": bool(verdict), "text": str(verdict), "tasks": [str(task) for task in verdict.tasks]},
            "steps": self.steps,
        }
        write_json(recipe.output / RESULTS_FILE, results)
        return results

    def _describe(self, record: TaskRecord) -> dict[str, Any]:
        file = shard_file(task_key(record.name))
        return {
            "name": record.name,
            "problem_type": record.problem_type,
            "labels": record.labels,
            "metric": self.recipe.task(record.name).metric,
            "examples": {name: len(split) for name, split in self.data[record.name].splits.items()},
            "ancestors": record.ancestors,
            "units": sum(record.units.values()),
            "seconds": next((step["seconds"] for step in self.steps if step["task"] == record.name), None),
            "shard": file,
            **self._shards()[file],
        }

    def finish(self) -> dict[str, Any]:
        """Verify the model as it lies on the disk, let it find the tasks itself, and write the results a last time."""
        loaded = EideticModel.from_pretrained(self.model_folder)
        loaded.to(self.model.device)  # type: ignore[arg-type]
        tests = {name: self.data[name].splits["test"] for name in loaded.tasks}
        return self._write_results(loaded, evaluate_routing(loaded, self.tokenizer, tests))
