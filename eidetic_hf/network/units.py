"""Units and the books on who owns them.

A **unit** (an attention head, an MLP neuron) is a run of rows in every projection that takes part in it. A `UnitGroup`
keeps the books of one kind of unit in one layer: which task owns which unit, which are still in the pool. The rows
are in its members, the projections of `layers.py`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..views import BASE, LEARNING, POOL, current_view
from .architecture import DECODER_LAYERS
from .growth import FixedGrowth, Growth
from .storage import Segment, Slots, Spans, Undo, WeightCache

FIXED = FixedGrowth()

# What units are: the last part of a group's name.
UNIT_TYPES = ("heads", "cross_heads", "neurons")


def learning_key(teacher: bool) -> str:
    """What the views of the task being learned are cached by: with every unit, as its teacher, or with those kept."""
    return f"{LEARNING}:{teacher}"


@dataclass(frozen=True)
class LearningDifference:
    """What the task being learned makes of base, unit for unit, where units are copied.

    Attributes:
        reads: 1 for each of base's units that it reads as it is, else 0, `(units,)`.
        own: numbers of the units that it copies itself, `(own,)`.
        units: numbers of the units of which it reads another task's copy, `(copies,)`.
        places: of these copies among those that it may read, `(copies,)`.
        copies: the same places, as a view.
        readings: where the importance of each of base's units is read, see `UnitGroup.readings`, `(units,)`.
    """

    reads: Tensor
    own: Tensor
    units: Tensor
    places: Tensor
    copies: UnitView
    readings: Tensor


@dataclass(frozen=True)
class UnitView:
    """Units that one subnetwork sees in one group.

    Attributes:
        count: number of units.
        positions: their places in packed order, `(count,)`, or `None` where they are `count` places in a row.
        gates: a factor per unit, `(count,)`, or `None` where all are 1.
        start: the first place, where they are in a row.
    """

    count: int
    positions: Tensor | None
    gates: Tensor | None
    start: int = 0


def beside_key(key: str) -> str:
    """What the views of a committed task are cached by that is computed beside others."""
    return f"{key}:beside"


LEARNING_KEYS = tuple(
    key for teacher in (False, True) for key in (learning_key(teacher), beside_key(learning_key(teacher)))
)

# Base's whole product and the copies' beside it may take so much more than that of the gathered units alone: where a
# task masks more of base out, its units are gathered while it is being learned, too.
_DETOUR = 1.4


@dataclass(frozen=True)
class Difference:
    """What one task makes of base, unit for unit, where units are copied.

    Attributes:
        gates: a factor for each of base's units, `(units,)`: 0 where it reads another version, or none.
        units: numbers of the units of which it reads a copy, its own or another's on its branch, `(copies,)`.
        copies: the places of these copies, and the factor for each.
    """

    gates: Tensor
    units: Tensor
    copies: UnitView


class Projection(Protocol):
    """A member of a group: a projection whose rows belong to the group's units.

    Attributes:
        width: rows of a unit.
        is_output: whether it is the group's out-projection.
    """

    width: int
    is_output: bool

    def read(self, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """Copies of weight and bias of the units in some places."""
        ...

    def segment(self, key: str) -> Segment:
        """The rows of a task, of the pool, or of the task being learned."""
        ...

    def rows(self, units: Tensor) -> Tensor:
        """Row numbers of units given by number."""
        ...

    def begin(self, copied: Tensor | None, gates: Tensor | None) -> None:
        """Make a trainable working copy of the pool, or of the units in some places, with gates on them."""
        ...

    def end(self) -> None:
        """Drop the working copy."""
        ...

    def stage(self, kept: Tensor, recycle_std: float | None) -> tuple[Segment, Segment]:
        """Copies of the kept rows of the working copy, and of the pool without them."""
        ...

    def replace(self, key: str, segment: Segment, pool: Segment) -> None:
        """Take over what `stage` returned."""
        ...

    def snapshot(self) -> Undo:
        """What `undo_commit` needs."""
        ...

    def undo_commit(self, key: str, undo: Undo) -> None:
        """Take a commit back, to the last bit."""
        ...

    def rebuild(self, key: str, n_units: int) -> None:
        """Make room for a committed task."""
        ...

    def drop(self, key: str) -> None:
        """Let a committed task go."""
        ...

    def books(self) -> Any:
        """What `put_books` needs."""
        ...

    def put_books(self, books: Any) -> None:
        """Be as it was when `books` was called."""
        ...

    def keep_in_pool(self, kept: Tensor) -> None:
        """Leave these units in the pool, and no other."""
        ...

    def return_to_pool(self, like: Projection, units: Tensor, n_new: int, order: Tensor, std: float) -> None:
        """Add units to the pool, pretrained and new ones."""
        ...

    def resize_pool(self, n_units: int) -> None:
        """Make room for a pool."""
        ...

    def expand(self, n_units: int, std: float) -> None:
        """Add units to the pool."""
        ...

    def shrink(self, n_units: int) -> None:
        """Take back the last that `expand` added."""
        ...

    def pack(self) -> None:
        """Lay all rows into one piece of memory."""
        ...

    def forget_views(self) -> None:
        """Drop cached weights."""
        ...

    def forget_learning_views(self) -> None:
        """Drop those of the task being learned."""
        ...


class UnitGroup(nn.Module):
    """The books of one kind of unit in one layer. Invariant: every unit is in one segment or in the pool.

    Args:
        name: such as `layers.2.heads`.
        n_units: units of the backbone in this group.
        cache: what bounds the copies that all layers of a network keep; one of its own, if none is given.
        growth: how tasks come to units.
    """

    def __init__(self, name: str, n_units: int, cache: WeightCache | None = None, growth: Growth = FIXED) -> None:
        super().__init__()
        self.name = name
        self.growth = growth
        self.cache = WeightCache() if cache is None else cache
        self.owners = Spans()
        self.ancestors: dict[str, list[str]] = {}
        self.members: list[Projection] = []
        self.units = Slots()
        growth.lay(self, n_units)
        self.gates = Slots()
        self.progress = Slots()
        self._readings: Tensor | None = None
        self._cache: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        committed = {key: view for key, view in self._cache.items() if key not in LEARNING_KEYS}
        return {**self.__dict__, "_cache": committed}

    @property
    def order(self) -> list[str]:
        """The tasks that own units, in commit order."""
        return self.owners.order

    def count(self, key: str) -> int:
        """Number of units that a task or the pool owns."""
        ids = self.units.get(key)
        return 0 if ids is None else ids.numel()

    def _units_of(self, keys: list[str]) -> int:
        """Number of units that several tasks own."""
        return sum(stop - start for start, stop in self.owners.runs(keys))

    @property
    def total(self) -> int:
        """Number of units in the group."""
        return self.owners.total + self.count(POOL)

    @property
    def unit_type(self) -> str:
        """What its units are, one of `UNIT_TYPES`."""
        return self.name.rpartition(".")[2]

    @property
    def is_decoder(self) -> bool:
        """Whether the group lies in a decoder beside an encoder."""
        return self.name.startswith(DECODER_LAYERS)

    def seen(self) -> int:
        """Number of units that the current view sees."""
        view = current_view()
        if view.beside:
            return self.count(BASE)
        if view.key != LEARNING:
            return self.view(view.key).count
        if self.learning_difference(view.teacher) is not None:
            return self.count(BASE)
        ancestors, _, kept = self.learning_view(view.teacher)
        return ancestors.count + (self.kept().numel() if kept is None else kept.numel())

    @property
    def device(self) -> torch.device:
        """Where the books are kept."""
        return self.units.need(POOL).device

    def kept(self, suffix: str = "") -> Tensor:
        """Which free units the task being learned still keeps, boolean, `(units,)`.

        With `suffix="_ancestors"`: which of its ancestors' units.
        """
        return self.progress.need(f"kept{suffix}")

    def importance(self, suffix: str = "") -> Tensor:
        """Importance of the units of `kept` that probes added up in the steps that are done, `(units,)`."""
        return self.progress.need(f"importance{suffix}")

    def reading(self, suffix: str = "") -> Tensor:
        """What probes read of the units of `kept` in the step in progress, by this process alone, `(units,)`."""
        own = len(self.importance())
        return self.readings()[own:-1] if suffix else self.readings()[:own]

    def readings(self) -> Tensor:
        """All of `reading`, the units that it trains and then its ancestors'; and a last one that means nothing."""
        total = self.importance()
        size = len(total) + len(self.importance("_ancestors")) + 1
        if self._readings is None or len(self._readings) != size or self._readings.device != total.device:
            self._readings = total.new_zeros(size)
        return self._readings

    def positions(self, keys: list[str]) -> Tensor:
        """Places of the units of these tasks in packed order, `(units,)`."""
        ranges = [torch.arange(start, stop) for start, stop in self.owners.runs(keys)]
        return torch.cat(ranges).to(self.device) if ranges else torch.zeros(0, dtype=torch.long, device=self.device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def view(self, key: str) -> UnitView:
        """What a committed task sees: its ancestors' units but those that its gates mask out, then its own.

        With `BASE`: all of base's.
        """
        if key not in self._cache:
            keys = [BASE] if key == BASE else [*self.ancestors[key], key]
            gates, read = self.gates.get(key), None
            if gates is not None:
                gates = torch.cat([gates, gates.new_ones(self.count(key))])
                read = gates != 0
                if bool(read.all()):
                    read = None
                else:
                    gates = gates[read]
                if bool((gates == 1).all()):
                    gates = None
            self._cache[key] = self._view_of(keys, read, gates)
        return self._cache[key]

    @torch.inference_mode(False)
    @torch.no_grad()
    def difference(self, key: str) -> Difference:
        """What a committed task makes of base, where units are copied."""
        name = beside_key(key)
        if name not in self._cache:
            keys, base = [*self.ancestors[key], key], self.count(BASE)
            gates = self.gates.need(key)
            gates = torch.cat([gates, gates.new_ones(self.count(key))])
            ids = torch.cat([self.units.need(owner) for owner in keys])
            read = (gates[base:] != 0).nonzero().squeeze(1) + base
            factors = gates[read]
            view = self._view_of(keys, read, None if bool((factors == 1).all()) else factors)
            self._cache[name] = Difference(gates[:base], ids[read].long(), view)
        return self._cache[name]

    @torch.inference_mode(False)
    @torch.no_grad()
    def learning_view(self, teacher: bool) -> tuple[UnitView, Tensor | None, Tensor | None]:
        """What the task being learned sees: ancestors' units, which of these it keeps, which pool units it keeps.

        Returns:
            The ancestors' view; indices into the ancestors' units and into the pool's, or `None` for all of them.
        """
        key = learning_key(teacher)
        if key not in self._cache:
            masks = ("opened", "") if teacher else ("kept_ancestors", "kept")
            kept = [self._index(self.progress.get(name)) for name in masks]
            self._cache[key] = (self._view_of(self.ancestors[LEARNING], kept[0], None), kept[0], kept[1])
        return self._cache[key]

    @torch.inference_mode(False)
    @torch.no_grad()
    def learning_difference(self, teacher: bool) -> LearningDifference | None:
        """What the task being learned makes of base; `None` where its units are to be gathered.

        So it is where units are not copied, or base's whole product would be a detour.
        """
        name = beside_key(learning_key(teacher))
        if name not in self._cache:
            self._cache[name] = self._learning_difference(teacher) if self.growth.copies else None
        return self._cache[name]

    def _learning_difference(self, teacher: bool) -> LearningDifference | None:
        mask, owned = (
            self.progress.need(name) for name in (("opened", "kept") if teacher else ("kept_ancestors", "kept"))
        )
        owners, base = self.ancestors[LEARNING], self.count(BASE)
        places = mask[base:].nonzero().squeeze(1) + base
        copied = len(owned) + len(places)
        seen = int(mask[:base].sum()) + copied
        if not bool(owned.all()) or base + copied > _DETOUR * seen:
            return None
        ids = torch.cat([self.units.need(owner) for owner in owners]).long()
        own = ids[self.progress.need("chosen")]
        reads = mask[:base].to(self.members[-1].segment(POOL).weight.dtype)
        readings = torch.full((base,), len(owned) + len(mask), device=ids.device)
        readings[own] = torch.arange(len(own), device=ids.device)
        for read in (mask[:base].nonzero().squeeze(1), places):
            readings[ids[read]] = len(owned) + read
        return LearningDifference(reads, own, ids[places], places, self._view_of(owners, places, None), readings)

    def _view_of(self, keys: list[str], read: Tensor | None, gates: Tensor | None) -> UnitView:
        """The view of some tasks' units, or of those that `read` picks, a mask or indices."""
        runs = self.owners.runs(keys)
        if read is None and len(runs) <= 1:  # nothing to look up, so that `torch.compile` keeps one graph
            start, stop = runs[0] if runs else (0, 0)
            return UnitView(stop - start, None, gates, start if start < stop else 0)
        positions = self.positions(keys) if read is None else self.positions(keys)[read]
        count = len(positions)
        start = int(positions[0]) if count else 0
        is_run = torch.equal(positions, torch.arange(start, start + count, device=positions.device))
        return UnitView(count, None, gates, start) if is_run else UnitView(count, positions, gates)

    @staticmethod
    def _index(mask: Tensor | None) -> Tensor | None:
        if mask is None or bool(mask.all()):
            return None
        return mask.nonzero().squeeze(1)

    def reads(self, key: str) -> dict[str, int]:
        """Number of units that a committed task reads of each owner: of its ancestors, then of itself."""
        owners = [*self.ancestors[key], key]
        counts, gates = [self.count(owner) for owner in owners], self.gates.get(key)
        if gates is not None:
            counts[:-1] = [int((part != 0).sum()) for part in gates.split(counts[:-1])]
        return dict(zip(owners, counts, strict=True))

    def make_views(self) -> None:
        """Look up what every committed task sees: inside of a graph that is being traced, nobody can."""
        for key in self.ancestors:
            if key != LEARNING:
                self.view(key)
                if self.growth.copies:
                    self.difference(key)

    def forget_views(self) -> None:
        """Drop all cached views, after memory changed."""
        self._cache.clear()
        for member in self.members:
            member.forget_views()

    def forget_learning_views(self) -> None:
        """Drop the views of the task being learned, after its masks changed: what committed tasks see never does."""
        for key in LEARNING_KEYS:
            self._cache.pop(key, None)
        for member in self.members:
            member.forget_learning_views()

    def n_inherited(self) -> int:
        """Number of places that the task being learned may read of others."""
        return self._units_of(self.ancestors[LEARNING])

    def begin(self, ancestors: list[str], own: float = 1.0) -> None:
        """Open the books for a task.

        Args:
            ancestors: owners of what it may read.
            own: share of base's units that it copies, where units are copied.
        """
        self.ancestors[LEARNING] = ancestors
        self.work_on(self.growth.begin(self, own))

    def work_on(self, copied: Tensor | None) -> None:
        """Make the working copy: of the pool, or of the units in some places, as their reader reads them."""
        gates = self.gates.get(LEARNING)
        factor = None if copied is None or gates is None else 1 + gates.detach()[self.progress.need("chosen")]
        for member in self.members:
            member.begin(copied, factor)
        self.forget_learning_views()

    def open(self, kept: Tensor, read: Tensor, gates: Tensor) -> None:
        """What a task that begins trains, and what it reads.

        Args:
            kept: which of the units that it trains it keeps, `(units,)`.
            read: which of the places of others it reads, `(places,)`.
            gates: what is added to 1 on each of these, `(places,)`.
        """
        for name, mask in (("kept", kept), ("kept_ancestors", read)):
            self.progress.put(name, mask.clone().to(self.device))
        for suffix, mask in (("", kept), ("_ancestors", read)):
            self.progress.put(f"importance{suffix}", torch.zeros(len(mask), device=self.device))
        if len(read):
            dtype = self.members[-1].segment(POOL).weight.dtype
            self.gates.put(LEARNING, nn.Parameter(gates.to(self.device, dtype)))

    def reset(self) -> None:
        """Take back what was pruned, and all importance."""
        for suffix in ("", "_ancestors"):
            self.importance(suffix).zero_()
            self.reading(suffix).zero_()
        opened = self.progress.get("opened")
        self.kept().fill_(True)
        self.kept("_ancestors").copy_(torch.ones_like(self.kept("_ancestors")) if opened is None else opened)
        self.forget_learning_views()

    def end(self) -> None:
        """Drop everything that belongs to the task being learned."""
        self.ancestors.pop(LEARNING, None)
        self.gates.put(LEARNING, None)
        self.progress.clear()
        self._readings = None
        for member in self.members:
            member.end()
        self.forget_learning_views()

    def snapshot(self) -> Any:
        """What `undo_commit` needs."""
        return self.units.need(POOL), [member.snapshot() for member in self.members]

    def commit(self, key: str, recycle_std: float | None) -> None:
        """Give the kept pool units to `key`, as buffers.

        What earlier tasks own stays where it is, and so do their views; the cost does not depend on how many there
        are.
        """
        kept, gates = self.kept(), self.gates.get(LEARNING)
        staged = [member.stage(kept, recycle_std) for member in self.members]
        self.growth.take(self, key)
        if gates is not None:
            self.gates.put(key, torch.where(self.kept("_ancestors"), 1 + gates.detach(), 0))
        self.owners.add(key, self.count(key))
        self.ancestors[key] = self.ancestors[LEARNING]
        for member, (segment, pool) in zip(self.members, staged, strict=True):
            member.replace(key, segment, pool)
        self.forget_learning_views()

    def undo_commit(self, key: str, undo: Any) -> None:
        """Take a commit back, to the last bit, however far it came."""
        ids, pools = undo
        if key in self.order:
            self.owners.drop_last()
        self.ancestors.pop(key, None)
        for name in (key, beside_key(key)):
            self._cache.pop(name, None)
        self.units.put(key, None)
        self.units.put(POOL, ids)
        self.gates.put(key, None)
        for member, pool in zip(self.members, pools, strict=True):
            member.undo_commit(key, pool)
        self.forget_learning_views()

    def rebuild(self, key: str, ancestors: list[str], n_units: int) -> None:
        """Make room for a committed task's tensors, which a checkpoint will fill."""
        self.owners.add(key, n_units)
        self.ancestors[key] = ancestors
        self.units.put(key, self.units.need(POOL).new_zeros(n_units))
        inherited = self._units_of(ancestors)
        if inherited:
            self.gates.put(key, torch.ones(inherited, dtype=self.members[0].segment(POOL).weight.dtype))
        for member in self.members:
            member.rebuild(key, n_units)

    def books(self) -> Any:
        """What `put_books` needs, without any tensor's values."""
        ancestors = {key: list(keys) for key, keys in self.ancestors.items()}
        return deepcopy(self.owners), ancestors, [member.books() for member in self.members]

    def put_books(self, books: Any) -> None:
        """Be as it was when `books` was called; what is registered comes back with its `Arrangement`."""
        self.owners, self.ancestors, members = books
        for member, own in zip(self.members, members, strict=True):
            member.put_books(own)

    def drop(self, key: str) -> None:
        """Let a committed task go, which no other reads. What is left has to be packed next."""
        self.owners.drop(key)
        del self.ancestors[key]
        self.units.put(key, None)
        self.gates.put(key, None)
        for member in self.members:
            member.drop(key)

    def claim(self, key: str) -> None:
        """Let the pool be without what a task brought along that was learned elsewhere. It has to be packed next."""
        free = self.units.need(POOL)
        kept = ~torch.isin(free, self.units.need(key))
        if not bool(kept.all()):
            self.units.put(POOL, free[kept])
            for member in self.members:
                member.keep_in_pool(kept)

    def give_back(self, units: Tensor, like: UnitGroup, std: float) -> None:
        """Return units that nobody owns to the pool, at their pretrained values. It has to be packed next.

        Args:
            units: their numbers.
            like: the same group with every pretrained unit in its pool.
            std: standard deviation of in-projections of units that no backbone came with, see `expand`.
        """
        is_own = units < like.count(POOL)
        returned = torch.cat([units[is_own], units[~is_own]]).to(self.units.need(POOL))
        ids, order = torch.cat([self.units.need(POOL), returned]).sort()
        self.units.put(POOL, ids)
        for member, theirs in zip(self.members, like.members, strict=True):
            member.return_to_pool(theirs, units[is_own].long(), int((~is_own).sum()), order, std)

    def resize_pool(self, n_units: int) -> None:
        """Make room for a pool of `n_units`, which a checkpoint will fill."""
        self.units.put(POOL, torch.zeros(n_units, dtype=torch.int32))
        for member in self.members:
            member.resize_pool(n_units)

    def expand(self, n_units: int, std: float) -> None:
        """Add units to the pool: random in-projections; out-projections start at zero, so that nothing changes."""
        ids = self.units.need(POOL)
        owned = [self.units.get(key) for key in self.order]
        known = torch.cat([ids, *(each for each in owned if each is not None)])
        new_ids = torch.arange(n_units, dtype=ids.dtype, device=ids.device)
        new_ids += known.max() + 1 if known.numel() else 0
        self.units.put(POOL, torch.cat([ids, new_ids]))
        for member in self.members:
            member.expand(n_units, std)
        self.forget_views()
        self.make_views()

    def shrink(self, n_units: int) -> None:
        """Take back the last `n_units` that `expand` added to the pool."""
        self.units.put(POOL, self.units.need(POOL)[:-n_units].clone())
        for member in self.members:
            member.shrink(n_units)
        self.forget_views()
        self.make_views()
