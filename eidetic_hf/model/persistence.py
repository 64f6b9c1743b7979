"""How a model is kept: filled from a checkpoint, saved to a folder, restored in the middle of a run."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..compat import revision_of
from ..configuration import TaskRecord
from ..kinds import check_task, default_kind, kind_of, name_labels
from ..network.backbone import ENCODER, family_of
from ..network.network import Section
from ..network.storage import Slots, freeze, get_tensor, set_tensor, stored_tensors
from ..views import BASE, POOL, TOLD, TRUNK, owner_of, task_key
from . import certificate
from .brought import check_described, check_read
from .checkpoint.layout import CheckpointError
from .checkpoint.read import read_into
from .checkpoint.shard import Entry, Shard
from .checkpoint.write import write_checkpoint
from .life import new_head
from .parts import Parts, record_of

# Modules whose tensors a checkpoint brings along, in shapes of their own.
WITHOUT_ROOM = ("probes.", "router.")
MODEL_CLASS = "EideticModel"  # in config.json, whichever class a model was loaded with


def make_room(model: Parts, task: TaskRecord) -> None:
    """Make room for a committed task's tensors, which `fill` will bring."""
    check_task(task)
    groups = [group.name for group in model.network.unit_groups()]
    if task.units.keys() != set(groups):
        differs = sorted(task.units.keys() ^ set(groups))
        raise CheckpointError(
            f"config.json: task '{task.name}' has units in groups that this backbone has not, or lacks some: "
            f"{differs[:3]}. It has {groups[:3]} and so on."
        )
    key, ancestors = task_key(task.name), [task_key(name) for name in task.ancestors]
    model.network.rebuild(key, ancestors, task.units)
    model.network.rebuild_tokens(key, task.vocab_size, kind_of(task).reads_output_embeddings(task))
    model.heads[key] = freeze(new_head(model, task))
    model.probes[key] = Slots()
    model.router.make_room(task.name)


def fill(model: Parts, shards: list[Shard]) -> None:
    """Read a checkpoint's shards into the model that was made for them, straight into where each tensor stays.

    Raises:
        CheckpointError: if they hold other tensors than the model has room for, or a shard is not what was saved.
    """
    here = {task_key(task.name) for task in model.config.tasks}
    entries = {
        name: entry
        for shard in shards
        for name, entry in shard.entries.items()
        if owner_of(name) != TOLD or not here.isdisjoint(name.split("."))  # one shard for all tasks
    }
    room = _room_for(model, entries)
    check_described(model, entries, here)
    for name, (module, leaf) in room.items():
        set_tensor(module, leaf, entries[name].room())
    try:
        model.network.lay()
    except ValueError as error:
        raise CheckpointError(f"The shards of the checkpoint have {error}. They were edited.") from error
    read_into(shards, {name: cast(Tensor, get_tensor(*place)) for name, place in room.items()})
    if not model.config.pool:
        private = model.router.reference.get("private")
        if private is not None:
            model.network.put_base_private(private)
    check_read(model)
    model.network.make_views()


def fill_task(model: Parts, tensors: dict[str, Tensor], owner: str) -> None:
    """Take over the tensors of one task, each in fresh, aligned memory.

    Args:
        model: the model, with room for them.
        tensors: by name; they are taken out of here, so that nobody holds them twice.
        owner: whose they are.

    Raises:
        CheckpointError: if they are others than the model has room for.
    """
    room = _room_for(model, tensors, owner)
    check_described(model, tensors, [owner])
    for name, (module, leaf) in room.items():
        # The copy matters: a product over unaligned data may round differently, and the other model keeps its own.
        set_tensor(module, leaf, tensors.pop(name).clone())
    model.network.pack()


def _room_for(
    model: Parts, described: Mapping[str, Entry | Tensor], owner: str | None = None
) -> dict[str, tuple[nn.Module, str]]:
    """Where tensors belong that a checkpoint brings: the module and the name there of each.

    Args:
        model: the model.
        described: the tensors by name, or what says their shapes.
        owner: whose they are, if they are one owner's; by default they are everybody's.

    Raises:
        CheckpointError: if there is no room for one, one has another shape, or one is missing.
    """
    module_of = dict(cast(nn.Module, model).named_modules())
    left_out = {POOL} if owner is None and not model.config.pool else set()
    expected = {
        name
        for name in cast(nn.Module, model).state_dict()
        if (owner_of(name) not in left_out if owner is None else owner_of(name) == owner)
    }
    room = {}
    for name in sorted(described):
        module_name, _, leaf = name.rpartition(".")
        module = module_of.get(module_name)
        if module is None or (leaf not in stored_tensors(module) and not module_name.startswith(WITHOUT_ROOM)):
            raise CheckpointError(f"The checkpoint holds {name}, for which config.json leaves no place.")
        old, shape = stored_tensors(module).get(leaf), tuple(described[name].shape)
        if old is not None and tuple(old.shape) != shape:
            raise CheckpointError(f"{name} has the shape {shape}, config.json expects {tuple(old.shape)}.")
        room[name] = module, leaf
    missing = sorted(expected - room.keys())
    if missing:
        raise CheckpointError(f"The checkpoint lacks {len(missing)} tensors that config.json expects: {missing[:3]}.")
    return room


