"""All kinds of task, by name."""

from __future__ import annotations

from ..configuration import EideticConfig, TaskError, TaskRecord
from .base import Kind
from .choices import MultipleChoice
from .language import CausalLM, MaskedLM, Seq2SeqLM
from .questions import QuestionAnswering
from .sentences import FeatureExtraction
from .sequence_labels import SequenceClassification
from .token_tags import TokenClassification

TASK_KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        SequenceClassification(),
        TokenClassification(),
        QuestionAnswering(),
        MultipleChoice(),
        CausalLM(),
        Seq2SeqLM(),
        MaskedLM(),
        FeatureExtraction(),
    )
}


def kind_of(task: TaskRecord | str) -> Kind:
    """The kind of a task, or of this name.

    Raises:
        TaskError: if there is none of this name.
    """
    name = task if isinstance(task, str) else task.task_type
    if name not in TASK_KINDS:
        raise TaskError(f"{name!r} is no kind of task; there are {list(TASK_KINDS)}.")
    return TASK_KINDS[name]


def check_kind(record: TaskRecord, config: EideticConfig) -> None:
    """Raise a `TaskError` if a model can not have a task of this kind: it says why, and which kinds it can have."""
    reason = kind_of(record).obstacle(config)
    if reason is not None:
        possible = [name for name, kind in TASK_KINDS.items() if kind.obstacle(config) is None]
        raise TaskError(
            f"Task '{record.name}' cannot be {record.task_type}: {reason}. This model can have {possible}."
        )


def flat_labels(config: EideticConfig, task_type: str) -> list[str]:
    return config.flat_labels(task_type)


def label_spans(config: EideticConfig, task_type: str) -> dict[str, slice]:
    return config.label_spans(task_type)


def default_kind(config: EideticConfig) -> str:
    return config.default_type()


def owners_of_tokens(config: EideticConfig, reader: TaskRecord) -> list[str]:
    return config.owners_of_tokens(reader)


def register_kind(kind: Kind) -> None:
    TASK_KINDS[kind.name] = kind
