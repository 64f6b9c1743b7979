"""What a task may take when it begins and units are wanting: by name, as `PruningConfig(on_exhausted=...)` has it."""

from __future__ import annotations

from collections.abc import Callable

from ..configuration import TaskError
from ..views import POOL
from .units import UnitGroup

# Makes room for a task: takes the unit groups in which no unit is free, all groups, the share of a group's size to add
# (`PruningConfig.expand_by`) and the standard deviation of new weights; returns the units added, by group.
Capacity = Callable[[list[UnitGroup], list[UnitGroup], float, float], dict[str, int]]

_CAPACITIES: dict[str, Capacity] = {}


def register_capacity(name: str, capacity: Capacity) -> None:
    """Make a way to take capacity usable by its name.

    Raises:
        ValueError: if there is one of this name.
    """
    if name in _CAPACITIES:
        raise ValueError(f"There is a capacity '{name}' already. Choose another name.")
    _CAPACITIES[name] = capacity


def capacities() -> list[str]:
    """Names of all ways to take capacity."""
    return list(_CAPACITIES)


def take_capacity(name: str, groups: list[UnitGroup], share: float, std: float) -> dict[str, int]:
    """Let a task begin where units are wanting.

    Args:
        name: the way, see `capacities`.
        groups: all unit groups.
        share: of a group's size, for units that are added.
        std: standard deviation of their weights.

    Returns:
        The units added, by group; what a task that is abandoned gives back.

    Raises:
        TaskError: if the task may not begin.
    """
    exhausted = [group for group in groups if group.count(POOL) == 0]
    return _CAPACITIES[name](exhausted, groups, share, std) if exhausted else {}


def expand(groups: list[UnitGroup], units: float, std: float) -> dict[str, int]:
    """Add free units whose out-projections start at zero.

    Args:
        groups: to add to.
        units: how many per group; a fraction below 1 is a share of the group's size (at least one unit).
        std: standard deviation of the weights of their in-projections.

    Returns:
        The units added, by group.
    """
    added = {}
    for group in groups:
        added[group.name] = max(round(units * group.total), 1) if units < 1 else int(units)
        group.expand(added[group.name], std)
    return added


def _private(exhausted: list[UnitGroup], groups: list[UnitGroup], share: float, std: float) -> dict[str, int]:
    """Nothing but private parameters."""
    return {}


def _expand(exhausted: list[UnitGroup], groups: list[UnitGroup], share: float, std: float) -> dict[str, int]:
    """New units in each group that has none left."""
    added = {group.name: max(round(share * group.total), 1) for group in exhausted}
    for group in exhausted:
        group.expand(added[group.name], std)
    return added


def _error(exhausted: list[UnitGroup], groups: list[UnitGroup], share: float, std: float) -> dict[str, int]:
    """No task without free units."""
    raise TaskError(
        f"No unit is free in {len(exhausted)} of {len(groups)} groups ({exhausted[0].name}, ...). Learn earlier tasks "
        "with a smaller PruningConfig.keep, or use on_exhausted='private' or 'expand'."
    )


for _name, _capacity in (("private", _private), ("expand", _expand), ("error", _error)):
    register_capacity(_name, _capacity)
