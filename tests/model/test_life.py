"""What may be committed, what a run that was stopped or has diverged leaves, and what must not be ignored."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support.backbones import CONFIGS, tiny_backbone, tiny_model
from support.data import arguments, learn, logits_of, make_batch, make_data
from transformers import AutoModel, EarlyStoppingCallback, Trainer, TrainerCallback

from eidetic_hf import EideticCallback, EideticModel, EideticTrainer, PruningConfig, TaskError
from eidetic_hf.model import life


def trainer_of(model: EideticModel, folder: Path, **kwargs: Any) -> EideticTrainer:
    if "next" not in model.added:
        model.add_task("next", labels=["x", "y", "z"])
    given: dict[str, Any] = {"pruning": PruningConfig(keep=0.4), "train_dataset": make_data(3), **kwargs}
    return EideticTrainer(model=model, task="next", args=given.pop("args", arguments(folder)), **given)


class Spoil(TrainerCallback):
    """Leaves a weight that is no number, as an overflow does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                kwargs["model"].heads["learning"].classifier.bias[0] = torch.inf


@pytest.mark.parametrize("plain", [False, True], ids=["EideticTrainer", "callback"])
def test_a_run_that_diverged_commits_nothing_and_says_since_when(plain: bool, tmp_path: Path) -> None:
    model = tiny_model()
    learn(model, "first", tmp_path)
    before, capacity = logits_of(model, "first"), model.capacity()
    model.add_task("next", labels=["x", "y", "z"])
    if plain:
        callbacks = [Spoil(4), EideticCallback("next", PruningConfig(keep=0.4))]
        trainer: Trainer = Trainer(
            model=model, args=arguments(tmp_path), train_dataset=make_data(3), callbacks=callbacks
        )
    else:
        trainer = trainer_of(model, tmp_path, callbacks=[Spoil(4)])
    with pytest.raises(TaskError, match=r"'next' is not committed: .* is not finite since step 5.*lower learning"):
        trainer.train()
    if plain:
        assert model.learning == "next", "another Trainer leaves it to the caller"
        model.abandon_task()
    assert model.learning is None and model.tasks == ["first"] and model.capacity() == capacity
    assert torch.equal(logits_of(model, "first"), before)
    trainer_of(model, tmp_path).train()
    assert model.tasks == ["first", "next"] and model.verify().ok


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_a_target_that_is_no_finite_number_is_named_before_training(problem: str, tmp_path: Path) -> None:
    model = tiny_model()
    model.add_task("a", problem_type=problem, labels=["x", "y"])
    data = make_data(0, rows=8).remove_columns("labels")
    labels = [[0.0, 1.0]] * 5 + [[1.0, float("nan")]] + [[0.0, 0.0]] * 2
    with pytest.raises(ValueError, match=r"row 5 of the train_dataset has the label \[1.0, nan\]; expected finite"):
        EideticTrainer(model, "a", arguments(tmp_path), train_dataset=data.add_column("labels", labels))


def test_an_overflowed_step_leaves_importance_as_it_was() -> None:
    from eidetic_hf.network.importance import UnitProbe
    from eidetic_hf.views import LEARNING, View

    sums = torch.tensor([1.0, 2.0])
    hidden = torch.tensor([[[torch.inf, 1.0]]], requires_grad=True)
    UnitProbe.apply(hidden, sums, None, View(LEARNING, probe="fisher", batch=1)).sum().backward()
    assert sums.tolist() == [1.0, 3.0]


def test_a_model_answers_in_evaluation_mode_after_a_task_is_learned_or_dropped(tmp_path: Path) -> None:
    model = tiny_model()
    trainer = trainer_of(model, tmp_path)
    trainer.train()
    assert not any(module.training for module in model.modules())
    model.add_task("later", labels=["x", "y"])
    model.begin_task("later")
    model.train()
    model.abandon_task()
    assert not any(module.training for module in model.modules())
    model.begin_task("later")
    model.train()
    model.commit_task()
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(**make_batch(), task="next").logits, model(**make_batch(), task="next").logits)


def no_rows() -> list[dict[str, torch.Tensor]]:
    return []


def rows_without_a_label() -> list[dict[str, torch.Tensor]]:
    return [{**make_batch(), "labels": torch.full((5,), -100)}]


def rows_without_a_token() -> list[dict[str, torch.Tensor]]:
    batch = make_batch()
    return [{**batch, "attention_mask": torch.zeros_like(batch["attention_mask"]), "labels": torch.zeros(5).long()}]


def used_up() -> Iterator[dict[str, torch.Tensor]]:
    rows = iter(rows_without_a_label())
    list(rows)
    return rows


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> EideticModel:
    model = tiny_model()
    for seed, name in enumerate(("first", "second")):
        learn(model, name, tmp_path_factory.mktemp("two"), seed)
    return model


