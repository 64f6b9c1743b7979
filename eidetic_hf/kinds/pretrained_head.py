"""The language-model head of a pretrained model: what it is made of, and its weights, without its `forward`.

Every head of transformers that this reads is a projection onto the token embeddings, with some of these parts around
it: a transform before it (dense, activation, norm: masked language models), a factor on the hidden states (T5), a bias
over the vocabulary (BERT, BART), a soft cap on the logits (Gemma 2). A head with anything else in it would answer
something else than the pretrained model does: `read_language_head` compares the two and tells.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..compat import has_class_for
from ..network.backbone import DECODER, ENCODER, ENCODER_DECODER, base_model, family_of, hidden_size
from .heads import LanguageModelHead

_AUTO_CLASSES = {ENCODER: AutoModelForMaskedLM, DECODER: AutoModelForCausalLM, ENCODER_DECODER: AutoModelForSeq2SeqLM}
# How classes with a language-model head are called, in `config.architectures`.
_HEAD_CLASSES = (
    "ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForPreTraining", "MaskedLMModel",
)  # fmt: skip
# Whose transform is a GELU whatever `config.hidden_act` says.
_ALWAYS_GELU = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "electra", "mpnet", "longformer")


def head_parts(config: PreTrainedConfig) -> dict[str, Any]:
    """What a backbone's language-model head is made of where no pretrained one says otherwise.

    Returns:
        Keyword arguments for `LanguageModelHead`: `transform` (arguments of `Transform`) and `bias` in an encoder,
        `scale` and `softcap` where the architecture has them.
    """
    parts: dict[str, Any] = {"bias": False}
    if family_of(config) == ENCODER:
        parts = {"bias": True, "transform": _transform_parts(config, bias=True, norm_bias=True)}
    # transformers took `tie_word_embeddings` for this before it had a name of its own.
    is_scaled = getattr(config, "scale_decoder_outputs", "t5" in config.model_type and config.tie_word_embeddings)
    if is_scaled and config.is_encoder_decoder:
        parts["scale"] = config.d_model**-0.5
    if getattr(config, "final_logit_softcapping", None) is not None:
        parts["softcap"] = config.final_logit_softcapping
    return parts


def _transform_parts(config: PreTrainedConfig, bias: bool, norm_bias: bool) -> dict[str, Any]:
    names = ("classifier_activation", "activation", "hidden_act")
    activation = next(
        (getattr(config, name) for name in names if isinstance(getattr(config, name, None), str)), "gelu"
    )
    if config.model_type in _ALWAYS_GELU:
        activation = "gelu"
    eps = getattr(config, "layer_norm_eps", None) or getattr(config, "norm_eps", None) or 1e-12
    return {"activation": activation, "eps": eps, "bias": bias, "norm_bias": norm_bias}


@dataclass
class LanguageHead:
    """The language-model head of a pretrained model.

    Attributes:
        parts: what it is made of, as `head_parts` says it.
        head: the head, with the pretrained weights.
        embeddings: the output embeddings, `(tokens, embedding)`, where they are not the input embeddings.
        owner: name of the class that it was read from.
        agrees: whether it gives the logits of the class that it was read from.
        generation_config: how that class writes texts, if it does.
    """

    parts: dict[str, Any]
    head: LanguageModelHead
    embeddings: Tensor | None
    owner: str
    agrees: bool
    generation_config: GenerationConfig | None = None


def load_with_head(
    source: Any, config: PreTrainedConfig, **kwargs: Any
) -> tuple[PreTrainedModel, LanguageHead | None]:
    """Load a pretrained base model, and the language-model head that lies beside it in the checkpoint, if any.

    Args:
        source: a folder or a Hub id.
        config: its configuration, whose `architectures` says what lies in the checkpoint.
        kwargs: for `from_pretrained`.
    """
    names = config.architectures or []
    auto_class = _AUTO_CLASSES[family_of(config)]
    if not has_class_for(auto_class, config) or not any(name.endswith(_HEAD_CLASSES) for name in names):
        return AutoModel.from_pretrained(source, **kwargs), None
    model, info = auto_class.from_pretrained(source, output_loading_info=True, **kwargs)
    base = base_model(model)
    missing = set(info["missing_keys"]) & set(_head_tensors(model, base))
    return base, None if missing else read_language_head(model, base)


def _head_tensors(model: PreTrainedModel, base: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model that its base model has not."""
    own = {tensor.data_ptr() for tensor in [*base.parameters(), *base.buffers()] if tensor.numel()}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in tensors if tensor.numel() and tensor.data_ptr() not in own}


