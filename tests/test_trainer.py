"""Learning with the Trainer: its features, its phases, resuming, and what it leaves behind."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from support.backbones import tiny_model
from support.data import arguments, learn, logits_of, make_data
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from eidetic_hf import CheckpointError, EideticCallback, EideticModel, EideticTrainer, PruningConfig, TaskError
from eidetic_hf.views import LEARNING

PRUNING = PruningConfig(keep=0.4, start=0.34, end=0.67, events=4)


def trainer_for(
    model: EideticModel, folder: Path, pruning: PruningConfig = PRUNING, **kwargs: object
) -> EideticTrainer:
    """A trainer for a new task `next`, with data to evaluate on."""
    callbacks, ratio = kwargs.pop("callbacks", None), kwargs.pop("head_lr_ratio", 1.0)
    if not any(task in ("next",) for task in [*model.tasks, *model.added]):
        model.add_task("next", labels=["x", "y", "z"])
    return EideticTrainer(
        model=model,
        task="next",
        args=arguments(folder, **kwargs),
        pruning=pruning,
        train_dataset=make_data(7),
        eval_dataset=make_data(8, rows=16),
        callbacks=callbacks,
        head_lr_ratio=ratio,
    )


class Recorder(TrainerCallback):
    """Notes phase and share of units kept after every step."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, float]] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        learner = kwargs["model"].learner
        self.rows.append((state.global_step, learner.phase(state.global_step), learner.kept_share()))


def test_one_train_call_fits_prunes_recovers_and_commits(trained: EideticModel, tmp_path: Path) -> None:
    model, recorder = copy.deepcopy(trained), Recorder()
    trainer = trainer_for(model, tmp_path, callbacks=[recorder])
    before = model.capacity()["free"]
    trainer.train()
    phases = [phase for _, phase, _ in recorder.rows]
    assert phases == ["fit"] * 3 + ["prune"] * 4 + ["recover"] * 5
    shares = [share for _, _, share in recorder.rows]
    assert shares[3] == 1.0 and shares[-1] == pytest.approx(0.4, abs=0.05)
    assert shares == sorted(shares, reverse=True)
    assert model.tasks == ["first", "second", "next"]
    assert model.capacity()["owned"]["next"] == pytest.approx(0.4 * before, abs=2)
    assert model.learning is None and list(model.parameters()) == []
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == pytest.approx(
        float(
            (
                trainer.predict(make_data(8, rows=16)).predictions.argmax(-1)
                == trainer.predict(make_data(8, rows=16)).label_ids
            ).mean()
        )
    )


@pytest.mark.slow
def test_training_learns_something(tmp_path: Path) -> None:
    model = tiny_model()
    trainer = learn(model, "first", tmp_path, max_steps=150, learning_rate=1e-2)
    assert trainer.evaluate()["eval_accuracy"] > 0.8
    assert model.record("first").metrics == {}
    model = tiny_model()
    learn(model, "first", tmp_path, eval_strategy="steps", eval_steps=6)
    assert set(model.record("first").metrics) >= {"accuracy", "f1", "loss"}


def test_the_callback_alone_does_the_same_in_a_plain_trainer(tmp_path: Path) -> None:
    with_trainer, with_callback = tiny_model(), tiny_model()
    learn(with_trainer, "first", tmp_path)
    with_callback.add_task("first", labels=["x", "y", "z"])
    torch.manual_seed(42)  # as the Trainer seeds before the head is made
    trainer = Trainer(
        model=with_callback,
        args=arguments(tmp_path),
        train_dataset=make_data(0),
        callbacks=[EideticCallback("first", PruningConfig(keep=0.4))],
    )
    trainer.train()
    assert with_callback.tasks == ["first"]
    assert with_callback.record("first").units.keys() == with_trainer.record("first").units.keys()
    assert sum(with_callback.record("first").units.values()) == sum(with_trainer.record("first").units.values())
    assert with_callback.verify().ok


