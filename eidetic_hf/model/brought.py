"""What a checkpoint brings along for slots that no module has a shape for: probe batches, and what the router reads.

A file may have any tensor of any shape under such a name. Here names, dtypes and shapes are held against the model
before memory is taken for them, and the numbers that count or point to something after they were read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..compat import kept_in_float32
from ..network.storage import Slots, own_tensors
from ..network.trunk import EDGE, MEAN, PLAIN_MEAN
from ..views import BASE, task_key
from .checkpoint.layout import CheckpointError
from .parts import Parts
from .router.features import MAX_FEATURES

PROBES, REFERENCE, SUMS, TOLD = "probes.", "router.reference", "router.sums.", "router.told."
_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64)
_FLOAT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Described(Protocol):
    """What is known of a tensor before it is read, or a tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...


def check_described(model: Parts, described: Mapping[str, Described], keys: Iterable[str]) -> None:
    """Hold what files say of their tensors against a model with room for them.

    Args:
        model: the model.
        described: the tensors by name; for tensors that a module has room for the shape was compared.
        keys: of the tasks that they are of.

    Raises:
        CheckpointError: naming the tensor, what it is and what was expected.
    """
    slots: dict[str, dict[str, Described]] = {}
    for name, entry in described.items():
        if name.startswith((PROBES, "router.")):
            owner, _, leaf = name.rpartition(".")
            slots.setdefault(owner, {})[leaf] = entry
    for key in keys:
        _check_probe(f"{PROBES}{key}", slots.get(f"{PROBES}{key}", {}))
    features = _check_reference(slots.get(REFERENCE, {}), model)
    for owner, found in slots.items():
        if owner.startswith(SUMS):
            _check_sums(owner, found, features)
        elif owner.startswith(TOLD):
            _check_told(owner, found, features, f"{SUMS}{owner.removeprefix(TOLD)}" in slots)
    _check_dtypes(model, described)


def _wrong(name: str, entry: Described | None, expected: str) -> CheckpointError:
    given = "missing" if entry is None else f"{entry.dtype} {tuple(entry.shape)}".removeprefix("torch.")
    return CheckpointError(
        f"{name} is {given}, expected {expected}. Its .safetensors file was edited; copy the whole folder again."
    )


def _expect(
    owner: str, found: Mapping[str, Described], leaf: str, dtypes: Iterable[torch.dtype], shape: tuple[int | None, ...]
) -> tuple[int, ...]:
    """The shape of a tensor that has to be there; `None` stands for any number."""
    entry = found.get(leaf)
    fits = entry is not None and entry.dtype in dtypes and len(entry.shape) == len(shape)
    if entry is None or not fits or any(n not in (None, m) for n, m in zip(shape, entry.shape, strict=True)):
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        sizes = ", ".join("any" if n is None else str(n) for n in shape)
        raise _wrong(f"{owner}.{leaf}", entry, f"{names} ({sizes})")
    return tuple(entry.shape)


def _check_probe(owner: str, found: Mapping[str, Described]) -> None:
    """The batch of a certificate, its answer, and digests, see `certificate.py`."""
    shape = _expect(owner, found, "input_ids", (torch.int64,), (None, None))
    _expect(owner, found, "attention_mask", (torch.int64,), shape)
    if not 0 < shape[0] * shape[1] <= 2**16:
        raise _wrong(f"{owner}.input_ids", found["input_ids"], "a small batch")
    if "logits" not in found or found["logits"].dtype not in _FLOAT:
        raise _wrong(f"{owner}.logits", found.get("logits"), "numbers")
    for leaf in found:
        if leaf.endswith("digests") or leaf == "parents":
            _expect(owner, found, leaf, (torch.uint8,), (None, 32))


def _check_reference(found: Mapping[str, Described], model: Parts) -> int | None:
    """Number of the router's features; `None` if it has none."""
    if not found.keys() - {"private"}:  # of one task that comes to a model
        return model.router.n_features if model.router.is_ready else None
    (features,) = _expect(REFERENCE, found, "columns", (torch.int64,), (None,))
    if not 0 < features <= MAX_FEATURES:
        raise _wrong(f"{REFERENCE}.columns", found["columns"], f"1 to {MAX_FEATURES} numbers")
    for leaf in ("shift", "scale"):
        _expect(REFERENCE, found, leaf, (torch.float32,), (features,))
    if "parts" in found:
        _expect(REFERENCE, found, "parts", (torch.int64,), (None, 3))
    if "directions" in found:
        _expect(REFERENCE, found, "directions", (torch.int64,), ())
    return features


