"""The splits of a task, and the rows that are refused."""

from __future__ import annotations

import re
import time
from pathlib import Path

import datasets
import pytest
from support.recipe_files import (  # noqa: F401
    choice_rows,
    color_rows,
    pair_rows,
    private_dataset_cache,
    question_rows,
    refusal,
    refused,
    run,
    tag_rows,
    verse_rows,
    write_recipe,
    write_task,
)

from eidetic_hf.recipe.kinds.labels import label_numbers
from eidetic_hf.recipe.recipe import TaskRecipe
from eidetic_hf.recipe.task_data import described


def test_a_missing_validation_split_is_a_tenth_of_train_and_a_missing_test_split_is_validation(tmp_path: Path) -> None:
    task = write_task(tmp_path, "first", {"train": color_rows(0, 50)}, training={"max_steps": 2})
    results, _ = run(write_recipe(tmp_path, [task]))
    assert results["tasks"][0]["examples"] == {"train": 45, "validation": 5, "test": 5}


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_refused(tmp_path: Path, split: str) -> None:
    rows = {"train": color_rows(0), "validation": color_rows(1), "test": color_rows(2)}
    message = refusal(write_recipe(tmp_path, [write_task(tmp_path, "first", {**rows, split: []})]))
    assert "a split is empty, every one needs at least one row" in message


def test_a_row_without_text_is_refused(tmp_path: Path) -> None:
    rows = [*color_rows(0, 20), {"text": None, "label": "red"}]
    message = refusal(write_recipe(tmp_path, [write_task(tmp_path, "first", {"train": rows})]))
    assert "1 rows of the train split have no 'text'" in message


@pytest.mark.parametrize(
    ("type_", "role"),
    [
        ("token-classification", "tags"),
        ("question-answering", "context"),
        ("multiple-choice", "choices"),
        ("masked-lm", "text"),
        ("feature-extraction", "text_pair"),
        ("seq2seq-lm", "target"),
    ],
)
def test_a_missing_column_is_named_with_what_to_write(tmp_path: Path, type_: str, role: str) -> None:
    whole = {
        "token-classification": tag_rows(0, 3),
        "question-answering": question_rows(0, 3),
        "multiple-choice": choice_rows(0, 3),
        "masked-lm": verse_rows("red", 0, 3),
        "feature-extraction": pair_rows(0, 3),
        "seq2seq-lm": [{"source": "red", "target": "red"}] * 3,
    }[type_]
    rows = [{("other" if key == role else key): value for key, value in row.items()} for row in whole]
    message = refused(tmp_path, rows, type=type_)
    assert f"the train split has no column '{role}'" in message
    assert f"`columns: {{{role}: NAME}}`" in message


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["red", 1], r"has 1 \(int\) in the column 'label', where row 0 of the train split has 'red' \(str\)"),
        ([2, "red"], r"has 'red' \(str\) in the column 'label', where row 0 of the train split has 2 \(int\)"),
        ([True, 0], r"has 0 \(int\) .* has True \(bool\)"),
        ([["red"], "red"], r"has 'red' \(str\) .* has \['red'\] \(list of str\)"),
        ([{"name": "red"}, {"name": "blue"}], r"the column 'label' holds .*, expected one label a row"),
    ],
)
def test_labels_of_several_types_are_named_with_their_rows(tmp_path: Path, labels: list[object], found: str) -> None:
    rows = [{"text": "a text", "label": labels[0]}, {"text": "another", "label": labels[1]}]
    assert re.search(found, refused(tmp_path, rows))


def test_a_text_of_another_type_is_named_with_its_row(tmp_path: Path) -> None:
    rows = [{"text": "red", "label": "a"}, {"text": 7, "label": "b"}]
    assert "has 7 (int) in the column 'text', where row 0 of the train split" in refused(tmp_path, rows)


def test_data_that_is_not_in_utf_8_is_refused_before_training(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, [write_task(tmp_path, "first", {"train": color_rows(0, 20)})])
    file = next(tmp_path.rglob("*train*.jsonl"))
    file.write_bytes(file.read_bytes().replace(b'"text": "', b'"text": "caf\xe9 ', 1))
    message = refusal(path)
    assert "the column 'text' of the train split can not be read" in message and "Save the file in UTF-8" in message


def test_twenty_thousand_labels_are_numbered_in_a_moment() -> None:
    names = [f"label {number}" for number in range(20_000)]
    rows = datasets.Dataset.from_dict({"text": names, "label": names})
    start = time.process_time()
    labels, numbers = label_numbers(TaskRecipe("t", {}, columns={"label": "label"}), {"train": rows}, "")
    assert time.process_time() - start < 2, "it takes 0.2 s; several if it grows with the square of the labels"
    assert [numbers[name] for name in labels] == list(range(20_000))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (
            {"path": "user/news", "name": "small", "revision": "v1"},
            {"dataset": "user/news", "config": "small", "revision": "v1"},
        ),
        ({"path": "user/news", "data_files": "a.json"}, {"dataset": "user/news"}),
        ({"path": "imdb"}, {"dataset": "imdb"}),
        ({"path": "json", "data_files": {"train": "secret/train.json"}}, {}),
        ({"path": "csv", "data_dir": "secret"}, {}),
        ({"path": "folder/data"}, {}),
        ({"path": "https://user:password@example.org/data"}, {}),
    ],
)
def test_a_data_set_of_the_hub_is_named_and_no_file_or_folder_is(
    data: dict[str, object], named: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]}, split="validation")
    found = described(TaskRecipe("news", data), {"train": rows, "validation": rows.select([0])})
    assert found == {**named, "split": "validation", "rows": {"train": 2, "validation": 1}}
