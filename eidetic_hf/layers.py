"""The layers of a masked network: units owned by tasks, projections made of segments, one norm per task.

A **unit** (an attention head, an MLP neuron) is a run of rows in every projection that takes part in it;
out-projections are stored transposed, so that this holds for them too. A `UnitGroup` keeps the books of one kind of
unit in one layer: which task owns which unit, which are still in the pool. Its member `TaskLinear`s hold the rows,
packed as

    [ segment of the first task | segment of the second | ... | pool ]

so that the units a task sees, its ancestors' and its own, are a range of rows that starts at the first: a view, no
copy. Where they are not (a task that skips an ancestor, or masks some of its units out), the rows are gathered once
and cached. What a task does not see is never read, not even to be multiplied by zero.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .architectures import DECODER_LAYERS

POOL = "pool"
LEARNING = "learning"


def task_key(name: str) -> str:
    """The component of a tensor's name that says which task owns it: `@agnews`. Dots are written `%2E`."""
    return "@" + name.replace(".", "%2E")


@dataclass(frozen=True)
class View:
    """Which subnetwork a forward pass runs.

    Attributes:
        key: `task_key` of a committed task, or `LEARNING`.
        teacher: run the network being learned with every unit, as it was before pruning.
        probe: importance measure to accumulate in the backward pass (`"fisher"` or `"taylor"`), or `None`.
        token_mask: 1 for real tokens and 0 for padding, `(batch, sequence)`; `None` if all are real.
        decoder_token_mask: the same for what a decoder reads beside its encoder.
        batch: number of sequences, for code that flattens them into one list of tokens; known while probing.
        whole_vocabulary: whether it knows every token, as the router does; else those that the task knows.
    """

    key: str
    teacher: bool = False
    probe: str | None = None
    token_mask: Tensor | None = None
    decoder_token_mask: Tensor | None = None
    batch: int = 0
    whole_vocabulary: bool = False

    def in_decoder(self) -> View:
        """This view, as the units of a decoder beside an encoder need it."""
        return replace(self, token_mask=self.decoder_token_mask)


class _Running(threading.local):
    """The view of the forward pass in progress, one per thread.

    Not a `ContextVar`: `torch.compile` can not look into one, and would break the graph in every layer. A forward pass
    never waits for anything, so coroutines in one thread do not meet in it, either.
    """

    view: View | None = None


_RUNNING = _Running()


@contextmanager
def use_view(view: View) -> Iterator[None]:
    """Run a forward pass on one task's subnetwork; each thread has its own."""
    before = _RUNNING.view
    _RUNNING.view = view
    try:
        yield
    finally:
        _RUNNING.view = before


def running_view() -> View | None:
    """The view of the forward pass in progress; `None` outside of one."""
    return _RUNNING.view


def current_view() -> View:
    """The view of the forward pass in progress.

    Raises:
        RuntimeError: outside of `EideticModel.forward`.
    """
    view = _RUNNING.view
    if view is None:
        raise RuntimeError(
            "A task layer was called outside of EideticModel.forward, so it does not know its task. "
            "Call model(**inputs, task=...) instead of model.backbone(**inputs)."
        )
    return view


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


