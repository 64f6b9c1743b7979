"""Token classification: a label for each token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    DataCollatorForTokenClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import (
    TokenClassifierOutput,
)

from ..configuration import TaskRecord
from ..network.backbone import hidden_size
from .base import IGNORED, Answer, divergence
from .checks import arrow_column, expect_range, expect_shape, expect_some, expect_whole_numbers, label_column
from .heads import TokenClassificationHead
from .metrics import token_scores
from .sequence_labels import Labelled


class TokenClassification(Labelled):
    """One label for each token; those of words are on their first sub-tokens, all others are -100."""

    name = "token-classification"
    output_class = TokenClassifierOutput
    auto_class = "AutoModelForTokenClassification"
    pipeline = "token-classification"

    def make_head(self, config: PreTrainedConfig, record: TaskRecord) -> nn.Module:
        """A linear layer on every token."""
        std = getattr(config, "initializer_range", 0.02)
        return TokenClassificationHead(hidden_size(config), len(record.labels), record.head_dropout, std)

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: Tensor) -> Answer:
        """`logits`, `(batch, sequence, labels)`."""
        return {"logits": head(hidden)}

    def loss(self, record: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy over the tokens that have a label."""
        logits, labels = answer["logits"], targets["labels"]
        expect_shape(record, "labels", labels, tuple(logits.shape[:2]), "a label for each token of `input_ids`")
        expect_whole_numbers(record, "labels", labels)
        n_labels = len(record.labels)
        expect_range(record, labels, n_labels, f"labels (0 to {n_labels - 1}: {record.labels[:5]}...)")
        expect_some(record, labels, "Give the first sub-token of each word the word's label.")
        return F.cross_entropy(logits.float().flatten(0, 1), labels.long().flatten())

    def distance(
        self, record: TaskRecord, answer: Answer, wanted: Answer, targets: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """Of the distributions of tokens that have a label."""
        return divergence(answer["logits"], wanted["logits"], temperature, targets["labels"] != IGNORED)

    def collator(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable | None:
        """Pads labels with the tokens."""
        return None if tokenizer is None else DataCollatorForTokenClassification(tokenizer)

    def can_smooth(self, record: TaskRecord) -> bool:
        """With one label per token."""
        return True

    def check_dataset(self, record: TaskRecord, name: str, data: Dataset) -> None:
        """A label for each token, within the task's list."""
        column = label_column(record, name, data)
        labels = arrow_column(data, column)
        first, n_labels = data[0][column], len(record.labels)
        if not isinstance(first, list) or not all(isinstance(value, int) for value in first):
            raise ValueError(
                f"Task '{record.name}' ({self.name}): the column '{column}' of the {name} holds {first!r}; expected a "
                f"list of numbers, one for each token, as TaskRecord.labels lists them: {record.labels[:5]}..."
            )
        if "input_ids" in data.column_names:
            ours, theirs = pc.list_value_length(labels), pc.list_value_length(arrow_column(data, "input_ids"))
            unequal = np.flatnonzero(ours.to_numpy() != theirs.to_numpy())
            if len(unequal):
                row = int(unequal[0])
                raise ValueError(
                    f"Task '{record.name}': row {row} of the {name} has {ours[row]} labels for {theirs[row]} tokens. "
                    "Tags of words have to be aligned with the tokenizer's sub-tokens: the first one of each word "
                    "gets the word's label, all others -100."
                )
        values = pc.unique(pc.list_flatten(labels)).to_pylist()
        wrong = sorted(value for value in values if not (0 <= value < n_labels or value == IGNORED))
        if wrong or values == [IGNORED]:
            what = f"has the label {wrong[0]}" if wrong else f"has no label but {IGNORED}"
            raise ValueError(
                f"Task '{record.name}': the {name} {what}; expected 0 to {n_labels - 1} ({record.labels[:5]}...), and "
                f"{IGNORED} for tokens that do not count."
            )

    def metrics(self, record: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        """Precision, recall and F1 of entities, and accuracy over tokens."""
        return token_scores(np.asarray(predictions).argmax(-1), labels, record.labels)
