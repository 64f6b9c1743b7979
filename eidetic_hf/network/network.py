"""What every part of an `EideticModel` shares: its state, and the questions that are answered from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration import EideticConfig, TaskError, TaskRecord
from ..kinds import kind_of
from ..kinds.base import Answer
from ..model.learner import Learner
from ..model.pruning import KINDS
from ..model.router import Router
from ..views import LEARNING, POOL, TRUNK, View, current_view, owner_of, task_key, use_view
from .backbone import ENCODER, family_of
from .layers import TaskLinear, TaskNorm
from .storage import Slots
from .trunk import TrunkPass, pool_states
from .units import UnitGroup
from .vocabulary import LateRows
from .wiring import fixed_buffers

# Modules whose tensors a checkpoint brings along, in shapes of their own.
WITHOUT_ROOM = ("probes.", "router.")
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")


def is_nested(inputs: Mapping[str, Tensor]) -> bool:
    """Whether each row of a batch holds several sequences, as in multiple choice."""
    dims = {"input_ids": 2, "inputs_embeds": 3}
    return any(inputs[name].dim() > dim for name, dim in dims.items() if inputs.get(name) is not None)


def pooled_states(trunk: TrunkPass, inputs: Mapping[str, Tensor], config: PreTrainedConfig) -> Tensor:
    """What recorded trunk states say of each row of a batch, `(batch, parts, hidden)`; see `pool_states`.

    Of several sequences in a row each counts for as much as it has tokens, in whatever order they stand.
    """
    mask, is_several = inputs.get("attention_mask"), is_nested(inputs)
    flat = mask.flatten(0, 1) if is_several and mask is not None else mask
    pooled = torch.stack(pool_states(trunk.states, flat, "first" if family_of(config) == ENCODER else "last"), 1)
    if not is_several:
        return pooled
    batch = len(inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"])
    pooled = pooled.unflatten(0, (batch, -1))
    weights = pooled.new_ones(pooled.shape[:2]) if mask is None else mask.sum(2).float()
    return (pooled * weights[:, :, None, None]).sum(1) / weights.sum(1).clamp(min=1)[:, None, None]


class CheckpointWithView:
    """Gradient checkpointing whose replay, in the backward pass and outside of `forward`, runs the same task."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, layer: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run a layer so that it is computed again in the backward pass."""
        view = current_view()

        def replayed(*a: Any, **k: Any) -> Any:
            with use_view(view):
                return layer(*a, **k)

        return self.function(replayed, *args, **kwargs)


