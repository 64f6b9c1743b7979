"""Which task a new one starts from, found by trying: `based_on="auto"`, where units are copied.

The committed tasks whose texts are nearest to the new one's, by the router's sums, and base itself are each learned
on for a few steps of the same batches, and thrown away. Where the loss on batches that are held out is lowest, there
the task begins; on base, if none is better by a margin.

Invariant: a trial leaves nothing behind but its answer, and that depends on the batches, on what is committed, and on
the task's name and seed, and on nothing that the process did before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..configuration import AUTO, TaskError
from ..network.backbone import evaluation_mode, random_numbers_for
from . import life
from .parts import Parts, committed, record_of
from .pruning import PruningConfig
from .routing import router_sums

logger = logging.get_logger(__name__)

HELD_OUT = 4  # every so manieth batch is not learned from, but compared on
CHOOSING = 8  # batches by which a trial chooses the units that it copies
LARGEST_NORM = 1.0  # of a step's gradients

Batches = Sequence[Mapping[str, Any]]


def choose_branch(
    model: Parts,
    name: str,
    batches: Iterable[Mapping[str, Any]],
    pruning: PruningConfig,
    nearest: int,
    learning_rate: float,
    margin: float,
) -> str | None:
    """Choose the task that one with `based_on="auto"` starts from, see `EideticModel.choose_branch`."""
    record = record_of(model, name)
    if not wants_branch(model, name):
        raise TaskError(
            f"There is no branch to choose for '{name}': it is not waiting for one. Add a task with based_on='auto', "
            "and choose before it begins."
        )
    with random_numbers_for(model.device, "batches", name, pruning.seed):  # a collator may draw what it masks
        given = list(batches)
    if len(given) < HELD_OUT:
        raise ValueError(
            f"Got {len(given)} batches to choose a branch for '{name}' by; expected {HELD_OUT} at least, since every "
            f"{HELD_OUT}th is held out."
        )
    learned = [batch for number, batch in enumerate(given, 1) if number % HELD_OUT]
    held_out = given[HELD_OUT - 1 :: HELD_OUT]
    candidates = _nearest(model, name, given, pruning, nearest)
    losses: dict[str | None, float] = {}
    for candidate in (None, *candidates) if candidates else ():
        losses[candidate] = _trial(model, name, candidate, pruning, learned, held_out, learning_rate)
    chosen = min(candidates, key=lambda candidate: losses[candidate], default=None)
    if chosen is not None and not losses[chosen] < losses[None] - margin * abs(losses[None]):
        chosen = None
    tried = ", ".join(f"{candidate or 'base'} {loss:.4g}" for candidate, loss in losses.items())
    logger.info(f"'{record.name}' starts from {chosen or 'base'} (losses after a few steps: {tried or 'none tried'}).")
    set_branch(model, name, [] if chosen is None else life.branch_to(model, chosen))
    return chosen


def wants_branch(model: Parts, name: str) -> bool:
    """Whether a task was added with `based_on="auto"`, and nothing is chosen yet."""
    return name in model.added and model.added[name].forward_transfer == AUTO


def set_branch(model: Parts, name: str, ancestors: list[str]) -> None:
    """Settle what a task with `based_on="auto"` starts from: the last of these, with those that it is based on.

    Raises:
        TaskError: if one of them is not committed here.
    """
    lacking = [ancestor for ancestor in ancestors if model.config.task(ancestor) is None]
    if lacking:
        raise TaskError(
            f"'{name}' began on the branch {ancestors}, and {lacking} is not committed in this model; committed are "
            f"{committed(model)}. Resume it on the model that it was begun on."
        )
    model.added[name] = model.added[name]._replace(forward_transfer=ancestors or "none")
    record_of(model, name).ancestors = list(ancestors)


def _nearest(model: Parts, name: str, batches: Batches, pruning: PruningConfig, count: int) -> list[str]:
    """The committed tasks whose texts are most like those of some batches, the nearest first."""
    others = [task.name for task in model.config.tasks if model.router.has(task.name)]
    if not others or count < 1:
        return []
    with _begun(model, name, None, pruning):
        sums = router_sums(model, batches)
    if not int(sums.count.sum()):  # no text of it counts
        return []
    found = model.router.distances(sums)
    return sorted(others, key=lambda other: (found[other], other))[:count]


def _trial(
    model: Parts,
    name: str,
    candidate: str | None,
    pruning: PruningConfig,
    learned: Batches,
    held_out: Batches,
    learning_rate: float,
) -> float:
    """The loss on batches that are held out, after a step on each of the others."""
    module = cast(nn.Module, model)
    with _begun(model, name, candidate, pruning):
        if pruning.select == "first":
            life.choose_units(model, learned[:CHOOSING])
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0)
        module.train()
        with torch.enable_grad():
            for batch in learned:
                _loss(model, batch).backward()
                nn.utils.clip_grad_norm_(trained, LARGEST_NORM)
                optimizer.step()
                optimizer.zero_grad()
        with evaluation_mode(module), torch.no_grad():
            loss = sum(float(_loss(model, batch)) for batch in held_out) / len(held_out)
    return loss if math.isfinite(loss) else math.inf


def _loss(model: Parts, batch: Mapping[str, Any]) -> Tensor:
    inputs = {name: value.to(model.device) for name, value in batch.items() if isinstance(value, Tensor)}
    return cast(nn.Module, model)(**inputs).loss


@contextmanager
def _begun(model: Parts, name: str, candidate: str | None, pruning: PruningConfig) -> Iterator[None]:
    """Begin a task on a branch, and drop it in the end; random numbers inside are the same for every branch."""
    added = model.added[name]
    branch = "none" if candidate is None else life.branch_to(model, candidate)
    model.added[name] = added._replace(forward_transfer=branch)
    try:
        with random_numbers_for(model.device, "trial", name, pruning.seed):
            life.begin_task(model, name, pruning)
            yield
    finally:
        if model.learner is not None and model.learner.name == name:
            life.abandon_task(model)
        model.added[name] = added
