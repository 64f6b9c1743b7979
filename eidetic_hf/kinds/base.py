"""What a kind of task is: a head, a loss, an answer, a batch, a measure.

A `Kind` holds all that differs from one kind to the next; the model and the trainer ask it. Each kind is in a file of
its own, and `kinds/__init__.py` knows them all by name. Targets that do not fit raise a `ValueError` that says what
was given, what was expected and what to do.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from ..configuration import EideticConfig, TaskError, TaskRecord
from ..network.backbone import DECODER, DECODER_TEXTS, ENCODER, ENCODER_DECODER, family_of
from ..network.plain import NoCounterpart, PlainModel
from ..network.vocabulary import TokenTable

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100  # the label of what has none, as everywhere in transformers
# All that `EideticModel.forward` takes beside the sequences themselves.
TARGETS = ("labels", "start_positions", "end_positions")

Answer = dict[str, Tensor]


class Kind(ABC):
    """What differs between kinds of task. A kind has no state; the tasks of that kind are in `TaskRecord`s.

    A kind must say its `name` and its `output_class`, and write `make_head`, `answer`, `loss` and `metrics`. All else
    it may: each method does what is right for one answer, `logits`, learned from `labels`, to one text.
    `register_kind` makes it known. docs/kinds.md has an example, docs/examples/ordinal.py the same as a file.

    Attributes:
        name: as `TaskRecord.task_type` has it.
        output_class: what `forward` returns.
        Options: the settings of a task of this kind, a frozen dataclass: every field has a default, which stands for
            what the field of a task is if nobody says it, and `__post_init__` raises a `ValueError` with the field's
            name, its value and what was expected. The values are kept in `config.json`, so they are plain JSON values.
        has_labels: whether a task has a list of labels of its own. Its answer is then over these labels, in the last
            dimension.
        writes: whether a task writes texts, so that `model.generate` can.
        embeds: whether a task's answer is a vector for each text, `pooler_output`.
        reads_vocabulary: whether the head reads the token embeddings, to score tokens.
        families: of backbone that can have it.
        targets: the inputs of `forward` that the loss is computed from, of `TARGETS`.
        outputs: the outputs of `forward` that are the task's answer.
        measured: the outputs that an evaluation collects; `outputs`, if not given.
        plain_outputs: the outputs that the `auto_class` has, too; `outputs`, if not given.
        optional_targets: whether there is a loss without them.
        makes_labels: whether the collator makes labels where rows have none.
        shifts_labels: whether a label is what follows its token, so that the first of a row does not count.
        auto_class: the class of transformers that loads a checkpoint to answer this kind of task.
        pipeline: the pipeline of transformers for it, or `None` where there is none.
        hub_task: what the Hub calls such tasks (`pipeline_tag`), where that is not the pipeline's name.
    """

    @dataclass(frozen=True)
    class Options:
        """Settings of a task: none."""

    name: str
    output_class: type[ModelOutput]
    has_labels = False
    writes = False
    embeds = False
    reads_vocabulary = False
    families: tuple[str, ...] = (ENCODER, DECODER, ENCODER_DECODER)
    targets: tuple[str, ...] = ("labels",)
    outputs: tuple[str, ...] = ("logits",)
    measured: tuple[str, ...] = ()
    plain_outputs: tuple[str, ...] = ()
    optional_targets = False
    makes_labels = False
    shifts_labels = False
    auto_class = "AutoModel"
    pipeline: str | None = None
    hub_task: str | None = None

    def __init__(self) -> None:
        # Now, since torch.compile does not look into a dataclass's fields.
        self._output_names = frozenset(field.name for field in fields(cast(Any, self.output_class)))

    # -- what a kind must write -----------------------------------------------------------------------------------

    @abstractmethod
    def make_head(self, config: PreTrainedConfig, task: TaskRecord) -> nn.Module:
        """A head with initial weights, for a backbone of this configuration."""

    @abstractmethod
    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: TokenTable) -> Answer:
        """A task's answer by name, such as `{"logits": ...}`, from no other tensors than these.

        Args:
            head: what `make_head` returned.
            hidden: last hidden states, `(sequences, tokens, hidden)`.
            inputs: the batch, as `forward` was given it.
            vocabulary: output embeddings of the tokens that the task knows.
        """

    def answer_each(
        self, heads: list[nn.Module], hidden: list[Tensor], inputs: Mapping[str, Any], vocabulary: TokenTable
    ) -> Answer:
        """What `answer` makes of the rows of several tasks that write side by side, one after another.

        Args:
            heads: of the tasks.
            hidden: last hidden states of the rows of each, `(sequences, tokens, hidden)`.
            inputs: as in `answer`.
            vocabulary: as in `answer`; all of the tasks know the same tokens.
        """
        found = [self.answer(head, rows, inputs, vocabulary) for head, rows in zip(heads, hidden, strict=True)]
        return {part: torch.cat([each[part] for each in found]) for part in found[0]}

    @abstractmethod
    def loss(self, task: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Mean loss of a batch.

        Raises:
            ValueError: if the targets do not fit the task or its answer.
        """

    @abstractmethod
    def metrics(self, task: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        """Figures from what an evaluation collected.

        Args:
            task: the task.
            predictions: what `reduce` returned, all batches in one array, `(rows, ...)`.
            labels: the `targets` of the rows.
        """

    # -- what it may: a task's labels and options -------------------------------------------------------------------

    @classmethod
    def option_names(cls) -> list[str]:
        """Names of the settings of a task of this kind."""
        return [field.name for field in fields(cls.Options)]

    def check(self, task: TaskRecord, given: Mapping[str, Any] | None = None) -> None:
        """Hold a task's labels and options against what this kind allows, and fill in the defaults of the others.

        Args:
            task: its `options` and `labels` are completed.
            given: the options that somebody gave, each of which has to be one of this kind; those of the record if not
                given, which a checkpoint brought: options that this kind does not have are then dropped.

        Raises:
            TaskError: if a label or an option is not what was expected.
        """
        known = self.option_names()
        values = {name: task.options[name] for name in known if name in task.options} if given is None else given
        try:
            options = asdict(self.Options(**values))
            task.options = json.loads(json.dumps(options, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise TaskError(f"Task '{task.name}': {error}") from error
        self.check_labels(task)

    def check_labels(self, task: TaskRecord) -> None:
        """Raise a `TaskError` if the labels of a task are not distinct texts, or it has some and should have none."""
        if not self.has_labels:
            if task.labels:
                raise TaskError(f"Task '{task.name}': {self.name} has no labels, got {task.labels!r}. Leave them out.")
            return
        if not task.labels:
            raise TaskError(
                f"Task '{task.name}' has no labels. Give labels=[...] in the order of the logits "
                "(for regression, the names of the targets, such as ['score'])."
            )
        is_list = isinstance(task.labels, list) and all(isinstance(label, str) for label in task.labels)
        if not is_list or len(set(task.labels)) != len(task.labels):
            raise TaskError(f"Task '{task.name}': labels must be distinct strings, got {task.labels!r}.")

    def flat_label(self, task: TaskRecord, label: str) -> str:
        """A task's label in the flat space of all tasks' labels: `agnews/Sports`."""
        return f"{task.name}/{label}"

    # -- what a task needs ----------------------------------------------------------------------------------------

    def obstacle(self, config: EideticConfig) -> str | None:
        """Why a model can not have this kind of task; `None` if it can."""
        family = family_of(config.base_config)
        if family in self.families:
            return None
        needed = " or ".join(_with_article(name) for name in self.families)
        return f"it needs {needed} as backbone, and '{config.base_config.model_type}' is {_with_article(family)}"

    def complete(self, task: TaskRecord, config: EideticConfig, vocabulary: TokenTable) -> None:  # noqa: B027
        """Fill in what the task's head is made of, before it is learned; `vocabulary` as `answer` takes it."""

    def reads_output_embeddings(self, task: TaskRecord) -> bool:
        """Whether the task's head reads the model's output embeddings."""
        return self.reads_vocabulary

    # -- forward --------------------------------------------------------------------------------------------------

    def complete_inputs(
        self, task: TaskRecord, inputs: dict[str, Any], targets: Mapping[str, Tensor], config: PreTrainedConfig
    ) -> dict[str, Any]:
        """The inputs, with what follows from the targets."""
        return inputs

    def prepare(self, inputs: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
        """What the backbone is given for a batch: sequences in two dimensions, and what its decoder reads."""
        prepared = self.lay_out({name: value for name, value in inputs.items() if value is not None})
        if config.is_encoder_decoder and not any(name in prepared for name in DECODER_TEXTS):
            if "input_ids" not in prepared:
                raise ValueError(
                    f"A '{config.model_type}' backbone got inputs_embeds and nothing for its decoder to read. Pass "
                    "decoder_input_ids, too."
                )
            # As in transformers' own classifiers: the decoder reads the text, too, and looks at what was encoded.
            prepared["decoder_input_ids"] = shift_right(prepared["input_ids"], config)
            if "attention_mask" in prepared:
                prepared.setdefault("decoder_attention_mask", prepared["attention_mask"])
        return prepared

    def lay_out(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs with one sequence per row, `(sequences, tokens)`."""
        self.check_dimensions(inputs, 2, "(batch, sequence")
        return inputs

    def check_dimensions(self, inputs: Mapping[str, Any], dims: int, expected: str) -> None:
        """Raise a `ValueError` if sequences have another number of dimensions; `expected` is their beginning."""
        for name, extra, end in (("input_ids", 0, ")"), ("inputs_embeds", 1, ", hidden)")):
            if name in inputs and inputs[name].dim() != dims + extra:
                raise ValueError(
                    f"{self.name} got {name} of shape {tuple(inputs[name].shape)}; expected {expected}{end}."
                )

    def rows(self, rows: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Numbers of the sequences, as `prepare` lays them out, of some rows of a batch."""
        return rows

    def check_targets(self, task: TaskRecord, targets: Mapping[str, Tensor]) -> None:
        """Raise a `ValueError` if these are not the targets that the loss is computed from."""
        if targets and set(targets) != set(self.targets):
            raise ValueError(
                f"Task '{task.name}' ({self.name}) got {sorted(targets)}; expected "
                f"{' and '.join(self.targets) or 'none'} to compute its loss from."
            )

    def output_layer(self, head: nn.Module, vocabulary: TokenTable) -> nn.Module | None:
        """A layer with `weight` and perhaps `bias` whose product with a hidden state is the answer; `None` without."""
        return None

    def counted(self, task: TaskRecord, labels: Tensor) -> Tensor:
        """Those of the labels that `loss` is a mean over, if they are not -100: all of them, or some."""
        return labels

    def items(self, task: TaskRecord, targets: Mapping[str, Tensor]) -> Tensor:
        """How many rows or tokens `loss` is a mean over, `()`: what the `Trainer` counts as items of a batch."""
        return (self.counted(task, next(iter(targets.values()))) != IGNORED).sum()

    def pair_targets(self, task: TaskRecord, pair: Callable[[], Answer]) -> dict[str, Tensor]:
        """What the loss needs of the answer to the other text of each pair."""
        raise ValueError(
            f"Task '{task.name}' ({self.name}) got pair_input_ids, which are for feature extraction. Put both texts "
            "into input_ids: tokenizer(text, text_pair=...)."
        )

    def output(
        self, loss: Tensor | None, answer: Answer, targets: Mapping[str, Tensor], backbone: ModelOutput
    ) -> ModelOutput:
        """What `forward` returns: loss and answer, and what the backbone was asked to put out beside.

        Of an encoder-decoder, `hidden_states` and `attentions` are the decoder's, whose states the head reads.
        """
        names = self._output_names - set(answer) - {"last_hidden_state"}
        beside = {name: getattr(backbone, name, getattr(backbone, f"decoder_{name}", None)) for name in names}
        return self.output_class(**{**beside, **answer, "loss": loss})

    def distance(
        self, task: TaskRecord, answer: Answer, wanted: Answer, targets: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """How far an answer is from the one of the unpruned network (Hinton et al., arXiv 1503.02531)."""
        return divergence(answer["logits"], wanted["logits"], temperature)

    def width(self, tasks: list[TaskRecord]) -> int | None:
        """Last dimension of the answers of several tasks in one batch; `None` if it is that of each one's answer.

        Of tasks with labels it has room for the labels of all of them.
        """
        return sum(len(task.labels) for task in tasks) if self.has_labels else None

    def span(self, task: TaskRecord, spans: Mapping[str, slice]) -> slice:
        """Where a task's answer lies in that dimension; `spans` says where the labels of each task do."""
        return spans[task.name] if self.has_labels else slice(None)

    # -- the router and the certificate ---------------------------------------------------------------------------

    def texts(self, task: TaskRecord, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The sequences of a training batch that the router shall know the task by."""
        return [dict(batch)]

    def n_prototypes(self, task: TaskRecord) -> int:
        """For how many labels the router keeps sums apart: 1 for tasks without a single label per sequence."""
        return 1

    def prototype_labels(self, task: TaskRecord, batch: Mapping[str, Tensor], n_texts: int) -> Tensor:
        """Which of them each text of a batch belongs to, `(texts,)`; negative ones do not count."""
        return torch.zeros(n_texts, dtype=torch.long)

    def probe_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The certificate's token ids `(4, 16)` as a batch of this kind."""
        return inputs

    def probe_answer(self, answer: Answer) -> Tensor:
        """What the certificate's digest is over."""
        return answer["logits"]

    def probe_kept(self, probed: Tensor) -> Tensor:
        """What the certificate keeps of it, to compare numbers in another environment."""
        return probed

    # -- as a model of transformers ---------------------------------------------------------------------------------

    def plain_settings(self, task: TaskRecord, config: EideticConfig, plain: PreTrainedConfig) -> dict[str, Any]:
        """What the configuration of a plain model of the `auto_class` has to say for a task: by default its labels.

        Args:
            task: the task.
            config: of the model that learned it.
            plain: of the plain model, before these settings.

        Raises:
            NoCounterpart: if there is no such model.
        """
        names = dict(enumerate(task.labels))
        return {"id2label": names, "label2id": {name: number for number, name in names.items()}} if names else {}

    def write_plain_head(self, task: TaskRecord, head: nn.Module, plain: PlainModel, vocabulary: TokenTable) -> None:
        """Write a task's head into a plain model of the `auto_class`, whose base model is filled.

        Args:
            task: the task.
            head: what `make_head` returned.
            plain: the model.
            vocabulary: as `answer` takes it.

        Raises:
            NoCounterpart: if the plain model's head can not answer the same; a kind that does not write this method
                has none.
        """
        raise NoCounterpart(f"the kind {self.name} does not say how (Kind.write_plain_head)")

    def plain_files(self, task: TaskRecord, config: PreTrainedConfig) -> dict[str, str]:
        """What else a plain model's folder shall hold, by the names of files; `config` is the backbone's."""
        return {}

    # -- learning and measuring -----------------------------------------------------------------------------------

    def collator(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable | None:
        """What makes a batch of rows; `None` for what the `Trainer` takes by default."""
        return None

    def can_smooth(self, task: TaskRecord) -> bool:
        """Whether the `Trainer`'s label smoothing, which takes the labels away from the model, is right for a task."""
        return False

    def check_dataset(self, task: TaskRecord, name: str, data: Dataset) -> None:  # noqa: B027
        """Raise a `ValueError` if a data set can not teach a task.

        Args:
            task: the task.
            name: what the error calls the data set.
            data: at least one row.
        """

    def reduce(self, task: TaskRecord, outputs: Any, labels: Any) -> Any:
        """What an evaluation collects of a batch's `measured` outputs (`preprocess_logits_for_metrics`)."""
        return outputs


def _with_article(family: str) -> str:
    return f"{'a' if family == DECODER else 'an'} {family}"


def shift_right(ids: Tensor, config: PreTrainedConfig) -> Tensor:
    """What a decoder reads to write `ids`, `(batch, sequence)`: its start token, then all but the last."""
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    start = getattr(config, "decoder_start_token_id", None)
    first = ids.new_full((len(ids), 1), pad if start is None else start)
    shifted = torch.cat([first, ids[:, :-1]], 1)
    return shifted.masked_fill(shifted == IGNORED, pad)


def divergence(logits: Tensor, target: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
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
