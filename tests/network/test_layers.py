"""The layers of a masked network, held against products over the rows that a task sees."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eidetic_hf.network.importance import UnitProbe
from eidetic_hf.network.layers import JoinedLinear, TaskLinear, TaskNorm, TaskTable
from eidetic_hf.network.storage import own_buffers
from eidetic_hf.network.units import UnitGroup
from eidetic_hf.views import LEARNING, POOL, View, use_view

UNITS, WIDTH, HIDDEN = 12, 2, 6


class Block:
    """An in-projection and an out-projection over one group of units; what they were made from is kept."""

    def __init__(self, bias: bool = True) -> None:
        torch.manual_seed(0)
        self.group = UnitGroup("layers.1.neurons", UNITS)
        self.weights = torch.randn(UNITS * WIDTH, HIDDEN), torch.randn(HIDDEN, UNITS * WIDTH)
        self.biases = (torch.randn(UNITS * WIDTH), torch.randn(HIDDEN)) if bias else (None, None)
        self.inward, self.outward = (
            TaskLinear(weight, own, self.group, is_output)
            for weight, own, is_output in zip(self.weights, self.biases, (False, True), strict=True)
        )
        for member in self.group.members:
            member.pack()

    def learn(self, key: str, kept: list[int], ancestors: list[str], masked: tuple[int, ...] = ()) -> None:
        self.begin(kept, ancestors, masked)
        self.group.commit(key, None)
        self.group.end()

    def begin(self, kept: list[int], ancestors: list[str], masked: tuple[int, ...] = ()) -> None:
        self.group.begin(ancestors)
        self.group.kept().fill_(False)
        self.group.kept()[kept] = True
        self.group.kept("_ancestors")[list(masked)] = False
        self.group.forget_learning_views()
        with torch.no_grad():
            for member in self.group.members:
                for parameter in member.parameters():
                    parameter.add_(torch.randn_like(parameter))
            gates = self.group.gates.get(LEARNING)
            if gates is not None:
                gates.uniform_(-0.5, 0.5)

    def rows(self, keys: list[str], member: TaskLinear) -> Tensor:
        return torch.cat([member.segment(key).weight for key in keys])

    def run(self, hidden: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """Outputs of both projections."""
        with use_view(view):
            inner = self.inward(hidden)
            return inner, self.outward(inner)


@pytest.fixture
def block() -> Block:
    made = Block()
    made.learn("@a", [0, 2, 5], [])
    made.learn("@b", [1, 3], ["@a"], masked=(1,))
    made.learn("@c", [0, 1], [])
    return made


def hidden(*shape: int) -> Tensor:
    return torch.randn(*(shape or (4, 5)), HIDDEN, generator=torch.Generator().manual_seed(1))


# -- committed tasks --------------------------------------------------------------------------------------------------


def test_a_task_computes_with_its_own_rows_and_its_own_bias(block: Block) -> None:
    inner, output = block.run(hidden(), View("@a"))
    weights = [block.rows(["@a"], member) for member in block.group.members]
    assert torch.equal(inner, F.linear(hidden(), weights[0], block.inward.segment("@a").bias))
    assert torch.equal(output, F.linear(inner, weights[1].t(), block.outward.biases.need("@a")))


def test_gates_scale_and_mask_what_a_task_reads_of_its_ancestors(block: Block) -> None:
    inner, output = block.run(hidden(), View("@b"))
    read = torch.tensor([0, 2, 3, 4]).unsqueeze(1).mul(WIDTH).add(torch.arange(WIDTH)).flatten()
    weights = [block.rows(["@a", "@b"], member)[read] for member in block.group.members]
    bias = torch.cat([block.inward.segment(key).bias for key in ("@a", "@b")])[read]
    gates = torch.cat([block.group.gates.need("@b"), torch.ones(2)])
    assert gates[1] == 0 and inner.shape[-1] == 4 * WIDTH
    assert torch.equal(inner, F.linear(hidden(), weights[0], bias))
    gated = inner * gates[[0, 2, 3, 4]].repeat_interleave(WIDTH)
    assert torch.equal(output, F.linear(gated, weights[1].t(), block.outward.biases.need("@b")))


def test_what_a_task_does_not_see_may_be_nan(block: Block) -> None:
    expected = {key: block.run(hidden(), View(key))[1] for key in block.group.order}
    owners = {"@a": {"@a"}, "@b": {"@a", "@b"}, "@c": {"@c"}}
    for key, read in owners.items():
        twin = copy.deepcopy(block)
        for member in twin.group.members:
            for other in {*twin.group.order, POOL} - read:
                for tensor in own_buffers(member.segment(other)).values():
                    tensor.fill_(torch.nan)
        for layer in twin.group.members:
            layer.forget_views()
        assert torch.equal(twin.run(hidden(), View(key))[1], expected[key])


def test_a_later_commit_moves_no_answer_and_makes_no_new_plan(block: Block) -> None:
    expected = {key: block.run(hidden(), View(key)) for key in block.group.order}
    plans = {key: [member._plan(key) for member in block.group.members] for key in expected}
    block.learn("@d", [0, 3], ["@a", "@b", "@c"])
    for key, outputs in expected.items():
        assert all(map(torch.equal, block.run(hidden(), View(key)), outputs))
        assert all(m._plan(key) is p for m, p in zip(block.group.members, plans[key], strict=True))


def test_a_prefix_is_a_slice_of_the_packed_memory(block: Block) -> None:
    for member in block.group.members:
        weight = member._plan("@a")[0]
        assert weight.data_ptr() == member._rows.packed[0].data_ptr() == member.segment("@a").weight.data_ptr()


def test_copies_that_do_not_fit_are_made_at_every_use_with_the_same_bits(block: Block) -> None:
    expected = {key: block.run(hidden(), View(key))[1] for key in block.group.order}
    assert block.group.cache.used > 0
    block.group.cache.limit = 0
    assert block.group.cache.used == 0
    assert [list(member._plans) for member in block.group.members] == [["@a"]] * 2
    for key, output in expected.items():
        assert torch.equal(block.run(hidden(), View(key))[1], output)
    assert [list(member._plans) for member in block.group.members] == [["@a"]] * 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layers_that_were_cast_are_packed_and_forget_what_they_copied(block: Block, dtype: torch.dtype) -> None:
    before = {key: block.run(hidden(), View(key))[1] for key in block.group.order}
    for module in (block.group, *block.group.members):
        module.to(dtype)
    assert all(member.is_packed() and member._rows.packed[0].dtype == dtype for member in block.group.members)
    for key, expected in before.items():
        output = block.run(hidden().to(dtype), View(key))[1]
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.5}
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), expected, **tolerance)
    for member in block.group.members:
        member.to(dtype)
        assert member.is_packed()


def test_a_layer_outside_of_a_forward_pass_says_what_to_call(block: Block) -> None:
    with pytest.raises(RuntimeError, match=r"outside of EideticModel.forward.*Call model\(\*\*inputs, task="):
        block.inward(hidden())


def test_layers_print_what_they_are(block: Block) -> None:
    assert repr(block.outward).startswith("TaskLinear(\n  24 -> 6, out-projection of layers.1.neurons, width=2")


def test_threads_that_answer_are_not_disturbed_by_commits() -> None:
    made = Block()
    made.learn("@a", [0, 2], [])
    made.learn("@b", [0], [])
    expected = {key: made.run(hidden(), View(key))[1] for key in ("@a", "@b")}
    stop, wrong = threading.Event(), []

    def answer(key: str) -> None:
        while not stop.is_set():
            if not torch.equal(made.run(hidden(), View(key))[1], expected[key]):
                wrong.append(key)

    threads = [threading.Thread(target=answer, args=(key,)) for key in expected]
    for thread in threads:
        thread.start()
    try:
        for turn in range(60):
            made.begin([0, 1], ["@a", "@b"])
            undo = made.group.snapshot()
            made.group.commit(f"@{turn}", 0.02)
            if turn % 20:
                made.group.undo_commit(f"@{turn}", undo)
            made.group.end()
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    assert wrong == [] and made.group.order == ["@a", "@b", "@0", "@20", "@40"]


# -- the task being learned -------------------------------------------------------------------------------------------


def test_before_anything_is_cut_the_layers_compute_what_they_were_made_from() -> None:
    made = Block()
    made.group.begin([])
    inner, output = made.run(hidden(), View(LEARNING))
    torch.testing.assert_close(inner, F.linear(hidden(), made.weights[0], made.biases[0]), rtol=0, atol=0)
    torch.testing.assert_close(output, F.linear(inner, made.weights[1], made.biases[1]), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_commit_moves_the_answer_by_rounding_at_most(bias: bool) -> None:
    made = Block(bias)
    made.learn("@a", [0, 2, 5], [])
    made.learn("@other", [0], [])
    made.begin([1, 3], ["@a"], masked=(1,))
    before = made.run(hidden(), View(LEARNING))[1]
    made.group.commit("@b", None)
    after = made.run(hidden(), View("@b"))[1]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_the_teacher_sees_every_unit_and_masks_nothing(block: Block) -> None:
    block.begin([0], ["@a"], masked=(0, 1))
    assert block.run(hidden(), View(LEARNING))[0].shape[-1] == (1 + 1) * WIDTH
    assert block.run(hidden(), View(LEARNING, teacher=True))[0].shape[-1] == (3 + 5) * WIDTH


def test_gradients_reach_the_working_copy_gates_and_bias_and_no_frozen_row(block: Block) -> None:
    block.begin([0, 3], ["@a", "@b"])
    inputs = hidden().requires_grad_()
    block.run(inputs, View(LEARNING))[1].square().sum().backward()
    assert inputs.grad is not None and bool(inputs.grad.any())
    kept = torch.tensor([True, False, False, True, False]).repeat_interleave(WIDTH)
    for member in block.group.members:
        gradient = member.segment(LEARNING).weight.grad
        assert bool(gradient[kept].any()) and not gradient[~kept].any()
    assert block.outward.biases.need(LEARNING).grad.any() and block.group.gates.need(LEARNING).grad.all()
    assert [name for name, _ in block.inward.named_parameters()] == [
        f"segments.{LEARNING}.weight", f"segments.{LEARNING}.bias",
    ]  # fmt: skip


def test_a_pool_without_units_leaves_the_ancestors(block: Block) -> None:
    block.learn("@d", list(range(5)), ["@a"])
    assert block.group.count(POOL) == 0
    block.begin([], ["@a"])
    inner, output = block.run(hidden(), View(LEARNING))
    gates = (1 + block.group.gates.need(LEARNING)).repeat_interleave(WIDTH)
    assert torch.equal(inner, F.linear(hidden(), block.rows(["@a"], block.inward), block.inward.segment("@a").bias))
    weight = block.rows(["@a"], block.outward)
    assert torch.equal(output, F.linear(inner * gates, weight.t(), block.outward.biases.need(LEARNING)))


@pytest.mark.parametrize("measure", ["fisher", "taylor"])
def test_probes_add_up_importance_of_units_that_are_kept_without_padding(block: Block, measure: str) -> None:
    block.begin([0, 3], ["@a"])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = []
    for spoiled in (False, True):
        inputs = hidden(2, 5)
        if spoiled:
            inputs[0, 3:] = 100.0
        view = View(LEARNING, probe=measure, token_mask=mask, batch=2)
        block.run(inputs, view)[1].masked_fill(mask.unsqueeze(-1) == 0, 0).square().sum().backward()
        found.append([block.group.reading(suffix).clone() for suffix in ("", "_ancestors")])
        for suffix in ("", "_ancestors"):
            block.group.reading(suffix).zero_()
    own, inherited = found[0]
    assert (own > 0).tolist() == [True, False, False, True, False] and bool((inherited > 0).all())
    assert all(map(torch.equal, *found))


def test_a_probe_is_the_derivative_by_a_gate_of_one() -> None:
    gates = torch.ones(3, requires_grad=True)
    states, factor = hidden(2, 4), torch.randn(2, 4, HIDDEN)
    (states * gates.repeat_interleave(WIDTH) * factor).sum().backward()
    scores = torch.zeros(3)
    UnitProbe.apply(states.clone().requires_grad_(), scores, None, View(LEARNING, probe="taylor")).mul(
        factor
    ).sum().backward()
    torch.testing.assert_close(scores, gates.grad.abs())


# -- the other layers -------------------------------------------------------------------------------------------------


def test_a_table_looks_up_the_columns_that_a_task_sees() -> None:
    torch.manual_seed(0)
    group = UnitGroup("layers.1.heads", 4)
    columns = torch.randn(7, 4)
    table = TaskTable(columns, group)
    TaskLinear(torch.randn(3, 4), None, group, True).pack()
    table.pack()
    indices = torch.tensor([[0, 6], [3, 3]])
    group.begin([])
    with use_view(View(LEARNING)):
        assert torch.equal(table(indices), columns[indices])
    group.kept()[:] = torch.tensor([False, True, False, True])
    group.forget_learning_views()
    group.commit("@a", None)
    group.end()
    with use_view(View("@a")):
        assert torch.equal(table(indices), columns[:, [1, 3]][indices])
    group.begin(["@a"])
    with use_view(View(LEARNING)):
        assert torch.equal(table(indices), columns[:, [1, 3, 0, 2]][indices])
    assert table.weight.shape == (2, 7)


def test_joined_projections_lie_side_by_side(block: Block) -> None:
    other = Block()
    other.learn("@a", [1], [])
    joined = JoinedLinear([block.inward, other.inward])
    with use_view(View("@a")):
        output = joined(hidden())
        assert torch.equal(output, torch.cat([block.inward(hidden()), other.inward(hidden())], -1))
    assert output.shape[-1] == (3 + 1) * WIDTH


def test_a_norm_has_parameters_for_each_task() -> None:
    norm = TaskNorm(nn.LayerNorm(HIDDEN))
    assert list(norm.parameters()) == []
    norm.begin()
    assert [name for name, _ in norm.named_parameters()] == ["tasks.learning.weight", "tasks.learning.bias"]
    with torch.no_grad():
        norm.tasks[LEARNING].weight.fill_(2)
    norm.commit("@a")
    norm.end()
    assert list(norm.parameters()) == []
    pretrained, own = (norm.tasks[key] for key in (POOL, "@a"))
    assert torch.equal(pretrained.weight, torch.ones(HIDDEN)) and torch.equal(own.weight, torch.full((HIDDEN,), 2.0))
    with use_view(View("@a")):
        assert torch.equal(norm(hidden()), own(hidden()))
    norm.rebuild("@b")
    room = norm.tasks["@b"]
    assert type(room) is nn.LayerNorm and room.weight.data_ptr() != pretrained.weight.data_ptr()
    room.weight.fill_(3)
    assert torch.equal(pretrained.weight, torch.ones(HIDDEN))
    assert list(norm.state_dict()) == [
        f"tasks.{key}.{leaf}" for key in (POOL, "@a", "@b") for leaf in ("weight", "bias")
    ]
