"""What a kind of task is to a recipe and to the command line: columns, settings, metrics, data, answers.

The other side of a kind, which the model and the trainer ask, is `eidetic_hf.kinds`: two files of one name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedTokenizerBase, TrainingArguments

from ...configuration import TaskRecord
from ...trainer import task_metrics
from ..recipe import RecipeError, TaskRecipe
from .asking import Asker, Query, Unanswerable
from .preparation import Preparation
from .settings import Settings

LOSS = "loss"  # a metric of every kind, of which less is better

Score = Callable[[EvalPrediction], dict[str, float]]


class RecipeKind:
    """What differs between kinds of task in a recipe. A kind has no state; what it needs of a task it is given.

    A kind of your own must have `name`, `columns`, `metrics`, `preparation` and the method `answer`. It may have the
    other attributes and methods; those that most kinds leave as they are come last. Register it with
    `register_recipe_kind`, and its other side, an `eidetic_hf.kinds.base.Kind` of the same name, with
    `eidetic_hf.kinds.register_kind`; docs/recipes.md shows a whole one.

    Attributes:
        name: as `type:` of a task and `TaskRecord.task_type` have it.
        columns: the parts of a row, with the column that each is read from where the recipe names none; parts at
            `None` are read only if the recipe names their column.
        metrics: all built-in metrics, but for the loss; the first one is the default.
        preparation: what checks and encodes the rows of a task.
        settings: further keys of such a task.
        lower_is_better: those of the metrics of which less is better.
        has_labels: whether `labels:` may be given.
        listed: the parts of a row that may be read from several columns.
        has_modules: whether `evaluate` has metrics for its answers, see `module_answers`.
        learned_with: settings that a model must have learned a task with, to be evaluated or continued.
        reads_pairs: whether a query may have two texts.
        chooses: whether a query has choices.
    """

    name: str
    columns: dict[str, str | None]
    metrics: tuple[str, ...]
    preparation: type[Preparation]
    settings: type[Settings] = Settings
    lower_is_better: tuple[str, ...] = ()
    has_labels = False
    listed: tuple[str, ...] = ()
    has_modules = False
    learned_with: tuple[str, ...] = ()
    reads_pairs = True
    chooses = False

    # -- what a kind must have ------------------------------------------------------------------------------------

    def answer(self, asker: Asker, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """What a task of this kind answers, as JSON-ready values, one for each query.

        Args:
            asker: the model and what makes its batches.
            record: the task.
            queries: some that `check_query` found answerable; the model is in evaluation mode, gradients are off.
        """
        raise NotImplementedError

    # -- what it may have: asking ---------------------------------------------------------------------------------

    def check_query(self, asker: Asker, record: TaskRecord, query: Query) -> None:
        """Raise `Unanswerable` if a task can not answer a query."""
        if query.choices is not None and not self.chooses:
            raise Unanswerable(f"'{record.name}' ({self.name}) does not choose among texts. Leave the choices out.")
        if query.text_pair is not None and (not self.reads_pairs or query.choices is not None):
            raise Unanswerable(
                f"'{record.name}' ({self.name}) reads one text, and there are two. Leave the second one out."
            )

    def answers(self, asker: Asker, record: TaskRecord, queries: Sequence[Query]) -> list[dict[str, Any]]:
        """One task's answers; each query that it can not answer gets an `error`."""
        found: dict[int, dict[str, Any]] = {}
        fitting = []
        for row, query in enumerate(queries):
            try:
                self.check_query(asker, record, query)
                fitting.append(row)
            except Unanswerable as error:
                found[row] = {"error": str(error)}
        if fitting:
            with torch.inference_mode():
                found.update(zip(fitting, self.answer(asker, record, [queries[row] for row in fitting]), strict=True))
        return [found[row] for row in range(len(queries))]

    # -- what it may have: learning and scoring -------------------------------------------------------------------

    def options(self, task: TaskRecipe, pooling: str | None) -> dict[str, Any]:
        """Options of this kind for `EideticModel.add_task`.

        Args:
            task: the task.
            pooling: as the recipe says; `None` leaves it to the model.
        """
        return {}

    def collator(self, task: TaskRecipe, tokenizer: PreTrainedTokenizerBase) -> Callable | None:
        """What makes a batch of rows to learn from, where the recipe decides on it."""
        return None

    def score(
        self, task: TaskRecipe, prepared: Preparation, rows: datasets.Dataset, split: str, asker: Asker, module: Any
    ) -> Score:
        """`compute_metrics` of a split.

        Args:
            task: the task, committed or being learned.
            prepared: what encoded the split.
            rows: the split as it was read.
            split: its name.
            asker: the model and its tokenizer.
            module: the module of `evaluate` that computes the task's metric, if it is not built in.
        """
        return TaskScore(self, asker.model.record(task.name), task.metric, module)

    def module_options(self, task: TaskRecipe) -> dict[str, Any]:
        """Arguments of `evaluate.load` for a metric of a task."""
        return {}

    def module_answers(self, record: TaskRecord, logits: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
        """Predictions and references for a module of `evaluate`, from what an evaluation collected."""
        raise NotImplementedError

    def names_labels(self, record: TaskRecord) -> bool:
        """Whether a task's answer to a text is one or several labels, so that a routed one can be right or wrong."""
        return False

    def label_names(self, record: TaskRecord, values: torch.Tensor) -> list[set[str]]:
        """Names of the labels in logits `(texts, labels)`, or in the `labels` of a batch."""
        raise NotImplementedError

    # -- what it may have: reading a recipe -----------------------------------------------------------------------

    def check(self, task: TaskRecipe, where: str) -> None:
        """Raise a `RecipeError` if what a recipe says of a task does not go together; `where` is for its message."""

    def check_training(self, task: TaskRecipe, arguments: TrainingArguments) -> None:
        """Raise a `RecipeError` if a task can not be learned in this way."""

    def metrics_of(self, settings: Any) -> tuple[str, ...]:
        """The built-in metrics of a task with these settings, but for the loss; the first one is the default."""
        return self.metrics

    def default_metric(self, settings: Any, columns: Mapping[str, Any]) -> str:
        """The metric of a task whose recipe names none."""
        return self.metrics_of(settings)[0]

    def measured_by(self, settings: Any) -> str:
        """What in a recipe decides on the metrics, for errors."""
        return f"`type: {self.name}`"

    def columns_of(self, given: Mapping[str, Any], section: str) -> dict[str, Any]:
        """The column of each part of a row: those that are named, and the usual ones."""
        return {**{role: column for role, column in self.columns.items() if column is not None}, **given}


@dataclass(frozen=True)
class TaskScore:
    """`compute_metrics` of one task: the built-in metrics, and the one of its recipe.

    Attributes:
        kind: of the task.
        record: the task.
        metric: that the recipe names.
        module: of `evaluate`, that computes it, if it is not built in.
    """

    kind: RecipeKind
    record: TaskRecord
    metric: str
    module: Any = None

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics of what an evaluation collected."""
        scores = task_metrics(self.record, prediction)
        if self.module is not None:
            logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
            answers, right = self.kind.module_answers(self.record, logits, labels)
            found = self.module.compute(predictions=answers, references=right) or {}
            numbers = [float(value) for value in found.values() if np.ndim(value) == 0]
            scores[self.metric] = float(found.get(self.metric, numbers[0] if numbers else np.nan))
        # The same answer to everything has no correlation with anything: it is worth nothing, but it is a number.
        return {name: 0.0 if math.isnan(score) else score for name, score in scores.items()}


def check_columns(kind: RecipeKind, given: Mapping[str, Any], section: str) -> None:
    """Raise a `RecipeError` if a recipe names something as a column that is no name of one."""
    for role, column in given.items():
        is_list = isinstance(column, list) and len(column) > 1 and all(isinstance(name, str) for name in column)
        if not isinstance(column, str) and not (role in kind.listed and is_list):
            expected = "a name, or a list of two or more names" if role in kind.listed else "a name"
            raise RecipeError(f"`{role}: {column!r}` in {section}: expected {expected}.")
