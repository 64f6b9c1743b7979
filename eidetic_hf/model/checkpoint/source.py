"""Where the files of a checkpoint are: in a folder, or in one commit of a repository on the Hub.

All files of a source are of one state. On the Hub that is the commit that `config.json` came from: a push while the
others are downloaded changes nothing. A folder has no commits; `steadily` reads anew what a save changed meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from .folder import COMMITTED, find
from .layout import (
    CONFIG_FILE,
    CheckpointError,
    finish_interrupted_save,
    json_object,
    missing,
    open_file,
)
from .limits import LARGEST_JSON

# How often a folder may be saved to while one read of it goes on.
ATTEMPTS = 1000

_T = TypeVar("_T")


class Source:
    """A checkpoint, to be read from.

    Attributes:
        where: as the user named it.
        again: what to do about a damaged file, as a sentence.
        commit: the commit that all files are of; `None` in a folder.
    """

    where: str
    again: str
    commit: str | None = None

    def find(self, name: str) -> Path | None:
        """Path of a file; `None` if the checkpoint has none of this name.

        Raises:
            OSError: if it can not be had: there is no such repository, or no way to it.
        """
        raise NotImplementedError

    def need(self, name: str) -> Path:
        """Path of a file.

        Raises:
            CheckpointError: if the checkpoint does not have it.
            OSError: as `find`.
        """
        path = self.find(name)
        if path is None:
            raise CheckpointError(f"{self.where} has no {name}: the checkpoint is incomplete. {self.again}")
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """Content of a JSON file that holds an object.

        Raises:
            CheckpointError: if the checkpoint does not have it, or it is none.
            OSError: as `find`.
        """
        path = self.need(name)
        try:
            return json_object(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error} {self.again}") from error


class Folder(Source):
    """A checkpoint folder; a save that was cut off in it is completed first, where that can be.

    Args:
        path: of the folder.
        where: as the user named it.
    """

    again = "Copy it again."

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where
        with suppress(OSError):  # A read-only folder: its files are read from where the save left them.
            finish_interrupted_save(path)

    def find(self, name: str) -> Path | None:
        """See `Source`.

        Raises:
            CheckpointError: if it is a link to a file outside of the folder.
        """
        path = find(self.path, name)
        if path is not None and path.is_symlink() and not self._may_read(path):
            raise CheckpointError(
                f"{path} is a link to {os.readlink(path)}, outside of the checkpoint folder. Not read; put the file "
                "itself there."
            )
        return path

    def need(self, name: str) -> Path:
        """See `Source`."""
        path = self.find(name)
        if path is None:
            raise missing(self.path, name)
        return path

    def _may_read(self, link: Path) -> bool:
        """Whether a link stays in the folder, or in the cache of the Hub that the folder is part of."""
        real, folder = Path(os.path.realpath(link)), Path(os.path.realpath(self.path))
        return real.is_relative_to(folder) or any(
            real.parent == parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"
        )

    def state(self) -> Any:
        """What every save changes."""
        with suppress(OSError):
            finish_interrupted_save(self.path)  # waits for a save that is moving its files
        for path in (self.path / COMMITTED / CONFIG_FILE, self.path / CONFIG_FILE):
            if not self._may_read(path):
                continue
            with suppress(OSError, CheckpointError), open_file(path) as file:
                return file.read(LARGEST_JSON), path.stat().st_mtime_ns
        return None


class Commit(Source):
    """One commit of a repository on the Hub: the one that a revision stands for when this is made.

    Args:
        repository: its id.
        hub: where its files are: `revision`, `token`, `cache_dir`, ... of `from_pretrained`.

    Raises:
        CheckpointError: if there is no `config.json` in it.
        OSError: if there is no such repository or revision, or no way to it.
    """

    again = "Load it with force_download=True, which downloads it again."

    def __init__(self, repository: str, hub: Mapping[str, Any]) -> None:
        self.where, self._hub = repository, dict(hub)
        self.commit = extract_commit_hash(str(self.need(CONFIG_FILE)), None)
        if self.commit is not None:
            self._hub["revision"] = self.commit

    def find(self, name: str) -> Path | None:
        """See `Source`."""
        path = self._fetch(name)
        if path is None and not self._is_known_to_lack(name):
            raise ConnectionError(self._broken(name, "the Hub did not say whether it is there"))
        return None if path is None else Path(path)

    def need(self, name: str) -> Path:
        """See `Source`."""
        path = self.find(name)
        if path is None and (is_offline_mode() or self._hub.get("local_files_only")):
            raise FileNotFoundError(
                f"{name} of {self.where} is not in the cache, and nothing may be downloaded (local_files_only, "
                "HF_HUB_OFFLINE). Load it once where it may."
            )
        if path is None:
            at = f" at the revision {self._hub['revision']}" if self._hub.get("revision") else ""
            raise CheckpointError(f"{self.where} on the Hub has no {name}{at}: there is no whole checkpoint there.")
        return path

    def _fetch(self, name: str) -> str | None:
        """Path of a file in the cache, where it is downloaded to if it is not there."""
        try:
            return cached_file(self.where, name, _raise_exceptions_for_missing_entries=False, **self._hub)
        except (HTTPError, RuntimeError) as error:  # of the client: a connection that ends, or was closed meanwhile
            raise ConnectionError(self._broken(name, str(error).partition("\n")[0])) from error

    def _broken(self, name: str, why: str) -> str:
        return (
            f"{self.where}: {name} could not be downloaded ({why}). Load it again when the Hub can be reached; with "
            "HF_HUB_OFFLINE=1 what is in the cache is loaded."
        )

    def _is_known_to_lack(self, name: str) -> bool:
        """Whether the Hub has said that the commit has no such file; offline, what is not in the cache is not there.

        To transformers a file is missing, too, if there was no way to it.
        """
        if self._hub.get("local_files_only") or is_offline_mode():
            return True
        path = "/".join(part for part in (self._hub.get("subfolder"), name) if part)
        cache = self._hub.get("cache_dir")
        return try_to_load_from_cache(self.where, path, cache, revision=self._hub.get("revision")) is _CACHED_NO_EXIST


def source_of(name_or_path: str | os.PathLike, hub: Mapping[str, Any]) -> Source:
    """The checkpoint in a folder, or in a repository on the Hub.

    Args:
        name_or_path: path of the folder, or id of the repository.
        hub: where a repository's files are; of a folder only `subfolder` counts.

    Raises:
        CheckpointError: if it is the path of no folder, or a save was cut off there that left no checkpoint.
        OSError: as `Commit`.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return Folder(path / (hub.get("subfolder") or ""), str(name_or_path))
    expected = "expected a checkpoint folder, or the id of a repository on the Hub."
    if path.exists():
        raise CheckpointError(f"{name_or_path} is not a folder: {expected}")
    try:
        validate_repo_id(str(name_or_path))
    except HFValidationError as error:
        raise CheckpointError(f"{name_or_path} does not exist: {expected}") from error
    return Commit(str(name_or_path), hub)


def steadily(name_or_path: str | os.PathLike, hub: Mapping[str, Any], read: Callable[[Source], _T]) -> _T:
    """What `read` returns of a checkpoint; read anew, if somebody saved to its folder meanwhile.

    Raises:
        CheckpointError: as `source_of`, or as `read` does.
        OSError: likewise.
    """
    for _ in range(ATTEMPTS):
        source = source_of(name_or_path, hub)
        before = source.state() if isinstance(source, Folder) else None
        try:
            return read(source)
        except (CheckpointError, OSError):
            if not isinstance(source, Folder) or source.state() == before:
                raise
    raise CheckpointError(f"{name_or_path} was saved to {ATTEMPTS} times while it was read. Read it from a copy.")
