"""How much a task needs each unit: importance scores by name, and the probe that reads gradients for some of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..views import View


@dataclass(frozen=True)
class Importance:
    """One way to score units; higher scores are kept.

    Attributes:
        name: as `PruningConfig(importance=...)` has it.
        score: the scores of a layer's units, `(units,)`, of what their probe added up, `(units,)`; of a function that
            returns the weights of each projection that the units take part in, `(units, weights)` float32 each; and of
            a seed.
        fold: what one batch adds to a unit's sum, `(units,)`, of the derivative of each sequence's loss by the gate on
            the unit's output, `(sequences, units)`. `None` where no gradient is needed.
    """

    name: str
    score: Callable[[Tensor, Callable[[], list[Tensor]], int], Tensor]
    fold: Callable[[Tensor], Tensor] | None = None

    @property
    def needs_gradient(self) -> bool:
        """Whether a probe has to read gradients while the task is being learned."""
        return self.fold is not None


_IMPORTANCES: dict[str, Importance] = {}


def register_importance(importance: Importance) -> None:
    """Make an importance score usable by its name.

    Raises:
        ValueError: if there is one of this name.
    """
    if importance.name in _IMPORTANCES:
        raise ValueError(f"There is an importance '{importance.name}' already. Choose another name.")
    _IMPORTANCES[importance.name] = importance


def importances() -> list[str]:
    """Names of all importance scores."""
    return list(_IMPORTANCES)


def importance_of(name: str) -> Importance:
    """The importance score of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in _IMPORTANCES:
        raise ValueError(f"importance={name!r}: expected one of {importances()}, or register one.")
    return _IMPORTANCES[name]


def _added_up(accumulated: Tensor, weights: Callable[[], list[Tensor]], seed: int) -> Tensor:
    """What the probe added up."""
    return accumulated


def _norm(order: int) -> Callable[[Tensor, Callable[[], list[Tensor]], int], Tensor]:
    """The norm of all weights of a unit."""

    def score(accumulated: Tensor, weights: Callable[[], list[Tensor]], seed: int) -> Tensor:
        total = torch.zeros_like(accumulated)
        for weight in weights():
            total += weight.abs().pow(order).sum(1)
        return total.pow(1 / order)

    return score


def _random(accumulated: Tensor, weights: Callable[[], list[Tensor]], seed: int) -> Tensor:
    """Numbers that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(accumulated.numel(), generator=generator).to(accumulated.device)


for _importance in (
    # Squared gradient of the gate, per sequence (Kwon et al., arXiv 2204.09656).
    Importance("fisher", _added_up, fold=lambda derivative: derivative.square().sum(0)),
    # |gate x gradient|, per batch (Molchanov et al., arXiv 1906.10771).
    Importance("taylor", _added_up, fold=lambda derivative: derivative.sum(0).abs()),
    Importance("l1", _norm(1)),
    Importance("l2", _norm(2)),
    Importance("random", _random),
):
    register_importance(_importance)


class UnitProbe(torch.autograd.Function):
    """Identity that reads, in the backward pass, how much the loss depends on each unit's output.

    With a gate g = 1 on a unit's output h, the loss's derivative by that gate is the sum over tokens of h * dL/dh. The
    `Importance` that the view names says what a batch of such derivatives adds up to. Padding tokens do not count.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, scores: Tensor, index: Tensor | None, view: View) -> Tensor:
        """Pass `hidden`, `(batch, sequence, units * width)`, through.

        `scores`, `(units in all,)`, adds up importance.
        """
        ctx.save_for_backward(hidden)
        ctx.scores, ctx.index, ctx.view = scores, index, view
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Accumulate the scores of the units at `index` (all, if `None`) and hand the gradient on unchanged."""
        (hidden,), (gradient,) = ctx.saved_tensors, gradients
        fold = importance_of(ctx.view.probe).fold
        units = ctx.scores.numel() if ctx.index is None else ctx.index.numel()
        if units and fold is not None:
            derivative = (hidden.float() * gradient.float()).unflatten(-1, (units, -1)).sum(-1)
            if derivative.dim() == 2:  # tokens of all sequences in one list, as OPT's MLP has them
                derivative = derivative.unflatten(0, (ctx.view.batch, -1))
            if ctx.view.token_mask is not None:
                derivative = derivative * ctx.view.token_mask.to(derivative.dtype).unsqueeze(-1)
            score = fold(derivative.sum(1))
            score = torch.where(torch.isfinite(score), score, 0)  # an overflowed step says nothing, and is not kept
            if ctx.index is None:
                ctx.scores.add_(score)
            else:
                ctx.scores.index_add_(0, ctx.index, score)
        return gradient, None, None, None
