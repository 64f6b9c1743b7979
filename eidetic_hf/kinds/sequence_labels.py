"""Sequence classification: a label, several or numbers for a whole sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    PreTrainedConfig,
)
from transformers.modeling_outputs import (
    SequenceClassifierOutput,
)

from ..configuration import TaskRecord
from ..network.backbone import hidden_size
from .base import Answer, Kind, divergence
from .checks import expect_range, expect_whole_numbers, label_column
from .heads import SequenceClassificationHead
from .metrics import label_scores, multi_label_scores, regression_scores


class Labelled(Kind):
    """Kinds whose logits are over a list of labels of the task's own."""

    def width(self, records: list[TaskRecord]) -> int | None:
        """As many as all tasks have labels."""
        return sum(len(record.labels) for record in records)

    def span(self, record: TaskRecord, spans: Mapping[str, slice]) -> slice:
        """The task's labels."""
        return spans[record.name]


class SequenceClassification(Labelled):
    """One label, several or numbers for a whole sequence (or pair of sequences)."""

    name = "sequence-classification"
    output_class = SequenceClassifierOutput
    auto_class = "AutoModelForSequenceClassification"
    pipeline = "text-classification"

    def make_head(self, config: PreTrainedConfig, record: TaskRecord) -> nn.Module:
        """Pooling and a linear layer."""
        std = getattr(config, "initializer_range", 0.02)
        return SequenceClassificationHead(
            hidden_size(config), len(record.labels), record.pooling, record.head_dropout, std
        )

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: Tensor) -> Answer:
        """`logits`, `(batch, labels)`."""
        return {"logits": head(hidden, inputs.get("attention_mask"))}

    def loss(self, record: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy, binary cross-entropy per label, or squared error."""
        logits, labels = answer["logits"], targets["labels"]
        n_labels = len(record.labels)
        allowed: dict[str, list[tuple[int, ...]]] = {
            "single_label_classification": [(len(logits),)],
            "multi_label_classification": [tuple(logits.shape)],
            "regression": [tuple(logits.shape), *([(len(logits),)] if n_labels == 1 else [])],
        }
        shapes = allowed[record.problem_type]
        if tuple(labels.shape) not in shapes:
            raise ValueError(
                f"Task '{record.name}' ({record.problem_type}, {n_labels} labels) got labels of shape "
                f"{tuple(labels.shape)}; expected {' or '.join(map(str, shapes))}."
            )
        if record.problem_type == "single_label_classification":
            expect_whole_numbers(record, "labels", labels)
            expect_range(record, labels, n_labels, f"labels (0 to {n_labels - 1}: {record.labels[:5]}...)")
            return F.cross_entropy(logits.float(), labels.long())
        if record.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return F.mse_loss(logits.float().reshape(labels.shape), labels.float())

    def distance(
        self, record: TaskRecord, answer: Answer, wanted: Answer, targets: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """Of distributions, of each label's probability, or of numbers."""
        logits, target = answer["logits"], wanted["logits"]
        if record.problem_type == "regression":
            return F.mse_loss(logits, target)
        if record.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, target.sigmoid())
        return divergence(logits, target, temperature)

    def n_prototypes(self, record: TaskRecord) -> int:
        """One for each label, if a sequence has one."""
        return len(record.labels) if record.problem_type == "single_label_classification" else 1

    def prototype_labels(self, record: TaskRecord, batch: Mapping[str, Tensor], n_texts: int) -> Tensor:
        """The labels."""
        if record.problem_type != "single_label_classification":
            return super().prototype_labels(record, batch, n_texts)
        if batch.get("labels") is None:
            raise ValueError(f"Task '{record.name}': a batch has no 'labels', only {sorted(batch)}.")
        return batch["labels"].cpu().long()

    def can_smooth(self, record: TaskRecord) -> bool:
        """With one label per sequence."""
        return record.problem_type == "single_label_classification"

    def check_dataset(self, record: TaskRecord, name: str, data: Dataset) -> None:
        """Labels of the right type, and within the task's list."""
        column = label_column(record, name, data)
        first = data[0][column]
        is_single = record.problem_type == "single_label_classification"
        if (isinstance(first, list) and is_single) or (isinstance(first, str) and not is_single):
            kind = "lists" if isinstance(first, list) else "strings"
            raise ValueError(
                f"Task '{record.name}' ({record.problem_type}): the column '{column}' of the {name} holds {kind}, "
                f"such as {first!r}; expected numbers as labels."
            )
        if not is_single:
            return
        n_labels = len(record.labels)
        values = set(data.unique(column))
        wrong = sorted((v for v in values if not isinstance(v, int) or not (0 <= v < n_labels or v == -100)), key=str)
        if wrong:
            hint = " Map the names to their numbers first, as TaskRecord.labels lists them."
            raise ValueError(
                f"Task '{record.name}': the {name} has the label {wrong[0]!r}, outside of 0 to {n_labels - 1} "
                f"({record.labels}).{hint if isinstance(wrong[0], str) else ''}"
            )

    def metrics(self, record: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        """Accuracy and F1; per-label F1 if multi-label; correlations if regression."""
        if record.problem_type == "regression":
            return regression_scores(predictions, labels)
        if record.problem_type == "multi_label_classification":
            return multi_label_scores(predictions, labels)
        return label_scores(predictions, labels)
