"""How a model is kept: loaded from a checkpoint folder, saved to one, restored in the middle of a run."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..compat import (
    FACTORY_ARGUMENTS,
    HUB_ARGUMENTS,
    attention_of,
    check_known,
    hub_arguments,
    kept_in_float32,
    no_init_weights,
    set_attention,
)
from ..configuration import EideticConfig, TaskError, check_transfer
from ..kinds import default_kind, name_labels, owners_of_tokens
from ..network.backbone import ENCODER, family_of
from ..network.storage import Segment, set_tensor, stored_tensors
from ..views import POOL, TRUNK, owner_of, task_key
from . import certificate
from .checkpoint.layout import CheckpointError
from .checkpoint.read import read_config, read_generation_config, read_tensors
from .checkpoint.write import write_checkpoint
from .parts import Parts, record_of

# Modules whose tensors a checkpoint brings along, in shapes of their own.
WITHOUT_ROOM = ("probes.", "router.")
MODEL_CLASS = "EideticModel"  # in config.json, whichever class a model was loaded with
# What may be set when a checkpoint is loaded; and what its weights have decided.
SETTABLE = ("output_hidden_states", "output_attentions", "return_dict", "forward_transfer")
DECIDED = (
    "trunk_layers", "trunk_pretrained", "vocab_size", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "max_position_embeddings",
)  # fmt: skip

Model = TypeVar("Model", bound=nn.Module)


def load(
    cls: type[Model],
    source: str | os.PathLike,
    config: EideticConfig | None,
    tasks: list[str] | None,
    attn_implementation: str | None,
    kwargs: Mapping[str, Any],
) -> Model:
    """A model of a class as a checkpoint has it, see `EideticModel.from_pretrained`.

    Raises:
        CheckpointError: if the folder is no release, or a file is missing, damaged or not what was saved.
        TaskError: if `tasks` names a task that the checkpoint does not have.
        TypeError: if an argument is unknown.
    """
    named = ("config", "tasks", "dtype", "device_map", "attn_implementation", *SETTABLE)
    check_known("EideticModel.from_pretrained", kwargs, (*named, *HUB_ARGUMENTS, *FACTORY_ARGUMENTS))
    hub = hub_arguments(kwargs)
    own_config = read_config(source, hub)
    _check_decided(own_config, config)
    if attn_implementation is None and config is not None:
        attn_implementation = attention_of(config)
    if tasks is None and config is not None and any(isinstance(task, str) for task in config.tasks):
        tasks = cast(list[str], config.tasks)  # AutoModel.from_pretrained(..., tasks=[...]) puts them here
    if tasks is not None:
        restrict(own_config, tasks)
    elif config is not None and config.served is not None:
        restrict(own_config, config.served)
    if attn_implementation is not None:
        set_attention(own_config, attn_implementation)
    settings = {name: getattr(config, name, None) for name in SETTABLE} if config is not None else {}
    for name, value in {**settings, **kwargs}.items():
        if name in SETTABLE and value != getattr(own_config, name):
            setattr(own_config, name, value)
    check_transfer(own_config.forward_transfer)
    with ThreadPoolExecutor(1) as pool:  # the shards are read and hashed while the modules are made
        tensors = pool.submit(read_tensors, source, own_config, hub)
        try:
            with no_init_weights():
                model = cast(Any, cls)(own_config, empty=True)
        except Exception:
            tensors.result()  # Damage in the files is the better explanation.
            raise
    fill(cast(Any, model), tensors.result())
    lost = [name for name, buffer in cast(nn.Module, model).named_buffers() if buffer.is_meta]
    if lost:
        raise RuntimeError(
            f"{lost[0]} has no values: from_pretrained was called where new tensors get none, such as in "
            "`with torch.device('meta')` or `with init_empty_weights(include_buffers=True)`. Call it outside, "
            "where it takes no more memory than the model."
        )
    if family_of(own_config.base_config) != ENCODER:
        stored = read_generation_config(source, hub)
        model.generation_config = stored or model.generation_config
    model.config.name_or_path = str(source)
    return model


def _check_decided(own: EideticConfig, given: EideticConfig | None) -> None:
    """Refuse a configuration that wants what the weights of a checkpoint are not.

    `AutoModel.from_pretrained(folder, trunk_layers=3)` puts such a wish there.

    Raises:
        ValueError: naming the setting.
    """
    if given is None or given.base_config is None:
        return
    different = [name for name in DECIDED if getattr(given, name, None) != getattr(own, name, None)]
    for name in different:
        raise ValueError(
            f"{name}={getattr(given, name)!r} was asked for, and the weights of this checkpoint have "
            f"{name}={getattr(own, name)!r}, which nobody can change. Leave it out."
        )


def cast_floats(model: Parts, dtype: torch.dtype) -> None:
    """Cast a model that was loaded, but what its backbone keeps in float32, as transformers does at loading."""
    module, patterns = cast(nn.Module, model), kept_in_float32(model.network.backbone, dtype)
    kept = {
        (owner, leaf): tensor.float()
        for name, owner in model.network.backbone.named_modules()
        if patterns & set(name.split("."))
        for leaf, tensor in stored_tensors(owner).items()
        if tensor.is_floating_point()
    }
    module.to(dtype)
    for (owner, leaf), tensor in kept.items():
        set_tensor(owner, leaf, tensor)
    model.network.pack()


def move(model: Parts, device_map: Any) -> None:
    """Move a model that was loaded to the device that a `device_map` names.

    Raises:
        ValueError: if it spreads the model over several.
    """
    if isinstance(device_map, Mapping):
        devices = set(device_map.values())
        if len(devices) != 1:
            raise ValueError(
                f"device_map={device_map!r} spreads the model over {len(devices)} devices, and it lies on one: what a "
                "task reads is one piece of memory. Name one device, such as 'cuda:0', or 'auto'."
            )
        device_map = devices.pop()
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    cast(nn.Module, model).to(device_map)


def restrict(config: EideticConfig, names: list[str]) -> None:
    """Keep the named tasks, and the tasks whose units or tokens they read; and no pool, since the rest is unknown."""
    known = {task.name: task for task in config.tasks}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise TaskError(f"tasks={names!r}: the checkpoint has {list(known)}, not {unknown or 'nothing to choose'}.")
    needed, todo = set(), list(names)
    while todo:
        name = todo.pop()
        needed.add(name)
        read = [*known[name].ancestors, *owners_of_tokens(config, known[name])]
        todo.extend(other for other in read if other not in needed)
    config.tasks = [task for task in config.tasks if task.name in needed]
    config.served = [name for name in names if name in known]
    config.pool = False
    config.forget_free_tokens()


def fill(model: Parts, tensors: dict[str, Tensor]) -> None:
    """Take over a checkpoint's tensors, each in fresh, aligned memory."""
    module_of = dict(cast(nn.Module, model).named_modules())
    vocabulary = model.network.backbone.get_input_embeddings()
    expected = {name for name in cast(nn.Module, model).state_dict() if model.config.pool or owner_of(name) != POOL}
    for name in sorted(tensors):
        module_name, _, leaf = name.rpartition(".")
        module = module_of.get(module_name)
        if module is None or (leaf not in stored_tensors(module) and not module_name.startswith(WITHOUT_ROOM)):
            raise CheckpointError(f"The checkpoint holds {name}, for which config.json leaves no place.")
        old = stored_tensors(module).get(leaf)
        if old is not None and old.shape != tensors[name].shape:
            raise CheckpointError(
                f"{name} has the shape {tuple(tensors[name].shape)}, config.json expects {tuple(old.shape)}."
            )
        # The copy matters: a product over unaligned data may round differently. `pack` copies segments, and of the
        # embeddings only those that language models score tokens with are more than looked up.
        tensor = tensors.pop(name)
        as_read = isinstance(module, Segment) or (isinstance(module, nn.Embedding) and module is not vocabulary)
        set_tensor(module, leaf, tensor if as_read else tensor.clone())
        expected.discard(name)
    missing = sorted(expected)
    if missing:
        raise CheckpointError(f"The checkpoint lacks {len(missing)} tensors that config.json expects: {missing[:3]}.")
    model.network.pack()


def to_restore(model: Parts, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict to load into a model, see `EideticModel.load_state_dict`.

    Raises:
        CheckpointError: if it holds other values for what is frozen.
    """
    state_dict = dict(state_dict)
    own = cast(nn.Module, model).state_dict(keep_vars=True)
    fixed = {task_key(task.name) for task in model.config.tasks}
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


def save(model: Parts, folder: Path, tensors: Mapping[str, Tensor], include_pool: bool) -> None:
    """Write the checkpoint folder, see `EideticModel.save_pretrained`."""
    if folder.is_file():
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
    if not config.pool:
        config.forget_free_tokens()
    resumable = model.learner is not None
    writes = family_of(config.base_config) != ENCODER
    generation_config = model.generation_config if writes else None
    written = write_checkpoint(folder, tensors, config, config.pool, resumable, generation_config)
    if not resumable and include_pool:
        model.config.files = written.files
