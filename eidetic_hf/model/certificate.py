"""The evidence that a committed task has not changed: written at its commit, recomputed whenever somebody asks.

A task reads tensors of others, and their digests are evidence of those others. A task's shard holds digests of what
it owns, and of the trunk, which has no commit of its own; what it reads of other tasks is in its certificate as one
digest over theirs. So the evidence of a task takes as much room after three hundred tasks as after three.

    probes.@task.input_ids, attention_mask, logits       a batch, and what the task answered at its commit
    probes.@task.<part>_digests                          SHA-256 of each tensor of a section, in the order of names
    probes.@task.parents                                 where units are copied: SHA-256 of each task on its branch
    probes.@task.settings                                what else the answer depends on, see `settings.py`
    config.json, of a task: weights_sha256               over the digests of all sections that the task reads
                            router_sha256                over those of what it left to the router
                            books_sha256                 over those of the batch, and of where its units came from
                            settings_sha256              of the settings
    config.json: router                                  SHA-256 of each tensor that turns states into features

In format 2 there are no settings, no books, and nothing of the router. In format 1 `probes.@task.digests` has all
tensors that the task reads, in the order of their names.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

from ..compat import attention_of
from ..configuration import EideticConfig, TaskError, TaskRecord
from ..kinds import kind_of
from ..network.backbone import evaluation_mode
from ..network.network import Section
from ..network.storage import Slots, computed_tensors, named_tensors, own_tensors
from ..views import TRUNK, View, owner_of, task_key
from .answering import answer
from .audit import (
    BOOKS,
    EVERYBODYS,
    ROUTER,
    Audit,
    audit_router,
    digest_of_digests,
    logits_digest,
    parents_of,
    slot_of,
    tensor_digest,
    tensor_digests,
)
from .checkpoint.layout import CheckpointError
from .parts import Parts, committed, record_of
from .request import Request
from .settings import Settings, as_tensor, written
from .verification import TaskVerification, VerificationReport, compare_logits

PROBE_SHAPE = (4, 16)
BATCH = ("input_ids", "attention_mask")  # slots of the probe batch
# What the code that computes rotary frequencies and the like rounds with: in another environment they may be others.
_COMPUTED_WITH = ("device", "capability", "machine", "torch", "transformers")


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


class Evidence:
    """What the tensors of committed tasks are, as certificates list them.

    Each is looked at once, and what was found is kept: make one for each question.

    Args:
        model: the model.
        called: keys that owners had when their certificates were written, by those that they have now.
    """

    def __init__(self, model: Parts, called: Mapping[str, str] | None = None) -> None:
        self._model, self._called = model, called or {}
        self._tensors: dict[Section, dict[str, Tensor]] = {}
        self._digests: dict[str, bytes] = {}  # by the name of a tensor

    @property
    def config(self) -> EideticConfig:
        """The model's."""
        return self._model.config

    @cached_property
    def settings(self) -> Settings:
        """Settings of the tasks, as they are now."""
        return Settings(self.config, saved_by=self.config.transformers_version)

    @cached_property
    def audit(self) -> Audit:
        """Holds the tensors against certificates."""
        return Audit(self, self._called)

    def sections(self, record: TaskRecord) -> list[Section]:
        """What a committed task reads."""
        ancestors = [task_key(name) for name in record.ancestors]
        with_output = kind_of(record).reads_output_embeddings(record)
        return self._model.network.sections_of(task_key(record.name), ancestors, record.vocab_size or 0, with_output)

    def tensors(self, section: Section) -> dict[str, Tensor]:
        """The tensors of a section, by name."""
        if section not in self._tensors:
            owner, part = section
            if part == ROUTER:
                found = _of_router(self._model, owner)
            elif part == BOOKS:
                found = _books(self._model, owner)
            else:
                found = self._model.network.tensors_of(section)
            if part == "private":
                found.update(named_tensors(self._model.heads[owner], f"heads.{owner}"))
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

    def digests_of(self, section: Section) -> dict[str, bytes]:
        """Digests of a section's tensors as they are, by name."""
        tensors = self.tensors(section)
        names = sorted(tensors, key=lambda name: renamed(name, self._called))
        found = self.digests(tensors).numpy()
        return {name: found[number].tobytes() for number, name in enumerate(names)}

    def certificate(self, task: str) -> Slots:
        """What a task's shard has of its commit."""
        return cast(Slots, self._model.probes[task_key(task)])

    def told(self, task: str) -> dict[str, Tensor]:
        """What users have told the router of a task."""
        told = self._model.router.told
        return own_tensors(told[task_key(task)]) if task_key(task) in told else {}

    def vouched(self, section: Section) -> Tensor:
        """Digests of a section as an earlier certificate has them; as it is, where none does.

        What is frozen is not hashed again: should it have changed, it is not what its owner's certificate says, and
        `verify` names it for every task that reads it.
        """
        probes = cast(Mapping[str, Slots], self._model.probes)
        for key in probes if section.owner in EVERYBODYS else [section.owner]:
            stored = probes[key].get(slot_of(section)) if key in probes else None
            if stored is not None:
                return stored.cpu()
        return self.digests(self.tensors(section))

    def first_difference(self, record: TaskRecord) -> str | None:
        """The first tensor or setting of a task that is not what its certificate says, or what else is wrong."""
        return self.audit.first_difference(record)


