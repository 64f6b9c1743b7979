"""What a task's answer depends on beside weights: settings of the task, of the model and of its backbone.

A certificate has them as canonical JSON, so that a difference is named by its key:
`settings.base_config.layer_norm_eps: 1e-06, at commit 1e-12`. What tasks of other models may have otherwise, and what
is looked at in training alone, is no part of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig

from ..compat import CONFIGURED_OUTSIDE
from ..configuration import EideticConfig, TaskRecord
from ..kinds import TASK_KINDS, kind_of

# Of a backbone's configuration, what says where it came from, how it is computed, or what other heads than ours read.
_OF_NO_ANSWER = frozenset(
    (
        *CONFIGURED_OUTSIDE, "transformers_version", "architectures", "auto_map", "tokenizer_class",
        "task_specific_params", "finetuning_task", "deterministic_flash_attn", "use_cache", "output_attentions",
         "output_hidden_states", "return_dict", "id2label", "label2id", "num_labels",
        "problem_type", "sparse_prediction", "sparse_pred_ignore_index",
    )
)  # fmt: skip
# What only training looks at, and new weights.
_OF_TRAINING = re.compile(r"dropout|pdrop|layerdrop|initializer|init_std")

_ABSENT = object()


def is_part(name: str) -> bool:
    """Whether an entry of a backbone's configuration is a part of the settings."""
    return name not in _OF_NO_ANSWER and not _OF_TRAINING.search(name)


def backbone_settings(values: Any) -> Any:
    """Of a backbone's configuration, or of one inside of it, what its forward pass reads."""
    if isinstance(values, Mapping):
        return {str(name): backbone_settings(value) for name, value in values.items() if is_part(str(name))}
    return values


def settings_of(
    config: EideticConfig, record: TaskRecord, backbone: Mapping[str, Any], ancestors: list[str], output: bool
) -> dict[str, Any]:
    """What the answer of a committed task depends on beside weights, as JSON has it.

    Args:
        config: of the model.
        record: of the task, with the environment of its commit.
        backbone: what `backbone_settings` returned.
        ancestors: the tasks that it reads, by the names that they had when it was committed.
        output: whether it reads the output embeddings.
    """
    settings = {
        "task_type": record.task_type,
        "labels": record.labels,
        "options": record.options,
        # As digests: the room that a task takes does not grow with those before it, nor vary with what it took.
        "ancestors": _digest(ancestors),
        "units": _digest(record.units),
        "head": record.head,
        "special_tokens": record.special_tokens,
        "preparation": record.preparation,
        "trunk_layers": config.trunk_layers,
        "trunk_pretrained": config.trunk_pretrained,
        "growth": config.growth,
        "reads_output": output,
        "output_embeddings": config.output_embeddings if output else None,
        "base_config": backbone,
        "environment": record.certificate.get("environment"),
    }
    return json.loads(written(settings))


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def written(settings: Mapping[str, Any]) -> bytes:
    """Canonical JSON: the same bytes for the same values."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def as_tensor(content: bytes) -> Tensor:
    """Bytes as a shard holds them, `(bytes,)` uint8."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> bytes:
    """What `as_tensor` made a tensor of."""
    return tensor.cpu().contiguous().numpy().tobytes()


