"""The backbone itself as a task, where units are copied: what it answered before any task it answers for ever.

Base never changes, so nothing has to be learned or kept for that. The task reads all of base, with the pretrained
norms and output biases, and copies no unit; a head that was pretrained with the backbone is its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..configuration import TaskError, TaskRecord
from ..kinds import kind_of, kind_of_backbone
from ..network.backbone import random_numbers_for
from . import life
from .parts import Parts
from .pruning import PruningConfig
from .routing import router_sums

BASE_TASK = "base"  # what it is called, where nobody says otherwise


def preserve(
    model: Parts,
    name: str,
    task_type: str | None,
    batches: Iterable[Mapping[str, Any]] | None,
    options: Mapping[str, Any],
) -> TaskRecord:
    """Let the backbone itself answer as a task, see `EideticModel.preserve`."""
    if not model.network.growth.copies:
        raise TaskError(
            f"preserve(name={name!r}) is for growth='copy', where base stays as it came. With growth='fixed' tasks "
            "take the backbone's units, and nothing of it is left as a whole: start with "
            "EideticModel.from_backbone(..., growth='copy')."
        )
    record = TaskRecord(name, task_type or kind_of_backbone(model.config))
    life.add_task(model, record, None, None, options)
    try:
        _check_head(model, record)
        life.begin_task(model, name, PruningConfig(), is_base=True)
        return life.commit_task(model, None, None if batches is None else router_sums(model, batches))
    except BaseException:
        if model.learner is not None and model.learner.name == name:
            life.abandon_task(model)
        model.added.pop(name, None)
        raise


def _check_head(model: Parts, record: TaskRecord) -> None:
    """Raise a `TaskError` if the task's head would answer with random weights."""
    kind = kind_of(record)
    if kind.reads_vocabulary and model.config.language_head is not None:
        return
    with random_numbers_for(model.device, "head"):
        is_random = any(True for _ in life.new_head(model, record).parameters())
    if is_random:
        raise TaskError(
            f"'{record.name}' cannot be {kind.name}: the backbone came without the head that this needs, and a random "
            f"one is nothing to preserve. Preserve it as {kind_of_backbone(model.config)} (task_type=None), or start "
            "from a checkpoint with that head."
        )
