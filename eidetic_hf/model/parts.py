"""What a model is made of, as the functions of this room see it, and what is asked of it everywhere."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import nn
from transformers import GenerationConfig

from ..configuration import EideticConfig, TaskError, TaskRecord, plain_name
from ..network.network import Network
from .learner import Learner
from .router import Router


class Added(NamedTuple):
    """A task that was added and is not committed.

    Attributes:
        record: what is known of it.
        forward_transfer: which earlier tasks it will read: `"all"`, `"none"` or names; or `"auto"`, a branch that is
            not chosen yet.
    """

    record: TaskRecord
    forward_transfer: str | list[str]


class Parts(Protocol):
    """The parts of an `EideticModel`.

    Attributes:
        config: the model's configuration, with a record per committed task.
        network: the backbone in which tasks own units.
        heads: one per task, and one of the task being learned.
        language_head: the pretrained language-model head, from which those of tasks start, if there was one.
        probes: what each task's certificate compares with.
        router: says which task a sequence belongs to.
        routing: how deep it reads, see `EideticModel.routing`.
        learner: state of the task being learned.
        added: tasks that were added and not committed, by name.
        generation_config: how texts are written.
        removed: digests of the tasks that were removed, by name: a save may let them go.
        run_task: the task of the last run of a Trainer that does not say which one it means: targets that come without
            a task are its.
        training: whether the model is in training mode.
    """

    config: EideticConfig
    network: Network
    heads: nn.ModuleDict
    language_head: nn.ModuleDict
    probes: nn.ModuleDict
    router: Router
    routing: str
    learner: Learner | None
    added: dict[str, Added]
    removed: dict[str, str]
    generation_config: GenerationConfig
    run_task: str | None
    training: bool

    @property
    def answering(self) -> str:
        """The kind of tasks that are routed among where no task is named."""

    @property
    def device(self) -> torch.device:
        """Device of the model's tensors."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's floating-point tensors."""


def committed(model: Parts) -> list[str]:
    """Names of the committed tasks that the model answers for, in commit order."""
    return [task.name for task in model.config.tasks if model.config.serves(task.name)]


def record_of(model: Parts, name: str) -> TaskRecord:
    """What is known of a task, committed or only added.

    Raises:
        TaskError: if there is no task of this name.
    """
    name = plain_name(name)
    record = model.config.task(name)
    if record is not None:
        return record
    if name in model.added:
        return model.added[name].record
    raise TaskError(
        f"There is no task '{name}'; committed are {committed(model)}, added {list(model.added)}. Add it with "
        f"model.add_task({name!r}, labels=[...])."
    )
