"""Writing a checkpoint folder: each function here has its mirror in `read.py`.

write_checkpoint           read_config, then shards_of_all
write_tensors              read_into
write_shard                shard.Shard
write_index                read_index
write_config               read_config
write_generation_config    read_generation_config
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from ...configuration import FORMAT_VERSION, EideticConfig, TaskRecord
from ...views import LEARNING, POOL, task_key
from .card import model_card
from .layout import (
    BASE_FILE,
    CARD_FILE,
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    PASSING_FILES,
    POOL_FILE,
    TRUNK_FILE,
    CheckpointError,
    by_owner,
    changing,
    check_format,
    config_from,
    json_object,
    sha256_of,
    shard_file,
)

Files = dict[str, dict[str, Any]]


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: EideticConfig,
    with_pool: bool,
    resumable: bool = False,
    generation_config: GenerationConfig | None = None,
    removed: Mapping[str, str] | None = None,
) -> EideticConfig:
    """Write a checkpoint folder, or leave it as it was.

    Shards that the folder already holds (the trunk's, and those of tasks committed earlier) are not touched.

    Args:
        folder: made if it does not exist.
        tensors: the state dict.
        config: configuration of the model; `files` is filled in on a copy.
        with_pool: whether to write what is still free.
        resumable: whether to write the state of the task being learned, for a Trainer checkpoint.
        generation_config: how texts are written, if the model can.
        removed: digests of the tasks that were removed, by name: those of the folder's go with this save.

    Returns:
        The configuration as written.

    Raises:
        CheckpointError: if the folder holds something that this save would lose or change.
        OSError: if writing failed, for example because the disk is full. The folder's checkpoint is unchanged.
    """
    owned = by_owner(tensors)
    if not with_pool:
        owned.pop(POOL, None)
    if not resumable:
        owned.pop(LEARNING, None)
    shards = {shard_file(owner): owned[owner] for owner in sorted(owned)}
    with changing(folder) as new:
        old = _existing_config(folder)
        if old is not None:
            for task in _removed(old, config, removed or {}):
                file = shard_file(task_key(task.name))
                old.tasks.remove(task)
                old.files.pop(file, None)
                if file not in shards:  # else another task of this name takes its place
                    new.remove(file)
            _check_same_tasks(folder, old, config)
            _check_nothing_lost(folder, old, config, with_pool, resumable)
        files = write_tensors(new.path, shards, _kept(folder, shards, old, config))
        write_index(new.path / INDEX_FILE, shards, files)
        config = write_config(new.path / CONFIG_FILE, config, files)
        if generation_config is not None:
            write_generation_config(new.path / GENERATION_FILE, generation_config)
        _write_card(new.path / CARD_FILE, folder / CARD_FILE, config)
        for path in new.path.iterdir():  # safetensors makes files that only their owner may read
            shutil.copymode(new.path / CONFIG_FILE, path)
        for name in PASSING_FILES:
            if name not in files:
                new.remove(name)
    return config


def write_tensors(staged: Path, shards: Mapping[str, Mapping[str, Tensor]], kept: Files) -> Files:
    """Write every shard but those that the folder has.

    Args:
        staged: where to.
        shards: the tensors of each file.
        kept: size and SHA-256 of the files that are there for good, and stay.

    Returns:
        Size and SHA-256 of every file.

    Raises:
        OSError: if writing failed.
    """
    return {name: kept.get(name) or write_shard(staged / name, tensors) for name, tensors in shards.items()}


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write the tensors of one shard; returns its size and SHA-256.

    Raises:
        OSError: if writing failed.
    """
    content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(content, path, metadata={"format": "pt"})  # one key: the order of several is not deterministic
    except SafetensorError as error:
        raise OSError(str(error)) from error
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def write_index(path: Path, shards: Mapping[str, Mapping[str, Tensor]], files: Files) -> None:
    """Write the standard index of tensors and files."""
    index = {
        "metadata": {"format_version": FORMAT_VERSION, "total_size": sum(file["bytes"] for file in files.values())},
        "weight_map": {name: file for file, tensors in shards.items() for name in tensors},
    }
    path.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def write_config(path: Path, config: EideticConfig, files: Files) -> EideticConfig:
    """Write a configuration with the sizes and SHA-256 of its files; returns the copy that was written."""
    config = copy.copy(config)
    config.files = files
    config.name_or_path = ""  # where this machine keeps it is nobody's business
    config.base_config = base = copy.copy(config.base_config)
    if base.name_or_path and Path(base.name_or_path).is_dir():
        base.name_or_path = Path(base.name_or_path).name
    config.to_json_file(path, use_diff=False)
    return config


def write_generation_config(path: Path, generation_config: GenerationConfig) -> None:
    """Write how texts are written."""
    path.write_text(generation_config.to_json_string(), encoding="utf-8")


def _write_card(path: Path, existing: Path, config: EideticConfig) -> None:
    """Write the model card, with what a person wrote into the existing one, in whatever encoding."""
    text = existing.read_text(encoding="utf-8", errors="surrogateescape") if existing.exists() else None
    path.write_text(model_card(config, text), encoding="utf-8", errors="surrogateescape")


# -- what the folder holds --------------------------------------------------------------------------------------------


def _existing_config(folder: Path) -> EideticConfig | None:
    """Configuration of the checkpoint in a folder, or `None` where there is none."""
    if not (folder / CONFIG_FILE).exists():
        stray = [name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).exists()]
        if stray:
            raise CheckpointError(
                f"{folder} holds {stray[0]} of another model, which would hide this one's shards. "
                "Save to an empty folder."
            )
        return None
    try:
        values = json_object(folder / CONFIG_FILE)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Save to an empty folder.") from error
    if values.get("model_type") != EideticConfig.model_type or (folder / "model.safetensors").exists():
        raise CheckpointError(
            f"{folder} holds a model of another kind (model_type={values.get('model_type')!r}). Saving here would "
            "hide or destroy it; save to an empty folder."
        )
    check_format(folder, values)
    return config_from(folder, values)


