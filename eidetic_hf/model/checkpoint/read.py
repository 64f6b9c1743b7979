"""Reading a checkpoint folder, or one on the Hub. Each function mirrors one of `write.py`, which has the table.

Nothing in the folder is believed: the index and every shard are held against `config.json`, and only safetensors files
are opened, never pickles.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import cached_file

from ...configuration import EideticConfig
from ...views import TOLD, task_key
from .folder import find
from .layout import (
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    CheckpointError,
    by_owner,
    check_format,
    config_from,
    finish_interrupted_save,
    json_object,
    owners_in,
    shard_file,
)


def resolve_file(source: str | os.PathLike, name: str, hub: Mapping[str, Any]) -> Path:
    """Path of one file of a checkpoint: in a folder, or downloaded from the Hub.

    Raises:
        CheckpointError: if the folder does not have it.
        OSError: if the Hub does not.
    """
    folder = Path(source)
    if folder.is_dir():
        path = find(folder, name)
        if path is None:
            raise CheckpointError(f"{folder} has no {name}: the checkpoint is incomplete. Copy it again.")
        return path
    return Path(cast(str, cached_file(str(source), name, **hub)))  # None only if told not to raise


def read_tensors(source: str | os.PathLike, config: EideticConfig, hub: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of a checkpoint's owners, see `owners_in`; raises as `reader_of` and what it returns."""
    read, tensors = reader_of(source, config, hub), dict[str, Tensor]()
    with ThreadPoolExecutor() as pool:  # hashing and reading release Python's lock
        for content in pool.map(read, owners_in(config)):
            tensors.update(content)
    here = {task_key(task.name) for task in config.tasks}
    for name in by_owner(tensors).get(TOLD, {}):  # one shard for all tasks
        if here.isdisjoint(name.split(".")):
            del tensors[name]
    return tensors


def reader_of(
    source: str | os.PathLike, config: EideticConfig, hub: Mapping[str, Any]
) -> Callable[[str], dict[str, Tensor]]:
    """What reads the tensors of an owner, none of one that has no shard. The index is read here, once.

    It raises a `CheckpointError` if the owner's shard is missing, truncated, changed, swapped or no safetensors file.

    Raises:
        CheckpointError: if the index and the configuration disagree.
    """
    names = read_index(resolve_file(source, INDEX_FILE, hub), source, config)

    def read(owner: str) -> dict[str, Tensor]:
        name = shard_file(owner)
        if owner not in names:
            return {}
        return read_shard(resolve_file(source, name, hub), config.files[name], names[owner])

    return read


def read_shard(path: Path, recorded: Mapping[str, Any], expected: set[str]) -> dict[str, Tensor]:
    """The tensors of one shard, after its size and its SHA-256 were held against the configuration.

    Raises:
        CheckpointError: if it is not the file that was saved, or does not hold the tensors that are `expected`.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    size = path.stat().st_size
    # The first eight bytes of a safetensors file are a length and may look like a pickle's; its ninth byte is a brace.
    if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK") and start[8:9] != b"{":
        raise CheckpointError(f"{path} is a pickle, not a safetensors file. It was not opened.")
    if size != recorded["bytes"]:
        what = "truncated" if size < recorded["bytes"] else "not the file that was saved"
        raise CheckpointError(f"{path} is {what}: {size} bytes, expected {recorded['bytes']}. Copy it again.")
    # Read once, into memory of its own: what is hashed is what is used, whatever happens to the file meanwhile.
    content = torch.empty(size, dtype=torch.uint8)
    with open(path, "rb") as file:
        read = file.readinto(cast(Any, content.numpy()))
    sha256 = hashlib.sha256(cast(Any, content.numpy())).hexdigest()
    if read != size or sha256 != recorded["sha256"]:
        raise CheckpointError(
            f"{path} is not the file that was saved: its SHA-256 is {sha256}, config.json has {recorded['sha256']}. "
            "It was edited or swapped; copy it again."
        )
    try:
        tensors = _parse_safetensors(content)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no safetensors file ({type(error).__name__}: {error}).") from error
    if set(tensors) != expected:
        raise CheckpointError(f"{path} and the index disagree about {sorted(set(tensors) ^ expected)[:3]}.")
    return tensors


def read_index(path: Path, source: str | os.PathLike, config: EideticConfig) -> dict[str, set[str]]:
    """Names of the tensors of each owner, after the index was held against the configuration.

    Raises:
        CheckpointError: if it is no index, lists other files than the configuration, or a tensor in another file than
            its owner's.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        weight_map, metadata = index["weight_map"], index.get("metadata") or {}
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no safetensors index ({type(error).__name__}: {error}).") from error
    check_format(source, metadata)
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path}: weight_map is a {type(weight_map).__name__}, expected tensor names and files.")
    owned = by_owner(weight_map)
    for owner, files in owned.items():
        expected = shard_file(owner)
        for name, file in files.items():
            if file != expected:
                raise _wrong_file(path, name, file, expected)
    listed, recorded = {shard_file(owner) for owner in owned}, set(config.files)
    needed = {shard_file(owner) for owner in owners_in(config)}
    if listed != recorded or not needed <= recorded:
        difference = sorted(listed ^ recorded) or sorted(needed - recorded)
        raise CheckpointError(
            f"config.json and {path.name} of {path.parent} disagree about {difference}. They are from different "
            "saves; copy the whole folder again."
        )
    return {owner: set(files) for owner, files in owned.items()}


