"""A task's head as the head of a class of transformers, without a table of these classes: what they do is measured.

A classifier of transformers is a linear layer, or a dense layer with an activation before it, or these with a norm
between them; it reads the first token, the last one, or the mean. Ours is a pooling and a linear layer. A dense layer
and an activation can pass a linear layer's product on exactly, see `write_classifier`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from ..network.architecture import in_projections, is_norm, weight_and_bias
from ..network.architectures import architecture_of
from ..network.backbone import DECODER, ENCODER, ENCODER_DECODER, family_of, flat_sequences
from ..network.plain import NoCounterpart, PlainModel
from .heads import POOLINGS, LanguageModelHead, pool_sequence

# So small that a smooth function of a hidden state times this is the tangent at 0, to the last bit of a float32.
_SMALL = 2.0**-30
# How loud a mean is written beside what a token has, and what is louder still, see `_write_mean`.
_LOUD, _ENDS = 2.0**24, 2.0**48
# Where an activation is looked at: from small hidden states to the largest.
_POINTS = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


def pooling_settings(config: PreTrainedConfig, pooling: str) -> dict[str, Any]:
    """What a plain configuration has to say for its head to read a sequence in some way, where it can say it.

    Where a head reads one token only, and each layer ends with a norm, one more layer computes the mean.

    Raises:
        NoCounterpart: if it finds the last token by the padding token, and there is none.
    """
    if family_of(config) == DECODER and config.pad_token_id is None:
        raise NoCounterpart(
            "transformers' classifiers find the last token by the padding token, and this backbone's configuration "
            "has none. Pass tokenizer=, with a padding token"
        )
    if hasattr(config, "classifier_pooling") and pooling in ("first", "mean"):  # ModernBERT, EuroBERT
        first = "bos" if config.model_type == "eurobert" else "cls"
        return {"classifier_pooling": first if pooling == "first" else "mean"}
    counts = {ENCODER: "num_hidden_layers", ENCODER_DECODER: "decoder_layers"}.get(family_of(config), "")
    if pooling == "mean" and hasattr(config, counts) and not architecture_of(config).repeats_layers:
        return {counts: getattr(config, counts) + 1}  # see `_write_mean`
    return {}


def write_classifier(plain: PlainModel, classifier: nn.Linear, pooling: str | None = None) -> None:
    """Let a plain model's head compute a linear layer of pooled hidden states, or of each token's.

    Where the head has a dense layer and an activation `f` before its own linear layer, the dense layer computes the
    product W h and its negative, and the linear layer takes f(W h) - f(-W h): that is W h itself for ReLU, GELU and
    SiLU, and for any smooth `f`, such as tanh, if W is made so small that nothing but the slope at 0 is left. Then a
    norm behind the activation divides by the constant in its square root alone.

    Args:
        plain: the model, whose base model is filled.
        classifier: the linear layer.
        pooling: how it reads a sequence; `None` if it reads every token.

    Raises:
        NoCounterpart: if the model's head can not compute this.
    """
    weight, bias = classifier.weight.detach(), cast(Tensor | None, classifier.bias)
    if plain.extra is not None:
        weight = _write_mean(plain, plain.extra, weight)
        pooling = "first" if family_of(plain.model.config) == ENCODER else "last"
    with torch.no_grad():
        hidden = plain.base(**flat_sequences(plain.inputs), return_dict=True).last_hidden_state
    dense, norm, output = _parts(plain)
    written = weight if dense is None else _write_dense(plain, dense, norm, output, weight)
    plain.put(output.weight, written)
    if cast(Any, output).bias is not None:
        plain.put(output.bias, 0.0)
    if pooling is not None:
        _check_pooling(plain, hidden, weight, pooling)
    if bias is None or not bool(bias.any()):
        return
    if cast(Any, output).bias is not None:
        plain.put(output.bias, bias.detach())
    else:
        _fold_bias(plain, bias.detach())


def _write_mean(plain: PlainModel, layer: nn.Module, weight: Tensor) -> Tensor:
    """Let one more layer write the mean over a sequence to the token that a head reads, times a linear layer.

    Its queries and keys are 0, so that token, the first of an encoder or the last of a decoder, attends to all alike,
    and its values are the hidden states: attention is the mean m. The out-projection adds c W m, its negative, and two
    numbers U and -U, with U >> c >> 1: beside c W m, what the token itself had is nothing, and beside U both are, so
    that a norm divides by a constant. What it subtracts is gone from the difference of c W m and its negative.

    Args:
        plain: the model.
        layer: the layer.
        weight: of the linear layer, `(labels, hidden)`.

    Returns:
        The weight that reads W m from what the layer writes to the first token, `(labels, hidden)`.
    """
    labels, width = weight.shape
    paths = list(architecture_of(plain.model.config).stacks.values())[-1].heads
    output, bias = weight_and_bias(layer.get_submodule(paths.output))
    if 2 * labels + 2 > width or bias is None:
        raise NoCounterpart(
            f"{type(plain.model).__name__} reads one token of a sequence, and in its {width} features there is no "
            f"room for the mean of {labels} labels. Learn the task with another pooling"
        )
    values = [part for _, parts in in_projections(layer, paths, plain.model.config) for part in parts][2]
    ends = torch.zeros(width).to(weight)
    ends[-2], ends[-1] = _ENDS, -_ENDS
    plain.put(values[0], torch.eye(width).to(weight))
    plain.put(output, torch.cat([weight, -weight]) * _LOUD)
    plain.put(bias, ends)
    first, *others = [cast(float, module.eps) for module in layer.modules() if is_norm(module)]
    divisor = ((2 * _ENDS**2 / width + first) * math.prod(1 + eps for eps in others)) ** 0.5
    unit = torch.eye(labels).to(weight) * (divisor / (2 * _LOUD))
    return F.pad(torch.cat([unit, -unit], 1), (0, width - 2 * labels))


def _parts(plain: PlainModel) -> tuple[nn.Linear | None, nn.Module | None, nn.Linear]:
    """The dense layer, the norm and the linear layer of a head, in the order in which it calls them."""
    open_modules = [module for module, _ in plain.rest()]
    called: list[nn.Module] = []
    with _hooks(open_modules, lambda module, inputs, output: called.append(module)):
        _run(plain)
    name = type(plain.model).__name__
    linear = [module for module in called if isinstance(module, nn.Linear)]
    norms = [module for module in called if is_norm(module)]
    is_known = len(called) == len(linear) + len(norms) and 1 <= len(linear) <= 2 and len(norms) < len(linear)
    if not is_known or called[-1] is not linear[-1] or (norms and called[1] is not norms[0]):
        raise NoCounterpart(
            f"the head of {name} is made of {[type(module).__name__ for module in called]}, and no such head can pass "
            "on what a task's linear layer answers"
        )
    return (linear[0] if len(linear) == 2 else None), (norms[0] if norms else None), linear[-1]


def _write_dense(
    plain: PlainModel, dense: nn.Linear, norm: nn.Module | None, output: nn.Linear, weight: Tensor
) -> Tensor:
    """Write the dense layer, and the norm behind it; returns the weight of the output layer that takes `weight`."""
    labels, rows = len(weight), dense.out_features

    def activation(values: Tensor) -> Tensor:
        return _between(plain, dense, norm or output, values)

    plain.put(dense.weight, 0.0)
    if cast(Any, dense).bias is not None:
        plain.put(dense.bias, 0.0)
    divisor = 1.0
    if norm is not None:
        plain.put(cast(Tensor, norm.weight), 1.0)
        if cast(Any, norm).bias is not None:
            plain.put(cast(Tensor, norm.bias), 0.0)
        divisor = cast(float, norm.eps) ** 0.5
    unit = torch.eye(labels, dtype=weight.dtype, device=weight.device)
    points = torch.tensor(_POINTS, dtype=weight.dtype, device=weight.device)
    if 2 * labels <= rows:
        for scale in [1.0, _SMALL][norm is not None :]:
            slope = _constant((activation(points * scale) - activation(-points * scale)) / (points * scale))
            if slope is not None:
                plain.put(dense.weight, torch.cat([weight, -weight]) * scale)
                return F.pad(torch.cat([unit, -unit], 1) * (divisor / (scale * slope)), (0, rows - 2 * labels))
    elif norm is None and rows == weight.shape[1]:
        points = torch.cat([points, -points]) * _SMALL
        slope = _constant(activation(points) / points)
        if slope is not None:
            plain.put(dense.weight, torch.eye(rows, dtype=weight.dtype, device=weight.device) * _SMALL)
            return weight / (_SMALL * slope)
    raise NoCounterpart(
        f"the head of {type(plain.model).__name__} has a dense layer of {rows} features with an activation between, "
        f"and no weights let it pass on the answer of a linear layer to {labels} labels"
    )


def _constant(values: Tensor) -> float | None:
    """The value that all of some are, up to rounding; `None` if they differ."""
    mean, rounding = values.mean(), 16 * torch.finfo(values.dtype).eps
    same = bool(((values - mean).abs() <= rounding * mean.abs()).all()) and bool(mean != 0)
    return float(mean) if same else None


def _between(plain: PlainModel, first: nn.Module, second: nn.Module, values: Tensor) -> Tensor:
    """What stands between two modules, a function of single numbers, at some values."""
    seen: list[Tensor] = []

    def put(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        put_in = torch.zeros_like(output).flatten()
        put_in[: len(values)] = values
        return put_in.view_as(output)

    take = second.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        with _hooks([first], put):
            _run(plain)
    finally:
        take.remove()
    return seen[0].flatten()[: len(values)]


def _fold_bias(plain: PlainModel, bias: Tensor) -> None:
    """Let the bias of the last norm, after which all is linear, add the bias that a head has no room for."""
    called: list[nn.Module] = []
    norms = [module for module in plain.base.modules() if is_norm(module)]
    with _hooks(norms, lambda module, inputs, output: called.append(module)):
        _run(plain)
    name, leaf = type(plain.model).__name__, getattr(called[-1], "bias", None) if called else None
    if not isinstance(leaf, nn.Parameter):
        raise NoCounterpart(
            f"the head of {name} has no bias, nor has the norm before it ({type(called[-1]).__name__}), and the "
            "task's has one. Learn the task with head_bias=False"
        )
    with torch.enable_grad():
        logits = plain.model(**plain.inputs, return_dict=True).logits[0]
        rows = [torch.autograd.grad(logit, leaf, retain_graph=True)[0] for logit in logits]
    effect, wanted = torch.stack(rows).double().cpu(), bias.double().cpu()
    added = torch.linalg.lstsq(effect, wanted.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    if not torch.allclose(effect @ added, wanted, rtol=1e-4, atol=1e-6):
        raise NoCounterpart(
            f"the head of {name} has no bias, and the bias of the norm before it can not stand for the task's, since "
            f"its {len(bias)} rows of weights depend on each other. Learn the task with head_bias=False"
        )
    with torch.no_grad():
        leaf.add_(added.to(leaf))


def _check_pooling(plain: PlainModel, hidden: Tensor, weight: Tensor, pooling: str) -> None:
    """Raise `NoCounterpart` if the head reads a sequence in another way than the task's does."""
    mask = flat_sequences(plain.inputs)["attention_mask"]
    with torch.no_grad():
        logits = _run(plain).logits
        answers = {name: F.linear(pool_sequence(hidden, mask, name), weight).view_as(logits) for name in POOLINGS}
    errors = {name: float((answer - logits).abs().max()) for name, answer in answers.items()}
    nearest = min(errors, key=lambda name: errors[name])
    scale = max(float(logits.abs().max()), 1.0)
    if errors[pooling] > 10 * errors[nearest] and errors[pooling] > 1e-5 * scale:
        raise NoCounterpart(
            f"{type(plain.model).__name__} reads a sequence's {_READS[nearest]}, and the task's pooling={pooling!r} "
            f"the {_READS[pooling]}. Learn the task with pooling={nearest!r}"
        )


