"""What a folder, or a repository on the Hub, holds, against its certificates: by hashes alone.

No backbone is built and nothing is computed: every shard is read once, and its bytes are hashed, as a file and tensor
by tensor. What is found is what `EideticModel.verify` finds, but for the logits, which it recomputes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from transformers.utils import cached_file

from ..configuration import EideticConfig, TaskError, TaskRecord, plain_name
from ..kinds import kind_of, owners_of_tokens
from ..network.network import Section
from ..views import BASE, TOLD, TRUNK, owner_of, task_key
from .audit import BOOKS, ROUTER, Audit, audit_router, digest_head, digest_of_digests, logits_digest, slot_of
from .certificate import BATCH
from .checkpoint.folder import find
from .checkpoint.layout import (
    CONFIG_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    CheckpointError,
    json_object,
    json_sha256,
    owners_in,
    shard_file,
)
from .checkpoint.read import read_config, read_index, resolve_file
from .settings import Settings, as_bytes
from .verification import TaskVerification, VerificationReport

BLOCK = 1 << 23  # bytes that are hashed at a time
SHARDS_AT_ONCE = 2  # each with a thread for its tensors, and one for the file
MAX_HEADER = 10**8  # bytes, as safetensors has it
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def verify_folder(
    source: str | os.PathLike, hub: Mapping[str, Any] | None = None, tasks: list[str] | None = None
) -> VerificationReport:
    """Hold a checkpoint against its certificates, without its model.

    Args:
        source: a folder, or a repository on the Hub.
        hub: where the repository's files are, as `from_pretrained` takes it: `revision`, `token`, ...
        tasks: names of those to look at; all of them by default.

    Returns:
        A report that is true in a condition if all is as it was committed.

    Raises:
        CheckpointError: if it is no checkpoint, or a file is missing, damaged or not what was saved.
        TaskError: if there is no task of a name.
    """
    hub = dict(hub or {})
    config = read_config(source, hub)
    values = json_object(resolve_file(source, CONFIG_FILE, hub))
    asked = [config.task(plain_name(name)) for name in tasks or []]
    for name, record in zip(tasks or [], asked, strict=True):
        if record is None:
            raise TaskError(f"There is no task '{name}'. The model has {[task.name for task in config.tasks]}.")
    records = [record for record in asked if record is not None] or config.tasks
    held = Folder(config, values, _hash_shards(source, config, hub, _needed(config, records)))
    audit = Audit(held)
    found = [_verify_task(held, audit, record) for record in records]
    report = VerificationReport(found, audit_router(audit, held, records), edited_files(source, hub))
    base = held.base_difference()
    return report if base is None else VerificationReport(found, report.router, [*report.edited, base])


def edited_files(source: str | os.PathLike, hub: Mapping[str, Any]) -> list[str]:
    """The files beside the shards that are not what the save wrote, a line each.

    Raises:
        CheckpointError: if one is missing or no JSON.
    """
    metadata = json_object(resolve_file(source, INDEX_FILE, hub)).get("metadata") or {}
    recorded = metadata.get("json_sha256")
    if not isinstance(recorded, Mapping):
        is_older = metadata.get("format_version", 0) in (0, 1, 2)
        return [] if is_older else [f"{INDEX_FILE}: says nothing of {CONFIG_FILE}, as a save would"]
    lines = []
    for name in (CONFIG_FILE, GENERATION_FILE):
        path = _find(source, name, hub)
        if path is None and name not in recorded:
            continue
        if path is None:
            lines.append(f"{name}: is not there, and was saved")
        elif name in recorded and json_sha256(json_object(path)) != recorded[name]:
            lines.append(f"{name}: edited since the model was saved")
    return lines


def _find(source: str | os.PathLike, name: str, hub: Mapping[str, Any]) -> Path | None:
    if Path(source).is_dir():
        return find(Path(source), name)
    path = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False, **hub)
    return None if path is None else Path(path)


def _needed(config: EideticConfig, records: list[TaskRecord]) -> list[str]:
    """Owners whose shards tell about tasks: their own, and those that they read."""
    todo, found = [record.name for record in records], set[str]()
    while todo:
        record = config.task(name := todo.pop())
        if record is not None and name not in found:
            found.add(name)
            todo += [*record.ancestors, *_owners_of_tokens(config, record)]
    keys = {task_key(name) for name in found}
    return [owner for owner in owners_in(config) if not owner.startswith("@") or owner in keys]


def _owners_of_tokens(config: EideticConfig, record: TaskRecord) -> list[str]:
    if record.vocab_size is None:
        return []
    try:
        return owners_of_tokens(config, record)
    except TaskError:  # a kind that nobody made known here: some of its tokens may be anybody's
        return [task.name for task in config.tasks]


def _verify_task(held: Folder, audit: Audit, record: TaskRecord) -> TaskVerification:
    first, setting = audit.of_weights(record), audit.of_settings(record)
    logits, certificate = held.certificate(record.name).get("logits"), record.certificate
    kept = certificate.get("kept_logits_sha256", certificate.get("logits_sha256"))
    if first is None and (logits is None or logits_digest(logits) != kept):
        first = f"probes.{task_key(record.name)}.logits"
    return TaskVerification(
        task=record.name,
        weights_match=first is None,
        logits_match=None,
        first_difference=first or setting,
        sha256=str(certificate.get("weights_sha256", "")),
        settings_match=setting is None if audit.is_certified(record) or setting else None,
        format=audit.format_of(record),
    )


# -- what a folder holds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hashed:
    """A shard that was read once.

    Attributes:
        digests: SHA-256 of each tensor, see `audit.tensor_digest`, by name.
        shapes: of each tensor.
        kept: the tensors that say what others were at a commit, and what users told the router.
    """

    digests: dict[str, bytes] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)


def section_of(name: str) -> Section | None:
    """The section of certificates that a tensor is in, by its name; `None` for what no certificate vouches for."""
    owner, first = owner_of(name), name.partition(".")[0]
    if first == "router":
        return None if owner == TOLD else Section(owner, ROUTER)
    if first == "probes":
        return Section(owner, BOOKS) if name.rpartition(".")[2] in BATCH else None
    if first in ("input_rows", "output_rows", "output_embeddings"):
        return Section(owner, first)
    if owner == BASE:
        return Section(BASE, BASE) if ".segments." in name else None
    if owner == TRUNK:
        return Section(TRUNK, TRUNK) if first == "backbone" else None
    if not owner.startswith("@"):
        return None
    if first == "groups" and ".units." in name:
        return Section(owner, BOOKS)
    return Section(owner, "units" if first == "backbone" and f".segments.{owner}." in name else "private")


class Folder:
    """What a checkpoint holds of committed tasks, by its names and hashes.

    Args:
        config: its configuration.
        values: what `config.json` holds, as it stands there.
        shards: what was read of each.
    """

    def __init__(self, config: EideticConfig, values: Mapping[str, Any], shards: list[Hashed]) -> None:
        self.config = config
        self.settings = Settings(config, values.get("base_config") or {}, values.get("transformers_version"))
        self._sections: dict[Section, dict[str, bytes]] = {}
        self._kept: dict[str, dict[str, Tensor]] = {}  # by the key of a task and what comes before it in the name
        self._rows: dict[str, int] = {}
        for shard in shards:
            for name in sorted(shard.digests):
                section = section_of(name)
                if section is not None:
                    self._sections.setdefault(section, {})[name] = shard.digests[name]
                if name.startswith(("input_rows.", "output_rows.")):
                    self._rows[name] = shard.shapes[name][0] if shard.shapes[name] else 0
            for name, tensor in shard.kept.items():
                place, _, slot = name.rpartition(".")
                self._kept.setdefault(place, {})[slot] = tensor

    def certificate(self, task: str) -> dict[str, Tensor]:
        """What a task's shard has of its commit."""
        return self._kept.get(f"probes.{task_key(task)}", {})

    def told(self, task: str) -> dict[str, Tensor]:
        """What users have told the router of a task."""
        return self._kept.get(f"router.told.{task_key(task)}", {})

    def digests_of(self, section: Section) -> dict[str, bytes] | None:
        """Digests of a section's tensors by name; `None` if it is the backbone's, and that is not here."""
        if self.config.base is not None and section.owner in (TRUNK, BASE) and section.part != ROUTER:
            return None
        return self._sections.get(section, {})

    def sections(self, record: TaskRecord) -> list[Section]:
        """What a committed task reads."""
        key, config, tokens = task_key(record.name), self.config, record.vocab_size or 0
        base_tokens = config.base_config.vocab_size
        sections = [Section(TRUNK, TRUNK), Section(key, "private")]
        sections += [Section(BASE, BASE)] if config.growth == "copy" else []
        sections += [Section(owner, "units") for owner in [*map(task_key, record.ancestors), key]]
        sections += self._late("input_rows", base_tokens, tokens)
        if self._reads_output(record):
            if config.output_embeddings is not None:
                sections.append(Section(TRUNK, "output_embeddings"))
            sections += self._late("output_rows", (config.output_embeddings or [base_tokens])[0], tokens)
        return sections

    def _late(self, part: str, start: int, tokens: int) -> list[Section]:
        """Whose later rows of a table are among its first `tokens`."""
        found = []
        for task in self.config.tasks:
            key = task_key(task.name)
            rows = self._rows.get(f"{part}.{key}", 0)
            found += [Section(key, part)] if rows and start < tokens else []
            start += rows
        return found

    def _reads_output(self, record: TaskRecord) -> bool:
        """Whether a task reads the output embeddings: as its shard says, or else its kind."""
        settings = self.certificate(record.name).get("settings")
        try:
            if settings is not None:
                return bool(json.loads(as_bytes(settings)).get("reads_output"))
            return kind_of(record).reads_output_embeddings(record)
        except (ValueError, AttributeError):  # not JSON, or a kind that nobody made known here
            return False

    def base_difference(self) -> str | None:
        """What is wrong with the backbone that this folder names, by what its tasks say of it."""
        base = self.config.base
        if base is None:
            return None
        parts = [TRUNK, BASE, *(["output_embeddings"] if self.config.output_embeddings is not None else [])]
        slots = [slot_of(Section(TRUNK, part)) for part in parts]
        for task in self.config.tasks:
            stored = [self.certificate(task.name).get(slot) for slot in slots]
            digests = [each for each in stored if each is not None]
            if len(digests) == len(slots) and digest_of_digests(digests).hex() != base.get("sha256"):
                return f"{CONFIG_FILE}: names another backbone than '{task.name}' was learned on (base.sha256)"
        return None


