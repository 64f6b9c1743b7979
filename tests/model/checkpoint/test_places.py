"""Folders that a save cannot be written to, or only in part: read-only, full, links, files, locks of others."""

from __future__ import annotations

import copy
import errno
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support.faults import SUPPORTED, Fault, Operation, watch
from support.folders import answers, hashes, is_whole, same
from support.processes import Process, without_rights

from eidetic_hf import CheckpointError, EideticModel
from eidetic_hf.model.checkpoint.folder import COMMITTED, LOCK, SAVING, Transaction, find, recover

UNCHANGED = "The checkpoint there is unchanged."


def said(action: Callable[[], object]) -> list[Any]:
    """Number and text of the system's error that an action raises, or of the library's own."""
    try:
        action()
    except OSError as error:
        return [error.errno, str(error)]
    except CheckpointError as error:
        return [None, str(error)]
    return [None, None]


def change(folder: Path) -> None:
    with Transaction(folder) as new:
        (new.path / "a").write_text("a, new")


def failed(action: Callable[[], object], number: int, rights: bool = True) -> None:
    """Check that an action fails in the house's sentence, which keeps the system's number."""
    found, text = said(action) if rights else without_rights(lambda: said(action))
    assert found == number and text is not None
    assert re.search(rf"Saving to .* failed \(.*{re.escape(os.strerror(number))}.*\)\. {UNCHANGED}$", text)


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Nobody may write to a folder meanwhile."""
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield
    for path in (folder, *folder.glob(".eidetic-*")):
        if path.is_dir():
            path.chmod(0o755)


# -- read-only --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locked_before", [True, False])
def test_a_save_to_a_read_only_folder_fails_in_a_sentence(
    grown: EideticModel, folder: Path, saved: Path, locked_before: bool
) -> None:
    if not locked_before:
        (folder / LOCK).unlink()
    model = copy.deepcopy(grown)
    with closed(folder):
        failed(lambda: model.save_pretrained(folder), errno.EACCES, rights=False)
    assert hashes(folder) == hashes(saved)
    model.save_pretrained(folder)
    assert is_whole(folder)


def test_a_read_only_folder_is_loaded_without_an_attempt_that_fails(folder: Path, trained: EideticModel) -> None:
    names = set(os.listdir(folder))
    with closed(folder):
        assert without_rights(lambda: EideticModel.from_pretrained(folder).tasks) == trained.tasks
    assert set(os.listdir(folder)) == names


@pytest.mark.skipif(not SUPPORTED, reason="the save is cut off by watching its calls")
@pytest.mark.parametrize("moves", [0, 2, 4])
def test_a_save_that_was_cut_off_is_loaded_from_a_folder_that_is_now_read_only(
    grown: EideticModel, folder: Path, moves: int
) -> None:
    moved = 0

    def decide(number: int, operation: Operation) -> Fault:
        nonlocal moved
        moved += operation.kind == "rename" and operation.path.parent.name == COMMITTED
        return "kill" if moved > moves else None

    assert watch(lambda: copy.deepcopy(grown).save_pretrained(folder), folder.parent, decide).killed
    left = {path.name for path in (folder / COMMITTED).iterdir()}
    with closed(folder):
        assert without_rights(lambda: same(answers(EideticModel.from_pretrained(folder)), answers(grown)))
        failed(lambda: copy.deepcopy(grown).save_pretrained(folder), errno.EACCES, rights=False)
    assert {path.name for path in (folder / COMMITTED).iterdir()} == left
    assert same(answers(EideticModel.from_pretrained(folder)), answers(grown)) and is_whole(folder)


# -- what a path may stand for ----------------------------------------------------------------------------------------


def test_a_folder_is_made_with_all_that_is_missing_above_it_unless_that_may_not_be_written_to(tmp_path: Path) -> None:
    change(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c" / "a").read_text() == "a, new"
    (tmp_path / "a").chmod(0o555)
    failed(lambda: change(tmp_path / "a" / "d"), errno.EACCES, rights=False)
    failed(lambda: change(tmp_path / "a" / "d" / "e"), errno.EACCES, rights=False)
    (tmp_path / "a").chmod(0o755)
    assert os.listdir(tmp_path / "a") == ["b"]


def test_a_path_that_can_be_no_folder_fails_in_a_sentence(model: EideticModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    failed(lambda: model.save_pretrained(tmp_path / ("n" * 300)), errno.ENAMETOOLONG)
    failed(lambda: model.save_pretrained(tmp_path / "file" / "below"), errno.ENOTDIR)
    failed(lambda: model.save_pretrained(tmp_path / "dangling"), errno.EEXIST)
    with pytest.raises(CheckpointError, match="is a file, expected a folder"):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept" and not (tmp_path / "nowhere").exists()
    assert set(os.listdir(tmp_path)) == {"file", "dangling"}


def test_a_link_to_a_folder_is_as_good_as_the_folder(grown: EideticModel, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    copy.deepcopy(grown).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and is_whole(folder)
    assert same(answers(EideticModel.from_pretrained(tmp_path / "link")), answers(grown))


@pytest.mark.parametrize("name", [SAVING, COMMITTED])
def test_a_link_in_place_of_the_folder_of_a_change_lets_nothing_be_read_or_changed_elsewhere(
    tmp_path: Path, name: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("a, old")
    (tmp_path / "folder" / name).symlink_to(elsewhere)
    recover(tmp_path / "folder")
    assert find(tmp_path / "folder", "a") == tmp_path / "folder" / "a"
    _, text = said(lambda: change(tmp_path / "folder"))
    assert text is not None and text.endswith(UNCHANGED)
    assert (tmp_path / "folder" / "a").read_text() == "a, old" and (elsewhere / "a").read_text() == "kept"


# -- locks ------------------------------------------------------------------------------------------------------------


def test_a_lock_file_of_another_user_fails_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch(0o444)
    failed(lambda: change(tmp_path), errno.EACCES, rights=False)
    assert os.listdir(tmp_path) == [LOCK]


def test_what_stands_in_place_of_the_lock_file_fails_in_a_sentence(tmp_path: Path) -> None:
    for name, make, number in (
        ("folder", lambda path: path.mkdir(), errno.EISDIR),
        ("link", lambda path: path.symlink_to(tmp_path / "nowhere"), errno.ELOOP),
    ):
        (tmp_path / name).mkdir()
        make(tmp_path / name / LOCK)
        failed(lambda name=name: change(tmp_path / name), number)
    assert set(os.listdir(tmp_path)) == {"folder", "link"}


@pytest.mark.skipif(not SUPPORTED, reason="calls can be watched on Linux on x86-64 alone")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_that_cannot_lock_fails_in_a_sentence(tmp_path: Path, number: int) -> None:
    def decide(at: int, operation: Operation) -> Fault:
        return number if operation.kind == "lock" else None

    found, text = watch(lambda: said(lambda: change(tmp_path / "folder")), tmp_path, decide).returned
    assert found == number and re.search(rf"Saving to .* failed .*{os.strerror(number)}.*{UNCHANGED}$", text)


@pytest.mark.skipif(not SUPPORTED, reason="calls can be watched on Linux on x86-64 alone")
def test_where_there_is_no_flock_the_existence_of_the_lock_file_is_the_lock(tmp_path: Path) -> None:
    def decide(at: int, operation: Operation) -> Fault:
        return errno.ENOSYS if operation.kind == "lock" else None

    for _ in range(2):
        assert watch(lambda: said(lambda: change(tmp_path / "folder")), tmp_path, decide).returned == [None, None]
    assert os.listdir(tmp_path / "folder") == ["a"]


def test_a_process_that_dies_in_the_middle_of_a_change_holds_up_nobody(tmp_path: Path) -> None:
    def hold() -> None:
        with Transaction(tmp_path / "folder") as new:
            (new.path / "a").write_text("half")
            (tmp_path / "held").touch()
            while True:
                os.sched_yield()

    process = Process(hold)
    while not (tmp_path / "held").exists():
        os.sched_yield()
    with pytest.raises(TimeoutError):
        FileLock(tmp_path / "folder" / LOCK, timeout=0).acquire()
    process.kill()
    assert process.wait() is None
    change(tmp_path / "folder")
    assert (tmp_path / "folder" / "a").read_text() == "a, new" and not (tmp_path / "folder" / SAVING).exists()


# -- no room ----------------------------------------------------------------------------------------------------------


def test_a_limit_on_the_size_of_files_leaves_the_checkpoint_as_it_was_and_says_so(
    grown: EideticModel, folder: Path, saved: Path
) -> None:
    model = copy.deepcopy(grown)

    def limited() -> list[Any]:
        found = []
        for limit in (100, 2_000, 30_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            found.append(said(lambda: model.save_pretrained(folder)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return [found, hashes(folder), said(lambda: model.save_pretrained(folder))]

    found, between, last = Process(limited).wait()
    assert [number for number, _ in found] == [errno.EFBIG] * 3
    assert all(re.search(rf"failed \(.*File too large.*\)\. {UNCHANGED}$", text) for _, text in found)
    assert between == hashes(saved) and last == [None, None] and is_whole(folder)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where this process may mount one."""
    place = tmp_path / "mounted"
    place.mkdir()
    done = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if not done or done.returncode:
        pytest.skip("may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_on_a_disk_that_is_really_full_the_checkpoint_is_as_it_was_until_there_is_room(
    grown: EideticModel, saved: Path, mounted: Path
) -> None:
    folder = Path(shutil.copytree(saved, mounted / "folder"))
    model = copy.deepcopy(grown)
    with open(mounted / "ballast", "wb") as file:
        file.truncate(0)
        size = os.statvfs(mounted).f_bavail * os.statvfs(mounted).f_frsize
        file.write(bytes(size - 8192))
    failed(lambda: model.save_pretrained(folder), errno.ENOSPC)
    failed(lambda: model.save_pretrained(mounted / "first"), errno.ENOSPC)
    assert hashes(folder) == hashes(saved) and same(
        answers(EideticModel.from_pretrained(folder)), {name: answers(grown)[name] for name in ("first", "second")}
    )
    (mounted / "ballast").unlink()
    model.save_pretrained(folder)
    assert is_whole(folder) and same(answers(EideticModel.from_pretrained(folder)), answers(grown))


def test_a_file_system_that_became_read_only_fails_in_a_sentence_and_is_loaded(
    grown: EideticModel, saved: Path, mounted: Path
) -> None:
    folder = Path(shutil.copytree(saved, mounted / "folder"))
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    failed(lambda: copy.deepcopy(grown).save_pretrained(folder), errno.EROFS)
    failed(lambda: copy.deepcopy(grown).save_pretrained(mounted / "first"), errno.EROFS)
    assert EideticModel.from_pretrained(folder).tasks == ["first", "second"]
