"""Tasks of a recipe side by side: a process for each, as many at once as one likes.

Where units are copied, what a task becomes depends on its data, its seed, its name and the branch that it stands on,
and on nothing that a process did before. So each task is learned in a process of its own, which starts from the same
backbone, and leaves a checkpoint folder behind, `jobs/<task>/model`, with a note beside it, `learned.json`, that
says that it is whole. `run.py` joins them, in the recipe's order.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..configuration import AUTO
from ..network.growth import growth_of
from .plugins import loaded_plugins
from .recipe import Recipe, RecipeError, TaskRecipe
from .results import write_json

JOBS_FOLDER = "jobs"
# What a worker runs: it looks for modules where this process does before it imports any of them.
_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from eidetic_hf.recipe.worker import main; main()"
)
SAID, FAILED = "said", "failed"  # what the lines are that a worker sends

Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What one worker is to do, and how it has to compute to get the bits that this process would.

    Attributes:
        recipe: the whole recipe.
        task: the name of the task to learn.
        start: the tasks that its model has to have when it begins, and the checkpoint folder of each.
        threads: that PyTorch uses for a product: another number may round in another way.
        precision: of float32 products, as `torch.get_float32_matmul_precision` has it.
        deterministic: whether only deterministic algorithms are used.
    """

    recipe: Recipe
    task: str
    start: dict[str, Path]
    threads: int
    precision: str
    deterministic: bool


def check_jobs(recipe: Recipe, jobs: int) -> None:
    """Say whether the tasks of a recipe can be learned side by side.

    Raises:
        RecipeError: if `jobs` is no number of processes, or the recipe's tasks need each other.
    """
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise RecipeError(f"jobs={jobs!r}: expected a number of processes, 1 or more.")
    if jobs > 1 and not growth_of(recipe.growth).copies:
        raise RecipeError(
            f"--jobs {jobs} is for `growth: copy`, and the recipe has `growth: {recipe.growth}`: there a task takes "
            "its units out of the pool that the tasks before it have left, so they are learned one after another. "
            "Leave out --jobs, or write `growth: copy` into the recipe."
        )


def needs(recipe: Recipe, task: TaskRecipe) -> list[str]:
    """The tasks that a model has to have before a task begins: those on its branch, from the backbone on.

    One that is to find its branch itself has all those before it to choose from.
    """
    if task.based_on is None:
        return []
    if task.based_on == AUTO:
        names = [other.name for other in recipe.tasks]
        return names[: names.index(task.name)]
    return [*needs(recipe, recipe.task(task.based_on)), task.based_on]


# -- what a job leaves behind -----------------------------------------------------------------------------------------


def folder_of(recipe: Recipe, task: str) -> Path:
    """The checkpoint folder of a job."""
    return recipe.output / JOBS_FOLDER / task / "model"


def log_of(recipe: Recipe, task: str) -> Path:
    """What a job and the libraries under it have printed."""
    return recipe.output / JOBS_FOLDER / task / "log.txt"


def _note_of(recipe: Recipe, task: str) -> Path:
    return recipe.output / JOBS_FOLDER / task / "learned.json"


def write_note(recipe: Recipe, task: str, found: dict[str, Any]) -> None:
    """Say that a job's folder is whole, and what its run has measured."""
    write_json(_note_of(recipe, task), found)


def read_note(recipe: Recipe, task: str) -> dict[str, Any] | None:
    """What `write_note` wrote; `None` if the job has not come to its end."""
    try:
        return json.loads(_note_of(recipe, task).read_text(encoding="utf-8"))
    except OSError:
        return None


def forget_job(recipe: Recipe, task: str) -> None:
    """Drop what a job has left behind, after its task was joined or learned otherwise."""
    shutil.rmtree(recipe.output / JOBS_FOLDER / task, ignore_errors=True)
    with suppress(OSError):  # there is none, or there are others in it
        (recipe.output / JOBS_FOLDER).rmdir()


