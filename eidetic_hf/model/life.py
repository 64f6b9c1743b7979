"""The life of a task: added, begun, committed or abandoned; and room for the next ones.

Invariant: what a committed task reads never changes. A commit is a stack of undos: each part that changes registers
what brings it back, and the certificate comes last; a failure anywhere leaves the model as it was before the commit,
with the task still being learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from typing import Any, cast

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils import logging

from ..configuration import AUTO, EideticConfig, TaskError, TaskRecord, check_transfer, plain_name
from ..kinds import check_kind, check_task, kind_of
from ..network import capacity
from ..network.backbone import (
    evaluation_mode,
    initializer_range,
    random_numbers_for,
)
from ..network.growth import CopyGrowth
from ..network.storage import freeze, give_back_memory
from ..network.units import UnitGroup
from ..network.vocabulary import read_by_view, table_of
from ..views import LEARNING, POOL, View, task_key
from .certificate import certify
from .learner import Learner
from .parts import Added, Parts, committed, record_of
from .pruning import OF_COPY, OF_FIXED, PruningConfig, said_of_the_other
from .router import RouterSums
from .routing import HARDLY_APART, overlaps
from .versions import check_version

logger = logging.get_logger(__name__)

# -- added ------------------------------------------------------------------------------------------------------------


def add_task(
    model: Parts,
    record: TaskRecord,
    forward_transfer: str | list[str] | None,
    based_on: str | None,
    options: Mapping[str, Any],
) -> TaskRecord:
    """Declare a task, see `EideticModel.add_task`."""
    config = model.config
    known = "committed" if config.task(record.name) is not None else "added" if record.name in model.added else None
    if known is not None:
        raise TaskError(f"There is a task '{record.name}' already ({known}). Choose another name.")
    if not config.pool:
        raise TaskError(
            "This model has no pool: it was released for inference only, or loaded with tasks=[...]. Load the "
            "whole checkpoint to learn a new task."
        )
    transfer = config.forward_transfer if forward_transfer is None else forward_transfer
    check_transfer(transfer)
    if model.network.growth.copies:
        transfer = _branch_of(model, forward_transfer, based_on)
    elif based_on is not None:
        raise TaskError("based_on= is for growth='copy'; here forward_transfer= says which tasks are read.")
    for ancestor in transfer if isinstance(transfer, list) else []:
        if (forward_transfer or based_on) is not None and config.task(ancestor) is None:
            who = "forward_transfer" if based_on is None else "based_on"
            raise TaskError(f"{who} names '{ancestor}', which is not committed; committed are {committed(model)}.")
    check_version(model, record)
    check_task(record, options)
    check_kind(record, config)
    kind_of(record).complete(record, config, model.network.vocabulary())
    model.added[record.name] = Added(record, transfer)
    return record


def _branch_of(model: Parts, forward_transfer: Any, based_on: str | None) -> str | list[str]:
    """What a task reads where units are copied: base, or the branch that ends with one task."""
    if forward_transfer not in (None, "none"):
        raise TaskError(
            f"forward_transfer={forward_transfer!r}: with growth='copy' a task starts from base, or from one other "
            "task. Say which with based_on='<name>'."
        )
    if based_on is None:
        return "none"
    return AUTO if based_on == AUTO else branch_to(model, plain_name(based_on))


def branch_to(model: Parts, name: str) -> list[str]:
    """The branch that ends with a task: those that it is based on, then the task."""
    record = model.config.task(name)
    return [*([] if record is None else record.ancestors), name]


# -- begun ------------------------------------------------------------------------------------------------------------


def begin_task(model: Parts, name: str, pruning: PruningConfig, is_base: bool = False) -> Learner:
    """Open the pool for a task that was added, see `EideticModel.begin_task`; `is_base` as `Learner` has it."""
    record, network = record_of(model, name), model.network
    name = record.name
    if name not in model.added:
        raise TaskError(f"The task '{name}' is committed: it will never change. Add a task of another name.")
    if model.learner is not None:
        raise TaskError(
            f"'{model.learner.name}' is being learned. Finish it, or drop it with model.abandon_task(), before "
            f"'{name}' begins."
        )
    if model.added[name].forward_transfer == AUTO:
        raise TaskError(
            f"'{name}' was added with based_on='auto', and no branch has been tried for it. EideticTrainer does that "
            "in train(); with another loop, or with EideticCallback alone, which begins the task when the Trainer is "
            f"made, call model.choose_branch({name!r}, batches) before."
        )
    check_kind(record, model.config)
    _check_growth(model, pruning)
    std = initializer_range(network.backbone.config)
    expanded = {}
    if not network.growth.copies:
        with random_numbers_for(model.device, "expand", name, pruning.seed):
            expanded = capacity.take_capacity(pruning.on_exhausted, network.unit_groups(), pruning.expand_by, std)
    _note_expanded(model.config, expanded, 1)
    record.ancestors = read_by(model.config, model.added[name].forward_transfer)
    model.learner = Learner(name, pruning, network.unit_groups(), cast(nn.Module, model))
    model.learner.expanded, model.learner.is_base = expanded, is_base
    kind = kind_of(record)
    try:
        if not model.config.trunk_pretrained and not model.config.tasks:
            model.learner.trunk = network.thaw_trunk(kind.reads_vocabulary)
        own = 1.0 if pruning.select == "last" else pruning.own  # those that change least return later
        network.begin([task_key(ancestor) for ancestor in record.ancestors], 0 if is_base else own)
        if network.growth.copies and pruning.select == "random" and not is_base:
            _copy_at_random(model, model.learner)
        model.learner.has_chosen = pruning.select != "first"
        _check_visible(name, network.unit_groups())
        known = network.vocabulary(View(LEARNING))
        kind.complete(record, model.config, known.first(len(network.tables()[-1].own)) if is_base else known)
        if kind.reads_output_embeddings(record):
            network.output_rows.begin()
        with random_numbers_for(model.device, "head", name, pruning.seed) if network.growth.copies else nullcontext():
            model.heads[LEARNING] = _start_head(model, record)
    except BaseException:
        abandon_task(model)
        raise
    return model.learner


def _check_growth(model: Parts, pruning: PruningConfig) -> None:
    """Raise if there is nothing to copy from, where units are copied, or a setting is the other growth's."""
    copies = model.network.growth.copies
    name = said_of_the_other(pruning, copies)
    if name is not None:
        other, ours = ("fixed", OF_COPY) if copies else ("copy", OF_FIXED)
        raise TaskError(
            f"PruningConfig({name}={getattr(pruning, name)!r}) is for growth='{other}', and this model has "
            f"growth='{model.config.growth}'. Leave it out; here {', '.join(f'{each}=' for each in ours)} say what a "
            f"task takes. Or make the model with from_backbone(..., growth='{other}')."
        )
    if model.network.growth.copies and not model.config.trunk_pretrained:
        raise TaskError(
            "growth='copy' copies units of a pretrained backbone, and this one is random. Train it first, as "
            "transformers does, and give what comes out to EideticModel.from_backbone(..., growth='copy'); or learn "
            "from the start with growth='fixed', where the first task trains the trunk."
        )