def to_restore(model: Parts, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict to load into a model, see `EideticModel.load_state_dict`.

    Raises:
        CheckpointError: if it holds other values for what is frozen.
    """
    state_dict = dict(state_dict)
    own = cast(nn.Module, model).state_dict(keep_vars=True)
    fixed = {BASE, *(task_key(task.name) for task in model.config.tasks)}
    if model.learner is None or not model.learner.trunk:
        fixed.add(TRUNK)
    for name in list(state_dict):
        if owner_of(name) not in fixed:
            continue
        if name not in own or not torch.equal(own[name].cpu(), state_dict[name].cpu()):
            raise CheckpointError(
                f"The state to load has another {name} than this model, and it is frozen. The checkpoint belongs "
                "to another model; load the one that it was made from."
            )
        state_dict[name] = own[name]
    if model.learner is not None:
        prefix = "learner."
        names = [name[len(prefix) :] for name in state_dict if name.startswith(prefix)]
        model.learner.make_room(names, lambda name: torch.empty_like(state_dict[prefix + name], device=model.device))
    return state_dict


def base_digest(model: Parts) -> str:
    """SHA-256 of what a backbone gives to every task where units are copied, as it came."""
    evidence = certificate.Evidence(model)
    sections = (Section(TRUNK, TRUNK), Section(BASE, BASE), Section(TRUNK, "output_embeddings"))
    found = (section for section in sections[: 3 if model.config.output_embeddings is not None else 2])
    return certificate.digest_of_digests(evidence.digests(evidence.tensors(section)) for section in found).hex()


def _named_base(model: Parts) -> dict[str, Any]:
    """What a checkpoint says of a backbone that it does not hold.

    Raises:
        CheckpointError: if there is no such thing.
    """
    base, name = model.config.base_config, model.config.base_config.name_or_path
    if not model.network.growth.copies:
        raise CheckpointError(
            "include_base=False is for growth='copy': in a fixed pool tasks have taken what the backbone came with."
        )
    if not name or not model.config.tasks or model.learner is not None:
        lacking = (
            "a backbone with a name" if not name else "a task" if not model.config.tasks else "its task committed"
        )
        raise CheckpointError(f"include_base=False leaves the backbone out; it needs a model with {lacking}.")
    # As in a configuration: where this machine keeps it is nobody's business.
    name = Path(name).name if Path(name).is_dir() else name
    return {"name": name, "revision": revision_of(base), "sha256": base_digest(model)}


def _belongs_to_base(name: str) -> bool:
    """Whether a tensor is as the backbone came; what the router has measured on it is not."""
    return owner_of(name) in (TRUNK, BASE, POOL) and not name.startswith("router.")


def save(
    model: Parts, folder: Path, tensors: Mapping[str, Tensor], include_pool: bool, include_base: bool = True
) -> None:
    """Write the checkpoint folder, see `EideticModel.save_pretrained`."""
    if os.path.isfile(folder):  # of a path, `is_file` raises if it is too long
        raise CheckpointError(f"{folder} is a file, expected a folder.")
    certificate.check_unchanged(model)
    config = copy.copy(model.config)
    config.__dict__.pop("use_cache", None)  # which the Trainer switches off in every configuration that it sees
    config.architectures = [MODEL_CLASS]  # whichever class it was loaded with
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.learning = None if model.learner is None else model.learner.name
    config.learning_ancestors = None if model.learner is None else record_of(model, model.learner.name).ancestors
    name_labels(config, default_kind(config))
    config.pool = model.config.pool and include_pool
    if not include_base:
        config.base = _named_base(model)
        tensors = {name: tensor for name, tensor in tensors.items() if not _belongs_to_base(name)}
    if not config.pool or not include_base:
        config.forget_free_tokens()
    resumable = model.learner is not None
    writes = family_of(config.base_config) != ENCODER
    generation_config = model.generation_config if writes else None
    with_pool = config.pool and include_base
    written = write_checkpoint(folder, tensors, config, with_pool, resumable, generation_config, model.removed)
    if not resumable and include_pool and include_base:
        model.config.files = written.files
