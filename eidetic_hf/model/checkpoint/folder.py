"""A folder that changes whole or not at all.

    with Transaction(folder) as new:
        (new.path / "figures.txt").write_text("...")  # staged: nobody sees it yet
        new.remove("notes.txt")  # goes away with this change

What lies in the folder besides its files:

    .eidetic.lock                       held by the process that changes it
    .eidetic-save/                      a change being prepared; a crash may leave one, and the next change deletes it
    .eidetic-commit/                    a prepared change that counts, on its way to its place
    .eidetic-commit/.eidetic-removals   names of the files that disappear with it, one a line

Files are prepared in `.eidetic-save/`, which is then renamed to `.eidetic-commit/`. This one rename is the moment of
change: before it, the folder holds what it held; after it, the new files, and whoever opens the folder next moves them
to their places, if the process that prepared them did not come to it.

A power cut is a crash that also takes away what is not on the disk yet, in any order. What is prepared is therefore
synced before the moment of change, that moment before the first move, and the moves before their list is deleted. This
holds for POSIX file systems that rename as a whole; Windows is not looked at.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

SAVING, COMMITTED, LOCK, REMOVALS = ".eidetic-save", ".eidetic-commit", ".eidetic.lock", ".eidetic-removals"
LOCK_TIMEOUT_SECONDS = 60.0  # for who wants to save
PATIENCE_SECONDS = 5.0  # for who wants to read: moving files takes less
LONGEST_LIST = 2**20  # bytes of a list of removals: three names, or some thousands of tasks

Unlisted = Callable[[Path], Iterable[str]]


class FolderLocked(RuntimeError):
    """Another process has been changing the folder for too long."""


class Transaction:
    """One change of a folder, as a context manager.

    Invariant: an error before the moment of change leaves every file of the folder as it was; a crash after it leaves
    a change that `recover`, or the next transaction, completes.

    Args:
        folder: made if it does not exist.
        last: names of the files that take their places after all others, in this order: those by which a reader that
            knows nothing of transactions finds the others.
        unlisted: which files a change without a list of removals does away with, given the folder after its files were
            moved; for changes that a version of this package prepared which wrote no such list.

    Attributes:
        folder: as given.
        path: where to put the files of the change, a folder that is empty on entering. It lies in `folder`.

    Raises:
        FolderLocked: on entering, if another process holds the folder for longer than `LOCK_TIMEOUT_SECONDS`.
        OSError: on entering or leaving, if writing failed, for example because the disk is full. The message says
            whether the change has happened.
    """

    def __init__(self, folder: Path, last: Sequence[str] = (), unlisted: Unlisted | None = None) -> None:
        self.folder = folder
        self.path = folder / SAVING
        self._last, self._unlisted = last, unlisted
        self._removals: set[str] = set()
        self._entered = ExitStack()

    def remove(self, name: str) -> None:
        """Let a file disappear with this change, if there is one of this name.

        Raises:
            ValueError: if it is not the plain name of a file in the folder.
        """
        if not _is_plain(name):
            raise ValueError(f"Cannot remove {name!r} from {self.folder}: expected the plain name of a file in it.")
        self._removals.add(name)

    def __enter__(self) -> Transaction:
        with ExitStack() as stack:
            with self._until_the_moment():
                _make(self.folder)
                stack.enter_context(_locked(self.folder, LOCK_TIMEOUT_SECONDS))
                _finish(self.folder, self._last, self._unlisted)
            stack.enter_context(self._staged())
            self._entered = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.__exit__(kind, error, trace)

    @contextmanager
    def _staged(self) -> Iterator[None]:
        """From an empty staged folder to a finished change; an error on the way deletes what was staged."""
        with self._until_the_moment():
            try:
                if os.path.lexists(self.path):
                    shutil.rmtree(self.path)
                self.path.mkdir()
                yield
                self._seal()
                os.replace(self.path, self.folder / COMMITTED)  # the moment of change
            except BaseException:
                shutil.rmtree(self.path, ignore_errors=True)
                raise
        with _telling(
            f"The checkpoint in {self.folder} is the new one, and something after this change failed",
            "It loads; the next save to the folder, or the next load that may write there, completes what is left.",
        ):
            _sync(self.folder)
            _finish(self.folder, self._last, self._unlisted)

    def _until_the_moment(self) -> AbstractContextManager[None]:
        """Let errors say that there is no change."""
        return _telling(f"Saving to {self.folder} failed", "The checkpoint there is unchanged.")

    def _seal(self) -> None:
        """Write the list of removals, and see that all that is staged is on the disk."""
        staged = sorted(self.path.iterdir())
        both = sorted(self._removals & {path.name for path in staged})
        if both:
            raise ValueError(f"{both} are to be written to {self.folder} and to be removed from it in one change.")
        listed = self.path / REMOVALS
        listed.write_text("".join(f"{name}\n" for name in sorted(self._removals)), encoding="utf-8")
        for path in [*staged, listed, self.path]:
            _sync(path)


def recover(folder: Path, last: Sequence[str] = (), unlisted: Unlisted | None = None) -> None:
    """Complete a change that was cut off after its moment; `last` and `unlisted` as in `Transaction`.

    A process that holds the folder completes the change itself. It is waited for, so that nobody reads while files
    move, but not for long: should it have stopped in the middle, the files are where `find` says.

    Raises:
        OSError: if the folder can not be written to. Its files are then where `find` says, too.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while _prepared(folder) is not None and time.monotonic() < end:
        with suppress(FolderLocked), _locked(folder, seconds=0.05):
            _finish(folder, last, unlisted)


