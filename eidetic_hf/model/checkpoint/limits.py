"""What a checkpoint may ask of the one who loads it, held against `config.json` before anything is made of it.

A folder may come from anybody. Here its configuration is read as data: each field has the type that its dataclass
says, each number a range, each name something that it stands for. What transformers makes of the rest, and how much of
it, is bounded by `building`: an error on the way, whatever its type, becomes one `CheckpointError`.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO, Union, get_args, get_origin, get_type_hints

from torch import Tensor
from torch.nn.modules import module as torch_modules
from transformers import CONFIG_MAPPING, PreTrainedConfig

from ...configuration import ALL_EARLIER, EideticConfig, TaskError, TaskRecord, check_task_name
from ...network.growth import growths

LARGEST_JSON = 2**26  # bytes: a configuration or an index of thousands of tasks
MOST_VALUES, DEEPEST = 2**22, 64  # of a JSON file; and lists and objects one inside the other
MOST_OF_A_BACKBONE = 2**17  # values in its configuration, which are copied and printed many times
PROBE_TOKENS = 16  # of a probe batch, which every committed task has answered
LONGEST_NAME = 1000  # of a tensor
LONGEST_FACT = 64  # values of one fact about an environment
LARGEST_COUNT = 2**31 - 1  # what a field of ours counts, such as units
LARGEST_SIZE = 2**24  # a size in a backbone's configuration; a vocabulary has less than 2 ** 18 tokens
MOST_LAYERS = 2**12
LARGEST_FREQUENCY = 10**15  # the base of rotary positions, which some configurations have as a whole number
# How much more a backbone may have than the files that it is filled from: a release without a pool has a part of it.
TENSORS_PER_TENSOR, TENSORS_BESIDE = 8, 2000
BYTES_PER_BYTE, BYTES_BESIDE = 256, 2**28

SHA256 = re.compile(r"[0-9a-f]{64}")
SHARD = re.compile(r"eidetic-[A-Za-z0-9@._-]+\.safetensors")
# A repository's name, with or without that of its owner; and the name of a folder beside the checkpoint.
REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,255}")
# What a configuration must not ask for: packages that change what weights are, or code of a repository's own.
REFUSED = ("quantization_config", "trust_remote_code")


class CheckpointError(ValueError):
    """A checkpoint folder is incomplete, damaged, inconsistent, or must not be written to."""


# -- files ------------------------------------------------------------------------------------------------------------


def open_file(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes.

    Raises:
        CheckpointError: if it is a folder, a pipe, a device or another thing than a file, which might never end.
        OSError: if it can not be opened.
    """
    # Without waiting for the other end of a pipe; for a file it makes no difference.
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} can not be opened ({error}).") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path} is not a regular file. It was not read.")
    return os.fdopen(descriptor, "rb")


# -- JSON -------------------------------------------------------------------------------------------------------------


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        CheckpointError: if it is no file, cannot be read, is larger or deeper than any that was saved, or no JSON
            object; or if it says something twice, which two readers may understand in two ways.
    """
    with open_file(path) as file:
        content = file.read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise CheckpointError(f"{path} is larger than {LARGEST_JSON >> 20} MiB. It was not read.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not JSON ({error}).") from error
    if text.count(",") + text.count("[") + text.count("{") > MOST_VALUES:
        raise CheckpointError(f"{path} has more than {MOST_VALUES} values, more than are read.")
    try:
        values = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({_short(error)}).") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object, but a {type(values).__name__}.")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in found if names.count(name) > 1)!r:.100} twice in one object")
    return found


def without_code(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what would choose code: that is for the one who loads it to say, not for a file.

    `auto_map` names files of the repository, and an implementation of attention may be one on the Hub.
    """
    return {name: value for name, value in values.items() if not _chooses_code(name)}


def _chooses_code(name: str) -> bool:
    return name in ("auto_map", "custom_pipelines") or name.endswith(("_implementation", "_implementation_internal"))


# -- values -----------------------------------------------------------------------------------------------------------


class _Unexpected(Exception):
    """A value is not what is expected in its place."""

    def __init__(self, place: str, value: Any, expected: str) -> None:
        super().__init__(f"{place} is {_shown(value)}, expected {expected}")