# -- reading ----------------------------------------------------------------------------------------------------------


def _hash_shards(
    source: str | os.PathLike, config: EideticConfig, hub: Mapping[str, Any], owners: list[str]
) -> list[Hashed]:
    """What was read of the shards of owners; what is free, and no certificate vouches for, among them."""
    index = resolve_file(source, INDEX_FILE, hub)
    names = read_index(index, source, config)

    def hashed(owner: str) -> Hashed:
        name = shard_file(owner)
        if owner not in names:
            return Hashed()
        return hash_shard(resolve_file(source, name, hub), config.files[name], names[owner])

    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:  # hashing and reading release Python's lock
        return list(pool.map(hashed, owners))


def hash_shard(path: Path, recorded: Mapping[str, Any], expected: set[str]) -> Hashed:
    """Read a shard once, in blocks, and hash it as a file and tensor by tensor.

    Args:
        path: of the file.
        recorded: its size and SHA-256, as the configuration has them.
        expected: names of its tensors, as the index has them.

    Raises:
        CheckpointError: if it is not the file that was saved, or does not hold the tensors that are expected.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file. Copy the checkpoint again.")
    size = path.stat().st_size
    if size != recorded["bytes"]:
        what = "truncated" if size < recorded["bytes"] else "not the file that was saved"
        raise CheckpointError(f"{path} is {what}: {size} bytes, expected {recorded['bytes']}. Copy it again.")
    whole, found = hashlib.sha256(), Hashed()
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(1) as other:
        # The file's own hash first: what it says of itself is believed only if it is the file that was saved.
        entries, wrong = _header(path, file, size, whole)
        current, pending = None, iter(entries)
        for block in _blocks(file, size - file.tell()):
            hashing = other.submit(whole.update, block)
            current = _update(found, current, pending, block)
            hashing.result()
        _update(found, current, pending, memoryview(b""))
    if whole.hexdigest() != recorded["sha256"]:
        raise CheckpointError(
            f"{path} is not the file that was saved: its SHA-256 is {whole.hexdigest()}, config.json has "
            f"{recorded['sha256']}. It was edited or swapped; copy it again."
        )
    if wrong is not None:
        raise CheckpointError(f"{path} is no safetensors file ({wrong}).")
    if set(found.digests) != expected:
        raise CheckpointError(f"{path} and the index disagree about {sorted(set(found.digests) ^ expected)[:3]}.")
    return found


@dataclass(frozen=True)
class Entry:
    """A tensor as the header of a shard has it.

    Attributes:
        name: of the tensor.
        dtype: of the tensor.
        shape: of the tensor.
        bytes: of its data.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    bytes: int

    @property
    def is_kept(self) -> bool:
        """Whether it is looked into."""
        return self.name.startswith(("probes.", "router.told."))


