"""Reading a checkpoint folder, or one on the Hub. Each function mirrors one of `write.py`, which has the table.

Nothing in the folder is believed: the index and every shard are held against `config.json`, and only safetensors files
are opened, never pickles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from ...configuration import EideticConfig
from .layout import (
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    CheckpointError,
    by_owner,
    check_format,
    config_from,
    owners_in,
    shard_file,
)
from .limits import LONGEST_NAME
from .shard import Shard
from .source import Source


def shards_of_all(source: Source, config: EideticConfig, hash_once: bool = False) -> list[Shard]:
    """The shards of a checkpoint's owners, see `owners_in`, with their headers read; `hash_once` as in `Shard`.

    Raises:
        CheckpointError: if the index and the configuration disagree, or a shard is missing, truncated or no
            safetensors file, or holds other tensors than the index says.
    """
    find = finder_of(source, config, hash_once)
    with ThreadPoolExecutor() as pool:  # a Hub sends several at once
        found = pool.map(find, owners_in(config))
    return [shard for shard in found if shard is not None]


def finder_of(source: Source, config: EideticConfig, hash_once: bool = False) -> Callable[[str], Shard | None]:
    """What finds the shard of an owner; `None` for one that has none. The index is read here, once.

    It raises a `CheckpointError` as `shards_of_all` does.

    Raises:
        CheckpointError: if the index and the configuration disagree.
    """
    names = read_index(source, config)

    def find(owner: str) -> Shard | None:
        name = shard_file(owner)
        if owner not in names:
            return None
        return Shard(source.need(name), config.files[name], names[owner], source.again, hash_once)

    return find


def read_into(shards: Iterable[Shard], places: Mapping[str, Tensor]) -> None:
    """Read shards into tensors that are there for them, by name, several at once; see `Shard.read_into`.

    Raises:
        CheckpointError: if one is not the file that was saved.
    """
    largest_first = sorted(shards, key=lambda shard: -shard.recorded["bytes"])
    with ThreadPoolExecutor() as pool:  # hashing and reading release Python's lock
        for _ in pool.map(lambda shard: shard.read_into(places), largest_first):
            pass


def read_index(source: Source, config: EideticConfig) -> dict[str, set[str]]:
    """Names of the tensors of each owner, after the index was held against the configuration.

    Raises:
        CheckpointError: if it is no index, lists other files than the configuration, or a tensor in another file than
            its owner's.
    """
    index, path = source.read_json(INDEX_FILE), source.need(INDEX_FILE)
    weight_map: Any = index.get("weight_map")
    metadata: Any = index.get("metadata") or {}
    for name, value in (("weight_map", weight_map), ("metadata", metadata)):
        if not isinstance(value, dict):
            raise CheckpointError(
                f"{path} is no safetensors index: {name} is a {type(value).__name__}, expected names and values."
            )
    longest = max(map(len, weight_map), default=0)
    if longest > LONGEST_NAME:
        raise CheckpointError(f"{path} has a tensor's name of {longest} characters, expected {LONGEST_NAME} at most.")
    check_format(source.where, metadata)
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
            f"config.json and {path.name} of {source.where} disagree about {difference}. They are from different "
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
    return CheckpointError(f"{path} maps {name} to {file!r:.200}{why}")


def read_config(source: Source) -> EideticConfig:
    """The configuration of a checkpoint, as it stands there now.

    Raises:
        CheckpointError: if it is no released `EideticModel` that this version can read.
    """
    where = source.where
    values = source.read_json(CONFIG_FILE)
    if values.get("model_type") != EideticConfig.model_type:
        raise CheckpointError(
            f"{where} holds a model of type {values.get('model_type')!r}, not an EideticModel. To learn tasks on it, "
            f"use EideticModel.from_backbone({where!r})."
        )
    check_format(where, values)
    config = config_from(where, values)
    if config.learning:
        raise CheckpointError(
            f"{where} is a Trainer checkpoint in the middle of learning '{config.learning}', not a release. Resume "
            f"it with trainer.train(resume_from_checkpoint={where!r})."
        )
    needed = {shard_file(owner) for owner in owners_in(config)}
    if needed != set(config.files):
        raise CheckpointError(
            f"The tasks and the files in config.json of {where} disagree about "
            f"{sorted(needed ^ set(config.files))}. It was edited; copy the whole folder again."
        )
    return config


def read_generation_config(source: Source) -> GenerationConfig | None:
    """How a checkpoint's model writes texts; `None` if it does not say.

    Raises:
        CheckpointError: if the file is no JSON object, or none that transformers understands.
    """
    if source.find(GENERATION_FILE) is None:
        return None
    values = source.read_json(GENERATION_FILE)
    try:
        return GenerationConfig.from_dict(values)
    except Exception as error:  # of whatever type: anybody may have written the file
        raise CheckpointError(
            f"{GENERATION_FILE} of {source.where} does not say how texts are written: {error!s:.300} "
            f"({type(error).__name__}). {source.again}"
        ) from error
