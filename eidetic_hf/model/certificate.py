"""The evidence that a committed task has not changed: written at its commit, recomputed whenever somebody asks.

A task reads tensors of others, and their digests are evidence of those others. A task's shard holds digests of what
it owns, and of the trunk, which has no commit of its own; what it reads of other tasks is in its certificate as one
digest over theirs. So the evidence of a task takes as much room after three hundred tasks as after three.

    probes.@task.input_ids, attention_mask, logits       a batch, and what the task answered at its commit
    probes.@task.<part>_digests                          SHA-256 of each tensor of a section, in the order of names
    probes.@task.parents                                 where units are copied: SHA-256 of each task on its branch
    config.json: weights_sha256                          over the digests of all sections that the task reads

In format 1 `probes.@task.digests` has all tensors that the task reads, in the order of their names.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

from ..compat import attention_of
from ..configuration import TaskError, TaskRecord
from ..kinds import kind_of
from ..network.backbone import evaluation_mode
from ..network.network import Section
from ..network.storage import Slots, computed_tensors, named_tensors, own_tensors
from ..views import BASE, TRUNK, View, owner_of, task_key, task_name
from .answering import answer
from .checkpoint.layout import CheckpointError
from .parts import Parts, committed, record_of
from .request import Request

PROBE_SHAPE = (4, 16)
EVERYBODYS = (TRUNK, BASE)  # owners that have no commit of their own
# What the code that computes rotary frequencies and the like rounds with: in another environment they may be others.
_COMPUTED_WITH = ("device", "capability", "machine", "torch", "transformers")


def tensor_digest(name: str, tensor: Tensor) -> bytes:
    """SHA-256 over a tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def tensor_digests(tensors: Mapping[str, Tensor], cache: dict[str, bytes] | None = None) -> Tensor:
    """SHA-256 of each tensor, in the order of their names, `(tensors, 32)` uint8; `cache` is filled and reused."""
    cache = {} if cache is None else cache
    for name in tensors:
        if name not in cache:
            cache[name] = tensor_digest(name, tensors[name])
    joined = b"".join(cache[name] for name in sorted(tensors))
    if not joined:
        return torch.empty((0, 32), dtype=torch.uint8)
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8).reshape(-1, 32)


def digest_of_digests(parts: Iterable[Tensor | bytes]) -> bytes:
    """One SHA-256 over others: over what `tensor_digests` returned, or over what this function did."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.contiguous().numpy().data)
    return digest.digest()


def probe_inputs(task: str, vocab_size: int) -> dict[str, Tensor]:
    """A small batch of token ids that depends on nothing but the task's name: no training text is stored.

    Returns:
        `input_ids` and `attention_mask`, both `(4, 16)` int64, with sequences of 16, 12, 8 and 4 tokens.
    """
    rows, length = PROBE_SHAPE
    seed = int.from_bytes(hashlib.sha256(task.encode()).digest()[:7], "big")
    ids = torch.randint(0, vocab_size, PROBE_SHAPE, generator=torch.Generator().manual_seed(seed))
    lengths = torch.arange(rows, 0, -1) * length // rows
    mask = (torch.arange(length) < lengths.unsqueeze(1)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def environment(device: torch.device, dtype: torch.dtype, attention: str | None) -> dict[str, Any]:
    """What bit-for-bit equality of logits may depend on, as JSON-ready values."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "capability": None if is_cuda else torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "dtype": _name_of(dtype),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": None if is_cuda else torch.get_num_threads(),
        "attention": attention,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@dataclass
class TaskVerification:
    """What `verify` found of one task.

    Attributes:
        task: its name.
        weights_match: whether every tensor of the closed set has the bytes it was committed with; and, in the same
            environment, every tensor that follows from the configuration, such as rotary frequencies.
        logits_match: whether the probe batch gives the logits of the commit: bit for bit in the same environment,
            within rounding in another.
        first_difference: name of the first tensor that differs, or `None`.
        environment_changes: `{field: (then, now)}` of what differs from the environment of the commit.
        largest_logit_difference: largest absolute difference of a probe logit.
        sha256: digest of the closed set as it was committed.
    """

    task: str
    weights_match: bool
    logits_match: bool
    first_difference: str | None = None
    environment_changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    largest_logit_difference: float = 0.0
    sha256: str = ""

    @property
    def ok(self) -> bool:
        """Whether weights and logits match."""
        return self.weights_match and self.logits_match

    def __str__(self) -> str:
        if not self.weights_match:
            return f"{self.task}: CHANGED, first in tensor {self.first_difference}"
        if not self.logits_match:
            return f"{self.task}: CHANGED logits (largest difference {self.largest_logit_difference:.3g})"
        if self.environment_changes:
            changes = ", ".join(f"{key} {then} -> {now}" for key, (then, now) in self.environment_changes.items())
            return f"{self.task}: weights equal bit for bit, logits equal to rounding (other environment: {changes})"
        return f"{self.task}: weights and logits equal bit for bit"


