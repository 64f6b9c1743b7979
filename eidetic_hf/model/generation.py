"""Writing: `model.generate` with all that transformers' generation can do, for one task or for each prompt its own.

transformers' code for generation runs as it is, inside of the view of the task that writes. It calls an encoder
directly, and `forward` once for each token; `prepare_inputs_for_generation` tells `forward` which task that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    GenerationConfig,
    GenerationMixin,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from ..compat import nearest
from ..configuration import TaskError
from ..kinds import TASK_KINDS, kind_of
from ..network.backbone import DECODER, batch_size, context_length, evaluation_mode, family_of
from ..views import View, running_view, task_key, task_name, use_view
from .answering import OF_ONE_TASK, check_tasks, resolve_task, view_of
from .parts import Parts, committed, record_of
from .routing import choose
from .versions import routed

logger = logging.get_logger(__name__)

# What fills up a text that has come to its end, the first that is known.
_FILLING = ("pad_token_id", "eos_token_id")
# What `generate` puts out beside the sequences, in shapes that differ from task to task.
_OUTPUTS_OF_ONE_TASK = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


@dataclass
class RoutedGeneration(ModelOutput):
    """What prompts of several tasks were continued with.

    Attributes:
        sequences: token ids as `generate` returns them, `(batch * num_return_sequences, length)`; what a task wrote
            less of is filled up with its padding token.
        tasks: name of each prompt's task.
        router_scores: posterior of each task that the router chose among, in the order of `model.tasks`,
            `(batch, tasks)`; `None` if the tasks were given.
    """

    sequences: Tensor | None = None
    tasks: list[str] | None = None
    router_scores: Tensor | None = None


class ContextEnd(StoppingCriteria):
    """Stops where the backbone's positions end.

    Args:
        length: the longest sequence, padding before it included.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Whether each sequence of `(batch, length)` is at its end, `(batch,)` bool."""
        done = input_ids.shape[1] >= self.length
        return torch.full((len(input_ids),), done, dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def generate(
    model: Parts,
    inputs: Tensor | None,
    generation_config: GenerationConfig | None,
    task: str | Sequence[str] | None,
    kwargs: dict[str, Any],
) -> Tensor | ModelOutput:
    """Continue prompts, see `EideticModel.generate`."""
    if kwargs.get("cache_implementation") == "paged":
        refuse_continuous_batching()
    if inputs is not None:
        if kwargs.get("input_ids") is not None:
            raise ValueError("The prompts were given twice, as inputs and as input_ids. Give one of them.")
        kwargs["input_ids"] = inputs
    prompts = {name: kwargs.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask")}
    if prompts["attention_mask"] is None and not _is_continued(kwargs):
        prompts["attention_mask"] = _mask_of_padding(model, prompts["input_ids"], generation_config, kwargs)
    _check_prompts(model, prompts, continued=_is_continued(kwargs))
    _check_decoder_prompts(model, kwargs.get("decoder_input_ids"))
    names, scores = _writers(model, task, prompts, kwargs)
    different = list(dict.fromkeys(names))
    if len(different) == 1:
        output = _write(model, different[0], generation_config, kwargs)
        if isinstance(output, ModelOutput) and (scores is not None or not (task is None or isinstance(task, str))):
            output["tasks"] = names
            if scores is not None:
                output["router_scores"] = scores
        return output
    return _write_each(model, names, scores, generation_config, kwargs)


# -- which task -----------------------------------------------------------------------------------------------


def _writers(
    model: Parts, task: Any, prompts: Mapping[str, Tensor | None], kwargs: Mapping[str, Any]
) -> tuple[list[str], Tensor | None]:
    """The task of each prompt, and the router's scores if it chose."""
    batch = batch_size(prompts) or len(_encoded(kwargs))
    if isinstance(task, (list, tuple)):
        names = check_tasks(model, task, batch)
    elif task is not None or model.learner is not None:
        names = [resolve_task(model, task)] * max(batch, 1)
    elif kwargs.get("labels") is not None and model.run_task in committed(model):  # a Trainer evaluates its task
        names = [model.run_task] * max(batch, 1)
    else:
        among = [name for name in committed(model) if kind_of(record_of(model, name)).writes]
        if len(routed(model.config, among)) > 1:
            return _route_prompts(model, among, prompts)
        names = routed(model.config, among) * max(batch, 1)
    for name in dict.fromkeys(names):
        if not kind_of(record_of(model, name)).writes:
            raise TaskError(_why_silent(model, name))
    if not names:
        raise TaskError(_why_silent(model, None))
    return names, None


