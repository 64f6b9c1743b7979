"""Learning a task with the `Trainer`: one `train()` call fits, prunes, recovers and commits."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from huggingface_hub import CommitInfo, HfApi, metadata_load, metadata_save
from transformers import (
    EvalPrediction,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ProgressCallback, TrainerControl, TrainerState
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    HubStrategy,
    PredictionOutput,
    TrainOutput,
    set_seed,
)
from transformers.utils import PushInProgress, logging

from .callback import EideticCallback, branch_batches, leave_autocast, progress_of, unwrapped
from .configuration import TaskRecord, plain_name
from .kinds import kind_of
from .kinds.checks import is_dataset
from .kinds.collators import LABELS
from .kinds.metrics import squad_scores
from .model import hub
from .model.branching import set_branch, wants_branch
from .model.checkpoint.layout import CARD_FILE, CONFIG_FILE, CheckpointError, json_object
from .model.model import EideticModel
from .model.pruning import PruningConfig
from .network.storage import Originals
from .views import LEARNING

logger = logging.get_logger(__name__)


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


def written_metrics(tokenizer: PreTrainedTokenizerBase, prediction: EvalPrediction) -> dict[str, float]:
    """Shares of written texts that equal the right ones, and the mean F1 of their words, both in percent.

    Args:
        tokenizer: that the texts were encoded with.
        prediction: tokens that were written, and the right ones, `(rows, tokens)`; -100 where there is none.
    """
    texts = []
    for tokens in (prediction.predictions, prediction.label_ids):
        filled = [[token for token in row if token >= 0] for row in np.asarray(tokens).tolist()]
        texts.append([text.strip() for text in tokenizer.batch_decode(filled, skip_special_tokens=True)])
    return squad_scores(texts[0], [[right] for right in texts[1]])


class EideticTrainer(Trainer):
    """A `Trainer` that learns one task of an `EideticModel`.

    `train()` begins the task, fits, prunes, recovers and commits; if it fails or is interrupted, the model is as it
    was before. `evaluate` and `predict` run that task, before and after the commit.

    Args:
        model: the model; or `model_init` makes one for every run, see `kwargs`.
        task: name of a task that was added with `model.add_task`.
        args: as for the `Trainer`.
        pruning: how to cut out the task's subnetwork.
        router_dataset: as for the `EideticCallback`.
        head_lr_ratio: the learning rate of the task's head, as a multiple of `args.learning_rate`. A head begins with
            random weights, and may be too slow for a short run at a rate that suits pretrained ones.
        kwargs: as for the `Trainer`, `model_init` included: a function that makes the model and adds the task, for
            `hyperparameter_search`; `train()` then leaves what it learned in `trainer.model`. With
            `Seq2SeqTrainingArguments(predict_with_generate=True)` an evaluation lets the task write its answers. The
            kind of task gives `data_collator`, `compute_metrics` and, together with that,
            `preprocess_logits_for_metrics`, where they are not given (see docs/kinds.md).

    Raises:
        TaskError: if there is no such task.
        ValueError: if a data set is empty, or has labels that do not fit the task; if `label_smoothing_factor` is set
            for a kind of task that the `Trainer` would smooth wrongly; if `head_lr_ratio` is no number above 0, or an
            optimizer is given beside it.
    """

    model: EideticModel

    def __init__(
        self,
        model: EideticModel | None = None,
        task: str | None = None,
        args: TrainingArguments | None = None,
        pruning: PruningConfig | None = None,
        router_dataset: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        head_lr_ratio: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if task is None:
            raise TypeError("EideticTrainer needs task='<name>', the name of a task that was added to the model.")
        if kwargs.get("model_init") is None:
            _check_model(model)
        self.task = plain_name(task)
        callbacks, given = _without_phases(task, callbacks)
        self.router_dataset = given.router_dataset if router_dataset is None and given else router_dataset
        super().__init__(model=model, args=args, callbacks=callbacks, **kwargs)
        self.head_lr_ratio = check_head_lr_ratio(head_lr_ratio)
        if self.optimizer is not None and head_lr_ratio != 1:
            raise ValueError(
                f"head_lr_ratio={head_lr_ratio} is for the optimizer that the Trainer makes. Leave it out, and give "
                "the one in `optimizers` a group of its own for the head, with its learning rate."
            )
        model = self.model
        begun = model.learner if model.learning == task else None
        self.pruning = pruning or (given.pruning if given else PruningConfig() if begun is None else begun.config)
        record = model.record(task)
        self.kind = kind_of(record)
        for name in ("train_dataset", "eval_dataset", "router_dataset"):
            parts = getattr(self, name)
            for part in parts.values() if isinstance(parts, dict) else [parts]:
                _check_dataset(record, name, part)
        if kwargs.get("data_collator") is None:
            tokenizer = self.processing_class
            if not isinstance(tokenizer, PreTrainedTokenizerBase):
                tokenizer = None
                _check_labels_are_given(record, self.train_dataset)
            self.data_collator = self.kind.collator(tokenizer) or self.data_collator
        self._choose_metrics(record, kwargs)
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
        self._resumed_from: str | None = None
        self._loss_shifts_labels = False  # `_get_num_items_in_batch` counts, for whatever kind it is
        self.compute_loss = self._distilled(self.compute_loss)  # type: ignore[method-assign]
        self._replace_progress_bar()
        self.add_callback(_PhaseCallback(task, self.pruning, self.router_dataset))

    def _choose_metrics(self, record: TaskRecord, given: Mapping[str, Any]) -> None:
        """What an evaluation measures, unless the caller says what."""
        self.writes = bool(getattr(self.args, "predict_with_generate", False))
        if self.writes and not (self.kind.writes and self.model.config.base_config.is_encoder_decoder):
            raise ValueError(
                f"predict_with_generate=True: '{record.name}' ({self.kind.name}) does not write a text for a text. "
                "It is for seq2seq-lm; a prompt of causal-lm stands in one text with its answer, so write with "
                "model.generate(..., task=...)."
            )
        if "compute_metrics" in given:
            return
        if self.writes:
            tokenizer = self.processing_class
            if isinstance(tokenizer, PreTrainedTokenizerBase):
                self.compute_metrics = functools.partial(written_metrics, tokenizer)
        else:
            self.compute_metrics = functools.partial(task_metrics, record)
            if self.preprocess_logits_for_metrics is None:
                self.preprocess_logits_for_metrics = functools.partial(self.kind.reduce, record)

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
        if self.train_dataset is None:
            raise ValueError("EideticTrainer.train needs a train_dataset.")
        if self.pruning.tolerance is not None and self.eval_dataset is None:
            raise ValueError(
                "PruningConfig(tolerance=...) compares validation metrics: give the trainer an eval_dataset."
            )
        if resume_from_checkpoint and self.args.output_dir:
            resume_from_checkpoint = find_checkpoint(self.args.output_dir, resume_from_checkpoint)
        self._resumed_from = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        if self.model_init is None:
            if self.model.network.growth.copies:
                set_seed(self.args.seed)  # whatever this process has drawn since the Trainer was made
            self._begin(self.model)
        # Last in line, so that it sees what an early stop decided, wherever that callback was added.
        self.add_callback(
            self.pop_callback(_PhaseCallback) or _PhaseCallback(self.task, self.pruning, self.router_dataset)
        )
        try:
            output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        except BaseException:
            model = cast("EideticModel | None", self.model)  # none if `model_init` could not make one
            if model is not None:
                leave_autocast(model)
                if model.learner is not None and model.learning == self.task and not model.learner.trained:
                    model.abandon_task()
            raise
        finally:
            # Their Parameters are no longer the model's.
            self.optimizer = self.lr_scheduler = None
            self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
            self.model_wrapped = self.model
            self.accelerator.free_memory()
            self.is_in_train = False
        if trial is None:
            self._push_release()
        return output

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As `Trainer.create_optimizer`; the head has its own learning rate."""
        is_made = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if not is_made and self.head_lr_ratio != 1:
            named = (self.model if model is None else model).named_parameters()
            head = [parameter for name, parameter in named if f"heads.{LEARNING}." in name]
            scale_learning_rate(optimizer, head, self.head_lr_ratio)
        return optimizer

    def call_model_init(self, trial: Any = None) -> EideticModel:
        """Make the model of a run, and begin the task if this is one."""
        model = _check_model(super().call_model_init(trial))
        if getattr(self, "is_in_train", False):
            self._begin(model)
        return model

    def _begin(self, model: EideticModel) -> None:
        """Begin the task, unless it has been begun."""
        if model.learner is None or model.learning != self.task:
            self._choose_branch(model)
            model.begin_task(self.task, self.pruning)
        elif model.learner.config != self.pruning:
            model.learner.reconfigure(self.pruning)
        assert model.learner is not None
        model.learner.mixes_distance = False  # `compute_loss` does, whatever it is

    def _choose_branch(self, model: EideticModel) -> None:
        """Find out what a task starts from that was added with `based_on="auto"`: a resumed one from where it did."""
        if not wants_branch(model, self.task) or self.train_dataset is None:
            return
        if self._resumed_from is not None:
            begun = json_object(Path(self._resumed_from) / CONFIG_FILE).get("learning_ancestors")
            if begun is not None:
                set_branch(model, self.task, begun)
                return
        batches = branch_batches(model, self.args, self.train_dataset, self.data_collator)
        model.choose_branch(self.task, batches, self.pruning, learning_rate=self.args.learning_rate)

    def _distilled(self, compute_loss: Callable) -> Callable:
        """A `compute_loss`, with distillation mixed into its loss."""

        @functools.wraps(compute_loss)
        def compute(
            model: torch.nn.Module,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: torch.Tensor | int | None = None,
        ) -> Any:
            learner = self.model.learner
            if learner is not None:
                learner.targets = {name: inputs[name] for name in self.kind.targets if inputs.get(name) is not None}
                learner.take_distance()
            found = compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
            left = None if learner is None else learner.take_distance()
            if learner is None or left is None:
                return found
            share, distance = learner.config.distillation, left[0] * self._scale(left[1], num_items_in_batch)
            loss = (1 - share) * (found[0] if return_outputs else found) + share * distance
            return (loss, found[1]) if return_outputs else loss

        return compute

    def _scale(self, items: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float:
        """What a mean over some items of a batch counts in an optimizer step, as the loss does beside it."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = by_model or self.compute_loss_func is not None
        if not scaled:
            return 1.0  # the Trainer divides by the number of batches
        if num_items_in_batch is None:
            return 1 / self.current_gradient_accumulation_steps
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return items / num_items_in_batch * processes

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Count what a loss of this kind is a mean over: of texts to be continued, not the first token."""
        record = self.model.record(self.task)
        counted = [
            {"labels": self.kind.counted(record, batch["labels"])} if batch.get("labels") is not None else {}
            for batch in batch_samples
        ]
        return super()._get_num_items_in_batch(counted, device)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate the task (see `Trainer.evaluation_loop`), before or after it was learned.

        Before that, it is evaluated as it would begin. The model is as before afterwards, to the last bit: whatever
        it was cast to for this.
        """
        if self.is_in_train:
            return super().evaluation_loop(*args, **kwargs)
        model = self.model
        with contextlib.ExitStack() as after:
            if not model.is_committed(self.task) and model.learning is None:
                devices = [model.device] if model.device.type == "cuda" else []
                after.enter_context(torch.random.fork_rng(devices))  # `train` begins with the same head
                self._choose_branch(model)
                model.begin_task(self.task, self.pruning)
                after.callback(model.abandon_task)
            if self.args.fp16_full_eval or self.args.bf16_full_eval:
                after.callback(Originals(model).restore)
            after.callback(self.accelerator.free_memory)
            after.callback(leave_autocast, model)
            return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Log with the phase and the share of free units kept."""
        super().log({**logs, **progress_of(self.model, self.state.global_step)}, start_time)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {**super()._prepare_inputs(inputs), "task": self.model.record(self.task).exact_name}

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Answer a batch in an evaluation (see `Trainer.prediction_step`), and collect what the kind measures.

        With `predict_with_generate`, collect the tokens that the task writes, `(batch, length)`.
        """
        if self.kind.optional_targets and self.args.label_names is None:
            self.label_names = [name for name in self.kind.targets if inputs.get(name) is not None]
            self.can_return_loss = any(name.startswith("pair_") for name in inputs)
        if ignore_keys is None:
            outputs = {field.name for field in dataclasses.fields(cast(Any, self.kind.output_class))}
            ignore_keys = sorted(outputs - set(self.kind.measured or self.kind.outputs) - {"loss"})
        loss, answers, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if self.writes and not prediction_loss_only:
            answers = self._write(inputs)
        return loss, answers, labels

    def _write(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """What the task writes for the texts of a batch."""
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask") if inputs.get(name) is not None}
        arguments = cast(Seq2SeqTrainingArguments, self.args)
        limits = {"max_length": arguments.generation_max_length, "num_beams": arguments.generation_num_beams}
        chosen = {name: value for name, value in {**limits, **self._generation}.items() if value is not None}
        if chosen.get("max_new_tokens") is not None:
            chosen.pop("max_length", None)
        config = arguments.generation_config
        if isinstance(config, (str, os.PathLike)):
            config = GenerationConfig.from_pretrained(config)
        return cast(
            torch.Tensor, self.model.generate(**self._prepare_inputs(texts), generation_config=config, **chosen)
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`; with `predict_with_generate`, further arguments are for `generate`."""
        with self._generating(kwargs, Trainer.evaluate) as kept:
            return super().evaluate(*args, **kept)

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As `Trainer.predict`; with `predict_with_generate`, further arguments are for `generate`."""
        with self._generating(kwargs, Trainer.predict) as kept:
            return super().predict(*args, **kept)

    @contextlib.contextmanager
    def _generating(self, given: dict[str, Any], method: Callable) -> Iterator[dict[str, Any]]:
        """Keep those of some arguments that a method does not know for `generate`."""
        known = inspect.signature(method).parameters if self.writes else given
        self._generation = {name: value for name, value in given.items() if name not in known}
        try:
            yield {name: value for name, value in given.items() if name in known}
        finally:
            self._generation = {}

    # -- the Hub ------------------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As `Trainer.init_hf_repo`; what would stand in the way of a push later is an error now.

        Raises:
            CheckpointError: if the repository may not be written to, holds a model of another kind, or is public and
                was to be private.
            ConnectionError: if the Hub could not be reached.
        """
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(cast(str, self.args.output_dir)).absolute().name
        with hub.in_a_sentence(name):
            super().init_hf_repo(token=token, private=private)
            hub.check_place(self._wish(token=token, private=private))

    def _wish(
        self,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> hub.Push:
        """A push as the arguments of this run have it."""
        return hub.Push(
            cast(str, self.hub_model_id),
            branch=revision or self.args.hub_revision,
            private=self.args.hub_private_repo if private is None else private,
            token=self.args.hub_token if token is None else token,
            **options,
        )

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        merge: bool = False,
        replace: bool = False,
        **kwargs: Any,
    ) -> CommitInfo | Any:
        """Save the model to `args.output_dir` and push that folder, as `EideticModel.push_to_hub` does.

        Args:
            commit_message: by default the tasks that come and go.
            blocking: `False` pushes in the background.
            token: instead of `args.hub_token`.
            revision: the branch, instead of `args.hub_revision`.
            private: instead of `args.hub_private_repo`.
            merge: as in `EideticModel.push_to_hub`.
            replace: as in `EideticModel.push_to_hub`.
            kwargs: as for `create_model_card`.

        Returns:
            The commit; a `Future` of it, if `blocking=False`; `None` on all processes but the first.

        Raises:
            CheckpointError: as `EideticModel.push_to_hub`; while a task is being learned, too.
            ConnectionError: if the Hub could not be reached.
        """
        hub.check_can_be_pushed(self.model)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        wish = self._wish(token, private, revision, commit_message=commit_message, merge=merge, replace=replace)
        folder = Path(cast(str, self.args.output_dir))
        if blocking:
            return hub.push_saved(self.model, folder, wish).commit
        return HfApi().run_as_future(lambda: hub.push_saved(self.model, folder, wish).commit)

    def create_model_card(  # type: ignore[override]
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Put what is given into the metadata of the card that was saved with the model; its text is the model's own.

        Args:
            language: of the texts.
            license: of the model.
            tags: further ones.
            dataset_tags: ids of data sets on the Hub.
            kwargs: what else `Trainer.create_model_card` takes, for a card of one task; it is not needed.
        """
        path = Path(cast(str, self.args.output_dir)) / CARD_FILE
        given = {"language": language, "license": license, "tags": tags, "datasets": dataset_tags}
        given = {name: value for name, value in given.items() if value}
        if not given or not self.is_world_process_zero():
            return
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there. Save the model first, with trainer.save_model().")
        metadata = metadata_load(path) or {}
        for name, value in given.items():
            if name in ("tags", "datasets"):  # of several tasks
                value = [value] if isinstance(value, str) else list(cast(list[str], value))
                value = list(dict.fromkeys([*(metadata.get(name) or []), *value]))
            metadata[name] = value
        metadata_save(path, metadata)

    def _push_release(self) -> None:
        """Push what `train` has learned, where a run pushes by itself; a failure costs nothing of it."""
        begun = self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END
        if not begun or not self.model.is_committed(self.task):
            return
        try:
            self.push_to_hub()
        except (CheckpointError, OSError) as error:
            logger.warning(f"'{self.task}' is committed, but not pushed; trainer.push_to_hub(...) does. {error}")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint to a folder of its own in the repository, if this is asked for; above are releases."""
        strategy = self.args.hub_strategy
        if strategy not in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS) or not self.is_world_process_zero():
            return
        pending = cast(PushInProgress | None, self.push_in_progress)
        if pending is not None and not pending.is_done() and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        name = Path(checkpoint_folder).name
        job = HfApi(token=self.args.hub_token).upload_folder(
            repo_id=cast(str, self.hub_model_id),
            folder_path=checkpoint_folder,
            path_in_repo="last-checkpoint" if strategy == HubStrategy.CHECKPOINT else name,
            commit_message=f"{name} of '{self.task}'",
            ignore_patterns=[".*"],
            revision=self.args.hub_revision,
            run_as_future=True,
        )
        job.add_done_callback(functools.partial(_say_if_failed, name))
        if pending is None or pending.is_done():
            self.push_in_progress = cast(Any, PushInProgress(cast(Any, [job])))
        else:
            cast(list, pending.jobs).append(job)

    def _finish_current_push(self) -> None:
        """Wait for the checkpoint that is on its way."""
        super()._finish_current_push()


def _say_if_failed(checkpoint: str, job: Any) -> None:
    """Warn of a checkpoint that did not come to the Hub: its next one may."""
    if not job.cancelled() and job.exception() is not None:
        logger.warning(f"{checkpoint} was not pushed ({hub.first_line(job.exception())}). It is saved here.")


class _PhaseCallback(EideticCallback):
    """The callback of an `EideticTrainer`, which begins the task in `train()`, and says which task it means."""

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        pass

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        pass

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        pass


def check_head_lr_ratio(ratio: Any) -> float:
    """A ratio of learning rates, if it is one.

    Raises:
        ValueError: if it is no number above 0.
    """
    is_number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
    if not is_number or not 0 < ratio < float("inf"):
        raise ValueError(f"head_lr_ratio={ratio!r}: expected a number above 0, such as 10.")
    return float(ratio)


def scale_learning_rate(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor], ratio: float) -> None:
    """Give some of an optimizer's Parameters groups of their own, before the first step and before any schedule.

    Args:
        optimizer: that has them.
        parameters: those that are meant; what the optimizer does not have of them is left out.
        ratio: of their learning rate to that of the group that they were in.
    """
    meant = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        apart = [parameter for parameter in group["params"] if id(parameter) in meant]
        if apart:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in meant]
            optimizer.add_param_group({**group, "params": apart, "lr": group["lr"] * ratio})


