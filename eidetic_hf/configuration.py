"""What a model is made of, as plain values: the backbone's configuration and one record per task."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from transformers import AutoConfig, PreTrainedConfig

FORMAT_VERSION = 1

TASK_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
TASK_TYPES = ("sequence-classification",)
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
POOLINGS = ("mean", "first")


class TaskError(ValueError):
    """A task's name, labels or state does not allow what was asked."""


def check_task_name(name: object) -> str:
    """Return `name` if it can name a task, a file and a tensor.

    Raises:
        TaskError: if it is not 1 to 64 letters, digits, `-`, `_` or `.`, or starts with a dot.
    """
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        raise TaskError(
            f"{name!r} cannot name a task: expected 1 to 64 letters, digits, '-', '_' or '.', not starting with a "
            "dot, such as 'agnews' or 'customer-mail.v2'."
        )
    return name


@dataclass
class TaskRecord:
    """What `config.json` holds of one task: enough to rebuild every shape of its subnetwork.

    Attributes:
        name: the task's name.
        task_type: one of `TASK_TYPES`.
        problem_type: one of `PROBLEM_TYPES`, with the meaning it has in transformers.
        labels: names of the labels in the order of the logits; for regression, names of the targets.
        ancestors: earlier tasks whose units this task reads, in commit order.
        pooling: how the head reads the sequence: mean over real tokens, or the first token.
        head_dropout: dropout probability before the classifier, while the task is being learned.
        units: units owned, per unit group (`{"layers.2.neurons": 460, ...}`). Empty before the commit.
        metrics: figures that the trainer measured at commit, for the model card.
        certificate: digests and environment, written at commit (see `certificate.py`).
    """

    name: str
    task_type: str = "sequence-classification"
    problem_type: str = "single_label_classification"
    labels: list[str] = field(default_factory=list)
    ancestors: list[str] = field(default_factory=list)
    pooling: str = "mean"
    head_dropout: float = 0.1
    units: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_task_name(self.name)
        for value, allowed, what in (
            (self.task_type, TASK_TYPES, "task_type"),
            (self.problem_type, PROBLEM_TYPES, "problem_type"),
            (self.pooling, POOLINGS, "pooling"),
        ):
            if value not in allowed:
                raise TaskError(f"Task '{self.name}': {what}={value!r} is unknown; expected one of {list(allowed)}.")
        if not self.labels:
            raise TaskError(
                f"Task '{self.name}' has no labels. Give labels=[...] in the order of the logits "
                "(for regression, the names of the targets, such as ['score'])."
            )
        is_list = isinstance(self.labels, list) and all(isinstance(label, str) for label in self.labels)
        if not is_list or len(set(self.labels)) != len(self.labels):
            raise TaskError(f"Task '{self.name}': labels must be distinct strings, got {self.labels!r}.")
        if self.problem_type == "single_label_classification" and len(self.labels) < 2:
            raise TaskError(
                f"Task '{self.name}': one label ({self.labels[0]!r}) leaves nothing to classify; give two."
            )

        dropout = self.head_dropout
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise TaskError(f"Task '{self.name}': head_dropout={dropout!r}: expected a probability in [0, 1).")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TaskRecord:
        """Read a record, ignoring fields that a later version may have added."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values."""
        return asdict(self)


class EideticConfig(PreTrainedConfig):
    """Configuration of an `EideticModel`: a backbone, where its trunk ends, and the tasks in commit order.

    Args:
        base_config: configuration of the backbone (a `PreTrainedConfig` or its dictionary).
        trunk_layers: number of layers that stay at their pretrained values; `None` means a third of the depth.
        trunk_pretrained: `False` for a backbone that was made from a configuration: the first task trains the trunk.
        forward_transfer: which earlier tasks a new task reads by default: `"all"`, `"none"` or a list of names.
        tasks: records of the committed tasks (`TaskRecord` or dictionaries), in commit order.
        served: names of the tasks that this model answers; `None` means all of them. Set by `tasks=[...]` at loading.
        expanded: units added to a group beyond the backbone's own, per unit group.
        pool: `False` in an inference-only release, which learns nothing more.
        files: size and SHA-256 of every shard of the checkpoint folder that this configuration lies in.
        learning: name of the task that was being learned when a Trainer checkpoint was written.
    """

    model_type = "eidetic"
    sub_configs = {"base_config": AutoConfig}

    def __init__(
        self,
        base_config: PreTrainedConfig | dict[str, Any] | None = None,
        trunk_layers: int | None = None,
        trunk_pretrained: bool = True,
        forward_transfer: str | list[str] = "all",
        tasks: list[TaskRecord | dict[str, Any]] | None = None,
        served: list[str] | None = None,
        expanded: dict[str, int] | None = None,
        pool: bool = True,
        files: dict[str, dict[str, Any]] | None = None,
        learning: str | None = None,
        format_version: int = FORMAT_VERSION,
        **kwargs: Any,
    ) -> None:
        if isinstance(base_config, dict):
            values = dict(base_config)
            base_config = AutoConfig.for_model(values.pop("model_type"), **values)
        # None only in the bare `EideticConfig()` that transformers compares configurations with.
        self.base_config = cast(PreTrainedConfig, base_config)
        self.trunk_layers = trunk_layers
        self.trunk_pretrained = trunk_pretrained
        self.forward_transfer = forward_transfer
        self.tasks = [task if isinstance(task, TaskRecord) else TaskRecord.from_dict(task) for task in tasks or []]
        self.served = served
        self.expanded = dict(expanded or {})
        self.pool = pool
        self.files = dict(files or {})
        self.learning = learning
        self.format_version = format_version
        super().__init__(**kwargs)
        self.set_labels()

    def set_labels(self) -> None:
        """Bring `id2label` and `label2id` up to date: one flat space of `task/label` over the served tasks."""
        names = [f"{task.name}/{label}" for task in self.tasks if self.serves(task.name) for label in task.labels]
        if names:
            self.id2label = dict(enumerate(names))
            self.label2id = {name: index for index, name in enumerate(names)}

    def label_spans(self) -> dict[str, slice]:
        """Where each served task's labels lie in the flat label space, in the order of the logits."""
        spans, stop = {}, 0
        for task in self.tasks:
            if self.serves(task.name):
                start, stop = stop, stop + len(task.labels)
                spans[task.name] = slice(start, stop)
        return spans

    def serves(self, name: str) -> bool:
        """Whether the model answers for this committed task (not only reads its units as an ancestor's)."""
        return self.served is None or name in self.served

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-ready values."""
        tasks = self.__dict__.pop("tasks")
        try:
            output = super().to_dict()
        finally:
            self.tasks = tasks
        output["tasks"] = [task.to_dict() if isinstance(task, TaskRecord) else task for task in tasks]
        return output