def check_config(where: str, values: Mapping[str, Any]) -> None:
    """Hold the content of `config.json` against what a release can hold, before anything is made of it.

    Args:
        where: what an error calls the checkpoint.
        values: the object in the file.

    Raises:
        CheckpointError: naming the file, the place in it, what is there and what was expected.
    """
    try:
        _check_plain("", values, 0)
        _check_fields("", values, _fields_of(EideticConfig), EideticConfig)
        names = _check_tasks(values.get("tasks") or [])
        _check_settings(values, names)
        _check_files(values)
        _check_backbone(values.get("base_config"))
    except (_Unexpected, TaskError) as error:
        raise CheckpointError(
            f"config.json of {where}: {error}. It was edited; copy the whole folder again."
        ) from error


def _check_plain(place: str, value: Any, depth: int) -> None:
    """Raise if values lie too deep, a number is none, or a text is no text; measured figures may be NaN."""
    todo: list[tuple[str, Any, int]] = [(place, value, depth)]
    while todo:
        place, value, depth = todo.pop()
        if depth >= DEEPEST:
            raise _Unexpected(place[:200], value, f"no more than {DEEPEST} lists and objects in each other")
        for key, each in _pairs(value):
            if isinstance(each, (dict, list)):
                todo.append((_join(place, key), each, depth + 1))
            elif isinstance(each, float) and not math.isfinite(each) and ".metrics" not in place:
                raise _Unexpected(_join(place, key), each, "a finite number")
            elif isinstance(each, str) and not each.isascii() and not _is_text(each):
                raise _Unexpected(_join(place, key), each, "a text in Unicode")
            if isinstance(key, str) and not key.isascii() and not _is_text(key):
                raise _Unexpected(place, value, "names in Unicode")


def _count_of(value: Any) -> int:
    """How many values lie in a list or object."""
    count, todo = 0, [value]
    while todo:
        value = todo.pop()
        count += len(value)
        todo += [each for _, each in _pairs(value) if isinstance(each, (dict, list))]
    return count


def _pairs(value: dict[str, Any] | list[Any]) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, dict) else enumerate(value)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _join(place: str, key: Any) -> str:
    if isinstance(key, int):
        return f"{place}[{key}]"
    if not key.isidentifier():
        return f"{place}[{json.dumps(key)[:200]}]"
    return f"{place}.{key}" if place else key