def _check_model(model: Any) -> EideticModel:
    """A model, if it can learn tasks."""
    if not isinstance(model, EideticModel):
        raise TypeError(
            f"EideticTrainer needs an EideticModel, got {type(model).__name__}. Make one with "
            "EideticModel.from_backbone(...)."
        )
    return model


def _without_phases(
    task: str, callbacks: list[TrainerCallback] | None
) -> tuple[list[TrainerCallback] | None, EideticCallback | None]:
    """Callbacks without an `EideticCallback`, as the trainer has one of its own; and that one, for how it prunes.

    Raises:
        ValueError: if it is of another task.
    """
    given = [callback for callback in callbacks or [] if isinstance(callback, EideticCallback)]
    for callback in given:
        if callback.task != task:
            raise ValueError(
                f"EideticTrainer(task={task!r}) got an EideticCallback of the task {callback.task!r}. The trainer "
                "has a callback of its own; leave this one out."
            )
    rest = [callback for callback in callbacks or [] if callback not in given]
    return (rest if given else callbacks), (given[-1] if given else None)


def find_checkpoint(folder: str | os.PathLike, chosen: str | os.PathLike | Literal[True] = True) -> str:
    """The Trainer's checkpoint to resume from: the one that was chosen, or the last whole one of a folder.

    A run that was killed while it saved leaves half a checkpoint behind. The Trainer writes its state last.

    Args:
        folder: the runs' `output_dir`.
        chosen: a checkpoint's folder, or `True` for the last one.

    Raises:
        ValueError: if the chosen one is not whole, or there is no whole one.
    """
    if chosen is not True:
        if not _is_whole(Path(chosen)):
            raise ValueError(
                f"Can't find a valid checkpoint at {chosen}: there is no readable {TRAINER_STATE_NAME}, so this is no "
                "checkpoint of a Trainer, or one that was cut off while it was written. Resume from an earlier one."
            )
        return str(chosen)
    found = [
        path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()
    ]
    for path in sorted(found, key=lambda path: -int(path.name.rpartition("-")[2])):
        if _is_whole(path):
            return str(path)
        logger.warning(f"{path} was cut off while it was written; it is left out.")
    raise ValueError(
        f"No valid checkpoint found in output directory ({folder}), or none that was written to its end. Leave out "
        "resume_from_checkpoint=True to begin anew."
    )


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint of a Trainer was written to its end."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


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
