"""One task as a plain model of transformers, which knows nothing of this package.

It is built beside the model, which stays as it is, and is held against the task's own answer before anybody sees it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..compat import attention_of, has_class_for, set_name
from ..configuration import TaskError, TaskRecord
from ..kinds import kind_of
from ..network.backbone import DECODER, base_model, evaluation_mode, family_of, flat_sequences, random_numbers_for
from ..network.plain import NoCounterpart, PlainModel, fill_backbone, plain_config
from ..views import View, task_key
from .answering import answer
from .certificate import probe_inputs
from .parts import Parts, committed, record_of
from .request import Request

logger = logging.get_logger(__name__)

# How far answers may lie apart, as a share of the largest: in float32, and in 16 bits.
_TOLERANCE, _TOLERANCE_16 = 1e-5, 5e-2
# Hidden states of many layers, in which other shapes of products round differently.
_HIDDEN_STATES = 10


def extract(
    model: Parts,
    name: str,
    save_directory: str | os.PathLike | None,
    tokenizer: PreTrainedTokenizerBase | None,
    head: bool,
) -> PreTrainedModel:
    """Take a task out as a plain model, see `EideticModel.extract_task`."""
    record = record_of(model, name)
    if name in model.added:
        raise TaskError(f"The task '{name}' is not committed yet. Learn it first; committed are {committed(model)}.")
    folder = None if save_directory is None else Path(save_directory)
    if folder is not None:
        _check_free(folder)
    try:
        plain = _build(model, record, tokenizer, head)
    except NoCounterpart as error:
        _refuse(record, str(error))
    if folder is not None:
        files = kind_of(record).plain_files(record, model.network.backbone.config) if head else {}
        _write(folder, plain, tokenizer, files)
    return plain


def _refuse(record: TaskRecord, why: str) -> NoReturn:
    raise TaskError(
        f"The task '{record.name}' ({record.task_type}) has no counterpart in transformers: {why}; or take its "
        f"backbone alone, with extract_task({record.name!r}, head=False), or --no-head on the command line."
    )


def _build(model: Parts, record: TaskRecord, tokenizer: PreTrainedTokenizerBase | None, head: bool) -> PreTrainedModel:
    """A plain model that answers as a task does, on the model's device."""
    network, key, kind = model.network, task_key(record.name), kind_of(record)
    config = _config_of(model, record, tokenizer, head)
    with random_numbers_for(model.device, record.name):
        made = _class_for(record, config, head).from_config(
            config, attn_implementation=attention_of(network.backbone.config)
        )
    made = made.to(model.device, model.dtype).eval()
    plain = PlainModel(made, _base_of(made), _batch(model, record, config))
    made.requires_grad_(False)
    fill_backbone(network, key, plain)
    _compare_backbones(model, record, plain)
    made.requires_grad_(True)
    if head:
        kind.write_plain_head(record, model.heads[key], plain, network.vocabulary(View(key)))
    _settle_rest(plain)
    if head:
        _compare_answers(model, record, plain)
    if made.can_generate():
        made.generation_config = deepcopy(model.generation_config)
        for token, value in record.special_tokens.items():
            setattr(made.generation_config, token, value)
    return made


def _class_for(record: TaskRecord, config: PreTrainedConfig, head: bool) -> Any:
    """The Auto class that makes a plain model of a configuration.

    Raises:
        NoCounterpart: if transformers has no class for it.
    """
    name = kind_of(record).auto_class if head else "AutoModel"
    auto_class = getattr(transformers, name)
    if not has_class_for(auto_class, config):
        raise NoCounterpart(f"there is no {name} for '{config.model_type}'. Let eidetic_hf answer")
    return auto_class


def _config_of(
    model: Parts, record: TaskRecord, tokenizer: PreTrainedTokenizerBase | None, head: bool
) -> PreTrainedConfig:
    """Configuration of a plain model for a task.

    Raises:
        NoCounterpart: if there is no such model, or it would not know its own padding token.
    """
    kind, config = kind_of(record), plain_config(model.network, task_key(record.name))
    set_name(config, "")
    if tokenizer is not None:
        _fit_tokenizer(record, config, tokenizer)
    pad = config.pad_token_id
    if pad is not None and pad >= config.vocab_size:  # a task may not know it: what is masked out is not read
        if (head and kind.reads_vocabulary) or pad >= model.network.input_rows.total:
            raise NoCounterpart(
                f"the padding token is {pad}, and the task knows {config.vocab_size} tokens. Pass a tokenizer whose "
                "padding token is one of them, such as its end of text"
            )
        config.vocab_size = pad + 1
    _class_for(record, config, head)
    for setting, value in kind.plain_settings(record, model.config, config).items() if head else ():
        setattr(config, setting, value)
    return type(config).from_dict(config.to_dict())  # as it will be read: T5's, for one, decides some of it itself


