"""What a model answers: one task named, or each sequence its own, named or chosen by the router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from ..configuration import TaskError
from ..kinds import default_kind, kind_of, label_spans
from ..kinds.base import TARGETS, Answer, Kind
from ..network.backbone import hidden_size
from ..network.network import MODEL_INPUTS, is_nested, pooled_states
from ..network.trunk import TrunkPass, record, replay
from ..network.vocabulary import highest_tokens
from ..views import LEARNING, View, task_key
from .life import LearningNetwork

ABSTAIN_SHARE = 0.05  # of a task's own sequences that abstain=True may turn away

# Products over fewer tokens than this round differently than over more: such small groups run the trunk themselves.
_SMALL_PRODUCT = 64

# Arguments that make sense for the subnetwork of one task only.
OF_ONE_TASK = (
    "output_hidden_states", "output_attentions", "encoder_outputs", "past_key_values", "cache", "logits_to_keep",
)  # fmt: skip


@dataclass
class RoutedOutput(ModelOutput):
    """What a batch of several tasks of one kind answers; what the kind does not answer is `None`.

    Attributes:
        logits: for tasks with labels, over the labels of all of them, in the order of `kinds.flat_labels`, and
            minus infinity outside of a sequence's own task: `(batch, labels)`, or `(batch, sequence, labels)` for
            labels of tokens. Of language models `(batch, sequence, vocabulary)`, of multiple choice
            `(batch, choices)`.
        start_logits: of question answering, `(batch, sequence)`.
        end_logits: of question answering, `(batch, sequence)`.
        last_hidden_state: of feature extraction, `(batch, sequence, hidden)`.
        pooler_output: embeddings, of feature extraction, `(batch, hidden)`.
        tasks: name of each sequence's task; `None` where the router turned it away. Its answer is still the most
            likely task's.
        router_scores: posterior of each task that the router chose among, those of one kind in the order of
            `model.tasks`, or all of them from `route`, `(batch, tasks)`; `None` if the tasks were given.
        abstained: which sequences belong to no task, `(batch,)` bool; `None` if that was not asked.
        outlier_scores: how far each sequence lies from its task, in standard deviations of the task's own sequences,
            `(batch,)`; `None` if `abstain` was not asked.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    tasks: list[str | None] | None = None
    router_scores: Tensor | None = None
    abstained: Tensor | None = None
    outlier_scores: Tensor | None = None


