"""What lies where in a checkpoint folder.

config.json                         what the model is made of, and the SHA-256 of every shard
model.safetensors.index.json        standard index: tensor -> file
eidetic-trunk.safetensors           written once
eidetic-base.safetensors            the backbone's units above the trunk, where tasks copy them; written once
eidetic-task-<name>.safetensors     written once, at the task's commit
eidetic-router.safetensors          what the router was told about tasks since their commit; absent if it was not
eidetic-pool.safetensors            what is still free; absent in an inference-only release
generation_config.json              how texts are written, in a model that can
eidetic-learning.safetensors        only in a Trainer checkpoint in the middle of a task
README.md                           the model card
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from ...configuration import FORMAT_VERSION, EideticConfig
from ...network.growth import growth_of
from ...views import BASE, LEARNING, POOL, TOLD, TRUNK, owner_of, task_key
from .folder import COMMITTED, LOCK, SAVING, FolderLocked, Transaction, recover
from .limits import CheckpointError, building, check_config, json_object, open_file, without_code

CONFIG_FILE = "config.json"
INDEX_FILE = SAFE_WEIGHTS_INDEX_NAME
GENERATION_FILE = GENERATION_CONFIG_NAME
CARD_FILE = "README.md"
TRUNK_FILE = "eidetic-trunk.safetensors"
BASE_FILE = "eidetic-base.safetensors"
POOL_FILE = "eidetic-pool.safetensors"
LEARNING_FILE = "eidetic-learning.safetensors"
TOLD_FILE = "eidetic-router.safetensors"

# What a later save writes anew or leaves out; every other shard is there for good.
PASSING_FILES = (POOL_FILE, LEARNING_FILE, TOLD_FILE)
# By these a reader finds all others, so they take their places when all others are there.
LAST_FILES = (INDEX_FILE, CONFIG_FILE)

_FILES = {TRUNK: TRUNK_FILE, BASE: BASE_FILE, POOL: POOL_FILE, LEARNING: LEARNING_FILE, TOLD: TOLD_FILE}
_T = TypeVar("_T")


def shard_file(owner: str) -> str:
    """File name of an owner's shard."""
    return _FILES.get(owner) or f"eidetic-task-{owner[1:].replace('%2E', '.')}.safetensors"


def owners_in(config: EideticConfig) -> list[str]:
    """The owners whose shards a released checkpoint holds: trunk, base, the tasks in commit order, the pool if it is.

    One that names its backbone instead of holding it has the tasks', and of the trunk's what the router has measured.
    """
    tasks = [task_key(task.name) for task in config.tasks]
    tasks += [TOLD] if TOLD_FILE in config.files else []
    if config.base is not None:
        return [*([TRUNK] if TRUNK_FILE in config.files else []), *tasks]
    base = [BASE] if growth_of(config.growth).copies else []
    return [TRUNK, *base, *tasks, *([POOL] if config.pool else [])]


def by_owner(tensors: Mapping[str, _T]) -> dict[str, dict[str, _T]]:
    """What belongs to tensors (they themselves, or anything else by their names), for each owner, in one pass."""
    owned: dict[str, dict[str, _T]] = {}
    for name, tensor in tensors.items():
        owned.setdefault(owner_of(name), {})[name] = tensor
    return owned


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_sha256(values: Any) -> str:
    """SHA-256 of JSON values, in hexadecimal: the same however they are laid out in a file."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def config_from(source: str | os.PathLike, values: Mapping[str, Any]) -> EideticConfig:
    """The configuration that the `config.json` of a checkpoint holds.

    Not `from_dict`, which makes a text of the whole configuration for a log that nobody reads.

    Raises:
        CheckpointError: if something in it is not what a save writes.
    """
    check_config(str(source), values)
    own = {name: value for name, value in without_code(values).items() if name != "model_type"}
    with building(str(source)):
        return EideticConfig(**{**own, "base_config": without_code(values["base_config"])})


def check_format(source: str | os.PathLike, values: Mapping[str, Any]) -> None:
    """Refuse what a later version has written.

    Raises:
        CheckpointError: if `format_version` in `values` says so, or is no number.
    """
    version = values.get("format_version", 0) if isinstance(values, Mapping) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise CheckpointError(
            f"{INDEX_FILE} or config.json of {source} has format_version={version!r:.100}, expected a whole number up "
            f"to {FORMAT_VERSION}. It was edited; copy the whole folder again."
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{source} was written in format {version}, this version of eidetic_hf reads up to {FORMAT_VERSION}. "
            "Upgrade with: pip install -U eidetic-hf"
        )


def missing(folder: Path, name: str) -> CheckpointError:
    """What to say of a folder that lacks a file: that it was copied in part, or that no save was ever completed."""
    names = set(os.listdir(folder))
    begun, saved = names & {LOCK, SAVING}, names & {COMMITTED, CONFIG_FILE, INDEX_FILE}
    if not names or (begun and not saved and not any(name.endswith(".safetensors") for name in names)):
        return CheckpointError(
            f"{folder} has no {name}: no save to it was ever completed; the first was interrupted, failed, or is "
            "still going on. Nothing is in it; save the model there again."
        )
    return CheckpointError(f"{folder} has no {name}: the checkpoint is incomplete. Copy it again.")


@contextmanager
def changing(folder: Path) -> Iterator[Transaction]:
    """A transaction on a checkpoint folder.

    Raises:
        CheckpointError: if another process holds the folder for too long.
        OSError: if writing failed; the checkpoint is unchanged.
    """
    try:
        with Transaction(folder, LAST_FILES, _left_out) as new:
            yield new
    except FolderLocked as error:
        raise CheckpointError(str(error)) from error


def finish_interrupted_save(folder: Path) -> None:
    """Complete a save that was cut off after its moment of change, or wait for who does.

    Raises:
        CheckpointError: if what it left is no checkpoint.
        OSError: if the folder can not be written to.
    """
    recover(folder, LAST_FILES, _left_out)


def _left_out(folder: Path) -> list[str]:
    """The shards that the index leaves out: what a save does away with that comes without a list of removals.

    The first saves in format 1 had none.
    """
    if (folder / INDEX_FILE).is_symlink():  # no save has left a link there
        return []
    weight_map = json_object(folder / INDEX_FILE).get("weight_map")
    files = list(weight_map.values()) if isinstance(weight_map, dict) else list(PASSING_FILES)
    return [name for name in PASSING_FILES if name not in files]
