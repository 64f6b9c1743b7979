"""How rows of a data set become what a model takes: their columns, their labels, their tokens.

A `Preparation` belongs to one task of a recipe. It first reads all splits, which checks every row and finds the
labels, and then encodes each of them with the tokenizer. There is a class for each kind of task, beside its
`RecipeKind`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import datasets
from transformers import PreTrainedTokenizerBase

from ..recipe import RecipeError, TaskRecipe

TRAIN = "train"
TEXT_TYPES = ("string", "large_string")
MIXED = getattr(
    datasets, "Json", ()
)  # what JSON lines become whose values are of several types; datasets 4 refuses them


class Preparation:
    """The data of one task, of one kind. Invariant: after `read`, every row of every split can be encoded.

    A kind's own class must have `encode`; it may have `check_rows`, `check_tokenizer`, `corpus` and `texts_to_route`.

    Args:
        task: the task.
        max_length: its longest sequence, in tokens.
        seed: of what is drawn at random.

    Attributes:
        texts: the parts of a row that are texts.
        labels: names of the labels in the order of the logits; empty for kinds without; known after `read`.
        recorded: what whoever answers with the task has to know of its texts, as JSON-ready values; complete after
            `read`.
        bare: by split, the encoded texts as a router is asked about them, where the model learns them in other words.
    """

    texts: tuple[str, ...] = ("text",)

    def __init__(self, task: TaskRecipe, max_length: int, seed: int) -> None:
        self.task, self.max_length, self.seed = task, max_length, seed
        self.labels: list[str] = []
        self.recorded: dict[str, Any] = {"max_length": max_length}
        self.bare: dict[str, datasets.Dataset] = {}

    # -- for each kind --------------------------------------------------------------------------------------------

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """Find the labels; raise a `RecipeError` at the first row that the task can not have."""

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """A split as the model takes it."""
        raise NotImplementedError

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise a `RecipeError` if a tokenizer lacks what this kind needs."""

    def texts_to_route(self, encoded: datasets.Dataset, split: str) -> datasets.Dataset:
        """One row for each text of an encoded split that a router would be asked about."""
        return self.bare.get(split, encoded)

    # -- for all --------------------------------------------------------------------------------------------------

    def read(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """Check all rows, and find the labels.

        Raises:
            RecipeError: naming split, row and column.
        """
        for name, data in splits.items():
            self._check_columns(name, data)
        for role in self.task.columns:
            for column in self.columns(role):
                self._check_values(splits, column)
        self.check_rows(splits)

    def columns(self, role: str) -> list[str]:
        """Columns that a part of a row is read from; none if the task has no such part."""
        found = self.task.columns.get(role)
        return found if isinstance(found, list) else [] if found is None else [found]

    def column(self, data: datasets.Dataset, role: str) -> list[Any]:
        """A part of every row, from its single column."""
        return data[self.task.columns[role]][:]

    def corpus(self, data: datasets.Dataset) -> Iterator[str]:
        """All texts of a split, to train a tokenizer on."""
        for role in self.texts:
            for column in self.columns(role):
                yield from data[column]

    def _check_columns(self, split: str, data: datasets.Dataset) -> None:
        task = self.task
        for role in task.columns:
            for column in self.columns(role):
                if column not in data.column_names:
                    raise RecipeError(
                        f"Task '{task.name}': the {split} split has no column '{column}'; it has {data.column_names}. "
                        f"Say which one is the {role}, with `columns: {{{role}: NAME}}`."
                    )
                feature = data.features[column]
                dtype = getattr(feature, "dtype", "lists")
                if role in self.texts and dtype not in TEXT_TYPES and not isinstance(feature, MIXED):
                    raise RecipeError(
                        f"Task '{task.name}': the column '{column}' of the {split} split holds {dtype}, expected "
                        "texts."
                    )
                missing = data.data.column(column).null_count
                if missing:
                    raise RecipeError(
                        f"Task '{task.name}': {missing} rows of the {split} split have no '{column}'. Remove them."
                    )

    def _check_values(self, splits: Mapping[str, datasets.Dataset], column: str) -> None:
        """All values of a column can be read, and are of one type."""
        first: tuple[str, int, Any] | None = None
        for split, data in splits.items():
            try:
                data.data.column(column).validate(full=True)
            except ValueError as error:  # JSON lines are not decoded before they are asked for
                raise RecipeError(
                    f"Task '{self.task.name}': the column '{column}' of the {split} split can not be read ({error}). "
                    "Save the file in UTF-8."
                ) from error
            feature = data.features[column]
            if not any(isinstance(part, MIXED) for part in (feature, getattr(feature, "feature", None))):
                continue
            for row, value in enumerate(data[column]):
                first = first or (split, row, value)
                if _type_of(value) != _type_of(first[2]):
                    self.fail(
                        split,
                        row,
                        f"has {value!r} ({_type_of(value)}) in the column '{column}', where row {first[1]} of the "
                        f"{first[0]} split has {first[2]!r} ({_type_of(first[2])}). Write all alike.",
                    )

    def fail(self, split: str, row: int, message: str) -> NoReturn:
        """Raise the error of one row."""
        raise RecipeError(f"Task '{self.task.name}': row {row} of the {split} split {message}")

    def needs_offsets(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise a `RecipeError` if a tokenizer does not know where in a text its tokens are."""
        if not tokenizer.is_fast:
            raise RecipeError(
                f"Task '{self.task.name}' ({self.task.type}) needs to know where in a text each token is, which "
                f"{type(tokenizer).__name__} can not tell. Use a backbone with a fast tokenizer (tokenizer.json)."
            )

    def need_two_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """Raise a `RecipeError` if a correlation can not be computed."""
        for split, data in splits.items():
            if len(data) < 2:
                raise RecipeError(
                    f"Task '{self.task.name}': the {split} split has one row, and a correlation needs two. Give more."
                )


def _type_of(value: Any) -> str:
    """What a value is, and what is in it if it is a list."""
    if isinstance(value, list):
        return f"list of {' and '.join(sorted({_type_of(inner) for inner in value}))}"
    return type(value).__name__


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, max_length: int, **kwargs: Any
) -> Any:
    """Token ids and masks of texts, or of pairs, cut to `max_length` tokens."""
    return tokenizer(texts, pairs, truncation=True, max_length=max_length, **kwargs)