# -- the workers ------------------------------------------------------------------------------------------------------


def learn_side_by_side(
    recipe: Recipe, tasks: Iterable[TaskRecipe], known: Collection[str], model_folder: Path, jobs: int, say: Say
) -> dict[str, str]:
    """Learn tasks in processes of their own; one that is based on another waits for that one.

    A task whose job came to its end in an earlier run is not learned again. Where one fails, the others go on.

    Args:
        recipe: what to do.
        tasks: those to learn, in the recipe's order.
        known: names of the tasks that the model in `model_folder` has.
        model_folder: its checkpoint folder, which nobody may write to meanwhile.
        jobs: processes at once.
        say: takes one line of progress at a time.

    Returns:
        What went wrong with the tasks that were not learned, by name.
    """
    waiting = [task for task in tasks if read_note(recipe, task.name) is None]
    done = {*known, *(task.name for task in recipe.tasks if read_note(recipe, task.name) is not None)}
    failures: dict[str, str] = {}
    workers = _Workers(recipe, say)
    running: dict[Future[str | None], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                for task in list(waiting):
                    needed = needs(recipe, task)
                    lost = [name for name in needed if name in failures]
                    if lost:
                        failures[task.name] = f"it is based on '{lost[-1]}', which was not learned"
                    elif done.issuperset(needed):
                        start = {name: model_folder if name in known else folder_of(recipe, name) for name in needed}
                        running[pool.submit(workers.run, task.name, start)] = task.name
                    else:
                        continue
                    waiting.remove(task)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name, failure = running.pop(future), future.result()
                    if failure is None:
                        done.add(name)
                    else:
                        failures[name] = failure
        except BaseException:
            workers.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failures


class _Workers:
    """The processes that are learning. Invariant: after `stop`, there is none, and none begins."""

    def __init__(self, recipe: Recipe, say: Say) -> None:
        self.recipe, self.say = recipe, say
        self.width = max(len(task.name) for task in recipe.tasks)
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def run(self, task: str, start: dict[str, Path]) -> str | None:
        """Learn a task in a process, and hand on what it says; returns what went wrong, if anything did."""
        log = log_of(self.recipe, task)
        log.parent.mkdir(parents=True, exist_ok=True)
        failure = "its process ended before it had begun"
        with open(log, "w", encoding="utf-8") as file:
            process = self._begin(task, start, file)
            if process is None:
                return "it was not begun"
            try:
                for line in process.stdout or ():
                    what, text = json.loads(line)
                    if what == FAILED:
                        failure = text
                    else:
                        failure = "its process ended"
                        self.say(f"{task:<{self.width}}  {text}")
                code = process.wait()
            finally:
                self._end(process)
        if code == 0 and read_note(self.recipe, task) is not None:
            return None
        if self._stopped:
            return "it was stopped"
        if code < 0:
            failure = f"its process was ended by {signal.Signals(-code).name}"
        failure = f"{failure} (log: {log})"
        self.say(f"{task:<{self.width}}  failed: {failure}")
        return failure

    def _begin(self, task: str, start: dict[str, Path], log: Any) -> subprocess.Popen | None:
        """Start a process and tell it what to do; `None` after `stop`."""
        threads = torch.get_num_threads()
        precision, deterministic = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
        order = Order(self.recipe, task, start, threads, precision, deterministic)
        # OpenMP and MKL settle how they work when they are loaded. Threads that wait without rest would take the cores
        # from those that compute.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads)}
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(
                [sys.executable, "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
            self._running.add(process)
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # if it could not even start; its log says why
            process.stdin.write(b"".join(map(pickle.dumps, (sys.path, loaded_plugins(), order))))
            process.stdin.flush()  # and it stays open: when it closes, this process is gone, and the worker ends, too
        return process

    def _end(self, process: subprocess.Popen) -> None:
        with self._lock:
            self._running.discard(process)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def stop(self) -> None:
        """End all of them, and let none begin."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
