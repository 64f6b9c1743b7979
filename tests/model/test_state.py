"""The state of a model at rest: loaded as a state dict, copied, converted."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.data import learn, logits_of
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
