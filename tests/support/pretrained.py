"""Random pretrained models with a language-model head."""

from __future__ import annotations

import torch
from support.backbones import ALL_CONFIGS
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from eidetic_hf.network.backbone import DECODER, ENCODER, ENCODER_DECODER, base_model, family_of

CLASSES = {
    ENCODER: ("masked-lm", AutoModelForMaskedLM),
    DECODER: ("causal-lm", AutoModelForCausalLM),
    ENCODER_DECODER: ("seq2seq-lm", AutoModelForSeq2SeqLM),
}
TRUNKS = {"albert": 0}


def with_head(architecture: str) -> tuple[str, PreTrainedModel]:
    """A random pretrained model with a language-model head, whose biases and norms are no zeros and ones."""
    torch.manual_seed(1)
    config = ALL_CONFIGS[architecture]()
    kind, auto_class = CLASSES[family_of(config)]
    model = auto_class.from_config(config).eval()
    own = {id(parameter) for parameter in base_model(model).parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) not in own:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.normal_()
    return kind, model