def _why_silent(model: Parts, name: str | None) -> str:
    """Why nothing is written, by one task or by any."""
    writers = [other for other in committed(model) if kind_of(record_of(model, other)).writes]
    possible = f"Tasks that write: {writers}." if writers else _how_to_write(model)
    if name is not None:
        return f"The task '{name}' ({record_of(model, name).task_type}) has no text to write. {possible}"
    return f"No committed task writes texts; there are {committed(model)}. {possible}"


def _how_to_write(model: Parts) -> str:
    config = model.network.backbone.config
    kinds = [kind.name for kind in TASK_KINDS.values() if kind.writes and family_of(config) in kind.families]
    if not kinds:
        return f"An encoder such as this '{config.model_type}' can have none."
    return f"Learn one with model.add_task(name, task_type='{kinds[0]}')."


def _route_prompts(model: Parts, among: list[str], prompts: Mapping[str, Tensor | None]) -> tuple[list[str], Tensor]:
    """The router's choice among the tasks that write, for each prompt."""
    given = {name: value.to(model.device) for name, value in prompts.items() if value is not None}
    if not given:
        raise ValueError(f"There is no prompt, so there is nothing to route. Pass input_ids, or task= of {among}.")
    if "attention_mask" in given and family_of(model.network.backbone.config) == DECODER:
        given["position_ids"] = (given["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
    with evaluation_mode(cast(nn.Module, model)):
        trunk = model.network.record_trunk(given)
    routed = choose(model, trunk, given, False, among)
    return cast(list[str], routed.tasks), cast(Tensor, routed.router_scores)


# -- prompts --------------------------------------------------------------------------------------------------


def _mask_of_padding(
    model: Parts, ids: Tensor | None, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any]
) -> Tensor | None:
    """The mask that transformers makes up for a decoder where none is given; `None` where it makes up none."""
    if ids is None or ids.dim() != 2 or family_of(model.network.backbone.config) != DECODER:
        return None
    pad, end = (_token_ids(name, kwargs, generation_config, model.generation_config) for name in _FILLING)
    if not pad or pad[0] in end or not bool((ids == pad[0]).any()):
        return None
    return (ids != pad[0]).long()


def _check_prompts(model: Parts, prompts: Mapping[str, Tensor | None], continued: bool) -> None:
    """Raise a `ValueError` if there is nothing to continue, or no room for it."""
    ids = prompts["input_ids"] if prompts["inputs_embeds"] is None else prompts["inputs_embeds"]
    mask = prompts["attention_mask"]
    if ids is None:
        return
    if ids.dim() != (2 if ids is prompts["input_ids"] else 3) or 0 in ids.shape[:2]:
        raise ValueError(
            f"The prompts have the shape {tuple(ids.shape)}, expected (batch, sequence) with at least one prompt "
            "of at least one token, such as the tokenizer's start token."
        )
    if continued:
        return
    if mask is not None and mask.shape != ids.shape[:2]:
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}, expected that of the prompts, {tuple(ids.shape[:2])}."
        )
    lengths = torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1)
    empty = (lengths == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"The prompts {empty} have no token (attention_mask is 0): there is nothing to continue.")
    _check_length(model, int(lengths.max()), ids.shape[1])


def _check_length(model: Parts, longest: int, width: int) -> None:
    """Raise a `ValueError` if a prompt of so many tokens, or a batch of this width, is too long."""
    context = context_length(model.network.backbone.config)
    if context is None:
        return
    is_decoder = family_of(model.network.backbone.config) == DECODER
    if is_decoder and longest >= context:
        raise ValueError(
            f"A prompt has {longest} tokens, and the context of this '{model.network.backbone.config.model_type}' is "
            f"{context}, which leaves no room to write. Shorten it to at most {context - 1}, for example with "
            f"tokenizer(..., truncation=True, max_length={context - 1}) and truncation_side='left'."
        )
    if not is_decoder and width > context:
        raise ValueError(
            f"A text has {width} tokens, and the context of this '{model.network.backbone.config.model_type}' is "
            f"{context}. Shorten it, for example with tokenizer(..., truncation=True, max_length={context})."
        )


def _check_decoder_prompts(model: Parts, ids: Tensor | None) -> None:
    """Raise a `ValueError` if the beginning of the texts, as a decoder beside an encoder reads it, is too long."""
    context = context_length(model.network.backbone.config)
    if ids is not None and context is not None and ids.shape[-1] >= context:
        raise ValueError(
            f"decoder_input_ids has {ids.shape[-1]} tokens, and the context of this "
            f"'{model.network.backbone.config.model_type}' is {context}, which leaves no room to write."
        )


# -- writing --------------------------------------------------------------------------------------------------


