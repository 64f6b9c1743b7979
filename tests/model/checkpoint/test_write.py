"""Writing a checkpoint folder: what never changes, and what a crash, a full disk or a rival may do."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from support.backbones import tiny_backbone, tiny_model
from support.data import learn, logits_of
from support.folders import (
    CHANGED,
    FIRST,
    POOL,
    REST,
    SECOND,
    SHARDS,
    THIRD,
    TRUNK,
    answers,
    changed,
    child_environment,
    edit_json,
    hashes,
    is_whole,
    same,
    shards,
)

from eidetic_hf import CheckpointError, EideticConfig, EideticModel, TaskError
from eidetic_hf.configuration import FORMAT_VERSION
from eidetic_hf.model.checkpoint import write
from eidetic_hf.model.checkpoint.folder import COMMITTED, LOCK


def test_saving_the_same_model_twice_changes_no_byte(model: EideticModel, folder: Path, saved: Path) -> None:
    model.save_pretrained(folder)
    assert hashes(folder) == hashes(saved)


def test_old_shards_keep_their_bytes_when_tasks_are_learned_and_saved_to_the_same_folder(
    grown_saved: Path, saved: Path
) -> None:
    then, now = hashes(saved), hashes(grown_saved)
    assert {name: now[name] for name in (TRUNK, FIRST, SECOND)} == {
        name: then[name] for name in (TRUNK, FIRST, SECOND)
    }
    assert set(now) == SHARDS | REST | {THIRD}
    assert now[POOL] != then[POOL]


def test_old_shards_are_not_written_again_in_the_same_folder(grown: EideticModel, folder: Path) -> None:
    before = {name: (folder / name).stat() for name in (TRUNK, FIRST, SECOND)}
    copy.deepcopy(grown).save_pretrained(folder)
    for name, stat in before.items():
        now = (folder / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns), name


def test_a_fresh_folder_gets_the_same_bytes(grown: EideticModel, grown_saved: Path, tmp_path: Path) -> None:
    copy.deepcopy(grown).save_pretrained(tmp_path / "fresh")
    assert hashes(tmp_path / "fresh") == hashes(grown_saved)


def test_old_shards_keep_their_bytes_when_a_loaded_model_learns_on(saved: Path, folder: Path, tmp_path: Path) -> None:
    loaded = EideticModel.from_pretrained(folder)
    learn(loaded, "third", tmp_path / "run", seed=2)
    loaded.save_pretrained(folder)
    loaded.save_pretrained(tmp_path / "fresh")
    then, now, fresh = hashes(saved), hashes(folder), hashes(tmp_path / "fresh")
    for name in (TRUNK, FIRST, SECOND):
        assert then[name] == now[name] == fresh[name]
    assert now == fresh


def test_learning_on_a_loaded_model_gives_the_same_third_shard_as_learning_on_in_memory(
    grown_saved: Path, saved: Path, tmp_path: Path
) -> None:
    loaded = EideticModel.from_pretrained(saved)
    learn(loaded, "third", tmp_path / "run", seed=2)
    loaded.save_pretrained(tmp_path / "fresh")
    then, now = load_file(grown_saved / THIRD), load_file(tmp_path / "fresh" / THIRD)
    assert changed(now, then) == []


def test_a_missing_shard_is_written_again_with_the_same_bytes(model: EideticModel, folder: Path, saved: Path) -> None:
    (folder / FIRST).unlink()
    model.save_pretrained(folder)
    assert hashes(folder) == hashes(saved)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_folder_with_a_damaged_shard_loads_after_a_save_that_succeeded(
    grown: EideticModel, folder: Path, damage: str
) -> None:
    content = bytearray((folder / FIRST).read_bytes())
    content[-1] ^= 1
    (folder / FIRST).write_bytes(content[:-8] if damage == "truncated" else content)
    try:
        copy.deepcopy(grown).save_pretrained(folder)
    except CheckpointError as error:
        assert FIRST in str(error)
    else:
        assert same(answers(EideticModel.from_pretrained(folder)), answers(grown))


def test_an_untrained_model_can_be_saved_loaded_and_replaced(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert loaded.tasks == []
    assert changed(loaded.state_dict(), model.state_dict()) == []
    learn(loaded, "first", tmp_path / "run")
    loaded.save_pretrained(tmp_path / "model")
    assert same(answers(EideticModel.from_pretrained(tmp_path / "model")), answers(loaded))


def test_a_trainer_checkpoint_holds_the_committed_shards_byte_for_byte(
    grown: EideticModel, trainer_folder: Path, saved: Path
) -> None:
    found = hashes(trainer_folder / "checkpoint-6")
    assert {name: found[name] for name in (TRUNK, FIRST, SECOND)} == {
        name: hashes(saved)[name] for name in (TRUNK, FIRST, SECOND)
    }


def test_shards_may_be_read_by_whoever_may_read_the_configuration(saved: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in saved.glob("[!.]*")}
    assert set(modes.values()) == {modes["config.json"]}, modes


def test_config_names_no_folder_of_this_machine(folder: Path, tmp_path: Path) -> None:
    EideticModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()
    assert hashes(tmp_path / "again") == hashes(folder)


def test_no_path_of_this_machine_is_saved(tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    model = EideticModel.from_backbone(tmp_path / "backbone", trunk_layers=1, growth="fixed")
    model.save_pretrained(tmp_path / "model")
    for name in ("config.json", "README.md"):
        assert str(tmp_path) not in (tmp_path / "model" / name).read_text()
    assert "`backbone`" in (tmp_path / "model" / "README.md").read_text()


# -- inference-only releases ------------------------------------------------------------------------------------------


def test_a_release_without_the_pool_infers_the_same_and_learns_nothing(
    model: EideticModel, saved: Path, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "release", include_pool=False)
    found = hashes(tmp_path / "release")
    assert set(found) == SHARDS - {POOL} | REST
    assert {name: found[name] for name in (TRUNK, FIRST, SECOND)} == {
        name: hashes(saved)[name] for name in (TRUNK, FIRST, SECOND)
    }
    loaded = EideticModel.from_pretrained(tmp_path / "release")
    assert same(answers(loaded), answers(model))
    assert loaded.verify().ok and loaded.capacity()["free"] == 0
    with pytest.raises(TaskError, match=r"no pool.*Load the whole checkpoint"):
        loaded.add_task("third", labels=["x", "y"])
    loaded.save_pretrained(tmp_path / "again")
    assert shards(tmp_path / "again") == shards(tmp_path / "release")
    assert model.config.pool  # the model itself goes on learning
    model.add_task("third", labels=["x", "y"])


@pytest.mark.parametrize("loaded", [False, True])
def test_a_release_without_the_pool_is_not_saved_over_the_whole(
    model: EideticModel, folder: Path, saved: Path, tmp_path: Path, loaded: bool
) -> None:
    if loaded:
        model.save_pretrained(tmp_path / "release", include_pool=False)
        model = EideticModel.from_pretrained(tmp_path / "release")
    with pytest.raises(
        CheckpointError, match=r"pool of free units.*Save the inference-only release to another folder"
    ):
        model.save_pretrained(folder, include_pool=False)
    assert hashes(folder) == hashes(saved)


def test_the_whole_model_can_be_saved_over_its_release(model: EideticModel, saved: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "release", include_pool=False)
    model.save_pretrained(tmp_path / "release")
    assert hashes(tmp_path / "release") == hashes(saved)


def test_a_model_of_some_tasks_is_not_saved_over_a_release_that_answers_for_more(
    model: EideticModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "release", include_pool=False)
    part = EideticModel.from_pretrained(tmp_path / "release", tasks=["second"])
    with pytest.raises(CheckpointError, match="another folder"):
        part.save_pretrained(tmp_path / "release")
    assert EideticModel.from_pretrained(tmp_path / "release").tasks == ["first", "second"]


# -- crashes ----------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The machine stops: no `except Exception` tidies up."""


