"""Questions about texts in a recipe: windows, and answers found in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.recipe_files import (  # noqa: F401
    predictor,
    prepared,
    private_dataset_cache,
    question_rows,
    reading,
    refused,
    write_recipe,
)
from transformers import AutoTokenizer, EvalPrediction, PreTrainedTokenizerBase

from eidetic_hf.recipe.kinds.asking import Query
from eidetic_hf.recipe.kinds.questions import OUTSIDE, find_answers, make_windows, token_span


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    write_recipe(tmp_path, [])
    return AutoTokenizer.from_pretrained(tmp_path / "backbone")


def test_windows_overlap_by_the_stride_and_hold_the_whole_question(tokenizer: PreTrainedTokenizerBase) -> None:
    context = " ".join(f"w{i}" for i in range(10))
    windows = make_windows(tokenizer, ["same w20"], [context], max_length=10, stride=2)
    words = [tokenizer.convert_ids_to_tokens(ids) for ids in windows.tokens["input_ids"]]
    assert [row[:4] for row in words] == [["[CLS]", "same", "w20", "[SEP]"]] * len(words)
    assert [row[4:-1] for row in words] == [
        ["w0", "w1", "w2", "w3", "w4"],
        ["w3", "w4", "w5", "w6", "w7"],
        ["w6", "w7", "w8", "w9"],
    ]
    assert windows.question == [0, 0, 0]
    assert windows.starts[1] == [OUTSIDE] * 4 + [9, 12, 15, 18, 21] + [OUTSIDE]
    assert windows.ends[1] == [OUTSIDE] * 4 + [11, 14, 17, 20, 23] + [OUTSIDE]


def test_an_answer_is_where_a_window_holds_all_of_it() -> None:
    starts, ends = [-1, 3, 6, 9, -1], [-1, 5, 8, 11, -1]
    assert token_span(starts, ends, 6, 11) == (2, 3)
    assert token_span(starts, ends, 7, 8) == (2, 2), "part of a token"
    assert token_span(starts, ends, 0, 5) == (0, 0), "begins before the window"
    assert token_span(starts, ends, 9, 14) == (0, 0), "ends behind it"


def test_places_of_answers_lead_back_to_their_words(tmp_path: Path) -> None:
    rows = question_rows(0, 20)
    data, _ = prepared(tmp_path, rows, type="question-answering", max_length=14, stride=3)
    split = data.splits["test"]
    assert len(split) > len(rows), "some contexts have several windows"
    places = np.array([split["start_positions"][:], split["end_positions"][:]])
    assert (places == 0).any() and (places[0] > 0).sum() >= len(rows)
    width = max(map(len, split["input_ids"]))
    logits = np.zeros((2, len(split), width))
    for end, place in enumerate(places):
        logits[end, np.arange(len(split)), place] = 5.0 * (place > 0)
    score = data.preparation.score(data.rows["test"], "test")
    assert score(EvalPrediction((logits[0], logits[1]), None)) == {"exact_match": 1.0, "f1": 1.0}
    assert len(data.texts_to_route("test")) == len(rows), "the first window of each"


def test_the_best_span_of_all_windows_is_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    context = " ".join(f"w{i}" for i in range(10))
    windows = make_windows(tokenizer, ["same"], [context], max_length=9, stride=2)
    assert [len(ids) for ids in windows.tokens["input_ids"]] == [9, 9, 8]
    start, end = np.zeros((2, 3, 9))
    start[0, 1] = 9.0  # a token of the question: no place for an answer
    start[1, 4], end[1, 5] = 3.0, 4.0  # w4 w5
    start[2, 3], end[2, 3] = 3.0, 3.0
    (answer,) = find_answers(windows, [context], start, end, longest=5)
    assert (answer.text, answer.start, answer.end) == ("w4 w5", 12, 17)
    chances = [np.exp(x) / np.exp(row).sum() for x, row in ((3.0, start[1]), (4.0, end[1]))]
    assert answer.score == pytest.approx(chances[0] * chances[1])
    (short,) = find_answers(windows, [context], start, end, longest=1)
    assert short.text == context[windows.starts[2][3] : windows.ends[2][3]], "two tokens are too many"


def test_no_answer_is_given_where_none_is_likelier(tokenizer: PreTrainedTokenizerBase) -> None:
    windows = make_windows(tokenizer, ["same"], ["w1 w2"], max_length=9, stride=2)
    start, end = np.zeros((2, 1, 7))
    start[0, 0], end[0, 0] = 2.0, 2.0
    start[0, 3], end[0, 3] = 1.0, 1.0
    assert find_answers(windows, ["w1 w2"], start, end, 5)[0].text == "w1"
    (answer,) = find_answers(windows, ["w1 w2"], start, end, 5, may_be_missing=True)
    assert (answer.text, answer.start, answer.end) == ("", 0, 0)


def test_questions_without_an_answer_stand_for_the_first_token(tmp_path: Path) -> None:
    rows = [
        {"question": "same", "context": "w1 w2", "answers": {"text": [], "answer_start": []}},
        *question_rows(0, 3),
    ]
    data, _ = prepared(tmp_path, rows, type="question-answering", stride=2)
    assert data.splits["test"][0]["start_positions"] == data.splits["test"][0]["end_positions"] == 0
    assert data.preparation.recorded == {
        "max_length": 16, "stride": 2, "max_answer_length": 30, "may_be_unanswered": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answers": {"text": ["red"], "answer_start": [4]}},
            "has the answer 'red' at 4 of a context of 6 characters",
        ),
        ({"answers": {"text": ["red"], "answer_start": [400]}}, "the answer is in the context at 0"),
        ({"answers": {"text": ["blue"], "answer_start": [0]}}, "the answer is not in the context"),
        ({"answers": {"text": ["red"], "answer_start": [-1]}}, "has the answer 'red' at -1"),
        ({"answers": {"text": ["red", "red"], "answer_start": [0]}}, "expected as many texts as whole numbers"),
        ({"answers": {"text": [""], "answer_start": [0]}}, "has an empty answer"),
        ({"question": "w1 " * 9}, "has a question of 9 tokens, which leaves no room for its context in windows of 16"),
    ],
)
def test_answers_outside_of_their_contexts_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"question": "same", "context": "red w1", "answers": {"text": ["red"], "answer_start": [0]}}
    text = refused(tmp_path, [row, {**row, **change}], type="question-answering", stride=4)
    assert "Task 'task': row 1 of the train split " in text
    assert message in text


def test_answers_without_places_are_refused(tmp_path: Path) -> None:
    rows = [{"question": "same", "context": "red w1", "answers": "red"}] * 2
    assert "expected {'text': [...], 'answer_start': [...]}" in refused(tmp_path, rows, type="question-answering")


def test_logits_of_padding_do_not_become_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    windows = make_windows(tokenizer, ["same"], ["w1 w2"], max_length=9, stride=2)
    logits = torch.zeros(1, 30)
    logits[0, 20] = 9.0
    assert find_answers(windows, ["w1 w2"], logits, logits, 5)[0].text in ("w1", "w1 w2", "w2")


def test_an_answer_is_found_in_a_context_of_several_windows(reading: Path) -> None:  # noqa: F811
    rows = question_rows(9, 12)
    queries = [Query(row["question"], row["context"]) for row in rows]
    lines = list(predictor(reading).answers(queries, "where"))
    assert list(lines[0]) == ["text", "text_pair", "task", "answer", "start", "end", "score"]
    for line in lines:
        assert line["text_pair"][line["start"] : line["end"]] == line["answer"]
        assert 0 < line["score"] <= 1
    right = [line["answer"] in row["answers"]["text"] for line, row in zip(lines, rows, strict=True)]
    assert sum(right) >= 10
    assert any(len(row["context"].split()) > 11 for row in rows), "longer than a window"
