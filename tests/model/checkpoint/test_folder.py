"""A folder changes whole or not at all: without any model, at every instruction that may be the last."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from eidetic_hf.model.checkpoint import folder as module
from eidetic_hf.model.checkpoint.folder import (
    COMMITTED,
    LOCK,
    REMOVALS,
    SAVING,
    FolderLocked,
    Transaction,
    find,
    recover,
)

OLD = {"a": "a, old", "b": "b, old", "gone": "gone, old", "index": "index, old"}
NEW = {"a": "a, new", "b": "b, old", "c": "c, new", "index": "index, new"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds `OLD`."""
    return filled(tmp_path / "folder")


def filled(folder: Path) -> Path:
    folder.mkdir()
    for name, text in OLD.items():
        (folder / name).write_text(text)
    return folder


def change(folder: Path) -> None:
    """From `OLD` to `NEW`."""
    with Transaction(folder, last=["index"]) as new:
        for name in ("index", "c", "a"):
            (new.path / name).write_text(NEW[name])
        new.remove("gone")


def content(folder: Path) -> dict[str, str]:
    """What lies in the folder, but for the lock."""
    return {path.name: path.read_text() if path.is_file() else "" for path in folder.iterdir() if path.name != LOCK}


def seen(folder: Path) -> dict[str, str]:
    """What a reader finds, who changes nothing."""
    found = {name: find(folder, name) for name in sorted({*OLD, *NEW})}
    return {name: path.read_text() for name, path in found.items() if path is not None}


# -- a change ---------------------------------------------------------------------------------------------------------


def test_a_change_shows_when_it_is_complete_and_not_before(folder: Path) -> None:
    with Transaction(folder) as new:
        (new.path / "a").write_text("a, new")
        new.remove("b")
        assert seen(folder) == OLD
    assert content(folder) == {"a": "a, new", "gone": "gone, old", "index": "index, old"}


def test_a_folder_that_does_not_exist_is_made(tmp_path: Path) -> None:
    with Transaction(tmp_path / "x" / "y") as new:
        assert list(new.path.iterdir()) == []
        (new.path / "a").write_text("1")
    assert content(tmp_path / "x" / "y") == {"a": "1"}


def test_files_that_go_last_take_their_places_in_the_order_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, replace = [], os.replace

    def note(source: Path, target: Path) -> None:
        moved.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", note)
    with Transaction(folder, last=["index", "a"]) as new:
        for name in ("index", "a", "z", "b"):
            (new.path / name).write_text("")
    assert moved == [COMMITTED, "b", "z", "index", "a"]


def test_everything_is_on_the_disk_before_the_moment_of_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    synced, replace = module._sync, os.replace
    monkeypatch.setattr(module, "_sync", lambda path: events.append(path.name) or synced(path))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append(("to", b.name)) or replace(a, b))
    change(folder)
    moment = events.index(("to", COMMITTED))
    assert set(events[:moment]) == {"a", "c", "index", REMOVALS, SAVING} and events[moment - 1] == SAVING
    assert events[moment + 1] == "folder"