def choose_units(model: Parts, batches: Iterable[Mapping[str, Any]]) -> None:
    """Let the task being learned copy the units that matter most to it, see `EideticModel.choose_units`."""
    learner, network = model.learner, model.network
    if learner is None or not network.growth.copies:
        raise TaskError("Units are chosen for a task that is being learned with growth='copy'.")
    if learner.config.select != "first":
        raise TaskError(
            f"'{learner.name}' is being learned with select={learner.config.select!r}, which looks at no data before "
            "training. Begin it with PruningConfig(select='first') to choose its units by some."
        )
    module = cast(nn.Module, model)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    view = View(LEARNING, probe="fisher")
    # A collator may draw what it masks: what is chosen depends on the task's name and seed, and on nothing before.
    drawn = random_numbers_for(model.device, "batches", learner.name, learner.config.seed)
    with drawn, evaluation_mode(module), torch.enable_grad():
        for batch in batches:
            inputs = {name: value.to(model.device) for name, value in batch.items() if isinstance(value, Tensor)}
            # Gradients are read on the way, and not left to any optimizer.
            torch.autograd.grad(module(**inputs, view=view).loss, trained, allow_unused=True)
    groups = network.unit_groups()
    parts = [(group.reading("_ancestors"), group.progress.need("chosen"), group.reading()) for group in groups]
    read = torch.cat([theirs.index_copy(0, chosen, ours) for theirs, chosen, ours in parts])
    # Every process has seen the same batches; what is copied must be the same even if their arithmetic is not.
    scores = cast(Tensor, reduce(read, "mean")).split([len(theirs) for theirs, _, _ in parts])
    _copy(model, dict(zip(groups, scores, strict=True)))
    learner.has_chosen = True


