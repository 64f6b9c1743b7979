"""Tasks that come and go: removed for good, brought along from another checkpoint, or from all of another model.

Invariant: every task that stays, and every task that comes, is what its certificate says, to the last bit. Nothing
that is registered is written to, and all that is put elsewhere is brought back if anything fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..configuration import EideticConfig, TaskError, TaskRecord, check_task_name, plain_name, split_version
from ..kinds import owners_of_tokens
from ..network.backbone import initializer_range, random_numbers_for
from ..network.network import Network
from ..network.storage import Arrangement
from ..network.vocabulary import read_by_view
from ..views import POOL, TOLD, TRUNK, owner_of, task_key
from . import certificate
from .audit import audit_router
from .brought import check_described
from .certificate import Evidence, renamed
from .checkpoint.layout import CheckpointError, by_owner
from .checkpoint.read import finder_of, read_config
from .checkpoint.source import Source, steadily
from .parts import Parts, committed, record_of
from .persistence import fill_task, make_room
from .versions import version_name

logger = logging.get_logger(__name__)

# Of a configuration, what changes with its tasks.
_CHANGED = ("tasks", "expanded", "served", "vocab_size", "default_versions", "router", "router_layers")


@contextmanager
def _or_as_before(model: Parts) -> Any:
    """Change which tasks a model has; an error inside leaves it as it was, by reference."""
    config, router = model.config, model.router
    before = {name: config.__dict__.get(name) for name in _CHANGED}
    rest = dict(model.added), model.run_task, dict(model.removed)
    module = cast(nn.Module, model)

    def put_back() -> None:
        config.__dict__.update({name: value for name, value in before.items() if name != "vocab_size"})
        config.__dict__.pop("vocab_size", None)
        if before["vocab_size"] is not None:
            config.vocab_size = before["vocab_size"]
        model.added, model.run_task, model.removed = rest
        router.forget()

    with ExitStack() as undo:
        undo.callback(put_back)
        model.network.keep_books(undo)
        undo.callback(Arrangement(module).restore)
        config.tasks, config.expanded = list(config.tasks), dict(config.expanded)
        yield
        model.network.pack()
        rows = model.network.input_rows
        if rows.has_grown:
            config.vocab_size = rows.total
            read_by_view(rows, model.network.backbone)
        undo.pop_all()


def check_at_rest(model: Parts) -> None:
    """Raise a `TaskError` while a task is being learned: tasks neither come nor go then."""
    if model.learner is not None:
        raise TaskError(
            f"'{model.learner.name}' is being learned. Commit it, or drop it with model.abandon_task(), before other "
            "tasks come or go."
        )


def _count(config: EideticConfig, more: Mapping[str, int], sign: int) -> None:
    """Keep the number of units beyond the backbone's own up to date, by which a pool is laid out."""
    for name, count in more.items() if config.pool else ():
        config.expanded[name] = config.expanded.get(name, 0) + sign * count
    config.expanded = {name: count for name, count in config.expanded.items() if count}


# -- removed ----------------------------------------------------------------------------------------------------------


def readers_of(model: Parts, name: str) -> list[str]:
    """Names of the tasks that read a committed one, directly or not: committed ones in commit order, then added."""
    found = [name]
    for record in model.config.tasks:
        read = {*record.ancestors, *owners_of_tokens(model.config, record)} - {record.name}
        if read & set(found) and record.name not in found:
            found.append(record.name)
    for added in model.added.values():
        if isinstance(added.forward_transfer, list) and set(added.forward_transfer) & set(found):
            found.append(added.record.name)
    return found[1:]


def remove_task(model: Parts, name: str, cascade: bool, backbone: Any) -> list[str]:
    """Let a committed task go, see `EideticModel.remove_task`."""
    check_at_rest(model)
    name = plain_name(name)
    if model.config.task(name) is None:
        raise TaskError(f"There is no committed task '{name}' to remove; committed are {committed(model)}.")
    readers = readers_of(model, name)
    if readers and not cascade:
        raise TaskError(
            f"'{name}' can not be removed: {readers} read it, and would not answer as they did. Remove them first, or "
            "all together with cascade=True (--cascade)."
        )
    config = model.config
    gone = [record.name for record in config.tasks if record.name in (name, *readers)]
    if not config.trunk_pretrained and config.tasks[0].name in gone:
        raise TaskError(
            f"'{config.tasks[0].name}' can not be removed: it trained the trunk of a random backbone, which every "
            "other task reads. Make a new model without it."
        )
    like = None
    if config.pool and not model.network.growth.copies:
        like = _pretrained(model, backbone)
    with _or_as_before(model):
        for each in reversed(gone):
            _leave(model, record_of(model, each), like)
        for reader in readers:
            model.added.pop(reader, None)
    return [*gone, *(reader for reader in readers if reader not in gone)]


