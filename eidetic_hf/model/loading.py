"""A model from a checkpoint: a folder, or one on the Hub; with its backbone in it, or with the name of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import AutoConfig

from ..compat import (
    ACCESS_ARGUMENTS,
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
from ..kinds import check_task
from ..network.backbone import ENCODER, family_of
from ..network.storage import set_tensor, stored_tensors
from . import joining
from .brought import check_read
from .checkpoint.layout import CheckpointError
from .checkpoint.limits import building, fitting
from .checkpoint.read import read_config, read_generation_config, read_into, shards_of_all
from .checkpoint.source import Folder, Source, steadily
from .parts import Parts
from .persistence import base_digest, fill

# What may be set when a checkpoint is loaded; and what its weights have decided.
SETTABLE = ("output_hidden_states", "output_attentions", "return_dict", "forward_transfer")
DECIDED = (
    "trunk_layers", "trunk_pretrained", "vocab_size", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "max_position_embeddings",
)  # fmt: skip
# Bytes: so much is hashed in a moment, to tell a file that is damaged from a configuration that is.
HASHED_TO_EXPLAIN = 2**30

Model = TypeVar("Model", bound=nn.Module)


def load(
    cls: type[Model],
    source: str | os.PathLike,
    config: EideticConfig | None,
    tasks: list[str] | None,
    attn_implementation: str | None,
    backbone: Any,
    kwargs: Mapping[str, Any],
) -> Model:
    """A model of a class as a checkpoint has it, see `EideticModel.from_pretrained`.

    Raises:
        CheckpointError: if the folder is no release, or a file is missing, damaged or not what was saved.
        TaskError: if `tasks` names a task that the checkpoint does not have.
        TypeError: if an argument is unknown.
    """
    named = ("config", "tasks", "dtype", "device_map", "attn_implementation", "backbone", "hash_once", *SETTABLE)
    check_known("EideticModel.from_pretrained", kwargs, (*named, *HUB_ARGUMENTS, *FACTORY_ARGUMENTS))
    read = partial(_load, cls, config, tasks, attn_implementation, backbone, kwargs)
    return steadily(source, hub_arguments(kwargs), read)


def _load(
    cls: type[Model],
    config: EideticConfig | None,
    tasks: list[str] | None,
    attn_implementation: str | None,
    backbone: Any,
    kwargs: Mapping[str, Any],
    source: Source,
) -> Model:
    """A model as a source has it now, see `load`."""
    own_config = read_config(source)
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
    if own_config.base is None:
        model = _load_whole(cls, source, own_config, bool(kwargs.get("hash_once")))
    else:
        model = _load_on_base(cls, source, own_config, backbone, hub_arguments(kwargs))
    lost = [name for name, buffer in cast(nn.Module, model).named_buffers() if buffer.is_meta]
    if lost:
        raise RuntimeError(
            f"{lost[0]} has no values: from_pretrained was called where new tensors get none, such as in "
            "`with torch.device('meta')` or `with init_empty_weights(include_buffers=True)`. Call it outside, "
            "where it takes no more memory than the model."
        )
    if family_of(own_config.base_config) != ENCODER:
        stored = read_generation_config(source)
        cast(Any, model).generation_config = stored or model.generation_config
    cast(Any, model).config.name_or_path = source.where
    return model


def _load_whole(cls: type[Model], source: Source, config: EideticConfig, hash_once: bool) -> Model:
    """A model whose checkpoint holds all of it."""
    shards = shards_of_all(source, config, hash_once)
    count, size = sum(len(shard.entries) for shard in shards), sum(shard.recorded["bytes"] for shard in shards)
    try:
        with building(source.where, count, size), no_init_weights():
            model = cast(Any, cls)(config, empty=True)
    except Exception:
        if size <= HASHED_TO_EXPLAIN:
            read_into(shards, {})  # Damage in the files is the better explanation.
        raise
    with fitting(source.where):
        fill(model, shards)
    return model


def _load_on_base(
    cls: type[Model], source: Source, config: EideticConfig, backbone: Any, hub: Mapping[str, Any]
) -> Model:
    """A model whose checkpoint names the backbone: the backbone, and the tasks of the checkpoint.

    Raises:
        CheckpointError: if the backbone can not be had, or is another than the one that the tasks were learned on.
    """
    base = cast(dict[str, Any], config.base)
    with building(source.where):
        for record in config.tasks:
            check_task(record)
    where, revision = backbone, None
    if backbone is None:
        beside = source.path.parent / base["name"] if isinstance(source, Folder) else None
        is_beside = beside is not None and beside.is_dir()
        where, revision = (beside, None) if is_beside else (base["name"], base["revision"])
    options: dict[str, Any] = {"trunk_layers": config.trunk_layers, "growth": config.growth}
    if not isinstance(where, nn.Module):
        options.update(dtype=config.dtype, attn_implementation=attention_of(config))
        options.update({name: value for name, value in hub.items() if name in ACCESS_ARGUMENTS})
        options.update({} if revision is None else {"revision": revision})
    # Who names a backbone may choose how it is read. A file may not: no pickle, and no code of a repository.
    named_by_file = backbone is None
    try:
        if named_by_file:
            AutoConfig.from_pretrained(where, trust_remote_code=False, **hub_arguments(options))
            options["use_safetensors"] = True
        model = cast(Any, cls).from_backbone(where, **options)
    except Exception as error:
        if not named_by_file and not isinstance(error, OSError):
            raise
        raise CheckpointError(
            f"{source.where} does not hold its backbone, but names it: {base['name']}, which could not be loaded "
            f"({error}). Say where it is: EideticModel.from_pretrained(..., backbone='<folder, Hub id or model>')."
        ) from error
    if base_digest(model) != base["sha256"]:
        raise CheckpointError(
            f"The tasks of {source.where} were learned on {base['name']} with SHA-256 {base['sha256']}; what was "
            f"found has {base_digest(model)}. Load them on the backbone that they were learned on: "
            "EideticModel.from_pretrained(..., backbone=...)."
        )
    for name in SETTABLE:
        setattr(model.config, name, getattr(config, name))
    with fitting(source.where):
        joining.bring(model, joining.shards_in(source, config))
        check_read(cast(Any, model))
    for name in ("served", "pool", "default_versions", "router_layers"):
        setattr(model.config, name, getattr(config, name))
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
    known = [task.name for task in config.tasks]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise TaskError(f"tasks={names!r}: the checkpoint has {known}, not {unknown or 'nothing to choose'}.")
    config.tasks = joining.needed(config, names)
    config.served = [name for name in names if name in known]
    config.pool = False
    config.forget_free_tokens()