def _of_router(model: Parts, owner: str) -> dict[str, Tensor]:
    """What a task left to the router; of the trunk what turns states into features."""
    if owner == TRUNK:
        return {f"router.reference.{slot}": tensor for slot, tensor in own_tensors(model.router.reference).items()}
    sums = model.router.sums
    left = own_tensors(sums[owner]) if owner in sums else {}
    return {f"router.sums.{owner}.{slot}": tensor for slot, tensor in left.items()}


def _books(model: Parts, key: str) -> dict[str, Tensor]:
    """A task's probe batch, and the places that its units came from."""
    probe = cast(Slots, model.probes[key])
    found = {f"probes.{key}.{slot}": probe.need(slot) for slot in BATCH}
    for name, group in model.network.groups.items():
        places = cast(Any, group).units.get(key)
        if places is not None:
            found[f"groups.{name}.units.{key}"] = places
    return found


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
        digests = {slot_of(section): found[section] for section in sections if section.owner in (key, *EVERYBODYS)}
        weights = digest_of_digests(digest_of_digests([found[section]]) for section in sections)
        if record.ancestors and model.network.growth.copies:  # it may be handed on, and needs them
            digests["parents"] = parents_of(record, model.config)
    return digests, weights


def _own_digests(model: Parts, record: TaskRecord) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a certificate stores of what is in no answer's way; and the digests over it, by their names there."""
    evidence, digests, sha256 = Evidence(model), dict[str, Tensor](), dict[str, str]()
    for part in (BOOKS, ROUTER):
        section = Section(task_key(record.name), part)
        tensors = evidence.tensors(section)
        if tensors:
            digests[slot_of(section)] = evidence.digests(tensors)
            sha256[f"{part}_sha256"] = digest_of_digests([digests[slot_of(section)]]).hex()
    return digests, sha256


def _put_settings(model: Parts, record: TaskRecord, settings: Mapping[str, Any]) -> None:
    content = written(settings)
    cast(Slots, model.probes[task_key(record.name)]).put("settings", as_tensor(content).to(model.device))
    record.certificate["settings_sha256"] = hashlib.sha256(content).hexdigest()


def rename(model: Parts, record: TaskRecord) -> None:
    """Write the digests anew of a task that has another name than at its commit; what it answered then stays."""
    probe = cast(Slots, model.probes[task_key(record.name)])
    for slot in [slot for slot in own_tensors(probe) if slot.endswith("digests") or slot == "parents"]:
        probe.put(slot, None)
    digests, weights = _digests(model, record)
    old = record.certificate
    computed = {name: digest for name, digest in old.get("computed", {}).items() if owner_of(name) == TRUNK}
    record.certificate = {**old, "weights_sha256": weights.hex(), "computed": computed}
    if "settings_sha256" in old:
        own, sha256 = _own_digests(model, record)
        digests |= own
        record.certificate |= sha256
        _put_settings(model, record, Evidence(model).settings.of(record))
    for slot, value in digests.items():
        probe.put(slot, value.to(model.device))