def _leave(model: Parts, record: TaskRecord, like: Network | None) -> None:
    key, network, config = task_key(record.name), model.network, model.config
    std = initializer_range(network.backbone.config)
    with random_numbers_for(model.device, "remove", record.name):
        _count(config, network.leave(key, like, std), -1)
    for modules in (model.heads, model.probes):
        del modules[key]
    model.router.remove(record.name)
    config.tasks = [task for task in config.tasks if task is not record]
    if config.served is not None:
        config.served = [name for name in config.served if name != record.name]
    versions = config.default_versions.items()
    config.default_versions = {
        task: number for task, number in versions if config.task(version_name(task, number)) is not None
    }
    if not config.pool:
        config.forget_free_tokens()
    model.run_task = None if model.run_task == record.name else model.run_task
    model.removed[record.name] = record.certificate["weights_sha256"]


def _pretrained(model: Parts, backbone: Any) -> Network:
    """The network as it was before any task, whose values free units return to.

    Raises:
        TaskError: if the backbone can not be had, or is another.
    """
    config = model.config
    options: dict[str, Any] = {"trunk_layers": config.trunk_layers, "growth": config.growth}
    if not config.trunk_pretrained:
        with random_numbers_for(model.device, "remove"):
            return cast(Any, type(model)).from_backbone(deepcopy(config.base_config), **options).network
    source = backbone or config.base_config.name_or_path
    what = "its units return to the pool at their pretrained values, which are in the backbone"
    try:
        if not source:
            raise OSError("the model does not say where it is")
        if _is_place(source):
            options["dtype"] = model.dtype
        fresh = cast(Any, type(model)).from_backbone(deepcopy(source), **options)
    except OSError as error:
        raise TaskError(
            f"A task can not be removed without the backbone: {what}, and {source!r} could not be loaded ({error}). "
            "Say where it is with backbone=... (--backbone)."
        ) from error
    ours, theirs = _unlearned(model), _unlearned(fresh)
    differs = sorted(ours.keys() ^ theirs.keys()) or [n for n in ours if not torch.equal(ours[n], theirs[n])]
    if differs:
        raise TaskError(
            f"{_called(source)} is not the backbone that this model was made from: they differ in {differs[0]}. A "
            f"task can not be removed without that one: {what}. Say where it is with backbone=... (--backbone)."
        )
    return fresh.network


def _is_place(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)


def _called(source: Any) -> str:
    """What an error calls a backbone."""
    return repr(str(source)) if _is_place(source) else f"the given {type(source).__name__}"


def _unlearned(model: Parts) -> dict[str, Tensor]:
    """What no task has changed in a fixed pool: the trunk, and what new tasks start from."""
    return {
        name: tensor.cpu()
        for name, tensor in model.network.backbone.state_dict().items()
        if owner_of(name) == TRUNK or (owner_of(name) == POOL and ".segments." not in name)
    }


# -- brought along ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shards:
    """Where tasks come from.

    Attributes:
        where: what an error calls it.
        config: with their records.
        read: the tensors of an owner whose names begin with a prefix; none, if it has none.
    """

    where: str
    config: EideticConfig
    read: Callable[[str, str], dict[str, Tensor]]

    @cached_property
    def reference(self) -> dict[str, Tensor]:
        """What the router there reads of a sequence, by the names of slots; nothing, if no task was known to it."""
        prefix = "router.reference."
        return {name[len(prefix) :]: tensor for name, tensor in self.read(TRUNK, prefix).items()}

    @cached_property
    def told(self) -> dict[str, Tensor]:
        """What users have told the router there about tasks, by the names of tensors."""
        return self.read(TOLD, "")


