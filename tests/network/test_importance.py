"""Importance scores by name: what each adds up of a batch, what it makes of that, and names that nobody knows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eidetic_hf import PruningConfig
from eidetic_hf.network import importance
from eidetic_hf.network.importance import (
    Importance,
    UnitProbe,
    importance_of,
    importances,
    register_importance,
)
from eidetic_hf.views import LEARNING, View

WEIGHTS = [torch.tensor([[3.0, -4.0], [1.0, 2.0]]), torch.tensor([[0.0], [-2.0]])]


def scored(name: str, accumulated: Tensor | None = None, seed: int = 0) -> Tensor:
    return importance_of(name).score(torch.zeros(2) if accumulated is None else accumulated, lambda: WEIGHTS, seed)


def test_norms_are_over_all_weights_of_a_unit() -> None:
    assert scored("l1").tolist() == [7.0, 5.0]
    torch.testing.assert_close(scored("l2"), torch.tensor([5.0, 3.0]))


def test_random_scores_depend_on_the_seed_alone() -> None:
    assert torch.equal(scored("random", seed=3), scored("random", torch.ones(2), seed=3))
    assert not torch.equal(scored("random", seed=3), scored("random", seed=4))


@pytest.mark.parametrize(("name", "expected"), [("fisher", [1.0 + 9.0, 4.0 + 0.25]), ("taylor", [2.0, 2.5])])
def test_a_probe_adds_up_what_its_importance_folds(name: str, expected: list[float]) -> None:
    """Two sequences of two tokens and two units of one feature, the last token of the second one being padding."""
    hidden = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[-3.0, 0.5], [100.0, 100.0]]], requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 0]])
    sums = torch.zeros(2)
    view = View(LEARNING, probe=name, token_mask=mask, batch=2)
    UnitProbe.apply(hidden, sums, None, view).sum().backward()
    assert torch.equal(hidden.grad, torch.ones_like(hidden)), "the gradient passes through as it is"
    torch.testing.assert_close(sums, torch.tensor(expected))
    assert torch.equal(scored(name, sums), sums)


def test_a_probe_of_some_units_leaves_the_others_alone() -> None:
    hidden, sums = torch.ones(1, 1, 2, requires_grad=True), torch.zeros(4)
    UnitProbe.apply(hidden, sums, torch.tensor([1, 3]), View(LEARNING, probe="fisher", batch=1)).sum().backward()
    assert sums.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_only_those_that_read_gradients_need_a_probe() -> None:
    assert [name for name in importances() if importance_of(name).needs_gradient] == ["fisher", "taylor"]


def test_an_unknown_name_is_an_error_everywhere() -> None:
    with pytest.raises(ValueError, match=r"importance='gut feeling'\): expected one of \['fisher', 'taylor'"):
        PruningConfig(importance="gut feeling")
    with pytest.raises(ValueError, match="importance='gut feeling': expected one of"):
        importance_of("gut feeling")


def test_a_name_given_twice_is_an_error_and_a_new_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "_IMPORTANCES", dict(importance._IMPORTANCES))
    with pytest.raises(ValueError, match="There is an importance 'l1' already"):
        register_importance(Importance("l1", importance_of("l2").score))
    register_importance(Importance("largest", lambda sums, weights, seed: weights()[0].abs().amax(1)))
    assert PruningConfig(importance="largest").importance == "largest"
    assert scored("largest").tolist() == [4.0, 2.0]
