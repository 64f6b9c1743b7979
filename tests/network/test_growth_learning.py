"""Learning where units are copied: which ones, how many, and everything that a Trainer may do meanwhile."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.backbones import CONFIGS, tiny_backbone
from support.data import arguments, logits_of, make_batch, make_data
from support.exactness import poison
from support.kind_cases import CASES, KindCase, answer_of, learn_kind, loud_backbone
from transformers import Trainer

from eidetic_hf import EideticCallback, EideticModel, EideticTrainer, PruningConfig, TaskError
from eidetic_hf.views import BASE, LEARNING, View

LABELS = ["x", "y", "z"]
NEURONS = "layers_1_neurons"


def copying(architecture: str = "bert") -> EideticModel:
    return EideticModel.from_backbone(tiny_backbone(architecture), trunk_layers=1, growth="copy")


def learn(
    model: EideticModel, name: str, folder: Path, pruning: PruningConfig, based_on: str | None = None, **kwargs: Any
) -> EideticTrainer:
    """Learn a task from data that go with its name."""
    if name not in model.added:
        model.add_task(name, labels=LABELS, based_on=based_on)
    resume = kwargs.pop("resume", None)
    data = {"train_dataset": make_data(sum(map(ord, name))), "eval_dataset": make_data(9, 16)}
    trainer = EideticTrainer(model, name, arguments(folder, **kwargs), pruning, **data)
    trainer.train(resume)
    return trainer


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> EideticModel:
    """One task, which masks some of base out. Copy it before you change it."""
    model = copying()
    learn(model, "parent", tmp_path_factory.mktemp("parent"), PruningConfig(own=0.2, see=0.6))
    return model


# -- which units ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["last", "random"])
def test_what_is_copied_follows_from_name_and_seed_alone(select: str, parent: EideticModel, tmp_path: Path) -> None:
    pruning = PruningConfig(own=0.25, see=0.6, select=select)
    models = {"here": copying(), "there": copy.deepcopy(parent)}
    learn(models["here"], "task", tmp_path, pruning)
    torch.manual_seed(1234)  # what a process did before must not matter
    learn(models["there"], "other", tmp_path, PruningConfig(select="random"))
    learn(models["there"], "task", tmp_path, pruning)
    learn(models["there"], "branch", tmp_path, pruning, based_on="parent")
    ours, theirs = (models[name].task_tensors("task") for name in models)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    model = models["there"]
    other, task = (model.groups[NEURONS].units.need(f"@{name}").tolist() for name in ("other", "task"))
    assert len(task) <= 32 and task != other
    answers = {name: logits_of(model, name) for name in model.tasks}
    for name, logits in answers.items():
        assert torch.equal(logits_of(poison(model, name), name), logits), name
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    for name, logits in answers.items():
        assert torch.equal(logits_of(loaded, name), logits), name


def test_what_a_process_did_since_a_trainer_was_made_does_not_matter(tmp_path: Path) -> None:
    found = []
    for order in (("a", "b"), ("b", "a")):
        model, trainers = copying(), {}
        for name in ("a", "b"):
            model.add_task(name, labels=LABELS)
            args, pruning = arguments(tmp_path, max_steps=4), PruningConfig(own=0.2)
            trainers[name] = EideticTrainer(model, name, args, pruning, train_dataset=make_data(0))
        for name in order:
            trainers[name].train()
        found.append({f"{name}/{key}": value for name in order for key, value in model.task_tensors(name).items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_seed_draws_other_units(tmp_path: Path) -> None:
    model, drawn = copying(), []
    for seed in (0, 0, 1):
        model.add_task("a", labels=LABELS)
        model.begin_task("a", PruningConfig(own=0.2, select="random", seed=seed))
        drawn.append(model.groups[NEURONS].progress.need("chosen").tolist())
        model.abandon_task()
        model.added.clear()
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 13


def test_the_copies_that_changed_most_stay_and_the_others_are_bases_again(parent: EideticModel) -> None:
    model = copy.deepcopy(parent)
    model.add_task("a", labels=LABELS, based_on="parent")
    learner = model.begin_task("a", PruningConfig(own=0.3, select="last", floor=0.0))
    group, groups = model.groups[NEURONS], list(model.groups.values())
    assert all(len(unit.progress.need("chosen")) == unit.progress.need("reads").sum() for unit in groups)
    learner.set_steps(10)
    before = model.network.run(View(LEARNING), make_batch()).last_hidden_state
    with torch.no_grad():
        for unit in groups:
            for member in unit.members:
                for weight in (leaf for leaf in member.segment(LEARNING).parameters()):
                    moved = torch.arange(len(weight)).reshape([-1, *[1] * (weight.dim() - 1)]) // member.width % 2
                    weight.mul_(1 + 0.5 * moved)
    changes = learner.importance(group)
    assert float(changes[::2].max()) == 0 and float(changes[1::2].min()) > 0.4 and float(changes.max()) < 0.51
    assert learner.kept_share() == 1
    trained = model.network.run(View(LEARNING), make_batch()).last_hidden_state
    learner.step(learner.start)
    teacher = model.network.run(View(LEARNING, teacher=True), make_batch()).last_hidden_state
    assert torch.equal(teacher, trained), "what distillation goes by has all copies"
    assert not torch.equal(model.network.run(View(LEARNING), make_batch()).last_hidden_state, trained)
    kept, chosen = group.kept(), group.progress.need("chosen")
    owned = sum(int(unit.kept().sum()) for unit in groups if unit.unit_type == "neurons")
    assert kept.sum() == kept[1::2].sum() and owned == round(0.3 * 128)  # of base's
    dropped = chosen[~kept]
    assert bool(group.kept("_ancestors")[dropped].all()) and not group.kept("_ancestors")[chosen[kept]].any()
    # What was dropped is read as the parent reads it: with the others back, too, the task begins anew.
    for unit in groups:
        unit.growth.settle(unit, torch.zeros_like(unit.kept()))
        unit.forget_learning_views()
    after = model.network.run(View(LEARNING), make_batch()).last_hidden_state
    torch.testing.assert_close(after, before)


def test_a_task_owns_its_share_however_soon_its_training_ends(tmp_path: Path) -> None:
    model = copying()
    learn(model, "short", tmp_path, PruningConfig(own=0.25, select="last", start=0.9, end=1.0), max_steps=2)
    model.add_task("untrained", labels=LABELS)
    model.begin_task("untrained", PruningConfig(own=0.25, select="last"))
    model.commit_task()
    groups = [group for group in model.network.unit_groups() if group.unit_type == "neurons"]
    for task in ("@short", "@untrained"):
        counts = [group.count(task) for group in groups]
        assert sum(counts) == 2 * 16 and min(counts) >= 8  # over all layers, with at least half of an even share
    assert model.verify().ok


@pytest.mark.parametrize(("select", "step"), [("last", 2), ("last", 5), ("last", 9), ("random", 2)])
def test_a_run_is_resumed_in_every_phase(select: str, step: int, parent: EideticModel, tmp_path: Path) -> None:
    pruning = PruningConfig(own=0.3, see=0.6, select=select, distillation=0.5 if select == "last" else 0.0)
    whole, resumed = copy.deepcopy(parent), copy.deepcopy(parent)
    learn(whole, "next", tmp_path, pruning, "parent", save_strategy="steps", save_steps=step)
    learn(resumed, "next", tmp_path / "again", pruning, "parent", resume=str(tmp_path / f"checkpoint-{step}"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_task_is_not_trained_in_another_way_than_it_was_begun(tmp_path: Path) -> None:
    model = copying()
    model.add_task("a", labels=LABELS)
    learner = model.begin_task("a", PruningConfig(own=0.2, select="random"))
    with pytest.raises(
        TaskError, match=r"begun with own=0.2, select='random'.*not be trained with own=0.1, select='first'"
    ):
        learner.reconfigure(PruningConfig(own=0.1))
    learner.reconfigure(PruningConfig(own=0.2, select="random", see=0.5))
    with pytest.raises(TaskError, match=r"select='random', which looks at no data"):
        model.choose_units([])
    with pytest.raises(ValueError, match=r"select='best'\): expected one of \['first', 'last', 'random'\]"):
        PruningConfig(select="best")


# -- a search for how many --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["first", "last"])
@pytest.mark.parametrize("tolerance", [-1e9, 1e9])
def test_a_tolerance_searches_for_what_a_task_sees_or_owns(
    tolerance: float, select: str, parent: EideticModel, tmp_path: Path
) -> None:
    pruning = PruningConfig(own=0.2, select=select, tolerance=0.0, rounds=3, start=0.2, end=0.8, floor=0.0)
    object.__setattr__(pruning, "tolerance", tolerance)  # below 0: nothing is ever good enough
    model = copy.deepcopy(parent)
    trainer = learn(model, "next", tmp_path, pruning)
    assert sum("eval_loss" in row for row in trainer.state.log_history) == 4
    groups = [group for group in model.network.unit_groups() if group.unit_type == "neurons"]
    units = sum(group.count(BASE) for group in groups)
    owned = sum(group.count("@next") for group in groups)
    seen = sum(group.view("@next").count for group in groups)
    if tolerance < 0:
        assert seen == units and owned == (26 if select == "first" else units)
    elif select == "first":
        assert owned == 26 and seen - owned == units // 8
    else:
        assert owned == units // 8 and seen == units
    assert torch.equal(logits_of(poison(model, "next"), "next"), logits_of(model, "next")) and model.verify().ok


@pytest.mark.parametrize(("select", "step"), [("first", 3), ("first", 8), ("last", 5), ("last", 11)])
def test_a_search_is_resumed(select: str, step: int, parent: EideticModel, tmp_path: Path) -> None:
    pruning = PruningConfig(own=0.3, select=select, tolerance=0.02, rounds=3, start=0.2, end=0.9)
    whole, resumed = copy.deepcopy(parent), copy.deepcopy(parent)
    learn(whole, "next", tmp_path, pruning, save_strategy="steps", save_steps=step)
    learn(resumed, "next", tmp_path / "again", pruning, resume=str(tmp_path / f"checkpoint-{step}"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_another_trainer_searches_and_settles_with_the_callback(tmp_path: Path) -> None:
    model = copying()
    for name, pruning in {
        "searched": PruningConfig(own=0.25, tolerance=1e9, rounds=1, start=0.3, end=0.6),
        "settled": PruningConfig(own=0.25, select="last"),
    }.items():
        model.add_task(name, labels=LABELS)
        data = {"train_dataset": make_data(0), "eval_dataset": make_data(9, 16)}
        Trainer(model=model, args=arguments(tmp_path), callbacks=[EideticCallback(name, pruning)], **data).train()
        assert model.is_committed(name)
    group = model.groups[NEURONS]
    assert 28 <= group.view("@searched").count - 16 <= 36 and group.view("@settled").count == 64


# -- what else training may do ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["first", "last"])
def test_gradient_checkpointing_changes_nothing(select: str, tmp_path: Path) -> None:
    models = {checkpointed: copying() for checkpointed in (False, True)}
    for checkpointed, model in models.items():
        pruning = PruningConfig(own=0.3, see=0.6, select=select, distillation=0.5)
        learn(model, "a", tmp_path, pruning, gradient_checkpointing=checkpointed)
    tensors = [model.state_dict() for model in models.values()]
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name]), name


def test_a_vocabulary_may_grow_between_tasks(parent: EideticModel, tmp_path: Path) -> None:
    model = copy.deepcopy(parent)
    size, before = model.config.vocab_size, logits_of(parent, "parent")
    model.resize_token_embeddings(size + 3)
    model.add_task("next", labels=LABELS, based_on="parent")
    data = make_data(1).map(lambda row: {"input_ids": [row["input_ids"][0], size + 1, *row["input_ids"][2:]]})
    trainer = EideticTrainer(model, "next", arguments(tmp_path), PruningConfig(select="last"), train_dataset=data)
    trainer.train()
    assert model.record("next").vocab_size == size + 3
    assert torch.equal(logits_of(model, "parent"), before) and model.verify().ok
    batch = make_batch()
    batch["input_ids"][:, 1] = size + 1
    logits = logits_of(model, "next", batch)
    assert torch.equal(logits_of(poison(model, "next"), "next", batch), logits)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_kind_of_task_is_learned_with_copies(case: KindCase, tmp_path: Path) -> None:
    architecture = {"causal-lm": "gpt2", "seq2seq-lm": "t5"}.get(case.kind, "bert")
    model = EideticModel.from_backbone(loud_backbone(architecture), trunk_layers=0, growth="copy")
    trainer = learn_kind(model, case, "one", tmp_path, pruning=PruningConfig(own=0.5))
    value = trainer.evaluate()[f"eval_{case.metric}"]
    assert (value < case.bar) == (case.metric == "perplexity"), value
    first = answer_of(model, case, "one")
    learn_kind(model, case, "two", tmp_path, (65, 115), PruningConfig(select="random", see=0.7), max_steps=4)
    assert torch.equal(answer_of(model, case, "one"), first) and model.verify().ok
    for name in model.tasks:
        assert torch.equal(answer_of(poison(model, name), case, name), answer_of(model, case, name)), name


def test_a_random_backbone_has_nothing_to_copy() -> None:
    model = EideticModel.from_backbone(CONFIGS["bert"](), trunk_layers=1, growth="copy")
    model.add_task("a", labels=["x", "y"])
    with pytest.raises(
        TaskError, match=r"this one is random\. Train it first.*or learn from the start with growth='fixed'"
    ):
        model.begin_task("a")