def _copy_at_random(model: Parts, learner: Learner) -> None:
    """Let the task being learned copy units that its name and its seed draw."""
    scores = {}
    for group in model.network.unit_groups():
        with random_numbers_for(model.device, "units", group.name, learner.name, learner.config.seed):
            scores[group] = torch.rand(group.n_inherited())
    _copy(model, scores)


def _copy(model: Parts, scores: Mapping[UnitGroup, Tensor]) -> None:
    """Let the task being learned copy the units of each group with the highest scores, `(places,)`."""
    for group, values in scores.items():
        group.work_on(cast(CopyGrowth, model.network.growth).choose(group, values))
        group.reset()


def _check_visible(name: str, groups: list[UnitGroup]) -> None:
    """Raise a `TaskError` if a task would see no unit in some layer, so that nothing could run there."""
    blind = [group.name for group in groups if not group.kept().numel() + group.kept("_ancestors").numel()]
    if blind:
        raise TaskError(
            f"'{name}' would see no unit in {len(blind)} of {len(groups)} groups ({blind[0]}, ...): none is free "
            "there, and it reads no earlier task. Let it read some (forward_transfer='all'), or begin it with "
            "PruningConfig(on_exhausted='expand')."
        )


def read_by(config: EideticConfig, transfer: str | list[str]) -> list[str]:
    """The committed tasks that a new one reads, in commit order."""
    names = [task.name for task in config.tasks]
    return names if transfer == "all" else [] if transfer == "none" else [name for name in names if name in transfer]


def _note_expanded(config: EideticConfig, units: Mapping[str, int], sign: int) -> None:
    """Keep the number of added units per group up to date."""
    for name, count in units.items():
        config.expanded[name] = config.expanded.get(name, 0) + sign * count


def _start_head(model: Parts, record: TaskRecord) -> nn.Module:
    """A head to learn: the pretrained one, if this kind of task has one and it was in the checkpoint."""
    head, kind = new_head(model, record), kind_of(record)
    state = head.state_dict()
    if kind.reads_vocabulary and POOL in model.language_head:
        state.update(model.language_head[POOL].state_dict())
        if "bias" in state and record.vocab_size is not None:  # tokens that came later start without one
            state["bias"] = functional.pad(state["bias"], (0, record.vocab_size - len(state["bias"])))
    if kind.reads_vocabulary and not kind.reads_output_embeddings(record):
        state["embeddings"] = model.network.vocabulary(View(LEARNING)).joined()
    head.load_state_dict(state)
    return head


def new_head(model: Parts, record: TaskRecord) -> nn.Module:
    """A head with initial weights, in the model's mode: no dropout where the model is in evaluation mode."""
    head = kind_of(record).make_head(model.network.backbone.config, record)
    return head.to(device=model.device, dtype=model.dtype).train(model.training)


# -- abandoned --------------------------------------------------------------------------------------------------------


