"""What a model answers: one task named, or each sequence its own, named or chosen by the router.

Invariant: a task's answer depends on nothing but the request and the task's own tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from ..compat import check_known
from ..configuration import TaskError, TaskRecord
from ..kinds import TASK_KINDS, kind_of, label_spans
from ..kinds.base import Answer, Kind
from ..kinds.collators import PAIR
from ..network.backbone import DECODER_TEXTS, MODEL_INPUTS, evaluation_mode, hidden_size
from ..network.trunk import TrunkPass, replay_trunk
from ..views import LEARNING, View, running_view, task_key, task_name
from .parts import Parts, committed, record_of
from .request import Request
from .routing import RoutedOutput, check_share, choose, most_likely
from .versions import answering_name, routed

# Products over fewer tokens than this round differently than over more: such small groups run the trunk themselves.
_SMALL_PRODUCT = 64

# What a backbone puts out beside the answer, if it is asked in the call or in the configuration.
_BESIDE = ("output_hidden_states", "output_attentions")

# Arguments that make sense for the subnetwork of one task only.
OF_ONE_TASK = (
    *_BESIDE, "encoder_outputs", "past_key_values", "cache", "logits_to_keep",
)  # fmt: skip


def check_arguments(model: Parts, given: Mapping[str, Any], named: Iterable[str]) -> None:
    """Refuse arguments of `forward` that neither it nor the backbone takes.

    Those that transformers' generation hands on were looked at when it began.

    Args:
        model: the model.
        given: arguments of `forward` beside those that it has.
        named: those that it has.

    Raises:
        TypeError: naming the nearest that somebody takes.
    """
    asked = [name for name, value in given.items() if value is not None]
    if asked and running_view() is None:
        paired = [f"{PAIR}{name}" for name in MODEL_INPUTS]
        check_known(
            "EideticModel.forward", asked, list(dict.fromkeys([*named, *paired, *sorted(model.network.arguments)]))
        )


# -- one task ---------------------------------------------------------------------------------------------------------


def answer(model: Parts, name: str, view: View, request: Request) -> tuple[Answer, Any]:
    """Run one task's subnetwork and its head on a batch.

    Args:
        model: the model.
        name: the task.
        view: of the task, see `View`.
        request: the batch.

    Returns:
        The answer by name, and the backbone's output.
    """
    kind = kind_of(record_of(model, name))
    hidden, output = _run(model, kind, view, request)
    return _head_answer(model, kind, view, hidden, request.inputs), output


def _run(model: Parts, kind: Kind, view: View, request: Request) -> tuple[Tensor, Any]:
    """Hidden states of the tokens that a head is to read, `(sequences, tokens, hidden)`, and the backbone's output."""
    prepared = kind.prepare(request.inputs, model.network.backbone.config)
    if view.probe is not None:
        view = replace(view, token_mask=prepared.get("attention_mask"))
    arguments = dict(request.arguments)
    kept = arguments.pop("logits_to_keep", 0)
    output = model.network.run(view, prepared, **arguments)
    hidden = output.last_hidden_state
    if kind.reads_vocabulary:  # scoring every token of a prompt is most of the work
        hidden = hidden[:, kept if isinstance(kept, Tensor) else slice(-kept if kept else None, None)]
    return hidden, output


