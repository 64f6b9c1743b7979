"""The checkpoint folder: one safetensors shard per task, written whole or not at all.

    config.json                         what the model is made of, and the SHA-256 of every shard
    model.safetensors.index.json        standard index: tensor -> file
    eidetic-trunk.safetensors           written once
    eidetic-task-<name>.safetensors     written once, at the task's commit
    eidetic-pool.safetensors            what is still free; absent in an inference-only release
    generation_config.json              how texts are written, in a model that can
    eidetic-learning.safetensors        only in a Trainer checkpoint in the middle of a task

A save prepares every file in `.eidetic-save/` and then renames that folder to `.eidetic-commit/`. This one rename is
the moment of change: before it, the folder holds the old checkpoint; after it, the new one, and whoever opens the
folder next moves the files to their places, if the save did not come to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock, Timeout
from huggingface_hub import ModelCardData
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, cached_file

from ...configuration import FORMAT_VERSION, EideticConfig
from ...views import LEARNING, POOL, TRUNK, owner_of, task_key

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
TRUNK_FILE = "eidetic-trunk.safetensors"
POOL_FILE = "eidetic-pool.safetensors"
LEARNING_FILE = "eidetic-learning.safetensors"

SAVING, COMMITTED, LOCK = ".eidetic-save", ".eidetic-commit", ".eidetic.lock"
LOCK_TIMEOUT_SECONDS = 60.0


class CheckpointError(ValueError):
    """A checkpoint folder is incomplete, damaged, inconsistent, or must not be written to."""


def shard_file(owner: str) -> str:
    """File name of an owner's shard."""
    files = {TRUNK: TRUNK_FILE, POOL: POOL_FILE, LEARNING: LEARNING_FILE}
    return files.get(owner) or f"eidetic-task-{owner[1:].replace('%2E', '.')}.safetensors"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


# -- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes that save to it.

    Raises:
        CheckpointError: if another process holds it for longer than `LOCK_TIMEOUT_SECONDS`.
    """
    try:
        with FileLock(folder / LOCK, timeout=LOCK_TIMEOUT_SECONDS):
            yield
    except Timeout as error:
        raise CheckpointError(
            f"Another process has been saving to {folder} for {LOCK_TIMEOUT_SECONDS:.0f} s. Nothing was written; wait "
            "for it, or save to another folder."
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _complete(folder: Path) -> None:
    """Move the files of a prepared save to their places, index and config last; may be repeated after a crash."""
    prepared = folder / COMMITTED
    if not prepared.is_dir():
        return
    last = [SAFE_WEIGHTS_INDEX_NAME, CONFIG_FILE]
    names = sorted(path.name for path in prepared.iterdir())
    for name in [name for name in names if name not in last] + [name for name in last if name in names]:
        os.replace(prepared / name, folder / name)
    index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text())
    for name in (POOL_FILE, LEARNING_FILE):
        if name not in index["weight_map"].values():
            (folder / name).unlink(missing_ok=True)
    prepared.rmdir()


def finish_interrupted_save(folder: Path) -> None:
    """Complete a save that was cut off after its moment of change."""
    if (folder / COMMITTED).is_dir():
        with locked(folder):
            _complete(folder)


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
        values = _config_values(folder / CONFIG_FILE)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Save to an empty folder.") from error
    if values.get("model_type") != EideticConfig.model_type or (folder / "model.safetensors").exists():
        raise CheckpointError(
            f"{folder} holds a model of another kind (model_type={values.get('model_type')!r}). Saving here would "
            "hide or destroy it; save to an empty folder."
        )
    _check_format(folder, values)
    return EideticConfig.from_dict(values)


def _config_values(path: Path) -> dict[str, Any]:
    """The content of a `config.json`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object, but a {type(values).__name__}.")
    return values


def _check_format(source: str | os.PathLike, values: Mapping[str, Any]) -> None:
    """Refuse what a later version has written."""
    version = values.get("format_version", 0)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{source} was written in format {version}, this version of eidetic_hf reads up to {FORMAT_VERSION}. "
            "Upgrade with: pip install -U eidetic-hf"
        )


