"""Tasks that are learned side by side: the same folder, byte for byte, as one after another."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from support.backbones import tiny_backbone
from support.command_line import call
from support.folders import hashes
from support.recipe_files import changed, private_dataset_cache, run, write_recipe, write_task  # noqa: F401

from eidetic_hf import EideticModel
from eidetic_hf.network import importance
from eidetic_hf.recipe import jobs
from eidetic_hf.recipe.jobs import check_jobs, folder_of, learn_side_by_side, log_of, read_note
from eidetic_hf.recipe.plugins import load_plugin
from eidetic_hf.recipe.recipe import Recipe, RecipeError, TaskRecipe
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.run import run_recipe

PLUGIN = """
from eidetic_hf.network.importance import Importance, register_importance

register_importance(Importance("largest", lambda sums, weights, seed: weights()[0].abs().amax(1)))
"""


def write_jobs(folder: Path) -> Path:
    """A recipe of two tasks on the backbone, of which one masks some of it out, and one on the branch of the first."""
    tasks = [
        write_task(folder, "first"),
        write_task(folder, "second", pruning={"see": 0.5, "importance": "largest"}),
        write_task(folder, "branch", based_on="first"),
    ]
    return write_recipe(folder, tasks, growth="copy", pruning={"own": 0.3})


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    """Results without what a clock has measured, and what the recipe says."""
    kept = {name: value for name, value in results.items() if name != "recipe"}
    for name in ("tasks", "steps"):
        kept[name] = [{**row, "seconds": None} for row in results[name]]
    return kept


@pytest.mark.slow
def test_several_processes_of_which_one_fails_at_first_leave_what_one_after_another_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(datasets.config.HF_DATASETS_CACHE))
    monkeypatch.setattr(importance, "_IMPORTANCES", dict(importance._IMPORTANCES))
    plugin = tmp_path / "largest_weight.py"
    plugin.write_text(PLUGIN)
    load_plugin(str(plugin), tmp_path)  # as the command line does with --plugin
    path = write_jobs(tmp_path)
    one, _ = run(path)
    alone = hashes(tmp_path / "output" / "model")
    assert len([name for name in alone if name.endswith(".safetensors")]) == 6

    right = yaml.safe_load(path.read_text())["tasks"]
    wrong = {**right[1], "training": {"learning_rate": 1e30, "max_grad_norm": 0}}
    changed(path, output=str(tmp_path / "jobs"), tasks=[right[0], wrong, right[2]])
    result = call("train", path, "--jobs", 2)
    assert result.exit_code == 2
    log = tmp_path / "jobs" / "jobs" / "second" / "log.txt"
    assert "Task 'second' was not learned: TaskError: 'second' is not committed" in result.stderr
    assert f"(log: {log})" in result.stderr and "Traceback" in log.read_text()
    assert "['branch'] are learned" in result.stderr
    said = result.stdout.splitlines()
    assert sum(line.startswith("second  failed: TaskError") for line in said) == 1
    for name in ("first ", "branch"):
        assert sum(line.startswith(f"{name}  learned in ") for line in said) == 1
    assert EideticModel.from_pretrained(tmp_path / "jobs" / "model").tasks == ["first"], "up to what is missing"

    two, lines = run(changed(path, tasks=right))
    assert lines[0] == "first: already committed, skipped" and lines[1].startswith("second: task 2 of 3")
    assert not [line for line in lines if "branch: task" in line], "it was learned in the run before"
    assert hashes(tmp_path / "jobs" / "model") == alone
    assert without_times(two) == without_times(one)
    assert all(task["seconds"] > 0 for task in two["tasks"])
    assert sorted(file.name for file in (tmp_path / "jobs").iterdir()) == ["model", "results.json"]
    again: list[str] = []
    assert run_recipe(read_recipe(path), again.append, jobs=2)["steps"] == two["steps"]
    assert again == [f"{name}: already committed, skipped" for name in ("first", "second", "branch")]


# -- who may begin, and what is said, with processes that learn nothing -----------------------------------------------

# Reads its order without importing what it is made of, says that it has begun, and ends as a file tells it to.
DUMMY = """
import json, os, pathlib, pickle, sys, time

class Any:
    def __new__(cls, *_): return object.__new__(cls)

class Reader(pickle.Unpickler):
    def find_class(self, module, name): return Any

def send(*line): print(json.dumps(line), flush=True)