def _shown(value: Any) -> str:
    """A value as an error shows it, however large it is."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    return ascii(value) if not isinstance(value, str) or len(value) < 100 else f"{value[:97]!a}..."


def _short(error: BaseException) -> str:
    """What an error says, in a line or two."""
    text = " ".join(str(error).split())
    return ascii(text[:300]) if not text.isprintable() else text[:300] + ("..." if len(text) > 300 else "")


@lru_cache
def _fields_of(owner: type) -> dict[str, Any]:
    """The type of each field, by its name."""
    hints = get_type_hints(owner.__init__ if owner is EideticConfig else owner)  # type: ignore[misc]
    return {name: hint for name, hint in hints.items() if name not in ("return", "kwargs")}


def _check_fields(place: str, values: Mapping[str, Any], fields: Mapping[str, Any], owner: type) -> None:
    """Hold an object against the fields of a class. Other names must be none that the class has a use for."""
    for name, value in values.items():
        at = _join(place, name)
        if name in fields:
            _check_type(at, value, fields[name])
        else:
            _check_name(at, name, value, owner)


def _check_name(at: str, name: str, value: Any, owner: type) -> None:
    """Raise if a value would take the place of a method, or is of no use for a configuration that was saved."""
    if _chooses_code(name):
        return
    used = inspect.getattr_static(owner, name, None)
    is_taken = callable(used) or isinstance(used, (classmethod, staticmethod)) or name.startswith("__")
    if is_taken or name in REFUSED or not name.isidentifier():
        raise _Unexpected(at, value, "nothing of this name")
    if name in _COMMON:
        _check_type(at, value, _COMMON[name])


# What transformers asks for while a model answers, and does not check itself when it reads a configuration.
_FLAGS = ("output_hidden_states", "output_attentions", "return_dict", "use_cache", "is_decoder", "is_encoder_decoder")
_COMMON: dict[str, Any] = {
    **dict.fromkeys(_FLAGS, bool | None),
    "chunk_size_feed_forward": int,
    "architectures": list[str] | None,
    "transformers_version": str | None,
}
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list",
          dict: "an object", NoneType: "null"}  # fmt: skip


def _check_type(place: str, value: Any, hint: Any) -> None:
    """Raise if a JSON value is not of an annotated type; whole numbers must count something."""
    if hint is Any:
        return
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    choices = tuple(choice for choice in choices if (get_origin(choice) or choice) in _NAMES)
    fitting = [choice for choice in choices if _is_a(value, get_origin(choice) or choice)]
    if not fitting:
        raise _Unexpected(place, value, " or ".join(_NAMES[get_origin(choice) or choice] for choice in choices))
    if isinstance(value, int) and not isinstance(value, bool) and int in choices:
        _check_count(place, value)
    if isinstance(value, (list, dict)) and get_args(fitting[0]):
        inner = get_args(fitting[0])[-1]
        for key, each in _pairs(value):
            if inner is str and isinstance(each, str):
                continue  # of many labels, no place has to be told
            if (get_origin(inner) or inner) in _NAMES or get_origin(inner) in (Union, UnionType):
                _check_type(_join(place, key), each, inner)


def _is_a(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _check_count(place: str, value: int, least: int = 0, largest: int = LARGEST_COUNT) -> None:
    if not least <= value <= (2**63 - 1 if place.endswith(".bytes") else largest):
        raise _Unexpected(place, value, f"a whole number from {least} to {largest}")


# -- records and settings ---------------------------------------------------------------------------------------------


def _check_tasks(tasks: list[Any]) -> list[str]:
    """Names of the tasks, after their records were held against `TaskRecord`."""
    fields, names = {**_fields_of(TaskRecord), "ancestors": list[str] | str}, dict[str, None]()
    for number, task in enumerate(tasks):
        place = f"tasks[{number}]"
        if not isinstance(task, dict):
            raise _Unexpected(place, task, "an object, the record of a task")
        _check_fields(place, task, fields, TaskRecord)
        if "name" not in task:
            raise _Unexpected(f"{place}.name", None, "the name of the task")
        if check_task_name(task["name"]) in names:
            raise _Unexpected(f"{place}.name", task["name"], "a name that no task before it has")
        read = task.get("ancestors", [])
        if isinstance(read, str) and read != ALL_EARLIER:
            raise _Unexpected(f"{place}.ancestors", read, f"{ALL_EARLIER!r}, or a list of names of tasks before it")
        for index, name in enumerate(read if isinstance(read, list) else ()):
            if name not in names or name in read[:index]:
                raise _Unexpected(f"{place}.ancestors[{index}]", name, "the name of a task before it, and each once")
        if task.get("vocab_size") is not None:
            _check_count(f"{place}.vocab_size", task["vocab_size"], 1, LARGEST_SIZE)
        for name, count in task.get("units", {}).items():
            _check_count(_join(f"{place}.units", name), count, 0, LARGEST_SIZE)
        _check_head(f"{place}.head", task.get("head") or {})
        _check_tokens(f"{place}.special_tokens", task.get("special_tokens", {}))
        _check_certificate(f"{place}.certificate", task.get("certificate", {}))
        names[task["name"]] = None
    return list(names)


def _check_tokens(place: str, tokens: Mapping[str, Any]) -> None:
    for name, value in tokens.items():
        each = value if isinstance(value, list) else [value]
        is_number = all(isinstance(number, int) and 0 <= number < LARGEST_SIZE for number in each)
        if not name.endswith("token_id") or not (value is None or is_number):
            raise _Unexpected(_join(place, name), value, "the number of a token, a list of such, or null")


def _check_certificate(place: str, certificate: Mapping[str, Any]) -> None:
    """A certificate has texts, and objects of texts; a digest is one."""
    for name in ("weights_sha256", "logits_sha256"):
        _check_digest(f"{place}.{name}", certificate.get(name))
    for name, value in certificate.items():
        if name.endswith("_sha256"):
            _check_digest(f"{place}.{name}", value)
    environment = certificate.get("environment")
    if not isinstance(environment, dict) or not isinstance(environment.get("dtype"), str):
        raise _Unexpected(f"{place}.environment", environment, "an object with the dtype and whatever else counts")
    for name, value in environment.items():
        if isinstance(value, (dict, list)) and len(value) > LONGEST_FACT:
            raise _Unexpected(_join(f"{place}.environment", name), value, "a fact about where it was learned")
    computed = certificate.get("computed", {})
    if not isinstance(computed, dict):
        raise _Unexpected(f"{place}.computed", computed, "an object of digests by the names of tensors")
    for name, digest in computed.items():
        _check_digest(_join(f"{place}.computed", name), digest)


def _check_digest(place: str, value: Any) -> None:
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise _Unexpected(place, value, "a SHA-256 in hexadecimal")


_PARTS: dict[str, Any] = {
    "bias": bool, "own_embeddings": bool, "scale": float, "softcap": float | None, "embedding_size": int,
    "transform": dict[str, Any] | None, "unreadable": str,
}  # fmt: skip
_TRANSFORM: dict[str, Any] = {"activation": str, "eps": float, "bias": bool, "norm_bias": bool}


def _check_head(place: str, parts: Mapping[str, Any]) -> None:
    """What a language model's head is made of, see `kinds/pretrained_head.py`."""
    for name, value in parts.items():
        if name in _PARTS:
            _check_type(_join(place, name), value, _PARTS[name])
    if "embedding_size" in parts:
        _check_count(f"{place}.embedding_size", parts["embedding_size"], 1, LARGEST_SIZE)
    if parts.get("softcap") is not None and not parts["softcap"] > 0:
        raise _Unexpected(f"{place}.softcap", parts["softcap"], "a number > 0")
    transform = parts.get("transform")
    if transform is not None:
        if transform.keys() != _TRANSFORM.keys():
            raise _Unexpected(f"{place}.transform", transform, f"an object of {list(_TRANSFORM)}")
        for name, value in transform.items():
            _check_type(f"{place}.transform.{name}", value, _TRANSFORM[name])


