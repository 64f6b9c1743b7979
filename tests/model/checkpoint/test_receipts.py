"""Receipts: a shard that was hashed is not hashed again while its file is the same, for whoever asks for that."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.folders import FIRST, answers, edit_json, same

from eidetic_hf import CheckpointError, EideticModel
from eidetic_hf.model.checkpoint import receipts, shard


@pytest.fixture(autouse=True)
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Receipts in a cache of the test's own; says how many bytes of data were hashed since it was asked last."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(receipts, "cached_assets_path", lambda *_, **__: cache)
    counts = [0]

    class Counted:
        def __init__(self, head: bytes) -> None:
            self._digest = hashlib.sha256(head)

        def update(self, block: Any) -> None:
            counts[0] += len(block)
            self._digest.update(block)

        def hexdigest(self) -> str:
            return self._digest.hexdigest()

    monkeypatch.setattr(shard, "hashlib", SimpleNamespace(sha256=Counted))

    def since() -> int:
        count, counts[0] = counts[0], 0
        return count

    return since


def shard_bytes(folder: Path) -> int:
    """Size of the shards of a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_a_folder_is_hashed_at_the_first_load_alone(
    folder: Path, trained: EideticModel, hashed: Callable[[], int]
) -> None:
    for expected in (0.8 * shard_bytes(folder), 0):
        loaded = EideticModel.from_pretrained(folder, hash_once=True)
        assert (expected < hashed() <= shard_bytes(folder)) if expected else hashed() == 0
        assert same(answers(loaded), answers(trained)) and loaded.verify().ok


def test_nobody_uses_a_receipt_without_asking(folder: Path, hashed: Callable[[], int]) -> None:
    EideticModel.from_pretrained(folder, hash_once=True)
    first = hashed()
    EideticModel.from_pretrained(folder)
    assert hashed() == first


def rewrite(path: Path) -> None:
    """Put other bytes into a file, in place, with its size and time of change."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(path: Path) -> None:
    """Put another file with other bytes in its place."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("change", [rewrite, replace])
def test_a_file_that_is_another_since_is_hashed_again(folder: Path, change: Callable[[Path], None]) -> None:
    EideticModel.from_pretrained(folder, hash_once=True)
    change(folder / FIRST)
    with pytest.raises(CheckpointError, match=f"{FIRST} is not the file that was saved"):
        EideticModel.from_pretrained(folder, hash_once=True)


def test_a_damaged_file_gets_no_receipt(folder: Path) -> None:
    rewrite(folder / FIRST)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"{FIRST} is not the file that was saved"):
            EideticModel.from_pretrained(folder, hash_once=True)


def test_a_receipt_is_for_the_digest_that_the_configuration_has_now(folder: Path) -> None:
    EideticModel.from_pretrained(folder, hash_once=True)

    def forge(values: dict[str, Any]) -> None:
        values["files"][FIRST]["sha256"] = "0" * 64

    edit_json(folder / "config.json", forge)
    with pytest.raises(CheckpointError, match=f"{FIRST} is not the file that was saved"):
        EideticModel.from_pretrained(folder, hash_once=True)


def test_a_receipt_that_is_none_and_a_cache_that_can_not_be_written_to_cost_a_hash(
    folder: Path, tmp_path: Path, hashed: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    EideticModel.from_pretrained(folder, hash_once=True)
    first = hashed()
    for path in (tmp_path / "cache").iterdir():
        path.write_text("[")
    EideticModel.from_pretrained(folder, hash_once=True)
    assert hashed() == first

    def denied(*_: Any, **__: Any) -> Path:
        raise PermissionError("no")

    for place in (lambda *_, **__: tmp_path / "nowhere", denied):
        monkeypatch.setattr(receipts, "cached_assets_path", place)
        EideticModel.from_pretrained(folder, hash_once=True)
        assert hashed() == first
