"""Receipts for shards that were hashed: who asks for it loads a file that has not changed without hashing it again.

A receipt says that a file, by its path, device, inode, size and times of change, was found to have a SHA-256. It lies
in this user's cache (`HF_ASSETS_CACHE`), not with the file, so that nobody hands one along with a folder. Whoever can
write to that cache, or change a file below its file system, can make it lie; so it is used only where it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import cached_assets_path


def facts_of(file: BinaryIO) -> dict[str, int]:
    """What changes when an open file does, as far as the system tells."""
    found = os.fstat(file.fileno())
    return {name: getattr(found, f"st_{name}") for name in ("dev", "ino", "size", "mtime_ns", "ctime_ns")}


def is_known(path: Path, sha256: str, facts: dict[str, int]) -> bool:
    """Whether there is a receipt for a file as it is."""
    with suppress(OSError, ValueError):
        return bool(json.loads(_place(path).read_text(encoding="utf-8")) == _receipt(path, sha256, facts))
    return False


def note(path: Path, sha256: str, facts: dict[str, int]) -> None:
    """Write a receipt for a file that was hashed; nothing fails, as it can be hashed again."""
    with suppress(OSError):
        place = _place(path)
        descriptor, name = tempfile.mkstemp(dir=place.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(_receipt(path, sha256, facts), file)
        os.replace(name, place)


def _receipt(path: Path, sha256: str, facts: dict[str, int]) -> dict[str, Any]:
    return {"path": os.path.realpath(path), "sha256": sha256, **facts}


def _place(path: Path) -> Path:
    folder = cached_assets_path("eidetic_hf", namespace="receipts")
    return folder / f"{hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()}.json"