def _check_settings(values: Mapping[str, Any], names: list[str]) -> None:
    """What is said once for all tasks."""
    growth = values.get("growth", "fixed")
    if growth not in growths():
        raise _Unexpected("growth", growth, f"one of {growths()}")
    unknown = [name for name in values.get("served") or [] if name not in names]
    if unknown or values.get("served") == []:
        raise _Unexpected("served", values["served"], f"null, or names of tasks that there are: {names[:20]}")
    transfer = values.get("forward_transfer", "all")
    if transfer not in ("all", "none") and not isinstance(transfer, list):
        raise _Unexpected("forward_transfer", transfer, "'all', 'none' or a list of names of tasks")
    for name, number in (values.get("default_versions") or {}).items():
        if number < 1 or (name if number == 1 else f"{name}@{number}") not in names:
            raise _Unexpected(_join("default_versions", name), number, f"a version of a task there is: {names[:20]}")
    shape = values.get("output_embeddings")
    if shape is not None and (len(shape) != 2 or not all(0 < size <= LARGEST_SIZE for size in shape)):
        raise _Unexpected("output_embeddings", shape, "numbers of tokens and of columns")
    for name in ("vocab_size", "trunk_layers", "expanded"):
        value = values.get(name)
        for each in value.values() if isinstance(value, dict) else [] if value is None else [value]:
            _check_count(name, each, int(name == "vocab_size"), LARGEST_SIZE)
    if values.get("trunk_layers") is None:
        raise _Unexpected("trunk_layers", None, "the number of layers that stay as they are")
    if isinstance(values.get("dtype"), str) or values.get("dtype") is not None:
        _check_dtype("dtype", values["dtype"])
    if values.get("language_head") is not None:
        _check_head("language_head", values["language_head"])
    base = values.get("base")
    if base is not None:
        name, revision = base.get("name"), base.get("revision")
        if not isinstance(name, str) or not REPOSITORY.fullmatch(name) or ".." in name:
            raise _Unexpected("base.name", name, "the name of a folder beside this one, or of a repository")
        if revision is not None and not (isinstance(revision, str) and REVISION.fullmatch(revision)):
            raise _Unexpected("base.revision", revision, "the name of a commit, or null")
        _check_digest("base.sha256", base.get("sha256"))


_DTYPES = ("float32", "float16", "bfloat16", "float64")


def _check_dtype(place: str, value: Any) -> None:
    if value not in _DTYPES:
        raise _Unexpected(place, value, f"one of {list(_DTYPES)}")


def _check_files(values: Mapping[str, Any]) -> None:
    for name, recorded in (values.get("files") or {}).items():
        place = _join("files", name)
        if not SHARD.fullmatch(name):
            raise _Unexpected(place, recorded, "the name of a file of this folder, eidetic-....safetensors")
        if not isinstance(recorded.get("bytes"), int) or isinstance(recorded["bytes"], bool):
            raise _Unexpected(f"{place}.bytes", recorded.get("bytes"), "a whole number")
        _check_count(f"{place}.bytes", recorded["bytes"])
        _check_digest(f"{place}.sha256", recorded.get("sha256"))


# -- the backbone -----------------------------------------------------------------------------------------------------