def shards_in(source: Source, config: EideticConfig) -> Shards:
    """What a checkpoint holds that has this configuration.

    Raises:
        CheckpointError: if its index and its configuration disagree.
    """
    find = finder_of(source, config)

    def read(owner: str, prefix: str) -> dict[str, Tensor]:
        shard = find(owner)
        return {} if shard is None else shard.read(prefix)

    return Shards(source.where, config, read)


def shards_of(source: str | os.PathLike | Parts, hub: Mapping[str, Any]) -> Shards:
    """What a checkpoint holds, a folder or one on the Hub, or a model.

    Raises:
        CheckpointError: if it is none, or holds what its certificates do not vouch for.
        TaskError: if a model is learning.
    """
    if isinstance(source, str | os.PathLike):
        return steadily(source, hub, lambda found: shards_in(found, read_config(found)))
    if source.learner is not None:
        raise TaskError(f"The other model is learning '{source.learner.name}'. Commit it, or drop it, before.")
    certificate.check_unchanged(source)
    owned = by_owner(cast(nn.Module, source).state_dict())

    def read(owner: str, prefix: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in owned.get(owner, {}).items() if name.startswith(prefix)}

    return Shards("the other model", source.config, read)


def needed(config: EideticConfig, names: Iterable[str]) -> list[TaskRecord]:
    """Records of tasks, and of those that they read, in commit order.

    Raises:
        TaskError: if there is no task of a name.
    """
    todo, found = list(names), set[str]()
    while todo:
        record = config.task(name := todo.pop())
        if record is None:
            raise TaskError(f"There is no task '{name}' there; there are {[task.name for task in config.tasks]}.")
        found.add(name)
        todo += [each for each in (*record.ancestors, *owners_of_tokens(config, record)) if each not in found]
    return [record for record in config.tasks if record.name in found]


def bring(
    model: Parts, shards: Shards, names: list[str] | None = None, call: Mapping[str, str] | str = ""
) -> list[str]:
    """Bring tasks along, with those that they read, see `EideticModel.load_task`.

    Args:
        model: that gets them.
        shards: that has them.
        names: of the tasks; `None` for all.
        call: names that they get, by those that they have there; or what to put before all that are not here already.

    Returns:
        The names, as they are here, of those that came: not of those that were here already, with the same weights.

    Raises:
        TaskError: if a name is taken, or the models are not of one backbone.
    """
    check_at_rest(model)
    _check_fits(model, shards)
    came: dict[str, TaskRecord] = {}
    called: dict[str, str] = {}  # here, by the name there
    with _or_as_before(model):
        every = [task.name for task in shards.config.tasks]
        for record in needed(shards.config, every if names is None else map(plain_name, names)):
            known, same = model.config.task(record.name), record.name
            name = f"{call}{same}" if isinstance(call, str) else call.get(same, same)
            is_called = not isinstance(call, str) and same in call
            if known is not None and not is_called and _sha256(known) == _sha256(record):
                called[same] = same
                continue
            if model.config.task(check_task_name(name)) is not None or name in model.added:
                raise TaskError(
                    f"There is another task '{name}' here than the '{record.name}' of {shards.where}. Give those that "
                    "come other names: merge(other, prefix='theirs-') or load_task(source, task, name='...') "
                    "(--prefix, --name)."
                )
            called[record.name] = name
            came[name] = _join(model, shards, record, called)
        for there, here in called.items():  # of a task's versions the same one answers as there
            (task, number), (now, own) = split_version(there), split_version(here)
            if here in came and number == shards.config.default_versions.get(task) and own > 1:
                model.config.default_versions = {now: own, **model.config.default_versions}
        _check_came(model, shards, came, {task_key(here): task_key(there) for there, here in called.items()})
    _say_what_lost_its_route(model, shards, list(came))
    return list(came)


def _sha256(record: TaskRecord) -> str:
    return record.certificate["weights_sha256"]


def _check_fits(model: Parts, shards: Shards) -> None:
    """Raise if tasks from there can not be this model's, as far as one sees without their weights."""
    ours, theirs = model.config, shards.config
    for name in ("growth", "trunk_layers"):
        if getattr(ours, name) != getattr(theirs, name):
            raise TaskError(
                f"The tasks of {shards.where} have {name}={getattr(theirs, name)!r}, and this model has "
                f"{getattr(ours, name)!r}: they can not be together."
            )
    if ours.base_config.model_type != theirs.base_config.model_type:
        raise TaskError(
            f"The tasks of {shards.where} are of a {theirs.base_config.model_type} backbone, and this model is a "
            f"{ours.base_config.model_type}: they can not be together."
        )


