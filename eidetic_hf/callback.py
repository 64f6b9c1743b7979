"""The phases of a task inside any `Trainer`: fit, prune, recover, commit."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.utils import logging

from .configuration import TaskError
from .kinds.collators import LABELS
from .model.checkpoint.layout import CheckpointError
from .model.model import EideticModel
from .model.pruning import PruningConfig
from .model.router import RouterSums

logger = logging.get_logger(__name__)


class EideticCallback(TrainerCallback):
    """Drives the phases of a task inside any `transformers.Trainer`.

    `EideticTrainer` adds it by itself. With another Trainer, pass it last: `Trainer(model=model, ...,
    callbacks=[EideticCallback("agnews", PruningConfig(keep=0.4))])`. It then begins the task when the Trainer is made.

    Args:
        task: name of an added task.
        pruning: how to cut out its subnetwork; by default, of a task that was begun by hand, as it was begun.
        router_dataset: the texts by which the router comes to know the task, as the Trainer's collator takes them; by
            default the training data. For texts that stand in a template, give them as they will be asked about.
    """

    def __init__(self, task: str, pruning: PruningConfig | None = None, router_dataset: Any = None) -> None:
        self.task = task
        self.pruning = pruning or PruningConfig()
        self._is_given = pruning is not None
        self.router_dataset = router_dataset
        self._wants_evaluation = self._has_converged = False
        self._last_metrics: dict[str, float] = {}

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the task, so that the Trainer's optimizer finds its Parameters.

        Raises:
            CheckpointError: if the Trainer was to push.
        """
        if args.push_to_hub:
            self.on_push_begin(args, state, control, **kwargs)
        model = unwrapped(kwargs["model"])
        learner = model.learner
        if learner is None or learner.name != self.task:
            model.begin_task(self.task, self.pruning)
        elif self._is_given and learner.config != self.pruning:
            learner.reconfigure(self.pruning)
        model.run_task = self.task
        model.casts_are_undone = args.fp16_full_eval or args.bf16_full_eval

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lay out the phases over the run's steps."""
        model = unwrapped(kwargs["model"])
        model.undo_cast()
        learner = model.learner
        if learner is None or learner.name != self.task:
            raise TaskError(
                f"EideticCallback(task={self.task!r}): the model is learning {model.learning!r} instead. With "
                "model_init, let that function begin the task: model.begin_task(name, pruning)."
            )
        check_processes_agree(model, args, "The training can not begin")
        if state.global_step == 0 and learner.start >= 0:
            learner.restart()
        self._wants_evaluation, self._has_converged, self._last_metrics = False, False, {}
        learner.set_steps(state.max_steps, state.global_step)
        if model.network.growth.copies and state.global_step == 0 and not learner.has_chosen:
            model.choose_units(_first_batches(kwargs.get("train_dataloader")))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Switch the importance probe on or off."""
        learner = unwrapped(kwargs["model"]).learner
        assert learner is not None
        learner.active_probe = learner.probe(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prune when it is due."""
        learner = unwrapped(kwargs["model"]).learner
        assert learner is not None
        if learner.config.distillation and learner.mixes_distance and not (learner.loss_is_used or learner.complete):
            raise TaskError(
                f"PruningConfig(distillation={learner.config.distillation}) would do nothing: this Trainer does not "
                "train on the loss that the model returns, but on one of its own (label_smoothing_factor, "
                "compute_loss_func or compute_loss). Use EideticTrainer, which mixes distillation into any loss."
            )
        learner.gather_importance()
        learner.active_probe = None
        step = state.global_step
        learner.note_divergence(step)
        if learner.step(step):
            self._wants_evaluation = control.should_evaluate = True
        if step == learner.end and not learner.complete:
            # Checkpoints from before do not meet the budget: the best one is chosen among those that follow.
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None
        if learner.should_stop(step):
            control.should_training_stop = True

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise a `CheckpointError`: a Trainer pushes its checkpoints, and a card of its own, over the release."""
        raise CheckpointError(
            f"EideticCallback(task={self.task!r}): this Trainer would push checkpoints of a task that is being "
            "learned, and a model card of its own, to where the released model is. Use EideticTrainer with "
            "push_to_hub=True, or leave that out and call model.push_to_hub(repo_id) after training."
        )

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise if the model has answered for the task of another run."""
        model = unwrapped(kwargs["model"])
        if model.run_task not in (None, self.task):
            raise TaskError(
                f"EideticCallback(task={self.task!r}): since this run the model has learned '{model.run_task}' with "
                f"another Trainer, for which it answers now. Evaluate '{self.task}' with EideticTrainer(model, "
                f"task={self.task!r}, ...)."
            )

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Decide on a step of the search; turn an early stop of the fit phase into the start of pruning."""
        model = unwrapped(kwargs["model"])
        model.undo_cast()
        learner = model.learner
        metrics = kwargs.get("metrics") or {}
        self._last_metrics = {name: value for name, value in metrics.items() if name.startswith("eval_")}
        if learner is None:
            return
        step = state.global_step
        if self._wants_evaluation:
            self._wants_evaluation = False
            metric, greater = _search_metric(args, metrics)
            good = learner.evaluated(step, metric, greater)
            if good is not None:
                logger.info(f"{self.task}: metric {metric:.4f}, {'kept' if good else 'rolled back'}; "
                            f"now {learner.kept_share():.1%} of the units")  # fmt: skip
        if control.should_training_stop and learner.complete:
            self._has_converged = True  # its metric stopped improving, and there is nothing to prune
        elif control.should_training_stop and step < state.max_steps:
            phase = learner.phase(step)
            if phase == "fit":
                learner.start_pruning(step, state.max_steps)
            if phase != "recover":
                control.should_training_stop = False

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **kwargs: Any
    ) -> None:
        """Bring back what was cast for it."""
        unwrapped(kwargs["model"]).undo_cast()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say the phase and the share of free units kept, beside the loss."""
        progress = progress_of(unwrapped(kwargs["model"]), state.global_step)
        state.log_history[-1].update(progress)
        if "loss" in kwargs["logs"]:  # else they are the metrics that an evaluation is about to return, all numbers
            kwargs["logs"].update(progress)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Commit, if the run came to the end of pruning.

        A run that somebody stopped before that commits nothing: the task is still being learned. Resume it from its
        last checkpoint or train on; or drop it with `model.abandon_task()`. Where only the commit fails, or the pass
        over the data for the router, nothing is lost either: commit again, with `model.commit_task`.

        Raises:
            TaskError: if the task is trained and could not be committed.
        """
        model = unwrapped(kwargs["model"])
        leave_autocast(model)
        learner = model.learner
        assert learner is not None
        model.eval()
        if state.global_step < min(learner.end, state.max_steps) and not self._has_converged:
            step, phase = state.global_step, learner.phase(state.global_step)
            logger.warning(
                f"'{self.task}' is not committed: the run was stopped at step {step} of {state.max_steps}, in the "
                f"phase {phase!r}, before it met its budget. Train on, or drop it with model.abandon_task()."
            )
            return
        learner.trained = True
        learner.metrics = {
            name.removeprefix("eval_"): float(value)
            for name, value in self._last_metrics.items()
            if isinstance(value, (int, float)) and not name.endswith(("runtime", "per_second", "epoch"))
        }
        check_processes_agree(model, args, f"'{self.task}' is not committed")
        loader = kwargs.get("train_dataloader")
        dataset = getattr(loader, "dataset", None) if self.router_dataset is None else self.router_dataset
        try:
            sums = _router_sums(model, args, state, dataset, getattr(loader, "collate_fn", None))
        except Exception as error:
            raise TaskError(
                f"'{self.task}' is trained, but not committed: the router could not read its data ({error}). Nothing "
                "is lost: commit it with model.commit_task(router_sums=model.router_sums(batches)), or without a "
                "route with model.commit_task()."
            ) from error
        model.commit_task(router_sums=sums)
        _release(kwargs.get("optimizer"))


def unwrapped(model: torch.nn.Module) -> EideticModel:
    """The model in what a Trainer has wrapped around it."""
    model = extract_model_from_parallel(model)
    if not isinstance(model, EideticModel):
        raise TypeError(f"EideticCallback needs an EideticModel, got {type(model).__name__}.")
    return model


ROUTER_BATCH = 64
CHOOSING_BATCH, CHOOSING_ROWS = 16, 128  # of the data, evenly spread, by which units are chosen
BRANCH_ROWS = 384  # by which a branch is


def _first_batches(loader: Any) -> Iterator[dict[str, Any]]:
    """Batches to choose units by: rows from all over the data, the same on all processes."""
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if dataset is not None and collate is not None:
        yield from _batches(iter(_spread(dataset, CHOOSING_ROWS)), CHOOSING_BATCH, collate)


def _spread(dataset: Any, count: int) -> Iterator[Any]:
    """Rows from all over the data; of a stream the first ones."""
    if not hasattr(dataset, "__len__"):
        return itertools.islice(iter(dataset), count)
    count = min(len(dataset), count)
    return (dataset[number * len(dataset) // count] for number in range(count))


def branch_batches(
    model: EideticModel, args: TrainingArguments, dataset: Any, collate: Any
) -> Iterator[dict[str, Any]]:
    """Batches to choose a branch by, of rows from all over the data, shuffled, the same on all processes."""
    rows = list(_spread(dataset, BRANCH_ROWS))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed))
    rows = [rows[number] for number in order.tolist()]  # they may lie sorted by their labels
    if args.remove_unused_columns:
        rows = [_inputs_of(model, row) for row in rows]
    return _batches(iter(rows), min(CHOOSING_BATCH, max(len(rows) // 4, 1)), collate)


def _batches(rows: Iterator[Any], size: int, collate: Any) -> Iterator[dict[str, Any]]:
    """Rows in batches of some size, the last one of what is left."""
    return (collate(batch) for batch in iter(lambda: list(itertools.islice(rows, size)), []))


def _router_sums(
    model: EideticModel, args: TrainingArguments, state: TrainerState, dataset: Any, collate: Any
) -> RouterSums | None:
    """Sums over a data set, each process taking its share: in the data's order, whatever the sampler did."""
    if dataset is None or collate is None:
        logger.warning("No training data set to take router sums from: the task will have to be named to be answered.")
        return None
    if hasattr(dataset, "__len__"):
        chosen = range(args.process_index, len(dataset), args.world_size)
        rows: Iterator[Any] = (dataset[i] for i in chosen)
    else:  # a stream, perhaps without an end: as many as were trained on
        seen = state.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        rows = itertools.islice(dataset, args.process_index, seen, args.world_size)
    if args.remove_unused_columns:  # as the Trainer did with what it trained on
        rows = map(functools.partial(_inputs_of, model), rows)
    sums = model.router_sums(_batches(rows, ROUTER_BATCH, collate))
    if args.world_size > 1:
        for tensor in (sums.count, sums.total, sums.moment):
            shared = tensor.to(args.device)
            torch.distributed.all_reduce(shared)
            tensor.copy_(shared)
    return sums