class TaskLinear(nn.Module):
    """A projection whose rows belong to units, each unit to one task or the pool.

    Takes the place of an `nn.Linear`. In-projection: `(..., in_features)` to `(..., units seen * width)`.
    Out-projection: `(..., units seen * width)` to `(..., out_features)`; its bias, which is added to the residual
    stream, is private to each task.

    Args:
        weight: of the pretrained projection, `(out_features, in_features)`.
        bias: of the pretrained projection, `(out_features,)`, or `None`.
        group: the units that the rows (in-projection) or columns (out-projection) belong to.
        is_output: whether this is the group's out-projection.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, group: UnitGroup, is_output: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.is_output = is_output
        self.width = (self.in_features if is_output else self.out_features) // group.count(POOL)
        self._group = [group]  # in a list, so that it is not registered as a child
        weight = weight.detach().t() if is_output else weight.detach()  # `pack` copies it
        self.segments = nn.ModuleDict({POOL: Segment(weight, None if bias is None or is_output else bias.detach())})
        self.biases = Slots()
        if is_output and bias is not None:
            self.biases.put(POOL, bias.detach().clone())
        self._packed: tuple[Tensor, Tensor | None] | None = None
        self._plans: dict[str, tuple[Tensor, Tensor | None, Tensor | None]] = {}
        group.members.append(self)

    @property
    def group(self) -> UnitGroup:
        """The units that the rows belong to."""
        return self._group[0]

    @property
    def weight(self) -> Tensor:
        """The pool's rows, for code that asks a projection for its dtype or device."""
        return self.segment(POOL).weight

    def segment(self, key: str) -> Segment:
        """The rows of a task, of the pool, or of the task being learned (`KeyError` if there are none)."""
        return cast(Segment, self.segments[key])

    def extra_repr(self) -> str:
        """Shape and role, for `print(model)`."""
        role = "out" if self.is_output else "in"
        return f"{self.in_features} -> {self.out_features}, {role}-projection of {self.group.name}, width={self.width}"

    # -- memory ---------------------------------------------------------------------------------------------------

    def _owned(self) -> list[Segment]:
        return [self.segment(key) for key in [*self.group.order, POOL]]

    @property
    def packed(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of all segments and the pool, in packed order."""
        assert self._packed is not None
        return self._packed

    def pack(self) -> None:
        """Lay all segments and the pool into one fresh, aligned tensor, and make each of them a view of it."""
        parts = self._owned()
        weight = torch.cat([part.weight for part in parts])
        bias = None if parts[0].bias is None else torch.cat([cast(Tensor, part.bias) for part in parts])
        start = 0
        for part in parts:
            stop = start + part.weight.shape[0]
            part._buffers["weight"] = weight[start:stop]
            if bias is not None:
                part._buffers["bias"] = bias[start:stop]
            start = stop
        self._packed = (weight, bias)
        self.group.forget_views()

    def is_packed(self) -> bool:
        """Whether every segment still is a view of the packed tensors."""
        if self._packed is None:
            return False
        for index, packed in enumerate(self._packed):
            if packed is None:
                continue
            start = packed.data_ptr()
            for part in self._owned():
                tensor = part.weight if index == 0 else part.bias
                if tensor is None or tensor.dtype != packed.dtype or tensor.device != packed.device:
                    return False
                if tensor.numel() and tensor.data_ptr() != start:
                    return False
                start += tensor.numel() * tensor.element_size()
        return True

    def _apply(self, fn: Any, recurse: bool = True) -> TaskLinear:
        super()._apply(fn, recurse)
        if self._packed is not None and not self.is_packed():  # moved to another device or dtype, piece by piece
            self.pack()
        return self

    def forget_views(self) -> None:
        """Drop cached weights."""
        self._plans.clear()

    # -- life of a task -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make a trainable working copy of the pool, and of the private bias."""
        pool, private = self.segment(POOL), self.biases.get(POOL)
        bias = None if pool.bias is None else pool.bias.clone()
        self.segments[LEARNING] = Segment(pool.weight.clone(), bias, trainable=True)
        if private is not None:
            self.biases.put(LEARNING, nn.Parameter(private.clone()))

    def end(self) -> None:
        """Drop the working copy."""
        if LEARNING in self.segments:
            del self.segments[LEARNING]
        self.biases.put(LEARNING, None)

    def rows(self, units: Tensor) -> Tensor:
        """Row numbers of units given by number, `(units * width,)`."""
        if self.width == 1:
            return units
        return (units.unsqueeze(1) * self.width + torch.arange(self.width, device=units.device)).flatten()

    def stage(self, kept: Tensor, recycle_std: float | None) -> tuple[Segment, Segment]:
        """Copies of the kept rows of the working copy, and of the pool without them; nothing is changed."""
        working, pool = self.segment(LEARNING), self.segment(POOL)
        mask = kept.repeat_interleave(self.width)
        owned = Segment(working.weight.detach()[mask], None if working.bias is None else working.bias.detach()[mask])
        weight, bias = pool.weight[~mask], None if pool.bias is None else pool.bias[~mask]
        if recycle_std is not None:
            weight = torch.randn_like(weight) * recycle_std
            bias = None if bias is None else torch.zeros_like(bias)
        return owned, Segment(weight, bias)

    def replace(self, key: str, segment: Segment, pool: Segment) -> None:
        """Take over what `stage` returned."""
        self.segments[key] = segment
        self.segments[POOL] = pool
        bias = self.biases.get(LEARNING)
        if bias is not None:
            self.biases.put(key, bias.detach().clone())
        self.pack()

    def rebuild(self, key: str, n_units: int) -> None:
        """Make room for a committed task's tensors, which a checkpoint will fill."""
        private = self.biases.get(POOL)
        self.segments[key] = self.segment(POOL).room(n_units * self.width)
        if private is not None:
            self.biases.put(key, torch.zeros_like(private))

    def expand(self, n_units: int, std: float) -> None:
        """Add rows to the pool: zeros in an out-projection, else drawn from a normal distribution."""
        pool = self.segment(POOL)
        new = pool.room(n_units * self.width)
        new.weight.normal_(0, 0 if self.is_output else std)
        bias = None if pool.bias is None or new.bias is None else torch.cat([pool.bias, new.bias.zero_()])
        self.segments[POOL] = Segment(torch.cat([pool.weight, new.weight]), bias)
        self.pack()

    # -- forward --------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    @torch.no_grad()
    def _gather(self, view: UnitView) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a view: slices of the packed tensors where its units are the first ones."""
        weight, bias = self.packed
        if view.positions is None:
            stop = view.count * self.width
            return weight[:stop], None if bias is None else bias[:stop]
        rows = self.rows(view.positions)
        return weight[rows], None if bias is None else bias[rows]

    @torch.inference_mode(False)
    def _plan(self, key: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
        plan = self._plans.get(key)
        if plan is None:
            view = self.group.view(key)
            weight, bias = self._gather(view)
            gates = None
            if self.is_output:
                weight, bias = weight.t(), self.biases.get(key)
                if view.gates is not None:
                    gates = view.gates.repeat_interleave(self.width)
            plan = self._plans[key] = (weight, bias, gates)
        return plan

    def forward(self, hidden: Tensor) -> Tensor:
        """Project with the units that the current view sees (see the class for shapes)."""
        view = current_view()
        if view.key == LEARNING:
            return self._learning_output(hidden, view) if self.is_output else self._learning_input(hidden, view)
        weight, bias, gates = self._plan(view.key)
        return F.linear(hidden if gates is None else hidden * gates, weight, bias)

    def _learning_weights(self, view: View) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Ancestors' weight and bias, then the kept rows of the working copy's."""
        ancestors, _, kept = self.group.learning_view(view.teacher)
        key = f"{LEARNING}:{view.teacher}"
        if key not in self._plans:
            self._plans[key] = (*self._gather(ancestors), None)
        working = self.segment(LEARNING)
        weight, bias = working.weight, working.bias
        if kept is not None:
            rows = self.rows(kept)
            weight = weight.index_select(0, rows)
            bias = None if bias is None else bias.index_select(0, rows)
        return self._plans[key][0], self._plans[key][1], weight, bias

    def _learning_input(self, hidden: Tensor, view: View) -> Tensor:
        old_weight, old_bias, weight, bias = self._learning_weights(view)
        # Two products instead of one over joined weights: no gradient is computed for what is frozen.
        parts = [F.linear(hidden, w, b) for w, b in ((old_weight, old_bias), (weight, bias)) if len(w)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _learning_output(self, hidden: Tensor, view: View) -> Tensor:
        old_weight, _, weight, _ = self._learning_weights(view)
        _, kept_ancestors, kept = self.group.learning_view(view.teacher)
        group, bias = self.group, self.biases.get(LEARNING)
        view = view.in_decoder() if group.is_decoder and view.probe is not None else view
        old, new = hidden.split([len(old_weight), len(weight)], dim=-1)
        output = None
        if len(old_weight):
            gates = 1 + group.gates.need(LEARNING)
            if kept_ancestors is not None:
                gates = gates[kept_ancestors]
            old = old * gates.repeat_interleave(self.width).to(old.dtype)
            if view.probe is not None:
                old = UnitProbe.apply(old, group.importance("_ancestors"), kept_ancestors, view)
            output = F.linear(old, old_weight.t(), None if len(weight) else bias)
        if len(weight):
            if view.probe is not None:
                new = UnitProbe.apply(new, group.importance(), kept, view)
            own = F.linear(new, weight.t(), bias)
            output = own if output is None else output + own
        assert output is not None
        return output


class TaskTable(TaskLinear):
    """A table with one column per unit, such as relative position biases of heads; a unit's column is its row here.

    Takes the place of an `nn.Embedding`: indices `(...)` to `(..., units seen)`.

    Args:
        table: of the pretrained embedding, `(entries, units)`.
        group: the units that the columns belong to.
    """

    def __init__(self, table: Tensor, group: UnitGroup) -> None:
        super().__init__(table.t(), None, group, is_output=False)

    def forward(self, indices: Tensor) -> Tensor:
        """Look up the columns that the current view sees (see the class for shapes)."""
        view = current_view()
        if view.key != LEARNING:
            return F.embedding(indices, self._plan(view.key)[0].t())
        old, _, new, _ = self._learning_weights(view)
        return F.embedding(indices, torch.cat([old, new]).t())


class JoinedLinear(nn.Module):
    """Several in-projections in place of one module that computed them at once; their outputs lie side by side.

    Args:
        parts: the in-projections, in the order of their outputs.
    """

    def __init__(self, parts: list[TaskLinear]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, hidden: Tensor) -> Tensor:
        """Project `(..., in_features)` to `(..., units seen * width of all parts)`."""
        return torch.cat([part(hidden) for part in self.parts], dim=-1)


class TaskNorm(nn.Module):
    """A norm with one parameter set per task; the original class does the arithmetic.

    Args:
        norm: the pretrained norm; its parameters stay as what a new task starts from.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.tasks = nn.ModuleDict({POOL: freeze(norm)})

    def begin(self) -> None:
        """Make a trainable copy of the pretrained norm."""
        self.tasks[LEARNING] = thaw(deepcopy(self.tasks[POOL]))

    def end(self) -> None:
        """Drop the trainable copy."""
        if LEARNING in self.tasks:
            del self.tasks[LEARNING]

    def commit(self, key: str) -> None:
        """Give `key` a frozen copy of the norm being learned."""
        self.tasks[key] = freeze(deepcopy(self.tasks[LEARNING]))

    def rebuild(self, key: str) -> None:
        """Make room for a committed task's tensors, which a checkpoint will fill (a shallow copy: it is cheaper)."""
        pool = self.tasks[POOL]
        norm = pool.__new__(type(pool))
        norm.__dict__ = {**pool.__dict__, "_parameters": dict(pool._parameters), "_modules": dict(pool._modules)}
        norm.__dict__["_buffers"] = {
            name: None if buffer is None else torch.empty_like(buffer) for name, buffer in pool._buffers.items()
        }
        self.tasks[key] = norm

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Normalize `(..., hidden)` with the current task's parameters."""
        return self.tasks[current_view().key](hidden, *args, **kwargs)