_READS = {"first": "first token", "last": "last token", "mean": "mean over its tokens"}


def write_language_head(plain: PlainModel, head: LanguageModelHead, embeddings: Tensor) -> None:
    """Write a language-model head into a plain model, as `read_language_head` reads one.

    The bias of a norm that has no room for one goes into the bias over the vocabulary.

    Args:
        plain: the model, whose base model is filled.
        head: of the task.
        embeddings: what scores tokens, `(tokens, embedding)`.

    Raises:
        NoCounterpart: if the model's head has other parts.
    """
    name, (tokens, width) = type(plain.model).__name__, embeddings.shape
    rest = list(plain.rest())
    dense = [m for m, _ in rest if isinstance(m, nn.Linear) and m.weight.shape[0] == width != tokens]
    norms = [m for m, _ in rest if isinstance(m, nn.LayerNorm)]
    if (len(dense), len(norms)) != (0, 0) if head.transform is None else (len(dense), len(norms)) != (1, 1):
        has = "a transform" if head.transform is not None else "no transform"
        raise NoCounterpart(f"the task's head has {has} before the vocabulary, and that of {name} is made otherwise")
    bias = embeddings.new_zeros(tokens)
    if head.bias is not None:
        bias = bias + head.bias.detach()
    if head.transform is not None:
        for target, source in ((dense[0], head.transform.dense), (norms[0], head.transform.norm)):
            for leaf, parameter in target.named_parameters():
                plain.put(parameter, getattr(source, leaf) if getattr(source, leaf) is not None else 0.0)
        if norms[0].bias is None and head.transform.norm.bias is not None:
            bias = bias + embeddings @ head.transform.norm.bias.detach()
    for _, tensors in list(plain.rest()):
        for tensor in tensors.values():
            if tensor.numel() == tokens == tensor.shape[-1]:
                plain.put(tensor, bias.view_as(tensor))
            elif tensor.shape == embeddings.shape:
                plain.put(tensor, embeddings)
    scored = cast(Tensor, cast(nn.Module, plain.model.get_output_embeddings()).weight)
    if scored.shape != embeddings.shape or not torch.equal(scored, embeddings):
        raise NoCounterpart(
            f"{name} scores tokens by its input embeddings, and the task by output embeddings of its own. Learn it "
            "with own_output_embeddings=False"
        )


@torch.no_grad()
def _run(plain: PlainModel) -> Any:
    return plain.model(**plain.inputs, return_dict=True)


@contextmanager
def _hooks(modules: list[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Forward hooks on some modules, for a while."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