def _check_same_tasks(folder: Path, old: EideticConfig, new: EideticConfig) -> None:
    """Refuse to write over a checkpoint that this model is not a continuation of."""
    tasks = {task.name: task for task in new.tasks}
    for task in old.tasks:
        if task.name not in tasks:
            raise CheckpointError(
                f"{folder} holds the task '{task.name}', which this model does not have: another process saved it, or "
                f"this model was loaded with tasks=[...]. Saving would lose it. Load {folder} again and learn on from "
                "there, or save to another folder."
            )
        if old.serves(task.name) and not new.serves(task.name):
            raise CheckpointError(
                f"{folder} answers for the task '{task.name}', which this model was loaded without. Save to another "
                "folder."
            )
        if tasks[task.name].certificate.get("weights_sha256") != task.certificate.get("weights_sha256"):
            raise CheckpointError(
                f"{folder} holds another '{task.name}' than this model: saving would change its shard. Save to "
                "another folder."
            )


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: EideticConfig,
    with_pool: bool,
    resumable: bool = False,
    generation_config: GenerationConfig | None = None,
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

    Returns:
        The configuration as written.

    Raises:
        CheckpointError: if the folder holds something that this save would lose or change.
        OSError: if writing failed, for example because the disk is full. The folder's checkpoint is unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _complete(folder)
        old = _existing_config(folder)
        if old is not None:
            _check_same_tasks(folder, old, config)
            if resumable and not old.learning:
                raise CheckpointError(
                    f"{folder} holds a finished model, and the task '{config.learning}' is being learned. Save to "
                    "another folder, or commit the task first."
                )
            if old.pool and not with_pool:
                raise CheckpointError(
                    f"{folder} holds the pool of free units, which a save without it would delete. Save the "
                    "inference-only release to another folder."
                )
        shards: dict[str, dict[str, Tensor]] = {}
        for name, tensor in sorted(tensors.items()):
            owner = owner_of(name)
            if (owner == POOL and not with_pool) or (owner == LEARNING and not resumable):
                continue
            shards.setdefault(shard_file(owner), {})[name] = tensor
        staging = folder / SAVING
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir()
            if generation_config is not None:
                (staging / GENERATION_CONFIG_NAME).write_text(generation_config.to_json_string(), encoding="utf-8")
            config = _write_files(folder, staging, shards, config, old)
            os.replace(staging, folder / COMMITTED)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            code = getattr(error, "errno", None)
            raise OSError(code, f"Saving to {folder} failed ({error}). The checkpoint there is unchanged.") from error
        _sync(folder)
        _complete(folder)
    return config