def _write(model: Parts, name: str, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> Any:
    """What transformers' `generate` returns for one task."""
    with evaluation_mode(cast(nn.Module, model)):  # in training, a task that is being learned measures importance
        return _write_as(model, name, view_of(model, name), generation_config, kwargs)


def _write_as(
    model: Parts, name: str, view: View, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
) -> Any:
    """What transformers' `generate` returns for the view of a task, or of several whose special tokens it has."""
    generation_config, kwargs = _with_special_tokens(model, name, generation_config, kwargs)
    kwargs = _until_context_ends(model, generation_config, kwargs)
    with evaluation_mode(cast(nn.Module, model)):
        if model.network.input_rows.has_grown:
            known = {key: kwargs.get(key) for key in ("input_ids", "attention_mask", "decoder_input_ids")}
            who = f"the task '{name}'" if not view.beside else "the tasks of this batch"
            known = model.network.input_rows.readable(known, view, who)
            if model.config.is_encoder_decoder and known["input_ids"] is not None:
                kwargs = {**kwargs, "input_ids": known["input_ids"]}
        with use_view(view):
            return GenerationMixin.generate(cast(Any, model), generation_config=generation_config, **kwargs)


def _until_context_ends(
    model: Parts, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call that stops where the backbone's positions end."""
    context = context_length(model.network.backbone.config)
    if context is None:
        return kwargs
    padding = 0
    if family_of(model.network.backbone.config) == DECODER:
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = _mask_of_padding(model, kwargs.get("input_ids"), generation_config, kwargs)
        padding = 0 if mask is None else mask.shape[1] - int(mask.sum(1).max())
    criteria = [*(kwargs.get("stopping_criteria") or []), ContextEnd(context + padding)]
    return {**kwargs, "stopping_criteria": StoppingCriteriaList(criteria)}


def _with_special_tokens(
    model: Parts, name: str, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[GenerationConfig | None, dict[str, Any]]:
    """The arguments of a call, with the special tokens of a task where they were left open."""
    tokens = record_of(model, name).special_tokens
    if generation_config is None:
        return None, {**tokens, **kwargs}
    generation_config = deepcopy(generation_config)
    for token, value in tokens.items():
        if getattr(generation_config, token, None) is None:
            setattr(generation_config, token, value)
            if value is None and getattr(model.generation_config, token, None) is not None:
                kwargs = {token: None, **kwargs}  # else what the model has now would take its place
    return generation_config, kwargs


def _padding_token(model: Parts, name: str, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> int:
    """What fills up the texts that a task writes."""
    generation_config, kwargs = _with_special_tokens(model, name, generation_config, kwargs)
    for token in _FILLING:
        ids = _token_ids(token, kwargs, generation_config, model.generation_config)
        if ids:
            return ids[0]
    raise ValueError(
        "The tasks of this batch wrote texts of different lengths, and there is no token to fill them up with. "
        "Pass pad_token_id=."
    )


def _write_each(
    model: Parts,
    names: list[str],
    scores: Tensor | None,
    generation_config: GenerationConfig | None,
    kwargs: dict[str, Any],
) -> Tensor | RoutedGeneration:
    """Let each task write for its own prompts, and put the texts together in the order of the prompts."""
    _check_several(model, generation_config, kwargs)
    written: dict[str, Any] = {}
    rows = {name: [row for row, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    if _can_write_beside(model, list(rows)):
        return _write_beside(model, rows, names, scores, generation_config, kwargs)
    for name, own in rows.items():
        written[name] = _write(model, name, generation_config, _rows_of(kwargs, own, len(names)))
    texts = {name: cast(Any, out).sequences if isinstance(out, ModelOutput) else out for name, out in written.items()}
    length = max(text.shape[1] for text in texts.values())
    first = next(iter(texts.values()))
    per_prompt = len(first) // len(next(iter(rows.values())))
    sequences = first.new_zeros(len(names), per_prompt, length)
    for name, text in texts.items():
        if text.shape[1] < length:
            token = _padding_token(model, name, generation_config, kwargs)
            text = functional.pad(text, (0, length - text.shape[1]), value=token)
        sequences[rows[name]] = text.unflatten(0, (-1, per_prompt))
    sequences = sequences.flatten(0, 1)
    if isinstance(next(iter(written.values())), ModelOutput):
        return RoutedGeneration(sequences=sequences, tasks=names, router_scores=scores)
    return sequences


def _can_write_beside(model: Parts, names: list[str]) -> bool:
    """Whether one decoding loop can write for several tasks: texts begin and end in one way, with the same tokens."""
    records = [record_of(model, name) for name in names]
    alike = [(record.task_type, record.special_tokens, record.vocab_size) for record in records]
    return alike.count(alike[0]) == len(alike) and model.network.runs_beside([task_key(name) for name in names])


def _write_beside(
    model: Parts,
    rows: Mapping[str, list[int]],
    names: list[str],
    scores: Tensor | None,
    generation_config: GenerationConfig | None,
    kwargs: dict[str, Any],
) -> Tensor | RoutedGeneration:
    """Let the tasks write side by side, in one decoding loop with one cache; see `_write_each`."""
    view = View.several({task_key(name): len(own) for name, own in rows.items()})
    order = [row for own in rows.values() for row in own]
    written = _write_as(model, next(iter(rows)), view, generation_config, _rows_of(kwargs, order, len(names)))
    texts = cast(Any, written).sequences if isinstance(written, ModelOutput) else written
    sequences = torch.empty_like(texts).unflatten(0, (len(names), -1))
    sequences[order] = texts.unflatten(0, (len(names), -1))
    if isinstance(written, ModelOutput):
        return RoutedGeneration(sequences=sequences.flatten(0, 1), tasks=names, router_scores=scores)
    return sequences.flatten(0, 1)


def _check_several(model: Parts, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if something is asked for that only a batch of one task can give."""
    asked = [name for name in OF_ONE_TASK if name in kwargs and kwargs[name] not in (None, False)]
    for name in _OUTPUTS_OF_ONE_TASK:
        sources = (generation_config, model.generation_config)
        if kwargs.get(name, any(getattr(source, name, False) for source in sources if source is not None)):
            asked.append(name)
    asked += [name for name in ("streamer", "assistant_model") if kwargs.get(name) is not None]
    if asked:
        raise ValueError(
            f"{asked[0]} was given for prompts of several tasks, which write one after another with networks of "
            "different shapes. Pass task='<name>', and the prompts of one task at a time."
        )


# -- what transformers' generation asks -------------------------------------------------------------------------------


def prepare_inputs(model: Parts, inputs: dict[str, Any]) -> dict[str, Any]:
    """What `forward` is given for the next token: the task, too, which is that of the view that runs, if one does.

    Args:
        model: the model.
        inputs: what transformers' generation prepared.
    """
    view, rows = running_view(), model.network.input_rows
    if view is None:  # asked outside of `generate`: there is no task, and `forward` finds one
        return inputs
    if not view.beside:
        name = task_name(view.key) or (model.learner.name if model.learner else None)
        inputs["task"] = None if name is None else record_of(model, name).exact_name
    if rows.has_grown:  # a text that has ended goes on with padding, which the task may not know
        name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
        ids = inputs.get(name)
        inputs[name] = None if ids is None else ids.masked_fill(ids >= rows.size(view), 0)
    return inputs


def hint_at_arguments(model: Parts, given: Iterable[str], known: Iterable[str]) -> str:
    """What arguments of `generate` that nobody takes may have been meant to be; empty if nothing is near.

    Args:
        model: the model.
        given: arguments that transformers' generation was given for the model.
        known: those that `forward` and `generate` have.
    """
    known = {*known, *model.generation_config.to_dict(), *model.network.arguments}
    return "".join(nearest(name, known) for name in given if name not in known)


def refuse_continuous_batching() -> NoReturn:
    """Continuous batching calls the model without saying for which task."""
    raise NotImplementedError(
        "Continuous batching (generate_batch, cache_implementation='paged') calls the model without saying for "
        "which task. Use generate(..., task=...), with a list of tasks for a batch of several."
    )


def in_whole_vocabulary(scores: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """Scores `(rows, tokens)` of each step, filled up to `size` tokens: a task may know less of a vocabulary."""
    return tuple(functional.pad(step, (0, size - step.shape[-1]), value=-torch.inf) for step in scores)


def _token_ids(name: str, kwargs: Mapping[str, Any], *configs: GenerationConfig | None) -> list[int]:
    """A special token's ids, from the first of some sources that knows it."""
    given = [kwargs[name]] if name in kwargs else [getattr(config, name, None) for config in configs]
    return next((torch.as_tensor(ids).flatten().tolist() for ids in given if ids is not None), [])


def _is_continued(kwargs: Mapping[str, Any]) -> bool:
    """Whether the prompts continue what a cache holds."""
    return any(kwargs.get(name) is not None for name in ("cache", "past_key_values"))


def _encoded(kwargs: Mapping[str, Any]) -> Sequence[Any]:
    """The rows of the encoder's output, if it was given."""
    outputs = kwargs.get("encoder_outputs")
    return () if outputs is None else outputs[0]


def _rows_of(kwargs: dict[str, Any], rows: list[int], batch: int) -> dict[str, Any]:
    """The arguments of a call for some of its prompts."""
    index = torch.tensor(rows)
    part = {
        name: value[index.to(value.device)]
        if isinstance(value, Tensor) and value.dim() and len(value) == batch
        else value
        for name, value in kwargs.items()
    }
    allowed = kwargs.get("prefix_allowed_tokens_fn")
    if allowed is not None:
        part["prefix_allowed_tokens_fn"] = lambda row, ids: cast(Callable, allowed)(rows[row], ids)
    return part
