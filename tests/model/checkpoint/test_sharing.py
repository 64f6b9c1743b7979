"""Several processes and one folder: writers beside writers, readers beside a writer, at moments of their own.

`EIDETIC_ROUNDS` says how often writers meet (6 by default), `EIDETIC_READS` how often readers read (24).
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
import random
import re
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.backbones import tiny_backbone
from support.folders import hashes, is_whole
from support.processes import Process
from support.quick import learn_quickly

from eidetic_hf import CheckpointError, EideticModel

ROUNDS, READS = (
    int(os.environ.get(name, default)) for name, default in (("EIDETIC_ROUNDS", 6), ("EIDETIC_READS", 24))
)
LOSES = r"holds the task '(\w+)', which this model does not have.*Load .* again and learn on from there"


@pytest.fixture(scope="module")
def base() -> EideticModel:
    """A model of two tasks."""
    model = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth="copy")
    for seed, name in enumerate(("first", "second")):
        learn_quickly(model, name, seed)
    return model


@pytest.fixture(scope="module")
def rivals(base: EideticModel) -> list[EideticModel]:
    """Two models that have learned another third task each."""
    models = [copy.deepcopy(base), copy.deepcopy(base)]
    for seed, (model, name) in enumerate(zip(models, ("left", "right"), strict=True)):
        learn_quickly(model, name, 10 + seed)
    return models


def outcome(model: EideticModel, folder: Path, moment: float) -> str:
    """Save at a moment, as `time.monotonic` has it; what came of it."""
    while time.monotonic() < moment:
        os.sched_yield()
    try:
        model.save_pretrained(folder)
    except CheckpointError as error:
        return str(error)
    return "saved"


def save_forever(model: EideticModel, folder: Path) -> None:
    """Save until somebody kills this process."""
    while True:
        model.save_pretrained(folder)


# -- two writers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh folder", "old folder"])
def test_of_two_writers_that_have_diverged_one_wins_and_the_other_is_told_what_to_do(
    base: EideticModel, rivals: list[EideticModel], tmp_path: Path, fresh: bool
) -> None:
    expected = []
    for number, model in enumerate(rivals):
        model.save_pretrained(tmp_path / f"alone-{number}")
        expected.append(hashes(tmp_path / f"alone-{number}"))
    base.save_pretrained(tmp_path / "base")
    chance = random.Random(0)
    wins = [0, 0]
    for number in range(ROUNDS):
        folder = tmp_path / f"{number}"
        if not fresh:
            shutil.copytree(tmp_path / "base", folder)
        moments = [time.monotonic() + 0.2 + chance.uniform(0, 0.01) for _ in rivals]
        processes = [
            Process(partial(outcome, model, folder, moment)) for model, moment in zip(rivals, moments, strict=True)
        ]
        results = [process.wait() for process in processes]
        winner = results.index("saved")
        wins[winner] += 1
        told = re.search(LOSES, results[1 - winner])
        assert told is not None and told[1] == ("left", "right")[winner]
        assert is_whole(folder) and hashes(folder) == expected[winner]
        shutil.rmtree(folder)
    print(f"\ntwo writers, {'fresh' if fresh else 'old'} folder: {ROUNDS} rounds, won {wins}, mixed 0, hangs 0")


def test_two_writers_of_one_model_both_save_it(base: EideticModel, rivals: list[EideticModel], tmp_path: Path) -> None:
    rivals[0].save_pretrained(tmp_path / "alone")
    base.save_pretrained(tmp_path / "folder")
    for _ in range(ROUNDS):
        moment = time.monotonic() + 0.2
        processes = [Process(partial(outcome, rivals[0], tmp_path / "folder", moment)) for _ in range(2)]
        assert [process.wait() for process in processes] == ["saved", "saved"]
        assert is_whole(tmp_path / "folder") and hashes(tmp_path / "folder") == hashes(tmp_path / "alone")


def test_a_writer_that_is_killed_at_any_moment_holds_up_no_other(
    base: EideticModel, rivals: list[EideticModel], tmp_path: Path
) -> None:
    base.save_pretrained(tmp_path / "base")
    rivals[0].save_pretrained(tmp_path / "alone")
    expected = hashes(tmp_path / "alone")
    chance = random.Random(0)
    for number in range(ROUNDS):
        folder = Path(shutil.copytree(tmp_path / "base", tmp_path / f"{number}"))
        doomed = Process(partial(save_forever, rivals[0], folder))
        time.sleep(chance.uniform(0, 0.3))
        other = Process(partial(outcome, rivals[0], folder, 0))
        time.sleep(chance.uniform(0, 0.2))
        doomed.kill()
        assert doomed.wait() is None and other.wait() == "saved"
        assert EideticModel.from_pretrained(folder).tasks == rivals[0].tasks  # the doomed one may have come last
        assert hashes(folder) == expected
        rivals[0].save_pretrained(folder)
        assert is_whole(folder)
        shutil.rmtree(folder)


# -- readers beside a writer ------------------------------------------------------------------------------------------


def state_of(model: EideticModel) -> str:
    """SHA-256 of all that a model is saved with."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_until(end: Path, model: EideticModel, folder: Path, states: Path) -> int:
    """Change a model and save it, again and again; how often. The state is noted before."""
    chance = random.Random(1)
    for number in itertools.count():
        if end.exists():
            return number
        model.router.set_prior("first", chance.uniform(1, 9))
        if number % 3 == 1:
            learn_quickly(model, f"task-{number}", number, based_on=None)
        if len(model.tasks) > 4:
            model.remove_task(model.tasks[2])
        (states / state_of(model)).touch()
        model.save_pretrained(folder)
    raise AssertionError


def read_again_and_again(folder: Path, states: Path) -> dict[str, Any]:
    """Load from a folder; which errors came, and which states that were never saved."""
    errors, unknown, distinct = [], 0, set()
    for number in range(READS // 2):
        try:
            if number % 4 == 3:
                part = EideticModel.from_pretrained(folder, tasks=["first"])
                assert part.tasks == ["first"] and part.verify().ok
                continue
            model = EideticModel.from_pretrained(folder)
            assert model.verify().ok
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
            continue
        distinct.add(state_of(model))
        unknown += not (states / state_of(model)).exists()
    return {"errors": errors, "unknown": unknown, "distinct": len(distinct)}


def test_readers_beside_a_writer_see_what_was_saved_and_no_error(base: EideticModel, tmp_path: Path) -> None:
    model, folder, states, end = copy.deepcopy(base), tmp_path / "folder", tmp_path / "states", tmp_path / "end"
    states.mkdir()
    (states / state_of(model)).touch()
    model.save_pretrained(folder)
    writer = Process(lambda: save_until(end, model, folder, states))
    readers = [Process(lambda: read_again_and_again(folder, states)) for _ in range(2)]
    results = [reader.wait(timeout=3600) for reader in readers]
    end.touch()
    saves = writer.wait()
    errors = [error for result in results for error in result["errors"]]
    unknown, distinct = (sum(result[key] for result in results) for key in ("unknown", "distinct"))
    print(f"\n{READS} reads beside {saves} saves: {len(errors)} errors, {unknown} unknown of {distinct} states")
    assert errors == [] and unknown == 0
    assert saves > 1 and distinct > 2
    assert is_whole(folder) and (states / state_of(EideticModel.from_pretrained(folder))).exists()
