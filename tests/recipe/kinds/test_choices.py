"""Choices in a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.recipe_files import (  # noqa: F401
    choice_rows,
    predictor,
    prepared,
    private_dataset_cache,
    reading,
    refused,
)
from transformers import AutoTokenizer

from eidetic_hf.recipe.kinds.asking import Query
from eidetic_hf.recipe.kinds.choices import split_choices


def test_choices_are_read_from_lists_columns_and_marked_texts_alike(tmp_path: Path) -> None:
    rows = choice_rows(0, 6)
    columns = [{"text": r["text"], **dict(zip("xyz", r["choices"], strict=True)), "label": r["label"]} for r in rows]
    texts = [
        {
            "text": row["text"],
            "all": " ".join(
                f"{mark} {choice}" for mark, choice in zip(("A:", "B:", "C:"), row["choices"], strict=True)
            ),
            "label": "ABC"[row["label"]],
        }
        for row in rows
    ]
    found = [
        prepared(tmp_path / "a", rows, type="multiple-choice")[0],
        prepared(tmp_path / "b", columns, type="multiple-choice", columns={"choices": ["x", "y", "z"]})[0],
        prepared(
            tmp_path / "c", texts, type="multiple-choice", columns={"choices": "all"}, choice_marks=["A:", "B:", "C:"]
        )[0],
    ]
    for data in found:
        assert data.splits["test"]["labels"][:] == [row["label"] for row in rows]
        assert data.splits["test"]["input_ids"][:] == found[0].splits["test"]["input_ids"][:]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a" / "backbone")
    first = found[0].splits["test"][0]["input_ids"]
    assert [tokenizer.decode(ids) for ids in first] == [
        f"[CLS] {rows[0]['text']} [SEP] {choice} [SEP]" for choice in rows[0]["choices"]
    ]


def test_a_question_follows_the_text(tmp_path: Path) -> None:
    rows = [{**row, "q": "w7"} for row in choice_rows(0, 4)]
    data, tokenizer = prepared(tmp_path, rows, type="multiple-choice", columns={"question": "q"})
    assert tokenizer.decode(data.splits["test"][0]["input_ids"][0]).startswith(f"[CLS] {rows[0]['text']} w7 [SEP]")


def test_marks_tell_choices_apart_in_their_order() -> None:
    assert split_choices("A: it fell. B: it rose A: little", ["A:", "B:"]) == ["it fell.", "it rose A: little"]
    assert split_choices("B: it fell. A: it rose", ["A:", "B:"]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, "has the label 3 for 3 choices; expected a number from 0 to 2"),
        ({"choices": ["red"]}, "has the choices ['red']; expected 3 texts, as in the first row"),
        ({"choices": ["red", "blue", None]}, "expected 3 texts"),
    ],
)
def test_choices_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"text": "same", "choices": ["red", "blue", "green"], "label": 1}
    text = refused(tmp_path, [row, {**row, **change}], type="multiple-choice")
    assert "Task 'task': row 1 of the train split " in text
    assert message in text


def test_choices_in_a_text_need_marks_and_names_need_labels(tmp_path: Path) -> None:
    rows = [{"text": "same", "choices": "A: red B: blue", "label": "yes"}] * 2
    assert "`choice_marks: ['A:', 'B:']`" in refused(tmp_path / "a", rows, type="multiple-choice")
    marked = {"type": "multiple-choice", "choice_marks": ["A:", "B:"]}
    assert "has the label 'yes' for 2 choices; expected one of ['A', 'B']" in refused(tmp_path / "b", rows, **marked)
    data, _ = prepared(tmp_path / "c", rows, **marked, labels=["no", "yes"])
    assert data.splits["test"]["labels"][:] == [1, 1]
    wrong = [{**rows[0], "choices": "A: red"}] * 2
    assert "not all of ['A:', 'B:'] follow each other" in refused(tmp_path / "d", wrong, **marked)


def test_a_choice_is_the_text_with_the_largest_score(reading: Path) -> None:  # noqa: F811
    rows = choice_rows(9, 5)
    queries = [Query(row["text"], choices=tuple(row["choices"])) for row in rows]
    lines = list(predictor(reading).answers([*queries, Query("same red", choices=("red", "blue"))], "which"))
    for line in lines:
        assert line["scores"][line["index"]] == line["score"] == max(line["scores"])
        assert sum(line["scores"]) == pytest.approx(1)
        assert line["choice"] == line["choices"][line["index"]]
    assert len(lines[-1]["scores"]) == 2, "another number than in training"