def find(folder: Path, name: str) -> Path | None:
    """Where a file of the folder lies, also while a change is on its way to its place; `None` if there is none."""
    prepared = _prepared(folder)
    if prepared is not None and (prepared / name).exists():
        return prepared / name
    path, removals = folder / name, None if prepared is None else _listed_removals(prepared)
    return path if path.exists() and name not in (removals or ()) else None


def _make(folder: Path) -> None:
    """Make a folder, and what is missing above it, so that no power cut takes them away."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        with suppress(PermissionError):  # a folder that may be written to, and not read, cannot be synced
            _sync(path.parent)


def _prepared(folder: Path) -> Path | None:
    """The folder of a prepared change, if there is one; a link to elsewhere is none."""
    path = folder / COMMITTED
    return path if path.is_dir() and not path.is_symlink() else None


def _finish(folder: Path, last: Sequence[str], unlisted: Unlisted | None) -> None:
    """Move the files of a prepared change to their places, and do its removals; may be repeated after a crash."""
    prepared = _prepared(folder)
    if prepared is None:
        return
    place = {name: number for number, name in enumerate(last)}
    names = [path.name for path in prepared.iterdir() if path.name != REMOVALS]
    for name in sorted(names, key=lambda name: (place.get(name, -1), name)):
        os.replace(prepared / name, folder / name)
    removals = _listed_removals(prepared)
    if removals is None:
        removals = [] if unlisted is None else list(unlisted(folder))
    for name in removals:
        (folder / name).unlink(missing_ok=True)
    for path in (prepared, folder):  # a file leaves the one and enters the other
        _sync(path)
    (prepared / REMOVALS).unlink(missing_ok=True)  # only now: until here, a crash needs the list
    prepared.rmdir()


def _listed_removals(prepared: Path) -> list[str] | None:
    """What a prepared change does away with; `None` if it has no list.

    A folder that was copied from elsewhere may bring any list: what is no file of this folder is left alone.
    """
    try:
        text = _start_of(prepared / REMOVALS)
    except FileNotFoundError:  # deleted by who completes the change
        return None
    return None if text is None else [name for name in text.splitlines() if _is_plain(name)]


def _start_of(path: Path) -> str | None:
    """The text of a file, or as much as any list has; `None` if it is a link, a pipe, a device or a folder."""
    if path.is_symlink():
        return None
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(LONGEST_LIST).decode("utf-8", errors="replace")


def _is_plain(name: str) -> bool:
    """Whether a name stands for a file in the folder itself, on one line."""
    return name not in ("", ".", "..") and name.splitlines() == [name] and not set("/\\\0") & set(name)


@contextmanager
def _telling(what: str, then: str) -> Iterator[None]:
    """Let an error of the system keep its number, and say what it was about and what became of the folder."""
    try:
        yield
    except OSError as error:
        message = f"{what} ({error}). {then}"
        raise (OSError(message) if error.errno is None else OSError(error.errno, message)) from error


@contextmanager
def _locked(folder: Path, seconds: float) -> Iterator[None]:
    """Hold the folder against other processes that change it; for so many seconds they are waited for."""
    try:
        with FileLock(folder / LOCK, timeout=seconds):
            yield
    except Timeout as error:
        raise FolderLocked(
            f"Another process has been saving to {folder} for {seconds:.0f} s. Nothing was written; wait for it, or "
            "save to another folder."
        ) from error


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
