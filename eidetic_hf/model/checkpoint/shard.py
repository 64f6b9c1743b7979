"""One shard: a safetensors file whose size and SHA-256 are known, read in one pass into memory that is there for it.

`safetensors.torch` maps a file, which may change or shrink while it is used; here each byte is read once, and what was
hashed is what is used. The format: eight bytes of header length, a JSON header with dtype, shape and offsets of each
tensor, and the data behind it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from . import receipts
from .layout import CheckpointError, open_file

LARGEST_HEADER = 100_000_000  # bytes, as in safetensors itself
CHUNK = 1 << 20  # bytes that are read and hashed while they are in the processor's cache

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# The first eight bytes of a safetensors file are a length and may look like a pickle's; its ninth byte is a brace.
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")


@dataclass(frozen=True)
class Entry:
    """What a shard's header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def room(self) -> Tensor:
        """Fresh memory for it, aligned as torch aligns."""
        return torch.empty(self.shape, dtype=self.dtype)


class Shard:
    """A shard whose size and header were read, and held against each other and against the configuration.

    Args:
        path: of the file.
        recorded: its size in `bytes` and its `sha256`, as the configuration has them.
        expected: names of its tensors, as the index has them.
        again: what to do about a damaged file, as a sentence.
        hash_once: whether a receipt for the file, see `receipts.py`, stands for hashing it.

    Attributes:
        entries: its tensors by name, in the order in which they lie in the file, one behind the other.

    Raises:
        CheckpointError: if it is not the file that was saved, as far as one sees without its data.
    """

    def __init__(
        self, path: Path, recorded: Mapping[str, Any], expected: set[str], again: str, hash_once: bool = False
    ) -> None:
        self.path, self.recorded, self._again, self._hash_once = path, recorded, again, hash_once
        with open_file(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(9)
            if start[:2] in _PICKLES and start[8:9] != b"{":
                raise CheckpointError(f"{path} is a pickle, not a safetensors file. It was not opened.")
            if size != recorded["bytes"]:
                what = "truncated" if size < recorded["bytes"] else "not the file that was saved"
                raise CheckpointError(f"{path} is {what}: {size} bytes, expected {recorded['bytes']}. {again}")
            length = int.from_bytes(start[:8], "little")
            if len(start) < 9 or length > min(size - 8, LARGEST_HEADER):
                raise self._unreadable(f"its header has {length} bytes, and the file {size}")
            file.seek(0)
            self._head = file.read(8 + length)
        self.entries = self._parsed(self._head[8:], size - len(self._head))
        if self.entries.keys() != expected:
            difference = [name[:200] for name in sorted(self.entries.keys() ^ expected)[:3]]
            raise CheckpointError(f"{path} and the index disagree about {difference}.")

    def _parsed(self, header: bytes, size: int) -> dict[str, Entry]:
        """The tensors that a header lists, which take up all of the `size` bytes behind it."""
        try:
            values = json.loads(header.decode("utf-8"))
            values.pop("__metadata__", None)
            listed = [(name, _entry_of(entry), *_offsets_of(entry)) for name, entry in values.items()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._unreadable(f"{type(error).__name__}: {error!s:.300}") from error
        end = 0
        # An empty tensor begins where the next one does: before it.
        for name, entry, start, stop in sorted(listed, key=lambda each: each[2:]):
            if start != end or stop - start != entry.nbytes:
                raise self._unreadable(
                    f"the data of {name:.200} are said to be at {start} to {stop}, expected {entry.nbytes} bytes from "
                    f"{end}"
                )
            end = stop
        if end != size:
            raise self._unreadable(f"its tensors end at {end} of {size} bytes of data")
        return {name: entry for name, entry, *_ in sorted(listed, key=lambda each: each[2:])}

    def _unreadable(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is no safetensors file ({why}). {self._again}")

    def read(self, prefix: str = "") -> dict[str, Tensor]:
        """Its tensors whose names begin with a prefix, in fresh memory; raises as `read_into`."""
        tensors = {name: entry.room() for name, entry in self.entries.items() if name.startswith(prefix)}
        self.read_into(tensors)
        return tensors

    def read_into(self, places: Mapping[str, Tensor], see: Callable[[str, memoryview], None] | None = None) -> None:
        """Read its data into tensors of the dtypes and shapes of its entries, contiguous and on the CPU.

        Args:
            places: by name; what is not there is only hashed.
            see: is shown the data of each tensor, block by block, with its name.

        Raises:
            CheckpointError: if its SHA-256 is not the recorded one. What is in the places is then of no use.
        """
        sha256, digest = self.recorded["sha256"], hashlib.sha256(self._head)
        scratch = memoryview(bytearray(CHUNK))
        with open_file(self.path) as file:
            facts = receipts.facts_of(file) if self._hash_once else None
            is_known = facts is not None and receipts.is_known(self.path, sha256, facts)
            file.seek(len(self._head))
            for name, entry in self.entries.items():
                place = places.get(name)
                if place is not None and (place.dtype, tuple(place.shape)) != (entry.dtype, entry.shape):
                    raise ValueError(f"{name}: a place for {place.dtype} {tuple(place.shape)}, expected {entry}.")
                target = None if place is None else _bytes_of(place)
                for start in range(0, entry.nbytes, CHUNK):
                    size = min(CHUNK, entry.nbytes - start)
                    block = scratch[:size] if target is None else target[start : start + size]
                    if cast(Any, file).readinto(block) != size:
                        raise CheckpointError(f"{self.path} is shorter than it was a moment ago. {self._again}")
                    if not is_known:
                        digest.update(block)
                    if see is not None:
                        see(name, block)
            is_longer, is_same = bool(file.read(1)), facts is not None and facts == receipts.facts_of(file)
        if is_longer or not (is_known or digest.hexdigest() == sha256):
            raise CheckpointError(
                f"{self.path} is not the file that was saved: its SHA-256 is {digest.hexdigest()}, config.json has "
                f"{sha256}. It was edited, damaged or swapped. {self._again}"
            )
        if facts is not None and is_same and not is_known:
            receipts.note(self.path, sha256, facts)


def _entry_of(entry: Mapping[str, Any]) -> Entry:
    """The dtype and shape that a header gives."""
    shape = entry["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
        raise ValueError(f"shape {shape!r:.200}")
    return Entry(_DTYPES[entry["dtype"]], tuple(shape))


def _offsets_of(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Where a header says that a tensor's data begin and end, counted from its own end."""
    start, stop = entry["data_offsets"]
    if type(start) is not int or type(stop) is not int:
        raise ValueError(f"data_offsets {[start, stop]!r:.200}")
    return start, stop


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, to be written to."""
    return memoryview(cast(Any, tensor.detach().reshape(-1).view(torch.uint8).numpy()))
