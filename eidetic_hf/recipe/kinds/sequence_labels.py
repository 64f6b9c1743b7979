"""Sequence classification in a recipe: texts or pairs with one label, several, or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ...configuration import TaskRecord
from ..recipe import TaskRecipe
from .asking import Asker, Query, alike
from .base import RecipeKind
from .labels import encoded, is_number, label_numbers
from .preparation import Preparation, encode_texts
from .settings import Settings, setting

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
# The metrics go by what the labels are; the first one is the default.
METRICS = {SINGLE: ("accuracy", "f1"), MULTI: ("f1", "accuracy"), REGRESSION: ("pearson", "spearman", "mse")}


@dataclass(frozen=True)
class SequenceClassificationSettings(Settings):
    """Settings of sequence classification.

    Attributes:
        problem_type: `"single_label_classification"`, `"multi_label_classification"` or `"regression"`.
    """

    problem_type: str = setting(SINGLE, str, lambda value: value in METRICS, f"one of {list(METRICS)}")


# -- a label for a text -----------------------------------------------------------------------------------------------


class TextLabels(Preparation):
    """Texts or pairs with one label, several, or numbers."""

    texts = ("text", "text_pair")

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """All labels are among the task's."""
        problem = self.task.settings.problem_type
        if problem == REGRESSION:
            self.labels = self.task.labels or ["score"]
            self.need_two_rows(splits)
            self._check_numbers(splits)
        else:
            self.labels, self.numbers = label_numbers(self.task, splits, problem, many=problem == MULTI)

    def _check_numbers(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """Regression targets are numbers: one, or a list of as many as there are names of targets."""
        for split, data in splits.items():
            for row, value in enumerate(self.column(data, "label")):
                values = value if isinstance(value, list) else [value]
                if len(values) != len(self.labels) or not all(is_number(v) for v in values):
                    self.fail(
                        split,
                        row,
                        f"has the label {value!r}; regression expects {len(self.labels)} finite number(s), for "
                        f"{self.labels}. Name several targets with `labels: [...]`.",
                    )

    def _encode_label(self, value: Any) -> Any:
        if self.task.settings.problem_type == REGRESSION:
            return value
        if self.task.settings.problem_type == MULTI:
            chosen = {self.numbers[name] for name in value}
            return [float(index in chosen) for index in range(len(self.labels))]
        return self.numbers[value]

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Token ids, masks and `labels`."""
        columns = self.task.columns

        def prepare(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            pairs = batch[columns["text_pair"]] if "text_pair" in columns else None
            tokens = encode_texts(tokenizer, batch[columns["text"]], pairs, self.max_length)
            return {**tokens, "labels": [self._encode_label(value) for value in batch[columns["label"]]]}

        return encoded(data, prepare)


# -- the kind ---------------------------------------------------------------------------------------------------------


class SequenceClassificationRecipe(RecipeKind):
    """One label, several or numbers for a text or a pair."""

    name = "sequence-classification"
    columns = {"text": "text", "text_pair": None, "label": "label"}
    metrics = tuple(dict.fromkeys(metric for some in METRICS.values() for metric in some))
    lower_is_better = ("mse",)
    preparation = TextLabels
    settings = SequenceClassificationSettings
    has_labels = True
    has_modules = True
    learned_with = ("problem_type",)

    def metrics_of(self, settings: SequenceClassificationSettings) -> tuple[str, ...]:
        """By what the labels are."""
        return METRICS[settings.problem_type]

    def measured_by(self, settings: SequenceClassificationSettings) -> str:
        """What the labels are."""
        return f"`problem_type: {settings.problem_type}`"

    def options(self, task: TaskRecipe, pooling: str | None) -> dict[str, Any]:
        """What the labels are, and how the sequence is read."""
        return {"problem_type": task.settings.problem_type, **({} if pooling is None else {"pooling": pooling})}

    def module_options(self, task: TaskRecipe) -> dict[str, Any]:
        """Metrics of many labels are a configuration of their own."""
        return {"config_name": "multilabel"} if task.settings.problem_type == MULTI else {}

    def module_answers(self, record: TaskRecord, logits: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
        """Numbers of labels; for each label whether it is there; or the numbers themselves."""
        if record.problem_type == REGRESSION:
            return logits.reshape(-1), labels.reshape(-1)
        if record.problem_type == MULTI:
            return (logits > 0).astype(int), labels.astype(int)
        return logits.argmax(-1), labels

    def names_labels(self, record: TaskRecord) -> bool:
        """Unless the answer is a number."""
        return record.problem_type != REGRESSION

    def label_names(self, record: TaskRecord, values: torch.Tensor) -> list[set[str]]:
        """One, or all above zero."""
        if record.problem_type == MULTI:
            return [{record.labels[index] for index in row.nonzero().flatten().tolist()} for row in values > 0]
        numbers = values if values.dim() == 1 else values.argmax(-1)
        return [{record.labels[index]} for index in numbers.tolist()]

    def answer(self, asker: Asker, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """Label, labels or numbers, see `label_answer`."""
        found: list[dict[str, Any]] = []
        for rows in alike(queries):
            logits = asker.model(**asker.batch_of(record, rows), task=record.exact_name).logits.float().cpu()
            found += [label_answer(record, row) for row in logits]
        return found


def label_answer(record: TaskRecord, logits: torch.Tensor) -> dict[str, Any]:
    """The answer in the logits of one text, `(labels,)`: `label`, `score`, `scores`; `labels`; or `value`."""
    if record.problem_type == REGRESSION:
        values = dict(zip(record.labels, logits.tolist(), strict=True))
        return {"value": logits.item()} if len(values) == 1 else {"values": values}
    if record.problem_type == MULTI:
        scores = dict(zip(record.labels, logits.sigmoid().tolist(), strict=True))
        return {"labels": [label for label, score in scores.items() if score > 0.5], "scores": scores}
    scores = dict(zip(record.labels, logits.softmax(-1).tolist(), strict=True))
    best = max(scores, key=lambda label: scores[label])
    return {"label": best, "score": scores[best], "scores": scores}