class TaskNetwork(PreTrainedModel):
    """A backbone in which tasks own units. `EideticModel` makes it; what it learns and answers builds on it.

    Attributes:
        backbone: the base model, with task layers above its trunk.
        groups: the books of units, by name.
        heads: one per task, and one of the task being learned.
        language_head: the pretrained language-model head, from which those of tasks start, if there was one.
        output_embeddings: the `weight` that scores tokens, where it is not the input embeddings'.
        input_rows: rows of the input embeddings that the vocabulary has grown by.
        output_rows: the same for `output_embeddings`.
        probes: what each task's certificate compares with.
        router: says which task a sequence belongs to.
        learner: state of the task being learned.
    """

    config: EideticConfig
    backbone: PreTrainedModel
    groups: nn.ModuleDict
    heads: nn.ModuleDict
    language_head: nn.ModuleDict
    output_embeddings: Slots
    input_rows: LateRows
    output_rows: LateRows
    probes: nn.ModuleDict
    router: Router
    learner: Learner | None
    _pending: dict[str, TaskRecord]
    _transfer: dict[str, str | list[str]]
    _thawed: dict[str, Tensor] | None

    if TYPE_CHECKING:

        def _run(self, view: View, inputs: Mapping[str, Any], **kwargs: Any) -> Any: ...

        def _trunk(self, inputs: Mapping[str, Any]) -> TrunkPass: ...

        def _set_labels(self) -> None: ...

    # -- tasks ----------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """Names of the committed tasks that the model answers for, in commit order."""
        return [task.name for task in self.config.tasks if self.config.serves(task.name)]

    @property
    def learning(self) -> str | None:
        """Name of the task that is being learned."""
        return self.learner.name if self.learner is not None else None

    def record(self, name: str) -> TaskRecord:
        """What is known of a task, committed or only added.

        Raises:
            TaskError: if there is no task of this name.
        """
        for task in [*self.config.tasks, *self._pending.values()]:
            if task.name == name:
                return task
        raise TaskError(
            f"There is no task '{name}'; committed are {self.tasks}, added {list(self._pending)}. Add it with "
            f"model.add_task({name!r}, labels=[...])."
        )

    def is_committed(self, name: str) -> bool:
        """Whether a task has been learned."""
        return any(task.name == name for task in self.config.tasks)

    def task_of(self, view: View) -> str:
        """Name of the task that a view is of.

        Raises:
            KeyError: if it is of none, such as the whole model's before a task begins.
        """
        names = {task_key(task.name): task.name for task in self.config.tasks}
        return names[view.key] if self.learning is None or view.key != LEARNING else self.learning

    def _groups(self) -> list[UnitGroup]:
        return cast(list[UnitGroup], list(self.groups.values()))

    def _norms(self) -> list[TaskNorm]:
        return [module for module in self.backbone.modules() if isinstance(module, TaskNorm)]

    def pack(self) -> None:
        """Lay every projection's segments into one aligned tensor each."""
        for module in self.modules():
            if isinstance(module, (TaskLinear, LateRows)):
                module.pack()

    def capacity(self) -> dict[str, Any]:
        """How the units are shared out.

        Returns:
            `total` and `free` numbers of units, `free_share`, `free_share_by_kind` (heads, neurons, and `cross_heads`
            in an encoder-decoder), `owned` per task, and `groups`: per unit group, the units of each task and of
            `"free"`.
        """
        names = [task.name for task in self.config.tasks]
        groups = {
            group.name: {**{name: group.count(task_key(name)) for name in names}, "free": group.count(POOL)}
            for group in self._groups()
        }
        by_kind = {}
        for kind in KINDS:
            rows = [row for name, row in groups.items() if name.endswith(f".{kind}")]
            if not rows:
                continue
            by_kind[kind] = sum(row["free"] for row in rows) / max(sum(sum(row.values()) for row in rows), 1)
        total = sum(sum(row.values()) for row in groups.values())
        free = sum(row["free"] for row in groups.values())
        return {
            "total": total,
            "free": free,
            "free_share": free / max(total, 1),
            "free_share_by_kind": by_kind,
            "owned": {name: sum(row[name] for row in groups.values()) for name in names},
            "groups": groups,
        }

    def task_tensors(self, name: str) -> dict[str, Tensor]:
        """The closed set: every tensor that a committed task's output reads, by its name in the state dict.

        All others may hold anything, NaN included, and the task's logits stay the same bit for bit.

        Raises:
            TaskError: if the task is not committed.
        """
        record = self.record(name)
        if not self.is_committed(name):
            raise TaskError(f"The task '{name}' is not committed yet: its tensors still change.")
        own, reads_output = task_key(name), kind_of(record).reads_output_embeddings(record)
        inherited = {task_key(ancestor) for ancestor in record.ancestors}
        tokens = record.vocab_size or 0
        late = {"input_rows": set(self.input_rows.owners(tokens)), "output_rows": set()}
        if reads_output:
            late["output_rows"] = set(self.output_rows.owners(tokens))
        tensors = {}
        for tensor_name, tensor in self.state_dict(keep_vars=True).items():
            owner = owner_of(tensor_name)
            if tensor_name.startswith(WITHOUT_ROOM) or ".units." in tensor_name:
                continue
            if tensor_name.startswith("output_embeddings.") and not reads_output:
                continue
            if tensor_name.partition(".")[0] in late:
                if owner in late[tensor_name.partition(".")[0]]:
                    tensors[tensor_name] = tensor
                continue
            if owner in (TRUNK, own) or (owner in inherited and ".segments." in tensor_name):
                tensors[tensor_name] = tensor
        return tensors

    # -- one task's answer ----------------------------------------------------------------------------------------

    def _answer(self, name: str, view: View, inputs: Mapping[str, Any], **kwargs: Any) -> tuple[Answer, Any]:
        """Run one task's subnetwork and its head on a batch.

        Args:
            name: the task.
            view: of the task, see `View`.
            inputs: the batch, as `forward` was given it.
            kwargs: further arguments for the backbone.

        Returns:
            The answer by name, and the backbone's output.
        """
        kind = kind_of(self.record(name))
        prepared = kind.prepare(inputs, self.backbone.config)
        if view.probe is not None:
            view = replace(view, token_mask=prepared.get("attention_mask"))
        kept = kwargs.pop("logits_to_keep", 0)
        output = self._run(view, prepared, **kwargs)
        hidden = output.last_hidden_state
        if kind.reads_vocabulary:  # scoring every token of a prompt is most of the work
            hidden = hidden[:, kept if isinstance(kept, Tensor) else slice(-kept if kept else None, None)]
        return self._head(name, view, hidden, inputs), output

    def _head(self, name: str, view: View, hidden: Tensor, inputs: Mapping[str, Any]) -> Answer:
        """What a task's head makes of hidden states, `(sequences, tokens, hidden)`."""
        kind = kind_of(self.record(name))
        vocabulary = self._tables()[-1].table(view if kind.reads_vocabulary else None)
        return kind.answer(self.heads[view.key], hidden, inputs, cast(Any, vocabulary))

    @torch.no_grad()
    def _pooled_trunk(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the router sees of each row of a batch, `(batch, parts, hidden)`."""
        flat = {name: value.flatten(0, 1) if is_nested(inputs) else value for name, value in inputs.items()}
        return pooled_states(self._trunk(flat), inputs, self.backbone.config)

    def _new_head(self, task: TaskRecord) -> nn.Module:
        """A head with initial weights."""
        return kind_of(task).make_head(self.backbone.config, task).to(device=self.device, dtype=self.dtype)

    def _tables(self) -> list[LateRows]:
        """The tables of embeddings that grow with the vocabulary."""
        return [self.input_rows, *([] if self.output_embeddings.get("weight") is None else [self.output_rows])]

    def _vocabulary(self, view: View | None = None) -> Tensor:
        """The output embeddings, `(tokens, embedding)`: the input embeddings, unless the backbone has others.

        Those that a view knows, if one is given.
        """
        return self._tables()[-1].seen(view)

    # -- what a PreTrainedModel derives from Parameters -------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the network's tensors."""
        return next(self.buffers()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's floating-point tensors."""
        return next(
            buffer.dtype
            for module in self.backbone.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_floating_point() and name not in module._non_persistent_buffers_set
        )

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        """Move or cast the network; what is computed from the configuration keeps its dtype."""
        fixed = fixed_buffers(self.backbone)
        super()._apply(fn, recurse)
        for module, name, buffer in fixed:
            module._buffers[name] = buffer.to(cast(Tensor, module._buffers[name]).device)
        for rows in (self.input_rows, self.output_rows):
            if not rows.is_packed():  # moved to another device or dtype, piece by piece
                rows.pack()
        return self

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights: trainable ones while a task is being learned, and all frozen ones."""
        count = super().num_parameters(only_trainable, exclude_embeddings)
        if only_trainable:
            return count
        embeddings = {f"{n}.weight" for n, m in self.named_modules() if isinstance(m, nn.Embedding)}
        for name, buffer in self.named_buffers():
            is_weight = buffer.is_floating_point() and not name.startswith(("probes.", "router.", "learner."))
            if is_weight and not (exclude_embeddings and name in embeddings):
                count += buffer.numel()
        return count

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embeddings."""
        return self.backbone.get_input_embeddings()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recompute activations in the backward pass.

        Always the non-reentrant kind: the reentrant one passes no gradient behind a trunk that has no Parameter.
        """
        gradient_checkpointing_kwargs = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        super().gradient_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, every_n_layers: int = 1
    ) -> None:
        function = CheckpointWithView(gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, function, every_n_layers)

    @contextmanager
    def _in_eval_mode(self) -> Iterator[None]:
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)
