"""The books on who owns which unit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from eidetic_hf.network.layers import TaskLinear
from eidetic_hf.network.storage import WeightCache
from eidetic_hf.network.units import UNIT_TYPES, UnitGroup, UnitView
from eidetic_hf.views import LEARNING, POOL, View, use_view

UNITS, WIDTH, HIDDEN = 12, 2, 6


def make_group(name: str = "layers.1.heads", cache: WeightCache | None = None) -> UnitGroup:
    """Twelve units of two rows each, in an in-projection and an out-projection."""
    torch.manual_seed(0)
    group = UnitGroup(name, UNITS, cache)
    for is_output in (False, True):
        shape = (HIDDEN, UNITS * WIDTH) if is_output else (UNITS * WIDTH, HIDDEN)
        TaskLinear(torch.randn(shape), torch.randn(shape[0]), group, is_output).pack()
    return group


def learn(
    group: UnitGroup, key: str, kept: list[int], ancestors: list[str] | None = None, masked: tuple[int, ...] = ()
) -> None:
    """Give a task the units at these places of the pool, each of them changed."""
    begin(group, kept, ancestors, masked)
    group.commit(key, None)
    group.end()


def begin(group: UnitGroup, kept: list[int], ancestors: list[str] | None = None, masked: tuple[int, ...] = ()) -> None:
    """As `learn`, up to its commit."""
    group.begin(list(group.order) if ancestors is None else ancestors)
    with torch.no_grad():
        for member in group.members:
            for parameter in member.parameters():
                parameter.add_(1)
        gates = group.gates.get(LEARNING)
        if gates is not None:
            gates.add_(0.5)
    group.kept().fill_(False)
    group.kept()[kept] = True
    group.kept("_ancestors")[list(masked)] = False
    group.forget_learning_views()


@pytest.fixture
def group() -> UnitGroup:
    """Three tasks with 3, 2 and 1 units, and 6 in the pool."""
    made = make_group()
    for key, kept in (("@a", [0, 2, 5]), ("@b", [1, 3]), ("@c", [6])):
        learn(made, key, kept)
    return made


def state(group: UnitGroup) -> dict[str, Tensor]:
    """Every tensor of the books and of the members, by name."""
    modules = nn.ModuleDict({"books": group, **{str(n): member for n, member in enumerate(group.members)}})
    return dict(modules.state_dict())


def same(after: dict[str, Tensor], before: dict[str, Tensor]) -> bool:
    return set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)


def alike(view: UnitView, other: UnitView) -> bool:
    tensors = ((view.positions, other.positions), (view.gates, other.gates))
    return (view.count, view.start) == (other.count, other.start) and all(
        torch.equal(a, b) if a is not None and b is not None else a is b for a, b in tensors
    )


# -- who owns what ----------------------------------------------------------------------------------------------------


def test_every_unit_is_with_one_task_or_in_the_pool(group: UnitGroup) -> None:
    assert group.order == ["@a", "@b", "@c"]
    assert [group.count(key) for key in (*group.order, POOL, "@nobody")] == [3, 2, 1, 6, 0]
    assert group.total == UNITS
    ids = torch.cat([group.units.need(key) for key in (*group.order, POOL)])
    assert torch.equal(ids.sort().values, torch.arange(UNITS, dtype=torch.int32))
    assert torch.equal(group.units.need("@b"), torch.tensor([3, 6], dtype=torch.int32)), "of those that were left"


def test_positions_follow_the_order_of_commits(group: UnitGroup) -> None:
    assert group.positions([]).tolist() == []
    assert group.positions(["@a", "@b"]).tolist() == [0, 1, 2, 3, 4]
    assert group.positions(["@a", "@c"]).tolist() == [0, 1, 2, 5]
    assert group.positions(["@c", "@b"]).tolist() == [5, 3, 4]


@pytest.mark.parametrize("unit_type", UNIT_TYPES)
def test_the_type_of_units_is_the_last_part_of_the_name(unit_type: str) -> None:
    assert UnitGroup(f"layers.2.{unit_type}", 4).unit_type == unit_type
    assert UnitGroup(f"layers.2.{unit_type}", 4).is_decoder is False
    assert UnitGroup(f"decoder_layers.2.{unit_type}", 4).is_decoder is True


# -- what is seen -----------------------------------------------------------------------------------------------------


def test_units_in_a_row_are_a_range_and_others_are_listed() -> None:
    made = make_group()
    learn(made, "@a", [0, 1])
    learn(made, "@alone", [0, 1, 2], ancestors=[])
    learn(made, "@skips", [0], ancestors=["@a"])
    learn(made, "@last", [0], ancestors=["@skips"])
    found = {key: made.view(key) for key in made.order}
    assert {key: (view.count, view.start) for key, view in found.items()} == {
        "@a": (2, 0), "@alone": (3, 2), "@skips": (3, 0), "@last": (2, 5),
    }  # fmt: skip
    assert [key for key, view in found.items() if view.positions is not None] == ["@skips"]
    assert found["@skips"].positions.tolist() == [0, 1, 5]


@pytest.mark.parametrize(
    ("masked", "start", "positions"),
    [((), 0, None), ((0, 1, 2), 3, None), ((0,), 1, None), ((1,), 0, [0, 2, 3, 4, 5]), ((3, 4), 0, [0, 1, 2, 5])],
)
def test_gates_scale_what_they_do_not_mask_out(
    masked: tuple[int, ...], start: int, positions: list[int] | None
) -> None:
    made = make_group()
    learn(made, "@a", [0, 2, 5])
    learn(made, "@b", [1, 3])
    learn(made, "@c", [6], masked=masked)
    view = made.view("@c")
    assert made.gates.need("@c").tolist() == [0.0 if place in masked else 1.5 for place in range(5)]
    assert view.count == 6 - len(masked)
    assert (None if view.positions is None else view.positions.tolist()) == positions
    assert view.positions is not None or view.start == start
    if len(masked) < 5:
        assert view.gates.tolist() == [1.5] * (5 - len(masked)) + [1.0]


def test_gates_that_are_all_one_cost_nothing(group: UnitGroup) -> None:
    group.begin(["@a"])
    group.commit("@d", None)
    group.end()
    assert torch.equal(group.gates.need("@d"), torch.ones(3))
    assert group.view("@d").gates is None


def test_the_task_being_learned_sees_what_it_keeps_and_its_teacher_everything(group: UnitGroup) -> None:
    begin(group, [1, 4], ancestors=["@a", "@c"], masked=(0, 2))
    view, kept_ancestors, kept = group.learning_view(teacher=False)
    assert (view.positions.tolist(), kept_ancestors.tolist(), kept.tolist()) == ([1, 5], [1, 3], [1, 4])
    view, kept_ancestors, kept = group.learning_view(teacher=True)
    assert (view.positions.tolist(), kept_ancestors, kept) == ([0, 1, 2, 5], None, None)
    with use_view(View(LEARNING)):
        assert group.seen() == 4
    with use_view(View(LEARNING, teacher=True)):
        assert group.seen() == 10
    with use_view(View("@b")):
        assert group.seen() == 5


def test_masks_that_change_drop_the_learning_views_only(group: UnitGroup) -> None:
    committed = group.view("@b")
    begin(group, [0, 1])
    assert group.learning_view(False)[2].tolist() == [0, 1]
    group.kept()[0] = False
    assert group.learning_view(False)[2].tolist() == [0, 1], "cached"
    group.forget_learning_views()
    assert group.learning_view(False)[2].tolist() == [1]
    assert group.view("@b") is committed
    group.forget_views()
    assert group.view("@b") is not committed and alike(group.view("@b"), committed)


# -- commits ----------------------------------------------------------------------------------------------------------


def test_a_commit_moves_and_recomputes_nothing_of_earlier_tasks(group: UnitGroup) -> None:
    views = {key: group.view(key) for key in group.order}
    plans = {key: [member._plan(key) for member in group.members] for key in group.order}
    names = [name for name in state(group) if name.rpartition("segments.")[2].startswith("@")]
    memory = {name: state(group)[name].data_ptr() for name in names}
    before = {name: tensor.clone() for name, tensor in state(group).items() if "@" in name}
    learn(group, "@d", [0, 5])
    assert {name: state(group)[name].data_ptr() for name in names} == memory
    assert all(torch.equal(state(group)[name], tensor) for name, tensor in before.items())
    assert all(group.view(key) is view for key, view in views.items())
    assert all(
        member._plan(key) is plan for key in plans for member, plan in zip(group.members, plans[key], strict=True)
    )
    assert all(member.is_packed() for member in group.members)


def test_a_commit_takes_the_trained_rows_of_kept_units_and_the_pretrained_ones_of_the_rest(group: UnitGroup) -> None:
    pools = [member.segment(POOL).weight.clone() for member in group.members]
    begin(group, [0, 5])
    group.commit("@d", None)
    kept = torch.tensor([True, False, False, False, False, True]).repeat_interleave(WIDTH)
    for member, pool in zip(group.members, pools, strict=True):
        assert torch.equal(member.segment("@d").weight, pool[kept] + 1)
        assert torch.equal(member.segment(POOL).weight, pool[~kept])


def test_recycled_units_come_back_random_without_a_bias(group: UnitGroup) -> None:
    begin(group, [0])
    before = group.members[0].segment(POOL).weight[WIDTH:].clone()
    group.commit("@d", 0.02)
    pool = group.members[0].segment(POOL)
    assert not (pool.weight == before).any() and 0.005 < float(pool.weight.std()) < 0.05
    assert not pool.bias.any()


@pytest.mark.parametrize("stage", ["begun", "committed"])
@pytest.mark.parametrize("kept", [[0, 5], [], list(range(6))], ids=["some", "none", "all"])
def test_undoing_a_commit_restores_every_bit(group: UnitGroup, stage: str, kept: list[int]) -> None:
    before = {name: tensor.clone() for name, tensor in state(group).items()}
    views = {key: group.view(key) for key in group.order}
    begin(group, kept)
    undo = group.snapshot()
    if stage == "committed":
        group.commit("@d", 0.02)
        group.view("@d")
    group.undo_commit("@d", undo)
    group.end()
    assert same(state(group), before)
    assert group.order == ["@a", "@b", "@c"] and group.total == UNITS
    assert all(member.is_packed() for member in group.members)
    assert all(group.view(key) is view for key, view in views.items())
    with pytest.raises(KeyError):
        group.view("@d")
    learn(group, "@d", [0])
    assert group.count("@d") == 1 and all(member.is_packed() for member in group.members)


@pytest.mark.parametrize("failing", ["hand_over", "put"])
def test_a_commit_that_fails_half_way_is_undone(
    group: UnitGroup, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = {name: tensor.clone() for name, tensor in state(group).items()}
    begin(group, [0, 5])
    undo, last = group.snapshot(), group.members[1]
    owner = last._rows if failing == "hand_over" else last.biases
    monkeypatch.setattr(owner, failing, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        group.commit("@d", None)
    monkeypatch.undo()
    group.undo_commit("@d", undo)
    group.end()
    assert same(state(group), before)
    assert all(member.is_packed() for member in group.members)


# -- the pool's size --------------------------------------------------------------------------------------------------


def test_units_that_expand_adds_are_silent_and_shrink_takes_them_back(group: UnitGroup) -> None:
    before = {name: tensor.clone() for name, tensor in state(group).items()}
    group.expand(3, 0.02)
    assert (group.total, group.count(POOL)) == (UNITS + 3, 9)
    assert group.units.need(POOL)[-3:].tolist() == [12, 13, 14]
    inward, outward = (member.segment(POOL) for member in group.members)
    assert not outward.weight[-3 * WIDTH :].any() and not inward.bias[-3 * WIDTH :].any()
    assert inward.weight[-3 * WIDTH :].all()
    assert all(member.is_packed() for member in group.members)
    group.shrink(3)
    assert same(state(group), before) and all(member.is_packed() for member in group.members)


def test_room_for_a_checkpoint_has_the_shapes_of_what_was_saved(group: UnitGroup) -> None:
    twin = make_group()
    for key in group.order:
        twin.rebuild(key, group.ancestors[key], group.count(key))
    twin.resize_pool(group.count(POOL))
    shapes = {name: tensor.shape for name, tensor in state(group).items()}
    assert {name: tensor.shape for name, tensor in state(twin).items()} == shapes
    with torch.no_grad():
        for name, tensor in state(twin).items():
            tensor.copy_(state(group)[name])
    for member in twin.members:
        member.pack()
    assert all(alike(twin.view(key), group.view(key)) for key in group.order)
    assert same(state(twin), state(group))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda group: pickle.loads(pickle.dumps(group))])
def test_a_copy_keeps_views_but_no_weights_and_commits_by_itself(group: UnitGroup, duplicate: object) -> None:
    learn(group, "@skips", [0], ancestors=["@a"])
    expected = [tensor.clone() for tensor in group.members[0]._plan("@skips")[:2]]
    before = {name: tensor.clone() for name, tensor in state(group).items()}
    twin = duplicate(group)
    assert set(twin._cache) <= set(group.order) and all(member._plans == {} for member in twin.members)
    assert all(torch.equal(a, b) for a, b in zip(twin.members[0]._plan("@skips")[:2], expected, strict=True))
    learn(twin, "@d", [0])
    assert all(member.is_packed() for member in twin.members)
    assert same(state(group), before) and "@d" not in group.order


def test_groups_share_the_bound_on_copies_that_they_are_given() -> None:
    cache = WeightCache()
    groups = [make_group(f"layers.{layer}.heads", cache) for layer in range(2)]
    for made in groups:
        learn(made, "@a", [0])
        learn(made, "@other", [0])
        learn(made, "@skips", [0], ancestors=["@a"])
        for key in made.order:
            for member in made.members:
                member._plan(key)
    copied = 2 * WIDTH * HIDDEN * 4 * 2 + 2 * WIDTH * 4  # two weights of two units, and one bias
    assert cache.used == 2 * copied
    cache.limit = 0
    assert cache.used == 0
    assert [list(member._plans) for member in groups[0].members] == [["@a", "@other"]] * 2, "slices stay"
