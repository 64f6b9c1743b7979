"""Versions of a task: `agnews`, then `agnews@2`, `agnews@3`, each a task of its own, and one that answers for all.

Every version is learned, committed and kept as any other task, so the older ones stay exact. What is special is in
their names alone: asked for `agnews`, the default version answers; `agnews@1` is always the first; and as all of them
are for the same texts, the router knows a task by its default version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from ..configuration import EideticConfig, TaskError, TaskRecord, plain_name, split_version
from .parts import Parts, committed, record_of


def version_name(task: str, number: int) -> str:
    """The name of a version: `agnews@2`; of the first one the task's own."""
    return task if number == 1 else f"{task}@{number}"


def versions_among(names: Iterable[str], task: str) -> dict[int, str]:
    """Those of some names that are versions of a task, by number, in ascending order."""
    found = {number: name for name in names for of, number in [split_version(name)] if of == task}
    return dict(sorted(found.items()))


# -- which one answers ------------------------------------------------------------------------------------------------


def answering_name(config: EideticConfig, name: str) -> str:
    """The version that answers to a name: of a task's own name the default one, and of `agnews@1` the first."""
    number = config.default_versions.get(name)
    if number is not None and config.task(version_name(name, number)) is not None:
        return version_name(name, number)
    return plain_name(name)


def routed(config: EideticConfig, names: list[str]) -> list[str]:
    """Those of some tasks that texts are routed to: of each the default version; else the first, or the newest.

    All versions of a task are for the same texts, so that nothing tells them apart.
    """
    if not any("@" in name for name in names):
        return names
    versions: dict[str, dict[int, str]] = {}
    for name in names:
        task, number = split_version(name)
        versions.setdefault(task, {})[number] = name
    chosen = {_default_of(config, task, found) for task, found in versions.items()}
    return [name for name in names if name in chosen]


def routed_name(config: EideticConfig, names: list[str], name: str) -> str:
    """The version of a task, of those among some tasks, that its texts are routed to."""
    task, _ = split_version(name)
    return _default_of(config, task, versions_among(names, task))


def _default_of(config: EideticConfig, task: str, found: Mapping[int, str]) -> str:
    return found.get(config.default_versions.get(task, 1)) or found.get(1) or found[max(found)]


def set_default_version(model: Parts, task: str, version: str | int) -> None:
    """Say which version answers for a task, see `EideticModel.set_default_version`."""
    found = versions_among(committed(model), task)
    if not found:
        raise TaskError(
            f"There is no committed version of a task '{task}'; committed are {committed(model)}. Give the task's own "
            "name, such as 'agnews', and then the version: set_default_version('agnews', 2)."
        )
    number = version
    if isinstance(version, str):
        of, number = split_version(version)
        number = number if of == task else version
    if isinstance(number, bool) or number not in found:
        raise TaskError(
            f"version={version!r}: expected one of the committed versions of '{task}': {list(found)}, or a name of "
            f"{list(found.values())}."
        )
    chosen = {**model.config.default_versions, task: int(number)}
    model.config.default_versions = {name: each for name, each in chosen.items() if each != 1}


# -- added ------------------------------------------------------------------------------------------------------------


def check_version(model: Parts, record: TaskRecord) -> None:
    """Raise a `TaskError` if a task that is to be added is a version of nothing, or of a task of another kind."""
    task, number = split_version(record.name)
    known = versions_among([*(each.name for each in model.config.tasks), *model.added], task)
    if number > 1 and not known:
        raise TaskError(
            f"'{record.name}' would be a version of '{task}', which there is not; committed are {committed(model)}, "
            f"added {list(model.added)}. Add '{task}' first, or choose a name without '@'."
        )
    for other in known.values():
        kind = record_of(model, other).task_type
        if kind != record.task_type:
            raise TaskError(
                f"'{record.name}' is {record.task_type}, and '{other}' is {kind}. All versions of a task are of one "
                "kind, since one answers for all; choose another name."
            )


class Version(NamedTuple):
    """A version that is to be added.

    Attributes:
        record: what is known of it.
        forward_transfer: which earlier tasks it reads.
        based_on: the task that it starts from, where units are copied.
        options: of its kind.
    """

    record: TaskRecord
    forward_transfer: str | list[str] | None
    based_on: str | None
    options: Mapping[str, Any]


def next_version(
    model: Parts,
    task: str,
    labels: list[str] | None,
    based_on: str | None,
    forward_transfer: str | list[str] | None,
    options: Mapping[str, Any],
) -> Version:
    """The next version of a task, see `EideticModel.add_version`."""
    learned = [each.name for each in model.config.tasks]
    if not versions_among(learned, task):
        raise TaskError(
            f"There is no committed task '{task}' to add a version of; committed are {committed(model)}. Learn it "
            "first, and give its own name, without '@'."
        )
    parent = record_of(model, routed_name(model.config, learned, task))
    record = TaskRecord(
        version_name(task, max(versions_among([*learned, *model.added], task)) + 1),
        parent.task_type,
        labels=list(parent.labels if labels is None else labels),
        preparation=deepcopy(parent.preparation),
    )
    if model.network.growth.copies:
        based_on = parent.name if based_on is None else based_on
    elif forward_transfer is None:
        forward_transfer = _with(parent.name, model.config.forward_transfer)
    return Version(record, forward_transfer, based_on, {**parent.options, **options})


def _with(name: str, transfer: str | list[str]) -> str | list[str]:
    """Which earlier tasks one reads that reads at least this."""
    if transfer == "all":
        return transfer
    return [*(transfer if isinstance(transfer, list) else []), name]