def test_a_file_to_remove_that_is_not_there_is_no_error(folder: Path) -> None:
    with Transaction(folder) as new:
        new.remove("never")
    assert content(folder) == OLD


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "x/a", "x\\a", "/etc/passwd", "a\nb", "a\n"])
def test_only_a_file_of_the_folder_can_be_removed(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected the plain name of a file"), Transaction(folder) as new:
        new.remove(name)
    assert content(folder) == OLD


def test_a_file_cannot_be_written_and_removed_in_one_change(folder: Path) -> None:
    message = r"\['a'\] are to be written to .* and to be removed"
    with pytest.raises(ValueError, match=message), Transaction(folder) as new:
        (new.path / "a").write_text("")
        new.remove("a")
    assert content(folder) == OLD


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()], ids=["ValueError", "KeyboardInterrupt"])
def test_an_error_changes_nothing_passes_and_lets_go_of_the_folder(folder: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, Transaction(folder) as new:
        (new.path / "a").write_text("a, new")
        new.remove("b")
        raise error
    assert raised.value is error
    assert content(folder) == OLD
    change(folder)
    assert content(folder) == NEW


def test_a_full_disk_changes_nothing_and_says_so(folder: Path) -> None:
    message = "Saving to .* failed .*No space left on device.*The checkpoint there is unchanged"
    with pytest.raises(OSError, match=message) as raised, Transaction(folder) as new:
        (new.path / "a").write_text("a, new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.errno == errno.ENOSPC
    assert content(folder) == OLD


# -- crashes ----------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The machine stops: nothing that comes after is done."""


STEPS: list[tuple[Any, str]] = [
    (os, "replace"),
    (os, "fsync"),
    (shutil, "rmtree"),
    *((Path, name) for name in ("mkdir", "write_text", "unlink", "rmdir")),
]


@contextmanager
def dying(at: int, torn: bool = False) -> Iterator[list[str]]:
    """Stop the machine at the `at`-th of these calls; with `torn`, when half of a text is written."""
    calls: list[str] = []

    def doomed(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 < at:
                return real(*args, **kwargs)
            if torn and len(calls) - 1 == at and name == "write_text":
                real(args[0], args[1][: len(args[1]) // 2])
            raise Crash

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, doomed(getattr(owner, name), name))
        yield calls


@pytest.mark.parametrize("torn", [False, True], ids=["stopped", "torn"])
def test_a_crash_at_any_instruction_leaves_all_old_or_all_new(tmp_path: Path, torn: bool) -> None:
    states, calls = [], []
    for at in itertools.count():
        folder = filled(tmp_path / str(at))
        try:
            with dying(at, torn) as calls:
                change(folder)
        except Crash:
            pass
        else:
            break
        states.append(seen(folder))
        assert states[-1] in (OLD, NEW), (at, calls)
        shutil.copytree(folder, tmp_path / f"{at}-recovered")
        recover(tmp_path / f"{at}-recovered", last=["index"])
        assert seen(tmp_path / f"{at}-recovered") == states[-1]
        change(folder)  # whatever was left behind
        assert content(folder) == NEW
    assert content(folder) == NEW
    assert {"replace", "fsync", "mkdir", "write_text", "unlink", "rmdir"} == set(calls)
    # One moment of change.
    moment = states.index(NEW)
    assert moment > 0 and states[:moment] == [OLD] * moment and states[moment:] == [NEW] * (len(states) - moment)


def test_a_crash_in_a_recovery_is_recovered_from(tmp_path: Path) -> None:
    folder = filled(tmp_path / "folder")
    for at in itertools.count():  # until the first crash after the moment of change
        with pytest.raises(Crash), dying(at):
            change(folder)
        if (folder / COMMITTED).is_dir():
            break
    for at in itertools.count():
        copied = Path(shutil.copytree(folder, tmp_path / str(at)))
        try:
            with dying(at) as calls:
                recover(copied, last=["index"])
        except Crash:
            assert seen(copied) == NEW
            recover(copied, last=["index"])
            assert content(copied) == NEW
        else:
            break
    assert content(copied) == NEW
    assert [calls.count(name) for name in ("replace", "unlink", "rmdir")] == [3, 2, 1]


def test_what_a_crashed_change_has_prepared_does_not_get_into_the_next(folder: Path) -> None:
    (folder / SAVING).mkdir()
    (folder / SAVING / "stray").write_text("")
    change(folder)
    assert content(folder) == NEW


def test_recovering_a_folder_without_an_interrupted_change_does_nothing_at_all(folder: Path) -> None:
    recover(folder)
    assert content(folder) == OLD and not (folder / LOCK).exists()


def crashed(folder: Path, listed: str | None) -> None:
    """Leave a change from `OLD` after its moment, with this list of removals, or none as earlier code did."""
    (folder / COMMITTED).mkdir()
    (folder / COMMITTED / "a").write_text("a, new")
    if listed is not None:
        (folder / COMMITTED / REMOVALS).write_text(listed)


def test_a_change_without_a_list_of_removals_is_completed_by_what_the_moved_files_say(folder: Path) -> None:
    crashed(folder, None)

    def unlisted(given: Path) -> list[str]:
        assert given == folder and (folder / "a").read_text() == "a, new"
        return ["gone", "never"]

    recover(folder, unlisted=unlisted)
    assert content(folder) == {**{name: OLD[name] for name in ("b", "index")}, "a": "a, new"}


def test_a_list_of_removals_is_all_that_disappears(folder: Path) -> None:
    crashed(folder, "")
    recover(folder, unlisted=lambda _: ["gone"])
    assert content(folder) == {**OLD, "a": "a, new"}


def test_a_list_that_somebody_else_made_deletes_nothing_outside_of_the_folder(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    crashed(folder, f"../mine\n{tmp_path / 'mine'}\n..\n\ngone\n")
    recover(folder)
    assert (tmp_path / "mine").read_text() == "kept"
    assert content(folder) == {"a": "a, new", "b": OLD["b"], "index": OLD["index"]}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_stands_in_place_of_a_list_of_removals_is_not_read(folder: Path, make: Callable[[Path], None]) -> None:
    crashed(folder, None)
    make(folder / COMMITTED / REMOVALS)
    assert find(folder, "gone") == folder / "gone" and find(folder, "a") == folder / COMMITTED / "a"


def test_in_a_folder_that_is_now_read_only_the_files_are_found_where_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed(folder, "gone\n")

    def read_only(*args: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(OSError, match="Read-only"):
        recover(folder)
    assert find(folder, "a") == folder / COMMITTED / "a"
    assert find(folder, "b") == folder / "b"
    assert find(folder, "gone") is None and (folder / "gone").exists()


# -- several processes ------------------------------------------------------------------------------------------------


def test_a_folder_that_another_process_holds_is_not_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_TIMEOUT_SECONDS", 0.2)
    start = time.monotonic()
    message = f"Another process has been saving to {re.escape(str(folder))}.*wait"
    with FileLock(folder / LOCK), pytest.raises(FolderLocked, match=message):
        change(folder)
    assert time.monotonic() - start < 5
    assert content(folder) == OLD
    change(folder)
    assert content(folder) == NEW


def test_a_reader_does_not_wait_for_a_process_that_has_stopped_in_the_middle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    crashed(folder, "gone\n")
    start = time.monotonic()
    with FileLock(folder / LOCK):
        recover(folder)
    assert 0.2 <= time.monotonic() - start < 5
    assert find(folder, "a") == folder / COMMITTED / "a" and find(folder, "gone") is None


def test_a_reader_waits_no_longer_than_until_the_files_are_in_their_places(folder: Path) -> None:
    crashed(folder, "")
    with FileLock(folder / LOCK):  # held on, by the next change
        timer = threading.Timer(0.2, lambda: shutil.rmtree(folder / COMMITTED))
        timer.start()
        start = time.monotonic()
        recover(folder)
    assert time.monotonic() - start < module.PATIENCE_SECONDS / 2


# The module is loaded by its path: it needs nothing else of the package, and a process starts at once.
COUNT = """
import importlib.util, sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("folder", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
folder = Path(sys.argv[2])
for _ in range(20):
    with module.Transaction(folder) as new:
        count = int((folder / "count").read_text()) if (folder / "count").exists() else 0
        (new.path / "count").write_text(str(count + 1))
        (new.path / f"by-{count}").write_text(sys.argv[3])
        new.remove(f"by-{count - 1}")
"""


def test_of_two_processes_each_sees_what_the_other_has_done(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COUNT, str(module.__file__), str(tmp_path / "folder")]
    processes = [subprocess.Popen([*command, str(me)]) for me in (0, 1)]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    found = content(tmp_path / "folder")
    assert found.pop("by-39") in ("0", "1") and found == {"count": "40"}