def abandon_task(model: Parts) -> None:
    """Drop the task being learned, see `EideticModel.abandon_task`."""
    learner, network = model.learner, model.network
    if learner is None:
        return
    network.freeze_trunk(learner.trunk, restore=True)
    if not model.config.tasks:  # the next commit looks at the trunk again
        model.router.clear_reference()
        model.config.router = None
    _end(model)
    for group in network.unit_groups():
        if group.name in learner.expanded:
            group.shrink(learner.expanded[group.name])
    _note_expanded(model.config, learner.expanded, -1)


def _end(model: Parts) -> None:
    """Let nothing of the task being learned stay behind."""
    model.network.end()
    _drop(model.heads, LEARNING)
    model.learner = None
    cast(nn.Module, model).eval()  # nothing is left to train: dropout would only make answers and routes random
    give_back_memory()


def _drop(modules: nn.ModuleDict, key: str) -> None:
    if key in modules:
        del modules[key]


# -- committed --------------------------------------------------------------------------------------------------------


def commit_task(model: Parts, metrics: Mapping[str, float] | None, router_sums: RouterSums | None) -> TaskRecord:
    """Freeze the task being learned, see `EideticModel.commit_task`."""
    learner, network, config = model.learner, model.network, model.config
    if learner is None:
        raise TaskError("No task is being learned; begin one with model.begin_task(name) or EideticTrainer.")
    _check_finite(model, learner)
    learner.finish()
    record = record_of(model, learner.name)
    key, kind = task_key(record.name), kind_of(record)
    recycle_std = initializer_range(network.backbone.config) if learner.config.recycle == "random" else None
    with ExitStack() as undo:
        with random_numbers_for(model.device, "recycle", record.name, learner.config.seed):
            network.commit(key, undo, recycle_std)
        undo.callback(_drop, model.heads, key)
        model.heads[key] = freeze(deepcopy(model.heads[LEARNING]))
        network.freeze_trunk(learner.trunk, restore=False, undo=undo)
        takes = (_reads_tokens(model, record), kind.reads_output_embeddings(record))
        network.commit_tokens(key, None if learner.is_base else takes, undo)
        undo.callback(_reset, record, record.vocab_size)
        _describe(model, record, learner.metrics if metrics is None else metrics)
        undo.callback(_take_back, model, record, model.added.pop(record.name))
        config.tasks.append(record)
        undo.callback(model.router.remove, record.name)
        if router_sums is not None and int(router_sums.count.sum()):
            model.router.put(record.name, router_sums)
        elif router_sums is not None:
            logger.warning(
                f"The router learned nothing of '{record.name}': no sequence of its data counts (every label is -100, "
                "or there is none). The task answers when it is named; all others are routed as before."
            )
        undo.callback(_drop, model.probes, key)
        certify(model, record)
        undo.pop_all()
    _end(model)
    if router_sums is not None:
        _say_what_overlaps(model, record.name)
    return record


def _say_what_overlaps(model: Parts, name: str) -> None:
    """Warn of tasks whose texts the router will hardly tell from those of one that was committed."""
    close = {other: share for other, share in overlaps(model, name).items() if share < HARDLY_APART}
    if close:
        listed = ", ".join(f"'{other}' {share:.2f}" for other, share in close.items())
        logger.warning(
            f"The router will not always tell '{name}' from other tasks. Share of texts told apart, estimated: "
            f"{listed}. Name the task where it is known, allow some with tasks=[...], or let both answer with "
            "answer_all=True."
        )


def _check_finite(model: Parts, learner: Learner) -> None:
    """Refuse what a diverged run has left: it would be frozen for good, and later tasks would read it.

    Raises:
        TaskError: naming a parameter, and the step at which it began, if a Trainer noted it.
    """
    for name, parameter in cast(nn.Module, model).named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            learner.trained = False
            since = "" if learner.diverged < 0 else f" since step {learner.diverged}"
            raise TaskError(
                f"'{learner.name}' is not committed: {name} is not finite{since}, so the training has diverged. Learn "
                "it again with a lower learning rate or gradient clipping (max_grad_norm), in bf16 in place of fp16, "
                "and look for targets that are no finite numbers."
            )


