"""What is asked of a task, and what every kind of task needs to answer it: a model, a tokenizer, batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...configuration import TaskRecord
from ...model.model import EideticModel

ASKED_AT_ONCE = 32
TOP_K, MAX_NEW_TOKENS = 5, 64
MASK = "[MASK]"  # stands for a gap, whatever the tokenizer calls it


class Unanswerable(ValueError):
    """A task can not answer what it was asked: something is missing, or too long."""


@dataclass(frozen=True)
class Query:
    """What is asked.

    Attributes:
        text: the text, or the question, or the prompt.
        text_pair: the second text, or the context of a question.
        choices: texts to choose from.
        tokens: the words of the text, if it is known to have some.
    """

    text: str
    text_pair: str | None = None
    choices: tuple[str, ...] | None = None
    tokens: tuple[str, ...] | None = None

    def given(self) -> dict[str, Any]:
        """What was asked, as JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}


@dataclass(frozen=True)
class Asker:
    """A model and its tokenizer, and how texts become its batches and tokens become texts.

    Attributes:
        model: the model, in evaluation mode on its device.
        tokenizer: its tokenizer.
        top_k: how many tokens are named for each gap of a masked text.
        max_new_tokens: how many tokens a text is continued by, at most.
    """

    model: EideticModel
    tokenizer: PreTrainedTokenizerBase
    top_k: int = TOP_K
    max_new_tokens: int = MAX_NEW_TOKENS

    def length_of(self, record: TaskRecord) -> int:
        """Longest sequence of a task, in tokens: as its recipe said, else as the tokenizer does."""
        return record.preparation.get("max_length", self.tokenizer.model_max_length)

    def context(self) -> int:
        """Tokens that the backbone reads."""
        return getattr(self.model.backbone.config, "max_position_embeddings", None) or self.tokenizer.model_max_length

    def with_mask(self, text: str) -> str:
        """A text with the tokenizer's own token for gaps."""
        mask = self.tokenizer.mask_token
        return text if mask is None or MASK not in text else text.replace(MASK, mask)

    def batch(self, texts: list[str], pairs: list[Any] | None, max_length: int, **kwargs: Any) -> dict[str, Any]:
        """Texts, or pairs, cut to `max_length` tokens, as a batch `(texts, sequence)` on the model's device."""
        encoding = self.tokenizer(
            texts, pairs, truncation=True, max_length=max_length, padding=True, return_tensors="pt", **kwargs
        )
        return dict(encoding.to(self.model.device))

    def batch_of(self, record: TaskRecord, queries: Sequence[Query]) -> dict[str, Any]:
        """Queries that are all pairs, or all single texts, as a batch `(queries, sequence)` of a task."""
        pairs = None if queries[0].text_pair is None else [query.text_pair for query in queries]
        return self.batch([query.text for query in queries], pairs, self.length_of(record))

    def nested(self, rows: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """A batch of the choices of several queries, `(queries, choices, sequence)`.

        Args:
            rows: for each input the choices of each query, as many of each.
        """
        n_choices = len(rows["input_ids"][0])
        flat = [
            {name: values[row][choice] for name, values in rows.items()}
            for row in range(len(rows["input_ids"]))
            for choice in range(n_choices)
        ]
        padded = self.tokenizer.pad(flat, return_tensors="pt").to(self.model.device)
        return {name: value.unflatten(0, (-1, n_choices)) for name, value in padded.items()}

    def generate(self, record: TaskRecord, batch: Mapping[str, Any]) -> Tensor:
        """Tokens that a task writes, each the likeliest, `(batch, sequence)`."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        return cast(Tensor, self.model.generate(**inputs, task=record.exact_name, **options))

    def decode(self, ids: Tensor) -> list[str]:
        """Tokens `(texts, sequence)` as texts, without special ones."""
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)


def alike(queries: Sequence[Query]) -> Iterator[list[Query]]:
    """Runs of pairs and of single texts: only these make a batch."""
    run: list[Query] = []
    for query in queries:
        if run and (query.text_pair is None) != (run[0].text_pair is None):
            yield run
            run = []
        run.append(query)
    if run:
        yield run
