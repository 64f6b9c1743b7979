"""What a model answers to texts, as JSON-ready values: each text by its task, named or chosen by the router.

Texts are prepared as those that a task was learned from, as far as its recipe said how (`TaskRecord.preparation`).
What each kind of task answers is in `kinds/`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..model.answering import resolve_task
from ..model.model import EideticModel
from ..model.routing import named_in
from ..model.versions import routed
from .kinds import RECIPE_KINDS, recipe_kind_of
from .kinds.asking import ASKED_AT_ONCE, MAX_NEW_TOKENS, TOP_K, Asker, Query, Unanswerable
from .kinds.choices import encode_choices

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


class Predictor:
    """Answers queries with one model.

    Args:
        model: the model, on its device; it is put in evaluation mode.
        tokenizer: its tokenizer.
        top_k: how many tokens are named for each gap of a masked text.
        max_new_tokens: how many tokens a text is continued by, at most.
    """

    def __init__(
        self,
        model: EideticModel,
        tokenizer: PreTrainedTokenizerBase,
        top_k: int = TOP_K,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.asker = Asker(model, tokenizer, top_k, max_new_tokens)

    def answers(
        self,
        queries: Sequence[Query],
        task: str | None = None,
        abstain: bool | float = False,
        tasks: Sequence[str] | None = None,
        by_name: bool = False,
        answer_all: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """What the model answers, in order.

        Args:
            queries: what is asked.
            task: the task of all; `None` lets the router choose one for each, among all tasks of whatever kind.
            abstain: as `EideticModel.forward` takes it.
            tasks: those that the router may choose among; all, if not given.
            by_name: whether a text that begins with a task's name and a colon is that task's, without both.
            answer_all: whether all of `tasks` that can answer a query do, one after another, instead of the likeliest.

        Yields:
            What was asked, and `task`. If the router chose, the likeliest one of those that can answer: questions
            need a context, choices a task that chooses. Then `task_score`, how likely that task is, and `task_scores`
            of all; with `abstain` also `outlier_score`, and what was turned away has the task `None`, no answer, and
            the names of the `nearest` tasks.
            Then the answer, see docs/recipes.md for each kind; or an `error`, if the task can not answer that.
        """
        self.model.eval()
        task = None if task is None else resolve_task(self.model, task)
        for start in range(0, len(queries), ASKED_AT_ONCE):
            some = list(queries[start : start + ASKED_AT_ONCE])
            heads = [{**query.given(), "task": task} for query in some]
            if task is None and by_name:
                for row, query in enumerate(some):
                    heads[row]["task"], text = named_in(query.text, tasks or self.model.tasks)
                    some[row] = dataclasses.replace(query, text=text)
            rows = [row for row, head in enumerate(heads) if head["task"] is None]
            if rows and answer_all:
                yield from self._all_answers(some, heads, tasks)
                continue
            for row, choice in zip(rows, self._route([some[row] for row in rows], abstain, tasks), strict=True):
                heads[row].update(choice)
            found: dict[int, dict[str, Any]] = {}
            for name in dict.fromkeys(head["task"] for head in heads):
                rows = [row for row, head in enumerate(heads) if head["task"] == name]
                if name is not None:
                    record = self.model.record(name)
                    asked = [some[row] for row in rows]
                    answers = recipe_kind_of(record.task_type).answers(self.asker, record, asked)
                    found.update(zip(rows, answers, strict=True))
            for row, head in enumerate(heads):
                yield {**head, **found.get(row, {})}

    def _all_answers(
        self, queries: Sequence[Query], heads: Sequence[dict[str, Any]], tasks: Sequence[str] | None
    ) -> Iterator[dict[str, Any]]:
        """A line for each query and each task that can answer it, or the one that it names."""
        for query, head in zip(queries, heads, strict=True):
            names = tasks or routed(self.model.config, self.model.tasks)
            for name in [head["task"]] if head["task"] else [n for n in names if self._can_answer(n, query)]:
                record = self.model.record(name)
                (answer,) = recipe_kind_of(record.task_type).answers(self.asker, record, [query])
                yield {**head, "task": name, **answer}

    # -- which task -----------------------------------------------------------------------------------------------

    def _route(
        self, queries: Sequence[Query], abstain: bool | float, tasks: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """The task of each query, with its scores."""
        found: dict[int, dict[str, Any]] = {}
        for shape in dict.fromkeys(map(_shape, queries)):
            rows = [row for row, query in enumerate(queries) if _shape(query) == shape]
            choice = self.model.route(**self._to_route([queries[row] for row in rows]), abstain=abstain, tasks=tasks)
            assert choice.tasks is not None and choice.router_scores is not None
            for i, row in enumerate(rows):
                scores = dict(zip(self.model.tasks, choice.router_scores[i].tolist(), strict=True))
                task = choice.tasks[i] and self._likeliest(
                    {name: score for name, score in scores.items() if tasks is None or name in tasks}, queries[row]
                )
                score = max(scores.values()) if task is None else scores[task]
                found[row] = {"task": task, "task_score": score, "task_scores": scores}
                if choice.outlier_scores is not None:
                    found[row]["outlier_score"] = choice.outlier_scores[i].item()
                if choice.nearest is not None and choice.nearest[i] is not None:
                    found[row]["nearest"] = choice.nearest[i]
        return [found[row] for row in range(len(queries))]

    def _likeliest(self, scores: Mapping[str, float], query: Query) -> str:
        """The likeliest of the tasks that can answer a query; of all, if none can."""
        ranked = sorted(scores, key=lambda name: scores[name], reverse=True)
        return next((name for name in ranked if self._can_answer(name, query)), ranked[0])

    def _can_answer(self, name: str, query: Query) -> bool:
        """Whether a task can answer a query; not if nobody said how a task of its kind is asked."""
        record = self.model.record(name)
        kind = RECIPE_KINDS.get(record.task_type)
        try:
            if kind is not None:
                kind.check_query(self.asker, record, query)
        except Unanswerable:
            return False
        return kind is not None

    def _to_route(self, queries: Sequence[Query]) -> dict[str, Any]:
        """Queries of one shape as a batch for the router."""
        longest = self.tokenizer.model_max_length
        texts = [self.asker.with_mask(query.text) for query in queries]
        if queries[0].choices is not None:
            rows = encode_choices(self.tokenizer, texts, [query.choices or () for query in queries], longest)
            return self.asker.nested(rows)
        pairs = None if queries[0].text_pair is None else [query.text_pair for query in queries]
        return self.asker.batch(texts, pairs, longest)


def _shape(query: Query) -> tuple[bool, int]:
    """What queries of one batch have in common: pair or not, number of choices."""
    return query.text_pair is not None, len(query.choices or ())