def _check_sums(owner: str, found: Mapping[str, Described], features: int | None) -> None:
    """What a task left for the router, see `kept_of`."""
    if features is None:
        raise _wrong(owner, None, f"no sums without {REFERENCE}")
    (labels,) = _expect(owner, found, "count", _WHOLE, (None,))
    triangle = features * (features + 1) // 2
    if "total" in found:
        _expect(owner, found, "total", _WHOLE, (labels, features))
        _expect(owner, found, "moment", _WHOLE, (triangle,))
        return
    _expect(owner, found, "means", (torch.int16,), (labels, features))
    _expect(owner, found, "deviation", (torch.float32,), (features,))
    if "factor" in found:
        _, directions = _expect(owner, found, "factor", (torch.int8,), (features, None))
        _expect(owner, found, "scale", (torch.float32,), (directions,))
    else:
        _expect(owner, found, "correlations", (torch.float32,), (triangle,))


def _check_told(owner: str, found: Mapping[str, Described], features: int | None, has_sums: bool) -> None:
    """What users told the router about a task."""
    if not has_sums:
        raise _wrong(owner, None, "nothing told of a task that left no sums")
    for leaf in found.keys() & {"prior", "threshold"}:
        _expect(owner, found, leaf, (torch.float64,), ())
    if found.keys() & {"examples", "labels", "weights"}:
        rows, _ = _expect(owner, found, "examples", (torch.int8,), (None, features))
        for leaf in ("labels", "weights"):
            _expect(owner, found, leaf, _WHOLE, (rows,))


def _check_dtypes(model: Parts, described: Mapping[str, Described]) -> None:
    """Weights are of the model's dtype, but those that the backbone keeps in float32; whole numbers stay such."""
    if not isinstance(model.config.dtype, torch.dtype):
        return
    wanted, room = model.config.dtype, cast(nn.Module, model).state_dict(keep_vars=True)
    kept = kept_in_float32(model.network.backbone, wanted)
    for name, entry in described.items():
        place = room.get(name)
        if place is None:
            continue
        allowed: tuple[torch.dtype, ...] = (wanted,) if place.is_floating_point() else (place.dtype,)
        if place.is_floating_point() and kept & set(name.split(".")):
            allowed = (wanted, torch.float32)
        if entry.dtype not in allowed:
            raise _wrong(name, entry, " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed))


# -- after they were read ---------------------------------------------------------------------------------------------


def check_read(model: Parts) -> None:
    """Hold the numbers that count or point to something against what there is.

    Raises:
        CheckpointError: naming the tensor.
    """
    tokens = model.network.input_rows.total
    for record in model.config.tasks:
        key = task_key(record.name)
        probe = cast(Slots, model.probes[key])
        _within(f"{PROBES}{key}.input_ids", probe.need("input_ids"), 0, tokens - 1)
        _within(f"{PROBES}{key}.attention_mask", probe.need("attention_mask"), 0, 1)
        told, sums = own_tensors(cast(Any, model.router.told)[key]), own_tensors(cast(Any, model.router.sums)[key])
        if "count" in sums:
            _within(f"{SUMS}{key}.count", sums["count"], 0, 2**62)
        if "labels" in told:
            _within(f"{TOLD}{key}.labels", told["labels"], 0, len(sums["count"]) - 1)
    _check_parts(model)
    for group in model.network.unit_groups() if model.network.growth.copies else ():
        for owner in group.order:
            if owner != BASE:
                _within(f"groups.{group.name}.units.{owner}", group.units.need(owner), 0, group.count(BASE) - 1)


def _check_parts(model: Parts) -> None:
    """Which numbers of which layers the router reads."""
    reference = own_tensors(model.router.reference)
    if "columns" not in reference:
        return
    numbers = 2 * MAX_FEATURES * model.network.depth
    parts = reference.get("parts")
    if parts is not None:
        deepest = model.network.depth if model.network.growth.copies else model.config.trunk_layers
        _within(f"{REFERENCE}.parts", parts[:, 0], 0, deepest)
        _within(f"{REFERENCE}.parts", parts[:, 1], min(MEAN, EDGE, PLAIN_MEAN), max(MEAN, EDGE, PLAIN_MEAN))
        _within(f"{REFERENCE}.parts", parts[:, 2], 0, 2**24)
        numbers = int(parts[:, 2].sum())
    _within(f"{REFERENCE}.columns", reference["columns"], 0, numbers - 1)


def _within(name: str, numbers: Tensor, least: int, largest: int) -> None:
    if numbers.numel() and not (least <= int(numbers.min()) and int(numbers.max()) <= largest):
        raise CheckpointError(
            f"{name} has numbers from {int(numbers.min())} to {int(numbers.max())}, expected {least} to {largest}. "
            "Its .safetensors file was edited; copy the whole folder again."
        )