def _reads_tokens(model: Parts, record: TaskRecord) -> bool:
    """Whether a task takes the tokens of the pool: if it has read any of them on any rank, or scores them all."""
    read = model.network.input_rows.get("progress")
    return kind_of(record).reads_vocabulary or (read is not None and bool(reduce(read.float(), "sum")))


def _describe(model: Parts, record: TaskRecord, metrics: Mapping[str, float]) -> None:
    """Note what a task is made of."""
    key = task_key(record.name)
    if model.network.input_rows.has_grown:
        record.vocab_size = model.network.input_rows.sizes[key]
    record.units = {group.name: group.count(key) for group in model.network.unit_groups()}
    record.metrics = dict(metrics)
    if kind_of(record).writes:
        tokens = model.generation_config.to_dict().items()
        record.special_tokens = {name: value for name, value in tokens if name.endswith("token_id")}


def _reset(record: TaskRecord, vocab_size: int | None) -> None:
    """Take back what a commit noted."""
    record.vocab_size = vocab_size
    record.units, record.certificate, record.metrics, record.special_tokens = {}, {}, {}, {}


def _take_back(model: Parts, record: TaskRecord, added: Added) -> None:
    """Take a task out of the committed ones again."""
    model.config.tasks = [task for task in model.config.tasks if task is not record]
    model.added[record.name] = added


# -- room for the next ones -------------------------------------------------------------------------------------------


def expand(model: Parts, units: float, groups: list[str] | None) -> dict[str, int]:
    """Add free units, see `EideticModel.expand`."""
    if model.network.growth.copies:
        raise TaskError("With growth='copy' there is no pool that could run out of units.")
    if model.learner is not None:
        raise TaskError(f"'{model.learner.name}' is being learned; expand the pool before a task begins.")
    if not units > 0:
        raise ValueError(f"units={units!r}: expected a number above 0.")
    known = {group.name: group for group in model.network.unit_groups()}
    unknown = [name for name in groups or [] if name not in known]
    if unknown:
        raise ValueError(f"There is no unit group {unknown[0]!r}; there are {list(known)}.")
    chosen = [known[name] for name in (known if groups is None else groups)]
    with random_numbers_for(model.device, "expand", *(group.total for group in known.values())):
        added = capacity.expand(chosen, units, initializer_range(model.network.backbone.config))
    _note_expanded(model.config, added, 1)
    return added


@torch.no_grad()
def grow_vocabulary(model: Parts, size: int, std: float | None) -> None:
    """Add tokens up to a size of the whole vocabulary, see `EideticModel.resize_token_embeddings`.

    Args:
        model: the model.
        size: more than there are.
        std: standard deviation of new rows; `None` starts them at the mean of the backbone's own.
    """
    network, config = model.network, model.config
    if model.learner is not None:
        raise TaskError(f"'{model.learner.name}' is being learned; grow the vocabulary before a task begins.")
    if not config.pool:
        raise TaskError(
            "This model has no pool, so new tokens would belong to nobody: it was released for inference only, or "
            "loaded with tasks=[...]. Load the whole checkpoint to grow its vocabulary."
        )
    with random_numbers_for(model.device, "tokens", size):
        for rows in network.tables():
            rows.grow(size - rows.total, std)
    if config.trunk_pretrained or config.tasks:
        read_by_view(network.input_rows, network.backbone)
        config.vocab_size = size
    else:  # the first task of a random backbone is going to train them with the trunk
        for rows in network.tables():
            rows.join()
        cast(nn.Embedding, table_of(network.backbone.get_input_embeddings())).num_embeddings = size
        config.base_config.vocab_size = network.backbone.config.vocab_size = size
        if config.output_embeddings is not None:
            config.output_embeddings[0] = size
    for added in model.added.values():
        added.record.vocab_size = None
