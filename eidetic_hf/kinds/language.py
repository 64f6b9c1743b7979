"""Kinds of task that score tokens: texts to be continued, texts made from texts, gaps to be filled.

Their heads score tokens by the trunk's own frozen embeddings; what a task owns beside is little, see `heads.py`. The
three are one class, made of parts: `CAUSAL_LM`, `SEQ2SEQ_LM` and `MASKED_LM`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DataCollatorForSeq2Seq, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput, ModelOutput, Seq2SeqLMOutput

from ..configuration import EideticConfig, TaskRecord
from ..network.backbone import DECODER, DECODER_TEXTS, ENCODER, ENCODER_DECODER, hidden_size, initializer_range
from ..network.plain import PlainModel
from ..network.vocabulary import TokenTable
from .base import IGNORED, Answer, Kind, divergence, shift_right
from .checks import (
    expect_bool,
    expect_range,
    expect_shape,
    expect_some,
    expect_whole_numbers,
    largest_value,
)
from .collators import LABELS, MaskingCollator, TextCollator
from .heads import LanguageModelHead
from .metrics import language_scores
from .plain_heads import write_language_head
from .pretrained_head import head_parts

if TYPE_CHECKING:
    from datasets import Dataset

SHORTEST_PROMPT = 4  # that a router learns a text to be continued by
PROBED_TOKENS = 64  # whose logits a certificate keeps, spread over the vocabulary; its digest is over all of them


class LanguageModel(Kind):
    """A kind whose logits are over the vocabulary.

    Args:
        name: of the kind.
        family: of backbone that it needs.
        output_class: what `forward` returns.
        auto_class: the class of transformers that loads a checkpoint to answer it.
        collate: makes a batch of rows, given a tokenizer.
        hint: what to do where a batch has no token to score.
        pipeline: the pipeline of transformers for it, if there is one.
        shift: how far before its target a token's logits stand.
        writes: whether a task writes texts.
        makes_labels: whether `collate` makes labels where rows have none.
        smooths: whether the `Trainer`'s label smoothing is right for it.
        decoder_inputs: what the decoder beside an encoder reads, made from the batch and its targets, see
            `read_targets`; `None` where there is no such decoder.
        routed_texts: the sequences of a batch that the router knows a task by; the batch's own, if not given.
    """

    @dataclass(frozen=True)
    class Options:
        """Settings of a task.

        Attributes:
            own_output_embeddings: whether the head has output embeddings of its own, `(tokens, embedding)`, which
                start as copies of the model's. `None` leaves it to the kind, which notes in `TaskRecord.head` what it
                chose: some of its own only after the first task of a random backbone, whose embeddings know that
                task's tokens alone.
        """

        own_output_embeddings: bool | None = None

        def __post_init__(self) -> None:
            if self.own_output_embeddings is not None:
                expect_bool("own_output_embeddings", self.own_output_embeddings)

    reads_vocabulary = True

    def __init__(
        self,
        name: str,
        family: str,
        output_class: type[ModelOutput],
        auto_class: str,
        collate: Callable[[PreTrainedTokenizerBase], Callable],
        hint: str,
        pipeline: str | None = None,
        shift: int = 0,
        writes: bool = False,
        makes_labels: bool = False,
        smooths: bool = False,
        decoder_inputs: Callable[..., dict[str, Any]] | None = None,
        routed_texts: Callable[[Mapping[str, Tensor]], list[dict[str, Tensor]]] | None = None,
    ) -> None:
        self.name, self.families = name, (family,)
        self.output_class, self.auto_class, self.pipeline = output_class, auto_class, pipeline
        self.hub_task = "text-generation" if writes else None
        self.writes, self.makes_labels, self.shifts_labels = writes, makes_labels, shift > 0
        self._collate, self._hint, self._shift, self._smooths = collate, hint, shift, smooths
        self._decoder_inputs, self._routed_texts = decoder_inputs, routed_texts
        super().__init__()

    def obstacle(self, config: EideticConfig) -> str | None:
        """As for every kind; and the output embeddings have to be known."""
        reason = super().obstacle(config)
        if reason is not None:
            return reason
        base = config.base_config
        unreadable = (config.language_head or {}).get("unreadable")
        if unreadable:
            return f"the head of {unreadable} has parts that eidetic_hf does not know, and would answer something else"
        is_known = base.tie_word_embeddings or config.output_embeddings is not None or config.language_head is not None
        if config.trunk_pretrained and not is_known:
            return (
                f"the output embeddings of this '{base.model_type}' are not its input embeddings, and were not given. "
                "Start from a checkpoint or a model with a language-model head"
            )
        return None

    def complete(self, task: TaskRecord, config: EideticConfig, vocabulary: TokenTable) -> None:
        """The vocabulary as it is now, and the parts of the pretrained head.

        The embeddings of a random backbone are those that its first task learned: of a token that this has never seen
        they stay random, and a later task could hardly write it. So later ones have output embeddings of their own.
        """
        task.vocab_size = len(vocabulary)
        parts = config.language_head or head_parts(config.base_config)
        own = task.own_output_embeddings
        if own is None:
            own = not config.trunk_pretrained and any(other.name != task.name for other in config.tasks)
        task.head = {**parts, "embedding_size": vocabulary.width, "own_embeddings": own}

    def reads_output_embeddings(self, task: TaskRecord) -> bool:
        """Unless the head has some of its own."""
        return not task.head.get("own_embeddings")

    def make_head(self, config: PreTrainedConfig, task: TaskRecord) -> nn.Module:
        """What stands between hidden states and the trunk's embeddings."""
        assert task.vocab_size is not None
        width, std = task.head["embedding_size"], initializer_range(config)
        return LanguageModelHead(hidden_size(config), width, task.vocab_size, task.head, std)

    def complete_inputs(
        self, task: TaskRecord, inputs: dict[str, Any], targets: Mapping[str, Tensor], config: PreTrainedConfig
    ) -> dict[str, Any]:
        """What a decoder beside an encoder reads follows from the targets."""
        if self._decoder_inputs is None or any(inputs.get(name) is not None for name in DECODER_TEXTS):
            return inputs
        return {**inputs, **self._decoder_inputs(task, targets, config)}

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: TokenTable) -> Answer:
        """`logits`, `(batch, sequence, vocabulary)`."""
        return {"logits": head(hidden, vocabulary)}

    def plain_settings(self, task: TaskRecord, config: EideticConfig, plain: PreTrainedConfig) -> dict[str, Any]:
        """Whether tokens are scored by the input embeddings; and ModernBERT's dense layer may have a bias."""
        own = task.head.get("own_embeddings") or config.output_embeddings is not None
        settings = {"tie_word_embeddings": not own}
        if hasattr(plain, "classifier_bias") and task.head.get("transform"):
            settings["classifier_bias"] = task.head["transform"]["bias"]
        return settings

    def write_plain_head(self, task: TaskRecord, head: nn.Module, plain: PlainModel, vocabulary: TokenTable) -> None:
        """What stands before the embeddings, and those that score tokens."""
        own = cast(LanguageModelHead, head)
        table = vocabulary if own.embeddings is None else TokenTable((own.embeddings,))
        write_language_head(plain, own, table.first(own.vocab_size).joined().detach())

    def answer_each(
        self, heads: list[nn.Module], hidden: list[Tensor], inputs: Mapping[str, Any], vocabulary: TokenTable
    ) -> Answer:
        """The vocabulary is read once, and not for each task."""
        return {"logits": LanguageModelHead.forward_each(cast(list[LanguageModelHead], heads), hidden, vocabulary)}

    def _aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the tokens that they are to write."""
        if self._shift == 0:
            return logits, labels
        return logits[:, : -self._shift], labels[:, self._shift :]

    def loss(self, task: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy over the tokens that count."""
        logits, labels = answer["logits"], targets["labels"]
        expect_shape(task, "labels", labels, tuple(logits.shape[:2]), "a token for each token")
        expect_whole_numbers(task, "labels", labels)
        expect_range(task, labels, logits.shape[-1], "tokens in its vocabulary")
        logits, labels = self._aligned(logits, labels)
        expect_some(task, labels, self._hint)
        return F.cross_entropy(logits.float().flatten(0, 1), labels.long().flatten())

    def output_layer(self, head: nn.Module, vocabulary: TokenTable) -> nn.Module | None:
        """The embeddings that score tokens, if nothing else does anything to a hidden state or a score."""
        return cast(LanguageModelHead, head).as_layer(vocabulary)

    def counted(self, task: TaskRecord, labels: Tensor) -> Tensor:
        """The tokens that something is written before."""
        return self._aligned(labels, labels)[1]

    def distance(
        self, task: TaskRecord, answer: Answer, wanted: Answer, targets: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """Of the distributions over the vocabulary, where there is a token to write."""
        logits, labels = self._aligned(answer["logits"], targets["labels"])
        return divergence(
            logits, self._aligned(wanted["logits"], targets["labels"])[0], temperature, labels != IGNORED
        )

    def width(self, tasks: list[TaskRecord]) -> int | None:
        """The largest vocabulary: it may have grown between tasks."""
        return max(task.vocab_size or 0 for task in tasks)

    def span(self, task: TaskRecord, spans: Mapping[str, slice]) -> slice:
        """The task's vocabulary."""
        return slice(0, task.vocab_size)

    def texts(self, task: TaskRecord, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The batch's own, or those that `routed_texts` makes of it."""
        return [dict(batch)] if self._routed_texts is None else self._routed_texts(batch)

    def probe_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A decoder beside an encoder reads the same tokens as that."""
        return inputs if self._decoder_inputs is None else {**inputs, "decoder_input_ids": inputs["input_ids"]}

    def probe_kept(self, probed: Tensor) -> Tensor:
        """Logits of a few tokens: all of them would take more room than the task."""
        return probed[..., :: max(probed.shape[-1] // PROBED_TOKENS, 1)]

    def collator(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable | None:
        """What `collate` makes of a tokenizer."""
        return None if tokenizer is None else self._collate(tokenizer)

    def can_smooth(self, task: TaskRecord) -> bool:
        """With one label per token that is its own target."""
        return self._smooths

    def check_dataset(self, task: TaskRecord, name: str, data: Dataset) -> None:
        """Tokens of the vocabulary."""
        for column in ("input_ids", *LABELS):
            if column not in data.column_names:
                continue
            first = data[0][column]
            if not isinstance(first, list):
                raise ValueError(
                    f"Task '{task.name}' ({self.name}): the column '{column}' of the {name} holds {first!r}; "
                    "expected lists of token ids."
                )
            largest = largest_value(data, column)
            if largest is not None and task.vocab_size is not None and largest >= task.vocab_size:
                raise ValueError(
                    f"Task '{task.name}' ({self.name}): the {name} has the token {largest} in '{column}', and the "
                    f"vocabulary has {task.vocab_size}. Use the backbone's own tokenizer."
                )

    def reduce(self, task: TaskRecord, outputs: Any, labels: Any) -> Any:
        """Sums per row, `(batch, 3)`, instead of logits over the vocabulary; the likeliest tokens if not measured."""
        if labels is None:
            return outputs.argmax(-1)
        logits, labels = self._aligned(outputs, labels)
        counted = labels != IGNORED
        loss = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")  # 0 where ignored
        right = (logits.argmax(-1) == labels) & counted
        return torch.stack([loss.sum(1), right.sum(1).to(loss.dtype), counted.sum(1).to(loss.dtype)], 1)

    def metrics(self, task: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        """Perplexity and accuracy over tokens."""
        return language_scores(predictions)


# -- the parts that they are made of ----------------------------------------------------------------------------------


def prompts(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The prompts, where labels tell prompts from answers: so a prompt alone is routed as it was learned.

    Of running text every beginning may be a prompt: after the whole texts come their first 4, 8, 16, ... tokens.
    """
    labels, mask, ids = batch.get("labels"), batch.get("attention_mask"), batch.get("input_ids")
    if ids is None:
        return [dict(batch)]
    real = torch.ones_like(ids) if mask is None else mask
    prompt = torch.zeros_like(real) if labels is None else real * (labels == IGNORED)
    whole = prompt.sum(1, keepdim=True) == 0
    texts = [{**batch, "attention_mask": torch.where(whole, real, prompt)}]
    length = SHORTEST_PROMPT
    while bool(whole.all()) and length < ids.shape[1]:
        beginning = real * (real.cumsum(1) <= length)
        read = beginning.any(0).nonzero().flatten()
        columns = slice(int(read[0]), int(read[-1]) + 1) if len(read) else slice(0, 1)
        texts.append({"input_ids": ids[:, columns], "attention_mask": beginning[:, columns]})
        length *= 2
    return texts


def read_targets(task: TaskRecord, targets: Mapping[str, Tensor], config: PreTrainedConfig) -> dict[str, Any]:
    """What a decoder reads that is to write the labels: them, one token later.

    Raises:
        ValueError: if there are none, or not one row of tokens for each text.
    """
    if "labels" not in targets:
        raise ValueError(
            f"Task '{task.name}' ({task.task_type}) got neither labels nor decoder_input_ids, so there is nothing to "
            "score. Pass one of them, or write a text with model.generate(..., task=...)."
        )
    labels = targets["labels"]
    if labels.dim() != 2:
        raise ValueError(
            f"Task '{task.name}' ({task.task_type}) got labels of shape {tuple(labels.shape)}; expected "
            "(batch, target sequence)."
        )
    return {"decoder_input_ids": shift_right(labels, config)}


# -- the kinds --------------------------------------------------------------------------------------------------------

# The next token, from those before it. Instruction tuning has labels of -100 at the prompt.
CAUSAL_LM = LanguageModel(
    "causal-lm",
    family=DECODER,
    output_class=CausalLMOutputWithPast,
    auto_class="AutoModelForCausalLM",
    pipeline="text-generation",
    collate=TextCollator,
    hint=(
        "The first token of a text is never written, as nothing stands before it; and where a prompt was longer than "
        "the context, its answer was cut off."
    ),
    shift=1,
    writes=True,
    makes_labels=True,
    routed_texts=prompts,
)
# A text from a text: the encoder reads one, the decoder writes the other.
SEQ2SEQ_LM = LanguageModel(
    "seq2seq-lm",
    family=ENCODER_DECODER,
    output_class=Seq2SeqLMOutput,
    auto_class="AutoModelForSeq2SeqLM",
    collate=DataCollatorForSeq2Seq,
    hint="Give the tokens to be written, and -100 where there is none.",
    writes=True,
    decoder_inputs=read_targets,
)
# The tokens behind masks.
MASKED_LM = LanguageModel(
    "masked-lm",
    family=ENCODER,
    output_class=MaskedLMOutput,
    auto_class="AutoModelForMaskedLM",
    pipeline="fill-mask",
    collate=MaskingCollator,
    hint="Give the tokens behind the masks, and -100 elsewhere.",
    makes_labels=True,
    smooths=True,
)
