"""Xet's storage, as the folder that the client keeps its chunks in when it is told that the storage is one.

The client (`hf_xet`) takes an address `local://FOLDER` for a storage on this machine and does by itself what Xet's
service does: cutting files into chunks, finding those that are there already, keeping the rest. What it leaves there
is read here: of each file its SHA-256, by which commits name it, and its hash in Xet.
"""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HEADER = 48
ENTRY = struct.Struct("<32sIIII")
END = b"\xff" * 32
WITH_CHECKS, WITH_SHA256 = 1 << 31, 1 << 30
TOKEN = "xet_token"


def as_text(digest: bytes) -> str:
    """A hash as Xet writes it: four numbers of 64 bits, the lowest byte first."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def files_of(shard: bytes) -> Iterator[tuple[str, str]]:
    """SHA-256 and hash in Xet of every file that a shard of the storage describes.

    A shard is a header and then entries of 48 bytes: for each file one that says how many follow on its parts, on
    checks of them, and on its SHA-256 (see the format of shards on https://huggingface.co/docs/xet).
    """
    at = HEADER
    while shard[at : at + 32] != END:
        digest, flags, parts, _, _ = ENTRY.unpack_from(shard, at)
        at += HEADER * (1 + parts * (2 if flags & WITH_CHECKS else 1))
        if flags & WITH_SHA256:
            yield as_text(shard[at : at + 32]), as_text(digest)
            at += HEADER


class XetStorage:
    """A storage in a folder.

    Args:
        folder: where the client keeps it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, str] = {}
        self._contents: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"local://{self.folder}"

    @property
    def size(self) -> int:
        """Bytes of all chunks that were ever uploaded."""
        return sum(path.stat().st_size for path in self.folder.glob("xet/xorbs/xorbs/*") if path.suffix != ".tagset")

    def hash_of(self, sha256: str) -> str | None:
        """The hash in Xet of a file, if it was uploaded."""
        if sha256 not in self._known:
            for path in self.folder.glob("xet/xorbs/shards/*.mdb"):
                self._known.update(files_of(path.read_bytes()))
        return self._known.get(sha256)

    def read(self, sha256: str, size: int) -> bytes:
        """The content of a file that was uploaded."""
        import hf_xet

        if sha256 not in self._contents:
            group = hf_xet.XetSession().new_file_download_group(
                endpoint=self.address, token=TOKEN, token_expiry_unix_secs=int(time.time()) + 3600
            )
            with tempfile.TemporaryDirectory() as place:
                with group:
                    group.start_download_file(hf_xet.XetFileInfo(self.hash_of(sha256), size), f"{place}/file")
                self._contents[sha256] = Path(place, "file").read_bytes()
        return self._contents[sha256]
