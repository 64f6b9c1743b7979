"""Multiple choice: the right one of several sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DataCollatorForMultipleChoice, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import MultipleChoiceModelOutput

from ..configuration import EideticConfig, TaskRecord
from ..network.backbone import hidden_size, initializer_range
from ..network.plain import PlainModel
from ..network.vocabulary import TokenTable
from .base import IGNORED, Answer, Kind
from .checks import (
    expect_one_of,
    expect_probability,
    expect_range,
    expect_shape,
    expect_some,
    expect_whole_numbers,
    label_column,
    list_lengths,
)
from .heads import POOLINGS, SequenceClassificationHead, choose_pooling
from .plain_heads import pooling_settings, write_classifier

if TYPE_CHECKING:
    from datasets import Dataset


class MultipleChoice(Kind):
    """The right one of several sequences, such as endings of a text. All inputs are `(batch, choices, sequence)`."""

    @dataclass(frozen=True)
    class Options:
        """Settings of a task.

        Attributes:
            pooling: how the head reads a sequence, one of `POOLINGS`; `None` for what suits the backbone.
            head_dropout: dropout probability before the classifier, while the task is being learned.
        """

        pooling: str | None = None
        head_dropout: float = 0.1

        def __post_init__(self) -> None:
            expect_one_of("pooling", self.pooling, (None, *POOLINGS))
            expect_probability("head_dropout", self.head_dropout)

    name = "multiple-choice"
    output_class = MultipleChoiceModelOutput
    auto_class = "AutoModelForMultipleChoice"
    hub_task = "multiple-choice"

    def complete(self, task: TaskRecord, config: EideticConfig, vocabulary: TokenTable) -> None:
        """How the head reads a sequence."""
        choose_pooling(task, config)

    def make_head(self, config: PreTrainedConfig, task: TaskRecord) -> nn.Module:
        """Pooling and a linear layer to one score."""
        std = initializer_range(config)
        return SequenceClassificationHead(hidden_size(config), 1, task.pooling, task.head_dropout, std)

    def lay_out(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """All choices as sequences of one batch, those of an example one after another."""
        self.check_dimensions(inputs, 3, "(batch, choices, sequence")
        return {name: value.flatten(0, 1) for name, value in inputs.items()}

    def rows(self, rows: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The choices of these examples."""
        choices = self._choices(inputs)
        return (rows.unsqueeze(1) * choices + torch.arange(choices, device=rows.device)).flatten()

    @staticmethod
    def _choices(inputs: Mapping[str, Any]) -> int:
        given = inputs.get("input_ids")
        return (inputs["inputs_embeds"] if given is None else given).shape[1]

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: TokenTable) -> Answer:
        """`logits`, `(batch, choices)`."""
        mask = inputs.get("attention_mask")
        scores = head(hidden, None if mask is None else mask.flatten(0, 1))
        return {"logits": scores.reshape(-1, self._choices(inputs))}

    def plain_settings(self, task: TaskRecord, config: EideticConfig, plain: PreTrainedConfig) -> dict[str, Any]:
        """How a sequence is read, where this can be set."""
        return pooling_settings(plain, task.pooling)

    def write_plain_head(self, task: TaskRecord, head: nn.Module, plain: PlainModel, vocabulary: TokenTable) -> None:
        """The linear layer."""
        write_classifier(plain, cast(SequenceClassificationHead, head).classifier, task.pooling)

    def loss(self, task: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy over the choices."""
        logits, labels = answer["logits"], targets["labels"]
        expect_shape(task, "labels", labels, (len(logits),), "the number of each example's right choice")
        expect_whole_numbers(task, "labels", labels)
        expect_range(task, labels, logits.shape[1], "choices")
        expect_some(task, labels, "Give the number of each example's right choice.")
        return F.cross_entropy(logits.float(), labels.long())

    def probe_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two examples of two choices, `(2, 2, 16)`."""
        return {name: value.unflatten(0, (2, 2)) for name, value in inputs.items()}

    def collator(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable | None:
        """Pads the choices of all examples to one length."""
        return None if tokenizer is None else DataCollatorForMultipleChoice(tokenizer)

    def can_smooth(self, task: TaskRecord) -> bool:
        """With one label per example."""
        return True

    def check_dataset(self, task: TaskRecord, name: str, data: Dataset) -> None:
        """A sequence for each choice, and the number of the right one."""
        column = label_column(task, name, data)
        first = data[0].get("input_ids")
        if first is not None and not (isinstance(first, list) and first and isinstance(first[0], list)):
            raise ValueError(
                f"Task '{task.name}' ({self.name}): input_ids of the {name} are lists of numbers; expected lists "
                "of sequences, one for each choice. Tokenize the text with each choice as its pair."
            )
        labels = data[column][:]
        choices = np.full(len(labels), np.iinfo(np.int64).max)
        if first is not None:
            choices = list_lengths(data, "input_ids")
        for row, label in enumerate(labels):
            if not isinstance(label, int) or not (0 <= label < choices[row] or label == IGNORED):
                raise ValueError(
                    f"Task '{task.name}' ({self.name}): row {row} of the {name} has the label {label!r} for "
                    f"{choices[row]} choices; expected the number of the right one."
                )

    def metrics(self, task: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        """Accuracy."""
        labels = np.asarray(labels)
        counted = labels != IGNORED
        return {"accuracy": float((np.asarray(predictions).argmax(-1)[counted] == labels[counted]).mean())}