def _removed(old: EideticConfig, new: EideticConfig, removed: Mapping[str, str]) -> list[TaskRecord]:
    """The tasks of a folder that were removed from the model that is saved to it, and are not there again."""
    staying = {(task.name, task.certificate.get("weights_sha256")) for task in new.tasks}
    found = [(task, (task.name, task.certificate.get("weights_sha256"))) for task in old.tasks]
    return [task for task, key in found if key not in staying and removed.get(task.name) == key[1]]


def _check_same_tasks(folder: Path, old: EideticConfig, new: EideticConfig) -> None:
    """Refuse to write over a checkpoint that this model is not a continuation of."""
    tasks = {task.name: task for task in new.tasks}
    lost = _served(old) - _served(new)
    for task in old.tasks:
        if task.name not in tasks:
            raise CheckpointError(
                f"{folder} holds the task '{task.name}', which this model does not have: another process saved it, or "
                f"this model was loaded with tasks=[...]. Saving would lose it. Load {folder} again and learn on from "
                "there, or save to another folder."
            )
        if task.name in lost:
            raise CheckpointError(
                f"{folder} answers for the task '{task.name}', which this model was loaded without. Save to another "
                "folder."
            )
        if tasks[task.name].certificate.get("weights_sha256") != task.certificate.get("weights_sha256"):
            raise CheckpointError(
                f"{folder} holds another '{task.name}' than this model: saving would change its shard. Save to "
                "another folder."
            )


def _served(config: EideticConfig) -> set[str]:
    """Names of the tasks that a model answers for."""
    return {task.name for task in config.tasks} if config.served is None else set(config.served)


def _check_nothing_lost(
    folder: Path, old: EideticConfig, new: EideticConfig, with_pool: bool, resumable: bool
) -> None:
    """Refuse to replace a finished model by one in the middle of a task, or to delete the pool."""
    if resumable and not old.learning:
        raise CheckpointError(
            f"{folder} holds a finished model, and the task '{new.learning}' is being learned. Save to "
            "another folder, or commit the task first."
        )
    for name, what in ((TRUNK_FILE, "the backbone"), (BASE_FILE, "the backbone's units")):
        if old.base is None and new.base is not None and name in old.files:
            raise CheckpointError(
                f"{folder} holds {what}, which a save with include_base=False would delete. Save to another folder."
            )
    if POOL_FILE in old.files and not with_pool:
        raise CheckpointError(
            f"{folder} holds the pool of free units, which a save without it would delete. Save the "
            "inference-only release to another folder."
        )


def _kept(folder: Path, shards: Mapping[str, Any], old: EideticConfig | None, new: EideticConfig) -> Files:
    """Size and SHA-256 of the shards that are in the folder for good, and undamaged."""
    if old is None:
        return {}
    passing = set(PASSING_FILES)
    if not old.tasks or old.base != new.base:  # no certificate vouches for them yet, or they were left out
        passing |= {TRUNK_FILE, BASE_FILE}
    candidates = [name for name in shards if name in old.files and name not in passing]
    return {name: old.files[name] for name in candidates if _is_intact(folder / name, old.files[name])}


def _is_intact(path: Path, recorded: Mapping[str, Any]) -> bool:
    """Whether a shard is there with the bytes that the configuration records."""
    return path.is_file() and path.stat().st_size == recorded["bytes"] and sha256_of(path) == recorded["sha256"]