@pytest.mark.parametrize("rows", [no_rows, used_up, rows_without_a_label, rows_without_a_token])
def test_a_task_without_a_counted_row_has_no_route_and_the_others_keep_theirs(
    rows: Callable[[], Iterable[dict[str, torch.Tensor]]],
    two: EideticModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = copy.deepcopy(two)
    alone = model.route(**make_batch())
    model.add_task("silent", labels=["x", "y"])
    model.begin_task("silent")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("eidetic_hf"), "propagate", True)
    with caplog.at_level("WARNING"):
        model.commit_task(router_sums=model.router_sums(rows()))
    assert "The router learned nothing of 'silent'" in caplog.text
    routed = model.route(**make_batch())
    assert routed.tasks == alone.tasks and torch.equal(routed.router_scores[:, :2], alone.router_scores)
    assert not routed.router_scores[:, 2].any()
    assert model(**make_batch(), abstain=True).tasks is not None
    assert model(**make_batch(), task="silent").logits.shape == (5, 2)
    model.save_pretrained(tmp_path / "model")
    assert EideticModel.from_pretrained(tmp_path / "model").route(**make_batch()).tasks == alone.tasks


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


@pytest.mark.parametrize("step", [2, 5])
def test_a_run_that_is_stopped_before_its_budget_commits_nothing_and_can_be_resumed(step: int, tmp_path: Path) -> None:
    whole, model = tiny_model(), tiny_model()
    saves = arguments(tmp_path / "whole", save_strategy="steps", save_steps=1)
    trainer_of(whole, tmp_path, args=saves).train()
    args = arguments(tmp_path / "runs", save_strategy="steps", save_steps=1)
    trainer_of(model, tmp_path, args=args, callbacks=[StopAfter(step)]).train()
    assert model.tasks == [] and model.learning == "next", "nothing is committed, nothing is lost"
    trainer_of(model, tmp_path, args=args).train(resume_from_checkpoint=str(tmp_path / "runs" / f"checkpoint-{step}"))
    assert model.tasks == ["next"] and model.verify().ok
    assert torch.equal(logits_of(model, "next"), logits_of(whole, "next"))


@pytest.mark.parametrize("growth", ["fixed", "copy"])
def test_a_plain_trainer_that_was_stopped_commits_nothing_either(growth: str, tmp_path: Path) -> None:
    model = tiny_model(growth=growth)
    model.add_task("next", labels=["x", "y", "z"])
    callbacks = [EideticCallback("next"), StopAfter(5)]
    Trainer(model, arguments(tmp_path), callbacks=callbacks, train_dataset=make_data(0)).train()
    assert model.learning == "next" and model.tasks == [] and not model.learner.trained
    model.abandon_task()
    assert model.tasks == [] and "next" in model.added


