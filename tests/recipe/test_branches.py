"""Branches, versions and base itself in a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.recipe_files import changed, predictor, refusal, run, size_rows, write_recipe, write_task

from eidetic_hf import EideticModel
from eidetic_hf.recipe.kinds.asking import Query

COPY = {"growth": "copy", "pruning": {"own": 0.2}}


@pytest.mark.slow
def test_a_recipe_learns_on_branches_and_versions_and_keeps_base(tmp_path: Path) -> None:
    sizes = {split: size_rows(seed, n) for seed, (split, n) in enumerate({"train": 48, "test": 20}.items())}
    tasks = [
        write_task(tmp_path, "color"),
        write_task(tmp_path, "size", sizes, based_on="auto"),
        write_task(tmp_path, "color@2", based_on="color"),
    ]
    path = write_recipe(tmp_path, tasks, preserve=True, **COPY)
    results, _ = run(path)
    model = EideticModel.from_pretrained(tmp_path / "output" / "model")
    assert model.tasks == ["color", "size", "color@2", "base"] and model.verify().ok
    assert model.record("color@2").ancestors == ["color"] and not any(model.record("base").units.values())
    assert model.record("size").ancestors in ([], ["color"])
    assert [task["name"] for task in results["tasks"]] == ["color", "size", "color@2"]
    assert list(results["steps"][-1]["scores"]) == ["color", "size", "color@2"]
    # Texts of both versions belong to the default one.
    confusion, scores = results["routing"]["confusion"], results["routing"]["scores"]
    assert confusion["color@2"]["color@2"] == confusion["color"]["color@2"] == confusion["color"]["base"] == 0
    assert scores["color@2"]["routing_accuracy"] == confusion["color@2"]["color"] / 20
    assert {line["task"] for line in predictor(tmp_path).answers([Query("red w1")], "color@1")} == {"color"}
    again, lines = run(path)
    assert lines == [f"{name}: already committed, skipped" for name in ("color", "size", "color@2")]
    assert again["steps"] == results["steps"] and again["routing"] == results["routing"]


def test_a_recipe_whose_branches_versions_or_base_can_not_be_is_refused(tmp_path: Path) -> None:
    tasks = [write_task(tmp_path, "color"), write_task(tmp_path, "color@2", based_on="size")]
    path = write_recipe(tmp_path, tasks, **COPY)
    assert "expected a task before it, of ['color'], or auto, in a recipe with `growth: copy`" in refusal(path)
    tasks[1].update(based_on="auto")
    assert "or auto, in a recipe with `growth: copy`" in refusal(changed(path, tasks=tasks, growth="fixed"))
    assert "'color@2' would be a version of 'color', which is no task before it" in refusal(
        changed(path, tasks=tasks[::-1], growth="copy")
    )
    assert "task 1 of the recipe" in refusal(changed(path, tasks=[{**tasks[0], "name": 3}])).lower()
    assert "its number from 2 on" in refusal(changed(path, tasks=[{**tasks[0], "name": "color@1"}]))
    assert "expected true or false" in refusal(changed(path, tasks=tasks[:1], preserve="yes"))
    assert "`preserve: true` in the recipe: expected `growth: copy`" in refusal(
        changed(path, preserve=True, growth="fixed")
    )
    assert "no task that is named 'base'" in refusal(
        changed(path, tasks=[{**tasks[0], "name": "base"}], growth="copy")
    )