def _head_answer(model: Parts, kind: Kind, view: View, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Answer:
    """What a task's head makes of hidden states, `(sequences, tokens, hidden)`."""
    vocabulary = model.network.vocabulary(view if kind.reads_vocabulary else None)
    return kind.answer(model.heads[view.key], hidden, inputs, vocabulary)


def answer_one(model: Parts, name: str, view: View, request: Request) -> ModelOutput:
    """Run one task on a batch, and compute its loss if there are targets.

    Raises:
        ValueError: if the targets do not fit the task.
    """
    record, config, targets = record_of(model, name), model.network.backbone.config, request.targets
    kind = kind_of(record)
    kind.check_targets(record, targets)
    request = replace(request, inputs=kind.complete_inputs(record, request.inputs, targets, config))
    found, output = answer(model, name, view, request)
    if request.pair:
        pair = replace(request, inputs=request.pair)
        targets = {**targets, **kind.pair_targets(record, lambda: answer(model, name, view, pair)[0])}
    loss = kind.loss(record, found, targets) if targets else None
    if view.key == LEARNING and model.training and torch.is_grad_enabled():
        loss = _distil(model, loss, found, record, targets, request)
    if loss is not None and request.items is not None:  # a share of the mean over several batches
        loss = loss * (kind.items(record, targets) / request.items)
    return kind.output(loss, found, targets, output)


def view_of(model: Parts, name: str) -> View:
    """The view of a task, committed or being learned."""
    if model.learner is None or name != model.learner.name:
        return View(task_key(name))
    return model.learner.view(model.training)


def _distil(
    model: Parts,
    loss: Tensor | None,
    found: Answer,
    record: TaskRecord,
    targets: Mapping[str, Tensor],
    request: Request,
) -> Tensor | None:
    """Mix in the distance from the answer of the task's own unpruned network (Hinton et al., arXiv 1503.02531).

    Or leave it to the trainer, which may have another loss than this.
    """
    learner = model.learner
    assert learner is not None
    teacher, kind = learner.teacher(), kind_of(record)
    targets = targets or learner.targets
    if teacher and (loss is not None or not learner.mixes_distance):
        asked = {**request.inputs, **request.arguments, "view": View(LEARNING, teacher=True), "return_dict": True}
        module = cast(nn.Module, model)
        with torch.no_grad(), evaluation_mode(module):
            output = torch.func.functional_call(module, teacher, kwargs=asked)
        wanted = {part: output[part] for part in kind.outputs}
        distance = kind.distance(record, found, wanted, targets, learner.config.temperature)
        if not learner.mixes_distance:
            learner.put_distance(distance, kind.items(record, targets))
        elif loss is not None:
            share = learner.config.distillation
            loss = (1 - share) * loss + share * distance
    if loss is not None:
        learner.note_use(loss)
    return loss


class TaskBackbone:
    """The backbone as one task runs it, for code that calls it by itself, such as TRL's losses.

    Attributes of the backbone are found here, too.

    Args:
        model: the model.
        name: the task.
    """

    def __init__(self, model: Parts, name: str) -> None:
        self._model, self._name = model, name

    def __call__(self, input_ids: Tensor | None = None, **inputs: Any) -> Any:
        """What the backbone puts out, with `last_hidden_state` `(batch, sequence, hidden)`."""
        return self._model.network.run(view_of(self._model, self._name), {"input_ids": input_ids, **inputs})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model.network.backbone, name)


def meant_task(model: Parts) -> str | None:
    """The task that code means that knows of none: the one being learned, or that of the last run."""
    return model.run_task if model.learner is None else model.learner.name


def output_embeddings_of(model: Parts, name: str) -> nn.Module | None:
    """What scores tokens for a task, as a layer; `None` where more than a product does."""
    record, view = record_of(model, name), view_of(model, name)
    if not kind_of(record).reads_vocabulary:
        return None
    return kind_of(record).output_layer(model.heads[view.key], model.network.vocabulary(view))


# -- which task -------------------------------------------------------------------------------------------------------


def respond(
    model: Parts,
    request: Request,
    task: str | Sequence[str] | None,
    abstain: bool | float,
    view: View | None,
    allowed: Sequence[str] | None = None,
    answer_all: bool = False,
) -> ModelOutput:
    """What `EideticModel.forward` returns, for one task or for several."""
    running = running_view()
    if running is not None and running.beside:
        return _go_on_beside(model, running, request)
    request = _as_configured(model, request)
    routes = task is None and view is None and model.learner is None
    routes = routes and (len(routed(model.config, tasks_of_kind(model))) > 1 or bool(abstain) or answer_all)
    if routes and request.targets and model.run_task in committed(model):  # the Trainer that learned it evaluates it
        task, routes = record_of(model, cast(str, model.run_task)).exact_name, False
    if routes or isinstance(task, (list, tuple)):
        if request.targets:
            raise ValueError(
                f"{next(iter(request.targets)).capitalize()} were given, but no single task that they belong to. "
                "Pass task='<name>'."
            )
        return answer_each(model, cast(Sequence[str] | None, task), abstain, request, None, allowed, answer_all)
    if (allowed is not None or answer_all) and view is None:
        raise ValueError(
            "tasks=[...] and answer_all are for a batch whose tasks the router chooses: leave out task=, and wait "
            "until no task is being learned."
        )
    if abstain and view is None:
        raise ValueError(
            "abstain lets the router turn sequences away, but here it does not choose: leave out task=, and wait "
            "until no task is being learned."
        )
    if view is not None:
        assert model.learner is not None
        return answer_one(model, model.learner.name, view, request)
    name = resolve_task(model, cast(str | None, task))
    return answer_one(model, name, view_of(model, name), request)