def _write_files(
    folder: Path,
    staging: Path,
    shards: dict[str, dict[str, Tensor]],
    config: EideticConfig,
    old: EideticConfig | None,
) -> EideticConfig:
    """Write all files of a checkpoint to `staging`, but the shards that the folder holds for good."""
    config = EideticConfig.from_dict(config.to_dict())
    config.name_or_path = ""  # where this machine keeps it is nobody's business
    base = config.base_config
    if base is not None and base.name_or_path and Path(base.name_or_path).is_dir():
        base.name_or_path = Path(base.name_or_path).name
    known = old.files if old is not None else {}
    has_tasks = old is not None and bool(old.tasks)  # then their certificates vouch for the trunk, too
    config.files = {}
    for file_name, content in shards.items():
        permanent = file_name not in (POOL_FILE, LEARNING_FILE) and (file_name != TRUNK_FILE or has_tasks)
        if permanent and file_name in known and _is_intact(folder / file_name, known[file_name]):
            config.files[file_name] = known[file_name]
            continue
        path = staging / file_name
        # Exactly one metadata key: the order of several is not deterministic.
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in content.items()},
                  path, metadata={"format": "pt"})  # fmt: skip
        config.files[file_name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    index = {
        "metadata": {"format_version": FORMAT_VERSION, "total_size": sum(f["bytes"] for f in config.files.values())},
        "weight_map": {name: file_name for file_name, content in shards.items() for name in content},
    }
    (staging / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    config.to_json_file(staging / CONFIG_FILE, use_diff=False)
    card = _card(folder / CARD_FILE, config)
    (staging / CARD_FILE).write_text(card, encoding="utf-8", errors="surrogateescape")
    for path in staging.iterdir():  # safetensors makes files that only their owner may read
        _sync(path)
        shutil.copymode(staging / CONFIG_FILE, path)
    return config


def _is_intact(path: Path, recorded: Mapping[str, Any]) -> bool:
    """Whether a shard is there with the bytes that the configuration records."""
    return path.is_file() and path.stat().st_size == recorded["bytes"] and sha256_of(path) == recorded["sha256"]


CARD_BEGIN, CARD_END = "<!-- eidetic_hf: begin -->", "<!-- eidetic_hf: end -->"


def _card(existing: Path, config: EideticConfig) -> str:
    """The model card: a table of tasks. What a person wrote around it stays."""
    rows = ["| task | kind | labels | metrics | units owned | shard | sha256 |", "|---|---|---|---|---|---|---|"]
    for task in config.tasks:
        file = shard_file(task_key(task.name))
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in task.metrics.items()) or "-"
        owned = f"{sum(task.units.values())}"
        labels = len(task.labels) or "-"
        sha256 = config.files[file]["sha256"]
        rows.append(f"| {task.name} | {task.task_type} | {labels} | {metrics} | {owned} | `{file}` | `{sha256}` |")
    table = "\n".join(rows) if config.tasks else "No task has been committed yet."
    pool = (
        "is included: new tasks can be learned"
        if config.pool and POOL_FILE in config.files
        else "is left out: inference only"
    )
    body = (
        f"{CARD_BEGIN}\n## Tasks\n\n{table}\n\nThe pool of free units {pool}. Shards of committed tasks never change: "
        f"`sha256sum eidetic-task-*.safetensors` shows it, `model.verify()` recomputes it.\n{CARD_END}"
    )
    if existing.exists():
        text = existing.read_text(encoding="utf-8", errors="surrogateescape")
        head, begin, rest = text.partition(CARD_BEGIN)
        _, end, tail = rest.partition(CARD_END)
        return head + body + tail if begin and end else f"{text.rstrip()}\n\n{body}\n"
    base = getattr(config.base_config, "_name_or_path", "") or None
    data = ModelCardData(library_name="eidetic_hf", tags=["eidetic", "continual-learning"])
    source = f"`{base}`" if base else f"a {config.base_config.model_type} backbone"
    return (
        f"---\n{data.to_yaml()}\n---\n\n# Eidetic model\n\nOne model, several text tasks, learned one after another "
        f"on {source} with eidetic_hf.\n\n{body}\n\n## Use\n\n"
        "```python\nfrom eidetic_hf import EideticModel\n\nmodel = EideticModel.from_pretrained(folder)\n"
        'model(**tokenizer(text, return_tensors="pt"), task=model.tasks[0])\n```\n'
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def resolve_file(source: str | os.PathLike, name: str, hub: Mapping[str, Any]) -> Path:
    """Path of one file of a checkpoint: in a folder, or downloaded from the Hub.

    Raises:
        CheckpointError: if the folder does not have it.
        OSError: if the Hub does not.
    """
    folder = Path(source)
    if folder.is_dir():
        prepared, path = folder / COMMITTED / name, folder / name
        if prepared.exists():
            return prepared
        if not path.exists():
            raise CheckpointError(f"{folder} has no {name}: the checkpoint is incomplete. Copy it again.")
        return path
    return Path(cast(str, cached_file(str(source), name, **hub)))  # None only if told not to raise


def read_config(source: str | os.PathLike, hub: Mapping[str, Any]) -> EideticConfig:
    """The configuration of a checkpoint, as it stands in the folder now.

    Raises:
        CheckpointError: if it is no released `EideticModel` that this version can read.
    """
    folder = Path(source)
    if folder.is_dir():
        with suppress(OSError):  # A read-only folder: its files are read from where the save left them.
            finish_interrupted_save(folder)
    values = _config_values(resolve_file(source, CONFIG_FILE, hub))
    if values.get("model_type") != EideticConfig.model_type:
        raise CheckpointError(
            f"{source} holds a model of type {values.get('model_type')!r}, not an EideticModel. To learn tasks on it, "
            f"use EideticModel.from_backbone({str(source)!r})."
        )
    _check_format(source, values)
    config = EideticConfig(**{name: value for name, value in values.items() if name != "model_type"})
    if config.learning:
        raise CheckpointError(
            f"{source} is a Trainer checkpoint in the middle of learning '{config.learning}', not a release. Resume "
            f"it with trainer.train(resume_from_checkpoint={str(source)!r})."
        )
    needed = {
        TRUNK_FILE,
        *(shard_file(task_key(task.name)) for task in config.tasks),
        *([POOL_FILE] if config.pool else []),
    }
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
    path: Path | str | None
    if Path(source).is_dir():
        folder = Path(source)
        places = (folder / COMMITTED / GENERATION_CONFIG_NAME, folder / GENERATION_CONFIG_NAME)
        path = next((place for place in places if place.exists()), None)
    else:
        path = cached_file(str(source), GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    return None if path is None else GenerationConfig.from_dict(_config_values(Path(path)))


def read_tensors(source: str | os.PathLike, config: EideticConfig, hub: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of the trunk, of the tasks in `config`, and of the pool if `config.pool`.

    Raises:
        CheckpointError: if a shard is missing, truncated, changed, swapped or no safetensors file, or if the index and
            the configuration disagree.
    """
    index_path = resolve_file(source, SAFE_WEIGHTS_INDEX_NAME, hub)
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
        weight_map, metadata = index["weight_map"], index.get("metadata") or {}
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{index_path} is no safetensors index ({type(error).__name__}: {error}).") from error
    _check_format(source, metadata)
    _check_index(index_path, weight_map, config)
    owners = [TRUNK, *(task_key(task.name) for task in config.tasks), *([POOL] if config.pool else [])]
    expected: dict[str, set[str]] = {}
    for name, file_name in weight_map.items():
        expected.setdefault(file_name, set()).add(name)

    def read(owner: str) -> dict[str, Tensor]:
        file_name = shard_file(owner)
        path = resolve_file(source, file_name, hub)
        return _read_shard(path, config.files[file_name], expected.get(file_name, set()))

    tensors: dict[str, Tensor] = {}
    with ThreadPoolExecutor() as pool:  # hashing and reading release Python's lock
        for content in pool.map(read, owners):
            tensors.update(content)
    return tensors


def _check_index(path: Path, weight_map: Any, config: EideticConfig) -> None:
    """Hold the index against the configuration: the same files, and every tensor in its owner's."""
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path}: weight_map is a {type(weight_map).__name__}, expected tensor names and files.")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or os.path.basename(file_name) != file_name or "\\" in file_name:
            raise CheckpointError(f"{path} maps {name} to {file_name!r}, outside of the checkpoint folder. Not read.")
        if not file_name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} maps {name} to {file_name!r}; only safetensors files are read, never pickles."
            )
        expected = shard_file(owner_of(name))
        if file_name != expected:
            raise CheckpointError(
                f"{path} maps {name} to {file_name!r}, expected {expected!r}. The index was edited, "
                "or the checkpoint was written by another version."
            )
    listed, recorded = set(weight_map.values()), set(config.files)
    needed = {TRUNK_FILE, *(shard_file(task_key(task.name)) for task in config.tasks)}
    if listed != recorded or not needed <= recorded:
        difference = sorted(listed ^ recorded) or sorted(needed - recorded)
        raise CheckpointError(
            f"config.json and {path.name} of {path.parent} disagree about {difference}. They are from different "
            "saves; copy the whole folder again."
        )


def _read_shard(path: Path, recorded: Mapping[str, Any], expected: set[str]) -> dict[str, Tensor]:
    """The tensors of one shard, after its size and its SHA-256 were held against the configuration."""
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
