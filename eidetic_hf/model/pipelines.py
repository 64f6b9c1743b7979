"""transformers' pipelines with an `EideticModel`: they take `task=`, and refuse what nobody takes.

A pipeline drops arguments that it does not know, before they come as far as the model: the router would answer
`pipe(text, task="reviews")`, and the default a misspelt argument. So a pipeline that is given an `EideticModel` gets a
little mixed into its class, and only that one pipeline; its own code goes on doing the work.
"""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

import torch
from transformers import PreTrainedModel, ZeroShotClassificationPipeline

from ..compat import check_known, see_pipelines
from ..configuration import TaskError, TaskRecord
from ..kinds import kind_of
from ..network.backbone import batch_size
from . import answering
from .model import EideticModel
from .parts import record_of
from .versions import routed

# What the names of arguments begin with that are for the tokenizer.
_FOR_TOKENIZER = "tokeni"
# What the labels that matter to a pipeline of hypotheses begin with.
_ENTAILED, _CONTRADICTED = "entail", "contra"


class TaskPipeline(ABC):  # as pipelines are: else Python lets none of them change to a class with it
    """Mixed into a pipeline of an `EideticModel`: `task=` names the task that answers.

    Invariant: an argument of a call has an effect, or raises an error.
    """

    _own: type
    model: Any
    tokenizer: Any

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _make_pipeline, (self._own,), self.__dict__

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        task = given.pop("task", None)
        self._check_taken(given)
        preprocess, forward, postprocess = cast(Any, super())._sanitize_parameters(**_copied(given))
        self._check_tokenizers(preprocess)
        if task is not None:
            forward = {**forward, "task": self._checked(task).exact_name}
        return preprocess, forward, postprocess

    def _arguments(self) -> list[str]:
        """Names of the arguments of a call."""
        pipe = cast(Any, self)
        _, *before = _named(pipe.preprocess)
        _, *after = _named(pipe.postprocess)
        return list(dict.fromkeys(["task", *_named(cast(Any, super())._sanitize_parameters), *before, *after]))

    def _check_taken(self, given: Mapping[str, Any]) -> None:
        """Refuse an argument that is none of the pipeline's and makes no difference to what it does.

        Raises:
            TypeError: naming the nearest that it takes.
        """
        sanitize = cast(Any, super())._sanitize_parameters
        named, catches = _named(sanitize), _catching(sanitize) is not None
        for name in given:
            others = {other: value for other, value in given.items() if other != name}
            if name in named or (
                catches and _names_in(sanitize(**_copied(given))) != _names_in(sanitize(**_copied(others)))
            ):
                continue
            check_known(type(self).__name__, [name], self._arguments())

    def _check_tokenizers(self, preprocess: Mapping[str, Any]) -> None:
        """Refuse what a tokenizer would drop, given to it in a dictionary or among the pipeline's own arguments."""
        pipe = cast(Any, self)
        known, named = _named(self.tokenizer.__call__), _named(pipe.preprocess)
        if (_catching(pipe.preprocess) or "").startswith(_FOR_TOKENIZER):
            own = [name for name in preprocess if name not in named]
            check_known(type(self).__name__, own, list(dict.fromkeys([*self._arguments(), *known])))
        for name, value in preprocess.items():
            if name.startswith(_FOR_TOKENIZER) and isinstance(value, Mapping):
                check_known(f"{name} of {type(self).__name__}", value, known)

    def _checked(self, task: Any) -> TaskRecord:
        """The task of a name, if this pipeline can show its answer.

        Raises:
            TaskError: saying which tasks there are, or what loads the checkpoint for this kind of task.
        """
        if not isinstance(task, str):
            raise TaskError(f"task={task!r}: expected the name of one task, for all texts of a call.")
        record = record_of(self.model, answering.resolve_task(self.model, task))
        kind = kind_of(record)
        if self._writes() and kind.writes:
            return record
        if self._writes() or record.task_type != self.model.answering:
            raise TaskError(
                f"'{task}' is a task of {record.task_type}, which {type(self).__name__} with "
                f"{type(self.model).__name__} does not show. Load the checkpoint with {kind.auto_class} for it."
            )
        return record

    def _writes(self) -> bool:
        return bool(getattr(self, "_pipeline_calls_generate", False))

    def _forward(self, model_inputs: Mapping[str, Any], **arguments: Any) -> Any:
        task = arguments.get("task")
        if task is not None and not self._writes():
            del arguments["task"]
            # One for each text: the answer is then over the labels of all tasks, as the pipeline reads it.
            model_inputs = {**model_inputs, "task": [task] * batch_size(model_inputs)}
        return cast(Any, super())._forward(model_inputs, **arguments)


