"""What a model answers to texts, as JSON-ready values: each text by its task, named or chosen by the router.

Texts are prepared as those that a task was learned from, as far as its recipe said how (`TaskRecord.preparation`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..configuration import TaskRecord
from ..kinds.metrics import entities
from ..model.model import EideticModel
from .kinds.choices import encode_choices, split_choices
from .kinds.language import PROMPT, encode_prompts, fill_template
from .kinds.questions import QuestionTooLong, find_answers, make_windows
from .kinds.token_tags import word_spans, words_of_tokens

PREDICT_BATCH = 32
TOP_K, MAX_NEW_TOKENS, MAX_ANSWER_LENGTH = 5, 64, 30
SINGLE_TEXTS = ("token-classification", "causal-lm", "seq2seq-lm", "masked-lm")  # kinds whose tasks read no pairs
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


# What a JSON line may call the parts of a query.
_TEXT_KEYS = ("text", "question", "prompt", "source")
_PAIR_KEYS = ("text_pair", "context")


def read_query(line: str, number: int) -> Query:
    """A query from a line of JSON: `{"text", "text_pair"}`, `{"question", "context"}`, `{"text", "choices"}`, ...

    Args:
        line: the line; other keys than those are ignored.
        number: of the line, for errors.

    Raises:
        ValueError: if the line is no JSON object, has no text, or something in it is none.
    """
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"Line {number} is no JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"Line {number} is {values!r}, expected a JSON object such as {{'text': ...}}.")
    tokens, choices = (values.get(key) for key in ("tokens", "choices"))
    for key, listed in (("tokens", tokens), ("choices", choices)):
        if listed is not None and not (
            isinstance(listed, list) and listed and all(isinstance(t, str) for t in listed)
        ):
            raise ValueError(f"Line {number} has {key!r} {listed!r}, expected a list of texts.")
    parts = [str(values[key]) for key in _TEXT_KEYS if isinstance(values.get(key), str)]
    pair = next((values[key] for key in _PAIR_KEYS if isinstance(values.get(key), str)), None)
    if tokens is not None:
        parts = [" ".join(tokens)]
    if choices is not None and "context" in values and pair is not None:  # what the question is about comes first
        parts, pair = [pair, *parts], None
    if not parts:
        raise ValueError(
            f"Line {number} has the keys {list(values)}; expected one of {list(_TEXT_KEYS)} with a text, or 'tokens'."
        )
    return Query(
        " ".join(parts), pair, tuple(choices) if choices is not None else None, tuple(tokens) if tokens else None
    )


@dataclass(frozen=True)
class Predictor:
    """Answers queries with one model.

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

    def answers(
        self, queries: Sequence[Query], task: str | None = None, abstain: bool | float = False
    ) -> Iterator[dict[str, Any]]:
        """What the model answers, in order.

        Args:
            queries: what is asked.
            task: the task of all; `None` lets the router choose one for each, among all tasks of whatever kind.
            abstain: as `EideticModel.forward` takes it.

        Yields:
            What was asked, and `task`. If the router chose, the likeliest one of those that can answer: questions
            need a context, choices a task that chooses. Then `task_score`, how likely that task is, and `task_scores`
            of all; with `abstain` also `outlier_score`, and what was turned away has the task `None` and no answer.
            Then the answer, see docs/recipes.md for each kind; or an `error`, if the task can not answer that.
        """
        self.model.eval()
        for start in range(0, len(queries), PREDICT_BATCH):
            some = queries[start : start + PREDICT_BATCH]
            heads = [{**query.given(), "task": task} for query in some]
            if task is None:
                heads = [
                    {**query.given(), **choice} for query, choice in zip(some, self._route(some, abstain), strict=True)
                ]
            found: dict[int, dict[str, Any]] = {}
            for name in dict.fromkeys(head["task"] for head in heads):
                rows = [row for row, head in enumerate(heads) if head["task"] == name]
                if name is not None:
                    found.update(zip(rows, self._answer(name, [some[row] for row in rows]), strict=True))
            for row, head in enumerate(heads):
                yield {**head, **found.get(row, {})}

    # -- which task -----------------------------------------------------------------------------------------------

    def _route(self, queries: Sequence[Query], abstain: bool | float) -> list[dict[str, Any]]:
        """The task of each query, with its scores."""
        found: dict[int, dict[str, Any]] = {}
        for shape in dict.fromkeys(map(_shape, queries)):
            rows = [row for row, query in enumerate(queries) if _shape(query) == shape]
            routed = self.model.route(**self._to_route([queries[row] for row in rows]), abstain=abstain)
            assert routed.tasks is not None and routed.router_scores is not None
            for i, row in enumerate(rows):
                scores = dict(zip(self.model.tasks, routed.router_scores[i].tolist(), strict=True))
                task = routed.tasks[i] and self._likeliest(scores, queries[row])
                score = max(scores.values()) if task is None else scores[task]
                found[row] = {"task": task, "task_score": score, "task_scores": scores}
                if routed.outlier_scores is not None:
                    found[row]["outlier_score"] = routed.outlier_scores[i].item()
        return [found[row] for row in range(len(queries))]

    def _likeliest(self, scores: Mapping[str, float], query: Query) -> str:
        """The likeliest of the tasks that can answer a query; of all, if none can."""
        ranked = sorted(scores, key=lambda name: scores[name], reverse=True)
        for name in ranked:
            try:
                self._check(self.model.record(name), query)
            except Unanswerable:
                continue
            return name
        return ranked[0]

    def _to_route(self, queries: Sequence[Query]) -> dict[str, Any]:
        """Queries of one shape as a batch for the router."""
        longest = self.tokenizer.model_max_length
        texts = [self._with_mask(query.text) for query in queries]
        if queries[0].choices is not None:
            rows = encode_choices(self.tokenizer, texts, [query.choices or () for query in queries], longest)
            return self._nested(rows)
        pairs = None if queries[0].text_pair is None else [query.text_pair for query in queries]
        return self._batch(texts, pairs, longest)

    def _batch(self, texts: list[str], pairs: list[Any] | None, max_length: int, **kwargs: Any) -> dict[str, Any]:
        encoding = self.tokenizer(
            texts, pairs, truncation=True, max_length=max_length, padding=True, return_tensors="pt", **kwargs
        )
        return dict(encoding.to(self.model.device))

    def _nested(self, rows: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """A batch of the choices of several queries, `(batch, choices, sequence)`."""
        n_choices = len(rows["input_ids"][0])
        flat = [
            {name: values[row][choice] for name, values in rows.items()}
            for row in range(len(rows["input_ids"]))
            for choice in range(n_choices)
        ]
        padded = self.tokenizer.pad(flat, return_tensors="pt").to(self.model.device)
        return {name: value.unflatten(0, (-1, n_choices)) for name, value in padded.items()}

    def _with_mask(self, text: str) -> str:
        """A text with the tokenizer's own token for gaps."""
        mask = self.tokenizer.mask_token
        return text if mask is None or MASK not in text else text.replace(MASK, mask)

    # -- the answer -----------------------------------------------------------------------------------------------

    def _answer(self, name: str, queries: Sequence[Query]) -> list[dict[str, Any]]:
        """One task's answers; each query that it can not answer gets an `error`."""
        record = self.model.record(name)
        answer: Callable[[TaskRecord, list[Query]], list[dict[str, Any]]] = getattr(
            self, "_" + record.task_type.replace("-", "_")
        )
        found: dict[int, dict[str, Any]] = {}
        fitting = []
        for row, query in enumerate(queries):
            try:
                self._check(record, query)
                fitting.append(row)
            except Unanswerable as error:
                found[row] = {"error": str(error)}
        if fitting:
            with torch.inference_mode():
                found.update(zip(fitting, answer(record, [queries[row] for row in fitting]), strict=True))
        return [found[row] for row in range(len(queries))]

    def _length(self, record: TaskRecord) -> int:
        return record.preparation.get("max_length", self.tokenizer.model_max_length)

    def _check(self, record: TaskRecord, query: Query) -> None:
        """Raise `Unanswerable` if a task can not answer a query."""
        name, kind = record.name, record.task_type
        if query.choices is not None and kind != "multiple-choice":
            raise Unanswerable(f"'{name}' ({kind}) does not choose among texts. Leave the choices out.")
        if query.text_pair is not None and (kind in SINGLE_TEXTS or query.choices is not None):
            raise Unanswerable(f"'{name}' ({kind}) reads one text, and there are two. Leave the second one out.")
        if kind == "question-answering":
            if query.text_pair is None:
                raise Unanswerable(f"'{name}' finds answers in a context, and there is none. Give it as text_pair.")
            try:
                self._windows(record, [query])
            except QuestionTooLong as error:
                raise Unanswerable(f"The query {error}") from error
        elif kind == "multiple-choice" and len(self._choices(record, query) or ()) < 2:
            marks = record.preparation.get("choice_marks")
            hint = f", or a text_pair with {marks} in it" if marks else ""
            raise Unanswerable(f"'{name}' chooses among texts, and there are none. Give choices{hint}.")
        elif kind == "masked-lm":
            ids = self.tokenizer(self._with_mask(query.text), truncation=True, max_length=self._length(record))
            if self.tokenizer.mask_token_id not in ids["input_ids"]:
                raise Unanswerable(
                    f"'{name}' fills gaps, and there is none within {self._length(record)} tokens. Put {MASK} where "
                    "a word is missing."
                )
        elif kind == "causal-lm":
            length, context = len(self._prompts(record, [query])[0]), self._context()
            if not 0 < length < context:
                raise Unanswerable(f"The prompt has {length} tokens, expected 1 to {context - 1}.")

    def _context(self) -> int:
        return getattr(self.model.backbone.config, "max_position_embeddings", None) or self.tokenizer.model_max_length

    def _sequence_classification(self, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """Label, labels or numbers."""
        found: list[dict[str, Any]] = []
        for rows in _alike(queries):
            logits = self.model(**self._texts(record, rows), task=record.name).logits.float().cpu()
            found += [label_answer(record, row) for row in logits]
        return found

    def _texts(self, record: TaskRecord, queries: list[Query]) -> dict[str, Any]:
        pairs = None if queries[0].text_pair is None else [query.text_pair for query in queries]
        return self._batch([query.text for query in queries], pairs, self._length(record))

    def _token_classification(self, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """Entities with their places in the text; or tags of words, if they mark no entities."""
        texts = [query.text for query in queries]
        batch = self._batch(texts, None, self._length(record), return_offsets_mapping=True)
        offsets = batch.pop("offset_mapping").tolist()
        scores = self.model(**batch, task=record.name).logits.float().softmax(-1).cpu()
        found = []
        for query, places, row in zip(queries, offsets, scores, strict=True):
            spans = word_spans(query.tokens) if query.tokens is not None else find_words(query.text)
            firsts = {word: t for t, word in enumerate(words_of_tokens(query.text, places, spans)) if word is not None}
            words = [(spans[word], row[token]) for word, token in firsts.items()]
            found.append(word_answer(record, query.text, words))
        return found

    def _windows(self, record: TaskRecord, queries: list[Query]) -> Any:
        length = self._length(record)
        stride = record.preparation.get("stride", length // 4)
        contexts = [query.text_pair or "" for query in queries]
        return make_windows(self.tokenizer, [query.text for query in queries], contexts, length, stride)

    def _question_answering(self, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`answer`, its place in the context, and its `score`."""
        windows = self._windows(record, queries)
        starts, ends = [], []
        rows = [{key: values[i] for key, values in windows.tokens.items()} for i in range(len(windows.question))]
        width = max(len(row["input_ids"]) for row in rows)
        for first in range(0, len(rows), PREDICT_BATCH):
            batch = self.tokenizer.pad(
                rows[first : first + PREDICT_BATCH], padding="max_length", max_length=width, return_tensors="pt"
            ).to(self.model.device)
            output = self.model(**batch, task=record.name)
            starts.append(output.start_logits.float().cpu())
            ends.append(output.end_logits.float().cpu())
        found = find_answers(
            windows,
            [query.text_pair or "" for query in queries],
            torch.cat(starts),
            torch.cat(ends),
            record.preparation.get("max_answer_length", MAX_ANSWER_LENGTH),
            record.preparation.get("may_be_unanswered", False),
        )
        return [{"answer": a.text, "start": a.start, "end": a.end, "score": a.score} for a in found]

    def _choices(self, record: TaskRecord, query: Query) -> Sequence[str] | None:
        marks = record.preparation.get("choice_marks")
        if query.choices is None and query.text_pair is not None and marks:
            return split_choices(query.text_pair, marks)
        return query.choices

    def _multiple_choice(self, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`choice`, its number `index`, its `score`, and all `scores`."""
        found = []
        for query in queries:  # each may have another number of choices
            choices = list(self._choices(record, query) or ())
            rows = encode_choices(self.tokenizer, [query.text], [choices], self._length(record))
            logits = self.model(**self._nested(rows), task=record.name).logits[0].float().cpu()
            scores = logits.softmax(-1).tolist()
            best = scores.index(max(scores))
            found.append({"choice": choices[best], "index": best, "score": scores[best], "scores": scores})
        return found

    def _feature_extraction(self, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`embedding`; and of a pair, the `similarity` of both texts."""

        def embed(texts: list[str]) -> Tensor:
            batch = self._batch(texts, None, self._length(record))
            return self.model(**batch, task=record.name).pooler_output.float().cpu()

        embeddings = embed([query.text for query in queries])
        found: list[dict[str, Any]] = [{"embedding": row.tolist()} for row in embeddings]
        pairs = [row for row, query in enumerate(queries) if query.text_pair is not None]
        if pairs:
            others = embed([str(queries[row].text_pair) for row in pairs])
            similar = torch.nn.functional.cosine_similarity(embeddings[pairs], others)
            for row, value in zip(pairs, similar.tolist(), strict=True):
                found[row]["similarity"] = value
        return found

    def _masked_lm(self, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`masks`, the likeliest tokens of each gap, and `filled`, the text with the first of them."""
        batch = self._batch([self._with_mask(query.text) for query in queries], None, self._length(record))
        logits = self.model(**batch, task=record.name).logits.float().cpu()
        found = []
        for query, ids, row in zip(queries, batch["input_ids"].cpu(), logits, strict=True):
            gaps = (ids == self.tokenizer.mask_token_id).nonzero().flatten()
            masks = []
            for scores in row[gaps].softmax(-1):
                best = scores.topk(min(self.top_k, len(scores)))
                tokens = [text.strip() for text in self._decode(best.indices.unsqueeze(1))]
                masks.append([{"token": t, "score": s} for t, s in zip(tokens, best.values.tolist(), strict=True)])
            filled = self._with_mask(query.text)
            for some in masks:
                filled = filled.replace(str(self.tokenizer.mask_token), some[0]["token"], 1)
            found.append({"filled": filled, "masks": masks})
        return found

    def _prompts(self, record: TaskRecord, queries: list[Query]) -> list[list[int]]:
        template = record.preparation.get("template", PROMPT)
        return encode_prompts(self.tokenizer, [fill_template(template, query.text) for query in queries])

    def _causal_lm(self, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`generated`, what the task writes behind the prompt."""
        prompts = [{"input_ids": ids} for ids in self._prompts(record, queries)]
        batch = self.tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(self.model.device)
        written = self._generate(record, batch)
        return [{"generated": text} for text in self._decode(written[:, batch["input_ids"].shape[1] :])]

    def _seq2seq_lm(self, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`generated`, the text that the task makes of a text."""
        batch = self._texts(record, [Query(query.text) for query in queries])
        return [{"generated": text} for text in self._decode(self._generate(record, batch))]

    def _generate(self, record: TaskRecord, batch: Mapping[str, Any]) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        return cast(Tensor, self.model.generate(**inputs, task=record.name, **options))

    def _decode(self, ids: Tensor) -> list[str]:
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)


def _shape(query: Query) -> tuple[bool, int]:
    """What queries of one batch have in common: pair or not, number of choices."""
    return query.text_pair is not None, len(query.choices or ())


def _alike(queries: list[Query]) -> Iterator[list[Query]]:
    """Runs of pairs and of single texts."""
    run: list[Query] = []
    for query in queries:
        if run and (query.text_pair is None) != (run[0].text_pair is None):
            yield run
            run = []
        run.append(query)
    if run:
        yield run


# -- labels and words -------------------------------------------------------------------------------------------------


def label_answer(record: TaskRecord, logits: Tensor) -> dict[str, Any]:
    """The answer in the logits of one text, `(labels,)`: `label`, `score`, `scores`; `labels`; or `value`."""
    if record.problem_type == "regression":
        values = dict(zip(record.labels, logits.tolist(), strict=True))
        return {"value": logits.item()} if len(values) == 1 else {"values": values}
    if record.problem_type == "multi_label_classification":
        scores = dict(zip(record.labels, logits.sigmoid().tolist(), strict=True))
        return {"labels": [label for label, score in scores.items() if score > 0.5], "scores": scores}
    scores = dict(zip(record.labels, logits.softmax(-1).tolist(), strict=True))
    best = max(scores, key=lambda label: scores[label])
    return {"label": best, "score": scores[best], "scores": scores}


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
