"""What the results of a run say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.recipe_files import (  # noqa: F401
    COLORS,
    finished,
    private_dataset_cache,
    reading,
    results_of,
    writing,
)

from eidetic_hf import EideticModel
from eidetic_hf.recipe.kinds import lower_is_better
from eidetic_hf.recipe.results import continual_metrics
from eidetic_hf.recipe.tables import continual_lines


def test_results_hold_what_the_model_says_of_itself(finished: Path) -> None:  # noqa: F811
    results = json.loads((finished / "output" / "results.json").read_text())
    model = EideticModel.from_pretrained(finished / "output" / "model")
    assert model.tasks == ["first", "second"]
    assert [step["units"] for step in results["steps"]] == [model.record(name).units for name in model.tasks]
    assert results["steps"][1]["capacity"] == model.capacity()
    assert [task["labels"] for task in results["tasks"]] == [COLORS, COLORS]
    assert results["recipe"] == (finished / "colors.yaml").read_text()
    assert results["environment"]["torch"] == torch.__version__


def test_continual_metrics_follow_their_definitions() -> None:
    matrix = [
        {"task": "a", "scores": {"a": 0.8}},
        {"task": "b", "scores": {"a": 0.9, "b": 0.6}},
        {"task": "c", "scores": {"a": 0.7, "b": 0.6, "c": 0.5}},
    ]
    found = continual_metrics(matrix, dict.fromkeys("abc", "accuracy"), ["mse"])
    assert found["average_accuracy"] == pytest.approx(0.6)
    assert found["backward_transfer"] == pytest.approx(-0.05)
    assert found["forgetting"] == pytest.approx(0.1)


def test_an_error_is_not_averaged_with_scores() -> None:
    matrix = [{"task": "a", "scores": {"a": 9.0}}, {"task": "b", "scores": {"a": 9.0, "b": 0.5}}]
    found = continual_metrics(matrix, {"a": "mse", "b": "accuracy"}, ["mse"])
    assert found["average_accuracy"] == 0.5
    assert found["averaged_tasks"] == ["b"]
    assert found["forgetting"] is None
    assert found["by_metric"] == {
        "mse": {"average": 9.0, "backward_transfer": 0.0, "forgetting": 0.0, "tasks": ["a"]},
        "accuracy": {"average": 0.5, "backward_transfer": None, "forgetting": None, "tasks": ["b"]},
    }


def test_a_correlation_and_an_f1_are_no_accuracy() -> None:
    matrix = [{"task": "a", "scores": {"a": 0.9}}, {"task": "b", "scores": {"a": 0.9, "b": 0.4}}]
    found = continual_metrics(matrix, {"a": "pearson", "b": "f1"}, [])
    assert found["average_accuracy"] is None and found["averaged_tasks"] == []
    assert {metric: row["average"] for metric, row in found["by_metric"].items()} == {"pearson": 0.9, "f1": 0.4}
    lines = continual_lines({**found, "lower_is_better": []})
    assert lines == ["average pearson: 0.9000", "pearson lost to later tasks: 0.0000", "average f1: 0.4000"]


def test_what_is_lost_is_positive_where_less_is_better_too() -> None:
    matrix = [
        {"task": "a", "scores": {"a": 12.0}},
        {"task": "b", "scores": {"a": 10.0, "b": 20.0}},
        {"task": "c", "scores": {"a": 15.0, "b": 18.0, "c": 30.0}},
    ]
    found = continual_metrics(matrix, dict.fromkeys("abc", "perplexity"), lower_is_better())
    assert found["average_accuracy"] is found["backward_transfer"] is found["forgetting"] is None
    perplexity = found["by_metric"]["perplexity"]
    assert perplexity["average"] == pytest.approx(21.0)
    assert perplexity["backward_transfer"] == pytest.approx((-3.0 + 2.0) / 2)
    assert perplexity["forgetting"] == pytest.approx((5.0 + 0.0) / 2), "against the best, not against the commit"


def test_perplexities_are_averaged_apart_from_shares(reading: Path, writing: Path) -> None:  # noqa: F811
    results = results_of(reading)
    accurate = [task for task, metric in results["metrics"].items() if metric == "accuracy"]
    assert results["averaged_tasks"] == accurate and "color" in accurate
    gaps = results["by_metric"]["perplexity"]
    assert gaps["tasks"] == ["gaps"] and gaps["average"] == results["matrix"][-1]["scores"]["gaps"]
    assert gaps["forgetting"] == 0.0
    language = results_of(writing)
    assert language["average_accuracy"] is None and language["averaged_tasks"] == []
    found = language["by_metric"]["perplexity"]
    assert found["tasks"] == ["low", "high", "answer"]
    assert found["average"] == pytest.approx(sum(language["matrix"][-1]["scores"].values()) / 3)