class Running:
    """A tensor of which only the first part of the data was read."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.left = entry, entry.bytes
        self.digest = hashlib.sha256(digest_head(entry.name, entry.dtype, entry.shape))
        self.content = bytearray()

    def take(self, data: memoryview) -> int:
        """Hash what is this tensor's of some data; returns how much."""
        mine = data[: self.left]
        self.digest.update(mine)
        if self.entry.is_kept:
            self.content += mine
        self.left -= len(mine)
        return len(mine)

    def finish(self, found: Hashed) -> None:
        """Note what was found."""
        entry = self.entry
        found.digests[entry.name], found.shapes[entry.name] = self.digest.digest(), entry.shape
        if entry.is_kept:
            content = torch.frombuffer(self.content, dtype=torch.uint8) if self.content else torch.empty(0)
            typed = content.view(entry.dtype) if self.content else content.to(entry.dtype)
            found.kept[entry.name] = typed.reshape(entry.shape)


def _update(found: Hashed, current: Running | None, pending: Iterator[Entry], block: memoryview) -> Running | None:
    """Hash a block, in which tensors may end and begin; returns the one that goes on in the next."""
    while True:
        if current is None:
            entry = next(pending, None)
            if entry is None:
                return None
            current = Running(entry)
        block = block[current.take(block) :]
        if current.left:
            return current
        current.finish(found)
        current = None


def _blocks(file: BinaryIO, size: int) -> Iterator[memoryview]:
    """The rest of a file, block by block; each is good until the next one is asked for."""
    room = memoryview(bytearray(min(BLOCK, size)))
    while size:
        read = file.readinto(room[: min(len(room), size)])  # type: ignore[attr-defined]
        if not read:
            return  # it was cut off meanwhile; its hash will say so
        size -= read
        yield room[:read]


def _header(path: Path, file: BinaryIO, size: int, whole: Any) -> tuple[list[Entry], str | None]:
    """What a shard's header says of its tensors, in the order of their data; or what is wrong with it."""
    start = file.read(8)
    whole.update(start)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(MAX_HEADER, size - 8):
        return [], f"a header of {length} bytes in a file of {size}"
    text = file.read(length)
    whole.update(text)
    try:
        entries = list(_entries(json.loads(text), size - 8 - length))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [], f"{type(error).__name__}: {error}"
    return entries, None


def _entries(header: dict[str, Any], size: int) -> Iterator[Entry]:
    """Tensors one behind the other, without gaps.

    Raises:
        ValueError: if they are not so, or do not end where the file does.
    """
    header.pop("__metadata__", None)
    place = 0
    for name, values in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        first, last = values["data_offsets"]
        dtype, shape = _DTYPES[values["dtype"]], tuple(values["shape"])
        if any(type(length) is not int or length < 0 for length in shape):
            raise ValueError(f"{name} has the shape {shape}")
        if first != place or last - first != prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} lies at {first} to {last}, expected {place} on")
        place = last
        yield Entry(name, dtype, shape, last - first)
    if place != size:
        raise ValueError(f"the tensors end at {place}, and the file at {size}")
