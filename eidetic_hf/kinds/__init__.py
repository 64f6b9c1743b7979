"""All kinds of task, by name; and what follows from the kinds of a model's tasks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from ..configuration import DEFAULT_TASK_TYPE, EideticConfig, TaskError, TaskRecord
from .base import Kind
from .choices import MultipleChoice
from .language import CAUSAL_LM, MASKED_LM, SEQ2SEQ_LM
from .questions import QuestionAnswering
from .sentences import FeatureExtraction
from .sequence_labels import SequenceClassification
from .token_tags import TokenClassification

_KINDS: dict[str, Kind] = {}
TASK_KINDS: Mapping[str, Kind] = MappingProxyType(_KINDS)

# Options lie on one level with the fields of a record in `config.json`, and with the arguments of `add_task`.
_TAKEN = {field.name for field in fields(TaskRecord)} | {"forward_transfer", "based_on"}


def register_kind(kind: Kind) -> None:
    """Make tasks of a kind of your own possible: `model.add_task(name, task_type=kind.name)`.

    A checkpoint holds the kind's name and not its code, so register it in every process, before you load a model with
    such a task; best in the module that defines it.

    Args:
        kind: one object of your class, see `Kind` and docs/kinds.md.

    Raises:
        TypeError: if it is no `Kind`.
        ValueError: if it has no name, or that of another kind, or an option that is named as something else.
    """
    if not isinstance(kind, Kind):
        hint = f" Register an object of it: register_kind({kind.__name__}())." if isinstance(kind, type) else ""
        raise TypeError(f"register_kind needs an object of a class derived from Kind, got {kind!r}.{hint}")
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{type(kind).__name__}.name is {name!r}; expected the name of the kind, such as 'ordinal'.")
    if name in _KINDS:
        owner = f"{type(_KINDS[name]).__module__}.{type(_KINDS[name]).__qualname__}"
        raise ValueError(
            f"There is a kind of task {name!r} already, of the class {owner}. Choose another name; a kind is "
            "registered once in a process."
        )
    taken = sorted(set(kind.option_names()) & _TAKEN)
    if taken:
        raise ValueError(
            f"{type(kind).__name__}.Options has a field {taken[0]!r}, which every task has already. Name it "
            "differently."
        )
    _KINDS[name] = kind


for _kind in (
    SequenceClassification(),
    TokenClassification(),
    QuestionAnswering(),
    MultipleChoice(),
    CAUSAL_LM,
    SEQ2SEQ_LM,
    MASKED_LM,
    FeatureExtraction(),
):
    register_kind(_kind)


# -- the kind of a task -----------------------------------------------------------------------------------------------


def kind_of(task: TaskRecord | str) -> Kind:
    """The kind of a task, or of this name.

    Raises:
        TaskError: if there is none of this name.
    """
    name = task if isinstance(task, str) else task.task_type
    if name not in _KINDS:
        of = "" if isinstance(task, str) else f"Task '{task.name}': "
        raise TaskError(
            f"{of}task_type={name!r} is unknown; expected one of {list(_KINDS)}. If it is a kind of your own, make it "
            "known in this process first: import the module that calls eidetic_hf.kinds.register_kind for it (see "
            "docs/kinds.md)."
        )
    return _KINDS[name]


def check_task(task: TaskRecord, given: Mapping[str, Any] | None = None) -> None:
    """Hold a task's labels and options against what its kind allows, and fill in the defaults of the others.

    Args:
        task: its `options` and `labels` are completed.
        given: the options that somebody gave, `None` for what is left to the kind. Without it, those of the record,
            which a checkpoint brought: those that the kind does not have are dropped.

    Raises:
        TaskError: if there is no such kind, or the kind has no such option, or one is not what was expected.
    """
    kind = kind_of(task)
    if task.labels and not kind.has_labels:
        labelled = [name for name, other in _KINDS.items() if other.has_labels]
        raise TaskError(
            f"Task '{task.name}': {kind.name} has no labels, got {task.labels!r}. Leave labels= out, or add a task of "
            f"a kind that has some: {labelled}."
        )
    if given is not None:
        given = {name: value for name, value in given.items() if value is not None or name not in _all_options()}
        for name in given:
            if name not in kind.option_names():
                raise TaskError(f"Task '{task.name}': {_why_unknown(name, given[name], kind)}")
    kind.check(task, given)


def _all_options() -> dict[str, list[str]]:
    """The kinds that have an option, by its name."""
    owners: dict[str, list[str]] = {}
    for kind in _KINDS.values():
        for name in kind.option_names():
            owners.setdefault(name, []).append(kind.name)
    return owners


def _why_unknown(option: str, value: Any, kind: Kind) -> str:
    """Why a kind does not take an option, and what to do."""
    owners, known = _all_options(), kind.option_names()
    has = f"its options are {known}" if known else "it has no options"
    if option in owners:
        return f"{option}={value!r} is for {', '.join(owners[option])}, not for {kind.name}; {has}. Leave it out."
    near = difflib.get_close_matches(option, [*known, *owners], n=1, cutoff=0.5)
    of = f" (of {', '.join(owners[near[0]])})" if near and near[0] not in known else ""
    hint = f" Did you mean '{near[0]}'{of}?" if near else ""
    return f"{kind.name} has no option {option!r}; {has}.{hint}"


def check_kind(task: TaskRecord, config: EideticConfig) -> None:
    """Raise a `TaskError` if a model can not have a task of this kind: it says why, and which kinds it can have."""
    reason = _obstacle(kind_of(task), config)
    if reason is not None:
        possible = [name for name, kind in _KINDS.items() if _obstacle(kind, config) is None]
        raise TaskError(f"Task '{task.name}' cannot be {task.task_type}: {reason}. This model can have {possible}.")


def _obstacle(kind: Kind, config: EideticConfig) -> str | None:
    """Why a model can not have a kind of task: the kind's own reason; or nobody has learned what it scores by."""
    reason = kind.obstacle(config)
    if reason is not None or not kind.reads_vocabulary:
        return reason
    learned = not config.tasks or kind_of(config.tasks[0]).reads_vocabulary
    if not config.trunk_pretrained and config.output_embeddings is not None and not learned:
        return (
            "the output embeddings of this random backbone are not its input embeddings, and its first task, "
            "which trains the trunk, was no language model. Learn a language model first, or set "
            "tie_word_embeddings=True in the backbone's configuration"
        )
    return None