class _Rates(TrainerCallback):
    """Notes, before the first step, how often each Parameter is in the optimizer, and with which learning rate."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        groups, named = kwargs["optimizer"].param_groups, dict(kwargs["model"].named_parameters())
        self.peaks = {
            name: [group["initial_lr"] for group in groups for other in group["params"] if other is parameter]
            for name, parameter in named.items()
        }
        self.decays = {group["weight_decay"] for group in groups}


@pytest.mark.parametrize("growth", ["fixed", "copy"])
def test_the_head_alone_has_its_own_learning_rate_and_earlier_tasks_keep_their_bits(
    growth: str, tmp_path: Path
) -> None:
    model, rates = tiny_model(growth=growth), _Rates()
    pruning = PruningConfig(keep=0.4) if growth == "fixed" else PruningConfig(own=0.4)
    learn(model, "first", tmp_path, pruning=pruning)
    before, usual = logits_of(model, "first"), copy.deepcopy(model)
    trainer_for(usual, tmp_path, pruning).train()
    trainer_for(model, tmp_path, pruning, head_lr_ratio=8.0, callbacks=[rates]).train()
    assert any(name.startswith("heads.learning.") for name in rates.peaks)
    for name, peaks in rates.peaks.items():
        assert peaks == [5e-3 * (8.0 if name.startswith("heads.learning.") else 1.0)], name
    assert rates.decays == {0.0, 0.1}
    assert torch.equal(logits_of(model, "first"), before) and model.verify().ok
    weights = [
        tensor
        for learned in (model, usual)
        for name, tensor in learned.task_tensors("next").items()
        if name.endswith("classifier.weight")
    ]
    assert len(weights) == 2 and not torch.equal(*weights)


@pytest.mark.parametrize("ratio", [0, -1.0, True, "10", float("inf"), float("nan")])
def test_a_ratio_of_learning_rates_is_a_number_above_0(ratio: object, trained: EideticModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"head_lr_ratio=.* expected a number above 0"):
        trainer_for(copy.deepcopy(trained), tmp_path, head_lr_ratio=ratio)


def test_an_optimizer_that_was_given_and_a_ratio_exclude_each_other(trained: EideticModel, tmp_path: Path) -> None:
    model = copy.deepcopy(trained)
    model.add_task("next", labels=["x", "y", "z"])
    model.begin_task("next", PRUNING)
    given = (torch.optim.SGD(model.parameters(), lr=0.1), None)
    with pytest.raises(ValueError, match=r"head_lr_ratio=10.*for the optimizer that the Trainer makes"):
        EideticTrainer(model, "next", arguments(tmp_path), PRUNING, head_lr_ratio=10, optimizers=given)


CHECKPOINTS = {"fit": 2, "prune": 5, "recover": 9}


@pytest.mark.slow
@pytest.mark.parametrize("extras", ["plain", "distilled", "searched", "its head is faster"])
@pytest.mark.parametrize("phase", CHECKPOINTS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    phase: str, extras: str, trained: EideticModel, tmp_path: Path
) -> None:
    pruning = {
        "plain": PRUNING,
        "distilled": PruningConfig(keep=0.4, start=0.34, end=0.67, events=4, distillation=0.5),
        "searched": PruningConfig(tolerance=0.5, rounds=2, start=0.25, end=0.75),
        "its head is faster": PRUNING,
    }[extras]
    rates = {"head_lr_ratio": 10.0 if extras == "its head is faster" else 1.0}
    step = CHECKPOINTS[phase]
    whole = copy.deepcopy(trained)
    trainer = trainer_for(whole, tmp_path, pruning, save_strategy="steps", save_steps=1, eval_strategy="no", **rates)
    trainer.train()
    resumed = copy.deepcopy(trained)
    trainer = trainer_for(resumed, tmp_path / "resumed", pruning, save_strategy="no", **rates)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert whole.record("next").certificate == resumed.record("next").certificate


def test_a_checkpoint_in_the_middle_of_a_task_is_no_release(trained: EideticModel, tmp_path: Path) -> None:
    model = copy.deepcopy(trained)
    trainer_for(model, tmp_path, save_strategy="steps", save_steps=6).train()
    with pytest.raises(
        CheckpointError, match=r"in the middle of learning 'next', not a release.*resume_from_checkpoint"
    ):
        EideticModel.from_pretrained(tmp_path / "checkpoint-6")


@pytest.mark.slow
def test_a_checkpoint_of_another_model_can_not_be_resumed_into_this_one(trained: EideticModel, tmp_path: Path) -> None:
    trainer_for(copy.deepcopy(trained), tmp_path, save_strategy="steps", save_steps=6).train()
    other = tiny_model(trunk_layers=1)
    with torch.no_grad():
        other.backbone.embeddings.word_embeddings.weight.add_(1)
    for seed, name in enumerate(("first", "second")):
        learn(other, name, tmp_path / "other", seed)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="belongs to another model"):
        trainer_for(other, tmp_path / "new").train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    assert other.learning is None and other.verify().ok


@pytest.mark.slow
def test_an_early_stop_of_the_fit_phase_starts_pruning(trained: EideticModel, tmp_path: Path) -> None:
    model, recorder = copy.deepcopy(trained), Recorder()
    trainer = trainer_for(
        model,
        tmp_path,
        PruningConfig(keep=0.4, start=0.8, end=0.9, events=2),
        max_steps=40,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        learning_rate=0.0,
        callbacks=[recorder],
    )
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    trainer.train()
    assert trainer.state.global_step < 20
    assert [phase for _, phase, _ in recorder.rows][5:8] == ["fit", "prune", "prune"]
    assert recorder.rows[-1][2] == pytest.approx(0.4, abs=0.05)
    assert model.tasks[-1] == "next"
    assert model.verify().ok


@pytest.mark.slow
def test_the_best_model_is_chosen_among_those_within_the_budget(trained: EideticModel, tmp_path: Path) -> None:
    model = copy.deepcopy(trained)
    trainer = trainer_for(
        model,
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        learning_rate=0.05,
    )
    trainer.train()
    best = int(Path(trainer.state.best_model_checkpoint).name.split("-")[1])
    assert best >= 8
    assert model.capacity()["owned"]["next"] <= 0.45 * trained.capacity()["free"]
    losses = {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-4)


def test_logs_and_progress_bar_show_phase_and_units(
    trained: EideticModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy.deepcopy(trained)
    trainer = trainer_for(model, tmp_path, logging_steps=1, disable_tqdm=False)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["phase"] for row in rows][:5] == ["fit"] * 3 + ["prune"] * 2
    assert rows[-1]["units_kept"] == pytest.approx(0.4, abs=0.05)
    bar = capsys.readouterr().err
    assert "phase=prune" in bar and "task=next" in bar and "units=100%" in bar


def test_mixed_precision_leaves_no_autocast_behind(trained: EideticModel, tmp_path: Path) -> None:
    model = copy.deepcopy(trained)
    trainer_for(model, tmp_path, bf16=True).train()
    assert "forward" not in vars(model)
    assert logits_of(model, "next").dtype == torch.float32
    assert model.verify().ok


@pytest.mark.slow
@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_other_problem_types_learn_and_stay(problem_type: str, tmp_path: Path) -> None:
    model = tiny_model()
    labels = ["x", "y", "z"] if problem_type.startswith("multi") else None
    data = make_data(0)
    numbers = torch.tensor(data["labels"][:])
    targets = torch.nn.functional.one_hot(numbers, 3).float() if labels else numbers.float()
    data = data.remove_columns("labels").add_column("labels", targets.tolist())
    model.add_task("task", problem_type=problem_type, labels=labels)
    trainer = EideticTrainer(
        model=model,
        task="task",
        args=arguments(tmp_path, max_steps=120, learning_rate=1e-2),
        pruning=PRUNING,
        train_dataset=data,
        eval_dataset=data,
    )
    trainer.train()
    metrics = trainer.evaluate()
    if labels:
        assert metrics["eval_f1"] > 0.7
    else:
        assert metrics["eval_pearson"] > 0.7
        assert {"eval_mse", "eval_spearman"} <= set(metrics)
    then = logits_of(model, "task")
    assert then.shape == (5, 3 if labels else 1)
    learn(model, "later", tmp_path)
    assert torch.equal(then, logits_of(model, "task"))


def test_only_the_working_copy_and_private_tensors_are_trainable(trained: EideticModel) -> None:
    model = copy.deepcopy(trained)
    model.add_task("next", labels=["x", "y"])
    model.begin_task("next")
    names = [name for name, _ in model.named_parameters()]
    assert names and all(f".{LEARNING}" in name for name in names)
    assert model.num_parameters(only_trainable=True) == sum(p.numel() for p in model.parameters())
    assert model.num_parameters() > 2 * model.num_parameters(only_trainable=True) > 0
    with pytest.raises(TaskError, match="'next' is being learned"):
        model.begin_task("next")
    model.abandon_task()
    assert list(model.parameters()) == [] and model.learning is None


def test_a_second_train_call_is_refused_and_a_new_trainer_can_follow(trained: EideticModel, tmp_path: Path) -> None:
    model = copy.deepcopy(trained)
    trainer = trainer_for(model, tmp_path)
    trainer.train()
    with pytest.raises(TaskError, match="committed: it will never change"):
        trainer.train()
    assert model.verify().ok
    shutil.rmtree(tmp_path, ignore_errors=True)
    learn(model, "after", tmp_path)
    assert model.tasks[-1] == "after"
