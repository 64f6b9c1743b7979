"""Multiple choice in a recipe: a text, and choices to go with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from ...configuration import TaskRecord
from ..recipe import RecipeError, TaskRecipe
from .asking import Asker, Query, Unanswerable
from .base import RecipeKind
from .labels import is_list
from .preparation import TEXT_TYPES, Preparation, encode_texts
from .settings import Settings, setting


@dataclass(frozen=True)
class ChoiceSettings(Settings):
    """Settings of multiple choice.

    Attributes:
        choice_marks: what stands before each choice, if one column holds all of them as one text.
    """

    choice_marks: Sequence[str] | None = setting(
        None,
        list,
        lambda value: len(value) > 1 and all(isinstance(mark, str) and mark for mark in value),
        "a list of two or more texts that stand before the choices, such as ['A:', 'B:']",
    )


# -- one of several texts ---------------------------------------------------------------------------------------------


class Choices(Preparation):
    """A text, perhaps with a question, and choices to go with it; the label says which one is right.

    The choices are a list in one column, or the texts of several columns, or one text in which `choice_marks` tell
    where each begins. The label is the number of the right one, or its name, if `labels:` names them.
    """

    texts = ("text", "question")

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """As many choices in each row, at least two, and a label that is the number of one."""
        marks = self.task.settings.choice_marks
        self.recorded["choice_marks"] = marks
        self.names = self.task.labels or [mark.strip(" .:()[]") for mark in marks or []]
        n_choices = None
        for split, data in splits.items():
            self._check_choice_columns(split, data)
            labels = self.column(data, "label")
            for row, choices in enumerate(self._choices(split, data)):
                n_choices = n_choices or len(choices)
                if len(choices) < 2 or len(choices) != n_choices or not all(isinstance(c, str) for c in choices):
                    self.fail(
                        split,
                        row,
                        f"has the choices {choices!r}; expected {max(n_choices, 2)} texts, as in the first row.",
                    )
                self._number(split, row, labels[row], n_choices)

    def _check_choice_columns(self, split: str, data: datasets.Dataset) -> None:
        for column in self.columns("choices"):
            feature: Any = data.features[column]
            inner = feature.feature if is_list(feature) else feature
            if getattr(inner, "dtype", None) not in TEXT_TYPES or (is_list(feature) and self._several()):
                raise RecipeError(
                    f"Task '{self.task.name}': the column '{column}' of the {split} split holds {feature}, expected "
                    f"{'texts' if self._several() else 'lists of texts'}, the choices."
                )
            if not is_list(feature) and not self._several() and self.task.settings.choice_marks is None:
                raise RecipeError(
                    f"Task '{self.task.name}': the column '{column}' of the {split} split holds texts, expected lists "
                    "of choices. Give the columns of the choices with `columns: {choices: [NAME, NAME]}`; or, if a "
                    "text holds them all, what stands before each, with `choice_marks: ['A:', 'B:']`."
                )

    def _several(self) -> bool:
        return isinstance(self.task.columns["choices"], list)

    def _choices(self, split: str, data: datasets.Dataset) -> Iterator[list[Any]]:
        """The choices of each row."""
        if self._several():
            yield from map(list, zip(*(data[column][:] for column in self.columns("choices")), strict=True))
            return
        for row, value in enumerate(self.column(data, "choices")):
            if not isinstance(value, str):
                yield value
                continue
            found = split_choices(value, self.recorded["choice_marks"])
            if found is None:
                marks = self.recorded["choice_marks"]
                self.fail(split, row, f"has the choices {value!r}, in which not all of {marks} follow each other.")
            yield found

    def _number(self, split: str, row: int, label: Any, n_choices: int) -> int:
        """The number of the right choice."""
        if isinstance(label, str) and label in self.names:
            label = self.names.index(label)
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < n_choices:
            hint = f"one of {self.names}, or " if self.names else ""
            more = "" if self.names else " Name the choices with `labels: [A, B]` if the labels are names."
            self.fail(
                split,
                row,
                f"has the label {label!r} for {n_choices} choices; expected {hint}a number from 0 to "
                f"{n_choices - 1}.{more}",
            )
        return label

    def corpus(self, data: datasets.Dataset) -> Iterator[str]:
        """Texts, questions and choices."""
        yield from super().corpus(data)
        for choices in self._choices("", data):
            yield from choices

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Token ids and masks of the text with each choice, and `labels`."""
        texts, questions = self.column(data, "text"), None
        if "question" in self.task.columns:
            questions = self.column(data, "question")
            texts = [f"{text} {question}".strip() for text, question in zip(texts, questions, strict=True)]
        choices = list(self._choices(split, data))
        labels = self.column(data, "label")
        numbers = [self._number(split, row, labels[row], len(choices[row])) for row in range(len(data))]
        tokens = encode_choices(tokenizer, texts, choices, self.max_length)
        return datasets.Dataset.from_dict({**tokens, "labels": numbers})


