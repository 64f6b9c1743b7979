"""The guarantee, checked: a certificate at each commit, recomputed whenever somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from ..configuration import TaskRecord
from ..kinds import kind_of
from ..network.network import TaskNetwork
from ..network.storage import Slots
from ..views import View, task_key
from .certificate import (
    TaskVerification,
    VerificationReport,
    compare_logits,
    digest_of_digests,
    environment,
    probe_inputs,
    tensor_digests,
)
from .checkpoint import CheckpointError


class CertifiedNetwork(TaskNetwork):
    """A network that can show that no committed task has changed."""

    def _certify(self, record: TaskRecord) -> None:
        """Store digests of the closed set and the logits of the probe batch."""
        probe = Slots()
        inputs = probe_inputs(record.name, self.backbone.config.vocab_size)
        digests = tensor_digests(self.task_tensors(record.name))
        logits = self._probe_logits(inputs, record.name)
        kept = kind_of(record).probe_kept(logits)
        for slot, value in {**inputs, "logits": kept, "digests": digests}.items():
            probe.put(slot, value.to(self.device))
        self.probes[task_key(record.name)] = probe
        record.certificate = {
            "weights_sha256": digest_of_digests(digests),
            "logits_sha256": _logits_digest(logits),
            "environment": environment(self.device, self.dtype, self.backbone.config._attn_implementation),
        }
        if kept.shape != logits.shape:
            record.certificate["kept_logits_sha256"] = _logits_digest(kept)

    @torch.no_grad()
    def _probe_logits(self, inputs: Mapping[str, Tensor], name: str) -> Tensor:
        """A committed task's answer to its probe batch."""
        kind = kind_of(self.record(name))
        with self._in_eval_mode(), torch.autocast(self.device.type, enabled=False):
            batch = kind.probe_inputs({key: value.to(self.device) for key, value in inputs.items()})
            return kind.probe_answer(self._answer(name, View(task_key(name)), batch)[0]).cpu()

    def verify(self, tasks: list[str] | None = None) -> VerificationReport:
        """Recompute every certificate: has any committed task changed?

        Returns:
            A report that is true in a condition if nothing has, and names the first tensor that differs otherwise.
        """
        cache: dict[str, bytes] = {}
        return VerificationReport([self._verify_task(self.record(name), cache) for name in tasks or self.tasks])

    def _verify_task(self, record: TaskRecord, cache: dict[str, bytes]) -> TaskVerification:
        probe = cast(Slots, self.probes[task_key(record.name)])
        kept_digest = record.certificate.get("kept_logits_sha256", record.certificate["logits_sha256"])
        tensors = self.task_tensors(record.name)
        now, then = tensor_digests(tensors, cache), probe.need("digests").cpu()
        first = None
        if now.shape != then.shape:
            first = f"(the closed set has {len(now)} tensors, at commit it had {len(then)})"
        elif not torch.equal(now, then):
            first = sorted(tensors)[int((now != then).any(1).nonzero()[0])]
        elif digest_of_digests(then) != record.certificate["weights_sha256"]:
            first = "(the stored digests differ from config.json)"
        elif _logits_digest(probe.need("logits")) != kept_digest:
            first = f"probes.{task_key(record.name)}.logits"
        before = record.certificate["environment"]
        after = environment(self.device, self.dtype, self.backbone.config._attn_implementation)
        changes = {key: (before.get(key), after[key]) for key in after if before.get(key) != after[key]}
        inputs = {name: probe.need(name) for name in ("input_ids", "attention_mask")}
        logits = self._probe_logits(inputs, record.name)
        match, difference = compare_logits(probe.need("logits"), kind_of(record).probe_kept(logits), not changes)
        if not changes:
            match = match and _logits_digest(logits) == record.certificate["logits_sha256"]
        digest = record.certificate["weights_sha256"]
        return TaskVerification(record.name, first is None, match, first, changes, difference, digest)

    def _check_unchanged(self) -> None:
        """Refuse to save a committed task that is not, to the bit, what its certificate says."""
        cache: dict[str, bytes] = {}
        for task in self.config.tasks:
            then = task.certificate["environment"]["dtype"]
            if then != str(self.dtype).removeprefix("torch."):
                raise CheckpointError(
                    f"This model computes in {self.dtype}, but the task '{task.name}' was committed in {then}. Saving "
                    f"would change its shard. Load the checkpoint with dtype=torch.{then} to save it."
                )
            tensors = self.task_tensors(task.name)
            digests = tensor_digests(tensors, cache)
            if digest_of_digests(digests) != task.certificate["weights_sha256"]:
                report = self._verify_task(task, cache)
                raise CheckpointError(
                    f"The committed task '{task.name}' has changed in memory, first in {report.first_difference}. It "
                    "was not saved; load the last good checkpoint."
                )


def _logits_digest(logits: Tensor) -> str:
    return digest_of_digests(tensor_digests({"logits": logits}))
