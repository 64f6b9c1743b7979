"""Facts of any backbone: its family, its width, its inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..compat import no_init_weights

ENCODER, DECODER, ENCODER_DECODER = "encoder", "decoder", "encoder-decoder"
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
DECODER_TEXTS = ("decoder_input_ids", "decoder_inputs_embeds")  # what a decoder beside an encoder reads: either


def family_of(config: PreTrainedConfig) -> str:
    """Whether a backbone is an `"encoder"`, a `"decoder"` (its tokens see only what precedes them) or both."""
    if config.is_encoder_decoder:
        return ENCODER_DECODER
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return DECODER if getattr(config, "is_decoder", False) or is_causal else ENCODER


def hidden_size(config: PreTrainedConfig) -> int:
    """Width of a backbone's last hidden states (OPT projects them to another one)."""
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size


def initializer_range(config: PreTrainedConfig) -> float:
    """Standard deviation of a backbone's initial weights; that of most, where an architecture does not say."""
    return getattr(config, "initializer_range", 0.02)


def base_model(model: PreTrainedModel) -> PreTrainedModel:
    """The backbone in a model with a head; its modules, in a shell of its own where the model is none (T5)."""
    base = cast(PreTrainedModel, model.base_model)
    expected: Any = MODEL_MAPPING.get(type(model.config), None)
    if base is not model or expected is None or isinstance(base, expected):
        return base
    with no_init_weights(), torch.device("meta"):
        shell = AutoModel.from_config(model.config)
    for name, _ in list(shell.named_children()):
        setattr(shell, name, getattr(base, name))
    return shell.train(model.training)


@contextmanager
def random_numbers_for(device: torch.device, *what: object) -> Iterator[None]:
    """Random numbers inside depend on what they are for, and on nothing that this process has done before.

    So all processes of a run draw the same ones, and nobody else's are moved on.

    Args:
        device: that they are drawn on.
        what: they are for: names and numbers.
    """
    digest = hashlib.sha256("|".join(map(str, what)).encode()).digest()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens that a backbone has positions for; `None` if that has no limit."""
    return getattr(config, "max_position_embeddings", None)


def longest_sequence(backbone: PreTrainedModel) -> int | None:
    """Tokens that a text may have; `None` if that has no limit."""
    longest = context_length(backbone.config)
    embeddings = [m for n, m in backbone.named_modules() if n.endswith("position_embeddings")]
    for module in embeddings:  # RoBERTa's positions begin behind the one of padding
        if longest is not None and getattr(module, "padding_idx", None) is not None:
            return longest - cast(int, module.padding_idx) - 1
    return longest


def is_nested(inputs: Mapping[str, Tensor]) -> bool:
    """Whether each row of a batch holds several sequences, as in multiple choice."""
    dims = {"input_ids": 2, "inputs_embeds": 3}
    return any(inputs[name].dim() > dim for name, dim in dims.items() if inputs.get(name) is not None)


def flat_sequences(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch with one sequence per row, `(sequences, tokens)`."""
    nested = is_nested(inputs)
    return {name: value.flatten(0, 1) if nested else value for name, value in inputs.items()}


def batch_size(inputs: Mapping[str, Any]) -> int:
    """Number of rows of a batch; 0 if it has none."""
    names = ("input_ids", "inputs_embeds")
    return len(next((inputs[name] for name in names if inputs.get(name) is not None), ()))


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode; a module that is in it already, as one that other threads answer with, is not touched."""
    training = [module for module in modules if module.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()
