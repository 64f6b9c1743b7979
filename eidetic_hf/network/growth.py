"""Two ways in which tasks come to units: by taking them out of a pool, or by copying them.

A strategy is chosen when a network is made; the books (`units.py`) and the rows (`layers.py`) ask it where the two
differ. All else, who reads what and in which order, is the same: a view is a list of places, each with an owner.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..configuration import TaskError
from ..views import BASE, LEARNING, POOL
from .storage import CopiedRows, OwnedRows, Segment, Slots, Spans


class Books(Protocol):
    """A `UnitGroup`, as a strategy sees it.

    Attributes:
        owners: of places.
        ancestors: owners of what each task may read, by its key.
        units: numbers of the units that each owner has.
        gates: on what each task may read.
        progress: state of the task being learned.
    """

    owners: Spans
    ancestors: dict[str, list[str]]
    units: Slots
    gates: Slots
    progress: Slots

    @property
    def device(self) -> torch.device:
        """Where the books are kept."""
        ...

    def count(self, key: str) -> int:
        """Number of units that a task or the pool owns."""
        ...

    def n_inherited(self) -> int:
        """Number of places that the task being learned may read of others."""
        ...

    def positions(self, keys: list[str]) -> Tensor:
        """Places of the units of some owners."""
        ...

    def kept(self, suffix: str = "") -> Tensor:
        """Which units the task being learned keeps."""
        ...

    def importance(self, suffix: str = "") -> Tensor:
        """Importance of the units of `kept`."""
        ...

    def open(self, kept: Tensor, read: Tensor, gates: Tensor) -> None:
        """What a task that begins trains, and what it reads."""
        ...

    def drop(self, key: str) -> None:
        """Let a committed task go."""
        ...

    def claim(self, key: str) -> None:
        """Let the pool be without what a task brought along."""
        ...

    def give_back(self, units: Tensor, like: Any, std: float) -> None:
        """Return units that nobody owns to the pool."""
        ...


class Growth(Protocol):
    """What differs between the ways.

    Attributes:
        name: as `EideticConfig.growth` has it.
        copies: whether units are copied, and base lies in the trunk's shard for everybody to read.
    """

    name: str
    copies: bool

    def rows(self) -> OwnedRows | CopiedRows:
        """Where the rows of a projection lie."""
        ...

    def segments(self, pretrained: Segment) -> dict[str, Segment]:
        """A projection's rows by owner before any task, the pool's among them."""
        ...

    def lay(self, group: Books, n_units: int) -> None:
        """The books of a group before any task."""
        ...

    def keys(self, ancestors: list[str]) -> list[str]:
        """Owners of all units that a task may read whose ancestors these are, in the order of their places."""
        ...

    def begin(self, group: Books, own: float) -> Tensor | None:
        """Say which units a task that begins trains: the places of those that it copies, or `None` for the pool.

        Args:
            group: the books.
            own: share of base's units that it copies, where units are copied: one at least, unless this is 0.
        """
        ...

    def take(self, group: Books, key: str) -> None:
        """Write the units of the task being learned, which is committed, into the books."""
        ...

    def rest(self, pool: Segment, kept: Tensor, recycle_std: float | None) -> Segment:
        """What is left of a projection's pool without the rows that are kept."""
        ...

    def join(self, group: Books, key: str) -> int:
        """Settle what a task owns that was learned elsewhere; returns how many units more there are than before."""
        ...

    def leave(self, group: Books, key: str, like: Books | None, std: float) -> int:
        """Let a task go, and return to a pool what was taken out of it.

        Args:
            group: the books.
            key: of the task.
            like: the same books with every pretrained unit in the pool; `None` if there is no pool to return to.
            std: standard deviation of units that no backbone came with.

        Returns:
            How many units less there are.
        """
        ...


class FixedGrowth:
    """Tasks take units out of a pool, which they never leave again."""

    name, copies = "fixed", False

    def rows(self) -> OwnedRows:
        """See `Growth`."""
        return OwnedRows()

    def segments(self, pretrained: Segment) -> dict[str, Segment]:
        """All is in the pool."""
        return {POOL: pretrained}

    def lay(self, group: Books, n_units: int) -> None:
        """All units are free."""
        group.units.put(POOL, torch.arange(n_units, dtype=torch.int32))

    def keys(self, ancestors: list[str]) -> list[str]:
        """The ancestors' own."""
        return ancestors

    def begin(self, group: Books, own: float) -> None:
        """Every free unit starts as kept, and every inherited one as read."""
        free, inherited = group.count(POOL), group.n_inherited()
        group.open(torch.ones(free, dtype=torch.bool), torch.ones(inherited, dtype=torch.bool), torch.zeros(inherited))

    def take(self, group: Books, key: str) -> None:
        """The kept ones leave the pool."""
        kept, ids = group.kept(), group.units.need(POOL)
        group.units.put(key, ids[kept])
        group.units.put(POOL, ids[~kept])

    def rest(self, pool: Segment, kept: Tensor, recycle_std: float | None) -> Segment:
        """The rows that are not kept, at their pretrained values or drawn anew."""
        weight, bias = pool.weight[~kept], None if pool.bias is None else pool.bias[~kept]
        if recycle_std is not None:
            weight = torch.randn_like(weight) * recycle_std
            bias = None if bias is None else torch.zeros_like(bias)
        return Segment(weight, bias)

    def join(self, group: Books, key: str) -> int:
        """It takes its units out of the pool; what somebody else has taken there is twice from here on."""
        free = group.count(POOL)
        group.claim(key)
        return group.count(key) - (free - group.count(POOL))

    def leave(self, group: Books, key: str, like: Books | None, std: float) -> int:
        """What nobody else has goes back."""
        units, count = group.units.need(key), group.count(key)
        others = [group.units.need(owner) for owner in group.owners.order if owner != key]
        units = units[~torch.isin(units, torch.cat([units[:0], *others]))]
        group.drop(key)
        if like is None:
            return count
        group.give_back(units, like, std)
        return count - len(units)


