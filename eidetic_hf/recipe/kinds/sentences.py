"""Data of sentence embeddings: pairs of texts that belong together, or that say how much they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from .base import Preparation, encode_texts
from .labels import encoded, is_number


class Pairs(Preparation):
    """Pairs of texts, perhaps with a score, which `max_score` divides."""

    texts = ("text", "text_pair")

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """Scores are numbers, none larger than the largest."""
        if "score" not in self.task.columns:
            return
        largest = self.task.setting("max_score")
        self.need_two_rows(splits)
        for split, data in splits.items():
            for row, score in enumerate(self.column(data, "score")):
                if not is_number(score) or abs(score) > largest:
                    self.fail(
                        split,
                        row,
                        f"has the score {score!r}; expected a number from {-largest:g} to {largest:g}. "
                        "Say what texts that mean the same have, with `max_score:`.",
                    )

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Token ids and masks of both texts, those of the second as `pair_...`; and `labels`, from -1 to 1."""
        columns, largest = self.task.columns, self.task.setting("max_score")

        def prepare(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            rows = dict(encode_texts(tokenizer, batch[columns["text"]], None, self.max_length))
            other = encode_texts(tokenizer, batch[columns["text_pair"]], None, self.max_length)
            rows.update((f"pair_{name}", values) for name, values in other.items())
            if "score" in columns:
                rows["labels"] = [score / largest for score in batch[columns["score"]]]
            return rows

        return encoded(data, prepare)