def test_a_metric_that_stopped_improving_ends_a_run_that_has_nothing_to_prune_with_a_commit(tmp_path: Path) -> None:
    model = tiny_model(growth="copy")
    model.add_task("next", labels=["x", "y", "z"])
    args = arguments(
        tmp_path, learning_rate=0.0, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    given = {"args": args, "eval_dataset": make_data(9, 16), "pruning": None}
    trainer = trainer_of(model, tmp_path, callbacks=[EarlyStoppingCallback(2)], **given)
    trainer.train()
    assert trainer.state.global_step == 3 and model.tasks == ["next"]


def test_pruning_given_to_the_trainer_of_a_task_begun_by_hand_is_used(tmp_path: Path) -> None:
    model = tiny_model()
    model.add_task("next", labels=["x", "y", "z"])
    model.begin_task("next", PruningConfig(keep=0.9))
    trainer = trainer_of(model, tmp_path, pruning=PruningConfig(keep=0.2))
    trainer.train()
    assert model.capacity()["free_share"] > 0.7
    model = tiny_model()
    model.add_task("next", labels=["x", "y", "z"])
    model.begin_task("next", PruningConfig(keep=0.9))
    assert trainer_of(model, tmp_path, pruning=None).pruning.keep == 0.9
    for given, kept in ((None, 0.9), (PruningConfig(keep=0.2), 0.2)):  # and a plain Trainer's callback
        Trainer(model, arguments(tmp_path), callbacks=[EideticCallback("next", given)], train_dataset=make_data(0))
        assert model.learner.config.keep == kept


def test_the_callers_arguments_stay_as_they_are(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    before = dict(vars(args))
    trainer_of(tiny_model(), tmp_path, args=args).train()
    assert vars(args) == before


def test_an_argument_that_nobody_takes_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"got 'trunk_layer', which it does not know. Did you mean 'trunk_layers'\?"):
        EideticModel.from_backbone(tiny_backbone(), trunk_layer=1, growth="fixed")
    with pytest.raises(TypeError, match=r"got 'include_pol', which it does not know. Did you mean 'include_pool'\?"):
        tiny_model().save_pretrained(tmp_path, include_pol=False)
    assert not list(tmp_path.iterdir())


def test_rows_without_a_label_do_not_count_in_accuracy() -> None:
    from eidetic_hf.kinds.metrics import label_scores

    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert label_scores(logits, [0, -100, 1]) == {"accuracy": 1.0, "f1": 1.0}
    assert label_scores(logits, [-100, -100, -100]) == {}


def test_means_over_many_tokens_are_right_in_bfloat16() -> None:
    from eidetic_hf.kinds.heads import pool_sequence

    mean = pool_sequence(torch.ones(1, 301, 4, dtype=torch.bfloat16), torch.ones(1, 301, dtype=torch.long), "mean")
    assert torch.equal(mean, torch.ones(1, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt", "gpt_neox"])
def test_the_route_and_the_answer_of_a_text_do_not_depend_on_the_side_of_its_padding(
    architecture: str, tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    for seed, name in enumerate(("first", "second")):
        learn(model, name, tmp_path, seed)
    right = make_batch(rows=6)
    lengths = right["attention_mask"].sum(1)
    left = {
        name: torch.stack([row.roll(int(row.numel() - n)) for row, n in zip(value, lengths, strict=True)])
        for name, value in right.items()
    }
    assert bool((left["attention_mask"][:, 0] == 0).any())
    ours, theirs = model.route(**left), model.route(**right)
    assert ours.tasks == theirs.tasks
    torch.testing.assert_close(ours.router_scores, theirs.router_scores, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        logits_of(model, "second", left), logits_of(model, "second", right), atol=1e-5, rtol=1e-4
    )


def test_data_sets_of_one_number_may_be_plain_lists() -> None:
    model = tiny_model()
    model.add_task("a", problem_type="regression")
    data = Dataset.from_dict({"input_ids": [[5, 6]] * 2, "labels": [0.5, float("inf")]})
    with pytest.raises(ValueError, match="row 1 of the train_dataset has the label inf"):
        EideticTrainer(model, "a", train_dataset=data)


class Phases(TrainerCallback):
    """Notes the phase after every step."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(kwargs["model"].learner.phase(state.global_step))


@pytest.mark.parametrize(
    ("step", "expected"),
    [(2, ["fit"] * 4 + ["prune"] * 7 + ["recover"] * 11), (5, ["prune"] + ["recover"] * 18)],
    ids=["in the fit phase", "while pruning"],
)
def test_a_run_that_is_resumed_with_more_steps_uses_them(step: int, expected: list[str], tmp_path: Path) -> None:
    model, phases = tiny_model(), Phases()
    first = arguments(tmp_path, save_strategy="steps", save_steps=1)
    trainer_of(model, tmp_path, args=first, callbacks=[StopAfter(step)]).train()
    longer = arguments(tmp_path, save_strategy="no", max_steps=24)
    trainer = trainer_of(model, tmp_path, args=longer, callbacks=[phases])
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert trainer.state.global_step == 24 and model.tasks == ["next"]
    assert phases.seen == expected


def test_a_configuration_with_tasks_makes_no_model_without_weights(trained: EideticModel) -> None:
    with pytest.raises(ValueError, match=r"the tasks \['first', 'second'\], and their weights are in a checkpoint"):
        AutoModel.from_config(trained.config)


def test_freed_memory_is_given_back_when_a_task_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    model = tiny_model()
    monkeypatch.setattr(life, "give_back_memory", lambda: given.append(model.learning or "over"))
    for name in ("kept", "dropped"):
        model.add_task(name, labels=["x", "y"])
        model.begin_task(name)
        assert model.learning == name
        if name == "kept":
            model.commit_task()
        else:
            model.abandon_task()
    assert given == ["over", "over"], "after the commit, after the drop, when what was learned with is freed"


def test_a_setting_of_the_other_growth_is_refused_and_the_default_growth_follows_the_backbone() -> None:
    copies, pool = (EideticModel.from_backbone(made, trunk_layers=1) for made in (tiny_backbone(), CONFIGS["bert"]()))
    assert (copies.config.growth, pool.config.growth) == ("copy", "fixed")
    for model, settings in ((copies, {"keep": 0.3}), (copies, {"on_exhausted": "expand"}), (pool, {"see": 0.5})):
        model.add_task("a", labels=["x", "y"])
        with pytest.raises(TaskError, match=rf"PruningConfig\({next(iter(settings))}=.*\) is for growth='"):
            model.begin_task("a", PruningConfig(**settings))
        assert model.learning is None
        del model.added["a"]
    with pytest.raises(
        ValueError, match="forward_transfer='none' says which earlier tasks one reads with growth='fixed'"
    ):
        EideticModel.from_backbone(tiny_backbone(), trunk_layers=1, forward_transfer="none")
