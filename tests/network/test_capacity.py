"""What a task may take when units are wanting: by name."""

from __future__ import annotations

import pytest

from eidetic_hf import PruningConfig, TaskError
from eidetic_hf.network import capacity
from eidetic_hf.network.capacity import capacities, expand, register_capacity, take_capacity
from eidetic_hf.network.units import UnitGroup


def groups() -> list[UnitGroup]:
    """One with four free units, one with none."""
    return [UnitGroup("layers.1.neurons", 4), UnitGroup("layers.2.neurons", 0)]


def test_nothing_is_taken_where_every_group_has_free_units() -> None:
    for name in capacities():
        assert take_capacity(name, groups()[:1], 0.5, 0.02) == {}


def test_private_takes_nothing_and_error_says_what_to_do() -> None:
    both = groups()
    assert take_capacity("private", both, 0.5, 0.02) == {}
    message = r"No unit is free in 1 of 2 groups \(layers.2.neurons, ...\). Learn earlier tasks with a smaller"
    with pytest.raises(TaskError, match=message):
        take_capacity("error", both, 0.5, 0.02)


def test_expand_adds_at_least_one_unit_and_only_where_none_is_free() -> None:
    both = groups()
    assert take_capacity("expand", both, 0.5, 0.02) == {"layers.2.neurons": 1}
    assert [group.total for group in both] == [4, 1]
    assert expand(both[:1], 0.5, 0.02) == {"layers.1.neurons": 2}
    assert expand(both[:1], 3, 0.02) == {"layers.1.neurons": 3}
    assert both[0].total == 9


def test_a_share_of_one_or_more_is_still_a_share() -> None:
    (group,) = [UnitGroup("layers.1.neurons", 0)]
    group.expand(8, 0.02)
    group.units.put("pool", group.units.need("pool")[:0])
    group.owners.add("@a", 8)
    assert take_capacity("expand", [group], 1.5, 0.02) == {"layers.1.neurons": 12}


def test_a_name_given_twice_is_an_error_and_a_new_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "_CAPACITIES", dict(capacity._CAPACITIES))
    with pytest.raises(ValueError, match="There is a capacity 'private' already"):
        register_capacity("private", lambda exhausted, groups, share, std: {})
    with pytest.raises(ValueError, match="expected one of"):
        PruningConfig(on_exhausted="made-up")
    register_capacity("made-up", lambda exhausted, groups, share, std: expand(groups, 1.0, std))
    assert PruningConfig(on_exhausted="made-up").on_exhausted == "made-up"
    assert take_capacity("made-up", groups(), 0.5, 0.02) == {"layers.1.neurons": 1, "layers.2.neurons": 1}
