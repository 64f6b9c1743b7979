"""What a disk may hold after a power cut: whatever was not synced may be there or not.

The model is POSIX at its weakest, but for one thing: a rename happens as a whole.

- What was written to a file is there for certain once the file was synced. Before, the file may hold what it held when
  it was synced last, nothing if it never was, or half of what was written.
- That a file or folder was made, renamed or deleted is certain once the folder that its name stands in was synced;
  both folders, for a rename from one to another. Before, each of these may have happened or not, whatever the order.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.faults import Operation

# Up to so many changes that may have happened, every subset is tried.
ALL_SUBSETS = 8 if os.environ.get("EIDETIC_FAULTS") == "all" else 5
Tree = dict[str, "bytes | Tree"]


@dataclass
class _File:
    synced: bytes
    written: bytes


class _Folder(dict[str, "_File | _Folder"]):
    """Names and what they stand for; a folder is itself, whatever it holds."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@dataclass
class _Change:
    """Names that change at once: `None` for one that disappears. It is certain when no folder is left to be synced."""

    names: list[tuple[_Folder, str, _File | _Folder | None]]
    unsynced: list[_Folder] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.unsynced = [folder for folder, _, _ in self.names]

    def is_in(self, folder: _Folder) -> bool:
        return any(each is folder for each in self.unsynced)


class Disk:
    """A folder, what a process does to it, and what may be left of that."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._now = _read(self._root)
        self._start = {id(folder): (folder, dict(folder)) for folder in _folders(self._now)}
        self._changes: list[_Change] = []
        self._files: list[_File] = []

    def do(self, operation: Operation) -> None:
        """Let an operation happen."""
        if not operation.effective:
            return
        path, kind = operation.path, operation.kind
        if kind in ("create", "mkdir"):
            made = _File(b"", b"") if kind == "create" else _Folder()
            if isinstance(made, _Folder):
                self._start[id(made)] = (made, {})
            else:
                self._files.append(made)
            self._change((path, made))
        elif kind in ("unlink", "rmdir"):
            self._change((path, None))
        elif kind == "rename":
            assert operation.target is not None
            self._change((path, None), (operation.target, self._at(path)))
        elif kind in ("write", "truncate"):
            file = self._at(path)
            assert isinstance(file, _File)
            start, data = operation.offset, operation.data
            kept = file.written[:start].ljust(start, b"\0")
            file.written = kept + data + (file.written[start + len(data) :] if kind == "write" else b"")
            self._files.append(file)
        elif kind == "fsync":
            self._sync(self._at(path))
        else:
            assert kind in ("open", "chmod", "lock", "unlock"), f"{kind} is not in the model"

    def holds(self) -> Tree:
        """What the process sees."""
        return self._tree([True] * len(self._changes), {})

    def may_hold(self) -> Iterator[Tree]:
        """Each of the states that a power cut now may leave, the same one perhaps more than once."""
        uncertain = [place for place, change in enumerate(self._changes) if change.unsynced]
        files = {id(file): file for file in self._files if file.synced != file.written}
        for chosen in _subsets(len(uncertain)):
            happened = [True] * len(self._changes)
            for place, yes in zip(uncertain, chosen, strict=True):
                happened[place] = yes
            yield self._tree(happened, {})
            yield self._tree(happened, {key: file.synced for key, file in files.items()})
            for key, file in files.items():
                yield self._tree(happened, {key: file.synced})
                yield self._tree(happened, {key: file.written[: len(file.written) // 2]})

    def _change(self, *names: tuple[Path, _File | _Folder | None]) -> None:
        change = _Change([(self._folder(path.parent), path.name, what) for path, what in names])
        self._changes.append(change)
        _apply(change)

    def _sync(self, what: _File | _Folder) -> None:
        if isinstance(what, _File):
            what.synced = what.written
            return
        for change in self._changes:
            change.unsynced = [folder for folder in change.unsynced if folder is not what]

    def _at(self, path: Path) -> _File | _Folder:
        found: _File | _Folder = self._now
        for name in path.relative_to(self._root).parts:
            assert isinstance(found, _Folder)
            found = found[name]
        return found

    def _folder(self, path: Path) -> _Folder:
        found = self._at(path)
        assert isinstance(found, _Folder)
        return found

    def _tree(self, happened: Sequence[bool], contents: dict[int, bytes]) -> Tree:
        """What there is if these changes have happened and these files have other contents than what was written."""
        now = [(folder, dict(folder)) for folder, _ in self._start.values()]
        for folder, start in self._start.values():
            folder.clear()
            folder.update(start)
        for change, yes in zip(self._changes, happened, strict=True):
            if yes:
                _apply(change)
        tree = _copied(self._now, contents)
        for folder, names in now:
            folder.clear()
            folder.update(names)
        return tree


def replayed(root: Path, operations: Sequence[Operation]) -> Disk:
    """A disk with what lies in a folder now, after these operations."""
    disk = Disk(root)
    for operation in operations:
        disk.do(operation)
    return disk


def read_tree(root: Path) -> Tree:
    """What lies in a folder."""
    return _copied(_read(root), {})


def write_tree(root: Path, tree: Tree) -> Path:
    """Make a folder with such content."""
    root.mkdir()
    for name, what in tree.items():
        if isinstance(what, bytes):
            (root / name).write_bytes(what)
        else:
            write_tree(root / name, what)
    return root


def frozen(tree: Tree) -> object:
    """The same, to be a key."""
    return frozenset((name, what if isinstance(what, bytes) else frozen(what)) for name, what in tree.items())


def _apply(change: _Change) -> None:
    for folder, name, what in change.names:
        if what is None:
            folder.pop(name, None)
        else:
            folder[name] = what


def _read(root: Path) -> _Folder:
    """What is on the disk, all of it for certain."""
    folder = _Folder()
    for path in sorted(root.iterdir()):
        if path.is_dir():
            folder[path.name] = _read(path)
        else:
            content = path.read_bytes()
            folder[path.name] = _File(content, content)
    return folder


def _folders(folder: _Folder) -> Iterator[_Folder]:
    yield folder
    for what in folder.values():
        if isinstance(what, _Folder):
            yield from _folders(what)


def _copied(folder: _Folder, contents: dict[int, bytes]) -> Tree:
    return {
        name: _copied(what, contents) if isinstance(what, _Folder) else contents.get(id(what), what.written)
        for name, what in folder.items()
    }


def _subsets(count: int) -> Iterator[tuple[bool, ...]]:
    """Which of so many have happened: every choice, or of many the first, the last, all but one, and one alone."""
    if count <= ALL_SUBSETS:
        yield from itertools.product((False, True), repeat=count)
        return
    for number in range(count + 1):
        yield tuple(place < number for place in range(count))
        yield tuple(place >= number for place in range(count))
    for number in range(count):
        yield tuple(place == number for place in range(count))
        yield tuple(place != number for place in range(count))
