"""Units that are copied on write: exact, in any order, in branches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.backbones import CONFIGS, tiny_backbone
from support.data import arguments, logits_of, make_batch, make_data
from support.exactness import poison

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig, TaskError
from eidetic_hf.model.checkpoint.layout import sha256_of
from eidetic_hf.network.growth import growth_of, growths
from eidetic_hf.network.storage import CopiedRows, Place, Segment
from eidetic_hf.views import BASE, LEARNING, POOL, View

ARCHITECTURES = ["bert", "gpt2", "llama", "t5", "modernbert", "phi3", "deberta-v2"]


def copying(architecture: str = "bert") -> EideticModel:
    return EideticModel.from_backbone(tiny_backbone(architecture), trunk_layers=1, growth="copy")


def learn(
    model: EideticModel, name: str, folder: Path, seed: int = 0, based_on: str | None = None, **kwargs: Any
) -> EideticTrainer:
    """Learn a task that copies a fifth of the units, or as `kwargs` says."""
    if name not in model.added:
        model.add_task(name, labels=["x", "y", "z"], based_on=based_on)
    pruning = PruningConfig(**{"own": 0.2, **kwargs.pop("pruning", {})})
    resume = kwargs.pop("resume", None)
    trainer = EideticTrainer(
        model, name, arguments(folder, **kwargs), pruning, train_dataset=make_data(seed), eval_dataset=make_data(9, 16)
    )
    trainer.train(resume)
    return trainer


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> EideticModel:
    """Two tasks on base, one of which masks half of it out, and one on the branch of that one."""
    model, folder = copying(), tmp_path_factory.mktemp("branches")
    learn(model, "first", folder)
    learn(model, "masked", folder, 1, pruning={"see": 0.5})
    learn(model, "branch", folder, 2, based_on="masked")
    return model


# -- the guarantee ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_task_reads_what_it_says_and_no_later_task_changes_it(architecture: str, tmp_path: Path) -> None:
    model = copying(architecture)
    learn(model, "first", tmp_path)
    then = logits_of(model, "first")
    learn(model, "masked", tmp_path, 1, pruning={"see": 0.5})
    learn(model, "branch", tmp_path, 2, based_on="first")
    answers = {name: logits_of(model, name) for name in model.tasks}
    assert torch.equal(answers["first"], then) and model.verify().ok
    assert not torch.equal(answers["first"], answers["branch"])
    for name, logits in answers.items():
        assert torch.equal(logits_of(poison(model, name), name), logits), name
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert loaded.verify().ok and loaded.config.growth == "copy"
    for name, logits in answers.items():
        assert torch.equal(logits_of(loaded, name), logits), name


def test_the_order_of_tasks_changes_no_bit_of_them(branches: EideticModel, tmp_path: Path) -> None:
    other = copying()
    torch.manual_seed(1234)  # what a process did before must not matter either
    learn(other, "masked", tmp_path, 1, pruning={"see": 0.5})
    learn(other, "branch", tmp_path, 2, based_on="masked")
    learn(other, "first", tmp_path)
    folders = {}
    for name, model in (("there", branches), ("here", other)):
        model.save_pretrained(tmp_path / name)
        folders[name] = {path.name: sha256_of(path) for path in (tmp_path / name).glob("*.safetensors")}
    assert folders["here"] == folders["there"] and len(folders["here"]) == 6
    for task in branches.tasks:
        assert torch.equal(logits_of(other, task), logits_of(branches, task))


def test_a_task_that_has_copied_nothing_else_yet_answers_as_its_parent(branches: EideticModel) -> None:
    model = copy.deepcopy(branches)
    model.add_task("next", labels=["x", "y", "z"], based_on="branch")
    model.begin_task("next", PruningConfig(own=0.3))
    assert model.record("next").ancestors == ["masked", "branch"]
    for norm in model.network.norms:  # a task has its own, which start at the backbone's
        norm.tasks[LEARNING].load_state_dict(norm.tasks["@branch"].state_dict())
    for projection in model.network.projections:
        if projection.biases.get(LEARNING) is not None:
            projection.biases.need(LEARNING).data.copy_(projection.biases.need("@branch"))
    with torch.no_grad():
        ours = model.network.run(View(LEARNING), make_batch()).last_hidden_state
        theirs = model.network.run(View("@branch"), make_batch()).last_hidden_state
    torch.testing.assert_close(ours, theirs)


def test_base_stays_as_it_came_and_one_task_is_loaded_without_those_that_it_does_not_read(
    branches: EideticModel, tmp_path: Path
) -> None:
    backbone = tiny_backbone("bert").state_dict()
    for name, tensor in branches.state_dict().items():
        if f".segments.{BASE}.weight" in name:
            plain = backbone[name.removeprefix("backbone.").replace(f".segments.{BASE}", "")]
            assert torch.equal(tensor, plain) or torch.equal(tensor, plain.t())
    branches.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path, tasks=["branch"])
    assert [task.name for task in loaded.config.tasks] == ["masked", "branch"] and loaded.tasks == ["branch"]
    assert torch.equal(logits_of(loaded, "branch"), logits_of(branches, "branch"))


# -- learning ---------------------------------------------------------------------------------------------------------


def test_parameters_and_what_a_task_owns_are_its_copies_alone(tmp_path: Path) -> None:
    model = copying()
    model.add_task("a", labels=["x", "y"])
    model.begin_task("a", PruningConfig(own=0.25))
    group = model.groups["layers_1_neurons"]
    assert {len(member.segment(LEARNING).weight) for member in group.members} == {16}
    assert model.num_parameters(only_trainable=True) < 0.5 * model.num_parameters()
    model.commit_task()
    assert set(model.record("a").units.values()) == {1, 16}
    assert group.units.need("@a").tolist() == group.units.need("@a").sort().values.tolist()
    assert model.capacity()["owned"]["a"] == 2 * (1 + 16)


def test_the_units_that_matter_most_to_a_task_are_copied() -> None:
    model = copying()
    model.add_task("a", labels=["x", "y", "z"])
    model.begin_task("a", PruningConfig(own=0.1))
    group = model.groups["layers_2_neurons"]
    batch = {name: torch.tensor(value) for name, value in make_data(0)[:16].items()}
    model.choose_units([batch])
    chosen = set(group.progress.need("chosen").tolist())
    assert model(**batch).loss.isfinite() and all(parameter.grad is None for parameter in model.parameters())
    # The same by hand: the squared gradient of a gate on each unit, for each sequence.
    whole = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth="fixed")
    whole.add_task("a", labels=["x", "y", "z"])
    whole.begin_task("a")
    whole.heads[LEARNING].load_state_dict(model.heads[LEARNING].state_dict())
    units = whole.groups["layers_2_neurons"]
    for row in range(16):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        loss = whole(**one, view=View(LEARNING, probe="fisher")).loss
        loss.backward()
    assert chosen == set(units.reading().argsort(descending=True)[:6].tolist())
    model.choose_units([batch])
    assert set(group.progress.need("chosen").tolist()) == chosen  # whatever was chosen before


def test_what_a_collator_draws_while_units_are_chosen_depends_on_nothing_before() -> None:
    data = {name: torch.tensor(value) for name, value in make_data(0)[:16].items()}
    chosen = []
    for seed in (1, 2):
        model = copying()
        model.add_task("a", labels=["x", "y", "z"])
        model.begin_task("a", PruningConfig(own=0.1))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model.choose_units({**data, "input_ids": torch.randint(3, 100, data["input_ids"].shape)} for _ in range(3))
        assert torch.equal(torch.get_rng_state(), before)
        chosen.append([group.progress.need("chosen") for group in model.groups.values()])
    assert all(map(torch.equal, *chosen))


@pytest.mark.parametrize("step", [2, 5, 9])
def test_a_resumed_run_equals_an_uninterrupted_one(step: int, branches: EideticModel, tmp_path: Path) -> None:
    pruning = {"see": 0.6, "distillation": 0.5}
    whole, resumed = copy.deepcopy(branches), copy.deepcopy(branches)
    saves = {"save_strategy": "steps", "save_steps": step, "pruning": pruning}
    learn(whole, "next", tmp_path, 4, based_on="first", **saves)
    checkpoint = str(tmp_path / f"checkpoint-{step}")
    learn(resumed, "next", tmp_path / "again", 4, based_on="first", pruning=pruning, resume=checkpoint)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_task_that_is_dropped_or_fails_to_be_committed_leaves_the_books_as_they_were(
    branches: EideticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eidetic_hf.model import life

    model = copy.deepcopy(branches)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.add_task("next", labels=["x", "y"])
    model.begin_task("next")
    with monkeypatch.context() as patch:
        patch.setattr(life, "certify", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.commit_task()
    assert model.learning == "next"
    model.abandon_task()
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert model.verify().ok


def test_what_copies_can_not_do_is_said(branches: EideticModel) -> None:
    model = copy.deepcopy(branches)
    with pytest.raises(TaskError, match=r"growth='copies': expected one of \['fixed', 'copy'\]"):
        EideticModel.from_backbone(tiny_backbone("bert"), growth="copies")
    with pytest.raises(TaskError, match="based_on names 'nobody', which is not committed"):
        model.add_task("next", labels=["x", "y"], based_on="nobody")
    with pytest.raises(TaskError, match=r"starts from base, or from one other.*based_on="):
        model.add_task("next", labels=["x", "y"], forward_transfer=["first"])
    with pytest.raises(TaskError, match="there is no pool that could run out"):
        model.expand(4)
    model.add_task("next", labels=["x", "y"])
    with pytest.raises(TaskError, match="based_on= is for growth='copy'"):
        EideticModel.from_backbone(tiny_backbone("bert"), growth="fixed").add_task(
            "a", labels=["x", "y"], based_on="b"
        )
    random = EideticModel.from_backbone(CONFIGS["bert"](), trunk_layers=1, growth="copy")
    random.add_task("a", labels=["x", "y"])
    with pytest.raises(TaskError, match="this one is random"):
        random.begin_task("a")


# -- rows -------------------------------------------------------------------------------------------------------------


def test_rows_of_several_owners_are_read_and_gathered_by_number() -> None:
    assert growths() == ["fixed", "copy"] and not growth_of("fixed").copies
    rows, values = CopiedRows(), torch.arange(12.0).reshape(6, 2)
    parts = {BASE: values[:3], "@a": values[3:5], "@b": values[5:]}
    for key, part in {**parts, POOL: values[:0]}.items():
        rows.place(key, Place(Segment(part.clone(), None), ("weight", "bias")))
    assert torch.equal(rows.read(3, 5)[0], parts["@a"]) and rows.read(0, 3)[1] is None
    assert torch.equal(rows.read(2, 6)[0], values[2:])
    numbers = torch.tensor([5, 0, 3, 0])
    assert torch.equal(rows.gather(numbers)[0], values[numbers])
    undo = rows.snapshot()
    place = Place(Segment(values[:1].clone(), None), ("weight", "bias"))
    rows.hand_over("@c", place, [])
    assert rows.owners.total == 7 and rows.copied_bytes([rows.read(6, 7)[0]]) == 0
    assert rows.copied_bytes([rows.gather(numbers)[0]]) == 32
    rows.take_back(undo, place)
    assert rows.owners.total == 6