def forget_route(record: TaskRecord, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a task brings to a model whose router reads other layers: the tensors without what it left to its own."""
    record.certificate.pop("router_sha256", None)
    kept = f"probes.{task_key(record.name)}.{ROUTER}_digests"
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("router.") and name != kept}


def certify(model: Parts, record: TaskRecord) -> None:
    """Store digests of what the task owns, what else its answer depends on, and the logits of the probe batch."""
    key, probe = task_key(record.name), Slots()
    inputs = probe_inputs(record.name, model.network.backbone.config.vocab_size)
    logits = _probe_logits(model, inputs, record)
    kept = kind_of(record).probe_kept(logits)
    for slot, value in {**inputs, "logits": kept}.items():
        probe.put(slot, value.to(model.device))
    model.probes[key] = probe
    digests, weights = _digests(model, record)
    own, sha256 = _own_digests(model, record)
    for slot, value in {**digests, **own}.items():
        probe.put(slot, value.to(model.device))
    record.certificate = {
        "weights_sha256": weights.hex(),
        "logits_sha256": logits_digest(logits),
        **sha256,
        "environment": environment_of(model),
        "computed": _computed(model, record),
        "vocab_size": record.vocab_size,
    }
    if kept.shape != logits.shape:
        record.certificate["kept_logits_sha256"] = logits_digest(kept)
    _put_settings(model, record, Evidence(model).settings.of(record))
    _settle_router(model, record)


def _settle_router(model: Parts, record: TaskRecord) -> None:
    """Note in the configuration what turns states into features, with the first task that left something."""
    if model.router.has(record.name) and (model.config.router is None or model.router.known() == [record.name]):
        found = Evidence(model).digests_of(Section(TRUNK, ROUTER))
        reference = {name: digest.hex() for name, digest in found.items()}
        model.config.router = {"reference": reference, "layers": model.config.router_layers}


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
    found = [_verify_task(model, record, evidence) for record in records]
    return VerificationReport(found, audit_router(evidence.audit, evidence, records))


def _verify_task(model: Parts, record: TaskRecord, evidence: Evidence) -> TaskVerification:
    probe = cast(Slots, model.probes[task_key(record.name)])
    kept_digest = record.certificate.get("kept_logits_sha256", record.certificate["logits_sha256"])
    first, setting = evidence.audit.of_weights(record), evidence.audit.of_settings(record)
    if first is None and logits_digest(probe.need("logits")) != kept_digest:
        first = f"probes.{task_key(record.name)}.logits"
    before, after = record.certificate["environment"], environment_of(model)
    changes = {key: (before.get(key), after[key]) for key in after if before.get(key) != after[key]}
    try:
        logits = _probe_logits(model, {name: probe.need(name) for name in BATCH}, record)
    except Exception:
        if first is None and setting is None:
            raise
        logits = torch.empty(0)  # what was edited can not even be run
    if first is None and setting is None and not set(changes) & set(_COMPUTED_WITH):
        found = _computed(model, record)
        # A certificate of an earlier version has none of them.
        listed = record.certificate.get("computed", {}).items()
        first = next((name for name, digest in listed if found.get(name) != digest), None)
    kept = kind_of(record).probe_kept(logits) if logits.numel() else logits
    mask = probe.need("attention_mask")
    match, difference = compare_logits(probe.need("logits"), kept, not changes, model.network.depth, mask)
    if not changes:
        match = match and logits_digest(logits) == record.certificate["logits_sha256"]
    return TaskVerification(
        record.name,
        first is None,
        match,
        first or setting,
        changes,
        difference,
        record.certificate["weights_sha256"],
        setting is None if evidence.audit.is_certified(record) or setting else None,
        evidence.audit.format_of(record),
    )


def check_unchanged(model: Parts) -> None:
    """Hold every committed task, and what the router knows of it, against its certificate, before they are saved.

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
    router = audit_router(evidence.audit, evidence, model.config.tasks)
    if router is not None and not router.ok:
        raise CheckpointError(
            f"What the router knows of tasks has changed in memory, first in {router.first_difference}. It was not "
            "saved; load the last good checkpoint."
        )