def _inputs_of(model: EideticModel, row: Any) -> Any:
    """A row without the columns that nobody reads, such as the text itself: no collator could make a batch of them."""
    if not isinstance(row, Mapping):
        return row
    known = {*inspect.signature(model.forward).parameters, *model.network.arguments, *LABELS}
    return {name: value for name, value in row.items() if name in known} or row


def _release(optimizer: Any) -> None:
    """Let go of Parameters that are no longer the model's, and of what an optimizer knows of them."""
    if optimizer is not None:
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group["params"] = []


def check_processes_agree(model: EideticModel, args: TrainingArguments, otherwise: str) -> None:
    """Raise if a tensor is not the same on all processes: each would then learn a model of its own.

    Args:
        model: the model.
        args: of the run.
        otherwise: what an error begins with.

    Raises:
        TaskError: naming a tensor that differs.
    """
    if args.world_size == 1:
        return
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.numel()}
    hashes = torch.stack([torch.hash_tensor(tensor).to(args.device).view(torch.int64) for tensor in state.values()])
    lowest, highest = hashes.clone(), hashes.clone()
    torch.distributed.all_reduce(lowest, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    differ = [name for name, same in zip(state, (lowest == highest).tolist(), strict=True) if not same]
    if differ:
        raise TaskError(
            f"{otherwise}: {len(differ)} tensors are not the same on all processes, {differ[0]} among them. Make the "
            "model in the same way on each of them, from one checkpoint or with one seed."
        )


def progress_of(model: EideticModel, step: int) -> dict[str, Any]:
    """Phase and share of free units kept, for the logs; nothing when no task is being learned."""
    if model.learner is None or model.learner.start < 0:
        return {}
    return {"phase": model.learner.phase(step), "units_kept": round(model.learner.kept_share(), 4)}


def leave_autocast(model: EideticModel) -> None:
    """Undo accelerate's wrapping of `forward`, which would go on rounding outputs after mixed-precision training.

    What somebody else has put in its place, such as TRL's losses, stays.
    """
    before = model.__dict__.pop("_forward_before_autocast", None)
    if before is not None:
        model.__dict__.pop("forward", None)
        if before.__func__ is not type(model).forward:
            model.__dict__["forward"] = before


def _search_metric(args: TrainingArguments, metrics: dict[str, float]) -> tuple[float, bool]:
    """The validation metric that a search goes by, and whether more of it is better."""
    name = args.metric_for_best_model or "loss"
    name = name if name.startswith("eval_") else f"eval_{name}"
    if name not in metrics:
        raise KeyError(f"metric_for_best_model={name!r} is not among the evaluation's {sorted(metrics)}.")
    greater = args.greater_is_better
    return metrics[name], (not name.endswith("loss") if greater is None else greater)
