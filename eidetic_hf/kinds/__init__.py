"""All kinds of task, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..configuration import EideticConfig, TaskError, TaskRecord
from .base import Kind
from .choices import MultipleChoice
from .language import CausalLM, MaskedLM, Seq2SeqLM
from .questions import QuestionAnswering
from .sentences import FeatureExtraction
from .sequence_labels import SequenceClassification
from .token_tags import TokenClassification

_KINDS: dict[str, Kind] = {}
TASK_KINDS: Mapping[str, Kind] = MappingProxyType(_KINDS)


def register_kind(kind: Kind) -> None:
    """Make tasks of a kind possible.

    Raises:
        ValueError: if there is one of this name already.
    """
    if kind.name in _KINDS:
        raise ValueError(f"There is a kind of task {kind.name!r} already. Choose another name.")
    _KINDS[kind.name] = kind


for _kind in (
    SequenceClassification(),
    TokenClassification(),
    QuestionAnswering(),
    MultipleChoice(),
    CausalLM(),
    Seq2SeqLM(),
    MaskedLM(),
    FeatureExtraction(),
):
    register_kind(_kind)


def kind_of(task: TaskRecord | str) -> Kind:
    """The kind of a task, or of this name.

    Raises:
        TaskError: if there is none of this name.
    """
    name = task if isinstance(task, str) else task.task_type
    if name not in TASK_KINDS:
        raise TaskError(f"task_type={name!r} is unknown; expected one of {list(TASK_KINDS)}.")
    return TASK_KINDS[name]


def check_kind(record: TaskRecord, config: EideticConfig) -> None:
    """Raise a `TaskError` if a model can not have a task of this kind: it says why, and which kinds it can have."""
    reason = kind_of(record).obstacle(config)
    if reason is not None:
        possible = [name for name, kind in TASK_KINDS.items() if kind.obstacle(config) is None]
        raise TaskError(
            f"Task '{record.name}' cannot be {record.task_type}: {reason}. This model can have {possible}."
        )