def embed(model: Parts, request: Request, task: str | None) -> ModelOutput:
    """The embeddings of texts, see `EideticModel.get_text_features`."""
    request = _as_configured(model, request)
    among = [name for name in committed(model) if kind_of(record_of(model, name)).embeds]
    routes = routed(model.config, among)
    if task is None and len(routes) > 1:
        return answer_each(model, None, False, request, among)
    name = routes[0] if task is None and routes else task if task is None else resolve_task(model, task)
    if name is None or not kind_of(record_of(model, name)).embeds:
        who = "There is no task that embeds" if name is None else f"The task {name!r} does not embed"
        kinds = " or ".join(kind.name for kind in TASK_KINDS.values() if kind.embeds)
        raise TaskError(
            f"{who} texts: of {committed(model)}, {among} do. SentenceTransformer and get_text_features need a task "
            f"of {kinds}. For others use model(**batch, task=...), a pipeline, or CrossEncoder, for labels and scores "
            "of pairs."
        )
    return answer_one(model, name, view_of(model, name), request)


def _as_configured(model: Parts, request: Request) -> Request:
    """A request, with what the model's configuration asks to be put out beside the answer."""
    asked = {name: True for name in _BESIDE if getattr(model.config, name)}
    return replace(request, arguments={**asked, **request.arguments}) if asked else request


def tasks_of_kind(model: Parts, task_type: str | None = None) -> list[str]:
    """The tasks of a kind that the model answers for, in commit order; by default of the kind that it routes among."""
    task_type = task_type or model.answering
    return [name for name in committed(model) if record_of(model, name).task_type == task_type]


def resolve_task(model: Parts, task: str | None) -> str:
    """The task that a forward pass is for: the one given, the one being learned, or the only one of its kind.

    Of a task with several versions it is the default one, or the one that is named.

    Raises:
        TaskError: if there is none.
    """
    learning = None if model.learner is None else model.learner.name
    if task is None:
        if learning is not None:
            return learning
        among = routed(model.config, tasks_of_kind(model))
        if not among:
            raise _nothing_to_answer(model)
        return among[0]
    if not isinstance(task, str):
        raise TaskError(
            f"task={task!r}: expected the name of a task, a list with one name per sequence, or nothing, to let "
            f"the router choose. Committed are {committed(model)}."
        )
    name = task if task == learning else answering_name(model.config, task)
    if name == learning or (model.config.task(name) is not None and model.config.serves(name)):
        return name
    if task in model.added:
        raise TaskError(f"The task '{task}' has been added, but not learned. Train it with EideticTrainer.")
    raise TaskError(f"There is no task '{task}'. Committed are {committed(model)}.")


def _nothing_to_answer(model: Parts) -> TaskError:
    if not committed(model):
        return TaskError("No task is committed, so there is nothing to answer. Learn one with EideticTrainer.")
    kinds = {name: record_of(model, name).task_type for name in committed(model)}
    loaders = sorted({f"{kind}: {kind_of(kind).auto_class}" for kind in kinds.values()})
    return TaskError(
        f"{type(model).__name__} without task= answers {model.answering}, and no such task is committed; there are "
        f"{kinds}. Pass task='<name>', or load the checkpoint for another kind ({', '.join(loaders)})."
    )


def check_tasks(model: Parts, tasks: Sequence[Any], batch: int) -> list[str]:
    """A list of tasks, one per sequence.

    Raises:
        TaskError: if they are not as many as sequences, not all committed, or not of one kind.
    """
    names = [_check_listed(model, name) for name in tasks]
    if len(names) != batch:
        raise TaskError(f"task= has {len(names)} names for a batch of {batch} sequences; expected one for each.")
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(record_of(model, name).task_type, name)
    if len(first) > 1:
        (one, a), (other, b) = list(first.items())[:2]
        raise TaskError(
            f"task= lists tasks of several kinds: '{a}' ({one}) and '{b}' ({other}). What they answer has "
            "different shapes; give each kind a batch of its own."
        )
    return names


