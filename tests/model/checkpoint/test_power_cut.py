"""A power cut after each system call of a change, in all that it may take away: the folder is the old or the new one.

The model of the disk is in tests/support/power_cut.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import faults
from support.faults import Operation, watch
from support.power_cut import Disk, Tree, frozen, read_tree, write_tree

from eidetic_hf.model.checkpoint import folder as module
from eidetic_hf.model.checkpoint.folder import COMMITTED, LOCK, Transaction, find, recover

pytestmark = pytest.mark.skipif(not faults.SUPPORTED, reason="calls can be watched on Linux on x86-64 alone")

Content = dict[str, str]
OLD = {"a": "a, old", "b": "b, old", "gone": "gone, old", "index": "index, old"}
NEW = {"a": "a, new", "b": "b, old", "c": "c, new", "index": "index, new"}
NEWEST = {"a": "a, new", "b": "b, newest", "gone": "gone, back", "index": "index, newest"}


def change(folder: Path, new: Content) -> None:
    """Let a folder hold this, whatever it holds."""
    with Transaction(folder, last=["index"]) as transaction:
        old = seen(folder)
        for name in new:
            if old.get(name) != new[name]:
                (transaction.path / name).write_text(new[name])
        for name in old:
            if name not in new:
                transaction.remove(name)


def seen(folder: Path) -> Content:
    """What a reader finds, who changes nothing."""
    found = {name: find(folder, name) for name in sorted({*OLD, *NEW, *NEWEST})}
    return {name: path.read_text() for name, path in found.items() if path is not None}


def filled(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, text in OLD.items():
        (folder / name).write_text(text)
    return folder


def cut_off(folder: Path) -> Path:
    """A folder with the change from `OLD` to `NEW` on its way."""
    filled(folder)

    def second_move(number: int, operation: Operation) -> faults.Fault:
        return "kill" if operation.kind == "rename" and operation.path.name == "c" else None

    assert watch(lambda: change(folder, NEW), folder.parent, second_move).killed
    assert (folder / COMMITTED / "c").exists() and not (folder / COMMITTED / "a").exists()
    return folder


class Survey:
    """All that power cuts may leave of an action on `root/folder`."""

    def __init__(self, root: Path, act: Callable[[Path], object]) -> None:
        self._scratch, self._found = root.parent / "scratch", dict[object, Content]()
        disk = Disk(root)
        self.operations = watch(lambda: act(root / "folder"), root).operations
        self.before = [self._see(tree) for tree in disk.may_hold()]
        self.during: list[Content] = []
        for operation in self.operations:
            disk.do(operation)
            self.during += [self._see(tree) for tree in disk.may_hold()]
        assert disk.holds() == read_tree(root), "an operation was not seen"
        self.after = [self._see(tree) for tree in disk.may_hold()]
        print(f"\n{len(self.operations)} calls, {len(self.during)} power cuts, {len(self._found)} different disks")

    def _see(self, tree: Tree) -> Content:
        """What a reader finds there, before and after what is left of the change was completed."""
        key = frozen(tree)
        if key not in self._found:
            folder = write_tree(self._scratch, tree) / "folder"
            self._found[key] = found = seen(folder)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "_sync", lambda path: None)  # the power stays on now
                recover(folder, last=["index"])
                assert seen(folder) == found and not (folder / COMMITTED).exists()
                change(folder, NEWEST)
            left = {path.name: path.read_text() for path in folder.iterdir() if path.name != LOCK}
            assert left == NEWEST
            shutil.rmtree(self._scratch)
        return self._found[key]


def test_a_change_is_whole_after_every_power_cut_and_stays_once_it_has_returned(tmp_path: Path) -> None:
    filled(tmp_path / "root" / "folder")
    survey = Survey(tmp_path / "root", lambda folder: change(folder, NEW))
    assert all(state in (OLD, NEW) for state in survey.during)
    assert OLD in survey.during and NEW in survey.during and len(survey.during) > 1000
    assert all(state == NEW for state in survey.after)


def test_a_first_change_leaves_nothing_or_all_and_the_folder_stays_once_it_has_returned(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    survey = Survey(tmp_path / "root", lambda folder: change(folder, NEW))
    assert all(state in ({}, NEW) for state in survey.during) and all(state == NEW for state in survey.after)


def test_a_change_that_a_reader_completes_is_whole_after_every_power_cut(tmp_path: Path) -> None:
    cut_off(tmp_path / "root" / "folder")
    survey = Survey(tmp_path / "root", lambda folder: recover(folder, last=["index"]))
    assert all(state == NEW for state in survey.during) and len(survey.operations) > 8


def test_a_change_after_one_that_was_cut_off_is_whole_after_every_power_cut(tmp_path: Path) -> None:
    cut_off(tmp_path / "root" / "folder")
    survey = Survey(tmp_path / "root", lambda folder: change(folder, NEWEST))
    assert all(state in (NEW, NEWEST) for state in survey.during) and all(state == NEWEST for state in survey.after)


def test_a_file_that_comes_back_is_not_deleted_by_the_change_that_deleted_it(tmp_path: Path) -> None:
    filled(tmp_path / "root" / "folder")

    def act(folder: Path) -> None:
        change(folder, NEW)
        change(folder, NEWEST)

    survey = Survey(tmp_path / "root", act)
    assert all(state in (OLD, NEW, NEWEST) for state in survey.during)
    assert all(state == NEWEST for state in survey.after)


# -- the model of the disk --------------------------------------------------------------------------------------------


def states(tmp_path: Path, act: Callable[[Path], object]) -> list[Tree]:
    """What a power cut may leave after an action in an empty folder."""
    root = tmp_path / "root"
    root.mkdir(parents=True)
    disk = Disk(root)
    for operation in watch(lambda: act(root), root).operations:
        disk.do(operation)
    assert disk.holds() == read_tree(root)
    return list({frozen(tree): tree for tree in disk.may_hold()}.values())


def test_of_a_file_that_was_not_synced_all_half_or_nothing_is_left(tmp_path: Path) -> None:
    found = states(tmp_path, lambda root: (root / "a").write_text("four"))
    assert sorted(found, key=str) == sorted([{}, {"a": b""}, {"a": b"fo"}, {"a": b"four"}], key=str)


def test_a_rename_before_the_data_may_leave_an_empty_file(tmp_path: Path) -> None:
    def act(root: Path) -> None:
        (root / "new").write_text("four")
        (root / "new").rename(root / "a")

    assert {"a": b""} in states(tmp_path, act) and {"new": b"four"} in states(tmp_path / "again", act)
