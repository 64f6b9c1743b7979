"""Recipes: what they may say, and that the documentation says it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from support.recipe_files import (  # noqa: F401
    private_dataset_cache,
    write_recipe,
    write_task,
)

from eidetic_hf.recipe.kinds import RECIPE_KINDS
from eidetic_hf.recipe.recipe import Recipe, TaskRecipe
from eidetic_hf.recipe.recipe_file import NO_KEYS, read_recipe


def test_settings_of_a_task_go_over_those_of_the_recipe(tmp_path: Path) -> None:
    tasks = [write_task(tmp_path, "first", pruning={"keep": 0.9}, training={"learning_rate": 1e-3})]
    recipe = read_recipe(write_recipe(tmp_path, tasks, seed=7))
    assert recipe.pruning_config(recipe.tasks[0]).keep == 0.9
    arguments = recipe.training_arguments(recipe.tasks[0])
    assert (arguments.learning_rate, arguments.max_steps, arguments.seed) == (1e-3, 24, 7)
    assert arguments.metric_for_best_model == "accuracy" and arguments.greater_is_better is True


@pytest.mark.parametrize(
    ("values", "metric", "greater"),
    [
        ({"type": "token-classification"}, "f1", True),
        ({"type": "question-answering", "metric": "exact_match"}, "exact_match", True),
        ({"type": "multiple-choice"}, "accuracy", True),
        ({"type": "causal-lm"}, "perplexity", False),
        ({"type": "seq2seq-lm"}, "perplexity", False),
        ({"type": "seq2seq-lm", "metric": "exact_match"}, "exact_match", True),
        ({"type": "masked-lm", "metric": "accuracy"}, "accuracy", True),
        ({"type": "feature-extraction", "columns": {"score": "score"}}, "spearman", True),
        ({"type": "feature-extraction"}, "loss", False),
        ({"problem_type": "regression", "metric": "mse"}, "mse", False),
    ],
)
def test_each_kind_has_a_metric_and_knows_whether_more_is_better(
    tmp_path: Path, values: dict[str, Any], metric: str, greater: bool
) -> None:
    recipe = read_recipe(write_recipe(tmp_path, [write_task(tmp_path, "first", **values)]))
    arguments = recipe.training_arguments(recipe.tasks[0])
    assert recipe.tasks[0].metric == arguments.metric_for_best_model == metric
    assert arguments.greater_is_better is greater


def test_the_documentation_names_every_key_of_a_recipe() -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    keys = {f.name for f in dataclasses.fields(Recipe)} - {"name", "folder", "source"}
    keys |= {f.name for f in dataclasses.fields(TaskRecipe)} - set(NO_KEYS)
    for kind in RECIPE_KINDS.values():  # another test may have registered one of its own
        if not type(kind).__module__.startswith("eidetic_hf."):
            continue
        keys |= {kind.name, *kind.settings.names(), *kind.columns, *kind.metrics}
    assert not {key for key in keys if not re.search(rf"\b{key}\b", text)}


@pytest.mark.parametrize("name", ["quickstart", "standard", "kinds", "language", "sentences", "instructions"])
def test_the_recipes_of_the_repository_are_valid(name: str) -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")
    assert recipe.output == Path("runs") / name
    assert len(recipe.tasks) >= 2