def _check_listed(model: Parts, name: Any) -> str:
    """A name in a list of tasks, if it is a committed task's."""
    if model.learner is not None and name in (model.learner.name, record_of(model, model.learner.name).exact_name):
        raise TaskError(
            f"The task '{name}' is being learned: a list may name committed tasks only, {committed(model)}."
        )
    if not isinstance(name, str):
        raise TaskError(f"task= lists {name!r}, expected names of tasks, of {committed(model)}.")
    return resolve_task(model, name)


# -- several tasks in a batch -----------------------------------------------------------------------------------------


def answer_each(
    model: Parts,
    tasks: Sequence[str] | None,
    abstain: bool | float,
    request: Request,
    candidates: list[str] | None = None,
    allowed: Sequence[str] | None = None,
    answer_all: bool = False,
) -> RoutedOutput:
    """Run each sequence's task on it, the one given or the one that the router chooses; the trunk runs once.

    Args:
        model: the model.
        tasks: the task of each sequence, if the router shall not choose.
        abstain: see `EideticModel.forward`.
        request: the batch.
        candidates: the tasks that the router chooses among; those that the model answers for, if not given.
        allowed: those of them that may be chosen; all, if not given.
        answer_all: whether all that may be chosen answer each sequence, and not the likeliest alone.

    Raises:
        TaskError: as `check_tasks` does, and if there is no task to choose from.
        ValueError: if something is asked for that only one task can give.
    """
    arguments = request.arguments
    wanted = [name for name in OF_ONE_TASK if arguments.get(name) is not None and arguments[name] is not False]
    if wanted:
        raise ValueError(
            f"{wanted[0]} with several tasks in a batch: their subnetworks have different shapes. Pass "
            "task='<name>' for one of them."
        )
    config, batch = model.network.backbone.config, request.batch
    check_share(abstain)
    if tasks is not None:
        if abstain:
            raise ValueError("abstain lets the router turn sequences away, but the tasks were given.")
        if allowed is not None or answer_all:
            raise ValueError("tasks=[...] and answer_all are for the router's choice, but the tasks were given.")
        tasks = check_tasks(model, tasks, batch)
    among = candidates or tasks_of_kind(model, record_of(model, tasks[0]).task_type if tasks else None)
    if not among:
        raise _nothing_to_answer(model)
    record = record_of(model, among[0])
    kind = kind_of(record)
    request = replace(request, inputs=kind.complete_inputs(record, request.inputs, {}, config))
    trunk = TrunkPass()
    if batch:
        trunk = model.network.record_trunk(kind.prepare(request.inputs, config), **arguments)
    if tasks is None:
        result = choose(model, trunk, request.inputs, abstain, among, allowed)
        tasks = most_likely(cast(Tensor, result.router_scores), among)
    else:
        result = RoutedOutput(tasks=list(tasks))
    records = [record_of(model, name) for name in among]
    room = _Room(kind, records, label_spans(model.config, kind.name), batch)
    if answer_all and batch:
        every = torch.arange(batch, device=model.device)
        for name in _answering(model, among, allowed):
            room.put(name, every, _answer_rows(model, name, kind, every, trunk, request))
        return replace(result, **cast(dict[str, Any], room.answer))
    rows = {
        name: torch.tensor([row for row, other in enumerate(tasks) if other == name], device=model.device)
        for name in dict.fromkeys(tasks)
    }
    if len(rows) > 1 and model.network.runs_beside([task_key(name) for name in rows]):
        for name, found in _answer_beside(model, kind, rows, trunk, request):
            room.put(name, rows[name], found)
    else:
        for name, own in rows.items():
            room.put(name, own, _answer_rows(model, name, kind, own, trunk, request))
    if not batch:
        room.put(among[0], torch.zeros(0, dtype=torch.long), _answer_nothing(model, among[0], request))
    return replace(result, **cast(dict[str, Any], room.answer))


