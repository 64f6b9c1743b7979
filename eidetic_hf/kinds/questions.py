"""Extractive question answering: the place of the answer in a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from ..configuration import EideticConfig, TaskRecord
from ..network.backbone import hidden_size, initializer_range
from ..network.plain import PlainModel
from ..network.vocabulary import TokenTable
from .base import IGNORED, Answer, Kind, divergence
from .checks import expect_probability, expect_shape, expect_some, expect_whole_numbers, list_lengths
from .heads import TokenClassificationHead
from .metrics import span_scores
from .plain_heads import write_classifier

if TYPE_CHECKING:
    from datasets import Dataset

SPAN_ROWS = 64  # whose answers are looked for at a time: every start with every end is a number


class QuestionAnswering(Kind):
    """The place of the answer in a text: its first and its last token."""

    @dataclass(frozen=True)
    class Options:
        """Settings of a task.

        Attributes:
            head_dropout: dropout probability before the classifier, while the task is being learned.
        """

        head_dropout: float = 0.1

        def __post_init__(self) -> None:
            expect_probability("head_dropout", self.head_dropout)

    name = "question-answering"
    targets = ("start_positions", "end_positions")
    outputs = ("start_logits", "end_logits")
    output_class = QuestionAnsweringModelOutput
    auto_class = "AutoModelForQuestionAnswering"
    hub_task = "question-answering"

    def make_head(self, config: PreTrainedConfig, task: TaskRecord) -> nn.Module:
        """A linear layer on every token, to one logit for each end."""
        return TokenClassificationHead(hidden_size(config), 2, task.head_dropout, initializer_range(config))

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: TokenTable) -> Answer:
        """`start_logits` and `end_logits`, each `(batch, sequence)`."""
        start, end = head(hidden).unbind(-1)
        return {"start_logits": start.contiguous(), "end_logits": end.contiguous()}

    def plain_settings(self, task: TaskRecord, config: EideticConfig, plain: PreTrainedConfig) -> dict[str, Any]:
        """One logit for each end; many classes of transformers ask the configuration how many there are."""
        return {"num_labels": 2}

    def write_plain_head(self, task: TaskRecord, head: nn.Module, plain: PlainModel, vocabulary: TokenTable) -> None:
        """The linear layer."""
        write_classifier(plain, cast(TokenClassificationHead, head).classifier)

    def loss(self, task: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Mean of the cross-entropies of both ends. Rows at -100 do not count."""
        batch, length = answer["start_logits"].shape
        for name in self.targets:
            expect_shape(task, name, targets[name], (batch,), "a token of each sequence")
            expect_whole_numbers(task, name, targets[name])
        start, end = (targets[name].long() for name in self.targets)
        if start.device.type == "cpu":
            self._check_places(task, start, end, length)
        expect_some(task, torch.stack([start, end]), "Where a text has no answer, give the place of its first token.")
        losses = [
            F.cross_entropy(answer[name].float(), place)
            for name, place in zip(self.outputs, (start, end), strict=True)
        ]
        return (losses[0] + losses[1]) / 2

    def _check_places(self, task: TaskRecord, start: Tensor, end: Tensor, length: int) -> None:
        for name, place in zip(self.targets, (start, end), strict=True):
            wrong = place[((place < 0) & (place != IGNORED)) | (place >= length)]
            if wrong.numel():
                raise ValueError(
                    f"Task '{task.name}' ({self.name}) got {name} {int(wrong[0])} in sequences of {length} tokens. "
                    "Where the answer was cut off, give the place of the first token, or -100 to leave the row out."
                )
        wrong = (end < start).nonzero().flatten()
        if wrong.numel():
            row = int(wrong[0])
            raise ValueError(
                f"Task '{task.name}' ({self.name}): the answer of row {row} of a batch begins at token "
                f"{int(start[row])} and ends before, at {int(end[row])}."
            )

    def distance(
        self, task: TaskRecord, answer: Answer, wanted: Answer, targets: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """Of the distributions over places, a mean of both ends."""
        parts = [divergence(answer[name], wanted[name], temperature) for name in self.outputs]
        return (parts[0] + parts[1]) / 2

    def probe_answer(self, answer: Answer) -> Tensor:
        """Both logits side by side, `(batch, sequence, 2)`."""
        return torch.stack([answer[name] for name in self.outputs], -1)

    def check_dataset(self, task: TaskRecord, name: str, data: Dataset) -> None:
        """Both ends, in order and inside of the sequence."""
        missing = [column for column in self.targets if column not in data.column_names]
        if missing:
            raise ValueError(
                f"Task '{task.name}' ({self.name}): the {name} has no column {missing}; it has {data.column_names}. "
                "Give the first and the last token of each answer."
            )
        start, end = (np.asarray(data[column][:]) for column in self.targets)
        if start.dtype.kind != "i" or end.dtype.kind != "i":
            raise ValueError(
                f"Task '{task.name}' ({self.name}): {self.targets} of the {name} hold {data[0][self.targets[0]]!r} "
                f"and {data[0][self.targets[1]]!r}; expected whole numbers."
            )
        lengths = np.full(len(start), np.iinfo(np.int64).max)
        if "input_ids" in data.column_names:
            lengths = list_lengths(data, "input_ids")
        counted = (start != IGNORED) | (end != IGNORED)
        bad = np.flatnonzero(counted & ((start < 0) | (end < start) | (end >= lengths)))
        if len(bad):
            row = int(bad[0])
            raise ValueError(
                f"Task '{task.name}' ({self.name}): the answer of row {row} of the {name} is from token "
                f"{start[row]} to {end[row]}, in a sequence of {lengths[row]} tokens. Where the answer was cut off, "
                "give the place of the first token, or -100 to leave the row out."
            )

    def metrics(self, task: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        """Answers at exactly the right place, and F1 over their tokens (of texts, see `metrics.squad_scores`)."""
        start, end = predictions
        return span_scores(best_spans(start, end), np.stack([np.asarray(place) for place in labels], -1))


def best_spans(start_logits: Any, end_logits: Any, longest: int | None = None) -> np.ndarray:
    """The likeliest answers: first and last token with the largest sum of logits, in this order, `(rows, 2)`.

    Args:
        start_logits: `(rows, tokens)`.
        end_logits: `(rows, tokens)`.
        longest: number of tokens that an answer may have.
    """
    start, end = (torch.as_tensor(np.asarray(logits)).float() for logits in (start_logits, end_logits))
    length = start.shape[1]
    allowed = torch.ones(length, length).triu()
    if longest is not None:
        allowed = allowed.tril(longest - 1)
    found = []
    for rows in range(0, len(start), SPAN_ROWS):
        both = start[rows : rows + SPAN_ROWS].unsqueeze(2) + end[rows : rows + SPAN_ROWS].unsqueeze(1)
        best = both.masked_fill(allowed == 0, -torch.inf).flatten(1).argmax(1)
        found.append(torch.stack([best // length, best % length], 1))
    return torch.cat(found).numpy() if found else np.zeros((0, 2), dtype=np.int64)
