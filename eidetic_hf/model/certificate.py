"""The evidence that a committed task has not changed: digests of what it reads and of what it answers."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

PROBE_SHAPE = (4, 16)


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
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8).reshape(-1, 32)


def digest_of_digests(digests: Tensor) -> str:
    """One SHA-256, in hexadecimal, over what `tensor_digests` returned."""
    return hashlib.sha256(digests.contiguous().numpy().tobytes()).hexdigest()


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


def environment(device: torch.device, dtype: torch.dtype, attention: str | None) -> dict[str, Any]:
    """What bit-for-bit equality of logits may depend on, as JSON-ready values."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "capability": None if is_cuda else torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "dtype": str(dtype).removeprefix("torch."),
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
        weights_match: whether every tensor of the closed set has the bytes it was committed with.
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
