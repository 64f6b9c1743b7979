"""Sequence classification in a recipe: labels, several labels, numbers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.recipe_files import (  # noqa: F401
    COLORS,
    color_rows,
    private_dataset_cache,
    refusal,
    run,
    write_recipe,
    write_task,
)
from transformers import EvalPrediction

from eidetic_hf import EideticModel
from eidetic_hf.configuration import TaskRecord
from eidetic_hf.recipe.kinds import recipe_kind_of
from eidetic_hf.recipe.kinds.base import TaskScore


def test_regression_multi_label_and_pairs_are_learned_in_one_recipe(tmp_path: Path) -> None:
    def rows(seed: int, count: int, make: Any) -> list[dict[str, Any]]:
        return [
            make(row, other) for row, other in zip(color_rows(seed, count), color_rows(seed + 50, count), strict=True)
        ]

    def task(name: str, make: Any, **values: Any) -> dict[str, Any]:
        splits = {"train": rows(1, 64, make), "validation": rows(2, 12, make), "test": rows(3, 24, make)}
        return write_task(tmp_path, name, splits, **values)

    tasks = [
        task(
            "brightness",
            lambda row, _: {"text": row["text"], "label": COLORS.index(row["label"]) / 2},
            problem_type="regression",
        ),
        task(
            "colors",
            lambda row, other: {
                "text": f"{row['text']} {other['text']}",
                "names": sorted({row["label"], other["label"]}),
            },
            problem_type="multi_label_classification",
            columns={"label": "names"},
            labels=COLORS,
            training={"max_steps": 60},
        ),
        task(
            "pair",
            lambda row, other: {"a": other["text"], "b": row["text"], "label": row["label"]},
            columns={"text": "a", "text_pair": "b"},
            pooling="first",
            forward_transfer="none",
        ),
    ]
    results, _ = run(write_recipe(tmp_path, tasks))
    scores = results["matrix"][-1]["scores"]
    assert results["metrics"] == {"brightness": "pearson", "colors": "f1", "pair": "accuracy"}
    assert scores["brightness"] > 0.8
    assert scores["colors"] > 0.7
    assert 0 <= scores["pair"] <= 1
    assert {row["scores"]["brightness"] for row in results["matrix"]} == {scores["brightness"]}
    model = EideticModel.from_pretrained(tmp_path / "output" / "model")
    assert model.record("brightness").labels == ["score"]
    assert model.record("pair").pooling == "first"
    assert model.record("pair").ancestors == []
    assert model.record("colors").ancestors == ["brightness"]


def test_whole_numbers_are_positions_in_the_list_of_labels(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": COLORS.index(row["label"])} for row in color_rows(0, 60)]
    task = write_task(tmp_path, "first", {"train": rows}, labels=COLORS, training={"max_steps": 2})
    results, _ = run(write_recipe(tmp_path, [task]))
    assert results["tasks"][0]["labels"] == COLORS


def test_without_a_list_the_labels_are_the_sorted_ones_of_the_training_split(tmp_path: Path) -> None:
    rows = [{"text": f"w{i}", "label": i % 11} for i in range(44)]
    task = write_task(tmp_path, "first", {"train": rows}, training={"max_steps": 2})
    results, _ = run(write_recipe(tmp_path, [task]))
    assert results["tasks"][0]["labels"] == [str(i) for i in range(11)]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_unknown_label_in_any_split_is_refused(tmp_path: Path, split: str) -> None:
    rows = {"train": color_rows(0), "validation": color_rows(1), "test": color_rows(2)}
    rows[split][3] = {"text": "w1", "label": "pink"}
    message = refusal(write_recipe(tmp_path, [write_task(tmp_path, "first", rows, labels=COLORS)]))
    assert f"row 3 of the {split} split has the label 'pink'" in message


def test_the_same_answer_to_everything_has_no_correlation_but_a_score() -> None:
    record = TaskRecord("n", labels=["score"], options={"problem_type": "regression"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = TaskScore(recipe_kind_of("sequence-classification"), record, "pearson")(
            EvalPrediction(np.ones((3, 1)), np.arange(3.0))
        )
    assert scores == {"mse": pytest.approx(2 / 3), "pearson": 0.0, "spearman": 0.0}
