"""Learning a task with the `Trainer`: one `train()` call fits, prunes, recovers and commits."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any, cast

import torch
from transformers import EvalPrediction, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback, TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput

from .callback import EideticCallback, leave_autocast, progress_of, unwrapped
from .configuration import TaskRecord
from .kinds import kind_of
from .kinds.checks import is_dataset
from .kinds.collators import LABELS
from .model.model import EideticModel
from .model.pruning import PruningConfig


class EideticProgressCallback(ProgressCallback):
    """The Trainer's progress bar, with the phase and the share of free units kept."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the bar."""
        super().on_step_end(args, state, control, **kwargs)
        learner = unwrapped(kwargs["model"]).learner
        if self.training_bar is not None and learner is not None:
            phase = learner.phase(state.global_step)
            self.training_bar.set_postfix(task=learner.name, phase=phase, units=f"{learner.kept_share():.0%}")


def task_metrics(record: TaskRecord, prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of a task from its answers, as its kind defines them (see docs/kinds.md).

    Args:
        record: the task.
        prediction: what an evaluation collected of the answers, and the labels as `EideticModel.forward` takes them.
    """
    kind, predictions = kind_of(record), prediction.predictions
    if isinstance(predictions, tuple) and len(kind.outputs) == 1:
        predictions = predictions[0]
    return kind.metrics(record, predictions, prediction.label_ids)


class EideticTrainer(Trainer):
    """A `Trainer` that learns one task of an `EideticModel`.

    `train()` begins the task, fits, prunes, recovers and commits; if it fails or is interrupted, the model is as it
    was before. `evaluate` and `predict` run that task, before and after the commit.

    Args:
        model: the model.
        task: name of a task that was added with `model.add_task`.
        args: as for the `Trainer`.
        pruning: how to cut out the task's subnetwork.
        router_dataset: as for the `EideticCallback`.
        kwargs: as for the `Trainer`. The kind of task gives `data_collator`, `compute_metrics` and, together with
            that, `preprocess_logits_for_metrics`, where they are not given (see docs/kinds.md).

    Raises:
        TaskError: if there is no such task.
        ValueError: if a data set is empty, or has labels that do not fit the task; if `label_smoothing_factor` is set
            for a kind of task that the `Trainer` would smooth wrongly.
    """

    model: EideticModel

    def __init__(
        self,
        model: EideticModel,
        task: str,
        args: TrainingArguments | None = None,
        pruning: PruningConfig | None = None,
        router_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, EideticModel):
            raise TypeError(f"EideticTrainer needs an EideticModel, got {type(model).__name__}. Make one with "
                            "EideticModel.from_backbone(...).")  # fmt: skip
        self.task = task
        begun = model.learner if model.learning == task else None
        self.pruning = pruning or (PruningConfig() if begun is None else begun.config)
        self.router_dataset = router_dataset
        record = model.record(task)
        for name in ("train_dataset", "eval_dataset", "router_dataset"):
            parts = router_dataset if name == "router_dataset" else kwargs.get(name)
            for part in parts.values() if isinstance(parts, dict) else [parts]:
                _check_dataset(record, name, part)
        self.kind = kind_of(record)
        if kwargs.get("data_collator") is None:
            tokenizer = kwargs.get("processing_class")
            if not isinstance(tokenizer, PreTrainedTokenizerBase):
                tokenizer = None
                _check_labels_are_given(record, kwargs.get("train_dataset"))
            kwargs["data_collator"] = self.kind.collator(tokenizer)
        if "compute_metrics" not in kwargs:
            kwargs["compute_metrics"] = functools.partial(task_metrics, record)
            kwargs.setdefault("preprocess_logits_for_metrics", functools.partial(self.kind.reduce, record))
        if args is not None:
            args = copy.copy(args)  # the caller's stay as they are
            if args.ddp_broadcast_buffers is None:
                args.ddp_broadcast_buffers = False  # only importance sums differ, which each rank keeps for itself
        super().__init__(model=model, args=args, **kwargs)
        if self.label_smoother is not None and not self.kind.can_smooth(record):
            raise ValueError(
                f"label_smoothing_factor={self.args.label_smoothing_factor}: the Trainer would smooth the labels of "
                f"{self.kind.name} wrongly, as it does not know what they stand for. Leave it out."
            )
        if self.args.label_names is None:
            self.label_names = list(self.kind.targets)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs are visible to one process, which the Trainer would use through "
                "DataParallel. Start a process per GPU with `accelerate launch` or `torchrun`, or set "
                "CUDA_VISIBLE_DEVICES=0."
            )
        self._replace_progress_bar()
        self.add_callback(_PhaseCallback(task, self.pruning, router_dataset))

    def _replace_progress_bar(self) -> None:
        """Show the phase in the progress bar, where there is one."""
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(EideticProgressCallback)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Learn the task and commit it (see `Trainer.train`).

        Raises:
            TaskError: if the task is committed already, or another one is being learned.
            ValueError: if there is nothing to train on.
        """
        model = self.model
        if self.train_dataset is None:
            raise ValueError("EideticTrainer.train needs a train_dataset.")
        if self.pruning.tolerance is not None and self.eval_dataset is None:
            raise ValueError(
                "PruningConfig(tolerance=...) compares validation metrics: give the trainer an eval_dataset."
            )
        if model.learner is None or model.learning != self.task:
            model.begin_task(self.task, self.pruning)
        elif model.learner.config != self.pruning:
            model.learner.reconfigure(self.pruning)
        # Last in line, so that it sees what an early stop decided, wherever that callback was added.
        self.add_callback(
            self.pop_callback(_PhaseCallback) or _PhaseCallback(self.task, self.pruning, self.router_dataset)
        )
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        except BaseException:
            leave_autocast(model)
            model.abandon_task()
            raise
        finally:
            # Their Parameters are no longer the model's.
            self.optimizer = self.lr_scheduler = None
            self.model_wrapped = model
            self.accelerator.free_memory()

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Log with the phase and the share of free units kept."""
        super().log({**logs, **progress_of(self.model, self.state.global_step)}, start_time)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {**super()._prepare_inputs(inputs), "task": self.task}

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Answer a batch in an evaluation (see `Trainer.prediction_step`), and collect what the kind measures."""
        if self.kind.optional_targets and self.args.label_names is None:
            self.label_names = [name for name in self.kind.targets if inputs.get(name) is not None]
            self.can_return_loss = any(name.startswith("pair_") for name in inputs)
        if ignore_keys is None:
            outputs = {field.name for field in dataclasses.fields(cast(Any, self.kind.output_class))}
            ignore_keys = sorted(outputs - set(self.kind.measured or self.kind.outputs) - {"loss"})
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)


class _PhaseCallback(EideticCallback):
    """The callback of an `EideticTrainer`, which begins the task in `train()`."""

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        pass


def _check_dataset(record: TaskRecord, name: str, data: Any) -> None:
    """Raise if a data set can not teach a task: no rows, or labels that do not fit it."""
    if data is None or not hasattr(data, "__len__"):
        return
    if len(data) == 0:
        raise ValueError(f"Task '{record.name}': the {name} is empty.")
    if is_dataset(data):
        kind_of(record).check_dataset(record, name, data)


def _check_labels_are_given(record: TaskRecord, data: Any) -> None:
    """Raise if labels are to be made of the tokens, and nobody is there to do it."""
    if kind_of(record).makes_labels and is_dataset(data) and not set(LABELS) & set(data.column_names):
        raise ValueError(
            f"Task '{record.name}' ({record.task_type}): the train_dataset has no labels, and no tokenizer to make "
            "them with. Pass processing_class=tokenizer, or a column 'labels'."
        )
