"""The kinds of task: for each, its head, its loss, what it answers, and how it is learned and measured.

A `Kind` holds all that differs from one kind to the next; the model and the trainer ask it. Targets that do not fit
raise a `ValueError` that says what was given, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_outputs import (
    ModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from .configuration import LABELLED, EideticConfig, TaskError, TaskRecord
from .heads import SequenceClassificationHead, TokenClassificationHead
from .language_heads import DECODER, ENCODER, ENCODER_DECODER, family_of, hidden_size

IGNORED = -100  # the label of what has none, as everywhere in transformers
# All that `EideticModel.forward` takes beside the sequences themselves.
TARGETS = ("labels", "start_positions", "end_positions")

Answer = dict[str, Tensor]


class Kind:
    """What differs between kinds of task. A kind has no state; the tasks of that kind are in `TaskRecord`s.

    Attributes:
        name: as `TaskRecord.task_type` has it.
        families: of backbone that can have it.
        targets: the inputs of `forward` that the loss is computed from.
        answers: the outputs of `forward` that are the task's answer; the first one is the main one.
        output_class: what `forward` returns.
        reads_vocabulary: whether the head reads the token embeddings.
        auto_class: the class of transformers that loads a checkpoint to answer this kind of task.
        pipeline: the pipeline of transformers for it, or `None` where there is none.
    """

    name: str
    families: tuple[str, ...] = (ENCODER, DECODER, ENCODER_DECODER)
    targets: tuple[str, ...] = ("labels",)
    answers: tuple[str, ...] = ("logits",)
    output_class: type[ModelOutput]
    reads_vocabulary = False
    auto_class: str
    pipeline: str | None = None

    # -- what a task needs ----------------------------------------------------------------------------------------

    def check_backbone(self, record: TaskRecord, config: EideticConfig) -> None:
        """Raise a `TaskError` if the backbone can not have this kind of task."""
        family = family_of(config.base_config)
        if family not in self.families:
            possible = [kind.name for kind in KINDS.values() if family in kind.families]
            raise TaskError(
                f"Task '{record.name}': {self.name} needs {' or '.join(_with_article(f) for f in self.families)}, and "
                f"'{config.base_config.model_type}' is {_with_article(family)}. Kinds that it can have: {possible}."
            )

    def complete(self, record: TaskRecord, config: EideticConfig, vocab_size: int) -> None:
        """Fill in what the task's head is made of, before it is learned."""

    def make_head(self, config: PreTrainedConfig, record: TaskRecord) -> nn.Module:
        """A head with initial weights, for a backbone of this configuration."""
        raise NotImplementedError

    # -- forward --------------------------------------------------------------------------------------------------

    def complete_inputs(
        self, record: TaskRecord, inputs: dict[str, Any], targets: Mapping[str, Tensor], config: PreTrainedConfig
    ) -> dict[str, Any]:
        """The inputs, with what follows from the targets."""
        return inputs

    def prepare(self, inputs: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
        """What the backbone is given for a batch: sequences in two dimensions, and what its decoder reads."""
        prepared = {name: value for name, value in inputs.items() if value is not None}
        if config.is_encoder_decoder and "decoder_input_ids" not in prepared and "input_ids" in prepared:
            # As in transformers' own classifiers: the decoder reads the text, too, and looks at what was encoded.
            prepared["decoder_input_ids"] = shift_right(prepared["input_ids"], config)
            if "attention_mask" in prepared:
                prepared["decoder_attention_mask"] = prepared["attention_mask"]
        return prepared

    def rows(self, rows: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Numbers of the sequences, as `prepare` lays them out, of some rows of a batch."""
        return rows

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: Tensor) -> Answer:
        """A task's answer by name.

        Args:
            head: what `make_head` returned.
            hidden: last hidden states, `(sequences, tokens, hidden)`.
            inputs: the batch, as `forward` was given it.
            vocabulary: output embeddings, `(tokens, embedding)`.
        """
        raise NotImplementedError

    def check_targets(self, record: TaskRecord, targets: Mapping[str, Tensor]) -> None:
        """Raise a `ValueError` if these are not the targets that the loss is computed from."""
        if targets and set(targets) != set(self.targets):
            raise ValueError(
                f"Task '{record.name}' ({self.name}) got {sorted(targets)}; expected "
                f"{' and '.join(self.targets) or 'none'} to compute its loss from."
            )

    def pair_targets(self, record: TaskRecord, pair: Callable[[], Answer]) -> dict[str, Tensor]:
        """What the loss needs of the answer to the other text of each pair."""
        raise ValueError(
            f"Task '{record.name}' ({self.name}) got pair_input_ids, which are for feature extraction. Put both texts "
            "into input_ids: tokenizer(text, text_pair=...)."
        )

    def output(
        self, loss: Tensor | None, answer: Answer, targets: Mapping[str, Tensor], backbone: ModelOutput
    ) -> ModelOutput:
        """What `forward` returns: loss and answer, and what the backbone was asked to put out beside."""
        names = {field.name for field in fields(cast(Any, self.output_class))} - set(answer) - {"last_hidden_state"}
        beside = {name: backbone[name] for name in names if name in backbone}
        return self.output_class(**{**beside, **answer, "loss": loss})

    def loss(self, record: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Mean loss of a batch.

        Raises:
            ValueError: if the targets do not fit the task or its answer.
        """
        raise NotImplementedError

    def distance(
        self, record: TaskRecord, answer: Answer, wanted: Answer, targets: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """How far an answer is from the one of the unpruned network (Hinton et al., arXiv 1503.02531)."""
        return sum(
            (_divergence(answer[name], wanted[name], temperature) for name in self.answers),
            start=torch.zeros((), device=answer[self.answers[0]].device),
        )

    def width(self, records: list[TaskRecord]) -> int | None:
        """Last dimension of the answers of several tasks in one batch; `None` if it is that of each one's answer."""
        return None

    def span(self, record: TaskRecord, spans: Mapping[str, slice]) -> slice:
        """Where a task's answer lies in that dimension."""
        return slice(None)

    # -- the router and the certificate ---------------------------------------------------------------------------

    def texts(self, record: TaskRecord, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The sequences of a training batch that the router shall know the task by."""
        return [dict(batch)]

    def n_prototypes(self, record: TaskRecord) -> int:
        """For how many labels the router keeps sums apart: 1 for tasks without a single label per sequence."""
        return 1

    def prototype_labels(self, record: TaskRecord, batch: Mapping[str, Tensor], n_texts: int) -> Tensor:
        """Which of them each text of a batch belongs to, `(texts,)`; negative ones do not count."""
        return torch.zeros(n_texts, dtype=torch.long)

    def probe_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The certificate's token ids `(4, 16)` as a batch of this kind."""
        return inputs

    def probe_answer(self, answer: Answer) -> Tensor:
        """What the certificate's digest is over."""
        return torch.stack([answer[name] for name in self.answers], -1) if len(self.answers) > 1 else answer["logits"]

    def probe_kept(self, probed: Tensor) -> Tensor:
        """What the certificate keeps of it, to compare numbers in another environment."""
        return probed


def _with_article(family: str) -> str:
    return f"{'a' if family == DECODER else 'an'} {family}"


def shift_right(ids: Tensor, config: PreTrainedConfig) -> Tensor:
    """What a decoder reads to write `ids`, `(batch, sequence)`: its start token, then all but the last."""
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    start = getattr(config, "decoder_start_token_id", None)
    first = ids.new_full((len(ids), 1), pad if start is None else start)
    shifted = torch.cat([first, ids[:, :-1]], 1)
    return shifted.masked_fill(shifted == IGNORED, pad)


def _divergence(logits: Tensor, target: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
    """Kullback-Leibler divergence of softened distributions over the last dimension, a mean over the others.

    Args:
        logits: `(..., classes)`.
        target: like `logits`.
        temperature: of both softmaxes.
        counted: which of the others count, `(...)` bool; `None` for all.
    """
    if counted is not None:
        logits, target = logits[counted], target[counted]
    logits, target = logits.flatten(0, -2), target.flatten(0, -2)
    own, wanted = (F.log_softmax(x / temperature, -1) for x in (logits, target))
    return F.kl_div(own, wanted, reduction="batchmean", log_target=True) * (temperature * temperature)


def _expect_shape(record: TaskRecord, name: str, given: Tensor, expected: tuple[int, ...], of: str) -> None:
    if tuple(given.shape) != expected:
        raise ValueError(
            f"Task '{record.name}' ({record.task_type}) got {name} of shape {tuple(given.shape)}; expected "
            f"{expected}, {of}."
        )


def _expect_whole_numbers(record: TaskRecord, name: str, given: Tensor) -> None:
    if given.is_floating_point() or given.dtype == torch.bool:
        raise ValueError(f"Task '{record.name}' needs whole numbers as {name}, got {given.dtype}.")


def _expect_range(record: TaskRecord, given: Tensor, n_labels: int, meaning: str) -> None:
    """Hold labels against a list's length. On the CPU only: elsewhere the check would wait for the device."""
    if given.device.type == "cpu" and given.numel():
        wrong = given[((given < 0) & (given != IGNORED)) | (given >= n_labels)]
        if wrong.numel():
            raise ValueError(
                f"Task '{record.name}' has {n_labels} {meaning}, got label {int(wrong[0])}. Expected 0 to "
                f"{n_labels - 1}, or {IGNORED} for what does not count."
            )


def _expect_some(record: TaskRecord, given: Tensor, hint: str) -> None:
    """Raise if nothing counts: the mean over nothing is no number, and would spoil every weight."""
    if not bool((given != IGNORED).any()):
        raise ValueError(
            f"Task '{record.name}' ({record.task_type}): all labels of a batch are {IGNORED}, so there is nothing to "
            f"learn from it. {hint}"
        )


class _Labelled(Kind):
    """Kinds whose logits are over a list of labels of the task's own."""

    def width(self, records: list[TaskRecord]) -> int | None:
        return sum(len(record.labels) for record in records)

    def span(self, record: TaskRecord, spans: Mapping[str, slice]) -> slice:
        return spans[record.name]


class SequenceClassification(_Labelled):
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
            _expect_whole_numbers(record, "labels", labels)
            _expect_range(record, labels, n_labels, f"labels (0 to {n_labels - 1}: {record.labels[:5]}...)")
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
        return _divergence(logits, target, temperature)

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


class TokenClassification(_Labelled):
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
        _expect_shape(record, "labels", labels, tuple(logits.shape[:2]), "a label for each token of `input_ids`")
        _expect_whole_numbers(record, "labels", labels)
        n_labels = len(record.labels)
        _expect_range(record, labels, n_labels, f"labels (0 to {n_labels - 1}: {record.labels[:5]}...)")
        _expect_some(record, labels, "Give the first sub-token of each word the word's label.")
        return F.cross_entropy(logits.float().flatten(0, 1), labels.long().flatten())

    def distance(
        self, record: TaskRecord, answer: Answer, wanted: Answer, targets: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """Of the distributions of tokens that have a label."""
        return _divergence(answer["logits"], wanted["logits"], temperature, targets["labels"] != IGNORED)


KINDS: dict[str, Kind] = {kind.name: kind for kind in (SequenceClassification(), TokenClassification())}


def kind_of(task: TaskRecord | str) -> Kind:
    """The kind of a task, or of this name.

    Raises:
        TaskError: if there is none of this name.
    """
    name = task if isinstance(task, str) else task.task_type
    if name not in KINDS:
        raise TaskError(f"{name!r} is no kind of task; there are {list(KINDS)}.")
    return KINDS[name]


assert set(LABELLED) == {kind.name for kind in KINDS.values() if isinstance(kind, _Labelled)}