class CopyGrowth:
    """Tasks copy the units that they change. The backbone's own, base, stay as they are for everybody.

    A task's places are base's, then those of the tasks on its branch, then its own. Of the versions of a unit it reads
    the nearest: what its parent does not read starts as masked out, and so does what it has copied itself.
    """

    name, copies = "copy", True

    def rows(self) -> CopiedRows:
        """See `Growth`."""
        return CopiedRows()

    def segments(self, pretrained: Segment) -> dict[str, Segment]:
        """All is base's; the pool has no row."""
        return {BASE: pretrained, POOL: pretrained.room(0)}

    def lay(self, group: Books, n_units: int) -> None:
        """No unit is free, and none runs out."""
        group.owners.add(BASE, n_units)
        group.units.put(BASE, torch.arange(n_units, dtype=torch.int32))
        group.units.put(POOL, torch.zeros(0, dtype=torch.int32))

    def keys(self, ancestors: list[str]) -> list[str]:
        """Base's, and those of the branch."""
        return [BASE, *ancestors]

    @staticmethod
    def parents(group: Books) -> tuple[Tensor, Tensor]:
        """Which places the parent of the task being learned reads, and what its gates add to 1 there, `(places,)`."""
        parent, inherited = group.ancestors[LEARNING][-1], group.n_inherited()
        gates = group.gates.get(parent)
        if gates is None:
            return torch.ones(inherited, dtype=torch.bool), torch.zeros(inherited)
        gates = torch.cat([gates, gates.new_ones(group.count(parent))])
        return gates != 0, (gates - 1).masked_fill(gates == 0, 0)

    def begin(self, group: Books, own: float) -> Tensor:
        """As many copies as `own` says, at first of the first units that the parent reads; see `choose`."""
        (reads, start), inherited = self.parents(group), group.n_inherited()
        copies = min(self.n_copies(group, own), int(reads.sum()))
        group.open(torch.ones(copies, dtype=torch.bool), reads, start)
        group.progress.put("reads", reads.to(group.device))
        return self.choose(group, torch.zeros(inherited))

    def n_copies(self, group: Books, own: float) -> int:
        """How many copies a share of base's units is: one at least, unless it is 0."""
        return max(round(own * group.count(BASE)), int(own > 0))

    def choose(self, group: Books, scores: Tensor) -> Tensor:
        """Let a task copy the units with the highest scores of those that its parent reads.

        Args:
            group: the books.
            scores: one for each place that the task may read, `(places,)`.

        Returns:
            The places of the chosen ones, `(copies,)`, in ascending order.
        """
        reads = group.progress.need("reads")
        ranked = scores.to(reads.device).double().masked_fill(~reads, -torch.inf)
        chosen = ranked.argsort(descending=True, stable=True)[: len(group.kept())].sort().values
        opened = reads.clone()
        opened[chosen] = False
        group.progress.put("chosen", chosen)
        group.progress.put("opened", opened)
        group.kept("_ancestors").copy_(opened)
        return group.positions(group.ancestors[LEARNING])[chosen]

    def settle(self, group: Books, kept: Tensor) -> None:
        """Let a task keep some of its copies only; in place of the others it reads again what they are copies of.

        Args:
            group: the books.
            kept: which of the copies, boolean, `(copies,)`.
        """
        dropped = group.kept() & ~kept
        places = group.progress.need("chosen")[dropped]
        group.kept().copy_(kept)
        group.kept("_ancestors")[places] = True
        group.importance("_ancestors")[places] = group.importance()[dropped]
        gates = group.gates.need(LEARNING)
        gates.data[places] = self.parents(group)[1].to(gates)[places]  # as they were: nobody has trained them

    def take(self, group: Books, key: str) -> None:
        """The copies are named like what they are copies of."""
        owners = group.ancestors[LEARNING]
        ids = torch.cat([group.units.need(owner) for owner in owners])
        group.units.put(key, ids[group.progress.need("chosen")[group.kept()]])

    def rest(self, pool: Segment, kept: Tensor, recycle_std: float | None) -> Segment:
        """Nothing was taken."""
        return pool

    def join(self, group: Books, key: str) -> int:
        """Nothing is taken."""
        return 0

    def leave(self, group: Books, key: str, like: Books | None, std: float) -> int:
        """Nothing goes back."""
        group.drop(key)
        return 0


_GROWTHS: dict[str, Growth] = {growth.name: growth for growth in (FixedGrowth(), CopyGrowth())}


def growths() -> list[str]:
    """Names of the ways."""
    return list(_GROWTHS)


def growth_of(name: str) -> Growth:
    """The way of a name.

    Raises:
        TaskError: if there is none.
    """
    if name not in _GROWTHS:
        raise TaskError(f"growth={name!r}: expected one of {growths()}.")
    return _GROWTHS[name]
