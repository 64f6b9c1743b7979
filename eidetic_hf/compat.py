"""All that leans on private names of transformers, and on packages that may not be installed.

One place to look at when a new version of transformers moves something.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Pipeline, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations.accelerate import check_and_set_device_map
from transformers.utils import CONFIG_NAME, TransformersKwargs, cached_file
from transformers.utils.hub import extract_commit_hash

__all__ = [
    "ACCESS_ARGUMENTS",
    "CAPTURING",
    "CONFIGURED_OUTSIDE",
    "FACTORY_ARGUMENTS",
    "HUB_ARGUMENTS",
    "SAVE_ARGUMENTS",
    "attention_of",
    "check_and_set_device_map",
    "check_known",
    "commit_of",
    "forget_capturing",
    "forward_arguments",
    "has_class_for",
    "hinting_at",
    "hub_arguments",
    "initialize",
    "kept_in_float32",
    "name_of",
    "nearest",
    "need",
    "no_init_weights",
    "revision_of",
    "see_pipelines",
    "set_attention",
    "set_name",
    "set_revision",
    "static_cache_shape",
    "tied_weights",
]

# Arguments of `from_pretrained` that say where a repository's files are.
HUB_ARGUMENTS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token", "user_agent",
    "_commit_hash",
)  # fmt: skip
# Those of them that say how to come to any repository, not which files of one are meant.
ACCESS_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "user_agent")
# Further arguments that transformers' factories pass, and that have nothing to decide here.
FACTORY_ARGUMENTS = (
    "_from_auto", "_from_pipeline", "adapter_kwargs", "low_cpu_mem_usage", "output_loading_info", "trust_remote_code",
    "use_safetensors", "weights_only", "code_revision", "tqdm_class", "_adapter_model_path",
)  # fmt: skip

# Of a configuration, where it came from, in which dtype and by which implementations its model is computed.
CONFIGURED_OUTSIDE = (
    "_name_or_path", "name_or_path", "_commit_hash", "dtype", "torch_dtype", "attn_implementation",
    "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset", "experts_implementation",
    "_experts_implementation",
)  # fmt: skip

# Where the hooks come from that transformers installs at the first request for hidden states or attentions.
CAPTURING = "transformers.utils.output_capturing"

# What `save_pretrained` of transformers and its upload take beside what ours names.
SAVE_ARGUMENTS = (
    "save_directory", "is_main_process", "state_dict", "push_to_hub", "max_shard_size", "include_pool", "include_base",
    "save_function", "safe_serialization", "variant", "token", "save_peft_format", "save_original_format", "repo_id",
    "commit_message", "commit_description", "private", "create_pr", "revision", "tags", "merge", "replace",
    "use_auth_token",
)  # fmt: skip


def forget_capturing(model: nn.Module) -> None:
    """Let the next request for hidden states or attentions install its hooks again: they were removed."""
    for module in model.modules():
        module.__dict__.pop("_output_capturing_hooks_installed", None)


def commit_of(name: str | os.PathLike, hub: Mapping[str, Any]) -> str | None:
    """The commit on the Hub that `hub["revision"]` of a model stands for now; `None` for a folder.

    Raises:
        OSError: if there is no such repository or revision, or no way to it.
    """
    if Path(name).exists():
        return None
    return extract_commit_hash(cached_file(str(name), CONFIG_NAME, **hub), None)


def set_revision(config: PreTrainedConfig, commit: str | None) -> None:
    """Note the commit that a configuration was loaded from, which transformers 5.24 does not do itself."""
    if commit is not None:
        config._commit_hash = commit


def revision_of(config: PreTrainedConfig) -> str | None:
    """The commit of the repository that a configuration was loaded from; `None` if it was none."""
    return getattr(config, "_commit_hash", None)


def nearest(name: str, known: Iterable[str]) -> str:
    """A question that names the nearest of some names, with a space before it; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_known(who: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise a `TypeError` if an argument is one that nobody takes; it names the nearest that somebody does.

    Args:
        who: takes the arguments.
        given: their names.
        known: all names.
    """
    for name in given:
        if name not in known:
            taken = ", ".join(other for other in known if not other.startswith("_"))
            raise TypeError(f"{who} got {name!r}, which it does not know.{nearest(name, known)} It takes {taken}.")


@contextmanager
def hinting_at(given: Iterable[str], known: Iterable[str]) -> Iterator[None]:
    """Let transformers' own error about an unknown argument name the nearest that somebody knows."""
    try:
        yield
    except TypeError as error:
        unknown = [name for name in given if f"unexpected keyword argument '{name}'" in str(error)]
        if not unknown:
            raise
        raise TypeError(f"{error}.{nearest(unknown[0], known)}") from error


def forward_arguments(function: Callable) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the arguments that a backbone's `forward` has, and of those that it hands on to its layers.

    Where it hands on whatever it is given, these are what layers of transformers know.
    """
    parameters = inspect.signature(function).parameters
    catching = {name for name, each in parameters.items() if each.kind is inspect.Parameter.VAR_KEYWORD}
    handed_on = frozenset(TransformersKwargs.__optional_keys__) if catching else frozenset()
    return frozenset(parameters) - catching, handed_on


def need(module: str, why: str, extra: str = "recipe") -> Any:
    """A module of a package that only some uses need.

    Args:
        module: its name.
        why: what needs it, for the error.
        extra: the extra of this package that brings it.

    Raises:
        ImportError: if it is not installed, saying how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{why} needs the Python package '{package}', which is not installed. Install it with: pip install "
            f"'eidetic-hf[{extra}]'"
        ) from error