@dataclass(frozen=True)
class Comparing:
    """How settings are held against those of a commit.

    A version of transformers may know entries of a configuration that another one does not: what came later counts as
    equal where it is what its class has by default, and what is gone is read by nobody. In one and the same version
    nothing comes or goes.

    Attributes:
        config: of the model.
        saved_by: the version of transformers that has written the configuration, if it is known.
    """

    config: EideticConfig
    saved_by: str | None = None

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        base = self.config.base_config
        try:
            values = type(base)().to_dict() if isinstance(base, PreTrainedConfig) else {}
        except Exception:  # a class of somebody else's that takes no default
            values = {}
        return json.loads(json.dumps(backbone_settings(values), default=str))

    def difference(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
        """The first setting that differs, with its value and that at the commit; `None` if none does."""
        version = (then.get("environment") or {}).get("transformers")
        other_version = version not in (transformers.__version__, None) or self.saved_by not in (version, None)
        for path, new, old in _differences(then, now):
            if old is _ABSENT and self._is_default(path, new, now["task_type"], other_version):
                continue
            if new is _ABSENT and path[0] == "base_config" and other_version:
                continue
            shown = ["nothing" if value is _ABSENT else json.dumps(value) for value in (new, old)]
            return f"settings.{'.'.join(path)}: {shown[0]}, at commit {shown[1]}"
        return None

    def _is_default(self, path: tuple[str, ...], value: Any, task_type: str, other_version: bool) -> bool:
        if path[0] == "options":  # which this library has got since
            known = task_type in TASK_KINDS
            return not known or _look_up(_options(task_type), path[1:]) == value
        if path[0] != "base_config" or not other_version:
            return False
        default = _look_up(self._defaults, path[1:])
        return default is _ABSENT or default == value


def _options(task_type: str) -> dict[str, Any]:
    return vars(kind_of(task_type).Options())


def _look_up(values: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if not isinstance(values, Mapping) or name not in values:
            return _ABSENT
        values = values[name]
    return values


def _differences(then: Any, now: Any, path: tuple[str, ...] = ()) -> Any:
    """Where two values differ, with that of now and that of then, in the order of the keys."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for name in sorted({*then, *now}):
            yield from _differences(then.get(name, _ABSENT), now.get(name, _ABSENT), (*path, name))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (old, new) in enumerate(zip(then, now, strict=True)):
            yield from _differences(old, new, (*path, str(number)))
    elif then is not now and (then != now or isinstance(then, bool) != isinstance(now, bool)):
        yield path, now, then


class Settings:
    """The settings of a model's committed tasks, each looked at once.

    Args:
        config: of the model.
        backbone: the backbone's configuration, as `config.json` has it; that in `config`, if not given.
        saved_by: the version of transformers that has written it.
    """

    def __init__(
        self, config: EideticConfig, backbone: Mapping[str, Any] | None = None, saved_by: str | None = None
    ) -> None:
        self._config = config
        self._given = backbone
        self._comparing = Comparing(config, saved_by)

    @cached_property
    def _backbone(self) -> dict[str, Any]:
        values = self._config.base_config.to_dict() if self._given is None else self._given
        return json.loads(json.dumps(backbone_settings(values)))

    def of(self, record: TaskRecord, rename: Callable[[str], str] = str, output: bool | None = None) -> dict[str, Any]:
        """Settings of a task as they are now.

        Args:
            record: of the task.
            rename: takes the name that a task has now, and returns the one that it had at its commit.
            output: whether the task reads the output embeddings; what its kind says, if not given.
        """
        output = kind_of(record).reads_output_embeddings(record) if output is None else output
        return settings_of(self._config, record, self._backbone, [rename(name) for name in record.ancestors], output)

    def difference(self, record: TaskRecord, stored: Tensor | None, rename: Callable[[str], str] = str) -> str | None:
        """The first setting of a task that differs from what its shard has of its commit, or what else is wrong.

        What an earlier format has written holds no settings, and nothing differs.
        """
        sha256 = record.certificate.get("settings_sha256")
        if stored is None:
            return None if sha256 is None else "(the shard has no settings, config.json has their SHA-256)"
        content = as_bytes(stored)
        try:
            then = json.loads(content.decode("utf-8", "surrogatepass"))
        except (ValueError, UnicodeDecodeError, RecursionError):
            return "(the stored settings are no JSON)"
        if not isinstance(then, dict):
            return "(the stored settings are no JSON object)"
        # That is in its weights' digest, too; and here a kind may be unknown.
        now = self.of(record, rename, then.get("reads_output"))
        first = self._comparing.difference(then, now)
        # Not in the shard: how many tokens a task knows depends on those that were added before it.
        known = record.certificate.get("vocab_size")
        if first is None and record.vocab_size != known:
            first = f"settings.vocab_size: {json.dumps(record.vocab_size)}, at commit {json.dumps(known)}"
        if first is None and hashlib.sha256(content).hexdigest() != sha256:
            return "(the stored settings differ from config.json)"
        return first