def _check_backbone(values: Any) -> None:
    """A backbone's configuration is for transformers to judge, but for what it may cost and whose code it may run."""
    if not isinstance(values, dict):
        raise _Unexpected("base_config", values, "an object, the backbone's configuration")
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING or kind == EideticConfig.model_type:
        raise _Unexpected("base_config.model_type", kind, "a type of model that transformers knows")
    if _count_of(values) > MOST_OF_A_BACKBONE:
        raise _Unexpected("base_config", values, f"no more than {MOST_OF_A_BACKBONE} values")
    owner: type[PreTrainedConfig] = CONFIG_MAPPING[kind]
    for name, value in values.items():
        place = _join("base_config", name)
        if name != "model_type":
            _check_name(place, name, value, owner)
        if name in ("dtype", "torch_dtype") and value is not None:
            _check_dtype(place, value)
        _check_sizes(place, value)
    first, tokens = values.get("decoder_start_token_id"), values.get("vocab_size")
    if isinstance(first, int) and not 0 <= first < (tokens if isinstance(tokens, int) else LARGEST_SIZE):
        raise _Unexpected("base_config.decoder_start_token_id", first, "the number of a token that there is")
    chunk = values.get("chunk_size_feed_forward")
    if isinstance(chunk, int) and chunk > 0 and PROBE_TOKENS % chunk:
        raise _Unexpected("base_config.chunk_size_feed_forward", chunk, f"0, or a divisor of {PROBE_TOKENS}")


def _check_sizes(place: str, value: Any) -> None:
    """Raise if a number is too large for whatever it may count."""
    todo = [(place, value)]
    while todo:
        place, value = todo.pop()
        if isinstance(value, (dict, list)):
            todo += [(_join(place, key), each) for key, each in _pairs(value) if not isinstance(each, str)]
        elif isinstance(value, int) and not isinstance(value, bool):
            name = place.rpartition(".")[2].lower()
            is_base = "theta" in name or "freq" in name
            largest = LARGEST_FREQUENCY if is_base else MOST_LAYERS if "layer" in name else LARGEST_SIZE
            if not -largest <= value <= largest:
                raise _Unexpected(place, value, f"a number of no more than {largest}")


# -- making a model of it ---------------------------------------------------------------------------------------------


@dataclass
class _Budget:
    """How much a thread may still register with modules."""

    tensors: float
    bytes: float

    def take(self, tensor: Tensor | None) -> None:
        if tensor is None:
            return
        self.tensors -= 1
        self.bytes -= tensor.numel() * tensor.element_size()
        if self.tensors < 0 or self.bytes < 0:
            raise CheckpointError("it makes many times more than the files of the checkpoint can fill")


_BUDGET = threading.local()  # of the thread that makes a model of a file; a user's own configurations have none


def _take(module: Any, name: str, tensor: Tensor | None) -> None:
    budget: _Budget | None = getattr(_BUDGET, "now", None)
    if budget is not None:
        budget.take(tensor)


@contextmanager
def fitting(where: str) -> Iterator[None]:
    """Put what was read into a model that has room for it; whatever does not fit is one kind of error.

    Raises:
        CheckpointError: whatever goes wrong inside.
    """
    try:
        yield
    except (CheckpointError, TaskError):
        raise
    except (ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise CheckpointError(
            f"The .safetensors files of {where} do not fit what config.json says: {_short(error)} "
            f"({type(error).__name__}). They were edited; copy the whole folder again."
        ) from error


@contextmanager
def building(where: str, tensors: int | None = None, files_bytes: int | None = None) -> Iterator[None]:
    """Make a configuration or a model of what `config.json` says; whatever is wrong with it is one kind of error.

    Args:
        where: what an error calls the checkpoint.
        tensors: how many tensors its files have; `None` for no bound on what is made.
        files_bytes: how large they are.

    Raises:
        CheckpointError: whatever goes wrong inside, and if more is registered with modules than these files can fill.
        TaskError: if a task is not what its kind expects.
        ImportError: if the one who loads it has asked for what is not installed.
    """
    with ExitStack() as stack:
        if tensors is not None and files_bytes is not None:
            _BUDGET.now = _Budget(
                TENSORS_PER_TENSOR * tensors + TENSORS_BESIDE, BYTES_PER_BYTE * files_bytes + BYTES_BESIDE
            )
            stack.callback(_BUDGET.__dict__.pop, "now", None)
            registers: tuple[Callable[..., Any], ...] = (
                torch_modules.register_module_parameter_registration_hook,
                torch_modules.register_module_buffer_registration_hook,
            )
            for register in registers:
                stack.callback(register(_take).remove)
        try:
            yield
        except ImportError:  # of what the one who loads it has asked for: a file chooses no code
            raise
        except TaskError as error:
            raise TaskError(f"config.json of {where}: {error}") from error
        except Exception as error:
            raise CheckpointError(
                f"config.json of {where} does not make a model: {_short(error)} ({type(error).__name__}). The folder "
                "was edited, or needs another version of transformers; copy the whole folder again."
            ) from error
