"""How much a task needs each unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..views import View

if TYPE_CHECKING:
    pass


class UnitProbe(torch.autograd.Function):
    """Identity that reads, in the backward pass, how much the loss depends on each unit's output.

    With a gate g = 1 on a unit's output h, the loss's derivative by that gate is the sum over tokens of h * dL/dh.
    `"fisher"` adds up its square over sequences (Kwon et al., arXiv 2204.09656), `"taylor"` its magnitude over
    batches (|gate x gradient|, Molchanov et al., arXiv 1906.10771). Padding tokens do not count.
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
        units = ctx.scores.numel() if ctx.index is None else ctx.index.numel()
        if units:
            derivative = (hidden.float() * gradient.float()).unflatten(-1, (units, -1)).sum(-1)
            if derivative.dim() == 2:  # tokens of all sequences in one list, as OPT's MLP has them
                derivative = derivative.unflatten(0, (ctx.view.batch, -1))
            if ctx.view.token_mask is not None:
                derivative = derivative * ctx.view.token_mask.to(derivative.dtype).unsqueeze(-1)
            by_sequence = derivative.sum(1)
            if ctx.view.probe == "fisher":
                score = by_sequence.square().sum(0)
            else:
                score = by_sequence.sum(0).abs()
            if ctx.index is None:
                ctx.scores.add_(score)
            else:
                ctx.scores.index_add_(0, ctx.index, score)
        return gradient, None, None, None