def split_choices(text: str, marks: Sequence[str]) -> list[str] | None:
    """The choices in a text like `A: yes B: no`, without their marks; `None` if not all marks are there, in order."""
    places, start = [], 0
    for mark in marks:
        start = text.find(mark, start)
        if start < 0:
            return None
        places.append((start, start + len(mark)))
        start += len(mark)
    ends = [begin for begin, _ in places[1:]] + [len(text)]
    return [text[begin:end].strip() for (_, begin), end in zip(places, ends, strict=True)]


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], choices: Sequence[Sequence[str]], max_length: int
) -> dict[str, list[Any]]:
    """Token ids and masks, a list for each choice: the text, and the choice as its pair."""
    flat = [text for text, some in zip(texts, choices, strict=True) for _ in some]
    tokens = encode_texts(tokenizer, flat, [choice for some in choices for choice in some], max_length)
    ends = np.cumsum([len(some) for some in choices])
    return {
        name: [values[end - len(some) : end] for end, some in zip(ends.tolist(), choices, strict=True)]
        for name, values in tokens.items()
    }


# -- the kind ---------------------------------------------------------------------------------------------------------


class MultipleChoiceRecipe(RecipeKind):
    """One of several texts."""

    name = "multiple-choice"
    columns = {"text": "text", "question": None, "choices": "choices", "label": "label"}
    metrics = ("accuracy",)
    preparation = Choices
    settings = ChoiceSettings
    has_labels = True
    listed = ("choices",)
    chooses = True

    def options(self, task: TaskRecipe, pooling: str | None) -> dict[str, Any]:
        """How the sequence is read."""
        return {} if pooling is None else {"pooling": pooling}

    def check_query(self, asker: Asker, record: TaskRecord, query: Query) -> None:
        """There are choices, two at least."""
        super().check_query(asker, record, query)
        if len(choices_of(record, query) or ()) < 2:
            marks = record.preparation.get("choice_marks")
            hint = f", or a text_pair with {marks} in it" if marks else ""
            raise Unanswerable(f"'{record.name}' chooses among texts, and there are none. Give choices{hint}.")

    def answer(self, asker: Asker, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`choice`, its number `index`, its `score`, and all `scores`."""
        found = []
        for query in queries:  # each may have another number of choices
            choices = list(choices_of(record, query) or ())
            rows = encode_choices(asker.tokenizer, [query.text], [choices], asker.length_of(record))
            logits = asker.model(**asker.nested(rows), task=record.exact_name).logits[0].float().cpu()
            scores = logits.softmax(-1).tolist()
            best = scores.index(max(scores))
            found.append({"choice": choices[best], "index": best, "score": scores[best], "scores": scores})
        return found


def choices_of(record: TaskRecord, query: Query) -> Sequence[str] | None:
    """The choices of a query: its own, or those in its second text, told apart by the task's marks."""
    marks = record.preparation.get("choice_marks")
    if query.choices is None and query.text_pair is not None and marks:
        return split_choices(query.text_pair, marks)
    return query.choices
