"""Pairs of sentences in a recipe, and embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.recipe_files import (  # noqa: F401
    SPLIT_SIZES,
    pair_rows,
    predictor,
    private_dataset_cache,
    reading,
    refused,
    splits_of,
    verse_rows,
    write_recipe,
    write_task,
)
from transformers import AutoTokenizer

from eidetic_hf import EideticModel
from eidetic_hf.recipe.kinds.asking import Query
from eidetic_hf.recipe.recipe import RecipeError
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.run import run_recipe
from eidetic_hf.recipe.task_data import load_task_data


@pytest.mark.parametrize("score", [6.0, -6.0, float("nan")])
def test_scores_beyond_the_largest_are_refused(tmp_path: Path, score: float) -> None:
    rows = pair_rows(0, 3)
    rows[2] = {**rows[2], "score": score}
    values = {"type": "feature-extraction", "columns": {"score": "score"}, "max_score": 5}
    assert f"row 2 of the train split has the score {score!r}; expected a number from -5 to 5" in refused(
        tmp_path, rows, **values
    )


def test_a_correlation_needs_two_rows(tmp_path: Path) -> None:
    rows = {"train": pair_rows(0, 4), "test": pair_rows(1, 1)}
    task = write_task(tmp_path, "task", rows, type="feature-extraction", columns={"score": "score"}, max_score=5)
    recipe = read_recipe(write_recipe(tmp_path, [task]))
    with pytest.raises(RecipeError, match="the validation split has one row, and a correlation needs two"):
        load_task_data(recipe, recipe.tasks[0], AutoTokenizer.from_pretrained(tmp_path / "backbone"))


def test_an_embedding_is_a_list_and_a_pair_has_a_similarity(reading: Path) -> None:  # noqa: F811
    asks = predictor(reading)
    single, pair, same = asks.answers(
        [Query("red w1"), Query("red w1", "blue w2"), Query("red w1", "red w1")], "alike"
    )
    assert "similarity" not in single
    assert single["embedding"] == pytest.approx(pair["embedding"], abs=1e-6)
    assert sum(value * value for value in single["embedding"]) == pytest.approx(1, abs=1e-5), "scaled to length 1"
    assert same["similarity"] == pytest.approx(1, abs=1e-5) and pair["similarity"] < 0.999


def test_pairs_without_scores_are_learned_from_each_other(tmp_path: Path) -> None:
    rows = {
        split: [{"a": f"{r['text']}", "b": r["text"]} for r in verse]
        for split, verse in splits_of(verse_rows, "red w1 w2 w3 w4 w5").items()
    }
    task = write_task(
        tmp_path,
        "alike",
        rows,
        type="feature-extraction",
        columns={"text": "a", "text_pair": "b"},
        temperature=0.1,
        training={"max_steps": 4},
    )
    results = run_recipe(read_recipe(write_recipe(tmp_path, [task])), lambda line: None)
    assert results["metrics"] == {"alike": "loss"}
    assert 0 < results["matrix"][0]["scores"]["alike"] < 2.5
    record = EideticModel.from_pretrained(tmp_path / "output" / "model").record("alike")
    assert record.temperature == 0.1 and record.normalize is True


def test_examples_of_pairs_are_similar_as_the_data_says(reading: Path) -> None:  # noqa: F811
    recipe = read_recipe(reading / "colors.yaml")
    tokenizer = AutoTokenizer.from_pretrained(reading / "output" / "model")
    labels = load_task_data(recipe, recipe.task("alike"), tokenizer).splits["train"]["labels"][:]
    assert labels == [row["score"] / 5 for row in pair_rows(0, SPLIT_SIZES["train"])]
