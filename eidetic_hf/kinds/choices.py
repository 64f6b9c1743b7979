"""Multiple choice: the right one of several sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    DataCollatorForMultipleChoice,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import (
    MultipleChoiceModelOutput,
)

from ..configuration import TaskRecord
from ..network.backbone import hidden_size
from .base import IGNORED, Answer, Kind
from .checks import arrow_column, expect_range, expect_shape, expect_some, expect_whole_numbers, label_column
from .heads import SequenceClassificationHead


class MultipleChoice(Kind):
    """The right one of several sequences, such as endings of a text. All inputs are `(batch, choices, sequence)`."""

    name = "multiple-choice"
    output_class = MultipleChoiceModelOutput
    auto_class = "AutoModelForMultipleChoice"

    def make_head(self, config: PreTrainedConfig, record: TaskRecord) -> nn.Module:
        """Pooling and a linear layer to one score."""
        std = getattr(config, "initializer_range", 0.02)
        return SequenceClassificationHead(hidden_size(config), 1, record.pooling, record.head_dropout, std)

    def lay_out(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """All choices as sequences of one batch, those of an example one after another."""
        self._check_dimensions(inputs, 3, "(batch, choices, sequence")
        return {name: value.flatten(0, 1) for name, value in inputs.items()}

    def rows(self, rows: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The choices of these examples."""
        choices = self._choices(inputs)
        return (rows.unsqueeze(1) * choices + torch.arange(choices, device=rows.device)).flatten()

    @staticmethod
    def _choices(inputs: Mapping[str, Any]) -> int:
        given = inputs.get("input_ids")
        return (inputs["inputs_embeds"] if given is None else given).shape[1]

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: Tensor) -> Answer:
        """`logits`, `(batch, choices)`."""
        mask = inputs.get("attention_mask")
        scores = head(hidden, None if mask is None else mask.flatten(0, 1))
        return {"logits": scores.reshape(-1, self._choices(inputs))}

    def loss(self, record: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy over the choices."""
        logits, labels = answer["logits"], targets["labels"]
        expect_shape(record, "labels", labels, (len(logits),), "the number of each example's right choice")
        expect_whole_numbers(record, "labels", labels)
        expect_range(record, labels, logits.shape[1], "choices")
        expect_some(record, labels, "Give the number of each example's right choice.")
        return F.cross_entropy(logits.float(), labels.long())

    def probe_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two examples of two choices, `(2, 2, 16)`."""
        return {name: value.unflatten(0, (2, 2)) for name, value in inputs.items()}

    def collator(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable | None:
        """Pads the choices of all examples to one length."""
        return None if tokenizer is None else DataCollatorForMultipleChoice(tokenizer)

    def can_smooth(self, record: TaskRecord) -> bool:
        """With one label per example."""
        return True

    def check_dataset(self, record: TaskRecord, name: str, data: Dataset) -> None:
        """A sequence for each choice, and the number of the right one."""
        column = label_column(record, name, data)
        first = data[0].get("input_ids")
        if first is not None and not (isinstance(first, list) and first and isinstance(first[0], list)):
            raise ValueError(
                f"Task '{record.name}' ({self.name}): input_ids of the {name} are lists of numbers; expected lists "
                "of sequences, one for each choice. Tokenize the text with each choice as its pair."
            )
        labels = data[column][:]
        choices = np.full(len(labels), np.iinfo(np.int64).max)
        if first is not None:
            choices = pc.list_value_length(arrow_column(data, "input_ids")).to_numpy()
        for row, label in enumerate(labels):
            if not isinstance(label, int) or not (0 <= label < choices[row] or label == IGNORED):
                raise ValueError(
                    f"Task '{record.name}' ({self.name}): row {row} of the {name} has the label {label!r} for "
                    f"{choices[row]} choices; expected the number of the right one."
                )

    def metrics(self, record: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        """Accuracy."""
        labels = np.asarray(labels)
        counted = labels != IGNORED
        return {"accuracy": float((np.asarray(predictions).argmax(-1)[counted] == labels[counted]).mean())}
