"""Tasks that are learned at once, by a random step, for tests of what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from support.data import make_data

from eidetic_hf import EideticModel, PruningConfig
from eidetic_hf.configuration import TaskRecord


def learn_quickly(
    model: EideticModel,
    name: str,
    seed: int,
    keep: float = 0.3,
    own: float = 0.2,
    see: float = 0.7,
    reads: Sequence[int] = (),
    metrics: Mapping[str, float] | None = None,
    **options: Any,
) -> TaskRecord:
    """Learn a task of three labels: each Parameter takes a random step, random units are masked out.

    Args:
        model: the model.
        name: of the task.
        seed: of the step.
        keep: share of the pool's units to keep.
        own: share of base's units to copy.
        see: share of others' units to read.
        reads: tokens that its data has.
        metrics: for its record.
        options: for `add_task`.
    """
    model.add_task(name, labels=["x", "y", "z"], **options)
    copies = {"own": own, "see": see}
    pruning = copies if model.config.growth == "copy" else {"keep": keep, "keep_ancestors": see}
    model.begin_task(name, PruningConfig(**pruning))
    generator = torch.Generator().manual_seed(seed)
    data = make_data(seed, rows=16)
    batch = {column: torch.tensor(data[column][:]) for column in data.column_names}
    for place, token in enumerate(reads):
        batch["input_ids"][place, 0] = token
    model(**{column: values for column, values in batch.items() if column != "labels"})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        for group in model.network.unit_groups():
            for suffix in ("", "_ancestors"):
                importance = group.importance(suffix)
                importance.copy_(torch.rand(importance.shape, generator=generator))
    model.learner.set_steps(3)
    return model.commit_task(metrics, model.router_sums([batch]))
