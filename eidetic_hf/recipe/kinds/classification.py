"""Data of tasks that choose: a label for a text, a label for each word, one of several texts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from ...kinds.base import IGNORED
from ..recipe import RecipeError, TaskRecipe
from .base import TEXT_TYPES, TRAIN, Preparation, encode_texts

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


def encoded(data: datasets.Dataset, prepare: Any) -> datasets.Dataset:
    """A split with its columns replaced, batch by batch. Not from a cache, which knows no version of this package."""
    return data.map(prepare, batched=True, remove_columns=data.column_names, load_from_cache_file=False)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return type(value) in (int, float) and bool(np.isfinite(value))


def _label_order(value: Any) -> tuple[bool, float, str]:
    """Sorts numbers before texts, and by size: 10 comes after 9."""
    is_number = isinstance(value, (int, float))
    return not is_number, float(value) if is_number else 0.0, str(value)


def label_numbers(task: TaskRecipe, splits: Mapping[str, datasets.Dataset]) -> tuple[list[str], dict[Any, int]]:
    """Names of the labels in the order of the logits, and the number of each value of the label column.

    Whole numbers are the names of a `ClassLabel` feature, else names if the recipe lists them as such, else positions
    in the recipe's list.
    """
    column, many = task.columns["label"], task.problem_type == "multi_label_classification"
    feature: Any = splits[TRAIN].features[column]
    if many != is_list(feature):
        expected = "lists of label names" if many else "one label a row"
        raise RecipeError(
            f"Task '{task.name}' ({task.problem_type}): the column '{column}' holds {feature}, expected {expected}."
        )
    feature = feature.feature if many else feature
    values: dict[str, list[Any]] = {}
    for split, data in splits.items():
        found = {label for row in data[column] for label in row} if many else set(data.unique(column))
        values[split] = sorted(found, key=_label_order)
    names = names_of({value for found in values.values() for value in found}, feature, task.labels)
    labels = task.labels or getattr(feature, "names", None) or [names[value] for value in values[TRAIN]]
    for split, listed in values.items():
        wrong = [value for value in listed if names[value] not in labels]
        if wrong:
            row = next(i for i, v in enumerate(splits[split][column]) if wrong[0] in (v if many else [v]))
            raise unknown_label(task, split, row, names[wrong[0]], labels)
    return list(labels), {value: labels.index(name) for value, name in names.items()}


def is_list(feature: Any) -> bool:
    """Whether a column holds lists."""
    return isinstance(feature, (datasets.List, datasets.LargeList))


def names_of(values: set[Any], feature: Any, labels: Sequence[str] | None) -> dict[Any, str]:
    """The name of each value of a label column, see `label_numbers`."""
    if isinstance(feature, datasets.ClassLabel):
        known = range(len(feature.names))
        return {value: feature.int2str(value) if value in known else str(value) for value in values}
    names = {value: str(value) for value in values}
    if labels and not set(names.values()) <= set(labels):
        places = range(len(labels))
        if all(type(value) is int and value in places for value in values):
            return {value: labels[value] for value in values}
    return names


def unknown_label(task: TaskRecipe, split: str, row: int, name: str, labels: Sequence[str]) -> RecipeError:
    """The error of a label that is not among a task's."""
    return RecipeError(
        f"Task '{task.name}': row {row} of the {split} split has the label {name!r}, which is not among its labels "
        f"{list(labels)}. Add it to `labels:`, correct the data, or name a labelled split with `splits:`."
    )


# -- a label for each word --------------------------------------------------------------------------------------------


