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
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from ...configuration import FORMAT_VERSION, EideticConfig, TaskRecord
from ...views import LEARNING, POOL, task_key
from .card import write_card
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
    json_sha256,
    sha256_of,
    shard_file,
)

Files = dict[str, dict[str, Any]]

# Weights of a model of another library, which would hide this one's shards from those who look for them first.
OTHER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


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
            for file in forget_removed(old, config, removed or {}):
                if file not in shards:  # else another task of this name takes its place
                    new.remove(file)
            _check_nothing_lost(folder, losses(old, config, shards))
            if resumable and not old.learning:
                raise CheckpointError(
                    f"{folder} holds a finished model, and the task '{config.learning}' is being learned. Save to "
                    "another folder, or commit the task first."
                )
        files = write_tensors(new.path, shards, _kept(folder, shards, old, config))
        config = _as_written(config, files)
        write_index(new.path / INDEX_FILE, shards, files, _digests(config, generation_config))
        write_config(new.path / CONFIG_FILE, config, files)
        if generation_config is not None:
            write_generation_config(new.path / GENERATION_FILE, generation_config)
        write_card(new.path / CARD_FILE, folder / CARD_FILE, config)
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
        number = re.search(r"\(os error (\d+)\)", str(error))  # so that a full disk is told from a folder that is not
        raise (OSError(int(number[1]), str(error)) if number else OSError(str(error))) from error
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def write_index(
    path: Path, shards: Mapping[str, Mapping[str, Tensor]], files: Files, saved: Mapping[str, str] | None = None
) -> None:
    """Write the standard index of tensors and files; with `json_sha256` of the JSON files `saved` beside it."""
    size = sum(file["bytes"] for file in files.values())
    index = {
        "metadata": {"format_version": FORMAT_VERSION, "total_size": size, "json_sha256": dict(saved or {})},
        "weight_map": {name: file for file, tensors in shards.items() for name in tensors},
    }
    path.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def write_config(path: Path, config: EideticConfig, files: Files) -> EideticConfig:
    """Write a configuration with the sizes and SHA-256 of its files; returns the copy that was written."""
    config = _as_written(config, files)
    config.to_json_file(path, use_diff=False)
    return config


def _as_written(config: EideticConfig, files: Files) -> EideticConfig:
    """A copy of a configuration with the sizes and SHA-256 of its files."""
    config = copy.copy(config)
    config.files = files
    config.name_or_path = ""  # where this machine keeps it is nobody's business
    config.base_config = base = copy.copy(config.base_config)
    if base.name_or_path and Path(base.name_or_path).is_dir():
        base.name_or_path = Path(base.name_or_path).name
    return config


def _digests(config: EideticConfig, generation_config: GenerationConfig | None) -> dict[str, str]:
    """SHA-256 of what the JSON files beside the shards say, by their names: who edits one later is found out."""
    texts = {CONFIG_FILE: config.to_json_string(use_diff=False)}
    if generation_config is not None:
        texts[GENERATION_FILE] = generation_config.to_json_string()
    return {name: json_sha256(json.loads(text)) for name, text in texts.items()}


def write_generation_config(path: Path, generation_config: GenerationConfig) -> None:
    """Write how texts are written."""
    path.write_text(generation_config.to_json_string(), encoding="utf-8")


# -- what the folder holds --------------------------------------------------------------------------------------------


def _existing_config(folder: Path) -> EideticConfig | None:
    """Configuration of the checkpoint in a folder, or `None` where there is none."""
    if not (folder / CONFIG_FILE).exists():
        stray = [name for name in OTHER_WEIGHTS if (folder / name).exists()]
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


def forget_removed(old: EideticConfig, new: EideticConfig, removed: Mapping[str, str]) -> list[str]:
    """Take the tasks out of a checkpoint's configuration that were removed from the model that is to take its place.

    Args:
        old: of the checkpoint; it is changed.
        new: of the model.
        removed: digests of the tasks that were removed from the model, by name. Another task of a removed one's name,
            or one that is there again, stays.

    Returns:
        The files of their shards.
    """
    staying = {(task.name, _sha256(task)) for task in new.tasks}
    gone = [
        task
        for task in old.tasks
        if (task.name, _sha256(task)) not in staying and removed.get(task.name, "") == _sha256(task)
    ]
    old.tasks = [task for task in old.tasks if task not in gone]
    files = [shard_file(task_key(task.name)) for task in gone]
    old.files = {file: recorded for file, recorded in old.files.items() if file not in files}
    return files


@dataclass(frozen=True)
class Losses:
    """What a checkpoint holds that would be lost if a model took its place.

    Attributes:
        tasks: names of the tasks that the model does not have, in commit order.
        answers: names of the tasks that the model has, and does not answer for.
        others: names of the tasks that are there with other weights.
        parts: what else is there, by its file.
    """

    tasks: list[str]
    answers: list[str]
    others: list[str]
    parts: dict[str, str]

    def __bool__(self) -> bool:
        return bool(self.tasks or self.answers or self.others or self.parts)


def losses(old: EideticConfig, new: EideticConfig, files: Collection[str]) -> Losses:
    """What would be lost if a model took a checkpoint's place.

    Args:
        old: of the checkpoint.
        new: of the model.
        files: of the model's shards.
    """
    lost = _served(old) - _served(new)
    here = [(task, new.task(task.name)) for task in old.tasks]
    parts = {}
    if new.base is not None and old.base is None:
        backbone = {TRUNK_FILE: "the backbone", BASE_FILE: "the backbone's units"}
        parts = {file: what for file, what in backbone.items() if file in old.files}
    if POOL_FILE in old.files and POOL_FILE not in files:
        parts[POOL_FILE] = "the pool of free units"
    return Losses(
        tasks=[task.name for task, same in here if same is None],
        answers=[task.name for task, same in here if same is not None and task.name in lost],
        others=[task.name for task, same in here if same is not None and _of_shard(same) != _of_shard(task)],
        parts=parts,
    )


def _sha256(task: TaskRecord) -> str | None:
    return task.certificate.get("weights_sha256")


def _of_shard(task: TaskRecord) -> list[str | None]:
    """What a record says of its task's shard."""
    names = ("weights_sha256", "settings_sha256", "books_sha256", "router_sha256")
    return [task.certificate.get(name) for name in names]


def _served(config: EideticConfig) -> set[str]:
    """Names of the tasks that a model answers for."""
    return {task.name for task in config.tasks} if config.served is None else set(config.served)


def _check_nothing_lost(folder: Path, lost: Losses) -> None:
    """Refuse to write over a checkpoint that this model is not a continuation of."""
    for name in lost.tasks:
        raise CheckpointError(
            f"{folder} holds the task '{name}', which this model does not have: another process saved it, or "
            f"this model was loaded with tasks=[...]. Saving would lose it. Load {folder} again and learn on from "
            "there, or save to another folder."
        )
    for name in lost.answers:
        raise CheckpointError(
            f"{folder} answers for the task '{name}', which this model was loaded without. Save to another folder."
        )
    for name in lost.others:
        raise CheckpointError(
            f"{folder} holds another '{name}' than this model: saving would change its shard. Save to another folder."
        )
    for file, what in lost.parts.items():
        if file == POOL_FILE:
            raise CheckpointError(
                f"{folder} holds {what}, which a save without it would delete. Save the inference-only release to "
                "another folder."
            )
        raise CheckpointError(
            f"{folder} holds {what}, which a save with include_base=False would delete. Save to another folder."
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
