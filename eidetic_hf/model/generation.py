"""Writing: `model.generate` with all that transformers' generation can do, for one task or for each prompt its own.

transformers' code for generation runs as it is, inside of the view of the task that writes. It calls an encoder
directly, and `forward` once for each token; `prepare_inputs_for_generation` tells `forward` which task that is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from ..configuration import TaskError, TaskRecord
from ..kinds import kind_of
from ..network.backbone import DECODER, family_of
from ..network.trunk import record
from ..views import View, current_view, task_key, use_view
from .answering import OF_ONE_TASK, AnsweringNetwork
from .router import RouterSums

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


def special_tokens(config: GenerationConfig) -> dict[str, Any]:
    """Ids of the special tokens that a generation configuration knows, by their names there."""
    return {name: value for name, value in config.to_dict().items() if name.endswith("token_id")}


class GeneratingNetwork(AnsweringNetwork, GenerationMixin):
    """Writes texts. Invariant: what a task writes depends on the call and on what it was committed with alone.

    Attributes:
        generation_config: what a call leaves open, but special tokens: each task has those that it was committed with.
    """

    generation_config: GenerationConfig

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        task: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Tensor | ModelOutput:
        """Continue prompts, or write a text for each text, with all options of transformers' `generate`.

        It runs in evaluation mode. Without a task, the router chooses one for each prompt among the tasks that write;
        but while a task is being learned, that one writes. A text ends where the backbone's context does.

        Args:
            inputs: the prompts, `(batch, sequence)`; the same as `input_ids`.
            generation_config: as in transformers. What it and `kwargs` leave open is as in `model.generation_config`,
                and special tokens are as they were when the task was committed.
            task: name of the task; or a list with one name for each prompt; or `None`, see above.
            kwargs: as in transformers: `input_ids`, `attention_mask`, `max_new_tokens`, `do_sample`, `num_beams`,
                `streamer`, `stopping_criteria`, ...

        Returns:
            As in transformers. Where a list was given or the router chose, `return_dict_in_generate=True` returns
            `tasks` and `router_scores`, too; in a batch of several tasks, a `RoutedGeneration`.

        Raises:
            TaskError: if a task is unknown, or does not write; if no task does; if the list has another length than
                the batch.
            NotImplementedError: for `cache_implementation="paged"`.
            ValueError: if there is no prompt, or an empty one, or one that fills the context; if something is asked
                for that only one task can give, in a batch of several.
        """
        if kwargs.get("cache_implementation") == "paged":
            self.init_continuous_batching()
        if inputs is not None:
            if kwargs.get("input_ids") is not None:
                raise ValueError("The prompts were given twice, as inputs and as input_ids. Give one of them.")
            kwargs["input_ids"] = inputs
        prompts = {name: kwargs.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask")}
        if prompts["attention_mask"] is None and not _is_continued(kwargs):
            prompts["attention_mask"] = self._mask_of_padding(prompts["input_ids"], generation_config, kwargs)
        self._check_prompts(prompts, continued=_is_continued(kwargs))
        self._check_decoder_prompts(kwargs.get("decoder_input_ids"))
        names, scores = self._writers(task, prompts, kwargs)
        different = list(dict.fromkeys(names))
        if len(different) == 1:
            output = self._write(different[0], generation_config, kwargs)
            if isinstance(output, ModelOutput) and (scores is not None or not (task is None or isinstance(task, str))):
                output["tasks"] = names
                if scores is not None:
                    output["router_scores"] = scores
            return output
        return self._write_each(names, scores, generation_config, kwargs)

    # -- which task -----------------------------------------------------------------------------------------------

    def _writers(
        self, task: Any, prompts: Mapping[str, Tensor | None], kwargs: Mapping[str, Any]
    ) -> tuple[list[str], Tensor | None]:
        """The task of each prompt, and the router's scores if it chose."""
        batch = _batch_size(prompts) or len(_encoded(kwargs))
        if isinstance(task, (list, tuple)):
            names = self._check_list(task, batch)
        elif task is not None or self.learner is not None:
            names = [self._resolve_task(task)] * max(batch, 1)
        else:
            among = [name for name in self.tasks if kind_of(self.record(name)).writes]
            if len(among) > 1:
                return self._route_prompts(among, prompts)
            names = among * max(batch, 1)
        for name in dict.fromkeys(names):
            if not kind_of(self.record(name)).writes:
                raise TaskError(self._why_silent(name))
        if not names:
            raise TaskError(self._why_silent(None))
        return names, None

    def _why_silent(self, name: str | None) -> str:
        """Why nothing is written, by one task or by any."""
        writers = [other for other in self.tasks if kind_of(self.record(other)).writes]
        possible = f"Tasks that write: {writers}." if writers else self._how_to_write()
        if name is not None:
            return f"The task '{name}' ({self.record(name).task_type}) has no text to write. {possible}"
        return f"No committed task writes texts; there are {self.tasks}. {possible}"

    def _how_to_write(self) -> str:
        model_type = self.backbone.config.model_type
        kinds = {DECODER: "causal-lm", "encoder-decoder": "seq2seq-lm"}
        kind = kinds.get(family_of(self.backbone.config))
        if kind is None:
            return f"An encoder such as this '{model_type}' can have none."
        return f"Learn one with model.add_task(name, task_type='{kind}')."

    def _route_prompts(self, among: list[str], prompts: Mapping[str, Tensor | None]) -> tuple[list[str], Tensor]:
        """The router's choice among the tasks that write, for each prompt."""
        given = {name: value.to(self.device) for name, value in prompts.items() if value is not None}
        if not given:
            raise ValueError(f"There is no prompt, so there is nothing to route. Pass input_ids, or task= of {among}.")
        if "attention_mask" in given and family_of(self.backbone.config) == DECODER:
            given["position_ids"] = (given["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
        with self._in_evaluation(), record() as trunk:
            self._run(View(task_key(among[0]), whole_vocabulary=True), given)
        routed = self._route(trunk, given, False, among)
        return cast(list[str], routed.tasks), cast(Tensor, routed.router_scores)

    # -- prompts --------------------------------------------------------------------------------------------------

    def _mask_of_padding(
        self, ids: Tensor | None, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """The mask that transformers makes up for a decoder where none is given; `None` where it makes up none."""
        if ids is None or ids.dim() != 2 or family_of(self.backbone.config) != DECODER:
            return None
        pad, end = (_token_ids(name, kwargs, generation_config, self.generation_config) for name in _FILLING)
        if not pad or pad[0] in end or not bool((ids == pad[0]).any()):
            return None
        return (ids != pad[0]).long()

    def _check_prompts(self, prompts: Mapping[str, Tensor | None], continued: bool) -> None:
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
                f"attention_mask has the shape {tuple(mask.shape)}, expected that of the prompts, "
                f"{tuple(ids.shape[:2])}."
            )
        lengths = torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1)
        empty = (lengths == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"The prompts {empty} have no token (attention_mask is 0): there is nothing to continue.")
        self._check_length(int(lengths.max()), ids.shape[1])

    def _check_length(self, longest: int, width: int) -> None:
        """Raise a `ValueError` if a prompt of so many tokens, or a batch of this width, is too long."""
        context = self._context()
        if context is None:
            return
        is_decoder = family_of(self.backbone.config) == DECODER
        if is_decoder and longest >= context:
            raise ValueError(
                f"A prompt has {longest} tokens, and the context of this '{self.backbone.config.model_type}' is "
                f"{context}, which leaves no room to write. Shorten it to at most {context - 1}, for example with "
                f"tokenizer(..., truncation=True, max_length={context - 1}) and truncation_side='left'."
            )
        if not is_decoder and width > context:
            raise ValueError(
                f"A text has {width} tokens, and the context of this '{self.backbone.config.model_type}' is "
                f"{context}. Shorten it, for example with tokenizer(..., truncation=True, max_length={context})."
            )

    def _check_decoder_prompts(self, ids: Tensor | None) -> None:
        """Raise a `ValueError` if the beginning of the texts, as a decoder beside an encoder reads it, is too long."""
        context = self._context()
        if ids is not None and context is not None and ids.shape[-1] >= context:
            raise ValueError(
                f"decoder_input_ids has {ids.shape[-1]} tokens, and the context of this "
                f"'{self.backbone.config.model_type}' is {context}, which leaves no room to write."
            )

    def _context(self) -> int | None:
        """Tokens that the backbone has positions for; `None` if that has no limit."""
        return getattr(self.backbone.config, "max_position_embeddings", None)

    # -- writing --------------------------------------------------------------------------------------------------

    def _write(self, name: str, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> Any:
        """What transformers' `generate` returns for one task."""
        generation_config, kwargs = self._with_special_tokens(name, generation_config, kwargs)
        kwargs = self._until_context_ends(generation_config, kwargs)
        with self._in_evaluation():
            view = self._view(name)  # in training, that of a task being learned would measure importance
            if self.input_rows.has_grown:
                known = {key: kwargs.get(key) for key in ("input_ids", "attention_mask", "decoder_input_ids")}
                known = self.input_rows.readable(known, view, f"the task '{name}'")
                if self.config.is_encoder_decoder and known["input_ids"] is not None:
                    kwargs = {**kwargs, "input_ids": known["input_ids"]}
            with use_view(view):
                return super().generate(generation_config=generation_config, **kwargs)

    def _until_context_ends(
        self, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of a call that stops where the backbone's positions end."""
        context = self._context()
        if context is None:
            return kwargs
        padding = 0
        if family_of(self.backbone.config) == DECODER:
            mask = kwargs.get("attention_mask")
            if mask is None:
                mask = self._mask_of_padding(kwargs.get("input_ids"), generation_config, kwargs)
            padding = 0 if mask is None else mask.shape[1] - int(mask.sum(1).max())
        criteria = [*(kwargs.get("stopping_criteria") or []), ContextEnd(context + padding)]
        return {**kwargs, "stopping_criteria": StoppingCriteriaList(criteria)}

    def _with_special_tokens(
        self, name: str, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> tuple[GenerationConfig | None, dict[str, Any]]:
        """The arguments of a call, with the special tokens of a task where they were left open."""
        tokens = self.record(name).special_tokens
        if generation_config is None:
            return None, {**tokens, **kwargs}
        generation_config = deepcopy(generation_config)
        for token, value in tokens.items():
            if getattr(generation_config, token, None) is None:
                setattr(generation_config, token, value)
                if value is None and getattr(self.generation_config, token, None) is not None:
                    kwargs = {token: None, **kwargs}  # else what the model has now would take its place
        return generation_config, kwargs

    def _padding_token(self, name: str, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> int:
        """What fills up the texts that a task writes."""
        generation_config, kwargs = self._with_special_tokens(name, generation_config, kwargs)
        for token in _FILLING:
            ids = _token_ids(token, kwargs, generation_config, self.generation_config)
            if ids:
                return ids[0]
        raise ValueError(
            "The tasks of this batch wrote texts of different lengths, and there is no token to fill them up with. "
            "Pass pad_token_id=."
        )

    def _write_each(
        self,
        names: list[str],
        scores: Tensor | None,
        generation_config: GenerationConfig | None,
        kwargs: dict[str, Any],
    ) -> Tensor | RoutedGeneration:
        """Let each task write for its own prompts, and put the texts together in the order of the prompts."""
        self._check_several(generation_config, kwargs)
        written: dict[str, Any] = {}
        rows = {name: [row for row, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
        for name, own in rows.items():
            written[name] = self._write(name, generation_config, _rows_of(kwargs, own, len(names)))
        texts = {
            name: cast(Any, out).sequences if isinstance(out, ModelOutput) else out for name, out in written.items()
        }
        length = max(text.shape[1] for text in texts.values())
        first = next(iter(texts.values()))
        per_prompt = len(first) // len(next(iter(rows.values())))
        sequences = first.new_zeros(len(names), per_prompt, length)
        for name, text in texts.items():
            if text.shape[1] < length:
                token = self._padding_token(name, generation_config, kwargs)
                text = functional.pad(text, (0, length - text.shape[1]), value=token)
            sequences[rows[name]] = text.unflatten(0, (-1, per_prompt))
        sequences = sequences.flatten(0, 1)
        if isinstance(next(iter(written.values())), ModelOutput):
            return RoutedGeneration(sequences=sequences, tasks=names, router_scores=scores)
        return sequences

    def _check_several(self, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any]) -> None:
        """Raise a `ValueError` if something is asked for that only a batch of one task can give."""
        asked = [name for name in OF_ONE_TASK if name in kwargs and kwargs[name] not in (None, False)]
        for name in _OUTPUTS_OF_ONE_TASK:
            sources = (generation_config, self.generation_config)
            if kwargs.get(name, any(getattr(source, name, False) for source in sources if source is not None)):
                asked.append(name)
        asked += [name for name in ("streamer", "assistant_model") if kwargs.get(name) is not None]
        if asked:
            raise ValueError(
                f"{asked[0]} was given for prompts of several tasks, which write one after another with networks of "
                "different shapes. Pass task='<name>', and the prompts of one task at a time."
            )

    @contextmanager
    def _in_evaluation(self) -> Iterator[None]:
        """Evaluation mode; a model that is in it already, as one that other threads write with, is not touched."""
        if not self.training:
            yield
            return
        with self._in_eval_mode():
            yield

    def commit_task(
        self, metrics: Mapping[str, float] | None = None, router_sums: RouterSums | None = None
    ) -> TaskRecord:
        """Freeze the task being learned, see `LearningNetwork`; and the special tokens that it writes with."""
        task = super().commit_task(metrics, router_sums)
        if kind_of(task).writes:
            task.special_tokens = special_tokens(self.generation_config)
        return task

    # -- what transformers' generation asks -----------------------------------------------------------------------

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What `forward` is given for the next token: the task, too, which is that of the current view."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        view = current_view()
        inputs["task"] = self.task_of(view)
        if self.input_rows.has_grown:  # a text that has ended goes on with padding, which the task may not know
            name = "decoder_input_ids" if self.config.is_encoder_decoder else "input_ids"
            ids = inputs.get(name)
            inputs[name] = None if ids is None else ids.masked_fill(ids >= self.input_rows.size(view), 0)
        return inputs

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: continuous batching calls the model without saying for which task."""
        raise NotImplementedError(
            "Continuous batching (generate_batch, cache_implementation='paged') calls the model without saying for "
            "which task. Use generate(..., task=...), with a list of tasks for a batch of several."
        )

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: tuple[Tensor, ...],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """As in transformers, where every step scores the whole vocabulary; a task may know less of one that grew."""
        size = self.config.vocab_size
        scores = tuple(functional.pad(step, (0, size - step.shape[-1]), value=-torch.inf) for step in scores)
        return cast(Any, super()).compute_transition_scores(sequences, scores, beam_indices, normalize_logits)

    def create_masks_for_generate(self, config: PreTrainedConfig, **kwargs: Any) -> Any:
        """The masks that go with a static cache: those of the backbone, whose layers may look back less far."""
        create = getattr(self.backbone, "create_masks_for_generate", create_masks_for_generate)
        return create(config=self.backbone.config, **kwargs)

    def _get_static_cache_init_shape(self) -> None:
        """Unknown: the number of heads differs from task to task. A static cache then takes it from the first keys."""
        return None


def _token_ids(name: str, kwargs: Mapping[str, Any], *configs: GenerationConfig | None) -> list[int]:
    """A special token's ids, from the first of some sources that knows it."""
    given = [kwargs[name]] if name in kwargs else [getattr(config, name, None) for config in configs]
    return next((torch.as_tensor(ids).flatten().tolist() for ids in given if ids is not None), [])


def _is_continued(kwargs: Mapping[str, Any]) -> bool:
    """Whether the prompts continue what a cache holds."""
    return any(kwargs.get(name) is not None for name in ("cache", "past_key_values"))


def _batch_size(prompts: Mapping[str, Tensor | None]) -> int:
    return next((len(value) for value in prompts.values() if value is not None), 0)


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