def read_language_head(model: PreTrainedModel, base: PreTrainedModel) -> LanguageHead | None:
    """The language-model head of a loaded model, copied; `None` if the model has none.

    Args:
        model: the model, such as a `BertForMaskedLM`; any other class, or the base model itself, has no such head.
        base: its base model, see `base_model`.
    """
    if model is base or model.get_output_embeddings() is None:
        return None
    config = model.config
    vocab_size, embedding_size = cast(Tensor, base.get_input_embeddings().weight).shape
    tensors = _head_tensors(model, base)
    parts = {name: part for name, part in head_parts(config).items() if name not in ("transform", "bias")}
    modules = [
        module
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.LayerNorm))
        and any(module.weight is tensor for tensor in tensors.values())
    ]
    width = hidden_size(config)
    dense = [m for m in modules if isinstance(m, nn.Linear) and m.weight.shape == (embedding_size, width)]
    norms = [m for m in modules if isinstance(m, nn.LayerNorm)]
    if len(dense) == len(norms) == 1:
        parts["transform"] = _transform_parts(config, dense[0].bias is not None, norms[0].bias is not None)
        parts["transform"]["eps"] = norms[0].eps
    used = {id(tensor) for module in (*dense, *norms) for tensor in module.parameters()}
    rest = [tensor for tensor in tensors.values() if id(tensor) not in used]
    biases = [tensor for tensor in rest if tensor.numel() == vocab_size == tensor.shape[-1]]
    parts["bias"] = bool(biases)
    output = [tensor for tensor in rest if tensor.dim() == 2 and len(tensor) == vocab_size != tensor.numel()]
    head = LanguageModelHead(width, embedding_size, vocab_size, parts, std=0.02).to(base.device, base.dtype)
    with torch.no_grad():
        if head.transform is not None:
            head.transform.dense.load_state_dict(dense[0].state_dict())
            head.transform.norm.load_state_dict(norms[0].state_dict())
        if head.bias is not None:
            head.bias.copy_(biases[0].reshape(-1))
    embeddings = output[0].detach().clone() if output else None
    found = LanguageHead(parts, head, embeddings, type(model).__name__, agrees=True)
    found.agrees = _agrees(found, model, base)
    if model.can_generate():
        found.generation_config = deepcopy(model.generation_config)
    return found


@torch.no_grad()
def _agrees(found: LanguageHead, model: PreTrainedModel, base: PreTrainedModel) -> bool:
    """Whether a head that was read gives the logits of the model that it was read from, on a few tokens."""
    ids = torch.arange(4, device=base.device).remainder(found.head.vocab_size).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    training = model.training
    model.eval()
    base.eval()
    try:
        output = model(**inputs, return_dict=True)
        expected = output.prediction_logits if "prediction_logits" in output else output.logits
        hidden = base(**inputs, return_dict=True).last_hidden_state
    finally:
        model.train(training)
        base.train(training)
    embeddings = found.embeddings
    if embeddings is None:
        embeddings = cast(Tensor, base.get_input_embeddings().weight)
    tolerance = 1e-3 if base.dtype == torch.float32 else 1e-1
    answer = found.head(hidden, embeddings)
    return answer.shape == expected.shape and torch.allclose(answer, expected, rtol=tolerance, atol=tolerance)
