"""Sequence classification: a label, several or numbers for a whole sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from ..configuration import EideticConfig, TaskError, TaskRecord
from ..network.backbone import hidden_size, initializer_range
from ..network.plain import PlainModel
from ..network.vocabulary import TokenTable
from .base import Answer, Kind, divergence
from .checks import (
    expect_bool,
    expect_finite,
    expect_label_numbers,
    expect_one_of,
    expect_probability,
    expect_range,
    expect_whole_numbers,
    label_column,
)
from .heads import POOLINGS, SequenceClassificationHead, choose_pooling
from .metrics import label_scores, multi_label_scores, regression_scores
from .plain_heads import pooling_settings, write_classifier

if TYPE_CHECKING:
    from datasets import Dataset

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


class SequenceClassification(Kind):
    """One label, several or numbers for a whole sequence (or pair of sequences)."""

    @dataclass(frozen=True)
    class Options:
        """Settings of a task.

        Attributes:
            problem_type: one of `PROBLEM_TYPES`, with the meaning it has in transformers.
            pooling: how the head reads a sequence, one of `POOLINGS`; `None` for what suits the backbone.
            head_dropout: dropout probability before the classifier, while the task is being learned.
            head_bias: whether the classifier has a bias; most decoders of transformers have none.
        """

        problem_type: str = PROBLEM_TYPES[0]
        pooling: str | None = None
        head_dropout: float = 0.1
        head_bias: bool = True

        def __post_init__(self) -> None:
            expect_one_of("problem_type", self.problem_type, PROBLEM_TYPES)
            expect_one_of("pooling", self.pooling, (None, *POOLINGS))
            expect_probability("head_dropout", self.head_dropout)
            expect_bool("head_bias", self.head_bias)

    name = "sequence-classification"
    output_class = SequenceClassifierOutput
    has_labels = True
    auto_class = "AutoModelForSequenceClassification"
    pipeline = "text-classification"

    def check_labels(self, task: TaskRecord) -> None:
        """Of classification at least two; of regression one, if nobody names the targets."""
        if task.problem_type == "regression" and not task.labels:
            task.labels = ["score"]
        super().check_labels(task)
        if task.problem_type == "single_label_classification" and len(task.labels) < 2:
            raise TaskError(
                f"Task '{task.name}': one label ({task.labels[0]!r}) leaves nothing to classify; give two."
            )

    def complete(self, task: TaskRecord, config: EideticConfig, vocabulary: TokenTable) -> None:
        """How the head reads a sequence."""
        choose_pooling(task, config)

    def make_head(self, config: PreTrainedConfig, task: TaskRecord) -> nn.Module:
        """Pooling and a linear layer."""
        width, std = hidden_size(config), initializer_range(config)
        return SequenceClassificationHead(
            width, len(task.labels), task.pooling, task.head_dropout, std, bias=task.head_bias
        )

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: TokenTable) -> Answer:
        """`logits`, `(batch, labels)`."""
        return {"logits": head(hidden, inputs.get("attention_mask"))}

    def plain_settings(self, task: TaskRecord, config: EideticConfig, plain: PreTrainedConfig) -> dict[str, Any]:
        """With the type of problem, and how a sequence is read, where this can be set."""
        settings = {**super().plain_settings(task, config, plain), "problem_type": task.problem_type}
        return {**settings, **pooling_settings(plain, task.pooling)}

    def write_plain_head(self, task: TaskRecord, head: nn.Module, plain: PlainModel, vocabulary: TokenTable) -> None:
        """The linear layer."""
        write_classifier(plain, cast(SequenceClassificationHead, head).classifier, task.pooling)

    def loss(self, task: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy, binary cross-entropy per label, or squared error."""
        logits, labels = answer["logits"], targets["labels"]
        n_labels = len(task.labels)
        allowed: dict[str, list[tuple[int, ...]]] = {
            "single_label_classification": [(len(logits),)],
            "multi_label_classification": [tuple(logits.shape)],
            "regression": [tuple(logits.shape), *([(len(logits),)] if n_labels == 1 else [])],
        }
        shapes = allowed[task.problem_type]
        if tuple(labels.shape) not in shapes:
            raise ValueError(
                f"Task '{task.name}' ({task.problem_type}, {n_labels} labels) got labels of shape "
                f"{tuple(labels.shape)}; expected {' or '.join(map(str, shapes))}."
            )
        if task.problem_type == "single_label_classification":
            expect_whole_numbers(task, "labels", labels)
            expect_range(task, labels, n_labels, f"labels (0 to {n_labels - 1}: {task.labels[:5]}...)")
            return F.cross_entropy(logits.float(), labels.long())
        if task.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return F.mse_loss(logits.float().reshape(labels.shape), labels.float())

    def distance(
        self, task: TaskRecord, answer: Answer, wanted: Answer, targets: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """Of distributions, of each label's probability, or of numbers."""
        logits, target = answer["logits"], wanted["logits"]
        if task.problem_type == "regression":
            return F.mse_loss(logits, target)
        if task.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, target.sigmoid())
        return divergence(logits, target, temperature)

    def n_prototypes(self, task: TaskRecord) -> int:
        """One for each label, if a sequence has one."""
        return len(task.labels) if task.problem_type == "single_label_classification" else 1

    def prototype_labels(self, task: TaskRecord, batch: Mapping[str, Tensor], n_texts: int) -> Tensor:
        """The labels."""
        if task.problem_type != "single_label_classification":
            return super().prototype_labels(task, batch, n_texts)
        if batch.get("labels") is None:
            raise ValueError(f"Task '{task.name}': a batch has no 'labels', only {sorted(batch)}.")
        return batch["labels"].cpu().long()

    def can_smooth(self, task: TaskRecord) -> bool:
        """With one label per sequence."""
        return task.problem_type == "single_label_classification"

    def check_dataset(self, task: TaskRecord, name: str, data: Dataset) -> None:
        """Labels of the right type, and within the task's list."""
        column = label_column(task, name, data)
        first = data[0][column]
        is_single = task.problem_type == "single_label_classification"
        if (isinstance(first, list) and is_single) or (isinstance(first, str) and not is_single):
            kind = "lists" if isinstance(first, list) else "strings"
            raise ValueError(
                f"Task '{task.name}' ({task.problem_type}): the column '{column}' of the {name} holds {kind}, "
                f"such as {first!r}; expected numbers as labels."
            )
        if is_single:
            expect_label_numbers(task, name, data, column)
        else:
            expect_finite(task, name, data, column)

    def metrics(self, task: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        """Accuracy and F1; per-label F1 if multi-label; correlations if regression."""
        if task.problem_type == "regression":
            return regression_scores(predictions, labels)
        if task.problem_type == "multi_label_classification":
            return multi_label_scores(predictions, labels)
        return label_scores(predictions, labels)