for _ in range(3): order = Reader(sys.stdin.buffer).load()
send("said", f"begun with {order.threads} threads, {os.environ['OMP_NUM_THREADS']}")
file = pathlib.Path(os.environ["DUMMIES"], order.task)
while not file.exists(): time.sleep(0.01)
end = file.read_text()
if end == "killed": os.kill(os.getpid(), 9)
if end == "failed": send("failed", "ValueError: no"); sys.exit(1)
if end == "whole": pathlib.Path(os.environ["DUMMIES"], "jobs", order.task, "learned.json").write_text("{}")
"""


def plan(folder: Path, **based_on: str | None) -> Recipe:
    """A recipe with tasks of these names, each based on another or on the backbone."""
    tasks = [TaskRecipe(name, {}, based_on=other) for name, other in based_on.items()]
    return Recipe("plan", folder, "", "nowhere", tasks, folder, growth="copy")


class Scheduled:
    """Dummies that learn the tasks of a recipe, two at once, and what is known of them."""

    def __init__(self, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, known: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(jobs, "_START", DUMMY)
        monkeypatch.setenv("DUMMIES", str(recipe.output))
        self.folder, self.said, self.failures = recipe.output, [], None
        self.thread = threading.Thread(target=self._run, args=(recipe, known))
        self.thread.start()

    def _run(self, recipe: Recipe, known: tuple[str, ...]) -> None:
        missing = [task for task in recipe.tasks if task.name not in known]
        self.failures = learn_side_by_side(recipe, missing, known, self.folder / "model", 2, self.said.append)

    def begun(self, *names: str) -> bool:
        """Whether these, and no others, have begun before long."""
        for _ in range(500):
            found = {line.split()[0] for line in self.said if " begun " in line}
            if len(found) >= len(names):
                break
            time.sleep(0.02)
        return found == set(names)

    def end(self, name: str, how: str) -> None:
        """Let a dummy come to an end."""
        (self.folder / f".{name}").write_text(how)
        (self.folder / f".{name}").rename(self.folder / name)


def test_a_task_waits_for_the_one_it_is_based_on_and_no_more_run_at_once_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Scheduled(plan(tmp_path, a=None, b="a", c=None, d=None, e="b"), monkeypatch)
    assert run.begun("a", "c")
    run.end("a", "whole")
    assert run.begun("a", "c", "d"), "it was asked for before b"
    run.end("c", "whole")
    assert run.begun("a", "b", "c", "d")
    for name in ("b", "d", "e"):
        run.end(name, "whole")
    run.thread.join(20)
    assert run.failures == {}
    threads = torch.get_num_threads()
    assert run.said[0].partition("  ")[2] == f"begun with {threads} threads, {threads}"


def test_where_one_fails_the_others_go_on_and_those_on_its_branch_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = plan(tmp_path, old=None, a="old", b="a", c=None, d=None)
    run = Scheduled(recipe, monkeypatch, known=("old",))
    for name, how in (("a", "failed"), ("c", "killed"), ("d", "silent")):
        run.end(name, how)
    run.thread.join(20)
    logs = {name: log_of(recipe, name) for name in "acd"}
    assert run.failures == {
        "a": f"ValueError: no (log: {logs['a']})",
        "b": "it is based on 'a', which was not learned",
        "c": f"its process was ended by SIGKILL (log: {logs['c']})",
        "d": f"its process ended (log: {logs['d']})",
    }
    assert (
        sorted(line for line in run.said if "failed" in line)[0] == f"a    failed: ValueError: no (log: {logs['a']})"
    )


def test_an_interrupt_ends_every_process_and_keeps_what_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, begun = plan(tmp_path, a=None, b=None, c=None), []
    popen, waits = subprocess.Popen, jobs.wait

    def interrupted(futures: Any, **kwargs: Any) -> Any:
        waits(futures, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "_START", DUMMY)
    monkeypatch.setenv("DUMMIES", str(tmp_path))
    monkeypatch.setattr(jobs, "wait", interrupted)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: (begun.append(popen(*a, **k)), begun[-1])[1])
    (tmp_path / "a").write_text("whole")
    with pytest.raises(KeyboardInterrupt):
        learn_side_by_side(recipe, recipe.tasks, [], tmp_path / "model", 2, lambda line: None)
    assert begun and all(process.poll() is not None for process in begun)
    assert read_note(recipe, "a") == {} and read_note(recipe, "b") is None


def test_what_can_not_be_learned_side_by_side_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    with pytest.raises(
        RecipeError, match=r"--jobs 2 is for `growth: copy`, and the recipe has `growth: fixed`.*Leave"
    ):
        run_recipe(read_recipe(path), lambda line: None, jobs=2)
    assert not (tmp_path / "output").exists()
    with pytest.raises(RecipeError, match="jobs=0: expected a number of processes"):
        check_jobs(plan(tmp_path, a=None), 0)


def test_what_a_job_of_another_recipe_left_is_not_joined(tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path, growth="copy"))
    jobs.write_note(recipe, "first", {"seconds": 1.0, "scores": {}})
    with pytest.raises(RecipeError, match=r"What was learned of 'first' in .* does not fit .*Delete"):
        run_recipe(recipe, lambda line: None)
    other = EideticModel.from_backbone(tiny_backbone(seed=1), trunk_layers=1, growth="copy")
    other.save_pretrained(folder_of(recipe, "first"))
    with pytest.raises(RecipeError, match=r"does not fit this recipe \(There is no task 'first' there"):
        run_recipe(recipe, lambda line: None)
    assert read_note(recipe, "first") is not None and not (tmp_path / "output" / "model").exists()
