"""Tasks that are learned side by side: the same folder, byte for byte, as one after another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from support.command_line import call
from support.folders import hashes
from support.recipe_files import changed, private_dataset_cache, run, write_recipe, write_task  # noqa: F401

from eidetic_hf import EideticModel
from eidetic_hf.recipe import jobs
from eidetic_hf.recipe.jobs import learn_side_by_side, log_of, read_note, write_note
from eidetic_hf.recipe.recipe import RecipeError
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.run import run_recipe

pytestmark = pytest.mark.slow  # a process that imports torch and transformers for each job


@pytest.fixture(autouse=True)
def shared_dataset_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers keep what `datasets` caches where the tests do."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(datasets.config.HF_DATASETS_CACHE))


def write_jobs(folder: Path, **values: Any) -> Path:
    """A recipe of two tasks on the backbone and one on the branch of the first; with dropout, and data in an order."""
    tasks = [
        write_task(folder, "first", **values),
        write_task(folder, "second", pruning={"see": 0.5}),
        write_task(folder, "branch", based_on="first"),
    ]
    return write_recipe(folder, tasks, growth="copy", pruning={"own": 0.3})


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    """Results without what a clock has measured."""
    tasks = [{**task, "seconds": None} for task in results["tasks"]]
    return {**results, "tasks": tasks, "steps": [{**step, "seconds": None} for step in results["steps"]]}


def test_a_run_of_several_processes_of_which_one_fails_at_first_leaves_what_one_after_another_does(
    tmp_path: Path,
) -> None:
    path = write_jobs(tmp_path)
    one, _ = run(path)
    alone = hashes(tmp_path / "output" / "model")
    assert len([name for name in alone if name.endswith(".safetensors")]) == 5

    right = yaml.safe_load(path.read_text())
    wrong = {**right["tasks"][0], "training": {"learning_rate": 1e30, "max_grad_norm": 0}}
    changed(path, output=str(tmp_path / "jobs"), tasks=[wrong, *right["tasks"][1:]])
    said: list[str] = []
    with pytest.raises(RecipeError) as error:
        run_recipe(read_recipe(path), said.append, jobs=2)
    log = tmp_path / "jobs" / "jobs" / "first.log"
    assert "task 'first' was not learned: TaskError: 'first' is not committed" in str(error.value)
    assert f"(log: {log})" in str(error.value) and "Traceback" in log.read_text()
    assert "task 'branch' was not learned: it is based on 'first', which was not learned" in str(error.value)
    assert "['second'] are learned" in str(error.value)
    assert not (tmp_path / "jobs" / "model").exists()
    assert any(line.startswith("second  learned in ") for line in said)
    assert any(line.startswith("first   failed: TaskError") for line in said)

    changed(path, tasks=right["tasks"])
    said.clear()
    two = run_recipe(read_recipe(path), said.append, jobs=2)
    assert not [line for line in said if line.startswith("second  ")], "it was learned in the run before"
    starts = [line.partition("  ")[0] for line in said if ": task " in line]
    assert starts == ["first ", "branch"] or starts == ["first", "branch"]
    assert hashes(tmp_path / "jobs" / "model") == alone
    assert without_times(two)["steps"] == without_times(one)["steps"]
    same = [key for key in one if key not in ("recipe", "steps", "tasks")]
    assert {key: two[key] for key in same} == {key: one[key] for key in same}
    assert without_times(two)["tasks"] == without_times(one)["tasks"]
    assert all(task["seconds"] > 0 for task in two["tasks"])
    assert sorted(file.name for file in (tmp_path / "jobs").iterdir()) == ["model", "results.json"]