def kind_of_backbone(config: EideticConfig) -> str:
    """The kind of task that a backbone answers by itself: that of its language-model head, else it embeds texts."""
    kinds = [kind for kind in _KINDS.values() if _obstacle(kind, config) is None]
    if config.language_head is not None and any(kind.reads_vocabulary for kind in kinds):
        return next(kind.name for kind in kinds if kind.reads_vocabulary)
    return next(kind.name for kind in kinds if kind.embeds)


# -- the kinds of a model's tasks -------------------------------------------------------------------------------------


def default_kind(config: EideticConfig) -> str:
    """The kind of tasks that answers where nobody asks for one: the only one there is, else of sequences."""
    kinds = {task.task_type for task in config.tasks if config.serves(task.name)}
    return next(iter(kinds)) if len(kinds) == 1 else DEFAULT_TASK_TYPE


def flat_labels(config: EideticConfig, task_type: str) -> list[str]:
    """The labels of all served tasks of a kind, in the order of the flat label space."""
    tasks = [task for task in config.tasks if task.task_type == task_type and config.serves(task.name)]
    return [kind_of(task).flat_label(task, label) for task in tasks for label in task.labels]


def label_spans(config: EideticConfig, task_type: str) -> dict[str, slice]:
    """Where each served task's labels lie in the flat label space of its kind, in the order of the logits."""
    spans, stop = {}, 0
    for task in config.tasks:
        if task.task_type == task_type and config.serves(task.name):
            start, stop = stop, stop + len(task.labels)
            spans[task.name] = slice(start, stop)
    return spans


def name_labels(config: EideticConfig, task_type: str) -> None:
    """Bring a configuration's `id2label` and `label2id` up to date: the flat labels of its tasks of one kind."""
    names = flat_labels(config, task_type) or ["LABEL_0", "LABEL_1"]
    config.id2label = dict(enumerate(names))
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        numbers.setdefault(name, number)  # every task that labels tokens has an `O`: the first one's
    config.label2id = numbers


def owners_of_tokens(config: EideticConfig, reader: TaskRecord) -> list[str]:
    """Names of the tasks that own tokens which this one reads or scores: in each table those that added to it."""
    tables = [config.tasks]
    if config.output_embeddings is not None and kind_of(reader).reads_vocabulary:
        tables.append([task for task in config.tasks if kind_of(task).reads_vocabulary])
    base, owners = config.base_config.vocab_size, []
    for table in tables:
        total = base
        for task in table:
            if total < (task.vocab_size or base):
                owners += [task.name] if total < (reader.vocab_size or base) else []
                total = task.vocab_size
    return owners
