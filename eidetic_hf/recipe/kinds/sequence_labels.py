"""Data of sequence classification: texts or pairs with one label, several, or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from .base import Preparation, encode_texts
from .labels import encoded, is_number, label_numbers

# -- a label for a text -----------------------------------------------------------------------------------------------


class TextLabels(Preparation):
    """Texts or pairs with one label, several, or numbers."""

    texts = ("text", "text_pair")

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """All labels are among the task's."""
        if self.task.problem_type == "regression":
            self.labels = self.task.labels or ["score"]
            self.need_two_rows(splits)
            self._check_numbers(splits)
        else:
            self.labels, self.numbers = label_numbers(self.task, splits)

    def _check_numbers(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """Regression targets are numbers: one, or a list of as many as there are names of targets."""
        for split, data in splits.items():
            for row, value in enumerate(self.column(data, "label")):
                values = value if isinstance(value, list) else [value]
                if len(values) != len(self.labels) or not all(is_number(v) for v in values):
                    self.fail(
                        split,
                        row,
                        f"has the label {value!r}; regression expects {len(self.labels)} finite number(s), for "
                        f"{self.labels}. Name several targets with `labels: [...]`.",
                    )

    def _encode_label(self, value: Any) -> Any:
        if self.task.problem_type == "regression":
            return value
        if self.task.problem_type == "multi_label_classification":
            chosen = {self.numbers[name] for name in value}
            return [float(index in chosen) for index in range(len(self.labels))]
        return self.numbers[value]

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Token ids, masks and `labels`."""
        columns = self.task.columns

        def prepare(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            pairs = batch[columns["text_pair"]] if "text_pair" in columns else None
            tokens = encode_texts(tokenizer, batch[columns["text"]], pairs, self.max_length)
            return {**tokens, "labels": [self._encode_label(value) for value in batch[columns["label"]]]}

        return encoded(data, prepare)
