"""Facts of any backbone: its family, its width, its inputs."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

ENCODER, DECODER, ENCODER_DECODER = "encoder", "decoder", "encoder-decoder"


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
