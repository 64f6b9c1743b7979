"""Kinds of task that write: texts to be continued, texts made from texts, gaps to be filled.

Their heads score tokens by the trunk's own frozen embeddings; what a task owns beside is little, see `heads.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput, Seq2SeqLMOutput

from ..configuration import LANGUAGE_MODELS, EideticConfig, TaskRecord
from ..network.backbone import DECODER, ENCODER, ENCODER_DECODER, hidden_size
from .base import IGNORED, Answer, Kind, divergence, shift_right
from .checks import arrow_column, expect_range, expect_shape, expect_some, expect_whole_numbers
from .collators import LABELS, TextCollator
from .heads import LanguageModelHead
from .metrics import language_scores
from .pretrained_head import head_parts

SHORTEST_PROMPT = 4  # that a router learns a text to be continued by
PROBED_TOKENS = 64  # whose logits a certificate keeps, spread over the vocabulary; its digest is over all of them


MASKING_TRIALS = 100  # until a batch of few tokens has a mask


class LanguageModel(Kind):
    """Kinds whose logits are over the vocabulary."""

    reads_vocabulary = True
    shift = 0  # how far before its target a token's logits stand
    hint = "Give the tokens to be written, and -100 where there is none."

    def obstacle(self, config: EideticConfig) -> str | None:
        """As for every kind; and the output embeddings have to be known, and learned by somebody."""
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
        first = config.tasks[0] if config.tasks else None
        learned = first is None or first.task_type in LANGUAGE_MODELS
        if not config.trunk_pretrained and config.output_embeddings is not None and not learned:
            return (
                "the output embeddings of this random backbone are not its input embeddings, and its first task, "
                "which trains the trunk, was no language model. Learn a language model first, or set "
                "tie_word_embeddings=True in the backbone's configuration"
            )
        return None

    def complete(self, record: TaskRecord, config: EideticConfig, vocabulary: Tensor) -> None:
        """The vocabulary as it is now, and the parts of the pretrained head.

        The embeddings of a random backbone are those that its first task learned: of a token that this has never seen
        they stay random, and a later task could hardly write it. So later ones have output embeddings of their own.
        """
        record.vocab_size = len(vocabulary)
        parts = config.language_head or head_parts(config.base_config)
        own = record.own_output_embeddings
        if own is None:
            own = not config.trunk_pretrained and any(task.name != record.name for task in config.tasks)
        record.head = {**parts, "embedding_size": vocabulary.shape[1], "own_embeddings": own}

    def reads_output_embeddings(self, record: TaskRecord) -> bool:
        """Unless the head has some of its own."""
        return not record.head.get("own_embeddings")

    def make_head(self, config: PreTrainedConfig, record: TaskRecord) -> nn.Module:
        """What stands between hidden states and the trunk's embeddings."""
        std = getattr(config, "initializer_range", 0.02)
        assert record.vocab_size is not None
        width = record.head["embedding_size"]
        return LanguageModelHead(hidden_size(config), width, record.vocab_size, record.head, std)

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: Tensor) -> Answer:
        """`logits`, `(batch, sequence, vocabulary)`."""
        return {"logits": head(hidden, vocabulary)}

    def _aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the tokens that they are to write."""
        if self.shift == 0:
            return logits, labels
        return logits[:, : -self.shift], labels[:, self.shift :]

    def loss(self, record: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy over the tokens that count."""
        logits, labels = answer["logits"], targets["labels"]
        expect_shape(record, "labels", labels, tuple(logits.shape[:2]), "a token for each token")
        expect_whole_numbers(record, "labels", labels)
        expect_range(record, labels, logits.shape[-1], "tokens in its vocabulary")
        logits, labels = self._aligned(logits, labels)
        expect_some(record, labels, self.hint)
        return F.cross_entropy(logits.float().flatten(0, 1), labels.long().flatten())

    def distance(
        self, record: TaskRecord, answer: Answer, wanted: Answer, targets: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """Of the distributions over the vocabulary, where there is a token to write."""
        logits, labels = self._aligned(answer["logits"], targets["labels"])
        return divergence(
            logits, self._aligned(wanted["logits"], targets["labels"])[0], temperature, labels != IGNORED
        )

    def width(self, records: list[TaskRecord]) -> int | None:
        """The largest vocabulary: it may have grown between tasks."""
        return max(record.vocab_size or 0 for record in records)

    def span(self, record: TaskRecord, spans: Mapping[str, slice]) -> slice:
        """The task's vocabulary."""
        return slice(0, record.vocab_size)

    def probe_kept(self, probed: Tensor) -> Tensor:
        """Logits of a few tokens: all of them would take more room than the task."""
        return probed[..., :: max(probed.shape[-1] // PROBED_TOKENS, 1)]

    def reduce(self, record: TaskRecord, outputs: Any, labels: Any) -> Any:
        """Sums per row, `(batch, 3)`, instead of logits over the vocabulary; the likeliest tokens if not measured."""
        if labels is None:
            return outputs.argmax(-1)
        logits, labels = self._aligned(outputs, labels)
        counted = labels != IGNORED
        loss = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")  # 0 where ignored
        right = (logits.argmax(-1) == labels) & counted
        return torch.stack([loss.sum(1), right.sum(1).to(loss.dtype), counted.sum(1).to(loss.dtype)], 1)

    def metrics(self, record: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        """Perplexity and accuracy over tokens."""
        return language_scores(predictions)

    def check_dataset(self, record: TaskRecord, name: str, data: Dataset) -> None:
        """Tokens of the vocabulary."""
        for column in ("input_ids", *LABELS):
            if column not in data.column_names:
                continue
            values = arrow_column(data, column)
            first = data[0][column]
            if not isinstance(first, list):
                raise ValueError(
                    f"Task '{record.name}' ({self.name}): the column '{column}' of the {name} holds {first!r}; "
                    "expected lists of token ids."
                )
            largest = pc.max(pc.list_flatten(values)).as_py()
            if largest is not None and record.vocab_size is not None and largest >= record.vocab_size:
                raise ValueError(
                    f"Task '{record.name}' ({self.name}): the {name} has the token {largest} in '{column}', and the "
                    f"vocabulary has {record.vocab_size}. Use the backbone's own tokenizer."
                )


class CausalLM(LanguageModel):
    """The next token, from those before it. Instruction tuning has labels of -100 at the prompt."""

    writes = True

    name = "causal-lm"
    families = (DECODER,)
    output_class = CausalLMOutputWithPast
    auto_class = "AutoModelForCausalLM"
    pipeline = "text-generation"
    makes_labels = True
    shift = 1
    hint = (
        "The first token of a text is never written, as nothing stands before it; and where a prompt was longer than "
        "the context, its answer was cut off."
    )

    def texts(self, record: TaskRecord, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
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

    def collator(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable | None:
        """Every real token is to be written, unless there are labels."""
        return None if tokenizer is None else TextCollator(tokenizer)


class MaskedLM(LanguageModel):
    """The tokens behind masks."""

    name = "masked-lm"
    families = (ENCODER,)
    output_class = MaskedLMOutput
    auto_class = "AutoModelForMaskedLM"
    pipeline = "fill-mask"
    makes_labels = True
    hint = "Give the tokens behind the masks, and -100 elsewhere."

    def can_smooth(self, record: TaskRecord) -> bool:
        """With one label per token."""
        return True

    def collator(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable | None:
        """Masks tokens at random, unless there are labels."""
        return None if tokenizer is None else MaskingCollator(tokenizer)


class MaskingCollator:
    """Masks tokens at random; rows that have labels already are only padded.

    Args:
        tokenizer: with a mask token.
        probability: share of the tokens that are masked.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float = 0.15) -> None:
        self.tokenizer = tokenizer
        self.pads = DataCollatorForTokenClassification(tokenizer)
        self.masks = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=probability)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows to a batch of `input_ids`, `attention_mask` and `labels`, all `(batch, sequence)`."""
        if any(name in features[0] for name in LABELS):
            return self.pads(features)
        for _ in range(MASKING_TRIALS):
            batch = self.masks(features)
            if bool((batch["labels"] != IGNORED).any()):
                break
        return batch


class Seq2SeqLM(LanguageModel):
    """A text from a text: the encoder reads one, the decoder writes the other."""

    writes = True

    name = "seq2seq-lm"
    families = (ENCODER_DECODER,)
    output_class = Seq2SeqLMOutput
    auto_class = "AutoModelForSeq2SeqLM"

    def complete_inputs(
        self, record: TaskRecord, inputs: dict[str, Any], targets: Mapping[str, Tensor], config: PreTrainedConfig
    ) -> dict[str, Any]:
        """The decoder reads what it is to write, one token later."""
        if inputs.get("decoder_input_ids") is not None:
            return inputs
        if "labels" not in targets:
            raise ValueError(
                f"Task '{record.name}' ({self.name}) got neither labels nor decoder_input_ids, so there is nothing to "
                "score. Pass one of them, or write a text with model.generate(..., task=...)."
            )
        labels = targets["labels"]
        if labels.dim() != 2:
            raise ValueError(
                f"Task '{record.name}' ({self.name}) got labels of shape {tuple(labels.shape)}; expected "
                "(batch, target sequence)."
            )
        return {**inputs, "decoder_input_ids": shift_right(labels, config)}

    def probe_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The decoder reads the same tokens as the encoder."""
        return {**inputs, "decoder_input_ids": inputs["input_ids"]}

    def collator(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable | None:
        """Pads texts, and labels to a length of their own."""
        return None if tokenizer is None else DataCollatorForSeq2Seq(tokenizer)
