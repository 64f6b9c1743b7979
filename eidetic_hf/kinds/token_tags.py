"""Token classification: a label for each token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DataCollatorForTokenClassification, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import TokenClassifierOutput

from ..configuration import TaskRecord
from ..network.backbone import hidden_size, initializer_range
from ..network.plain import PlainModel
from ..network.vocabulary import TokenTable
from .base import IGNORED, Answer, Kind, divergence
from .checks import (
    distinct_values,
    expect_probability,
    expect_range,
    expect_shape,
    expect_some,
    expect_whole_numbers,
    label_column,
    list_lengths,
)
from .heads import TokenClassificationHead
from .metrics import token_scores
from .plain_heads import write_classifier

if TYPE_CHECKING:
    from datasets import Dataset


class TokenClassification(Kind):
    """One label for each token; those of words are on their first sub-tokens, all others are -100."""

    @dataclass(frozen=True)
    class Options:
        """Settings of a task.

        Attributes:
            head_dropout: dropout probability before the classifier, while the task is being learned.
        """

        head_dropout: float = 0.1

        def __post_init__(self) -> None:
            expect_probability("head_dropout", self.head_dropout)

    name = "token-classification"
    output_class = TokenClassifierOutput
    has_labels = True
    auto_class = "AutoModelForTokenClassification"
    pipeline = "token-classification"

    def flat_label(self, task: TaskRecord, label: str) -> str:
        """The prefix stays first, `B-wnut17/person`, and `O` stays `O`: so pipelines find entities in them."""
        if label == "O":
            return label
        if label[:2] in ("B-", "I-"):
            return f"{label[:2]}{task.name}/{label[2:]}"
        return super().flat_label(task, label)

    def make_head(self, config: PreTrainedConfig, task: TaskRecord) -> nn.Module:
        """A linear layer on every token."""
        std = initializer_range(config)
        return TokenClassificationHead(hidden_size(config), len(task.labels), task.head_dropout, std)

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: TokenTable) -> Answer:
        """`logits`, `(batch, sequence, labels)`."""
        return {"logits": head(hidden)}

    def write_plain_head(self, task: TaskRecord, head: nn.Module, plain: PlainModel, vocabulary: TokenTable) -> None:
        """The linear layer."""
        write_classifier(plain, cast(TokenClassificationHead, head).classifier)

    def loss(self, task: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy over the tokens that have a label."""
        logits, labels = answer["logits"], targets["labels"]
        expect_shape(task, "labels", labels, tuple(logits.shape[:2]), "a label for each token of `input_ids`")
        expect_whole_numbers(task, "labels", labels)
        n_labels = len(task.labels)
        expect_range(task, labels, n_labels, f"labels (0 to {n_labels - 1}: {task.labels[:5]}...)")
        expect_some(task, labels, "Give the first sub-token of each word the word's label.")
        return F.cross_entropy(logits.float().flatten(0, 1), labels.long().flatten())

    def distance(
        self, task: TaskRecord, answer: Answer, wanted: Answer, targets: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """Of the distributions of tokens that have a label."""
        return divergence(answer["logits"], wanted["logits"], temperature, targets["labels"] != IGNORED)

    def collator(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable | None:
        """Pads labels with the tokens."""
        return None if tokenizer is None else DataCollatorForTokenClassification(tokenizer)

    def can_smooth(self, task: TaskRecord) -> bool:
        """With one label per token."""
        return True

    def check_dataset(self, task: TaskRecord, name: str, data: Dataset) -> None:
        """A label for each token, within the task's list."""
        column = label_column(task, name, data)
        first, n_labels = data[0][column], len(task.labels)
        if not isinstance(first, list) or not all(isinstance(value, int) for value in first):
            raise ValueError(
                f"Task '{task.name}' ({self.name}): the column '{column}' of the {name} holds {first!r}; expected a "
                f"list of numbers, one for each token, as TaskRecord.labels lists them: {task.labels[:5]}..."
            )
        if "input_ids" in data.column_names:
            ours, theirs = list_lengths(data, column), list_lengths(data, "input_ids")
            unequal = np.flatnonzero(ours != theirs)
            if len(unequal):
                row = int(unequal[0])
                raise ValueError(
                    f"Task '{task.name}': row {row} of the {name} has {ours[row]} labels for {theirs[row]} tokens. "
                    "Tags of words have to be aligned with the tokenizer's sub-tokens: the first one of each word "
                    "gets the word's label, all others -100."
                )
        values = distinct_values(data, column)
        wrong = sorted(value for value in values if not (0 <= value < n_labels or value == IGNORED))
        if wrong or values == [IGNORED]:
            what = f"has the label {wrong[0]}" if wrong else f"has no label but {IGNORED}"
            raise ValueError(
                f"Task '{task.name}': the {name} {what}; expected 0 to {n_labels - 1} ({task.labels[:5]}...), and "
                f"{IGNORED} for tokens that do not count."
            )

    def metrics(self, task: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        """Precision, recall and F1 of entities, and accuracy over tokens."""
        return token_scores(np.asarray(predictions).argmax(-1), labels, task.labels)