class EntailmentPipeline(ABC):
    """Mixed into a pipeline that ranks hypotheses: one task answers, and its labels are in the order that it expects.

    Among several tasks the router would be asked, who of them knows such texts; and the pipeline would look for the
    number of a label among those of all tasks.
    """

    model: Any
    tokenizer: Any
    # The entailed is the first label then, the contradicted the last.
    entailment_id = 0

    def _sanitize_parameters(self, **given: Any) -> Any:
        preprocess, forward, postprocess = cast(Any, super())._sanitize_parameters(**given)
        if "task" in forward:
            _labels_in_order(record_of(self.model, forward["task"]))
        elif not self._judges():
            raise TaskError(
                f"{type(self).__name__} needs a task that has a label '{_ENTAILED}...', such as 'entailment', and "
                f"there is none among {answering.tasks_of_kind(self.model)}."
            )
        return preprocess, forward, postprocess

    def _judges(self) -> list[str]:
        """The tasks that can say whether a hypothesis is entailed."""
        return [
            name
            for name in routed(self.model.config, answering.tasks_of_kind(self.model))
            if _number_of(record_of(self.model, name).labels, _ENTAILED) is not None
        ]

    def _forward(self, model_inputs: Mapping[str, Any], task: str | None = None) -> dict[str, Any]:
        judges = self._judges() if task is None else [task]
        if len(judges) > 1:
            raise TaskError(
                f"{judges} can all say whether a hypothesis is entailed. Pass task='<name>' for one of them."
            )
        inputs = {name: model_inputs[name] for name in self.tokenizer.model_input_names if name in model_inputs}
        logits = self.model(**inputs, task=judges[0]).logits
        order = torch.tensor(_labels_in_order(record_of(self.model, judges[0])), device=logits.device)
        beside = {name: value for name, value in model_inputs.items() if name not in inputs}
        return {**beside, "logits": logits[:, order]}


def _labels_in_order(record: TaskRecord) -> list[int]:
    """Numbers of a task's labels, the entailed first and the contradicted last.

    Raises:
        TaskError: if it has no label that says whether a hypothesis is entailed.
    """
    first, last = (_number_of(record.labels, begins) for begins in (_ENTAILED, _CONTRADICTED))
    if first is None:
        raise TaskError(f"The task '{record.name}' has no label '{_ENTAILED}...', only {record.labels}.")
    others = [number for number in range(len(record.labels)) if number not in (first, last)]
    return [first, *others, *([] if last is None else [last])]


def _number_of(labels: list[str], begins: str) -> int | None:
    """Number of the first label that begins so; `None` if none does."""
    return next((number for number, label in enumerate(labels) if label.lower().startswith(begins)), None)


def _named(function: Callable) -> list[str]:
    """Names of the arguments that a function has."""
    parameters = inspect.signature(function).parameters.items()
    return [name for name, each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]


def _catching(function: Callable) -> str | None:
    """Name of the argument that takes all others; `None` if there is none."""
    parameters = inspect.signature(function).parameters.items()
    return next((name for name, each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD), None)


def _copied(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of which a pipeline may change what is inside."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in given.items()}


def _names_in(found: tuple[dict[str, Any], ...]) -> list[set[str]]:
    return [set(part) for part in found]


@cache
def _joined_class(own: type) -> type:
    """The class of a pipeline, and what is mixed into it."""
    mixed: list[type] = [EntailmentPipeline] if issubclass(own, ZeroShotClassificationPipeline) else []
    return type(own.__name__, (*mixed, TaskPipeline, own), {"__module__": own.__module__, "_own": own})


def _make_pipeline(own: type) -> Any:
    """An empty pipeline of the mixed class, for `copy` and `pickle` to fill."""
    return object.__new__(_joined_class(own))


def _join(pipe: Any, model: PreTrainedModel | None) -> None:
    """Mix into a pipeline what one with an `EideticModel` needs."""
    if isinstance(model, EideticModel) and not isinstance(pipe, TaskPipeline):
        pipe.__class__ = _joined_class(cast(Any, type(pipe)))


def join_pipelines() -> None:
    """Let the pipelines of transformers know what an `EideticModel` takes."""
    see_pipelines(_join)