@dataclass
class VerificationReport:
    """What `verify` found, task by task. True in a condition if every task is as it was committed."""

    tasks: list[TaskVerification]

    @property
    def ok(self) -> bool:
        """Whether every task is as it was committed."""
        return all(task.ok for task in self.tasks)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        verdict = "verified: no committed task has changed" if self.ok else "FAILED: a committed task has changed"
        return "\n".join([*map(str, self.tasks), verdict if self.tasks else "nothing to verify: no committed task"])


def compare_logits(then: Tensor, now: Tensor, same_environment: bool) -> tuple[bool, float]:
    """Whether probe logits `(batch, labels)` match, and their largest absolute difference.

    In another environment float32 may round differently: differences up to 1e-3 (1e-1 in a 16-bit dtype), plus the
    same share of the value, pass.
    """
    if then.shape != now.shape:
        return False, float("inf")
    then, now = then.cpu(), now.cpu()
    difference = float((then.double() - now.double()).abs().max()) if then.numel() else 0.0
    if same_environment:
        return torch.equal(then, now), difference
    tolerance = 1e-3 if then.dtype in (torch.float32, torch.float64) else 1e-1
    return torch.allclose(then.double(), now.double(), rtol=tolerance, atol=tolerance), difference


# -- of a model -------------------------------------------------------------------------------------------------------


def closed_set(model: Parts, name: str) -> dict[str, Tensor]:
    """Every tensor that a committed task's output reads, see `EideticModel.task_tensors`.

    Raises:
        TaskError: if the task is not committed.
    """
    return Evidence(model).closed_set(_record_of_committed(model, name))


def _record_of_committed(model: Parts, name: str) -> TaskRecord:
    record = record_of(model, name)
    if name in model.added:
        raise TaskError(f"The task '{name}' is not committed yet: its tensors still change.")
    return record


@dataclass(frozen=True)
class Comparison:
    """Some tensors held against a certificate.

    Attributes:
        then: SHA-256 over the digests that the certificate has of them.
        first: the first tensor that differs, or what else does; `None` if nothing does.
    """

    then: bytes
    first: str | None