STEPS: list[tuple[Any, str]] = [
    (write, "save_file"),
    (EideticConfig, "to_json_file"),
    (Path, "write_text"),
    (Path, "mkdir"),
    (Path, "unlink"),
    (Path, "rmdir"),
    (os, "replace"),
    (os, "rename"),
    (os, "fsync"),
]
WRITES = STEPS[:3]
WAYS = pytest.mark.parametrize(("mode", "steps"), [("before", STEPS), ("torn", WRITES)], ids=["stopped", "torn"])


@contextmanager
def failing(
    at: int, error: Callable[[], BaseException], mode: str, steps: list[tuple[Any, str]]
) -> Iterator[list[str]]:
    """Fail at the `at`-th of these calls: before it is done, or after, when half of a file that it writes is there."""
    calls: list[str] = []

    def sabotaged(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 != at:
                return real(*args, **kwargs)
            if mode != "before":
                real(*args, **kwargs)
                if name in ("save_file", "to_json_file", "write_text"):
                    path = Path(args[0] if name == "write_text" else args[1])
                    os.truncate(path, path.stat().st_size // 2)
            raise error()

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in steps:
            patch.setattr(owner, name, sabotaged(getattr(owner, name), name))
        yield calls


@WAYS
def test_a_crash_at_any_instruction_leaves_the_old_or_the_new_checkpoint_whole(
    grown: EideticModel, saved: Path, grown_saved: Path, tmp_path: Path, mode: str, steps: list[tuple[Any, str]]
) -> None:
    grown = copy.deepcopy(grown)
    new = answers(grown)
    old, expected = {name: new[name] for name in ("first", "second")}, hashes(grown_saved)
    seen = []
    for at in itertools.count():
        folder = Path(shutil.copytree(saved, tmp_path / str(at)))
        try:
            with failing(at, Crash, mode, steps) as calls:
                grown.save_pretrained(folder)
        except Crash:
            pass
        else:
            break
        loaded = EideticModel.from_pretrained(folder)
        now = answers(loaded)
        assert same(now, old) or same(now, new), (at, calls)
        assert loaded.verify().ok
        seen.append(len(now))
        grown.save_pretrained(folder)
        assert is_whole(folder) and hashes(folder) == expected, (at, calls)
        shutil.rmtree(folder)
    assert is_whole(folder) and hashes(folder) == expected
    assert {"save_file", "write_text", *(("replace", "fsync", "rmdir") if mode == "before" else ())} <= set(calls)
    # One moment of change; the files are written before it.
    assert seen == sorted(seen) and set(seen) == ({2, 3} if mode == "before" else {2})


@WAYS
def test_a_crash_in_the_first_save_leaves_no_checkpoint_or_a_whole_one(
    model: EideticModel, saved: Path, tmp_path: Path, mode: str, steps: list[tuple[Any, str]]
) -> None:
    expected = answers(model)
    seen = []
    for at in itertools.count():
        folder = tmp_path / str(at)
        try:
            with failing(at, Crash, mode, steps):
                model.save_pretrained(folder)
        except Crash:
            pass
        else:
            break
        if folder.exists():
            try:
                assert same(answers(EideticModel.from_pretrained(folder)), expected)
                seen.append(True)
            except CheckpointError as error:
                assert re.search("no save to it was ever completed.*save the model there again", str(error))
                seen.append(False)
        model.save_pretrained(folder)
        assert is_whole(folder) and hashes(folder) == hashes(saved)
    assert seen == sorted(seen) and set(seen) == ({False, True} if mode == "before" else {False})


def test_a_first_save_that_failed_leaves_a_message_that_says_so(model: EideticModel, tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="checkpoint there is unchanged"), failing(0, lambda: full, "after", WRITES):
        model.save_pretrained(tmp_path / "new")
    with pytest.raises(CheckpointError, match="the first was interrupted, failed, or is still going on"):
        EideticModel.from_pretrained(tmp_path / "new")
    model.save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config.json: the checkpoint is incomplete. Copy it again"):
        EideticModel.from_pretrained(tmp_path / "new")


def test_a_save_that_crashed_can_be_completed_by_readers_that_crash_too(
    grown: EideticModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(grown)

    def crash(folder: Path, *_: Any) -> None:
        if (folder / COMMITTED).exists():
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("eidetic_hf.model.checkpoint.folder._finish", crash)
        copy.deepcopy(grown).save_pretrained(folder)
    crashes = 0
    while (folder / COMMITTED).exists():
        try:
            with failing(0, Crash, "after", [(os, "replace")]):
                EideticModel.from_pretrained(folder)
        except Crash:
            crashes += 1
    assert crashes == 5  # each reader moved one file: two shards, index, config and card
    assert same(answers(EideticModel.from_pretrained(folder)), expected) and is_whole(folder)


def test_a_save_that_crashed_in_a_folder_that_is_now_read_only_is_read_from_where_it_is(
    grown: EideticModel, folder: Path
) -> None:
    with pytest.raises(Crash), failing(1, Crash, "after", [(os, "replace")]):
        copy.deepcopy(grown).save_pretrained(folder)
    assert (folder / COMMITTED).is_dir()
    with pytest.MonkeyPatch.context() as patch:

        def read_only(*args: Any) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        patch.setattr(os, "replace", read_only)
        loaded = EideticModel.from_pretrained(folder)
    assert same(answers(loaded), answers(grown))
    assert (folder / COMMITTED).is_dir()


# -- full disks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["before", "after"])
def test_a_full_disk_at_any_file_leaves_the_folder_as_it_was_and_says_so(
    grown: EideticModel, folder: Path, mode: str
) -> None:
    grown = copy.deepcopy(grown)
    before = hashes(folder)
    failed = []
    for at in itertools.count():
        try:
            with failing(at, lambda: OSError(errno.ENOSPC, "No space left on device"), mode, WRITES) as calls:
                grown.save_pretrained(folder)
        except OSError as error:
            failed.append(calls[-1])
            assert re.search("No space left on device.*checkpoint there is unchanged", str(error))
            assert error.errno == errno.ENOSPC
            assert hashes(folder) == before and is_whole(folder)
        else:
            break
    # Two shards, index, configuration, card, and the list of what disappears.
    assert failed == ["save_file", "save_file", "write_text", "to_json_file", "write_text", "write_text"]
    assert same(answers(EideticModel.from_pretrained(folder)), answers(grown))


def test_an_error_of_the_safetensors_writer_leaves_the_folder_as_it_was_and_says_so(
    grown: EideticModel, folder: Path
) -> None:
    before = hashes(folder)
    error = SafetensorError("Error while serializing: I/O error: No space left on device")
    with pytest.raises(OSError, match=r"No space left.*unchanged"), failing(1, lambda: error, "after", WRITES):
        copy.deepcopy(grown).save_pretrained(folder)
    assert hashes(folder) == before and is_whole(folder)


# -- several processes ------------------------------------------------------------------------------------------------


SAVE = """
import json, sys, time
from pathlib import Path
from eidetic_hf import CheckpointError, EideticModel

me, other, meeting, jobs = sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
results = []
for number, (source, target) in enumerate(jobs):
    model = EideticModel.from_pretrained(source)
    (meeting / f"{number}-{me}").touch()
    while not (meeting / f"{number}-{other}").exists():
        time.sleep(0.0005)
    try:
        model.save_pretrained(target)
        results.append("saved")
    except CheckpointError as error:
        results.append(str(error))
(meeting / f"{me}.json").write_text(json.dumps(results))
"""
ROUNDS = 3


@pytest.fixture(scope="module")
def raced(
    saved: Path, grown_saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[tuple[Path, list[str]]]]:
    """Two processes that save at the same time, `ROUNDS` times: to what folder, and what came of it in each."""
    base = tmp_path_factory.mktemp("raced")
    rival = EideticModel.from_pretrained(saved)
    learn(rival, "rival", base / "run", seed=7)
    rival.save_pretrained(base / "rival")
    jobs: list[tuple[str, Path, tuple[Path, Path]]] = []
    for number in range(ROUNDS):
        jobs.append(("same", base / f"same-{number}", (grown_saved, grown_saved)))
        jobs.append(("diverged, fresh folder", base / f"fresh-{number}", (grown_saved, base / "rival")))
        shutil.copytree(saved, base / f"old-{number}")
        jobs.append(("diverged, old folder", base / f"old-{number}", (grown_saved, base / "rival")))
    meeting = tmp_path_factory.mktemp("meeting")
    processes = []
    for me in (0, 1):
        mine = json.dumps([(str(sources[me]), str(target)) for _, target, sources in jobs])
        command = [sys.executable, "-c", SAVE, str(me), str(1 - me), str(meeting), mine]
        processes.append(subprocess.Popen(command, env=child_environment()))
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    results = [json.loads((meeting / f"{me}.json").read_text()) for me in (0, 1)]
    outcome: dict[str, list[tuple[Path, list[str]]]] = {}
    for (kind, target, _), *both in zip(jobs, *results, strict=True):
        outcome.setdefault(kind, []).append((target, both))
    return outcome


@pytest.mark.slow
def test_two_processes_can_save_the_same_model_to_one_folder(
    raced: dict[str, list[tuple[Path, list[str]]]], grown: EideticModel, grown_saved: Path
) -> None:
    for target, results in raced["same"]:
        assert results == ["saved", "saved"]
        assert is_whole(target) and shards(target) == shards(grown_saved)
        assert same(answers(EideticModel.from_pretrained(target)), answers(grown))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diverged, fresh folder", "diverged, old folder"])
def test_of_two_processes_that_have_diverged_only_the_first_saves(
    raced: dict[str, list[tuple[Path, list[str]]]], grown: EideticModel, kind: str
) -> None:
    for target, results in raced[kind]:
        assert sorted(result == "saved" for result in results) == [False, True], results
        winner = results.index("saved")
        lost = ("third", "rival")[winner]
        assert re.search(
            f"holds the task '{lost}', which this model does not have.*Load .* again", results[1 - winner]
        )
        loaded = EideticModel.from_pretrained(target)
        assert loaded.tasks == ["first", "second", lost] and loaded.verify().ok and is_whole(target)
        assert torch.equal(logits_of(loaded, "first"), logits_of(grown, "first"))


def test_another_model_with_a_task_of_the_same_name_is_not_saved_over_this_one(
    folder: Path, saved: Path, tmp_path: Path
) -> None:
    other = tiny_model()
    for seed, name in ((5, "first"), (6, "second")):
        learn(other, name, tmp_path / "run", seed)
    with pytest.raises(CheckpointError, match=r"another 'first' than this model.*Save to another folder"):
        other.save_pretrained(folder)
    assert hashes(folder) == hashes(saved)


def test_a_folder_that_another_process_holds_is_not_written_to(
    grown: EideticModel, folder: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eidetic_hf.model.checkpoint.folder.LOCK_TIMEOUT_SECONDS", 0.2)
    with FileLock(folder / LOCK):
        start = time.monotonic()
        with pytest.raises(
            CheckpointError, match=r"Another process has been saving.*Nothing was written; wait for it"
        ):
            copy.deepcopy(grown).save_pretrained(folder)
        assert time.monotonic() - start < 5
    assert hashes(folder) == hashes(saved)
    copy.deepcopy(grown).save_pretrained(folder)
    assert is_whole(folder)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_saving_while_a_task_is_being_learned_leaves_a_release_loadable(
    model: EideticModel, folder: Path, trained: EideticModel
) -> None:
    model.add_task("third", labels=["x", "y"])
    model.begin_task("third")
    with pytest.raises(CheckpointError):
        model.save_pretrained(folder)
    assert same(answers(EideticModel.from_pretrained(folder)), answers(trained))


@pytest.mark.parametrize("weights", [True, False])
def test_a_folder_of_another_model_is_never_written_to(model: EideticModel, tmp_path: Path, weights: bool) -> None:
    tiny_backbone().save_pretrained(tmp_path / "bert")
    if not weights:
        (tmp_path / "bert" / "model.safetensors").unlink()
    before = hashes(tmp_path / "bert")
    with pytest.raises(CheckpointError, match=r"another kind.*model_type='bert'.*save to an empty folder"):
        model.save_pretrained(tmp_path / "bert")
    assert hashes(tmp_path / "bert") == before


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_stray_weights_of_another_model_are_never_hidden(model: EideticModel, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=f"{name} of another model.*Save to an empty folder"):
        model.save_pretrained(tmp_path)
    assert hashes(tmp_path).keys() == {name} and (tmp_path / name).read_bytes() == b"weights"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
    ],
)
def test_a_folder_whose_config_is_no_configuration_is_never_written_to(
    model: EideticModel, folder: Path, content: str
) -> None:
    (folder / "config.json").write_text(content)
    before = hashes(folder)
    with pytest.raises(CheckpointError, match=r"[Ss]ave to an empty folder"):
        model.save_pretrained(folder)
    assert hashes(folder) == before


def test_a_file_in_place_of_the_folder_is_refused(model: EideticModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match="is a file, expected a folder"):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_in_a_future_format_is_not_written_to(grown: EideticModel, folder: Path) -> None:
    edit_json(folder / "config.json", lambda values: values.update(format_version=FORMAT_VERSION + 1))
    before = hashes(folder)
    with pytest.raises(CheckpointError, match=r"Upgrade|another folder|empty folder"):
        copy.deepcopy(grown).save_pretrained(folder)
    assert hashes(folder) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, "bfloat16"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_model_in_another_dtype_is_not_saved(
    folder: Path, saved: Path, tmp_path: Path, dtype: torch.dtype | str, fresh: bool
) -> None:
    loaded = EideticModel.from_pretrained(folder, dtype=dtype)
    target = tmp_path / "fresh" if fresh else folder
    with pytest.raises(CheckpointError, match=r"committed in float32.*Load the checkpoint with dtype=torch.float32"):
        loaded.save_pretrained(target)
    assert hashes(folder) == hashes(saved)
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_committed_tensor_that_changed_in_memory_is_not_saved(
    model: EideticModel, folder: Path, saved: Path, tmp_path: Path, name: str, fresh: bool
) -> None:
    tensor = model.state_dict()[name]
    tensor.view(-1)[0] += 1
    with pytest.raises(CheckpointError, match=f"changed in memory, first in {re.escape(name)}.*last good checkpoint"):
        model.save_pretrained(tmp_path / "fresh" if fresh else folder)
    assert hashes(folder) == hashes(saved)
    assert not (tmp_path / "fresh").exists()
