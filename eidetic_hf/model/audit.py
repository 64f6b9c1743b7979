"""What is there of committed tasks, held against their certificates: the same for a model and for a folder.

Every tensor is held against the digest that its owner's certificate has of it (the trunk's against that of the task
that reads it), and these digests against the one digest over all of them: so the first tensor that differs is named,
whoever owns it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..configuration import EideticConfig, TaskRecord
from ..network.network import Section
from ..views import BASE, TRUNK, task_key, task_name
from .settings import Settings
from .verification import RouterVerification, told_of

EVERYBODYS = (TRUNK, BASE)  # owners that have no commit of their own
# Sections that no answer reads, each with a digest of its own in config.json: what a task left to the router; and its
# probe batch, with the places that its units came from.
ROUTER, BOOKS = "router", "books"


# -- digests ----------------------------------------------------------------------------------------------------------


def digest_head(name: str, dtype: torch.dtype, shape: Iterable[int]) -> bytes:
    """What a tensor's digest is over before its bytes."""
    return f"{name}|{dtype}|{tuple(shape)}|".encode()


def tensor_digest(name: str, tensor: Tensor) -> bytes:
    """SHA-256 over a tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(digest_head(name, tensor.dtype, tensor.shape))
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def tensor_digests(tensors: Mapping[str, Tensor], cache: dict[str, bytes] | None = None) -> Tensor:
    """SHA-256 of each tensor, in the order of their names, `(tensors, 32)` uint8; `cache` is filled and reused."""
    cache = {} if cache is None else cache
    for name in tensors:
        if name not in cache:
            cache[name] = tensor_digest(name, tensors[name])
    return stacked(cache[name] for name in sorted(tensors))


def stacked(digests: Iterable[bytes]) -> Tensor:
    """Digests as a shard holds them, `(digests, 32)` uint8."""
    joined = b"".join(digests)
    if not joined:
        return torch.empty((0, 32), dtype=torch.uint8)
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8).reshape(-1, 32)


def digest_of_digests(parts: Iterable[Tensor | bytes]) -> bytes:
    """One SHA-256 over others: over what `tensor_digests` returned, or over what this function did."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.cpu().contiguous().numpy().data)
    return digest.digest()


def logits_digest(logits: Tensor) -> str:
    """SHA-256 of probe logits, in hexadecimal."""
    return digest_of_digests([tensor_digests({"logits": logits})]).hex()


def slot_of(section: Section) -> str:
    """Where a certificate keeps the digests of a section."""
    return f"{section.part}_digests"


def parents_of(record: TaskRecord, config: EideticConfig) -> Tensor:
    """What the certificates of a task's ancestors say that they are, `(ancestors, 32)` uint8."""
    found = [cast(TaskRecord, config.task(name)).certificate["weights_sha256"] for name in record.ancestors]
    return torch.tensor([list(bytes.fromhex(digest)) for digest in found], dtype=torch.uint8)


# -- what is held against what ----------------------------------------------------------------------------------------


class Certificate(Protocol):
    """What a task's shard has of its commit, by the names of slots."""

    def get(self, slot: str, /) -> Tensor | None:
        """The tensor of a slot, or `None`."""


class Held(Protocol):
    """Where the tensors of committed tasks are: a model, or a folder.

    Attributes:
        config: with a record for each task.
        settings: of the tasks, as they are now.
    """

    @property
    def config(self) -> EideticConfig:
        """With a record for each task."""

    @property
    def settings(self) -> Settings:
        """Settings of the tasks, as they are now."""

    def sections(self, record: TaskRecord) -> list[Section]:
        """What a committed task reads."""

    def digests_of(self, section: Section) -> Mapping[str, bytes] | None:
        """SHA-256 of each tensor of a section, by name and in the order in which certificates list them.

        `None` if it is everybody's and not here, but named.
        """

    def certificate(self, task: str) -> Certificate:
        """What a task's shard has of its commit."""

    def told(self, task: str) -> Mapping[str, Tensor]:
        """What users have told the router of a task."""


@dataclass(frozen=True)
class Comparison:
    """Some tensors held against a certificate.

    Attributes:
        then: SHA-256 over the digests that the certificate has of them.
        first: the first tensor that differs, or what else does; `None` if nothing does.
    """

    then: bytes
    first: str | None


