"""Token classification in a recipe: lists of words with a tag for each, and entities found in texts."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...configuration import TaskRecord
from ...kinds.base import IGNORED
from ...kinds.metrics import entities
from ..recipe import RecipeError
from .asking import Asker, Query
from .base import RecipeKind
from .labels import encoded, is_list, label_order, names_of, unknown_label
from .preparation import TEXT_TYPES, TRAIN, Preparation, encode_texts

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
        found = [names[tag] for tag in sorted(tags[TRAIN], key=label_order)]
        self.labels = list(self.task.labels or getattr(feature, "names", None) or tag_scheme(found))
        if len(self.labels) < 2:
            raise RecipeError(
                f"Task '{self.task.name}': all tags of the train split are {self.labels}, which leaves nothing to "
                "tell apart."
            )
        places = {name: number for number, name in enumerate(self.labels)}
        for split, data in splits.items():
            wrong = {tag for tag in tags[split] if names[tag] not in places}
            for row, listed in enumerate(self.column(data, "tags") if wrong else []):
                for tag in listed:
                    if tag in wrong:
                        raise unknown_label(self.task, split, row, names[tag], self.labels)
        self.numbers = {tag: places[name] for tag, name in names.items()}

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


# -- the kind ---------------------------------------------------------------------------------------------------------


class TokenClassificationRecipe(RecipeKind):
    """A label for each word."""

    name = "token-classification"
    columns = {"tokens": "tokens", "tags": "tags"}
    metrics = ("f1", "precision", "recall", "accuracy")
    preparation = WordTags
    has_labels = True
    reads_pairs = False

    def answer(self, asker: Asker, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """Entities with their places in the text; or tags of words, if they mark no entities."""
        texts = [query.text for query in queries]
        batch = asker.batch(texts, None, asker.length_of(record), return_offsets_mapping=True)
        offsets = batch.pop("offset_mapping").tolist()
        scores = asker.model(**batch, task=record.exact_name).logits.float().softmax(-1).cpu()
        found = []
        for query, places, row in zip(queries, offsets, scores, strict=True):
            spans = word_spans(query.tokens) if query.tokens is not None else find_words(query.text)
            firsts = {word: t for t, word in enumerate(words_of_tokens(query.text, places, spans)) if word is not None}
            words = [(spans[word], row[token]) for word, token in firsts.items()]
            found.append(word_answer(record, query.text, words))
        return found


# Punctuation before and after a word is a word of its own, but for what begins a name or a tag on the internet.
_WORD = re.compile(r"[@#]?\w(?:\S*\w)?|[^\w\s]")


def find_words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end; marks around a word are words of their own, marks in it are not."""
    return [match.span() for match in _WORD.finditer(text)]


def word_answer(record: TaskRecord, text: str, words: list[tuple[tuple[int, int], Tensor]]) -> dict[str, Any]:
    """The answer to one text.

    Args:
        record: the task.
        text: the text.
        words: place of each word, and the probabilities of its labels, `(labels,)`.

    Returns:
        `entities`, each with its `entity` (the type), `text`, `start`, `end` and `score`, the mean probability of its
        words' tags; or, if the labels mark no entities, `words` with `text`, `start`, `end`, `label` and `score`.
    """
    best = [int(scores.argmax()) for _, scores in words]
    sure = [float(scores[index]) for (_, scores), index in zip(words, best, strict=True)]
    tags = [record.labels[index] for index in best]
    if not all(label == "O" or label[:2] in ("B-", "I-") for label in record.labels):
        found = [
            {"text": text[start:end], "start": start, "end": end, "label": tag, "score": score}
            for ((start, end), _), tag, score in zip(words, tags, sure, strict=True)
        ]
        return {"words": found}
    named = []
    for kind, first, last in sorted(entities(tags), key=lambda entity: entity[1]):
        start, end = words[first][0][0], words[last][0][1]
        score = sum(sure[first : last + 1]) / (last + 1 - first)
        named.append({"entity": kind, "text": text[start:end], "start": start, "end": end, "score": score})
    return {"entities": named}
