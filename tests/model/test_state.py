"""The state of a model at rest: loaded as a state dict, copied, converted."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.backbones import tiny_model
from support.data import learn, logits_of, make_batch
from support.folders import (
    CHANGED,
    answers,
    changed,
    same,
)

from eidetic_hf import CheckpointError, EideticModel
from eidetic_hf.network.layers import TaskLinear


@pytest.fixture
def model(trained: EideticModel) -> EideticModel:
    """A copy of `trained` of the test's own."""
    return copy.deepcopy(trained)


def task_linears(model: EideticModel) -> list[TaskLinear]:
    """All projections above the trunk."""
    return [module for module in model.modules() if isinstance(module, TaskLinear)]


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("learning", [False, True])
def test_load_state_dict_never_writes_a_committed_tensor(model: EideticModel, name: str, learning: bool) -> None:
    if learning:
        model.add_task("third", labels=["x", "y"])
        model.begin_task("third")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"another {re.escape(name)} than this model, and it is frozen"):
        model.load_state_dict({**before, name: before[name] + 1})
    assert changed(model.state_dict(), before) == []
    model.abandon_task()
    assert model.verify().ok


def test_load_state_dict_takes_the_models_own_state_and_changes_nothing(model: EideticModel) -> None:
    before, expected = {k: t.clone() for k, t in model.state_dict().items()}, answers(model)
    model.load_state_dict(before)
    assert changed(model.state_dict(), before) == []
    assert same(answers(model), expected) and all(layer.is_packed() for layer in task_linears(model))


# -- copies -----------------------------------------------------------------------------------------------------------


def through_torch(model: EideticModel) -> EideticModel:
    """The model, saved and loaded with `torch.save`."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_torch])
def test_a_copy_answers_with_the_same_bits_and_shares_nothing(
    trained: EideticModel, duplicate: Callable[[EideticModel], EideticModel], tmp_path: Path
) -> None:
    expected = answers(trained)
    twin = duplicate(trained)
    assert same(answers(twin), expected)
    assert twin.verify().ok and all(layer.is_packed() for layer in task_linears(twin))
    learn(twin, "third", tmp_path / "run", seed=2)
    assert same({name: logits_of(twin, name) for name in expected}, expected)
    assert twin.verify().ok
    for tensor in twin.state_dict().values():
        tensor.zero_()
    assert trained.tasks == ["first", "second"] and same(answers(trained), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_torch])
def test_a_model_that_was_asked_for_hidden_states_is_copied_and_gives_them_again(
    model: EideticModel, duplicate: Callable[[EideticModel], EideticModel]
) -> None:
    def states(model: EideticModel) -> tuple[torch.Tensor, ...]:
        return model(**make_batch(), task="first", output_hidden_states=True).hidden_states

    expected = states(model)
    twin = duplicate(model)
    for again in (states(twin), states(model)):
        assert len(again) == len(expected) > 1 and all(map(torch.equal, again, expected))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_torch])
def test_a_copy_made_while_a_task_is_being_learned_is_a_model_of_its_own(
    model: EideticModel, duplicate: Callable[[EideticModel], EideticModel]
) -> None:
    model.add_task("third", labels=["x", "y"])
    model.begin_task("third")
    twin = duplicate(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(7)
    twin.learner.take_snapshot("good")
    kept = twin.learner._snapshot("good")
    assert {float(t.min()) for n, t in kept.items() if t.is_floating_point() and t.numel()} == {7.0}


@pytest.mark.parametrize(
    "convert",
    [
        lambda model: model.to(torch.float64).to(torch.float32),
        lambda model: model.double().float(),
        lambda model: model.cpu(),
        lambda model: model.to("cpu", torch.float32),
        lambda model: model.train().eval(),
        lambda model: model.requires_grad_(False),
    ],
)
def test_converting_there_and_back_keeps_the_packing_and_the_bits(
    model: EideticModel, convert: Callable[[EideticModel], EideticModel]
) -> None:
    expected = answers(model)
    convert(model)
    assert all(layer.is_packed() for layer in task_linears(model))
    assert same(answers(model), expected) and model.verify().ok


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_converted_model_is_packed_and_answers_in_the_new_dtype(model: EideticModel, dtype: torch.dtype) -> None:
    expected = answers(model)  # fills the caches of views, which must not outlive the conversion
    model.to(dtype)
    assert model.dtype == dtype and all(layer.is_packed() for layer in task_linears(model))
    for name in model.tasks:
        logits = logits_of(model, name)
        assert logits.dtype == dtype
        assert float((logits - expected[name]).abs().max()) < (1e-5 if dtype == torch.float64 else 0.1)


# -- without a Parameter ----------------------------------------------------------------------------------------------


def test_a_model_at_rest_has_a_device_and_a_dtype_everywhere(model: EideticModel) -> None:
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        for part in (model, model.backbone):
            assert (part.device, part.dtype) == (torch.device("cpu"), dtype)
    stacks = tiny_model("t5").backbone
    assert {stacks.encoder.device, stacks.decoder.device, stacks.device} == {torch.device("cpu")}
    assert tiny_model().to("meta").backbone.device.type == "meta"


@pytest.mark.parametrize("whose", [lambda model: model, lambda model: model.backbone])
def test_whoever_needs_a_parameter_is_told_what_to_do(model: EideticModel, whose: Callable) -> None:
    part = whose(model)
    with pytest.raises(StopIteration, match=r"ask model\.device and model\.dtype\..* model\.begin_task\(name\)"):
        next(part.parameters())
    for make in (torch.optim.AdamW, lambda found: torch.optim.SGD([{"params": found}], lr=1)):
        with pytest.raises(ValueError, match="make the optimizer after it"):
            make(part.parameters())
    assert list(part.parameters()) == [] and next(part.parameters(), None) is None and not any(part.parameters())
    model.add_task("third", labels=["x", "y"])
    model.begin_task("third")
    found = part.parameters()
    first = next(found)
    every = [first, *found]
    assert len(every) == len(list(part.parameters())) > 10
    assert sum(len(group["params"]) for group in torch.optim.AdamW(part.parameters()).param_groups) == len(every)


def test_a_task_can_be_traced(model: EideticModel) -> None:
    class OfOneTask(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.model(ids, mask, task="second").logits

    for module in [*tiny_model().modules(), *model.modules()]:  # which torch.jit.trace asks for every name
        assert all(isinstance(hasattr(module, name), bool) for name in dir(module))
    batch = make_batch()
    with torch.no_grad():
        traced = torch.jit.trace(OfOneTask(), tuple(batch.values()))
        other = make_batch(7)
        assert torch.equal(traced(*other.values()), logits_of(model, "second", other))
