"""Answers to texts as JSON-ready values: each kind of task, named and routed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipe_files import (  # noqa: F401
    COLORS,
    choice_rows,
    private_dataset_cache,
    question_rows,
    reading,
    tag_rows,
    unlike,
    writing,
)
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from eidetic_hf import EideticModel, TaskRecord
from eidetic_hf.cli import app
from eidetic_hf.recipe.kinds.asking import Query
from eidetic_hf.recipe.kinds.token_tags import find_words, word_answer
from eidetic_hf.recipe.predicting import Predictor, read_query


def predictor(folder: Path, **options: Any) -> Predictor:
    model = EideticModel.from_pretrained(folder / "output" / "model")
    return Predictor(model, AutoTokenizer.from_pretrained(folder / "output" / "model"), **options)


def call(*arguments: object, **kwargs: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"}, **kwargs)


def lines_of(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


# -- the answer of each kind ------------------------------------------------------------------------------------------


def test_entities_have_places_in_the_text_and_the_mean_score_of_their_words() -> None:
    record = TaskRecord("ner", "token-classification", labels=["O", "B-x", "I-x", "B-y", "I-y"])
    text = "big red cat, blue"
    chances = torch.full((5, 5), 0.1)
    for word, label in enumerate([0, 1, 2, 0, 3]):
        chances[word, label] = 0.6 if word == 1 else 0.8
    words = [((0, 3), chances[0]), ((4, 7), chances[1]), ((8, 11), chances[2]), ((11, 12), chances[3])]
    answer = word_answer(record, text, [*words, ((13, 17), chances[4])])
    assert [list(entity) for entity in answer["entities"]] == [["entity", "text", "start", "end", "score"]] * 2
    assert [tuple(entity.values())[:4] for entity in answer["entities"]] == [
        ("x", "red cat", 4, 11),
        ("y", "blue", 13, 17),
    ]
    assert [entity["score"] for entity in answer["entities"]] == pytest.approx([0.7, 0.8])


def test_tags_that_mark_no_entities_are_given_for_each_word() -> None:
    record = TaskRecord("pos", "token-classification", labels=["NOUN", "VERB"])
    answer = word_answer(record, "dogs run", [((0, 4), torch.tensor([0.9, 0.1])), ((5, 8), torch.tensor([0.2, 0.8]))])
    assert [(word["text"], word["label"]) for word in answer["words"]] == [("dogs", "NOUN"), ("run", "VERB")]
    assert [word["score"] for word in answer["words"]] == pytest.approx([0.9, 0.8])


def test_marks_around_words_are_words_of_their_own() -> None:
    text = 'Said @bob_1: "it\'s New-York (U.S.)!" #now'
    words = [text[start:end] for start, end in find_words(text)]
    assert words == ["Said", "@bob_1", ":", '"', "it's", "New-York", "(", "U.S", ".", ")", "!", '"', "#now"]


def test_entities_of_words_are_those_of_the_text_that_they_make(reading: Path) -> None:  # noqa: F811
    asks, rows = predictor(reading), tag_rows(7, 6)
    texts = [" ".join(row["tokens"]) for row in rows]
    from_words = list(
        asks.answers([Query(t, tokens=tuple(r["tokens"])) for t, r in zip(texts, rows, strict=True)], "names")
    )
    from_texts = list(asks.answers([Query(text) for text in texts], "names"))
    assert [line["entities"] for line in from_words] == [line["entities"] for line in from_texts]
    found = [entity for line in from_texts for entity in line["entities"]]
    assert found and {entity["entity"] for entity in found} == {"color"}
    for line in from_texts:
        assert all(line["text"][e["start"] : e["end"]] == e["text"] for e in line["entities"])


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


def test_a_choice_is_the_text_with_the_largest_score(reading: Path) -> None:  # noqa: F811
    rows = choice_rows(9, 5)
    queries = [Query(row["text"], choices=tuple(row["choices"])) for row in rows]
    lines = list(predictor(reading).answers([*queries, Query("same red", choices=("red", "blue"))], "which"))
    for line in lines:
        assert line["scores"][line["index"]] == line["score"] == max(line["scores"])
        assert sum(line["scores"]) == pytest.approx(1)
        assert line["choice"] == line["choices"][line["index"]]
    assert len(lines[-1]["scores"]) == 2, "another number than in training"


def test_an_embedding_is_a_list_and_a_pair_has_a_similarity(reading: Path) -> None:  # noqa: F811
    asks = predictor(reading)
    single, pair, same = asks.answers(
        [Query("red w1"), Query("red w1", "blue w2"), Query("red w1", "red w1")], "alike"
    )
    assert "similarity" not in single
    assert single["embedding"] == pytest.approx(pair["embedding"], abs=1e-6)
    assert sum(value * value for value in single["embedding"]) == pytest.approx(1, abs=1e-5), "scaled to length 1"
    assert same["similarity"] == pytest.approx(1, abs=1e-5) and pair["similarity"] < 0.999


def test_gaps_are_filled_with_the_likeliest_tokens(reading: Path) -> None:  # noqa: F811
    asks = predictor(reading, top_k=3)
    (line,) = asks.answers([Query("red [MASK] w2 [MASK]")], "gaps")
    assert len(line["masks"]) == 2 and all(len(some) == 3 for some in line["masks"])
    for some in line["masks"]:
        scores = [guess["score"] for guess in some]
        assert scores == sorted(scores, reverse=True) and 0 < scores[0] < 1
    first, second = (some[0]["token"] for some in line["masks"])
    assert line["filled"] == f"red {first} w2 {second}"


def test_a_language_model_goes_on_and_answers_prompts_in_their_template(writing: Path) -> None:  # noqa: F811
    asks = predictor(writing, max_new_tokens=6)
    (line,) = asks.answers([Query("ab ba")], "low")
    ids = asks.tokenizer("ab ba", return_tensors="pt")
    written = asks.model.generate(**ids, task="low", max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert line == {
        "text": "ab ba",
        "task": "low",
        "generated": asks.tokenizer.decode(written, skip_special_tokens=True),
    }
    (answer,) = asks.answers([Query("red w1")], "answer")
    ids = asks.tokenizer("red w1 > ", return_tensors="pt")
    written = asks.model.generate(**ids, task="answer", max_new_tokens=6, do_sample=False)[
        0, ids["input_ids"].shape[1] :
    ]
    assert answer["generated"] == asks.tokenizer.decode(written, skip_special_tokens=True)


def test_prompts_of_one_batch_are_continued_as_alone(writing: Path) -> None:  # noqa: F811
    asks = predictor(writing, max_new_tokens=6)
    texts = ["ab", "abba ab ba", "b"]
    together = [line["generated"] for line in asks.answers([Query(text) for text in texts], "low")]
    assert together == [next(asks.answers([Query(text)], "low"))["generated"] for text in texts]


# -- what a task can not answer ---------------------------------------------------------------------------------------


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


def test_a_prompt_longer_than_the_context_is_refused(writing: Path) -> None:  # noqa: F811
    long, empty = predictor(writing).answers([Query("a" * 70), Query("")], "low")
    assert long["error"] == "The prompt has 70 tokens, expected 1 to 63."
    assert empty["error"] == "The prompt has 0 tokens, expected 1 to 63."


# -- routed -----------------------------------------------------------------------------------------------------------


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
    assert list(line) == ["text", "task", "task_score", "task_scores", "outlier_score"]


# -- JSON lines and the command line ----------------------------------------------------------------------------------


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
