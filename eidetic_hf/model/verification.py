"""What `verify` found: of each task, of the router, and of the files that lie beside the shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# How far logits that were computed otherwise may be apart, in units of their own largest value times the precision of
# their dtype, for a backbone of one layer; it grows with the root of the depth. In 16 bits nearly all of it is the
# last rounding, in float32 that of sums in which large numbers cancel: docs/guarantee.md has what was measured.
ROUNDING, ROUNDING_16_BIT = 64.0, 8.0


@dataclass
class TaskVerification:
    """What `verify` found of one task.

    Attributes:
        task: its name.
        weights_match: whether every tensor of the closed set has the bytes it was committed with; and, in the same
            environment, every tensor that follows from the configuration, such as rotary frequencies.
        logits_match: whether the probe batch gives the logits of the commit: bit for bit in the same environment,
            within rounding in another; `None` if it was not run.
        first_difference: the first tensor or setting that differs, or what else does, or `None`.
        environment_changes: `{field: (then, now)}` of what differs from the environment of the commit.
        largest_logit_difference: largest absolute difference of a probe logit.
        sha256: digest of the closed set as it was committed.
        settings_match: whether all that the answer depends on beside weights is as it was; `None` if the task's
            certificate has none of it.
        format: the format that the task's certificate was written in.
    """

    task: str
    weights_match: bool
    logits_match: bool | None
    first_difference: str | None = None
    environment_changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    largest_logit_difference: float = 0.0
    sha256: str = ""
    settings_match: bool | None = True
    format: int = 3

    @property
    def ok(self) -> bool:
        """Whether all that was looked at matches."""
        return self.weights_match and self.logits_match is not False and self.settings_match is not False

    def __str__(self) -> str:
        if not self.weights_match:
            return f"{self.task}: CHANGED, first in tensor {self.first_difference}"
        if self.settings_match is False:
            return f"{self.task}: CHANGED, first in {self.first_difference}"
        if self.logits_match is False:
            return f"{self.task}: CHANGED logits (largest difference {self.largest_logit_difference:.3g})"
        beside = "" if self.settings_match else f"; settings not certified (format {self.format})"
        if self.logits_match is None:
            what = "weights and settings equal" if self.settings_match else "weights equal"
            return f"{self.task}: {what} bit for bit, by their hashes{beside}"
        if self.environment_changes:
            changes = ", ".join(f"{key} {then} -> {now}" for key, (then, now) in self.environment_changes.items())
            found = f"weights equal bit for bit, logits equal to rounding (other environment: {changes})"
        else:
            found = "weights and logits equal bit for bit"
        return f"{self.task}: {found}{beside}"


@dataclass
class RouterVerification:
    """What `verify` found of the router.

    Attributes:
        first_difference: the first tensor that differs from what the tasks left, or what else does, or `None`.
        tasks: names of the tasks that left something to it.
        uncertified: those of them whose certificates say nothing of it.
        told: what users have told it since, by the names of tasks: no part of any certificate.
    """

    first_difference: str | None
    tasks: list[str]
    uncertified: list[str] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether all that tasks left to it is as it was."""
        return self.first_difference is None

    def __str__(self) -> str:
        since = "; ".join(f"{task}: {what}" for task, what in self.told.items())
        since = f"; told since: {since}" if since else ""
        if self.first_difference is not None:
            return f"router: CHANGED, first in {self.first_difference}{since}"
        if self.uncertified:
            names = ", ".join(self.uncertified)
            return f"router: not certified (an earlier format) is what it knows of {names}{since}"
        return f"router: equal bit for bit{since}"


@dataclass
class VerificationReport:
    """What `verify` found, task by task. True in a condition if all is as it was committed.

    Attributes:
        tasks: what was found of each.
        router: what was found of the router; `None` if no task left anything to it.
        edited: of a folder, which files beside the shards were edited since the model was saved, a line each.
    """

    tasks: list[TaskVerification]
    router: RouterVerification | None = None
    edited: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every task is as it was committed, with the router and the files beside."""
        return all(task.ok for task in self.tasks) and (self.router is None or self.router.ok) and not self.edited

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [*map(str, self.tasks), *([] if self.router is None else [str(self.router)]), *self.edited]
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        if not all(task.ok for task in self.tasks):
            return "FAILED: a committed task has changed"
        if self.router is not None and not self.router.ok:
            return "FAILED: what the router knows of tasks has changed"
        if self.edited:
            return "FAILED: a file was edited since the model was saved"
        return "verified: no committed task has changed" if self.tasks else "nothing to verify: no committed task"


def told_of(told: Mapping[str, Tensor]) -> str:
    """What users told the router of one task, in words.

    Args:
        told: `examples`, `labels`, `weights`, `prior` and `threshold`, as far as they are there.
    """
    found = []
    if "weights" in told:
        added = int((told["weights"] > 0).sum())
        forgotten = len(told["weights"]) - added
        found += [f"{added} examples"] if added else []
        found += [f"{forgotten} forgotten"] if forgotten else []
    found += [f"{name} {float(told[name]):g}" for name in ("prior", "threshold") if name in told]
    return ", ".join(found)


def compare_logits(
    then: Tensor, now: Tensor, same_environment: bool, depth: int, mask: Tensor | None = None
) -> tuple[bool, float]:
    """Whether probe logits `(batch, labels)` match, and their largest absolute difference.

    In another environment the same sums may round differently: differences pass up to what the dtype's precision
    makes of the largest of all logits, see `rounding`. Tokens that are padding do not count there: what attends to
    nothing is zero in one implementation of attention, and a mean in another.

    Args:
        then: at the commit.
        now: of the same batch.
        same_environment: whether every bit counts.
        depth: layers of the backbone.
        mask: 1 for real tokens, `(batch, sequence)`, where there are logits for each token.
    """
    if then.shape != now.shape:
        return False, float("inf")
    then, now = then.cpu(), now.cpu()
    if mask is not None and not same_environment and then.shape[:2] == mask.shape:
        then, now = then[mask.cpu().bool()], now[mask.cpu().bool()]
    difference = float((then.double() - now.double()).abs().max()) if then.numel() else 0.0
    if same_environment:
        return torch.equal(then, now), difference
    return difference <= rounding(then, depth), difference


def rounding(logits: Tensor, depth: int) -> float:
    """By how much logits may differ that were computed in another environment, by a backbone of so many layers."""
    largest = float(logits.double().abs().max()) if logits.numel() else 0.0
    precision = torch.finfo(logits.dtype)
    units = ROUNDING_16_BIT if precision.bits == 16 else ROUNDING
    return units * precision.eps * max(depth, 1) ** 0.5 * largest
