"""Questions about texts, whose answers are places in them: windows over long texts, and the way back to the words.

A context that is longer than the model reads is cut into windows that overlap by `stride` tokens; each holds the whole
question. An answer is the best span of any window. As Devlin et al. (arXiv 1810.04805) treat SQuAD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import datasets
import numpy as np
import torch
from scipy.special import log_softmax
from transformers import EvalPrediction, PreTrainedTokenizerBase, TrainingArguments

from ...configuration import TaskRecord
from ...kinds.metrics import squad_scores
from ...kinds.questions import best_spans
from ..recipe import RecipeError, TaskRecipe
from .asking import ASKED_AT_ONCE, Asker, Query, Unanswerable
from .base import RecipeKind, Score
from .preparation import TRAIN, Preparation
from .settings import Settings, setting

LONGEST_ANSWER = 30  # in tokens, where a recipe says nothing else
OUTSIDE = -1  # where a token that is none of the context's begins and ends


@dataclass(frozen=True)
class QuestionSettings(Settings):
    """Settings of question answering.

    Attributes:
        stride: tokens of a long context that two windows share; a quarter of `max_length` by default.
        max_answer_length: longest answer, in tokens.
    """

    stride: int | None = setting(None, int, lambda value: value >= 0, "a whole number of tokens >= 0")
    max_answer_length: int = setting(LONGEST_ANSWER, int, lambda value: value >= 1, "a whole number of tokens >= 1")


@dataclass(frozen=True)
class Windows:
    """The windows over the contexts of some questions.

    Attributes:
        tokens: token ids and masks of each window, as the model takes them.
        question: number of each window's question, in order.
        starts: where in the context each token of a window begins; -1 for tokens of anything else.
        ends: where it ends.
    """

    tokens: dict[str, list[list[int]]]
    question: list[int]
    starts: list[list[int]]
    ends: list[list[int]]


class QuestionTooLong(ValueError):
    """A question leaves no room for its context."""

    def __init__(self, row: int, tokens: int, max_length: int, stride: int) -> None:
        super().__init__(
            f"has a question of {tokens} tokens, which leaves no room for its context in windows of {max_length} "
            f"tokens of which {stride} overlap. Choose a larger max_length or a smaller stride, or shorten it."
        )
        self.row = row


def make_windows(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], contexts: Sequence[str], max_length: int, stride: int
) -> Windows:
    """Cut contexts into windows of `max_length` tokens, question included, of which neighbours share `stride`.

    Raises:
        QuestionTooLong: if a question leaves no room.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    lengths = map(len, tokenizer(list(questions), add_special_tokens=False)["input_ids"])
    for row, length in enumerate(lengths):
        if max_length - special - length <= stride:
            raise QuestionTooLong(row, length, max_length, stride)
    encoding = tokenizer(
        list(questions),
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    question = encoding.pop("overflow_to_sample_mapping")
    starts, ends = [], []
    for window, offsets in enumerate(encoding.pop("offset_mapping")):
        context = contexts[question[window]]
        owners = encoding.sequence_ids(window)
        places = [
            _trimmed(context, *span) if owner == 1 else (OUTSIDE, OUTSIDE)
            for owner, span in zip(owners, offsets, strict=True)
        ]
        starts.append([start for start, _ in places])
        ends.append([end for _, end in places])
    return Windows({name: list(values) for name, values in encoding.items()}, list(question), starts, ends)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A token's place without the blanks that some tokenizers count as its own; outside if nothing else is left."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else (OUTSIDE, OUTSIDE)


def token_span(starts: Sequence[int], ends: Sequence[int], first: int, last: int) -> tuple[int, int]:
    """First and last token of an answer from character `first` up to `last`; (0, 0) if a window does not hold it all.

    Args:
        starts: as in `Windows`, of one window.
        ends: likewise.
        first: where the answer begins in the context.
        last: where it ends.
    """
    inside = [token for token, start in enumerate(starts) if start != OUTSIDE]
    if not inside or starts[inside[0]] > first or ends[inside[-1]] < last:
        return 0, 0
    begin = next((token for token in inside if ends[token] > first), None)
    end = next((token for token in reversed(inside) if starts[token] < last), None)
    return (0, 0) if begin is None or end is None or end < begin else (begin, end)


@dataclass(frozen=True)
class FoundAnswer:
    """An answer and its place in the context; `score` is the probability of both its ends within its window."""

    text: str
    start: int
    end: int
    score: float


def find_answers(
    windows: Windows,
    contexts: Sequence[str],
    start_logits: Any,
    end_logits: Any,
    longest: int,
    may_be_missing: bool = False,
) -> list[FoundAnswer]:
    """The best answer to each question: the span of context tokens with the largest sum of logits, over all windows.

    Args:
        windows: over the contexts.
        contexts: one per question.
        start_logits: `(windows, tokens)`, padded at the end.
        end_logits: likewise.
        longest: number of tokens that an answer may have.
        may_be_missing: whether the first token of a window stands for "no answer here"; the answer is then empty
            where that is likelier in every window (Rajpurkar et al., arXiv 1806.03822).
    """
    ends = [np.asarray(logits, dtype=np.float64) for logits in (start_logits, end_logits)]
    width = ends[0].shape[1]
    inside = np.zeros((len(windows.starts), width), dtype=bool)
    real = np.zeros_like(inside)
    for window, starts in enumerate(windows.starts):
        inside[window, : len(starts)] = np.asarray(starts) != OUTSIDE
        real[window, : len(starts)] = True
    allowed = [np.where(inside, logits, -np.inf) for logits in ends]
    spans = best_spans(allowed[0], allowed[1], longest)
    rows = np.arange(len(spans))
    sums = allowed[0][rows, spans[:, 0]] + allowed[1][rows, spans[:, 1]]
    likely = [log_softmax(np.where(real, logits, -np.inf), axis=1) for logits in ends]
    likelihood = likely[0][rows, spans[:, 0]] + likely[1][rows, spans[:, 1]]
    nothing = ends[0][:, 0] + ends[1][:, 0]
    found = []
    of_question = np.asarray(windows.question)
    for question, context in enumerate(contexts):
        own = np.flatnonzero(of_question == question)
        best = own[sums[own].argmax()]
        if may_be_missing and nothing[own].min() > sums[best]:
            empty = own[nothing[own].argmin()]
            score = float(np.exp(likely[0][empty, 0] + likely[1][empty, 0]))
            found.append(FoundAnswer("", 0, 0, score))
            continue
        start, end = windows.starts[best][spans[best, 0]], windows.ends[best][spans[best, 1]]
        found.append(FoundAnswer(context[start:end], start, end, float(np.exp(likelihood[best]))))
    return found


class Questions(Preparation):
    """Questions, contexts, and answers as SQuAD has them: `{"text": [...], "answer_start": [...]}`, empty for none."""

    texts = ("question", "context")

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """Every answer is in its context, where it is said to be."""
        stride = self.task.settings.stride
        self.recorded["stride"] = self.max_length // 4 if stride is None else stride
        self.recorded["max_answer_length"] = self.task.settings.max_answer_length
        self.windows: dict[str, Windows] = {}
        self.recorded["may_be_unanswered"] = False
        for split, data in splits.items():
            rows = zip(self.column(data, "context"), self.column(data, "answers"), strict=True)
            for row, (context, answers) in enumerate(rows):
                found = self._answers(split, row, answers)
                for text, start in found:
                    self._check_place(split, row, context, text, start)
                if split == TRAIN and not found:
                    self.recorded["may_be_unanswered"] = True

    def _answers(self, split: str, row: int, answers: Any) -> list[tuple[str, int]]:
        """Texts and places of the right answers of a row."""
        parts = answers if isinstance(answers, list) else [answers]
        texts: list[Any] = []
        starts: list[Any] = []
        for part in parts:
            if not isinstance(part, dict) or not {"text", "answer_start"} <= part.keys():
                self.fail(
                    split,
                    row,
                    f"has the answers {answers!r}; expected {{'text': [...], 'answer_start': [...]}}, as SQuAD has "
                    "them.",
                )
            for found, value in ((texts, part["text"]), (starts, part["answer_start"])):
                found.extend(value if isinstance(value, list) else [value])
        right = all(isinstance(text, str) for text in texts) and all(type(start) is int for start in starts)
        if len(texts) != len(starts) or not right:
            self.fail(split, row, f"has the answers {answers!r}; expected as many texts as whole numbers of places.")
        return list(zip(texts, starts, strict=True))

    def _check_place(self, split: str, row: int, context: str, text: str, start: int) -> None:
        if not text.strip():
            self.fail(split, row, "has an empty answer. Where there is none, leave the lists of the answers empty.")
        there = context[max(start, 0) : max(start, 0) + len(text)]
        if start < 0 or there != text:
            elsewhere = context.find(text)
            hint = "not in the context" if elsewhere < 0 else f"in the context at {elsewhere}"
            self.fail(
                split,
                row,
                f"has the answer {text!r} at {start} of a context of {len(context)} characters, where {there!r} is; "
                f"the answer is {hint}. `answer_start` counts characters from 0.",
            )

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """It knows where its tokens are."""
        self.needs_offsets(tokenizer)

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Windows with `start_positions` and `end_positions`; both are 0 where a window does not hold the answer."""
        contexts = self.column(data, "context")
        try:
            windows = make_windows(
                tokenizer, self.column(data, "question"), contexts, self.max_length, self.recorded["stride"]
            )
        except QuestionTooLong as error:
            self.fail(split, error.row, str(error))
        self.windows[split] = windows
        answers = [self._answers(split, row, value) for row, value in enumerate(self.column(data, "answers"))]
        spans = []
        for question, starts, ends in zip(windows.question, windows.starts, windows.ends, strict=True):
            text, first = answers[question][0] if answers[question] else ("", -1)
            first += len(text) - len(text.lstrip())
            spans.append(token_span(starts, ends, first, first + len(text.strip())) if first >= 0 else (0, 0))
        places = {"start_positions": [start for start, _ in spans], "end_positions": [end for _, end in spans]}
        return datasets.Dataset.from_dict({**windows.tokens, **places})

    def texts_to_route(self, encoded: datasets.Dataset, split: str) -> datasets.Dataset:
        """The first window of each question."""
        question = self.windows[split].question
        return encoded.select([row for row in range(len(encoded)) if row == 0 or question[row] != question[row - 1]])

    def score(self, data: datasets.Dataset, split: str) -> Score:
        """`compute_metrics` of an encoded split: SQuAD's `exact_match` and `f1` of the answers' words, as shares."""
        answers = [self._answers(split, row, value) for row, value in enumerate(self.column(data, "answers"))]
        right = [[text for text, _ in found] for found in answers]

        def compute(prediction: EvalPrediction) -> dict[str, float]:
            texts = [answer.text for answer in self.answers_to(data, split, prediction.predictions)]
            return {name: value / 100 for name, value in squad_scores(texts, right).items()}

        return compute

    def answers_to(self, data: datasets.Dataset, split: str, predictions: Any) -> list[FoundAnswer]:
        """The answers in the logits of a split's windows, `(start_logits, end_logits)`."""
        return find_answers(
            self.windows[split],
            self.column(data, "context"),
            predictions[0],
            predictions[1],
            self.recorded["max_answer_length"],
            self.recorded["may_be_unanswered"],
        )


# -- the kind ---------------------------------------------------------------------------------------------------------


class QuestionAnsweringRecipe(RecipeKind):
    """The place of the answer in a text."""

    name = "question-answering"
    columns = {"question": "question", "context": "context", "answers": "answers"}
    metrics = ("f1", "exact_match")
    preparation = Questions
    settings = QuestionSettings

    def check_training(self, task: TaskRecipe, arguments: TrainingArguments) -> None:
        """An evaluation goes through the windows in their order."""
        if arguments.train_sampling_strategy == "group_by_length":
            raise RecipeError(
                f"Task '{task.name}', training: grouping by length would shuffle the windows that an answer is looked "
                "for in. Leave it out for question-answering."
            )

    def score(
        self, task: TaskRecipe, prepared: Preparation, rows: datasets.Dataset, split: str, asker: Asker, module: Any
    ) -> Score:
        """Over the words of the answers that are found in all windows of a context together."""
        return cast(Questions, prepared).score(rows, split)

    def check_query(self, asker: Asker, record: TaskRecord, query: Query) -> None:
        """There is a context, and room for it behind the question."""
        super().check_query(asker, record, query)
        if query.text_pair is None:
            raise Unanswerable(f"'{record.name}' finds answers in a context, and there is none. Give it as text_pair.")
        try:
            windows_of(asker, record, [query])
        except QuestionTooLong as error:
            raise Unanswerable(f"The query {error}") from error

    def answer(self, asker: Asker, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`answer`, its place in the context, and its `score`."""
        windows = windows_of(asker, record, queries)
        starts, ends = [], []
        rows = [{key: values[i] for key, values in windows.tokens.items()} for i in range(len(windows.question))]
        width = max(len(row["input_ids"]) for row in rows)
        for first in range(0, len(rows), ASKED_AT_ONCE):
            batch = asker.tokenizer.pad(
                rows[first : first + ASKED_AT_ONCE], padding="max_length", max_length=width, return_tensors="pt"
            ).to(asker.model.device)
            output = asker.model(**batch, task=record.exact_name)
            starts.append(output.start_logits.float().cpu())
            ends.append(output.end_logits.float().cpu())
        found = find_answers(
            windows,
            [query.text_pair or "" for query in queries],
            torch.cat(starts),
            torch.cat(ends),
            record.preparation.get("max_answer_length", LONGEST_ANSWER),
            record.preparation.get("may_be_unanswered", False),
        )
        return [{"answer": a.text, "start": a.start, "end": a.end, "score": a.score} for a in found]


def windows_of(asker: Asker, record: TaskRecord, queries: Sequence[Query]) -> Windows:
    """The windows over the contexts of some queries, as a task's recipe cut them.

    Raises:
        QuestionTooLong: if a question leaves no room for its context.
    """
    length = asker.length_of(record)
    stride = record.preparation.get("stride", length // 4)
    contexts = [query.text_pair or "" for query in queries]
    return make_windows(asker.tokenizer, [query.text for query in queries], contexts, length, stride)
