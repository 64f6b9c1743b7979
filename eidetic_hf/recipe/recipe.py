"""A recipe: which tasks to learn on which backbone, and how.

`recipe_file.py` reads one, `task_data.py` the data that it names, and `run.py` does what it says. What it may say of
a kind of task is in `kinds/`. docs/recipes.md lists every key.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..model.pruning import PruningConfig

CHECKPOINTS_FOLDER = "checkpoints"
TOKENIZERS = ("bpe", "byte")  # that can be trained
SMALLEST_VOCABULARY = 300  # all bytes, special tokens and some room


class RecipeError(ValueError):
    """A recipe, or the data it names, can not be run. The message says what was given and expected, and what to do."""


# -- what a recipe says -----------------------------------------------------------------------------------------------


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
        type: the kind of task, see `recipe/kinds/`.
        columns: the column of each part of a row, such as `{"text": "sentence"}`; `choices` may be a list of columns.
        labels: names of the labels in the order of the logits; by default those of the `ClassLabel` feature, or else
            the sorted labels of the training split. For regression, names of the targets. Of multiple choice, names
            of the choices, if the label column has names.
        metric: the score of the accuracy matrix: a built-in metric of the kind, or for sequence classification any
            other name, which is given to `evaluate.load`.
        lower_is_better: whether less of that metric is better; no key of the YAML file.
        splits: names of the data set's splits.
        training: fields of `TrainingArguments`, over the recipe's.
        pruning: fields of `PruningConfig`, over the recipe's.
        head_lr_ratio: over the recipe's.
        forward_transfer: which earlier tasks this one reads; the recipe's by default.
        based_on: with `growth: copy`, the earlier task that this one starts from, or `auto`, for the one that is found
            to be best; the backbone by default.
        pooling: how the head reads the sequence; the recipe's by default.
        max_length: longest sequence, in tokens; the recipe's by default.
        settings: what only this kind of task has: an object of the kind's own class of settings. In the YAML file its
            fields stand beside the others.
    """

    name: str
    data: dict[str, Any]
    type: str = "sequence-classification"
    columns: dict[str, Any] = field(default_factory=dict)
    labels: list[str] | None = None
    metric: str = ""
    lower_is_better: bool = False
    splits: Splits = Splits()
    training: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] = field(default_factory=dict)
    head_lr_ratio: float | None = None
    forward_transfer: str | list[str] | None = None
    based_on: str | None = None
    pooling: str | None = None
    max_length: int | None = None
    settings: Any = None


@dataclass(frozen=True)
class Recipe:
    """A whole recipe, checked: every key is known, every value that can be checked without the data is allowed.

    Attributes:
        name: the file's name without its suffix.
        folder: where the file lies; relative data files and backbones are looked for here.
        source: the file's text.
        backbone: a folder, a Hub id, or `package:NAME/FOLDER`, a folder inside of an installed Python package; or a
            configuration, `{model_type: llama, hidden_size: ...}`, for a random backbone that the first task trains.
        tasks: the tasks, in the order in which they are learned.
        output: folder of the results, relative to the current directory; `runs/<name>` by default.
        plugins: modules, or `.py` files relative to the recipe, that are imported before the rest is read: they
            register kinds of task of a user's own.
        tokenizer: where it is, as for `backbone`, by default there; or `{train: bpe, vocab_size: 2048}` or
            `{train: byte}`, to make one from the training texts of the tasks.
        trunk_layers: layers that stay at their pretrained values; a third of the depth by default.
        router_layers: the layers that the router reads; by default those that suit the growth and the depth.
        forward_transfer: which earlier tasks a task reads: `"all"`, `"none"` or a list of names.
        growth: how tasks come to units: `"copy"`, by copying the backbone's; or `"fixed"`, out of a pool, as in every
            recipe whose backbone is a configuration.
        preserve: with `growth: copy`, whether the backbone itself is one of the model's tasks in the end, `base`.
        max_length: longest sequence, in tokens; longer ones are cut.
        pooling: `"mean"` over real tokens, `"first"` or `"last"`; by default the last token in a decoder, else the
            mean.
        seed: of every task's training, and of the split of missing validation data.
        training: fields of `TrainingArguments` for every task.
        pruning: fields of `PruningConfig` for every task.
        head_lr_ratio: the learning rate of heads, as a multiple of that of all else.
    """

    name: str
    folder: Path
    source: str
    backbone: str | dict[str, Any]
    tasks: list[TaskRecipe]
    output: Path
    plugins: list[str] = field(default_factory=list)
    tokenizer: str | dict[str, Any] | None = None
    trunk_layers: int | None = None
    router_layers: list[int] | None = None
    forward_transfer: str | list[str] = "all"
    growth: str = "copy"
    preserve: bool = False
    max_length: int = 128
    pooling: str | None = None
    seed: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] = field(default_factory=dict)
    head_lr_ratio: float = 1.0

    @property
    def backbone_name(self) -> str:
        """What the model card calls the backbone."""
        return self.backbone if isinstance(self.backbone, str) else f"{self.backbone['model_type']} (random)"

    def pooling_of(self, task: TaskRecipe) -> str | None:
        """How a task's head reads the sequence; `None` leaves it to the backbone's family."""
        return task.pooling or self.pooling

    def length_of(self, task: TaskRecipe) -> int:
        """Longest sequence of a task, in tokens."""
        return task.max_length or self.max_length

    def head_lr_ratio_of(self, task: TaskRecipe) -> float:
        """The learning rate of a task's head, as a multiple of that of all else."""
        return task.head_lr_ratio or self.head_lr_ratio

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
            common = {"seed": self.seed, **self.pruning}
            for own, other in (("keep", "tolerance"), ("tolerance", "keep")):  # a task's own aim, not the recipe's
                if task.pruning.get(own) is not None and other not in task.pruning:
                    common.pop(other, None)
            return PruningConfig(**{**common, **task.pruning})
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
            "dataloader_pin_memory": torch.accelerator.is_available(),  # PyTorch warns where there is none
        }
        values = {**defaults, **self.training, **task.training}
        if (values.get("bf16") or values.get("fp16")) and not torch.accelerator.is_available():
            values.setdefault("use_cpu", True)  # else transformers refuses reduced precision where there is no GPU
        if values.get("metric_for_best_model") is None:  # what a search for a budget and the best checkpoint go by
            values["metric_for_best_model"] = task.metric
            values["greater_is_better"] = not task.lower_is_better
        keeps_checkpoints = values["save_strategy"] not in ("no", False)
        folder = self.output / CHECKPOINTS_FOLDER / task.name if keeps_checkpoints else self.output
        try:
            return TrainingArguments(**{"output_dir": str(folder), **values, **overrides})
        except (TypeError, ValueError, ImportError) as error:
            raise RecipeError(f"Task '{task.name}', training: {error}") from error