class Audit:
    """Holds what is there against certificates. What several tasks read is compared once.

    Args:
        held: what is there.
        called: keys that owners had when their certificates were written, by those that they have now.
    """

    def __init__(self, held: Held, called: Mapping[str, str] | None = None) -> None:
        self._held, self._called = held, called or {}
        self._compared: dict[Section, Comparison] = {}

    def first_difference(self, record: TaskRecord) -> str | None:
        """The first tensor or setting of a task that is not what its certificate says, or what else is wrong."""
        return self.of_weights(record) or self.of_settings(record)

    def of_weights(self, record: TaskRecord) -> str | None:
        """The first tensor that a task reads and that is not what its certificate says, or what else is wrong."""
        certificate = self._held.certificate(record.name)
        every = certificate.get("digests")
        if every is not None:  # format 1
            found = [self._compare("closed set", self._closed_set(record), every)]
            then = found[0].then
        else:
            found = [self._of_section(section, record) for section in self._held.sections(record)]
            then = digest_of_digests(each.then for each in found)
        first = next((each.first for each in found if each.first is not None), None)
        if first is None and then.hex() != record.certificate.get("weights_sha256"):
            return "(the stored digests differ from config.json)"
        parents = certificate.get("parents")
        if first is None and parents is not None and _in_hexadecimal(parents) != self._parents(record):
            return f"(it was learned on others than these: {record.ancestors})"
        return first or self._of_own(BOOKS, record)

    def of_settings(self, record: TaskRecord) -> str | None:
        """The first setting that a task's answer depends on and that is not what it was."""
        stored = self._held.certificate(record.name).get("settings")
        return self._held.settings.difference(record, stored, self._name_then)

    def of_router(self, record: TaskRecord) -> str | None:
        """The first tensor of what a task left to the router that is not what it was."""
        return self._of_own(ROUTER, record)

    def is_certified(self, record: TaskRecord) -> bool:
        """Whether a task's certificate says what its answer depends on beside weights: format 3 has it."""
        return self._held.certificate(record.name).get("settings") is not None

    def format_of(self, record: TaskRecord) -> int:
        """The format that a task's certificate was written in."""
        if self._held.certificate(record.name).get("digests") is not None and not self.is_certified(record):
            return 1
        return 3 if self.is_certified(record) or "settings_sha256" in record.certificate else 2

    def _name_then(self, name: str) -> str:
        key = task_key(name)
        return cast(str, task_name(self._called.get(key, key)))

    def _parents(self, record: TaskRecord) -> list[Any]:
        """What the certificates of a task's ancestors say that they are."""
        found = (self._held.config.task(name) for name in record.ancestors)
        return [None if each is None else each.certificate.get("weights_sha256") for each in found]

    def _closed_set(self, record: TaskRecord) -> dict[str, bytes]:
        found = (self._held.digests_of(section) or {} for section in self._held.sections(record))
        return dict(sorted((name, digest) for part in found for name, digest in part.items()))

    def _of_section(self, section: Section, reader: TaskRecord) -> Comparison:
        """A section held against its owner's certificate, or against the reader's if it is everybody's."""
        if section.owner in EVERYBODYS:
            return self._compare(section.part, self._held.digests_of(section), self._stored(section, reader))
        if section not in self._compared:
            owner = cast(TaskRecord, self._held.config.task(cast(str, task_name(section.owner))))
            what = f"{section.part} of '{owner.name}'"
            self._compared[section] = self._compare(what, self._held.digests_of(section), self._stored(section, owner))
        return self._compared[section]

    def _stored(self, section: Section, owner: TaskRecord) -> Tensor | None:
        """Digests of a section in a task's certificate; `None` if it has none."""
        certificate = self._held.certificate(owner.name)
        every = certificate.get("digests")
        if every is None:
            return certificate.get(slot_of(section))
        names = list(self._closed_set(owner))  # format 1
        if len(names) != len(every):
            return None
        place = {name: number for number, name in enumerate(names)}
        return every[[place[name] for name in self._held.digests_of(section) or {}]]

    def _of_own(self, part: str, record: TaskRecord) -> str | None:
        """What is in no answer's way, held against the digest that config.json has of it alone."""
        section, certificate = Section(task_key(record.name), part), self._held.certificate(record.name)
        stored, sha256 = certificate.get(slot_of(section)), record.certificate.get(f"{part}_sha256")
        if stored is None and sha256 is None and not self.is_certified(record):
            return None
        found = self._compare(f"{part} of '{record.name}'", self._held.digests_of(section), stored)
        if found.first is None and (stored is not None or sha256 is not None) and found.then.hex() != sha256:
            return f"(the stored digests of the {part} of '{record.name}' differ from config.json)"
        return found.first

    def _compare(self, what: str, tensors: Mapping[str, bytes] | None, stored: Tensor | None) -> Comparison:
        then = stacked([]) if stored is None else stored.cpu()
        now = then if tensors is None else stacked(tensors.values())
        if now.shape != then.shape or now.dtype != then.dtype:
            return Comparison(b"", f"(the {what} has {len(now)} tensors, at commit it had {_length(then)})")
        differs = (now != then).any(1).nonzero()
        first = list(tensors or {})[int(differs[0])] if len(differs) else None
        return Comparison(digest_of_digests([then]), first)


def _in_hexadecimal(digests: Tensor) -> list[str]:
    return [digest.cpu().contiguous().numpy().tobytes().hex() for digest in digests]


def _length(stored: Tensor) -> int:
    return len(stored) if stored.dim() else 0


def audit_router(audit: Audit, held: Held, records: Iterable[TaskRecord]) -> RouterVerification | None:
    """What was found of the router; `None` if no task left anything to it.

    Args:
        audit: of what is held.
        held: what is there.
        records: of the tasks that are asked for.
    """
    asked = list(records)
    left = [record for record in asked if held.digests_of(Section(task_key(record.name), ROUTER))]
    first = next((found for record in asked if (found := audit.of_router(record)) is not None), None)
    if not left and first is None:
        return None
    certified = [record for record in left if "router_sha256" in record.certificate]
    uncertified = [record.name for record in left if record not in certified]
    first = (_of_reference(held, bool(certified) and not uncertified) if left else None) or first
    told = {record.name: what for record in left if (what := told_of(held.told(record.name)))}
    return RouterVerification(first, [record.name for record in left], uncertified, told)


def _of_reference(held: Held, needed: bool) -> str | None:
    """The first difference of what turns states into features, from what the first task settled."""
    settled = held.config.router
    if settled is None:
        return "(config.json has no digests of router.reference)" if needed else None
    now = {name: digest.hex() for name, digest in (held.digests_of(Section(TRUNK, ROUTER)) or {}).items()}
    then = cast(Mapping[str, Any], settled.get("reference") or {})
    for name in sorted({*now, *then}):
        if now.get(name) != then.get(name):
            return name
    if settled.get("layers") != held.config.router_layers:
        return f"router_layers: {held.config.router_layers}, at commit {settled.get('layers')}"
    return None