class AnsweringNetwork(LearningNetwork):
    """Answers. Invariant: a task's answer depends on nothing but the batch and the task's own tensors.

    Attributes:
        answers: the kind of tasks that are routed among where no task is named; `None` stands for the kind that
            `default_kind` says.
    """

    answers: ClassVar[str | None] = None

    @property
    def answering(self) -> str:
        """The kind of tasks that are routed among where no task is named."""
        return self.answers or default_kind(self.config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        pair_input_ids: Tensor | None = None,
        pair_attention_mask: Tensor | None = None,
        pair_token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        task: str | Sequence[str] | None = None,
        abstain: bool | float = False,
        return_dict: bool | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """Run one task's subnetwork, or several, each on its own sequences.

        Without a task, the router chooses one for each sequence; but while a task is being learned, that one runs.

        Args:
            input_ids: token ids, `(batch, sequence)`; for multiple choice `(batch, choices, sequence)`, as all others.
            attention_mask: 1 for real tokens, 0 for padding, `(batch, sequence)`.
            token_type_ids: `(batch, sequence)`; ignored by backbones without them.
            position_ids: `(batch, sequence)`.
            inputs_embeds: in place of `input_ids`, `(batch, sequence, hidden)`.
            decoder_input_ids: what an encoder-decoder's decoder reads, `(batch, target sequence)`; made from `labels`,
                or for kinds that do not write text from `input_ids`, if not given.
            decoder_attention_mask: `(batch, target sequence)`.
            pair_input_ids: the other text of a pair of sentences, for feature extraction, `(batch, pair sequence)`.
            pair_attention_mask: `(batch, pair sequence)`.
            pair_token_type_ids: `(batch, pair sequence)`.
            labels: what the loss is computed from, see docs/kinds.md: `(batch,)` int64 for a label per sequence;
                `(batch, labels)` float for multi-label; `(batch,)` or `(batch, targets)` float for regression;
                `(batch, sequence)` int64 for a label or a token per token, -100 where there is none.
            start_positions: first token of the answer to a question, `(batch,)` int64.
            end_positions: last token of the answer to a question, `(batch,)` int64.
            task: name of the task; or a list with the name of a committed task per sequence, all of one kind; or
                `None`, see above.
            abstain: whether the router may answer that a sequence belongs to no task. A number is the share of a
                task's own sequences that may be turned away, `True` stands for 0.05.
            return_dict: `False` for a tuple; as the configuration says by default.
            encoder_outputs: what an encoder-decoder's encoder put out for the same task, in place of `input_ids`.
            past_key_values: cache of the tokens before these, by the same task; newer versions of transformers call
                it `cache`, which is taken, too.
            use_cache: whether to return the cache; as `past_key_values` was given by default.
            logits_to_keep: for how many tokens at the end of each sequence a language model scores the vocabulary, or
                their places; 0 means all.
            kwargs: further arguments for the backbone, such as `output_hidden_states`.

        Returns:
            With one task: what its kind answers (`Kind.output_class`), with the `loss` if there are targets. Else a
            `RoutedOutput`.

        Raises:
            TaskError: if a task is unknown, none is committed, or the list has another length than the batch or names
                tasks of several kinds.
            ValueError: if targets do not fit the task, or are given without one; if a sequence to be routed has no
                token.
        """
        view = kwargs.pop("view", None)
        state = {"encoder_outputs": encoder_outputs, "past_key_values": past_key_values, "use_cache": use_cache}
        kwargs.update((key, value) for key, value in state.items() if value is not None)
        if isinstance(logits_to_keep, Tensor) or logits_to_keep:
            kwargs["logits_to_keep"] = logits_to_keep
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
        }
        pair = {
            "input_ids": pair_input_ids,
            "attention_mask": pair_attention_mask,
            "token_type_ids": pair_token_type_ids,
        }
        given = zip(TARGETS, (labels, start_positions, end_positions), strict=True)
        targets = {name: value for name, value in given if value is not None}
        use_dict = self.config.return_dict if return_dict is None else return_dict
        is_routed = task is None and view is None and self.learner is None and (len(self._among()) > 1 or abstain)
        if is_routed or isinstance(task, (list, tuple)):
            if targets:
                raise ValueError(
                    f"{next(iter(targets)).capitalize()} were given, but no single task that they belong to. Pass "
                    "task='<name>'."
                )
            routed = self._answer_each(cast(Sequence[str] | None, task), abstain, inputs, **kwargs)
            return routed if use_dict else routed.to_tuple()
        if abstain and view is None:
            raise ValueError(
                "abstain lets the router turn sequences away, but here it does not choose: leave out task=, and wait "
                "until no task is being learned."
            )
        if view is None:
            name = self._resolve_task(cast(str | None, task))
            view = self._view(name)
        else:
            assert self.learner is not None
            name = self.learner.name
        result = self._answer_one(name, view, inputs, pair, targets, **kwargs)
        return result if use_dict else result.to_tuple()

    def _answer_one(
        self,
        name: str,
        view: View,
        inputs: dict[str, Tensor | None],
        pair: dict[str, Tensor | None],
        targets: dict[str, Tensor],
        **kwargs: Any,
    ) -> ModelOutput:
        """Run one task on a batch, and compute its loss if there are targets."""
        record = self.record(name)
        kind = kind_of(record)
        kind.check_targets(record, targets)
        given = {key: value for key, value in inputs.items() if value is not None}
        given = kind.complete_inputs(record, given, targets, self.backbone.config)
        answer, output = self._answer(name, view, given, **kwargs)
        if pair["input_ids"] is not None:
            targets = {**targets, **kind.pair_targets(record, lambda: self._answer(name, view, pair, **kwargs)[0])}
        loss = None
        if targets:
            loss = kind.loss(record, answer, targets)
            if view.key == LEARNING and self.training:
                loss = self._distil(loss, answer, name, targets, {**given, **kwargs})
        return kind.output(loss, answer, targets, output)

    def _view(self, name: str) -> View:
        if self.learner is None or name != self.learner.name:
            return View(task_key(name))
        return View(LEARNING, probe=self.learner.active_probe if self.training else None)

    def _distil(
        self, loss: Tensor, answer: Answer, name: str, targets: Mapping[str, Tensor], inputs: dict[str, Any]
    ) -> Tensor:
        """Mix in the distance from the answer of the task's own unpruned network (Hinton et al., arXiv 1503.02531)."""
        assert self.learner is not None
        teacher, config = self.learner.teacher(), self.learner.config
        if not teacher:
            return loss
        with torch.no_grad(), self._in_eval_mode():
            view = View(LEARNING, teacher=True)
            output = torch.func.functional_call(self, teacher, kwargs={**inputs, "view": view, "return_dict": True})
        record = self.record(name)
        kind = kind_of(record)
        wanted = {part: output[part] for part in kind.outputs}
        distance = kind.distance(record, answer, wanted, targets, config.temperature)
        return (1 - config.distillation) * loss + config.distillation * distance

    # -- which task -----------------------------------------------------------------------------------------------

    def _among(self, task_type: str | None = None) -> list[str]:
        """The tasks of a kind that the model answers for, in commit order."""
        task_type = task_type or self.answering
        return [name for name in self.tasks if self.record(name).task_type == task_type]

    def _resolve_task(self, task: str | None) -> str:
        """The task that a forward pass is for: the one given, the one being learned, or the only one of its kind."""
        if task is None:
            if self.learner is not None:
                return self.learner.name
            among = self._among()
            if not among:
                raise self._nothing_to_answer()
            return among[0]
        if not isinstance(task, str):
            raise TaskError(
                f"task={task!r}: expected the name of a task, a list with one name per sequence, or nothing, to let "
                f"the router choose. Committed are {self.tasks}."
            )
        if task in self.tasks or task == self.learning:
            return task
        if task in self._pending:
            raise TaskError(f"The task '{task}' has been added, but not learned. Train it with EideticTrainer.")
        raise TaskError(f"There is no task '{task}'. Committed are {self.tasks}.")

    def _nothing_to_answer(self) -> TaskError:
        if not self.tasks:
            return TaskError("No task is committed, so there is nothing to answer. Learn one with EideticTrainer.")
        kinds = {name: self.record(name).task_type for name in self.tasks}
        loaders = sorted({f"{kind}: {kind_of(kind).auto_class}" for kind in kinds.values()})
        return TaskError(
            f"{type(self).__name__} without task= answers {self.answering}, and no such task is committed; there are "
            f"{kinds}. Pass task='<name>', or load the checkpoint for another kind ({', '.join(loaders)})."
        )

    def _check_list(self, tasks: Sequence[Any], batch: int) -> list[str]:
        """A list of tasks, one per sequence, if they are committed and of one kind."""
        names = [self._check_listed(name) for name in tasks]
        if len(names) != batch:
            raise TaskError(f"task= has {len(names)} names for a batch of {batch} sequences; expected one for each.")
        first: dict[str, str] = {}
        for name in names:
            first.setdefault(self.record(name).task_type, name)
        if len(first) > 1:
            (one, a), (other, b) = list(first.items())[:2]
            raise TaskError(
                f"task= lists tasks of several kinds: '{a}' ({one}) and '{b}' ({other}). What they answer has "
                "different shapes; give each kind a batch of its own."
            )
        return names

    def _check_listed(self, name: Any) -> str:
        """A name in a list of tasks, if it is a committed task's."""
        if name == self.learning and name is not None:
            raise TaskError(f"The task '{name}' is being learned: a list may name committed tasks only, {self.tasks}.")
        if not isinstance(name, str):
            raise TaskError(f"task= lists {name!r}, expected names of tasks, of {self.tasks}.")
        return self._resolve_task(name)

    # -- several tasks in a batch ---------------------------------------------------------------------------------

    def _answer_each(
        self, tasks: Sequence[str] | None, abstain: bool | float, inputs: Mapping[str, Tensor | None], **kwargs: Any
    ) -> RoutedOutput:
        """Run each sequence's task on it, the one given or the one that the router chooses; the trunk runs once."""
        wanted = [name for name in OF_ONE_TASK if kwargs.get(name) is not None and kwargs[name] is not False]
        if wanted:
            raise ValueError(
                f"{wanted[0]} with several tasks in a batch: their subnetworks have different shapes. Pass "
                "task='<name>' for one of them."
            )
        given = {name: value for name, value in inputs.items() if value is not None}
        batch = _batch_size(given)
        _check_share(abstain)
        if tasks is not None:
            if abstain:
                raise ValueError("abstain lets the router turn sequences away, but the tasks were given.")
            tasks = self._check_list(tasks, batch)
        among = self._among(self.record(tasks[0]).task_type if tasks else None)
        if not among:
            raise self._nothing_to_answer()
        kind = kind_of(self.record(among[0]))
        given = kind.complete_inputs(self.record(among[0]), given, {}, self.backbone.config)
        trunk = TrunkPass()
        if batch:
            with record() as trunk:
                self._run(_of_router(among[0]), kind.prepare(given, self.backbone.config), **kwargs)
        if tasks is None:
            result = self._route(trunk, given, abstain, among)
            tasks = _most_likely(cast(Tensor, result.router_scores), among)
        else:
            result = RoutedOutput(tasks=list(tasks))
        room = _Room(kind, [self.record(name) for name in among], label_spans(self.config, kind.name), batch)
        for name in dict.fromkeys(tasks):
            rows = torch.tensor([row for row, other in enumerate(tasks) if other == name], device=self.device)
            room.put(name, rows, self._answer_rows(name, kind, rows, trunk, given, **kwargs))
        if not batch:
            room.put(among[0], torch.zeros(0, dtype=torch.long), self._answer_nothing(among[0], given))
        return replace(result, **cast(dict[str, Any], room.answer))

    def _answer_rows(
        self, name: str, kind: Kind, rows: Tensor, trunk: TrunkPass, inputs: Mapping[str, Tensor], **kwargs: Any
    ) -> Answer:
        """One task's answer to some rows of a batch whose trunk states were recorded."""
        batch = _batch_size(inputs)
        view = View(task_key(name))
        if len(rows) == batch:
            with replay(trunk, None):
                return self._answer(name, view, inputs, **kwargs)[0]
        part, arguments = (
            {key: value[rows] if _is_batched(value, batch) else value for key, value in values.items()}
            for values in (inputs, kwargs)
        )
        sequences = kind.rows(rows, inputs)
        if len(sequences) * trunk.states[0].shape[1] < _SMALL_PRODUCT:  # its own sub-batch, to the bit
            return self._answer(name, view, part, **arguments)[0]
        with replay(trunk, sequences):
            return self._answer(name, view, part, **arguments)[0]

    def _answer_nothing(self, name: str, inputs: Mapping[str, Tensor]) -> Answer:
        """The answer to an empty batch."""
        prepared = kind_of(self.record(name)).prepare(inputs, self.backbone.config)
        names = ("decoder_input_ids", "input_ids", "inputs_embeds")
        tokens = next(prepared[name] for name in names if name in prepared)
        hidden = self._vocabulary().new_zeros(0, tokens.shape[1], hidden_size(self.backbone.config))
        return self._head(name, View(task_key(name)), hidden, inputs)

    # -- the router's choice --------------------------------------------------------------------------------------

    @torch.no_grad()
    def route(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        abstain: bool | float = False,
    ) -> RoutedOutput:
        """Say which task each sequence belongs to, of whatever kind, without answering it.

        The trunk runs, and nothing above it.

        Args:
            input_ids: token ids, `(batch, sequence)`, or `(batch, choices, sequence)`, as all others: the choices of
                an example are then routed together.
            attention_mask: 1 for real tokens, 0 for padding, `(batch, sequence)`.
            token_type_ids: `(batch, sequence)`; ignored by backbones without them.
            position_ids: `(batch, sequence)`.
            inputs_embeds: in place of `input_ids`, `(batch, sequence, hidden)`.
            abstain: as in `forward`.

        Returns:
            What `forward` returns without a task, but the answer; the scores are over all of `model.tasks`.

        Raises:
            TaskError: if no task is committed, or one was committed without router sums.
            ValueError: if a sequence has no token, or `abstain` is no share.
        """
        _check_share(abstain)
        if not self.tasks:
            raise self._nothing_to_answer()
        values = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        given = {name: value for name, value in zip(MODEL_INPUTS, values, strict=True) if value is not None}
        trunk = TrunkPass()
        if _batch_size(given):
            flat = {name: value.flatten(0, 1) if is_nested(given) else value for name, value in given.items()}
            with record() as trunk:
                self._run(_of_router(self.tasks[0]), flat)
        return self._route(trunk, given, abstain, self.tasks)

    @torch.no_grad()
    def _route(
        self, trunk: TrunkPass, inputs: Mapping[str, Tensor], abstain: bool | float, among: list[str]
    ) -> RoutedOutput:
        """The router's choice among some tasks for each sequence of a recorded batch."""
        discriminant = self.router.discriminant(among)
        if not trunk.states:
            scores = torch.zeros(0, len(among), device=self.device)
            if not abstain:
                return RoutedOutput(tasks=[], router_scores=scores)
            return RoutedOutput(
                tasks=[], router_scores=scores, abstained=scores[:, 0].bool(), outlier_scores=scores[:, 0]
            )
        mask = inputs.get("attention_mask")
        empty = [] if mask is None else (mask.flatten(1).sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"The sequences {empty} have no token (attention_mask is 0): nothing to route.")
        features = self.router.features(pooled_states(trunk, inputs, self.backbone.config))
        scores = self._known(discriminant.log_posteriors(features, among), inputs, among).exp()
        best = _most_likely(scores, among)
        if not abstain:
            return RoutedOutput(tasks=list(best), router_scores=scores)
        outliers = self.router.outlier_scores(features, best, among)
        abstained = outliers > NormalDist().inv_cdf(1 - (ABSTAIN_SHARE if abstain is True else abstain))
        return RoutedOutput(
            tasks=[None if away else name for away, name in zip(abstained.tolist(), best, strict=True)],
            router_scores=scores,
            abstained=abstained,
            outlier_scores=outliers,
        )

    def _known(self, scores: Tensor, inputs: Mapping[str, Tensor], among: list[str]) -> Tensor:
        """Log posteriors `(batch, tasks)` without the tasks that do not know a token of the sequence."""
        highest = highest_tokens(inputs) if self.input_rows.has_grown else None
        if highest is None:
            return scores
        sizes = [self.input_rows.size(View(task_key(name))) for name in among]
        unknown = (highest.unsqueeze(1) >= torch.tensor(sizes, device=highest.device)).to(scores.device)
        nobodys = unknown.all(1).nonzero().flatten().tolist()
        if nobodys:
            row = nobodys[0]
            raise ValueError(
                f"The sequence {row} holds the token {int(highest[row])}, which no task knows: {among} know "
                f"{max(sizes)} tokens, 0 to {max(sizes) - 1}. Learn a task with it, or leave it out."
            )
        left = scores.masked_fill(unknown, -torch.inf).log_softmax(1)
        return torch.where(unknown.any(1, keepdim=True), left, scores)


def _of_router(name: str) -> View:
    """The view that the trunk is run with for all tasks; none of the one named is read."""
    return View(task_key(name), whole_vocabulary=True)


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


def _most_likely(scores: Tensor, among: list[str]) -> list[str]:
    """The likeliest task of each sequence, turned away or not."""
    return [among[index] for index in scores.argmax(-1).tolist()]


def _batch_size(inputs: Mapping[str, Any]) -> int:
    return len(next((inputs[name] for name in ("input_ids", "inputs_embeds") if name in inputs), ()))


def _check_share(abstain: bool | float) -> None:
    if not isinstance(abstain, bool) and not 0 < abstain < 1:
        raise ValueError(f"abstain={abstain!r}: expected True, False or a share between 0 and 1.")


def _is_batched(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch
