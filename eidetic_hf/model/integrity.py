"""What a folder, or a repository on the Hub, holds, against its certificates: by hashes alone.

No backbone is built and nothing is computed: every shard is read once, and its bytes are hashed, as a file and tensor
by tensor. What is found is what `EideticModel.verify` finds, but for the logits, which it recomputes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..configuration import EideticConfig, TaskError, TaskRecord, plain_name
from ..kinds import kind_of, owners_of_tokens
from ..network.network import Section
from ..views import BASE, TOLD, TRUNK, owner_of, task_key
from .audit import BOOKS, ROUTER, Audit, audit_router, digest_head, digest_of_digests, logits_digest, slot_of
from .certificate import BATCH
from .checkpoint.layout import CONFIG_FILE, GENERATION_FILE, INDEX_FILE, json_object, json_sha256, owners_in
from .checkpoint.read import finder_of, read_config
from .checkpoint.shard import Shard
from .checkpoint.source import Source, steadily
from .settings import Settings, as_bytes
from .verification import TaskVerification, VerificationReport


def verify_folder(
    name_or_path: str | os.PathLike, hub: Mapping[str, Any] | None = None, tasks: list[str] | None = None
) -> VerificationReport:
    """Hold a checkpoint against its certificates, without its model.

    Args:
        name_or_path: a folder, or a repository on the Hub.
        hub: where the repository's files are, as `from_pretrained` takes it: `revision`, `token`, ...
        tasks: names of those to look at; all of them by default.

    Returns:
        A report that is true in a condition if all is as it was committed.

    Raises:
        CheckpointError: if it is no checkpoint, or a file is missing, damaged or not what was saved.
        TaskError: if there is no task of a name.
    """
    return steadily(name_or_path, hub or {}, partial(_verify, tasks=tasks))


def _verify(source: Source, tasks: list[str] | None) -> VerificationReport:
    config = read_config(source)
    values = json_object(source.need(CONFIG_FILE))
    records = []
    for name in tasks or [task.name for task in config.tasks]:
        record = config.task(plain_name(name))
        if record is None:
            raise TaskError(f"There is no task '{name}'. The model has {[task.name for task in config.tasks]}.")
        records.append(record)
    find = finder_of(source, config)
    with ThreadPoolExecutor() as pool:  # hashing and reading release Python's lock
        shards = [shard for shard in pool.map(find, _needed(config, records)) if shard is not None]
        shards.sort(key=lambda shard: -shard.recorded["bytes"])
        held = FolderEvidence(config, values, list(pool.map(hash_shard, shards)))
    audit = Audit(held)
    found = [_verify_task(held, audit, record) for record in records]
    edited = [*_edited(source), *held.base_difference()]
    return VerificationReport(found, audit_router(audit, held, records), edited)


def edited_files(name_or_path: str | os.PathLike, hub: Mapping[str, Any]) -> list[str]:
    """The files beside the shards that are not what the save wrote, a line each.

    Raises:
        CheckpointError: if one is missing or no JSON.
    """
    return steadily(name_or_path, hub, _edited)


def _edited(source: Source) -> list[str]:
    metadata = json_object(source.need(INDEX_FILE)).get("metadata") or {}
    recorded = metadata.get("json_sha256")
    if not isinstance(recorded, Mapping):
        is_older = metadata.get("format_version", 0) in (0, 1, 2)
        return [] if is_older else [f"{INDEX_FILE}: says nothing of {CONFIG_FILE}, as a save would"]
    lines = []
    for name in (CONFIG_FILE, GENERATION_FILE):
        path = source.find(name)
        if path is None and name in recorded:
            lines.append(f"{name}: is not there, and was saved")
        elif path is not None and name in recorded and json_sha256(json_object(path)) != recorded[name]:
            lines.append(f"{name}: edited since the model was saved")
    return lines


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


def _verify_task(held: FolderEvidence, audit: Audit, record: TaskRecord) -> TaskVerification:
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

    digests: dict[str, bytes]
    shapes: dict[str, tuple[int, ...]]
    kept: dict[str, Tensor]


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


class FolderEvidence:
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

    def base_difference(self) -> list[str]:
        """What is wrong with the backbone that is only named here, by what the tasks say of it."""
        base = self.config.base
        if base is None:
            return []
        parts = [TRUNK, BASE, *(["output_embeddings"] if self.config.output_embeddings is not None else [])]
        slots = [slot_of(Section(TRUNK, part)) for part in parts]
        for task in self.config.tasks:
            stored = [self.certificate(task.name).get(slot) for slot in slots]
            digests = [each for each in stored if each is not None]
            if len(digests) == len(slots) and digest_of_digests(digests).hex() != base.get("sha256"):
                return [f"{CONFIG_FILE}: names another backbone than '{task.name}' was learned on (base.sha256)"]
        return []


# -- reading ----------------------------------------------------------------------------------------------------------


def hash_shard(shard: Shard) -> Hashed:
    """Read a shard once, and hash it as a file and tensor by tensor.

    Raises:
        CheckpointError: if it is not the file that was saved.
    """
    entries = shard.entries
    digests = {name: hashlib.sha256(digest_head(name, entry.dtype, entry.shape)) for name, entry in entries.items()}
    kept = {name: entry.room() for name, entry in entries.items() if name.startswith(("probes.", "router.told."))}
    shard.read_into(kept, lambda name, block: digests[name].update(block))
    shapes = {name: entry.shape for name, entry in entries.items()}
    return Hashed({name: digest.digest() for name, digest in digests.items()}, shapes, kept)