class Evidence:
    """What the tensors of committed tasks are, and what certificates say that they were.

    Each is looked at once, and what was found is kept: make one for each question.

    Args:
        model: the model.
        called: keys that owners had when their certificates were written, by those that they have now.
    """

    def __init__(self, model: Parts, called: Mapping[str, str] | None = None) -> None:
        self._model, self._called = model, called or {}
        self._tensors: dict[Section, dict[str, Tensor]] = {}
        self._digests: dict[str, bytes] = {}  # by the name of a tensor
        self._compared: dict[Section, Comparison] = {}

    def sections(self, record: TaskRecord) -> list[Section]:
        """What a committed task reads."""
        ancestors = [task_key(name) for name in record.ancestors]
        with_output = kind_of(record).reads_output_embeddings(record)
        return self._model.network.sections_of(task_key(record.name), ancestors, record.vocab_size or 0, with_output)

    def tensors(self, section: Section) -> dict[str, Tensor]:
        """The tensors of a section, by name."""
        if section not in self._tensors:
            found = self._model.network.tensors_of(section)
            if section.part == "private":
                found.update(named_tensors(self._model.heads[section.owner], f"heads.{section.owner}"))
            self._tensors[section] = found
        return self._tensors[section]

    def closed_set(self, record: TaskRecord) -> dict[str, Tensor]:
        """Every tensor that a committed task's output reads, by name."""
        return {name: tensor for section in self.sections(record) for name, tensor in self.tensors(section).items()}

    def digests(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Digests of tensors as they are, see `tensor_digests`."""
        if self._called:
            tensors = {renamed(name, self._called): tensor for name, tensor in tensors.items()}
        return tensor_digests(tensors, self._digests)

    def vouched(self, section: Section) -> Tensor:
        """Digests of a section as an earlier certificate has them; as it is, where none does.

        What is frozen is not hashed again: should it have changed, it is not what its owner's certificate says, and
        `verify` names it for every task that reads it.
        """
        probes = cast(Mapping[str, Slots], self._model.probes)
        for key in probes if section.owner in EVERYBODYS else [section.owner]:
            stored = probes[key].get(_slot(section)) if key in probes else None
            if stored is not None:
                return stored.cpu()
        return self.digests(self.tensors(section))

    def first_difference(self, record: TaskRecord) -> str | None:
        """The first tensor that a task reads and that is not what its certificate says, or what else is wrong."""
        every = self._probe(record.name).get("digests")
        if every is not None:  # format 1
            found = [self._compare("closed set", self.closed_set(record), every)]
            then = found[0].then
        else:
            found = [self._of_section(section, record) for section in self.sections(record)]
            then = digest_of_digests(each.then for each in found)
        first = next((each.first for each in found if each.first is not None), None)
        if first is None and then.hex() != record.certificate["weights_sha256"]:
            return "(the stored digests differ from config.json)"
        parents = self._probe(record.name).get("parents")
        if first is None and parents is not None and not torch.equal(parents.cpu(), _parents(self._model, record)):
            return f"(it was learned on others than these: {record.ancestors})"
        return first

    def _of_section(self, section: Section, reader: TaskRecord) -> Comparison:
        """A section held against its owner's certificate, or against the reader's if it is everybody's."""
        if section.owner in EVERYBODYS:
            return self._compare(section.part, self.tensors(section), self._stored(section, reader.name))
        if section not in self._compared:
            owner = cast(str, task_name(section.owner))
            what = f"{section.part} of '{owner}'"
            self._compared[section] = self._compare(what, self.tensors(section), self._stored(section, owner))
        return self._compared[section]

    def _stored(self, section: Section, task: str) -> Tensor | None:
        """Digests of a section in a task's certificate; `None` if it has none."""
        probe = self._probe(task)
        every = probe.get("digests")
        if every is None:
            return probe.get(_slot(section))
        names = sorted(self.closed_set(record_of(self._model, task)))  # format 1
        if len(names) != len(every):
            return None
        place = {name: number for number, name in enumerate(names)}
        return every[[place[name] for name in sorted(self.tensors(section))]]

    def _compare(self, what: str, tensors: Mapping[str, Tensor], stored: Tensor | None) -> Comparison:
        now = self.digests(tensors)
        then = now[:0] if stored is None else stored.cpu()
        if now.shape != then.shape:
            return Comparison(b"", f"(the {what} has {len(now)} tensors, at commit it had {len(then)})")
        differs = (now != then).any(1).nonzero()
        return Comparison(digest_of_digests([then]), sorted(tensors)[int(differs[0])] if len(differs) else None)

    def _probe(self, task: str) -> Slots:
        return cast(Slots, self._model.probes[task_key(task)])


def _parents(model: Parts, record: TaskRecord) -> Tensor:
    """What the certificates of a task's ancestors say that they are, `(ancestors, 32)` uint8."""
    found = [record_of(model, name).certificate["weights_sha256"] for name in record.ancestors]
    return torch.tensor([list(bytes.fromhex(digest)) for digest in found], dtype=torch.uint8)


def _slot(section: Section) -> str:
    """Where a certificate keeps the digests of a section."""
    return f"{section.part}_digests"


def _computed(model: Parts, record: TaskRecord) -> dict[str, str]:
    """SHA-256 of every tensor that a task's output reads and no checkpoint holds, by name.

    They follow from the configuration, as rotary frequencies do. To be called after the probe batch has run: some
    depend on the length of the last batch.
    """
    key = task_key(record.name)
    found = computed_tensors(model.network.backbone, "backbone")
    found.update(computed_tensors(model.heads[key], f"heads.{key}"))
    own = {name: tensor for name, tensor in found.items() if owner_of(name) in (TRUNK, key)}
    return {name: tensor_digest(name, tensor).hex() for name, tensor in sorted(own.items())}


def renamed(name: str, keys: Mapping[str, str]) -> str:
    """The name of a tensor whose owner is called otherwise."""
    return ".".join(keys.get(part, part) for part in name.split("."))


def _digests(model: Parts, record: TaskRecord) -> tuple[dict[str, Tensor], bytes]:
    """What a certificate stores of the tensors that a task reads, and the digest over all of it."""
    key, evidence = task_key(record.name), Evidence(model)
    sections = evidence.sections(record)
    if _is_cast(model):
        digests = {"digests": evidence.digests(evidence.closed_set(record))}
        weights = digest_of_digests(digests.values())
    else:
        found = {section: evidence.vouched(section) for section in sections}
        digests = {_slot(section): found[section] for section in sections if section.owner in (key, *EVERYBODYS)}
        weights = digest_of_digests(digest_of_digests([found[section]]) for section in sections)
        if record.ancestors and model.network.growth.copies:  # it may be handed on, and needs them
            digests["parents"] = _parents(model, record)
    return digests, weights


def rename(model: Parts, record: TaskRecord) -> None:
    """Write the digests anew of a task that has another name than at its commit; what it answered then stays."""
    probe = cast(Slots, model.probes[task_key(record.name)])
    for slot in [slot for slot in own_tensors(probe) if slot.endswith("digests") or slot == "parents"]:
        probe.put(slot, None)
    digests, weights = _digests(model, record)
    for slot, value in digests.items():
        probe.put(slot, value.to(model.device))
    old = record.certificate
    computed = {name: digest for name, digest in old.get("computed", {}).items() if owner_of(name) == TRUNK}
    record.certificate = {**old, "weights_sha256": weights.hex(), "computed": computed}


def certify(model: Parts, record: TaskRecord) -> None:
    """Store digests of what the task owns, and the logits of the probe batch."""
    key, probe = task_key(record.name), Slots()
    inputs = probe_inputs(record.name, model.network.backbone.config.vocab_size)
    digests, weights = _digests(model, record)
    logits = _probe_logits(model, inputs, record)
    kept = kind_of(record).probe_kept(logits)
    for slot, value in {**inputs, "logits": kept, **digests}.items():
        probe.put(slot, value.to(model.device))
    model.probes[key] = probe
    record.certificate = {
        "weights_sha256": weights.hex(),
        "logits_sha256": _logits_digest(logits),
        "environment": environment_of(model),
        "computed": _computed(model, record),
    }
    if kept.shape != logits.shape:
        record.certificate["kept_logits_sha256"] = _logits_digest(kept)


def _is_cast(model: Parts) -> bool:
    """Whether the model computes in another dtype than earlier tasks were committed in.

    Then what their certificates say of their tensors does not hold for it. It can not be saved, see `check_unchanged`.
    """
    dtype = _name_of(model.dtype)
    return any(task.certificate and task.certificate["environment"]["dtype"] != dtype for task in model.config.tasks)


def environment_of(model: Parts) -> dict[str, Any]:
    """What bit-for-bit equality of a model's logits may depend on."""
    return environment(model.device, model.dtype, attention_of(model.network.backbone.config))


@torch.no_grad()
def _probe_logits(model: Parts, inputs: Mapping[str, Tensor], record: TaskRecord) -> Tensor:
    """A committed task's answer to its probe batch."""
    kind = kind_of(record)
    with evaluation_mode(cast(nn.Module, model)), torch.autocast(model.device.type, enabled=False):
        batch = kind.probe_inputs({key: value.to(model.device) for key, value in inputs.items()})
        return kind.probe_answer(answer(model, record.name, View(task_key(record.name)), Request(batch))[0]).cpu()


def verify(model: Parts, tasks: list[str] | None) -> VerificationReport:
    """Recompute every certificate, see `EideticModel.verify`."""
    evidence = Evidence(model)
    records = [_record_of_committed(model, name) for name in tasks or committed(model)]
    return VerificationReport([_verify_task(model, record, evidence) for record in records])


def _verify_task(model: Parts, record: TaskRecord, evidence: Evidence) -> TaskVerification:
    probe = cast(Slots, model.probes[task_key(record.name)])
    kept_digest = record.certificate.get("kept_logits_sha256", record.certificate["logits_sha256"])
    first = evidence.first_difference(record)
    if first is None and _logits_digest(probe.need("logits")) != kept_digest:
        first = f"probes.{task_key(record.name)}.logits"
    before, after = record.certificate["environment"], environment_of(model)
    changes = {key: (before.get(key), after[key]) for key in after if before.get(key) != after[key]}
    logits = _probe_logits(model, {name: probe.need(name) for name in ("input_ids", "attention_mask")}, record)
    if first is None and not set(changes) & set(_COMPUTED_WITH):
        found = _computed(model, record)
        # A certificate of an earlier version has none of them.
        listed = record.certificate.get("computed", {}).items()
        first = next((name for name, digest in listed if found.get(name) != digest), None)
    match, difference = compare_logits(probe.need("logits"), kind_of(record).probe_kept(logits), not changes)
    if not changes:
        match = match and _logits_digest(logits) == record.certificate["logits_sha256"]
    digest = record.certificate["weights_sha256"]
    return TaskVerification(record.name, first is None, match, first, changes, difference, digest)


def check_unchanged(model: Parts) -> None:
    """Hold the weights of every committed task against its certificate, before they are saved.

    Raises:
        CheckpointError: if one is not, to the bit, what its certificate says.
    """
    evidence = Evidence(model)
    dtype = _name_of(model.dtype)
    for task in model.config.tasks:
        then = task.certificate["environment"]["dtype"]
        if then != dtype:
            raise CheckpointError(
                f"This model computes in torch.{dtype}, but the task '{task.name}' was committed in {then}. Saving "
                f"would change its shard. Load the checkpoint with dtype=torch.{then} to save it."
            )
        first = evidence.first_difference(task)
        if first is not None:
            raise CheckpointError(
                f"The committed task '{task.name}' has changed in memory, first in {first}. It was not saved; load "
                "the last good checkpoint."
            )


def _logits_digest(logits: Tensor) -> str:
    return digest_of_digests([tensor_digests({"logits": logits})]).hex()
