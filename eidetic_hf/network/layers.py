"""The layers of a masked network: projections made of segments, one norm per task.

The rows of a projection belong to units, see `units.py`; out-projections are stored transposed, so that this holds for
them too. Rows are packed as

    [ segment of the first task | segment of the second | ... | pool ]

so that the units a task sees, its ancestors' and its own, are a range of rows that starts at the first: a view, no
copy. Where they are not (a task that skips an ancestor, or masks some of its units out), the rows are gathered once
and cached, see `WeightCache`. What a task does not see is never read, not even to be multiplied by zero.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..views import BASE, LEARNING, POOL, View, current_view, private_key
from .importance import UnitProbe
from .storage import Place, Segment, Slots, Undo, freeze, named_tensors, shell, thaw
from .units import LEARNING_KEYS, LearningDifference, Projection, UnitGroup, UnitView, beside_key, learning_key

# Names of the tensors of a segment, whose rows lie in parallel.
_LEAVES = ("weight", "bias")


class _Copies(NamedTuple):
    """Copies that the task being learned reads in a projection.

    Attributes:
        columns: numbers of the features of their units, in base's order, `(copies * width,)`.
        weight: their rows, `(copies * width, features)`.
        bias: of an in-projection, `(copies * width,)`.
    """

    columns: Tensor
    weight: Tensor
    bias: Tensor | None


class _Beside(NamedTuple):
    """What one task adds to base in a projection.

    Attributes:
        columns: numbers of the features of units that it has copied, in base's order, `(copies * width,)`.
        weight: of the copies: of an in-projection `(copies * width, in_features)`, of an out-projection
            `(out_features, copies * width)`.
        bias: of the copies; of an out-projection the task's private one.
        gates: of an out-projection, a factor for each of base's features, `(units * width,)`.
        copy_gates: the same for the copies' features, `(copies * width,)`; `None` where all are 1.
    """

    columns: Tensor
    weight: Tensor
    bias: Tensor | None
    gates: Tensor | None
    copy_gates: Tensor | None


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
        self.width = (self.in_features if is_output else self.out_features) // group.total
        self._group = [group]  # in a list, so that it is not registered as a child
        weight = weight.detach().t() if is_output else weight.detach()  # `pack` copies it
        pretrained = Segment(weight, None if bias is None or is_output else bias.detach())
        self.segments = nn.ModuleDict(group.growth.segments(pretrained))
        self._rows = group.growth.rows()
        for key in self.segments:
            self._rows.place(key, self._place(key))
        self.biases = Slots()
        if is_output and bias is not None:
            self.biases.put(POOL, bias.detach().clone())
        self._plans: dict[str, Any] = {}
        group.members.append(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}

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

    def _place(self, key: str) -> Place:
        return Place(self.segment(key), _LEAVES)

    def read(self, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """Copies of weight and bias of the units in some places."""
        weight, bias = self._rows.gather(self.rows(places))
        return cast(Tensor, weight), bias

    def pack(self) -> None:
        """Lay all segments and the pool into one fresh, aligned tensor, and make each of them a view of it."""
        self._rows.pack()
        self.group.forget_views()

    def lay(self) -> None:
        """Make memory for all segments, as `pack` does, and leave it to whoever reads them from a file to fill it."""
        self._rows.lay()
        self.group.forget_views()

    def is_packed(self) -> bool:
        """Whether every segment still is a view of the packed tensors."""
        return self._rows.is_packed()

    def _apply(self, fn: Any, recurse: bool = True) -> TaskLinear:
        super()._apply(fn, recurse)
        if self._rows.is_laid and not self.is_packed():  # moved to another device or dtype, piece by piece
            self.pack()
        return self

    def forget_views(self) -> None:
        """Drop cached weights."""
        self.group.cache.forget(self._plans)

    def forget_learning_views(self) -> None:
        """Drop cached weights of the task being learned."""
        for key in LEARNING_KEYS:
            self._plans.pop(key, None)

    # -- life of a task -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin(self, copied: Tensor | None, gates: Tensor | None = None) -> None:
        """Make a trainable working copy, and one of the private bias.

        Args:
            copied: places of the units that it is of; `None` for the pool.
            gates: a factor for what each of them puts out, `(units,)`.
        """
        pool, private = self.segment(POOL), self.biases.get(POOL)
        weight, bias = (pool.weight, pool.bias) if copied is None else self.read(copied)
        if gates is not None and self.is_output:
            weight = weight * gates.repeat_interleave(self.width).unsqueeze(1)
        working = (weight.clone(), None if bias is None else bias.clone())
        if LEARNING in self.segments:  # other units were chosen: an optimizer may hold the Parameters
            for leaf, values in zip(_LEAVES, working, strict=True):
                if values is not None:
                    getattr(self.segment(LEARNING), leaf).copy_(values)
            return
        self.segments[LEARNING] = Segment(*working, trainable=True)
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
        return owned, self.group.growth.rest(pool, mask, recycle_std)

    def snapshot(self) -> Undo:
        """What `undo_commit` needs."""
        self._mend()
        return self._rows.snapshot()

    def _mend(self) -> None:
        if self._rows.is_torn():
            self.pack()

    def replace(self, key: str, segment: Segment, pool: Segment) -> None:
        """Take over what `stage` returned."""
        self._mend()
        self.segments[key] = segment
        self._rows.hand_over(key, self._place(key), Place(pool, _LEAVES).tensors())
        bias = self.biases.get(LEARNING)
        if bias is not None:
            self.biases.put(key, bias.detach().clone())

    def undo_commit(self, key: str, undo: Undo) -> None:
        """Take a commit back, to the last bit, however far it came."""
        self._rows.take_back(undo, self._place(POOL))
        if key in self.segments:
            del self.segments[key]
        self.biases.put(key, None)
        for name in (key, beside_key(key)):
            self._plans.pop(name, None)

    def rebuild(self, key: str, n_units: int) -> None:
        """Make room for a committed task's tensors, which a checkpoint will fill."""
        private = self.biases.get(POOL)
        self.segments[key] = self.segment(POOL).room(n_units * self.width)
        self._rows.place(key, self._place(key))
        if private is not None:
            self.biases.put(key, torch.zeros_like(private))

    def drop(self, key: str) -> None:
        """Let a committed task go. What is left has to be packed next."""
        self._mend()
        self._rows.drop(key)
        del self.segments[key]
        self.biases.put(key, None)

    def books(self) -> Any:
        """What `put_books` needs, without any tensor's values."""
        self._mend()
        return self._rows.books()

    def put_books(self, books: Any) -> None:
        """Be as it was when `books` was called; what is registered comes back with its `Arrangement`."""
        self._rows.put_books(books)

    def keep_in_pool(self, kept: Tensor) -> None:
        """Leave these units in the pool, `(units,)` boolean, and no other. It has to be packed next."""
        pool, rows = self.segment(POOL), kept.repeat_interleave(self.width)
        self._put_pool(Segment(pool.weight[rows], None if pool.bias is None else pool.bias[rows]))

    def return_to_pool(self, like: Projection, units: Tensor, n_new: int, order: Tensor, std: float) -> None:
        """Add units to the pool. It has to be packed next.

        Args:
            like: the same projection with every pretrained unit in its pool.
            units: numbers of those to take over from there, `(units,)`.
            n_new: how many to add after them that no backbone came with, as `expand` does.
            order: places of all units of the pool in the new one, `(all units,)`.
            std: as in `expand`.
        """
        pool, theirs, rows = self.segment(POOL), like.segment(POOL), self.rows(units)
        new = pool.room(n_new * self.width)
        new.weight.normal_(0, 0 if self.is_output else std)
        weight = torch.cat([pool.weight, theirs.weight[rows].to(pool.weight), new.weight])
        bias = None
        if pool.bias is not None and theirs.bias is not None and new.bias is not None:
            bias = torch.cat([pool.bias, theirs.bias[rows].to(pool.bias), new.bias.zero_()])
        order = self.rows(order)
        self._put_pool(Segment(weight[order], None if bias is None else bias[order]))

    def resize_pool(self, n_units: int) -> None:
        """Make room for a pool of `n_units`, which a checkpoint will fill."""
        self._put_pool(self.segment(POOL).room(n_units * self.width))

    def expand(self, n_units: int, std: float) -> None:
        """Add rows to the pool: zeros in an out-projection, else drawn from a normal distribution."""
        pool = self.segment(POOL)
        new = pool.room(n_units * self.width)
        new.weight.normal_(0, 0 if self.is_output else std)
        bias = None if pool.bias is None or new.bias is None else torch.cat([pool.bias, new.bias.zero_()])
        self._put_pool(Segment(torch.cat([pool.weight, new.weight]), bias))
        self.pack()

    def shrink(self, n_units: int) -> None:
        """Take back the last `n_units` that `expand` added to the pool."""
        pool, rows = self.segment(POOL), n_units * self.width
        self._put_pool(Segment(pool.weight[:-rows], None if pool.bias is None else pool.bias[:-rows]))
        self.pack()

    def tensors_of(self, name: str, key: str, private: bool) -> dict[str, Tensor]:
        """What a task owns here, by name in the state dict.

        Args:
            name: of this module.
            key: of the task.
            private: whether what only the task itself reads is meant, its bias, or what its descendants read, too.
        """
        if not private:
            return named_tensors(self.segment(key), f"{name}.segments.{key}")
        bias = self.biases.get(key)
        return {} if bias is None else {f"{name}.biases.{key}": bias}

    def _put_pool(self, pool: Segment) -> None:
        self.segments[POOL] = pool
        self._rows.place(POOL, self._place(POOL))

    # -- forward --------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    @torch.no_grad()
    def _read(self, view: UnitView) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a view: slices of the packed tensors where its units are in a row."""
        if view.positions is None:
            start, stop = view.start * self.width, (view.start + view.count) * self.width
            weight, bias = self._rows.read(start, stop)
        else:
            return self.read(view.positions)
        return cast(Tensor, weight), bias

    def _plan(self, key: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Weight, bias and gates of a committed task, made at its first use."""
        plan = self._plans.get(key)
        return self._make_plan(key) if plan is None else plan

    @torch.inference_mode(False)
    def _make_plan(self, key: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
        view = self.group.view(key)
        weight, bias = self._read(view)
        read, gates = [weight, bias], None
        if self.is_output:
            weight, bias = weight.t(), self.biases.get(private_key(key))
            if view.gates is not None:
                gates = view.gates.repeat_interleave(self.width)
        plan = (weight, bias, gates)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # what a trace computes with is not to be kept
            return plan
        copied = 0 if view.positions is None and view.start == 0 else self._rows.copied_bytes(read)
        self._keep_plan(key, plan, copied)
        return plan

    def _keep_plan(self, key: str, plan: Any, copied: int) -> None:
        if copied:
            self.group.cache.admit(self._plans, key, plan, copied)
        else:
            self._plans[key] = plan

    def forward(self, hidden: Tensor) -> Tensor:
        """Project with the units that the current view sees (see the class for shapes)."""
        view = current_view()
        if view.beside:
            return self._output_beside(hidden, view) if self.is_output else self._input_beside(hidden, view)
        if view.key == LEARNING:
            return self._learning_output(hidden, view) if self.is_output else self._learning_input(hidden, view)
        weight, bias, gates = self._plan(view.key)
        return F.linear(hidden if gates is None else hidden * gates, weight, bias)

    def _plan_beside(self, key: str) -> _Beside:
        """What a committed task adds to base where it is computed beside others, made at its first use."""
        plan = self._plans.get(beside_key(key))
        return self._make_plan_beside(key) if plan is None else plan

    @torch.inference_mode(False)
    def _make_plan_beside(self, key: str) -> _Beside:
        difference = self.group.difference(key)
        weight, bias = self._read(difference.copies)
        read = [weight, bias]
        gates = copy_gates = None
        if self.is_output:
            gates = difference.gates.repeat_interleave(self.width)
            factors = difference.copies.gates
            copy_gates = None if factors is None else factors.repeat_interleave(self.width)
            weight, bias = weight.t(), self.biases.get(key)
        plan = _Beside(self.rows(difference.units), weight, bias, gates, copy_gates)
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            self._keep_plan(beside_key(key), plan, self._rows.copied_bytes(read))
        return plan

    def _input_beside(self, hidden: Tensor, view: View) -> Tensor:
        """Base's product for all rows, and in its place, for each task's rows, that of what the task has copied."""
        base = self.segment(BASE)
        output = F.linear(hidden, base.weight, base.bias)
        for key, rows in view.slices(len(hidden)):
            plan = self._plan_beside(key)
            output[rows].index_copy_(-1, plan.columns, F.linear(hidden[rows], plan.weight, plan.bias))
        return output

    def _output_beside(self, hidden: Tensor, view: View) -> Tensor:
        """Base's product of what the tasks read of base, each its own share, and then that of what they copied."""
        slices = [(rows, self._plan_beside(key)) for key, rows in view.slices(len(hidden))]
        gates = torch.stack([cast(Tensor, plan.gates) for _, plan in slices])
        counts = torch.tensor([rows.stop - rows.start for rows, _ in slices], device=gates.device)
        gates = gates.repeat_interleave(counts, 0, output_size=len(hidden))
        gates = gates.unflatten(0, (len(hidden), *[1] * (hidden.dim() - 2)))
        output = F.linear(hidden * gates, self.segment(BASE).weight.t())
        for rows, plan in slices:
            copies = hidden[rows].index_select(-1, plan.columns)
            if plan.copy_gates is not None:
                copies = copies * plan.copy_gates
            output[rows] += F.linear(copies, plan.weight, plan.bias)
        return output

    def _learning_weights(self, view: View) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Ancestors' weight and bias, then the kept rows of the working copy's."""
        ancestors, _, kept = self.group.learning_view(view.teacher)
        key = learning_key(view.teacher)
        if key not in self._plans:
            self._plans[key] = (*self._read(ancestors), None)
        working = self.segment(LEARNING)
        weight, bias = working.weight, working.bias
        if kept is not None:
            rows = self.rows(kept)
            weight = weight.index_select(0, rows)
            bias = None if bias is None else bias.index_select(0, rows)
        return self._plans[key][0], self._plans[key][1], weight, bias

    def _learning_copies(self, teacher: bool, difference: LearningDifference) -> tuple[_Copies, _Copies | None]:
        """The working copy, and other tasks' copies that the task being learned reads, if there are any."""
        key, working = beside_key(learning_key(teacher)), self.segment(LEARNING)
        if key not in self._plans:
            others = None
            if difference.copies.count:
                others = _Copies(self.rows(difference.units), *self._read(difference.copies))
            self._plans[key] = (self.rows(difference.own), others)
        columns, others = self._plans[key]
        return _Copies(columns, working.weight, working.bias), others

    def _learning_input(self, hidden: Tensor, view: View) -> Tensor:
        difference = self.group.learning_difference(view.teacher)
        if difference is not None:  # base is read where it lies, and no gradient is computed for it
            base = self.segment(BASE)
            output = F.linear(hidden, base.weight, base.bias)
            for copies in self._learning_copies(view.teacher, difference):
                if copies is not None:
                    output.index_copy_(-1, copies.columns, F.linear(hidden, copies.weight, copies.bias))
            return output
        old_weight, old_bias, weight, bias = self._learning_weights(view)
        # Two products instead of one over joined weights: no gradient is computed for what is frozen.
        parts = [F.linear(hidden, w, b) for w, b in ((old_weight, old_bias), (weight, bias)) if len(w)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _learning_on_base(self, hidden: Tensor, view: View, difference: LearningDifference) -> Tensor:
        """The out-projection of base's units, each with its gate, and beside it that of the copies."""
        group, places = self.group, difference.places
        gates = 1 + group.gates.need(LEARNING)
        if view.probe is not None:
            of_layer = view.in_decoder() if group.is_decoder else view
            hidden = UnitProbe.apply(hidden, group.readings(), difference.readings, of_layer)
        on_base = (gates[: len(difference.reads)] * difference.reads).repeat_interleave(self.width)
        output = F.linear(hidden * on_base.to(hidden.dtype), self.segment(BASE).weight.t(), self.biases.get(LEARNING))
        own, others = self._learning_copies(view.teacher, difference)
        output = output + F.linear(hidden.index_select(-1, own.columns), own.weight.t())
        if others is not None:
            factors = gates[places].repeat_interleave(self.width).to(hidden.dtype)
            output = output + F.linear(hidden.index_select(-1, others.columns) * factors, others.weight.t())
        return output

    def _learning_output(self, hidden: Tensor, view: View) -> Tensor:
        difference = self.group.learning_difference(view.teacher)
        if difference is not None:
            return self._learning_on_base(hidden, view, difference)
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
                old = UnitProbe.apply(old, group.reading("_ancestors"), kept_ancestors, view)
            output = F.linear(old, old_weight.t(), None if len(weight) else bias)
        if len(weight):
            if view.probe is not None:
                new = UnitProbe.apply(new, group.reading(), kept, view)
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
        if view.beside:
            return self._look_up_beside(indices, view)
        if view.key != LEARNING:
            return F.embedding(indices, self._plan(view.key)[0].t())
        difference = self.group.learning_difference(view.teacher)
        if difference is not None:
            table = self.segment(BASE).weight
            for copies in self._learning_copies(view.teacher, difference):
                table = table if copies is None else table.index_copy(0, copies.columns, copies.weight)
            return F.embedding(indices, table.t())
        old, _, new, _ = self._learning_weights(view)
        return F.embedding(indices, torch.cat([old, new]).t())

    def _look_up_beside(self, indices: Tensor, view: View) -> Tensor:
        """The columns for every sequence, one sequence after another, `(..., sequences * units)`."""
        base, found = self.segment(BASE).weight, []
        for key, rows in view.slices(view.batch):
            plan = self._plan_beside(key)
            table = base.index_copy(0, plan.columns, plan.weight)
            columns = F.embedding(indices, table.t())
            found.append(columns.repeat(*[1] * indices.dim(), rows.stop - rows.start))
        return torch.cat(found, dim=-1)


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

    def drop(self, key: str) -> None:
        """Take a commit back."""
        if key in self.tasks:
            del self.tasks[key]

    def tensors_of(self, name: str, key: str, private: bool) -> dict[str, Tensor]:
        """What a task owns here, by name in the state dict: its norm, which only the task itself reads."""
        return named_tensors(self.tasks[key], f"{name}.tasks.{key}") if private else {}

    def rebuild(self, key: str) -> None:
        """Make room for a committed task's tensors, which a checkpoint will fill."""
        self.tasks[key] = shell(self.tasks[POOL], torch.empty_like)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Normalize `(..., hidden)` with the current task's parameters, or each task's rows with its own."""
        view = current_view()
        if view.beside:
            slices = view.slices(len(hidden))
            return torch.cat([self.tasks[key](hidden[rows], *args, **kwargs) for key, rows in slices])
        return self.tasks[private_key(view.key)](hidden, *args, **kwargs)


# What stands in place of a backbone's own modules above its trunk, with tensors by owner.
TASK_MODULES = (TaskLinear, TaskNorm)