def _wrong_file(path: Path, name: str, file: Any, expected: str) -> CheckpointError:
    """What is wrong with the file that an index gives for a tensor."""
    if not isinstance(file, str) or os.path.basename(file) != file or "\\" in file:
        why = ", outside of the checkpoint folder. Not read."
    elif not file.endswith(".safetensors"):
        why = "; only safetensors files are read, never pickles."
    else:
        why = f", expected {expected!r}. The index was edited, or the checkpoint was written by another version."
    return CheckpointError(f"{path} maps {name} to {file!r}{why}")


def read_config(source: str | os.PathLike, hub: Mapping[str, Any]) -> EideticConfig:
    """The configuration of a checkpoint, as it stands in the folder now.

    Raises:
        CheckpointError: if it is no released `EideticModel` that this version can read.
    """
    folder = Path(source)
    if folder.is_dir():
        with suppress(OSError):  # A read-only folder: its files are read from where the save left them.
            finish_interrupted_save(folder)
    values = json_object(resolve_file(source, CONFIG_FILE, hub))
    if values.get("model_type") != EideticConfig.model_type:
        raise CheckpointError(
            f"{source} holds a model of type {values.get('model_type')!r}, not an EideticModel. To learn tasks on it, "
            f"use EideticModel.from_backbone({str(source)!r})."
        )
    check_format(source, values)
    config = config_from(source, values)
    if config.learning:
        raise CheckpointError(
            f"{source} is a Trainer checkpoint in the middle of learning '{config.learning}', not a release. Resume "
            f"it with trainer.train(resume_from_checkpoint={str(source)!r})."
        )
    needed = {shard_file(owner) for owner in owners_in(config)}
    if needed != set(config.files):
        raise CheckpointError(
            f"The tasks and the files in config.json of {source} disagree about "
            f"{sorted(needed ^ set(config.files))}. It was edited; copy the whole folder again."
        )
    return config


def read_generation_config(source: str | os.PathLike, hub: Mapping[str, Any]) -> GenerationConfig | None:
    """How a checkpoint's model writes texts; `None` if it does not say.

    Raises:
        CheckpointError: if the file is no JSON object.
    """
    folder = Path(source)
    path: Path | str | None
    if folder.is_dir():
        path = find(folder, GENERATION_FILE)
    else:
        path = cached_file(str(source), GENERATION_FILE, _raise_exceptions_for_missing_entries=False, **hub)
    return None if path is None else GenerationConfig.from_dict(json_object(Path(path)))


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def _parse_safetensors(content: Tensor) -> dict[str, Tensor]:
    """Views of the tensors in a safetensors file's bytes, `(bytes,)` uint8.

    `safetensors.torch` maps a file or copies each tensor; here the bytes that were hashed are used as they are. The
    format: eight bytes of header length, a JSON header with dtype, shape and offsets, and the data behind it.
    """
    length = int.from_bytes(content[:8].numpy().tobytes(), "little")
    start = 8 + length
    header = json.loads(content[8:start].numpy().tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        data = content[start + first : start + last]
        dtype = _DTYPES[entry["dtype"]]
        # An empty tensor may lie at an offset that its dtype could not start at.
        tensors[name] = (data.view(dtype) if len(data) else data.to(dtype)).reshape(entry["shape"])
    return tensors