def _join(model: Parts, shards: Shards, there: TaskRecord, called: Mapping[str, str]) -> TaskRecord:
    """Bring one task along, whose ancestors are here."""
    record = TaskRecord.from_dict(there.to_dict())
    record.name, record.ancestors = called[there.name], [called[name] for name in there.ancestors]
    _check_tokens(model, shards, there)
    owner, key = task_key(there.name), task_key(record.name)
    read = shards.read(owner, "")
    tensors = {renamed(name, {owner: key}): tensor.to(model.device) for name, tensor in read.items()}
    dtype, wanted = record.certificate["environment"]["dtype"], str(model.dtype).removeprefix("torch.")
    if dtype != wanted:
        raise TaskError(
            f"'{there.name}' of {shards.where} was committed in {dtype}, and this model computes in {wanted}. "
            "Load both in the same dtype."
        )
    if not model.router.is_ready:
        check_described(model, {f"router.reference.{name}": tensor for name, tensor in shards.reference.items()}, ())
        for name, tensor in shards.reference.items():
            model.router.reference.put(name, tensor.clone().to(model.device))
        model.config.router = deepcopy(shards.config.router)
        model.config.router_layers = deepcopy(shards.config.router_layers)
    if model.router.reads_alike(shards.reference):
        told = {name: tensor for name, tensor in shards.told.items() if owner in name.split(".")}
        tensors |= {renamed(name, {owner: key}): tensor.to(model.device) for name, tensor in told.items()}
    else:  # features of other layers would be taken for those of this model's
        tensors = certificate.forget_route(record, tensors)
    make_room(model, record)
    try:
        fill_task(model, tensors, key)
    except CheckpointError as error:
        raise TaskError(f"'{there.name}' of {shards.where} does not fit this model: {error}") from error
    _count(model.config, model.network.join(key), 1)
    model.config.tasks.append(record)
    if model.config.served is not None:
        model.config.served = [*model.config.served, record.name]
    return record


def _say_what_lost_its_route(model: Parts, shards: Shards, came: list[str]) -> None:
    if came and not model.router.reads_alike(shards.reference):
        logger.warning(
            f"The router reads other layers there, in {shards.where}, than in this model: {came} came along without "
            "their route. They answer when they are named; name the task, or take its sums anew in a model with the "
            "same router_layers."
        )


def _check_tokens(model: Parts, shards: Shards, record: TaskRecord) -> None:
    """Raise if a task brings tokens along that would get other numbers here."""
    rows, base = model.network.input_rows, model.config.base_config.vocab_size
    sizes = [task.vocab_size or base for task in shards.config.tasks]
    before = max([base, *sizes[: shards.config.tasks.index(record)]])
    brings = (record.vocab_size or base) > before
    if brings and (rows.total > rows.owned or before != rows.owned):
        raise TaskError(
            f"'{record.name}' of {shards.where} has learned tokens of its own, from {before} on, and this model has "
            f"{rows.total} tokens already: they would get other numbers. Bring it into a model whose vocabulary ends "
            "there."
        )


def _check_came(model: Parts, shards: Shards, came: Mapping[str, TaskRecord], called: Mapping[str, str]) -> None:
    """Raise if a task is not here what it was there; then let certificates know new names."""
    evidence = Evidence(model, {here: there for here, there in called.items() if here != there})
    for record in came.values():
        first = evidence.first_difference(record)
        if first is not None:
            raise TaskError(
                f"'{record.name}' of {shards.where} was learned on another backbone than this model's, or on other "
                f"tasks: they differ first in {first}."
            )
    router = audit_router(evidence.audit, evidence, came.values())
    if router is not None and not router.ok:
        raise TaskError(
            f"What {shards.where} has for the router is not what its tasks left to it: it differs first in "
            f"{router.first_difference}. Load the last good checkpoint."
        )
    stale = {here for here, there in called.items() if here != there}
    for record in came.values():
        if stale & {task_key(name) for name in (record.name, *record.ancestors)}:
            certificate.rename(model, record)