def _answering(model: Parts, among: list[str], allowed: Sequence[str] | None) -> list[str]:
    """The tasks that all answer: where only labels tell answers apart, those that have some.

    Raises:
        ValueError: if the answers of several have one place.
    """
    names = routed(model.config, among) if allowed is None else list(allowed)
    kind = kind_of(record_of(model, among[0]))
    if len(names) > 1 and not kind.has_labels:
        raise ValueError(
            f"answer_all=True with {names}, of {kind.name}: each answer has a place of its own for tasks with labels "
            "only. Ask one after another with task='<name>'."
        )
    return names


def _answer_beside(
    model: Parts, kind: Kind, rows: Mapping[str, Tensor], trunk: TrunkPass, request: Request
) -> Iterator[tuple[str, Answer]]:
    """The answers of several tasks, each to its rows of a batch whose trunk states were recorded, in one pass."""
    part = request.rows(torch.cat(list(rows.values())))
    sequences = {name: kind.rows(own, request.inputs) for name, own in rows.items()}
    view = View.several({task_key(name): len(own) for name, own in sequences.items()})
    with replay_trunk(trunk, torch.cat(list(sequences.values()))):
        prepared = kind.prepare(part.inputs, model.network.backbone.config)
        hidden = model.network.run(view, prepared, **part.arguments).last_hidden_state
    for (key, own), name in zip(view.slices(len(hidden)), rows, strict=True):
        inputs = request.rows(rows[name]).inputs
        yield name, _head_answer(model, kind, View(key), hidden[own], inputs)


def _go_on_beside(model: Parts, view: View, request: Request) -> ModelOutput:
    """What tasks that write side by side answer in one step of transformers' generation, with the state it goes on."""
    first, _ = view.beside[0]
    kind = kind_of(record_of(model, cast(str, task_name(first))))
    hidden, output = _run(model, kind, view, request)
    slices = list(view.slices(len(hidden)))
    heads, parts = [model.heads[key] for key, _ in slices], [hidden[rows] for _, rows in slices]
    vocabulary = model.network.vocabulary(View(first) if kind.reads_vocabulary else None)
    return kind.output(None, kind.answer_each(heads, parts, request.inputs, vocabulary), {}, output)


def _answer_rows(model: Parts, name: str, kind: Kind, rows: Tensor, trunk: TrunkPass, request: Request) -> Answer:
    """One task's answer to some rows of a batch whose trunk states were recorded."""
    view = View(task_key(name))
    if len(rows) == request.batch:
        with replay_trunk(trunk, None):
            return answer(model, name, view, request)[0]
    part, sequences = request.rows(rows), kind.rows(rows, request.inputs)
    if len(sequences) * trunk.states[0].shape[1] < _SMALL_PRODUCT:  # its own sub-batch, to the bit
        return answer(model, name, view, part)[0]
    with replay_trunk(trunk, sequences):
        return answer(model, name, view, part)[0]


def _answer_nothing(model: Parts, name: str, request: Request) -> Answer:
    """The answer to an empty batch."""
    kind, config = kind_of(record_of(model, name)), model.network.backbone.config
    prepared = kind.prepare(request.inputs, config)
    names = (*DECODER_TEXTS, "input_ids", "inputs_embeds")
    tokens = next(prepared[name] for name in names if name in prepared)
    hidden = model.network.vocabulary().parts[0].new_zeros(0, tokens.shape[1], hidden_size(config))
    return _head_answer(model, kind, View(task_key(name)), hidden, request.inputs)


class _Room:
    """Where the answers of several tasks come together. Invariant: what no task has written is minus infinity."""

    def __init__(self, kind: Kind, records: list[Any], spans: Mapping[str, slice], batch: int) -> None:
        self.kind, self.batch = kind, batch
        self.records = {record.name: record for record in records}
        self.spans = spans
        self.answer: Answer = {}

    def put(self, name: str, rows: Tensor, answer: Answer) -> None:
        """Take over one task's answer to some rows of the batch."""
        width = self.kind.width(list(self.records.values()))
        span = self.kind.span(self.records[name], self.spans)
        for part, value in answer.items():
            if part not in self.answer:
                shape = (self.batch, *value.shape[1:-1], value.shape[-1] if width is None else width)
                self.answer[part] = value.new_full(shape, -torch.inf)
            self.answer[part][rows, ..., span] = value
