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

from ..views import LEARNING, POOL, View, current_view
from .architectures import DECODER_LAYERS

if TYPE_CHECKING:
    from .layers import TaskLinear


def freeze(module: nn.Module, copy: bool = True) -> nn.Module:
    """Turn every Parameter below `module` into a buffer with a copy of its value, out of every optimizer's reach.

    Without `copy` the buffer keeps the Parameter's memory: for Parameters that nobody else can have seen.
    """
    for child in module.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                del child._parameters[name]
                child.register_buffer(name, parameter.detach().clone() if copy else parameter.detach())
    return module


def thaw(module: nn.Module) -> nn.Module:
    """Turn every floating-point buffer below `module` into a Parameter with a copy of its value."""
    for child in module.modules():
        for name, buffer in list(child._buffers.items()):
            if buffer is not None and buffer.is_floating_point() and name not in child._non_persistent_buffers_set:
                del child._buffers[name]
                child.register_parameter(name, nn.Parameter(buffer.detach().clone()))
    return module


class Slots(nn.Module):
    """A bag of tensors, one per task, the pool or the task being learned."""

    def get(self, key: str) -> Tensor | None:
        """The tensor of `key`, or `None`."""
        value = self._parameters.get(key)
        return value if value is not None else self._buffers.get(key)

    def need(self, key: str) -> Tensor:
        """The tensor of `key`.

        Raises:
            KeyError: if there is none.
        """
        value = self.get(key)
        if value is None:
            raise KeyError(f"There is no tensor in the slot '{key}'.")
        return value

    def put(self, key: str, value: Tensor | nn.Parameter | None) -> None:
        """Set the tensor of `key`: a `Parameter` can be trained, any other tensor is a buffer. `None` removes it."""
        self._parameters.pop(key, None)
        self._buffers.pop(key, None)
        if isinstance(value, nn.Parameter):
            self.register_parameter(key, value)
        elif value is not None:
            self.register_buffer(key, value)


class Segment(nn.Module):
    """Rows of one projection that one task owns, or the pool's.

    Args:
        weight: `(units * width, features)`.
        bias: `(units * width,)`, or `None` for out-projections and projections without one.
        trainable: whether they are Parameters (the working copy of the task being learned) or buffers.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, trainable: bool = False) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("bias", bias)):
            if value is None or not trainable:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))

    def room(self, rows: int) -> Segment:
        """A segment of `rows` rows to be filled, of the same dtype and device, and with a bias if this has one."""
        bias = None if self.bias is None else self.bias.new_empty(rows)
        return Segment(self.weight.new_empty(rows, self.weight.shape[1]), bias)


class UnitProbe(torch.autograd.Function):
    """Identity that reads, in the backward pass, how much the loss depends on each unit's output.

    With a gate g = 1 on a unit's output h, the loss's derivative by that gate is the sum over tokens of h * dL/dh.
    `"fisher"` adds up its square over sequences (Kwon et al., arXiv 2204.09656), `"taylor"` its magnitude over
    batches (|gate x gradient|, Molchanov et al., arXiv 1906.10771). Padding tokens do not count.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, scores: Tensor, index: Tensor | None, view: View) -> Tensor:
        """Pass `hidden`, `(batch, sequence, units * width)`, through.

        `scores`, `(units in all,)`, adds up importance.
        """
        ctx.save_for_backward(hidden)
        ctx.scores, ctx.index, ctx.view = scores, index, view
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Accumulate the scores of the units at `index` (all, if `None`) and hand the gradient on unchanged."""
        (hidden,), (gradient,) = ctx.saved_tensors, gradients
        units = ctx.scores.numel() if ctx.index is None else ctx.index.numel()
        if units:
            derivative = (hidden.float() * gradient.float()).unflatten(-1, (units, -1)).sum(-1)
            if derivative.dim() == 2:  # tokens of all sequences in one list, as OPT's MLP has them
                derivative = derivative.unflatten(0, (ctx.view.batch, -1))
            if ctx.view.token_mask is not None:
                derivative = derivative * ctx.view.token_mask.to(derivative.dtype).unsqueeze(-1)
            by_sequence = derivative.sum(1)
            if ctx.view.probe == "fisher":
                score = by_sequence.square().sum(0)
            else:
                score = by_sequence.sum(0).abs()
            if ctx.index is None:
                ctx.scores.add_(score)
            else:
                ctx.scores.index_add_(0, ctx.index, score)
        return gradient, None, None, None


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
    def kind(self) -> str:
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
