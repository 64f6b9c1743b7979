"""One shard: read in one pass into memory that is there for it, and what is refused before and after."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from eidetic_hf import CheckpointError
from eidetic_hf.model.checkpoint.layout import sha256_of
from eidetic_hf.model.checkpoint.shard import CHUNK, Shard

TENSORS = {
    "a": torch.arange(CHUNK // 4 + 3, dtype=torch.float32),  # more than one block of reading
    "b": torch.ones(2, 3, dtype=torch.bfloat16),
    "c": torch.tensor(7, dtype=torch.int64),
    "d": torch.zeros(0, 5),
    "e": torch.tensor([True, False]),
}


def recorded(path: Path) -> dict[str, Any]:
    """What a configuration would say of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def shard(path: Path, names: Any = TENSORS) -> Shard:
    """A file as the shard that it is."""
    return Shard(path, recorded(path), set(names), "Copy it again.")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A safetensors file with one tensor of each sort."""
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def written(path: Path, header: Any, data: bytes = b"\x00" * 8) -> Path:
    """A file with any header, and data behind it."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)
    return path


def test_every_tensor_comes_as_it_was_saved(path: Path) -> None:
    found = shard(path).read()
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        assert not tensor.numel() or found[name].data_ptr() % 64 == 0


def test_tensors_are_read_into_the_memory_that_is_there_and_others_only_hashed(path: Path) -> None:
    packed = torch.full((3, 3), -1.0, dtype=torch.bfloat16)
    shard(path).read_into({"b": packed[1:]})
    assert torch.equal(packed[1:], TENSORS["b"]) and torch.equal(packed[:1], -torch.ones(1, 3, dtype=torch.bfloat16))
    assert set(shard(path).read("b")) == {"b"}


@pytest.mark.parametrize("place", [torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.bfloat16)])
def test_a_place_of_another_dtype_or_shape_is_not_written_to(path: Path, place: Tensor) -> None:
    with pytest.raises(ValueError, match="b: a place for"):
        shard(path).read_into({"b": place})
    assert not place.any()


@pytest.mark.parametrize("at", [-1, 40])
def test_one_bit_that_differs_is_found(path: Path, at: int) -> None:
    known = recorded(path)
    content = bytearray(path.read_bytes())
    position = at if at < 0 else content.index(b'"format"') + 1
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not the file that was saved: its SHA-256 is .* Copy it again\."):
        Shard(path, known, set(TENSORS), "Copy it again.").read()


@pytest.mark.parametrize("change", [-5, 5])
def test_a_file_that_changes_its_size_while_it_is_read_is_found(path: Path, change: int) -> None:
    opened = shard(path)
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\x00" * change)
    with pytest.raises(CheckpointError, match=r"shorter than it was|not the file that was saved"):
        opened.read()


ONE: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"x": {**ONE, "shape": [-2]}}, "shape"),
        ({"x": {**ONE, "shape": [2.0]}}, "shape"),
        ({"x": {**ONE, "shape": [True, 2]}}, "shape"),
        ({"x": {**ONE, "shape": 2}}, "shape"),
        ({"x": {**ONE, "shape": [1 << 62, 1 << 62, 0]}}, "expected 0 bytes"),
        ({"x": {**ONE, "shape": [10**12]}}, "expected 4000000000000 bytes"),
        ({"x": {**ONE, "dtype": "F4"}}, "KeyError: 'F4'"),
        ({"x": {**ONE, "dtype": ["F32"]}}, "TypeError"),
        ({"x": {**ONE, "data_offsets": [0, 4]}}, "expected 8 bytes from 0"),
        ({"x": {**ONE, "data_offsets": [-8, 0]}}, "expected 8 bytes from 0"),
        ({"x": {**ONE, "data_offsets": [0.0, 8.0]}}, "data_offsets"),
        ({"x": {**ONE, "data_offsets": [0, 8, 9]}}, "too many values"),
        ({"x": {"dtype": "F32", "shape": [2]}}, "data_offsets"),
        ({"x": 3}, "TypeError"),
        ([ONE], "TypeError|AttributeError"),
        ({"x": ONE, "y": ONE}, "expected 8 bytes from 8"),
        ({"x": {**ONE, "shape": [1], "data_offsets": [0, 4]}}, "end at 4 of 8"),
        (b'{"x": ' * 100_000, "RecursionError|JSONDecodeError"),
        (b"\xff\xfe", "UnicodeDecodeError"),
    ],
)
def test_a_header_that_does_not_fit_its_data_is_refused_before_any_memory_is_taken(
    tmp_path: Path, header: Any, why: str
) -> None:
    path = written(tmp_path / "x.safetensors", header)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=f"is no safetensors file.*({why})"):
        shard(path, {"x", "y"})
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()


@pytest.mark.parametrize("length", [0, 1 << 20, 1 << 62, (1 << 64) - 1])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        shard(path)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x02\x00\x00\x00\x00\x00\x00\x00"])
def test_a_file_that_is_too_short_for_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        shard(path)


def test_a_file_with_other_tensors_than_the_index_says_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the index disagree about \['e'\]"):
        shard(path, set(TENSORS) - {"e"})
