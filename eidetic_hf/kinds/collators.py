"""Batches for kinds of task that transformers has no collator for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
)

from .base import IGNORED

LABELS = ("labels", "label", "label_ids")
PAIR = "pair_"  # before the names of what belongs to the other text of a pair
MASKING_TRIALS = 100  # until a batch of few tokens has a mask


def _without_labels(features: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    name = next((name for name in LABELS if name in features[0]), None)
    rest = [{key: value for key, value in feature.items() if key != name} for feature in features]
    return rest, None if name is None else [feature[name] for feature in features]


@dataclass
class TextCollator:
    """Pads texts to be continued. Every real token is to be written, unless `labels` say which ones are.

    transformers' collator for language models takes a padding token for no target wherever it stands, and so drops
    the end-of-text token of tokenizers that pad with it (GPT-2's); and it overwrites labels that are there, such as
    those of an answer without its prompt.

    Attributes:
        tokenizer: pads.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows to a batch of `input_ids`, `attention_mask` and `labels`, all `(batch, sequence)`."""
        rest, labels = _without_labels(features)
        batch = dict(self.tokenizer.pad(rest, return_tensors="pt"))
        if labels is None:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
            return batch
        length = batch["input_ids"].shape[1]
        padded = torch.full((len(labels), length), IGNORED)
        for row, values in enumerate(labels):
            tokens = len(rest[row]["input_ids"])
            if len(values) != tokens:
                raise ValueError(
                    f"row {row} of a batch has {len(values)} labels for {tokens} tokens; expected a label for each "
                    f"token, {IGNORED} for those that are not to be written."
                )
            place = (
                slice(0, len(values)) if self.tokenizer.padding_side == "right" else slice(length - len(values), None)
            )
            padded[row, place] = torch.as_tensor(values)
        return {**batch, "labels": padded}


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


@dataclass
class PairCollator:
    """Pads pairs of texts, `input_ids` and `pair_input_ids` each to a length of its own; labels are numbers.

    Attributes:
        tokenizer: pads; without it, rows have to be of one length.
    """

    tokenizer: PreTrainedTokenizerBase | None = None

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows to a batch, `(batch, sequence)` and `(batch, pair sequence)`; `labels` are float, `(batch,)`."""
        rest, labels = _without_labels(features)
        batch: dict[str, Tensor] = {}
        for prefix in ("", PAIR):
            side = [
                {key.removeprefix(PAIR): value for key, value in row.items() if key.startswith(PAIR) == bool(prefix)}
                for row in rest
            ]
            if not side[0]:
                continue
            if self.tokenizer is not None:
                padded = dict(self.tokenizer.pad(side, return_tensors="pt"))
            else:
                padded = {key: torch.tensor([row[key] for row in side]) for key in side[0]}
            batch.update({prefix + key: value for key, value in padded.items()})
        if labels is not None:
            batch["labels"] = torch.tensor(labels, dtype=torch.float32)
        return batch