def _fit_tokenizer(record: TaskRecord, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a decoder's configuration say what a tokenizer pads with, and point out tokens that a task does not know."""
    if tokenizer.pad_token_id is not None and (config.pad_token_id is None or family_of(config) == DECODER):
        config.pad_token_id = tokenizer.pad_token_id
    if any(token != config.pad_token_id for token in range(config.vocab_size, len(tokenizer))):
        logger.warning(
            f"The tokenizer has {len(tokenizer)} tokens, and the task '{record.name}' knows the first "
            f"{config.vocab_size}: the plain model has no embeddings of the later ones. Give the tokenizer that the "
            "task was learned with."
        )


def _base_of(made: PreTrainedModel) -> PreTrainedModel:
    """The base model of a plain model.

    Raises:
        NoCounterpart: if it is another one than a task's backbone.
    """
    base, expected = base_model(made), cast(type, transformers.MODEL_MAPPING[type(made.config)])
    if not isinstance(base, expected):
        raise NoCounterpart(
            f"{type(made).__name__} reads the states of a {type(base).__name__}, and the task those of a "
            f"{expected.__name__}. Let eidetic_hf answer"
        )
    return base


def _batch(model: Parts, record: TaskRecord, config: PreTrainedConfig) -> dict[str, Tensor]:
    """The certificate's batch, padded as transformers' classes expect it, for the task and for the plain model."""
    inputs = {name: value.to(model.device) for name, value in probe_inputs(record.name, config.vocab_size).items()}
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    pad = config.pad_token_id or 0
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    special = {pad, *ends}
    ids[torch.isin(ids, torch.tensor([token for token in special if token is not None], device=ids.device))] = next(
        token for token in range(config.vocab_size) if token not in special
    )
    if config.is_encoder_decoder and ends[0] is not None:  # whose classifiers read the last token of this name
        ids[torch.arange(len(ids)), mask.sum(1) - 1] = ends[0]
    ids[~mask] = pad
    kind = kind_of(record)
    batch = kind.probe_inputs(inputs)
    beside = kind.prepare(batch, model.network.backbone.config)
    return {**batch, **{name: value for name, value in beside.items() if name.startswith("decoder_")}}


@torch.no_grad()
def _compare_backbones(model: Parts, record: TaskRecord, plain: PlainModel) -> None:
    """Hold the hidden states of the plain base model against the task's."""
    flat = flat_sequences(plain.inputs)
    with evaluation_mode(cast(nn.Module, model)):
        wanted = model.network.run(View(task_key(record.name)), flat).last_hidden_state
    error, allowed = _distance(plain.hidden_states(), wanted)
    if not error <= _HIDDEN_STATES * allowed:
        raise TaskError(
            f"The task '{record.name}' can not be taken out: the hidden states of a plain {type(plain.base).__name__} "
            f"with its weights are off by {error:.2g}, and rounding explains {_HIDDEN_STATES * allowed:.2g}. Its code "
            "does something with a layer that the declaration of the architecture does not say; see "
            "docs/architectures.md."
        )


@torch.no_grad()
def _compare_answers(model: Parts, record: TaskRecord, plain: PlainModel) -> None:
    """Hold the answer of the plain model against the task's."""
    kind, view = kind_of(record), View(task_key(record.name))
    with evaluation_mode(cast(nn.Module, model)):
        wanted = answer(model, record.name, view, Request.of(plain.inputs))[0]
    found: Any = plain.model(**plain.inputs, return_dict=True)
    for output in kind.plain_outputs or kind.outputs:
        error, allowed = _distance(found[output], wanted[output])
        if not error <= allowed:
            raise NoCounterpart(
                f"{output} of {type(plain.model).__name__} with the task's weights is off by {error:.2g}, and "
                f"rounding explains {allowed:.2g}. Let eidetic_hf answer"
            )


def _distance(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """The largest difference of two answers, and how large it may be; infinity if their shapes differ."""
    scale = max(float(wanted.abs().max()), 1.0)
    allowed = scale * (_TOLERANCE if wanted.dtype in (torch.float32, torch.float64) else _TOLERANCE_16)
    if found.shape != wanted.shape:
        return float("inf"), allowed
    return float((found.double() - wanted.double()).abs().max()), allowed


def _settle_rest(plain: PlainModel) -> None:
    """What no task reads, a pooler, becomes the identity, so that no checkpoint holds random numbers."""
    for _, tensors in list(plain.rest()):
        for leaf, tensor in tensors.items():
            is_square = leaf == "weight" and tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]
            plain.put(tensor, torch.eye(len(tensor)).to(tensor) if is_square else 0.0)


# -- to a folder ------------------------------------------------------------------------------------------------------


def _check_free(folder: Path) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        what = "a file" if folder.is_file() else "a folder with files in it"
        raise TaskError(f"{folder} is {what}. Give a folder that does not exist, or an empty one.")


def _write(
    folder: Path, plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, files: Mapping[str, str]
) -> None:
    """Write the checkpoint beside its place, and move it there when all of it is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as staged:
        made = Path(staged) / "plain"
        plain.save_pretrained(made)
        if tokenizer is not None:
            tokenizer.save_pretrained(made)
        for name, text in files.items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(text, encoding="utf-8")
        for path in made.glob("*.safetensors"):  # safetensors makes files that only their owner may read
            shutil.copymode(made / "config.json", path)
        if folder.exists():  # and empty
            folder.rmdir()
        os.replace(made, folder)
