"""Where tensors live: a module's own, rows with owners in one piece of memory, and the bound on copies."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eidetic_hf.network.storage import (
    Arrangement,
    OwnedRows,
    Place,
    Segment,
    Slots,
    Spans,
    WeightCache,
    fixed_buffers,
    freeze,
    get_tensor,
    give_back_memory,
    own_buffers,
    own_tensors,
    set_tensor,
    shell,
    stored_buffers,
    thaw,
)
from eidetic_hf.views import POOL

# -- a module's own tensors -------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A Parameter, a buffer, one that is not stored, places without a tensor, and a child."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_parameter("none", None)
        self.register_buffer("empty", None)
        self.register_buffer("scale", torch.full((2,), 2.0))
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))
        self.register_buffer("frequencies", torch.full((2,), 3.0), persistent=False)
        self.child = nn.Linear(2, 2)


def test_own_tensors_are_those_of_the_module_itself_and_no_empty_places() -> None:
    module = Mixed()
    assert list(own_tensors(module)) == ["weight", "scale", "count", "frequencies"]
    assert list(own_buffers(module)) == ["scale", "count", "frequencies"]
    assert [name for _, name, _ in stored_buffers(module)] == ["scale"]
    assert [(owner is module, name) for owner, name, _ in fixed_buffers(module)] == [(True, "frequencies")]


def test_freezing_copies_unless_told_otherwise_and_thawing_leaves_out_what_is_not_stored() -> None:
    module = Mixed()
    memory = module.weight.data_ptr()
    assert freeze(module, copy=False, recurse=False).weight.data_ptr() == memory
    assert [name for name, _ in module.named_parameters()] == ["child.weight", "child.bias"]
    before = module.child.weight
    freeze(module)
    assert module.child.weight.data_ptr() != before.data_ptr() and torch.equal(module.child.weight, before)
    assert list(module.parameters()) == []
    thaw(module, recurse=False)
    assert {name for name, _ in module.named_parameters()} == {"weight", "scale"}
    thaw(module)
    assert {name for name, _ in module.named_parameters()} == {"weight", "scale", "child.weight", "child.bias"}


def test_a_tensor_is_put_past_a_property_of_the_class_and_keeps_its_place_in_the_state_dict() -> None:
    class Shown(Mixed):
        scale = property(lambda self: "shown")  # type: ignore[assignment]

    module = Mixed()
    module.__class__ = Shown
    names = list(module.state_dict())
    set_tensor(module, "scale", torch.zeros(3))
    assert module.scale == "shown"
    assert torch.equal(get_tensor(module, "scale"), torch.zeros(3))
    assert list(module.state_dict()) == names
    set_tensor(module, "weight", torch.zeros(1))
    assert [name for name, _ in module.named_parameters()] == ["child.weight", "child.bias"]
    set_tensor(module, "weight", nn.Parameter(torch.ones(1)))
    assert next(module.named_parameters())[0] == "weight"
    for name in ("weight", "scale"):
        set_tensor(module, name, None)
        assert get_tensor(module, name) is None and name not in module.state_dict()


def test_a_shell_has_buffers_and_tables_of_its_own_and_shares_parameters_and_children() -> None:
    module = Mixed()
    twin = shell(module, torch.zeros_like)
    assert type(twin) is Mixed and twin.weight is module.weight and twin.child is module.child
    assert torch.equal(twin.scale, torch.zeros(2)) and torch.equal(module.scale, torch.full((2,), 2.0))
    assert list(twin.state_dict()) == list(module.state_dict()), "what is not stored stays so"
    set_tensor(twin, "weight", None)
    assert module.weight is not None


def test_slots_hold_a_tensor_for_each_key_and_name_those_there_are() -> None:
    slots = Slots()
    slots.put("a", torch.ones(1))
    slots.put("b", nn.Parameter(torch.zeros(1)))
    assert [name for name, _ in slots.named_parameters()] == ["b"]
    with pytest.raises(KeyError, match=r"no tensor in the slot 'c'; there are \['b', 'a'\]"):
        slots.need("c")
    slots.put("a", None)
    assert slots.get("a") is None
    slots.clear()
    assert list(slots.state_dict()) == []


# -- spans ------------------------------------------------------------------------------------------------------------


def spans() -> Spans:
    found = Spans()
    for key, count in (("a", 3), ("b", 0), ("c", 2), ("d", 4)):
        found.add(key, count)
    return found


def test_spans_lie_one_behind_the_other() -> None:
    found = spans()
    assert [found.run(key) for key in found.order] == [(0, 3), (3, 3), (3, 5), (5, 9)]
    assert (found.total, found.count("c"), found.count("nobody")) == (9, 2, 0)
    with pytest.raises(KeyError):
        found.run("nobody")
    with pytest.raises(ValueError, match=r"'a' has places already, \(0, 3\)"):
        found.add("a", 1)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([], []),
        (["a"], [(0, 3)]),
        (["a", "b", "c"], [(0, 5)]),
        (["a", "c"], [(0, 5)]),
        (["c", "d"], [(3, 9)]),
        (["a", "d"], [(0, 3), (5, 9)]),
        (["d", "a"], [(5, 9), (0, 3)]),
        (["b"], []),
    ],
)
def test_runs_join_neighbours_and_leave_out_owners_of_nothing(keys: list[str], expected: list[tuple]) -> None:
    assert spans().runs(keys) == expected


def test_only_the_last_owner_is_taken_back() -> None:
    found = spans()
    assert found.drop_last() == "d"
    assert (found.order, found.total, found.count("d")) == (["a", "b", "c"], 5, 0)
    found.add("e", 1)
    assert found.run("e") == (5, 6)


def test_an_owner_that_goes_lets_those_after_it_move_up() -> None:
    found = spans()
    order, counts = list(found.order), {key: found.count(key) for key in found.order}
    gone = order[1]
    found.drop(gone)
    assert found.order == [key for key in order if key != gone] and found.count(gone) == 0
    place = 0
    for key in found.order:
        assert found.run(key) == (place, place + counts[key])
        place += counts[key]
    assert found.total == place and found.before(place + 1) == found.order
    with pytest.raises(KeyError):
        found.drop(gone)


def test_an_arrangement_brings_back_what_was_registered() -> None:
    root = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state, first = dict(root.state_dict(keep_vars=True)), root[0]
    before = Arrangement(root)
    root[0] = nn.Linear(3, 3)
    root.append(nn.Linear(2, 2))
    del first.bias
    root[1].running_mean = torch.ones(2)
    before.restore()
    now = root.state_dict(keep_vars=True)
    assert root[0] is first and list(now) == list(state) and all(now[name] is state[name] for name in state)


def test_owners_before_a_place_begin_before_it() -> None:
    found = spans()
    assert [found.before(place) for place in (0, 1, 3, 4, 6)] == [
        [], ["a"], ["a"], ["a", "b", "c"], ["a", "b", "c", "d"],
    ]  # fmt: skip


# -- rows with owners -------------------------------------------------------------------------------------------------


class Rows:
    """Rows of a weight and a bias, of two tasks with 5 and 4 rows and a pool of 7."""

    def __init__(self, features: int = 6) -> None:
        torch.manual_seed(0)
        self.segments = nn.ModuleDict()
        self.rows = OwnedRows()
        for key, count in (("@a", 5), ("@b", 4), (POOL, 7)):
            self.segments[key] = Segment(torch.randn(count, features), torch.randn(count))
            self.rows.place(key, self.place(key))

    def place(self, key: str) -> Place:
        return Place(self.segments[key], ("weight", "bias"))

    def give(self, key: str, mask: Tensor) -> None:
        """Give the rows at the mask to a task, with other values than they had."""
        weight, bias = self.place(POOL).tensors()
        self.segments[key] = Segment(weight[mask] + 1, bias[mask] + 1)
        self.rows.hand_over(key, self.place(key), [weight[~mask], bias[~mask]])


KEPT = torch.tensor([True, False, False, True, True, False, False])


@pytest.fixture
def owned() -> Rows:
    made = Rows()
    made.rows.pack()
    return made


def test_packed_rows_lie_in_the_order_of_their_owners_and_the_state_dict_shows_views(owned: Rows) -> None:
    weight, bias = owned.rows.packed
    assert (owned.rows.owners.order, owned.rows.owners.total, owned.rows.total) == (["@a", "@b"], 9, 16)
    assert weight.data_ptr() % 64 == 0
    assert owned.rows.is_packed()
    for key, start in (("@a", 0), ("@b", 5), (POOL, 9)):
        assert owned.segments[key].weight.data_ptr() == weight[start].data_ptr()
        assert owned.segments[key].bias.data_ptr() == bias[start].data_ptr()
        assert torch.equal(owned.segments[key].weight, Rows().segments[key].weight)
    assert list(owned.segments.state_dict()) == [
        f"{key}.{t}" for key in ("@a", "@b", POOL) for t in ("weight", "bias")
    ]


def test_rows_that_are_not_packed_can_not_be_read() -> None:
    made = Rows()
    assert not made.rows.is_laid and not made.rows.is_packed()
    with pytest.raises(RuntimeError, match=r"not in one piece of memory yet.* Network.pack\(\)"):
        made.rows.read(0, 5)
    with pytest.raises(RuntimeError, match="not in one piece"):
        made.rows.snapshot()


def test_handing_over_moves_and_writes_no_owned_row(owned: Rows) -> None:
    weight, bias = owned.rows.packed
    before = [weight[:9].clone(), bias[:9].clone()]
    pool = [tensor.clone() for tensor in owned.place(POOL).tensors()]
    memory = {name: tensor.data_ptr() for name, tensor in owned.segments.state_dict().items() if POOL not in name}
    version = weight._version
    owned.give("@c", KEPT)
    assert owned.rows.packed[0] is weight and owned.rows.is_packed()
    assert torch.equal(weight[:9], before[0]) and torch.equal(bias[:9], before[1])
    assert {name: owned.segments.state_dict()[name].data_ptr() for name in memory} == memory
    assert torch.equal(owned.segments["@c"].weight, pool[0][KEPT] + 1)
    assert torch.equal(owned.segments["@c"].bias, pool[1][KEPT] + 1)
    assert torch.equal(owned.segments[POOL].weight, pool[0][~KEPT])
    assert torch.equal(owned.segments[POOL].bias, pool[1][~KEPT])
    assert owned.rows.owners.run("@c") == (9, 12) and owned.rows.count(POOL) == 4
    assert weight._version == version, "another thread's backward pass may hold a slice"


def test_a_backward_pass_in_progress_survives_a_handing_over(owned: Rows) -> None:
    weight = owned.rows.read(0, 5)[0]
    hidden = torch.randn(3, 6, requires_grad=True)
    output = (hidden @ weight.t()).square().sum()
    expected = 2 * (hidden.detach() @ weight.t()) @ weight
    owned.give("@c", KEPT)
    output.backward()
    torch.testing.assert_close(hidden.grad, expected)


@pytest.mark.parametrize("mask", [KEPT, KEPT & False, KEPT | True], ids=["some", "none", "all"])
def test_taking_back_restores_every_bit(owned: Rows, mask: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in owned.segments.state_dict().items()}
    undo = owned.rows.snapshot()
    owned.give("@c", mask)
    owned.rows.take_back(undo, owned.place(POOL))
    del owned.segments["@c"]
    after = owned.segments.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert owned.rows.is_packed() and owned.rows.owners.order == ["@a", "@b"]
    owned.give("@d", mask)
    assert owned.rows.is_packed() and owned.rows.owners.run("@d") == (9, 9 + int(mask.sum()))


def test_taking_back_repairs_a_handing_over_that_was_interrupted(owned: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: tensor.clone() for name, tensor in owned.segments.state_dict().items()}
    undo, place = owned.rows.snapshot(), owned.place(POOL)
    written: list[int] = []
    write = OwnedRows._write

    def half(self: OwnedRows, start: int, rows: list) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(start)
        write(self, start, rows)

    monkeypatch.setattr(OwnedRows, "_write", half)
    with pytest.raises(KeyboardInterrupt):
        owned.give("@c", KEPT)
    monkeypatch.undo()
    assert not torch.equal(owned.segments[POOL].weight, before["pool.weight"])
    owned.rows.take_back(undo, place)
    del owned.segments["@c"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in owned.segments.state_dict().items())
    assert owned.rows.is_packed()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_that_were_cast_are_packed_anew(owned: Rows, dtype: torch.dtype) -> None:
    expected = {name: tensor.to(dtype) for name, tensor in owned.segments.state_dict().items()}
    owned.segments.to(dtype)
    assert not owned.rows.is_packed()
    owned.rows.pack()
    assert owned.rows.is_packed() and owned.rows.packed[0].dtype == dtype
    assert all(torch.equal(tensor, expected[name]) for name, tensor in owned.segments.state_dict().items())


def through_pickle(made: Rows) -> Rows:
    return pickle.loads(pickle.dumps(made))


@pytest.mark.parametrize(("duplicate", "torn"), [(copy.deepcopy, False), (through_pickle, True)])
def test_a_copy_shares_no_memory_and_knows_whether_it_is_in_one_piece(
    owned: Rows, duplicate: Callable[[Rows], Rows], torn: bool
) -> None:
    twin = duplicate(owned)
    assert twin.rows.is_torn() == torn
    assert not twin.rows.is_torn(), "it is said once"
    twin.rows.pack()
    twin.rows.packed[0].zero_()
    assert all(not tensor.any() for name, tensor in twin.segments.state_dict().items() if "weight" in name)
    assert torch.equal(owned.segments["@a"].weight, Rows().segments["@a"].weight)


def test_rows_packed_in_inference_mode_can_be_handed_over_outside_of_it() -> None:
    with torch.inference_mode():
        made = Rows()
        made.rows.pack()
        twin = copy.deepcopy(made)
    for rows in (made, twin):
        undo = rows.rows.snapshot()
        rows.give("@c", KEPT)
        assert rows.rows.is_packed() and not rows.rows.packed[0].is_inference()
        rows.rows.take_back(undo, rows.place(POOL))
        assert torch.equal(rows.segments[POOL].weight, made.segments[POOL].weight)


@pytest.mark.parametrize(("features", "start", "sliced"), [(16, 3, [True, False]), (6, 3, [False, False]),
                                                          (6, 0, [True, True]), (6, 8, [True, False])])  # fmt: skip
def test_a_run_of_rows_is_a_slice_where_it_is_aligned_and_else_a_copy(
    features: int, start: int, sliced: list[bool]
) -> None:
    made = Rows(features)
    made.rows.pack()
    found = made.rows.read(start, 13)
    gathered = made.rows.gather(torch.arange(start, 13))
    for tensor, same, packed, shares in zip(found, gathered, made.rows.packed, sliced, strict=True):
        assert torch.equal(tensor, same)
        assert (tensor.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()) == shares
        assert tensor.data_ptr() % 64 == 0
    assert made.rows.copied_bytes(found) == sum(
        t.nbytes for t, is_slice in zip(found, sliced, strict=True) if not is_slice
    )
    assert made.rows.copied_bytes(gathered) == sum(t.nbytes for t in gathered)


@pytest.mark.parametrize("shape", [(16, 4, 13), (64, 8, 40), (768, 100, 333), (1024, 1, 700)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_over_an_aligned_slice_have_the_bits_of_those_over_a_copy(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    features, start, stop = shape
    torch.manual_seed(0)
    packed = torch.randn(stop + 5, features).to(dtype)
    sliced, copied = packed[start:stop], packed[start:stop].clone()
    assert sliced.data_ptr() % 64 == copied.data_ptr() % 64 == 0
    for tokens in (1, 7, 64):
        hidden = torch.randn(tokens, features).to(dtype)
        activations = torch.randn(tokens, stop - start).to(dtype)
        assert torch.equal(nn.functional.linear(hidden, sliced), nn.functional.linear(hidden, copied))
        out = [nn.functional.linear(activations, weight.t()) for weight in (sliced, copied)]
        assert torch.equal(*out)


def test_a_thread_that_reads_owned_rows_is_not_disturbed_by_handing_over(owned: Rows) -> None:
    weight = owned.rows.read(0, 9)[0]
    expected, stop, wrong = weight.clone(), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if not torch.equal(owned.rows.read(0, 9)[0], expected):
                wrong.append(True)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for turn in range(200):
            undo = owned.rows.snapshot()
            owned.give(f"@{turn}", KEPT)
            owned.rows.take_back(undo, owned.place(POOL))
    finally:
        stop.set()
    thread.join()
    assert wrong == [] and torch.equal(weight, expected)


# -- the bound on copies ----------------------------------------------------------------------------------------------


def filled(limit: int | None) -> tuple[WeightCache, list[dict[str, str]]]:
    """Two layers with a copy of 10 bytes for each of three tasks, in turn."""
    cache, layers = WeightCache(limit), [{}, {}]
    for key in "abc":
        for plans in layers:
            cache.admit(plans, key, f"copy of {key}", 10)
    return cache, layers


def test_without_a_limit_every_copy_is_kept() -> None:
    cache, layers = filled(None)
    assert layers == [{key: f"copy of {key}" for key in "abc"}] * 2
    assert cache.used == 60


def test_the_task_that_was_used_longest_ago_goes_first_and_whole() -> None:
    cache, layers = filled(45)
    assert [list(plans) for plans in layers] == [["b", "c"], ["b", "c"]]
    assert cache.used == 40
    cache.admit(layers[0], "a", "again", 10)
    assert [list(plans) for plans in layers] == [["c", "a"], ["c"]]
    cache, layers = filled(60)
    cache.note_use(["a", "one that has made no copy"])
    cache.admit(layers[0], "d", "another", 10)
    assert [list(plans) for plans in layers] == [["a", "c", "d"], ["a", "c"]]
    cache.note_use(["c"])
    cache.limit = 30
    assert [list(plans) for plans in layers] == [["c", "d"], ["c"]]


def test_what_does_not_fit_by_itself_is_not_kept() -> None:
    cache, layers = filled(15)
    assert [list(plans) for plans in layers] == [["c"], []]
    assert cache.used == 10
    cache, layers = filled(0)
    assert (layers, cache.used) == ([{}, {}], 0)


def test_a_limit_set_later_holds_at_once() -> None:
    cache, layers = filled(None)
    cache.limit = 20
    assert [list(plans) for plans in layers] == [["c"], ["c"]] and cache.limit == 20
    for wrong in (-1, 2.5, True, "1GB"):
        with pytest.raises(ValueError, match=r"expected a number of bytes, or None for no limit"):
            cache.limit = wrong


def test_a_layer_that_forgets_gives_its_bytes_back() -> None:
    cache, layers = filled(None)
    layers[0]["slice"] = "no copy"
    cache.forget(layers[0])
    assert (layers[0], cache.used) == ({}, 30)
    cache.admit(layers[1], "a", "another", 5)
    assert (cache.used, layers[1]["a"]) == (25, "another")


def test_a_copy_of_a_cache_has_its_limit_and_nothing_else() -> None:
    cache, _ = filled(100)
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert (twin.limit, twin.used) == (100, 0)
        twin.admit({}, "a", "copy", 1)
        assert (twin.used, cache.used) == (1, 60)


def test_threads_never_lose_count() -> None:
    cache, layers = WeightCache(55), [{} for _ in range(4)]

    def work(plans: dict) -> None:
        for turn in range(500):
            cache.admit(plans, f"@{turn % 7}", turn, 10)
            if turn % 50 == 0:
                cache.forget(plans)

    threads = [threading.Thread(target=work, args=(plans,)) for plans in layers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.used == 10 * sum(map(len, layers)) <= 55


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
def test_freed_memory_between_what_is_held_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    blocks = [torch.ones(16_000) for _ in range(3000)]  # 64 kB each, 192 MB, small enough to come from the heap
    held = blocks[::16]
    del blocks
    before = resident()
    give_back_memory()
    assert before - resident() > 100 * 2**20
    assert all(bool((block == 1).all()) for block in held)
