"""Answers to texts as JSON-ready values, named and routed, and the lines that ask for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command_line import call, lines_of
from support.recipe_files import (  # noqa: F401
    COLORS,
    choice_rows,
    predictor,
    private_dataset_cache,
    question_rows,
    reading,
    unlike,
    writing,
)

from eidetic_hf.recipe.kinds.asking import Query
from eidetic_hf.recipe.predicting import read_query


@pytest.mark.parametrize(
    ("task", "query", "message"),
    [
        ("where", Query("red"), "'where' finds answers in a context, and there is none"),
        ("where", Query("w1 " * 20, "red"), "has a question of 20 tokens, which leaves no room"),
        ("which", Query("red"), "'which' chooses among texts, and there are none. Give choices."),
        ("gaps", Query("red"), "'gaps' fills gaps, and there is none within 24 tokens. Put [MASK]"),
        ("names", Query("red", "blue"), "'names' (token-classification) reads one text, and there are two"),
        ("which", Query("red", "w1", ("red", "w1")), "'which' (multiple-choice) reads one text, and there are two"),
        ("color", Query("red", choices=("a", "b")), "'color' (sequence-classification) does not choose among texts"),
    ],
)
def test_what_a_task_can_not_answer_is_said_in_its_line(reading: Path, task: str, query: Query, message: str) -> None:  # noqa: F811
    fitting = {
        "where": Query("same", "red w1"),
        "which": Query("same", choices=("red", "w1")),
        "gaps": Query("[MASK]"),
    }
    bad, good = predictor(reading).answers([query, fitting.get(task, Query("red w1"))], task)
    assert message in bad["error"]
    assert set(bad) == {*query.given(), "task", "error"}
    assert "error" not in good, "the others are answered"


def test_queries_of_every_form_are_routed_over_all_tasks_in_their_order(reading: Path) -> None:  # noqa: F811
    question, choice = question_rows(11, 1)[0], choice_rows(11, 1)[0]
    queries = [
        Query(question["question"], question["context"]),
        Query("red w1 w2 w3"),
        Query(choice["text"], choices=tuple(choice["choices"])),
        Query("red w1 [MASK] w2 w1 w3 w2"),
    ]
    asks = predictor(reading)
    lines = list(asks.answers(queries))
    assert [line["task"] for line in lines][:1] + [line["task"] for line in lines][2:] == ["where", "which", "gaps"]
    assert lines[1]["task"] not in ("where", "which", "gaps"), "tasks that can not answer a text alone"
    for line, query in zip(lines, queries, strict=True):
        assert list(line)[: len(query.given())] == list(query.given())
        assert list(line["task_scores"]) == asks.model.tasks
        assert line["task_score"] == line["task_scores"][line["task"]]
        named = next(asks.answers([query], line["task"]))
        assert {key: line[key] for key in named if key in ("answer", "choice", "filled")} == {
            key: named[key] for key in named if key in ("answer", "choice", "filled")
        }


def test_prompts_are_continued_by_the_task_whose_style_they_have(writing: Path) -> None:  # noqa: F811
    asks = predictor(writing, max_new_tokens=4)
    lines = list(asks.answers([Query("ab ba ab"), Query("XY YX XY"), Query("abba ba")]))
    assert [line["task"] for line in lines] == ["low", "high", "low"]
    assert set(lines[0]["generated"]) <= set("ab ")
    for line in lines:
        assert line["generated"] == next(asks.answers([Query(line["text"])], line["task"]))["generated"]


def test_abstaining_works_over_kinds(reading: Path) -> None:  # noqa: F811
    strange = Query("w95 w105 w110 w100 w94 w99")
    (line,) = predictor(reading).answers([strange], abstain=0.9)
    assert line["task"] is None and line["outlier_score"] > -1.2816, "a tenth of a task's own are nearer"
    assert list(line) == ["text", "task", "task_score", "task_scores", "outlier_score", "nearest"]
    best = sorted(line["task_scores"], key=lambda name: line["task_scores"][name], reverse=True)
    assert line["nearest"] == best[:3]


@pytest.mark.parametrize(
    ("line", "query"),
    [
        ('{"text": "a", "label": 3}', Query("a")),
        ('{"text": "a", "text_pair": "b"}', Query("a", "b")),
        ('{"question": "a?", "context": "b", "answers": {}}', Query("a?", "b")),
        ('{"text": "a", "question": "why?", "choices": ["x", "y"]}', Query("a why?", choices=("x", "y"))),
        ('{"context": "a", "question": "why?", "choices": ["x", "y"]}', Query("a why?", choices=("x", "y"))),
        ('{"tokens": ["a", "b"]}', Query("a b", tokens=("a", "b"))),
        ('{"prompt": "a"}', Query("a")),
        ('{"source": "a"}', Query("a")),
    ],
)
def test_a_line_of_json_may_call_its_parts_as_data_sets_do(line: str, query: Query) -> None:
    assert read_query(line, 1) == query


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Line 7 is no JSON"),
        ('"red"', "Line 7 is 'red', expected a JSON object"),
        ('{"label": 1}', "Line 7 has the keys ['label']; expected one of"),
        ('{"tokens": "a b"}', "Line 7 has 'tokens' 'a b', expected a list of texts"),
        ('{"text": "a", "choices": []}', "Line 7 has 'choices' []"),
    ],
)
def test_a_line_that_asks_nothing_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_query(line, 7)
    assert message in str(error.value)


def test_questions_come_from_a_file_from_stdin_and_from_arguments_alike(reading: Path, tmp_path: Path) -> None:  # noqa: F811
    model, rows = reading / "output" / "model", question_rows(13, 4)
    content = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "questions.jsonl").write_text(content)
    from_file = lines_of(call("predict", model, "--task", "where", "--file", tmp_path / "questions.jsonl"))
    assert lines_of(call("predict", model, "--task", "where", input=content)) == from_file
    pairs = [part for row in rows for part in ("--text-pair", row["context"])]
    questions = [row["question"] for row in rows]
    assert lines_of(call("predict", model, "--task", "where", *pairs, *questions)) == from_file
    assert [line["text"] for line in from_file] == questions
    bad = call("predict", model, "--file", tmp_path / "questions.jsonl", "--task", "nowhere")
    assert bad.exit_code == 2 and "no task 'nowhere'" in bad.stderr
    (tmp_path / "questions.jsonl").write_text(content + "red\n")
    bad = call("predict", model, "--file", tmp_path / "questions.jsonl")
    assert bad.exit_code == 2 and "Line 5 is no JSON" in bad.stderr


def test_choices_top_k_and_new_tokens_are_options(reading: Path, writing: Path) -> None:  # noqa: F811
    model = reading / "output" / "model"
    (line,) = lines_of(call("predict", model, "same red", "--choice", "red w1", "--choice", "blue w1"))
    assert line["task"] == "which" and line["choices"] == ["red w1", "blue w1"]
    assert "Give two or more" in call("predict", model, "same red", "--choice", "red").stderr
    (line,) = lines_of(call("predict", model, "--task", "gaps", "--top-k", "2", "red [MASK]"))
    assert len(line["masks"][0]) == 2
    short, long = (
        lines_of(call("predict", writing / "output" / "model", "--task", "low", "--max-new-tokens", n, "ab ba"))[0]
        for n in (1, 5)
    )
    assert len(short["generated"]) <= 1 and long["generated"].startswith(short["generated"])


def test_a_text_that_looks_like_nothing_is_no_json(unlike: Path) -> None:  # noqa: F811
    lines = lines_of(call("predict", unlike / "output" / "model", "--task", "color", input='red w1\n{"blue"}\n'))
    assert [line["text"] for line in lines] == ["red w1", '{"blue"}']
    assert lines[0]["label"] in COLORS
