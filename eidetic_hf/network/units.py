"""Units and the books on who owns them.

A **unit** (an attention head, an MLP neuron) is a run of rows in every projection that takes part in it. A `UnitGroup`
keeps the books of one kind of unit in one layer: which task owns which unit, which are still in the pool. The rows
are in its members, the projections of `layers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..views import LEARNING, POOL, current_view
from .architecture import DECODER_LAYERS
from .storage import Segment, Slots

if TYPE_CHECKING:
    from .layers import TaskLinear


UNIT_TYPES = ("heads", "cross_heads", "neurons")


@dataclass(frozen=True)
class UnitView:
    """Units that one subnetwork sees in one group.

    Attributes:
        count: number of units.
        positions: their places in packed order, `(count,)`, or `None` where they are simply the first `count`.
        gates: a factor per unit, `(count,)`, or `None` where all are 1.
    """

    count: int
    positions: Tensor | None
    gates: Tensor | None


class UnitGroup(nn.Module):
    """The books of one kind of unit in one layer. Invariant: every unit is in one segment or in the pool.

    Args:
        name: such as `layers.2.heads`.
        n_units: units of the backbone in this group.
    """

    def __init__(self, name: str, n_units: int) -> None:
        super().__init__()
        self.name = name
        self.order: list[str] = []
        self.ancestors: dict[str, list[str]] = {}
        self.members: list[TaskLinear] = []
        self.units = Slots()
        self.units.put(POOL, torch.arange(n_units, dtype=torch.int32))
        self.gates = Slots()
        self.progress = Slots()
        self._cache: dict[str, Any] = {}

    def count(self, key: str) -> int:
        """Number of units that a task or the pool owns."""
        ids = self.units.get(key)
        return 0 if ids is None else ids.numel()

    @property
    def total(self) -> int:
        """Number of units in the group."""
        return sum(map(self.count, [*self.order, POOL]))

    @property
    def unit_type(self) -> str:
        """What its units are: `heads`, `cross_heads` or `neurons`."""
        return self.name.rpartition(".")[2]

    @property
    def is_decoder(self) -> bool:
        """Whether the group lies in a decoder beside an encoder."""
        return self.name.startswith(DECODER_LAYERS)

    def seen(self) -> int:
        """Number of units that the current view sees."""
        view = current_view()
        if view.key != LEARNING:
            return self.view(view.key).count
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
        """Importance that probes added up for the units of `kept`, `(units,)`."""
        return self.progress.need(f"importance{suffix}")

    def positions(self, keys: list[str]) -> Tensor:
        """Places of the units of these tasks in packed order, `(units,)`."""
        starts, start = {}, 0
        for key in self.order:
            starts[key] = start
            start += self.count(key)
        ranges = [torch.arange(starts[key], starts[key] + self.count(key)) for key in keys]
        return torch.cat(ranges).to(self.device) if ranges else torch.zeros(0, dtype=torch.long, device=self.device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def view(self, key: str) -> UnitView:
        """What a committed task sees: its ancestors' units but those that its gates mask out, then its own."""
        if key not in self._cache:
            positions = self.positions([*self.ancestors[key], key])
            gates = self.gates.get(key)
            if gates is not None:
                gates = torch.cat([gates, gates.new_ones(self.count(key))])
                read = gates != 0
                if not bool(read.all()):
                    positions, gates = positions[read], gates[read]
                if bool((gates == 1).all()):
                    gates = None
            prefix = torch.equal(positions, torch.arange(len(positions), device=positions.device))
            self._cache[key] = UnitView(len(positions), None if prefix else positions, gates)
        return self._cache[key]

    @torch.inference_mode(False)
    @torch.no_grad()
    def learning_view(self, teacher: bool) -> tuple[UnitView, Tensor | None, Tensor | None]:
        """What the task being learned sees: ancestors' units, which of these it keeps, which pool units it keeps.

        Returns:
            The ancestors' view; indices into the ancestors' units and into the pool's, or `None` for all of them.
        """
        key = f"{LEARNING}:{teacher}"
        if key not in self._cache:
            positions = self.positions(self.ancestors[LEARNING])
            kept = [None if teacher else self._index(self.progress.get(name)) for name in ("kept_ancestors", "kept")]
            if kept[0] is not None:
                positions = positions[kept[0]]
            prefix = torch.equal(positions, torch.arange(len(positions), device=positions.device))
            self._cache[key] = (UnitView(len(positions), None if prefix else positions, None), kept[0], kept[1])
        return self._cache[key]

    @staticmethod
    def _index(mask: Tensor | None) -> Tensor | None:
        if mask is None or bool(mask.all()):
            return None
        return mask.nonzero().squeeze(1)

    def forget_views(self) -> None:
        """Drop cached views after ownership, masks or memory changed."""
        self._cache.clear()
        for member in self.members:
            member.forget_views()

    def begin(self, ancestors: list[str]) -> None:
        """Open the pool for a task: every free unit starts as kept."""
        device = self.device
        self.ancestors[LEARNING] = ancestors
        free, inherited = self.count(POOL), sum(map(self.count, ancestors))
        self.progress.put("kept", torch.ones(free, dtype=torch.bool, device=device))
        self.progress.put("importance", torch.zeros(free, device=device))
        self.progress.put("kept_ancestors", torch.ones(inherited, dtype=torch.bool, device=device))
        self.progress.put("importance_ancestors", torch.zeros(inherited, device=device))
        if inherited:
            dtype = self.members[-1].segment(POOL).weight.dtype
            self.gates.put(LEARNING, nn.Parameter(torch.zeros(inherited, device=device, dtype=dtype)))
        for member in self.members:
            member.begin()
        self.forget_views()

    def end(self) -> None:
        """Drop everything that belongs to the task being learned."""
        self.ancestors.pop(LEARNING, None)
        self.gates.put(LEARNING, None)
        for name in list(self.progress._buffers):
            self.progress.put(name, None)
        for member in self.members:
            member.end()
        self.forget_views()

    def snapshot(self) -> Any:
        """What `undo_commit` needs."""
        return self.units.need(POOL), [member.segment(POOL) for member in self.members]

    def commit(self, key: str, recycle_std: float | None) -> None:
        """Give the kept pool units to `key`, as buffers."""
        kept, ids, gates = self.kept(), self.units.need(POOL), self.gates.get(LEARNING)
        staged = [member.stage(kept, recycle_std) for member in self.members]
        self.units.put(key, ids[kept])
        self.units.put(POOL, ids[~kept])
        if gates is not None:
            self.gates.put(key, torch.where(self.kept("_ancestors"), 1 + gates.detach(), 0))
        self.order.append(key)
        self.ancestors[key] = list(self.ancestors[LEARNING])
        for member, (segment, pool) in zip(self.members, staged, strict=True):
            member.replace(key, segment, pool)
        self.forget_views()

    def undo_commit(self, key: str, undo: Any) -> None:
        """Take a commit back, to the last bit, however far it came."""
        ids, pools = undo
        self.order = [other for other in self.order if other != key]
        self.ancestors.pop(key, None)
        self.units.put(key, None)
        self.units.put(POOL, ids)
        self.gates.put(key, None)
        for member, pool in zip(self.members, pools, strict=True):
            if key in member.segments:
                del member.segments[key]
            member.biases.put(key, None)
            member.segments[POOL] = pool
            member.pack()
        self.forget_views()

    def rebuild(self, key: str, ancestors: list[str], n_units: int) -> None:
        """Make room for a committed task's tensors, which a checkpoint will fill."""
        self.order.append(key)
        self.ancestors[key] = ancestors
        self.units.put(key, self.units.need(POOL).new_zeros(n_units))
        inherited = sum(map(self.count, ancestors))
        if inherited:
            self.gates.put(key, torch.ones(inherited, dtype=self.members[0].segment(POOL).weight.dtype))
        for member in self.members:
            member.rebuild(key, n_units)

    def resize_pool(self, n_units: int) -> None:
        """Make room for a pool of `n_units`, which a checkpoint will fill."""
        self.units.put(POOL, torch.zeros(n_units, dtype=torch.int32))
        for member in self.members:
            member.segments[POOL] = member.segment(POOL).room(n_units * member.width)

    def expand(self, n_units: int, std: float) -> None:
        """Add units to the pool: random in-projections; out-projections start at zero, so that nothing changes."""
        ids = self.units.need(POOL)
        new_ids = torch.arange(self.total, self.total + n_units, dtype=ids.dtype, device=ids.device)
        self.units.put(POOL, torch.cat([ids, new_ids]))
        for member in self.members:
            member.expand(n_units, std)
        self.forget_views()

    def shrink(self, n_units: int) -> None:
        """Take back the last `n_units` that `expand` added to the pool."""
        self.units.put(POOL, self.units.need(POOL)[:-n_units].clone())
        for member in self.members:
            pool, rows = member.segment(POOL), n_units * member.width
            bias = None if pool.bias is None else pool.bias[:-rows].clone()
            member.segments[POOL] = Segment(pool.weight[:-rows].clone(), bias)
            member.pack()
        self.forget_views()