class WordTags(Preparation):
    """Lists of words, with a tag for each: names such as `B-person`, or numbers of a `ClassLabel`.

    The words are joined by blanks, and the first sub-token of each gets its tag.
    """

    texts = ()

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """As many tags as words in each row, and all of them among the task's."""
        for split, data in splits.items():
            self._check_lists(split, data)
        feature: Any = splits[TRAIN].features[self.task.columns["tags"]].feature
        tags = {split: {tag for row in self.column(data, "tags") for tag in row} for split, data in splits.items()}
        names = names_of(set().union(*tags.values()), feature, self.task.labels)
        found = [names[tag] for tag in sorted(tags[TRAIN], key=_label_order)]
        self.labels = list(self.task.labels or getattr(feature, "names", None) or tag_scheme(found))
        if len(self.labels) < 2:
            raise RecipeError(
                f"Task '{self.task.name}': all tags of the train split are {self.labels}, which leaves nothing to "
                "tell apart."
            )
        for split, data in splits.items():
            wrong = {tag for tag in tags[split] if names[tag] not in self.labels}
            for row, listed in enumerate(self.column(data, "tags") if wrong else []):
                for tag in listed:
                    if tag in wrong:
                        raise unknown_label(self.task, split, row, names[tag], self.labels)
        self.numbers = {tag: self.labels.index(name) for tag, name in names.items()}

    def _check_lists(self, split: str, data: datasets.Dataset) -> None:
        for role, what in (("tokens", "words"), ("tags", "tags")):
            column = self.task.columns[role]
            feature: Any = data.features[column]
            inner = getattr(getattr(feature, "feature", None), "dtype", None)
            if not is_list(feature) or (role == "tokens" and inner not in TEXT_TYPES):
                raise RecipeError(
                    f"Task '{self.task.name}': the column '{column}' of the {split} split holds {feature}, expected "
                    f"lists of {what}, one for each word. Split texts into words first."
                )
        rows = zip(self.column(data, "tokens"), self.column(data, "tags"), strict=True)
        for row, (words, tags) in enumerate(rows):
            if len(words) != len(tags):
                self.fail(split, row, f"has {len(tags)} tags for {len(words)} words. Every word needs one.")
            if not words or any(word is None or not word.strip() for word in words):
                self.fail(split, row, f"has no words, or empty ones: {words}. Remove them with their tags.")
            if None in tags:
                self.fail(split, row, "has a word without a tag.")

    def corpus(self, data: datasets.Dataset) -> Iterator[str]:
        """The words of each row as one text."""
        return (" ".join(words) for words in self.column(data, "tokens"))

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """It knows where its tokens are."""
        self.needs_offsets(tokenizer)

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Token ids, masks and `labels`, one for each token."""
        columns = self.task.columns

        def prepare(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            rows = batch[columns["tokens"]]
            texts = [" ".join(words) for words in rows]
            tokens = encode_texts(tokenizer, texts, None, self.max_length, return_offsets_mapping=True)
            labels = []
            for text, words, tags, offsets in zip(
                texts, rows, batch[columns["tags"]], tokens.pop("offset_mapping"), strict=True
            ):
                places = words_of_tokens(text, offsets, word_spans(words))
                labels.append([IGNORED if word is None else self.numbers[tags[word]] for word in places])
            return {**tokens, "labels": labels}

        return encoded(data, prepare)


def tag_scheme(tags: Sequence[str]) -> list[str]:
    """The tags in the order of the logits: if they mark entities, `O` first, then `B-` and `I-` of each type.

    Both are there even if only one was found: an entity of several words may come with the next data.
    """
    if not all(tag == "O" or tag[:2] in ("B-", "I-") for tag in tags):
        return list(tags)
    kinds = sorted({tag[2:] for tag in tags if tag != "O"})
    return ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]


def word_spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Where words begin and end in the text that they make when they are joined by blanks."""
    spans, start = [], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return spans


def words_of_tokens(text: str, offsets: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> list[int | None]:
    """For each token the number of the word that it is the first token of; `None` for all other tokens.

    Args:
        text: what the tokens are of.
        offsets: beginning and end of each token in it.
        spans: beginning and end of each word in it, in order.
    """
    starts, before = [start for start, _ in spans], -1
    found: list[int | None] = []
    for start, end in offsets:
        while start < end and text[start].isspace():  # some tokenizers count the blank before a word as its own
            start += 1
        word = bisect_right(starts, start) - 1
        if start < end and word > before and start < spans[word][1]:
            found.append(word)
            before = word
        else:
            found.append(None)
    return found


# -- one of several texts ---------------------------------------------------------------------------------------------


class Choices(Preparation):
    """A text, perhaps with a question, and choices to go with it; the label says which one is right.

    The choices are a list in one column, or the texts of several columns, or one text in which `choice_marks` tell
    where each begins. The label is the number of the right one, or its name, if `labels:` names them.
    """

    texts = ("text", "question")

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """As many choices in each row, at least two, and a label that is the number of one."""
        marks = self.task.setting("choice_marks")
        self.settings["choice_marks"] = marks
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
            if not is_list(feature) and not self._several() and self.task.choice_marks is None:
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
            found = split_choices(value, self.settings["choice_marks"])
            if found is None:
                marks = self.settings["choice_marks"]
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
