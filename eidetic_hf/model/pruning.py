"""Which units a task keeps: importance, the cubic schedule, the search for a budget, and their state.

Only free units are ever scored or dropped. An owned unit is in no tensor that this module changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor

from ..network.capacity import capacities
from ..network.importance import importances

RECYCLES = ("pretrained", "random")
SELECTS = ("first", "last", "random")  # how units are chosen that a task copies
# What is meant where nothing is said: for a share of the units, and for a search.
DEFAULTS = {"start": 0.3, "end": 0.6}
DEFAULT_KEEP = 0.3
# What says something in one growth alone, so that the other refuses it.
OF_FIXED = ("keep", "keep_ancestors", "recycle", "on_exhausted", "expand_by")
OF_COPY = ("own", "see", "select")
SEARCHING = {"start": 0.5, "end": 0.9}

# Scores of one pruning event fade by this factor before the next, so that a decision rests on more than one interval.
SCORE_MEMORY = 0.5


@dataclass(frozen=True)
class PruningConfig:
    """How a task's subnetwork is cut out of the free units.

    Attributes:
        keep: share of the free units of each kind (heads, neurons) that the task keeps, in (0, 1]; 0.3 if neither this
            nor `tolerance` is given.
        own: where units are copied (`growth="copy"`), the share of the backbone's units of each layer that the task
            copies and trains, in (0, 1].
        see: the share of the units that it may read that it goes on reading, in (0, 1]; the rest is masked out.
        select: which units it copies: `"first"`, those whose gates have the largest squared gradients before training;
            `"last"`, all are copied and trained, and when pruning begins all but the most changed return to the
            backbone's values, which takes the memory of all units until then; or `"random"`, drawn from the seed and
            the task's name.
        keep_ancestors: share of the ancestors' units that it goes on reading, in (0, 1]; the rest is masked out.
        tolerance: instead of `keep`, prune as far as the validation metric stays within this of the best that the
            task has reached with more units (in the metric's own unit), by bisection. Needs an `eval_dataset`; the
            metric is the one that `TrainingArguments.metric_for_best_model` names, else the loss. Where units are
            copied, `see` is searched for, or `own` with `select="last"`.
        rounds: evaluations that the bisection may spend.
        importance: `"fisher"` (squared gradient of the unit's gate, per sequence), `"taylor"` (|gate x gradient|, per
            batch), `"l1"` or `"l2"` (norm of the unit's weights), or `"random"`.
        start: share of the training steps after which pruning begins; 0.3, or 0.5 with a `tolerance`, as a network
            that is only half trained is easily equalled.
        end: share of the training steps after which it is done; the rest is recovery; 0.6, or 0.9 with a `tolerance`.
        events: number of pruning events between them.
        floor: every layer keeps at least this share of an even split over layers, and one unit it can see.
        recycle: value that pruned units return to the pool with: `"pretrained"`, or `"random"` as in EideticNet.
        distillation: weight, in [0, 1), of distilling from the task's own unpruned network once pruning begins.
        temperature: of the distillation's softmax.
        on_exhausted: what to do when no unit is free: `"private"` parameters only, `"expand"` the pool, or `"error"`.
        expand_by: units added to each exhausted group by `"expand"`, as a share of its size.
        seed: of `importance="random"`; where units are copied, of the head and of `select="random"`, too.
    """

    keep: float | None = None
    own: float = 0.05
    see: float = 1.0
    select: str = "first"
    keep_ancestors: float = 1.0
    tolerance: float | None = None
    rounds: int = 4
    importance: str = "fisher"
    start: float | None = None
    end: float | None = None
    events: int = 10
    floor: float = 0.5
    recycle: str = "pretrained"
    distillation: float = 0.0
    temperature: float = 2.0
    on_exhausted: str = "private"
    expand_by: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise ValueError(f"PruningConfig({name}={getattr(self, name)!r}): expected {expected}.")

        def is_number(value: object) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool)

        for name, value in (DEFAULTS if self.tolerance is None else SEARCHING).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("keep", "own", "see", "keep_ancestors"):
            value = getattr(self, name)
            if name != "keep" or value is not None:
                check(is_number(value) and 0 < value <= 1, name, "a share in (0, 1], such as 0.3")
        check(
            self.tolerance is None or (is_number(self.tolerance) and self.tolerance >= 0), "tolerance", "a number >= 0"
        )
        check(self.tolerance is None or self.keep is None, "keep", "none together with a tolerance, which finds it")
        for name in ("keep_ancestors", "see"):
            check(self.tolerance is None or getattr(self, name) == 1, name, "1 together with a tolerance")
        for name, allowed in (
            ("select", SELECTS),
            ("importance", importances()),
            ("recycle", RECYCLES),
            ("on_exhausted", capacities()),
        ):
            check(
                isinstance(getattr(self, name), str) and getattr(self, name) in allowed,
                name,
                f"one of {list(allowed)}",
            )
        start, end = cast(float, self.start), cast(float, self.end)
        check(is_number(start) and 0 <= start < 1, "start", "a share in [0, 1)")
        check(is_number(end) and start <= end <= 1, "end", f"a share in [start={start}, 1]")
        for name in ("rounds", "events"):
            check(isinstance(getattr(self, name), int) and getattr(self, name) >= 1, name, "a whole number >= 1")
        check(is_number(self.floor) and 0 <= self.floor <= 1, "floor", "a share in [0, 1]")
        check(is_number(self.distillation) and 0 <= self.distillation < 1, "distillation", "a weight in [0, 1)")
        check(is_number(self.temperature) and self.temperature > 0, "temperature", "a number > 0")
        check(is_number(self.expand_by) and self.expand_by > 0, "expand_by", "a share > 0")


def said_of_the_other(config: PruningConfig, copies: bool) -> str | None:
    """A setting that was given and says nothing in this growth; `None` if there is none."""
    names = OF_FIXED if copies else OF_COPY
    usual = {field.name: field.default for field in fields(PruningConfig)}
    return next((name for name in names if getattr(config, name) != usual[name]), None)


def cubic_keep(progress: float, keep: float) -> float:
    """Share of units kept after a share `progress` of the pruning phase (Zhu & Gupta, arXiv 1710.01878)."""
    return keep + (1 - keep) * (1 - min(max(progress, 0.0), 1.0)) ** 3


def choose_units(scores: list[Tensor], kept: list[Tensor], count: int, floors: list[int]) -> list[Tensor]:
    """Keep the `count` units with the highest scores over all layers, but at least a layer's floor in each.

    Args:
        scores: importance per unit and layer, each `(units,)`.
        kept: units still kept, boolean, each `(units,)`; others never come back.
        count: units to keep over all layers.
        floors: units to keep at least, per layer.

    Returns:
        Masks like `kept`.
    """
    ranked = []
    for score, mask, floor in zip(scores, kept, floors, strict=True):
        score = torch.nan_to_num(score.double(), nan=0.0).masked_fill(~mask, -math.inf)
        order = score.argsort(descending=True, stable=True)
        ranked.append(score.index_fill(0, order[: min(floor, int(mask.sum()))], math.inf))
    joined = torch.cat(ranked)
    count = min(max(count, int((joined == math.inf).sum())), int(torch.cat(kept).sum()))
    chosen = torch.zeros_like(joined, dtype=torch.bool)
    chosen[joined.argsort(descending=True, stable=True)[:count]] = True
    return list(chosen.split([len(score) for score in scores]))
