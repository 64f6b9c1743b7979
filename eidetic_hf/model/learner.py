"""State of the task being learned: its clock, its masks, its search for a budget, its snapshots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from ..configuration import TaskError
from ..network.growth import CopyGrowth
from ..network.importance import importance_of
from ..network.network import Thawed
from ..network.units import UNIT_TYPES, UnitGroup
from ..views import BASE, LEARNING, POOL, View
from .pruning import DEFAULT_KEEP, SCORE_MEMORY, PruningConfig, choose_units, cubic_keep

_NO_CLOCK = (-1, -1, -1)
_NO_SEARCH = (math.nan, 0.0, 1.0, 0.0)
_SUFFIXES = ("", "_ancestors")  # the free units of a group, and those of the ancestors


_MASK = "kept"  # what the names of masks in snapshots begin with


def _mask_name(group: UnitGroup, suffix: str) -> str:
    return f"{_MASK}{suffix}|{group.name.replace('.', '|')}"


class Learner(nn.Module):
    """State of the task being learned. Invariant: what a resumed run needs is in buffers, so in every checkpoint.

    Args:
        name: the task's name.
        config: how to prune.
        groups: the network's unit groups, by name.
        model: the model, whose Parameters snapshots are taken of.

    Attributes:
        is_base: whether it is base itself, which copies no unit and knows the backbone's own tokens alone.
        expanded: units that were added for the task, by group; it gives them back if it is abandoned.
        trunk: what the first task of a random backbone trains of the trunk, which it will own.
        active_probe: importance measure to accumulate in the step in progress.
        diverged: first step after which a weight was no finite number; -1 if none was.
        has_chosen: whether the units that it copies were chosen by its data, where units are copied.
        trained: whether a run came to its end, so that nothing is missing but the commit.
        metrics: figures of its last evaluation, for the model card.
        mixes_distance: whether `forward` mixes the distance from the unpruned network into the loss; if not, the
            trainer takes it with `take_distance` and does so itself, whatever loss it has.
        targets: what the distance is over, where the trainer keeps the targets for itself.
        loss_is_used: whether the loss that `forward` returned was what a step trained on.
    """

    clock: Tensor
    planned: Tensor
    search: Tensor

    def __init__(self, name: str, config: PruningConfig, groups: Iterable[UnitGroup], model: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self._groups = list(groups)
        self._model = [model]  # in a list, so that it is not registered as a child
        self.is_base = False
        self.expanded: dict[str, int] = {}
        self.trunk: list[Thawed] = []
        self.active_probe: str | None = None
        self.diverged = -1
        self.has_chosen = False
        self.trained = False
        self.metrics: dict[str, float] = {}
        self.mixes_distance = True
        self.targets: Mapping[str, Tensor] = {}
        self.loss_is_used = False
        self._distance: tuple[Tensor, Tensor] | None = None
        device = self._groups[0].device
        # Steps at which pruning starts, pruning ends, and training stops (-1: not yet known).
        self.register_buffer("clock", torch.tensor(_NO_CLOCK, device=device))
        # Steps of the run that they are laid out for (-1: not known, as in checkpoints of the first versions).
        self.register_buffer("planned", torch.tensor(-1, device=device))
        # Bisection: reference metric, largest share known to be too small, smallest known to be good, rounds decided.
        self.register_buffer("search", torch.tensor(_NO_SEARCH, dtype=torch.float64, device=device))

    # -- the clock ------------------------------------------------------------------------------------------------

    def view(self, training: bool) -> View:
        """The subnetwork of the task being learned; in training it is probed, when it is due."""
        return View(LEARNING, probe=self.active_probe if training else None)

    def set_steps(self, max_steps: int, step: int = 0) -> None:
        """Lay out the phases over a training run, unless they are laid out for one of this length.

        A run may turn out to be of another length: resumed with more epochs, or begun again with smaller batches after
        it ran out of memory. Before pruning the phases are then laid out anew; after that, recovery takes the rest.

        Args:
            max_steps: optimizer steps of the whole run.
            step: those that it has done.
        """
        is_other = int(self.planned) not in (-1, max_steps)
        if self.start < 0 or (is_other and step < self.start):
            begins, ends = cast(float, self.config.start), cast(float, self.config.end)
            start = min(max(round(begins * max_steps), 1), max_steps)
            self.clock[:3] = torch.tensor([start, max(round(ends * max_steps), start), max_steps])
        elif is_other:
            self.clock[1:3] = torch.tensor([min(self.end, max_steps), max_steps])
        self.planned.fill_(max_steps)

    def restart(self) -> None:
        """Take back every phase, for a run that begins at its first step again: only the weights stay as they are.

        So it is after a run that was stopped, and after one that ran out of memory and tries smaller batches.
        """
        self.clock.copy_(torch.tensor(_NO_CLOCK))
        self.planned.fill_(-1)
        self.search.copy_(torch.tensor(_NO_SEARCH))
        self.drop_snapshots()
        self.trained, self.diverged = False, -1
        for group in self._groups:
            group.reset()

    @property
    def start(self) -> int:
        """Step after which pruning starts."""
        return int(self.clock[0])

    @property
    def end(self) -> int:
        """Step after which pruning is done."""
        return int(self.clock[1])

    def phase(self, step: int) -> str:
        """`"fit"`, `"prune"` or `"recover"` after `step` optimizer steps."""
        if step < self.start:
            return "fit"
        return "prune" if step < self.end else "recover"

    def reconfigure(self, config: PruningConfig) -> None:
        """Prune in another way than the task was begun with, before it has been trained.

        Raises:
            TaskError: if its phases are laid out already, or other units would have to be copied.
        """
        if self.copies and (config.own, config.select) != (self.config.own, self.config.select):
            raise TaskError(
                f"'{self.name}' was begun with own={self.config.own}, select={self.config.select!r}, and has copied "
                f"its units; it can not be trained with own={config.own}, select={config.select!r}. Drop it with "
                "model.abandon_task() and begin again."
            )
        if self.start >= 0:
            raise TaskError(
                f"'{self.name}' is being learned with {self.config}, and its phases are laid out. Train on with the "
                "same pruning=, or drop the task with model.abandon_task() and begin again."
            )
        self.config = config

    def note_divergence(self, step: int) -> None:
        """Note the first step that left a weight that is no finite number.

        Only the tensors nearest to the loss are looked at: what is not finite there comes from everywhere below.
        """
        if self.diverged < 0:
            nearest = [parameter for name, parameter in self._model[0].named_parameters() if name.startswith("heads.")]
            nearest = nearest or list(self._model[0].parameters())[-1:]
            if not all(bool(torch.isfinite(parameter).all()) for parameter in nearest):
                self.diverged = step

    def start_pruning(self, step: int, max_steps: int) -> None:
        """Leave the fit phase now, for example because its metric stopped improving.

        The later phases keep their length.
        """
        length, rest = self.end - self.start, int(self.clock[2]) - self.end
        start = min(step + 1, max_steps)
        end = min(start + length, max_steps)
        self.clock[:3] = torch.tensor([start, end, min(end + rest, max_steps)])

    def should_stop(self, step: int) -> bool:
        """Whether the run was shortened by `start_pruning` and has reached its end."""
        return 0 <= int(self.clock[2]) <= step

    @property
    def interval(self) -> int:
        """Steps between two pruning events."""
        return max((self.end - self.start) // self.config.events, 1)

    def probe(self, step: int) -> str | None:
        """Importance measure to accumulate in the step that follows `step` optimizer steps, if any."""
        if not importance_of(self.config.importance).needs_gradient or self.complete or self._by_change_alone:
            return None
        return self.config.importance if self.start - self.interval <= step < self.end else None

    # -- pruning --------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether there is nothing to prune: the whole pool is kept, or there is none."""
        everything = self.config.tolerance is None and self._keep == 1 and self._keep_ancestors == 1
        return everything or not any(group.count(POOL) or group.ancestors[LEARNING] for group in self._groups)

    def step(self, step: int) -> bool:
        """Do what is due after `step` optimizer steps; returns whether the search needs an evaluation now."""
        if self.complete or step < self.start or step > self.end:
            return False
        if step == self.start:
            self.take_snapshot("teacher", wanted=self.config.distillation > 0)
        if self.config.tolerance is not None:
            return self._search_step(step)
        if step == self.start and self._settles:
            self.prune(self._keep)
        elapsed = step - self.start
        if step == self.end or (elapsed and elapsed % self.interval == 0):
            progress = elapsed / max(self.end - self.start, 1) if step < self.end else 1.0
            keep = self._keep if self._settles else cubic_keep(progress, self._keep)
            self.prune(keep, cubic_keep(progress, self._keep_ancestors))
        return False

    @property
    def _keep(self) -> float:
        """Share of the units that it trains to keep, where it is not searched for."""
        if self.copies:
            return self.config.own if self._settles else 1.0
        return DEFAULT_KEEP if self.config.keep is None else self.config.keep

    @property
    def _keep_ancestors(self) -> float:
        """Share of the units of others to go on reading, where it is not searched for."""
        return self.config.see if self.copies else self.config.keep_ancestors

    @property
    def copies(self) -> bool:
        """Whether the task copies units."""
        return self._groups[0].growth.copies

    @property
    def _settles(self) -> bool:
        """Whether the task has copied all units, and will settle for some of the copies."""
        return self.copies and self.config.select == "last"

    @property
    def _by_change_alone(self) -> bool:
        """Whether nothing is dropped but copies, which go by how far they have changed."""
        return self._settles and self._keep_ancestors == 1

    @property
    def _searched(self) -> str:
        """What a search drops: units that the task trains, or those of others that it reads."""
        return "_ancestors" if self.copies and not self._settles else ""

    def gather_importance(self) -> None:
        """Add what probes read in the step that is done to the units' importance: of all processes, on all of them.

        So the units' importance is the same on every process, and a checkpoint of one holds all of it.
        """
        if self.active_probe is None:
            return
        parts = [(group, suffix) for group in self._groups for suffix in _SUFFIXES]
        read = reduce(torch.cat([group.reading(suffix) for group, suffix in parts]), "sum")
        sizes = [group.reading(suffix).numel() for group, suffix in parts]
        for (group, suffix), values in zip(parts, read.split(sizes), strict=True):
            group.importance(suffix).add_(values)
            group.reading(suffix).zero_()

    def finish(self) -> None:
        """Bring the network within its budget, wherever training ended."""
        if self.complete:
            return
        if self.config.tolerance is not None:
            if float(self.search[2]) < 1 or self._snapshot("good"):
                self._roll_back_unless_decided()
            return
        self.prune(self._keep, self._keep_ancestors)
        self.drop_snapshots()

    def prune(self, keep: float, keep_ancestors: float = 1.0) -> None:
        """Drop the least important free units until a share `keep` of them is left, per kind."""
        for unit_type in UNIT_TYPES:
            groups = [group for group in self._groups if group.unit_type == unit_type]
            for suffix, share in zip(_SUFFIXES, (keep, keep_ancestors), strict=True):
                kept = [group.kept(suffix) for group in groups]
                total = sum(self._units(group, suffix) for group in groups)
                if total == 0 or share >= 1:
                    continue
                count = max(round(share * total), 1)
                scores = [self.importance(group, suffix) for group in groups]
                floors = [self._floor(group, suffix, share) for group in groups]
                for group, mask in zip(groups, choose_units(scores, kept, count, floors), strict=True):
                    if self.copies and not suffix:
                        cast(CopyGrowth, group.growth).settle(group, mask)
                    group.kept(suffix).copy_(mask)
                    group.importance(suffix).mul_(SCORE_MEMORY)
        for group in self._groups:
            group.forget_learning_views()

    def _units(self, group: UnitGroup, suffix: str) -> int:
        """The number of units that shares are of: of the free ones; of base's, where the task copies units."""
        return group.count(BASE) if self.copies and not suffix else group.kept(suffix).numel()

    def _floor(self, group: UnitGroup, suffix: str, share: float) -> int:
        units = self._units(group, suffix)
        return max(math.floor(self.config.floor * share * units), 1 if units else 0)

    def importance(self, group: UnitGroup, suffix: str = "") -> Tensor:
        """Scores of a group's free units, `(units,)`; higher is kept. Its ancestors' with `suffix="_ancestors"`.

        Of copies: how far they have changed.
        """
        if self.copies and not suffix:
            return self._changes(group)
        importance = importance_of(self.config.importance)
        seed = self.config.seed * 7919 + sum(map(ord, group.name + suffix))
        return importance.score(group.importance(suffix), lambda: self._weights(group, suffix), seed)

    @staticmethod
    def _weights(group: UnitGroup, suffix: str) -> list[Tensor]:
        """The weights of each projection of a group's free units, `(units, weights)`; or of its ancestors'."""
        found = []
        for member in group.members:
            if suffix:
                weight = member.read(group.positions(group.ancestors[LEARNING]))[0]
            else:
                weight = member.segment(LEARNING).weight.detach()
            found.append(weight.float().reshape(group.kept(suffix).numel(), member.width * weight.shape[1]))
        return found

    def _changes(self, group: UnitGroup) -> Tensor:
        """How far each copy is from what it is a copy of, relative to that, over all its projections, `(copies,)`."""
        chosen, (_, gates) = group.progress.need("chosen"), CopyGrowth.parents(group)
        moved, size = (torch.zeros(len(chosen), dtype=torch.float64, device=chosen.device) for _ in range(2))
        pairs = zip(group.members, self._weights(group, ""), self._weights(group, "_ancestors"), strict=True)
        for member, now, places in pairs:
            then = places[chosen]
            if member.is_output:
                then = then * (1 + gates.to(then)[chosen]).unsqueeze(1)
            moved += (now - then).double().square().sum(1)
            size += then.double().square().sum(1)
        return (moved / size.clamp(min=torch.finfo(torch.float64).tiny)).sqrt()

    def read_share(self) -> float:
        """Share of the backbone's units that it reads, as they are or as copies, where units are copied."""
        read = sum(int(group.kept(suffix).sum()) for group in self._groups for suffix in _SUFFIXES)
        return read / sum(group.count(BASE) for group in self._groups)

    def kept_share(self) -> float:
        """Share still kept of the units that pruning drops, over all kinds: the free ones, copies, or base's."""
        kept = torch.cat([group.kept(self._searched) for group in self._groups])
        if not len(kept):
            return 0.0
        opened = [group.progress.need("opened") for group in self._groups] if self._searched else []
        return float(kept.sum() / max(int(torch.cat(opened).sum()), 1)) if opened else float(kept.double().mean())

    # -- search for a budget --------------------------------------------------------------------------------------

    def _search_step(self, step: int) -> bool:
        if step == self.start:
            return True
        done = int(self.search[3])
        if done >= self.config.rounds or math.isnan(float(self.search[0])):
            return False
        length = max((self.end - self.start) // self.config.rounds, 2)
        elapsed = step - self.start - done * length
        target = float(self.search[1] + self.search[2]) / 2
        pruning = max(length // 2, 1)
        interval = max(pruning // max(self.config.events // self.config.rounds, 1), 1)
        if 0 < elapsed <= pruning and (elapsed == pruning or elapsed % interval == 0):
            high = float(self.search[2])
            share = target + (high - target) * (1 - elapsed / pruning) ** 3
            self.prune(*((1.0, share) if self._searched else (share, 1.0)))
        return elapsed == length

    def evaluated(self, step: int, metric: float, greater_is_better: bool) -> bool | None:
        """Take note of the validation metric that `step` asked for.

        Returns:
            `True` if the pruned network is within the tolerance, `False` if it was rolled back to the last good state,
            `None` if this was the reference.
        """
        if step == self.start:
            self.search[0] = metric
            self.take_snapshot("good")
            return None
        assert self.config.tolerance is not None
        loss = (self.search[0] - metric) if greater_is_better else (metric - self.search[0])
        target = float(self.search[1] + self.search[2]) / 2
        good = float(loss) <= float(self.config.tolerance) + 1e-12
        if good:
            self.search[2] = target
            if float(loss) < 0:  # the network had more to learn: smaller ones are held against what it can do now
                self.search[0] = metric
            self.take_snapshot("good")
        else:
            self.search[1] = target
            self.restore_snapshot("good")
        self.search[3] += 1
        return good

    def _roll_back_unless_decided(self) -> None:
        """Return to the last good state if training ended while a smaller one was being tried."""
        good = self._snapshot("good")
        if any(not torch.equal(good[name], mask) for name, mask in self._masks()):
            self.restore_snapshot("good")
        self.drop_snapshots()

    # -- snapshots ------------------------------------------------------------------------------------------------

    def _snapshot(self, which: str) -> dict[str, Tensor]:
        prefix = f"{which}:"
        return {
            name[len(prefix) :]: tensor
            for name, tensor in self.named_buffers(recurse=False)
            if name.startswith(prefix) and tensor is not None
        }

    def _masks(self) -> list[tuple[str, Tensor]]:
        """The masks that a search changes, and their names in snapshots."""
        suffixes = _SUFFIXES if self.copies else _SUFFIXES[:1]
        return [(_mask_name(group, suffix), group.kept(suffix)) for group in self._groups for suffix in suffixes]

    def take_snapshot(self, which: str, wanted: bool = True) -> None:
        """Remember the trainable parameters and the masks as `"teacher"` or as the last `"good"` state."""
        if not wanted:
            return
        for name, parameter in self._model[0].named_parameters():
            self.register_buffer(f"{which}:{name.replace('.', '|')}", parameter.detach().clone())
        for name, mask in self._masks():
            self.register_buffer(f"{which}:{name}", mask.clone())

    @torch.no_grad()
    def restore_snapshot(self, which: str) -> None:
        """Bring the trainable parameters and the masks back to a snapshot, in place."""
        snapshot = self._snapshot(which)
        for name, parameter in self._model[0].named_parameters():
            parameter.copy_(snapshot[name.replace(".", "|")])
        for name, mask in self._masks():
            mask.copy_(snapshot[name])
        for group in self._groups:
            group.forget_learning_views()

    def drop_snapshots(self) -> None:
        """Free the snapshots' memory."""
        for name in [name for name, _ in self.named_buffers(recurse=False) if ":" in name]:
            delattr(self, name)

    def make_room(self, names: Iterable[str], like: Callable[[str], Tensor]) -> None:
        """Register buffers for snapshots that a checkpoint holds and this run has not taken yet."""
        for name in names:
            if ":" in name and not hasattr(self, name):
                self.register_buffer(name, like(name))

    # -- distillation ---------------------------------------------------------------------------------------------

    def put_distance(self, distance: Tensor, items: Tensor) -> None:
        """Leave the distance from the unpruned network, a mean over `items`, to the trainer."""
        self._distance = (distance, items)

    def take_distance(self) -> tuple[Tensor, Tensor] | None:
        """The distance that the last forward pass left, and how many items it is a mean of."""
        distance, self._distance = self._distance, None
        return distance

    def note_use(self, loss: Tensor) -> None:
        """Find out whether a step trains on this loss, into which the distance will be mixed."""
        if self.config.distillation and self.mixes_distance and not self.loss_is_used and loss.requires_grad:
            loss.register_hook(self._used)

    def _used(self, gradient: Tensor) -> None:
        self.loss_is_used = True

    def teacher(self) -> dict[str, Tensor]:
        """The unpruned network's parameters by name, or nothing before pruning began or without distillation."""
        return {
            name.replace("|", "."): tensor
            for name, tensor in self._snapshot("teacher").items()
            if not name.startswith(_MASK)
        }
