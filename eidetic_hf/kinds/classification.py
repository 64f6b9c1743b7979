"""Kinds of task that choose: among labels of a sequence or of its tokens, among places in it, among sequences."""

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
    DataCollatorForTokenClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from ..configuration import TaskRecord
from .base import (
    IGNORED,
    Answer,
    Kind,
    arrow_column,
    divergence,
    expect_range,
    expect_shape,
    expect_some,
    expect_whole_numbers,
    label_column,
)
from .heads import SequenceClassificationHead, TokenClassificationHead
from .metrics import label_scores, multi_label_scores, regression_scores, span_scores, token_scores
from .pretrained_head import hidden_size

SPAN_ROWS = 64  # whose answers are looked for at a time: every start with every end is a number


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


class QuestionAnswering(Kind):
    """The place of the answer in a text: its first and its last token."""

    name = "question-answering"
    targets = ("start_positions", "end_positions")
    answers = ("start_logits", "end_logits")
    output_class = QuestionAnsweringModelOutput
    auto_class = "AutoModelForQuestionAnswering"

    def make_head(self, config: PreTrainedConfig, record: TaskRecord) -> nn.Module:
        """A linear layer on every token, to one logit for each end."""
        std = getattr(config, "initializer_range", 0.02)
        return TokenClassificationHead(hidden_size(config), 2, record.head_dropout, std)

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: Tensor) -> Answer:
        """`start_logits` and `end_logits`, each `(batch, sequence)`."""
        start, end = head(hidden).unbind(-1)
        return {"start_logits": start.contiguous(), "end_logits": end.contiguous()}

    def loss(self, record: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Mean of the cross-entropies of both ends. Rows at -100 do not count."""
        batch, length = answer["start_logits"].shape
        for name in self.targets:
            expect_shape(record, name, targets[name], (batch,), "a token of each sequence")
            expect_whole_numbers(record, name, targets[name])
        start, end = (targets[name].long() for name in self.targets)
        if start.device.type == "cpu":
            self._check_places(record, start, end, length)
        expect_some(
            record, torch.stack([start, end]), "Where a text has no answer, give the place of its first token."
        )
        losses = [
            F.cross_entropy(answer[name].float(), place)
            for name, place in zip(self.answers, (start, end), strict=True)
        ]
        return (losses[0] + losses[1]) / 2

    def _check_places(self, record: TaskRecord, start: Tensor, end: Tensor, length: int) -> None:
        for name, place in zip(self.targets, (start, end), strict=True):
            wrong = place[((place < 0) & (place != IGNORED)) | (place >= length)]
            if wrong.numel():
                raise ValueError(
                    f"Task '{record.name}' ({self.name}) got {name} {int(wrong[0])} in sequences of {length} tokens. "
                    "Where the answer was cut off, give the place of the first token, or -100 to leave the row out."
                )
        wrong = (end < start).nonzero().flatten()
        if wrong.numel():
            row = int(wrong[0])
            raise ValueError(
                f"Task '{record.name}' ({self.name}): the answer of row {row} of a batch begins at token "
                f"{int(start[row])} and ends before, at {int(end[row])}."
            )

    def distance(
        self, record: TaskRecord, answer: Answer, wanted: Answer, targets: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """Of the distributions over places, a mean of both ends."""
        parts = [divergence(answer[name], wanted[name], temperature) for name in self.answers]
        return (parts[0] + parts[1]) / 2

    def probe_answer(self, answer: Answer) -> Tensor:
        """Both logits side by side, `(batch, sequence, 2)`."""
        return torch.stack([answer[name] for name in self.answers], -1)

    def check_dataset(self, record: TaskRecord, name: str, data: Dataset) -> None:
        """Both ends, in order and inside of the sequence."""
        missing = [column for column in self.targets if column not in data.column_names]
        if missing:
            raise ValueError(
                f"Task '{record.name}' ({self.name}): the {name} has no column {missing}; it has {data.column_names}. "
                "Give the first and the last token of each answer."
            )
        start, end = (np.asarray(data[column][:]) for column in self.targets)
        if start.dtype.kind != "i" or end.dtype.kind != "i":
            raise ValueError(
                f"Task '{record.name}' ({self.name}): {self.targets} of the {name} hold {data[0][self.targets[0]]!r} "
                f"and {data[0][self.targets[1]]!r}; expected whole numbers."
            )
        lengths = np.full(len(start), np.iinfo(np.int64).max)
        if "input_ids" in data.column_names:
            lengths = pc.list_value_length(arrow_column(data, "input_ids")).to_numpy()
        counted = (start != IGNORED) | (end != IGNORED)
        bad = np.flatnonzero(counted & ((start < 0) | (end < start) | (end >= lengths)))
        if len(bad):
            row = int(bad[0])
            raise ValueError(
                f"Task '{record.name}' ({self.name}): the answer of row {row} of the {name} is from token "
                f"{start[row]} to {end[row]}, in a sequence of {lengths[row]} tokens. Where the answer was cut off, "
                "give the place of the first token, or -100 to leave the row out."
            )

    def metrics(self, record: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
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