def hub_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some arguments that say where a repository's files are."""
    return {name: arguments[name] for name in HUB_ARGUMENTS if arguments.get(name) is not None}


def attention_of(config: PreTrainedConfig) -> str | None:
    """The implementation of attention that a configuration has chosen."""
    return config._attn_implementation


def set_attention(config: PreTrainedConfig, implementation: str | None) -> None:
    """Choose an implementation of attention, for all configurations inside, too."""
    config._attn_implementation = implementation


def name_of(config: PreTrainedConfig) -> str:
    """Where a configuration was loaded from, or empty."""
    return getattr(config, "_name_or_path", "") or ""


def set_name(config: PreTrainedConfig, name: str) -> None:
    """Say where a configuration was loaded from."""
    config._name_or_path = name


def has_class_for(auto_class: Any, config: PreTrainedConfig) -> bool:
    """Whether an Auto class of transformers has a model for a configuration."""
    return type(config) in auto_class._model_mapping


def tied_weights(backbone: PreTrainedModel) -> dict[str, str]:
    """Names of the Parameters that the configuration ties to others, with those of the others."""
    return cast(Any, backbone).get_expanded_tied_weights_keys(all_submodels=True)


def kept_in_float32(backbone: PreTrainedModel, dtype: torch.dtype) -> set[str]:
    """Names of the modules of a backbone that stay in float32 when it is loaded in another dtype."""
    names = set(backbone._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()
    return names | (
        set(backbone._keep_in_fp32_modules_strict or ()) if dtype in (torch.float16, torch.bfloat16) else set()
    )


def initialize(backbone: PreTrainedModel, module: nn.Module) -> None:
    """Let a backbone initialize one of its modules, its buffers included."""
    backbone._init_weights(module)


def static_cache_shape() -> None:
    """What `_get_static_cache_init_shape` answers where the number of heads differs from task to task: unknown.

    A static cache then takes its shape from the first keys.
    """
    return None


def see_pipelines(see: Callable[[Pipeline, Any], None]) -> None:
    """Let a function see each pipeline, with its model, before it is set up.

    transformers makes pipelines without asking the model anything, so this is the only place there is.
    """
    set_up = Pipeline.__init__

    @functools.wraps(set_up)
    def seen(self: Pipeline, *args: Any, **kwargs: Any) -> None:
        see(self, args[0] if args else kwargs.get("model"))
        set_up(self, *args, **kwargs)

    Pipeline.__init__ = seen  # type: ignore[method-assign]
