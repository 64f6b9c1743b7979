"""What a task starts from, found by trying: the best branch, no trace of the trials, and the same in every process."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from support.backbones import tiny_backbone, tiny_model
from support.data import arguments, logits_of, make_data
from transformers import Trainer

from eidetic_hf import EideticCallback, EideticModel, EideticTrainer, PruningConfig, TaskError
from eidetic_hf.callback import branch_batches
from eidetic_hf.model import branching
from eidetic_hf.model.checkpoint.layout import sha256_of
from eidetic_hf.model.router import RouterSums, TaskStatistics, distances
from eidetic_hf.model.router.sums import kept_of, statistics_of

LABELS = ["x", "y", "z"]
PRUNING = PruningConfig(own=0.3)


def data(seed: int, low: int = 3, rows: int = 96) -> datasets.Dataset:
    """As `make_data`, and tokens from `low` on decide the label."""
    made = make_data(seed, rows)
    ids = torch.tensor(made["input_ids"][:])
    ids[:, 1] += low - 3
    return made.remove_columns("input_ids").add_column("input_ids", ids.tolist())


def learn(model: EideticModel, name: str, folder: Path, rows: datasets.Dataset, **kwargs: Any) -> EideticTrainer:
    if name not in model.added:
        model.add_task(name, labels=LABELS, based_on=kwargs.pop("based_on", None))
    resume = kwargs.pop("resume", None)
    trainer = EideticTrainer(
        model, name, arguments(folder, **{"max_steps": 10, "learning_rate": 1e-2, **kwargs}), PRUNING,
        train_dataset=rows,
    )  # fmt: skip
    trainer.train(resume)
    return trainer


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> EideticModel:
    """`near` and `far` have learned what two groups of tokens say; `new` is to start from what is best."""
    model, folder = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth="copy"), None
    folder = tmp_path_factory.mktemp("committed")
    learn(model, "near", folder, data(4), max_steps=80)
    learn(model, "far", folder, data(3, 50), max_steps=40)
    model.add_task("new", labels=LABELS, based_on="auto")
    return model


def batches(rows: datasets.Dataset, size: int = 16) -> list[dict[str, torch.Tensor]]:
    columns = {name: torch.tensor(rows[name][:]).split(size) for name in rows.column_names}
    return [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]


def test_the_branch_on_which_a_task_is_learned_fastest_is_chosen(committed: EideticModel) -> None:
    for low, best in ((3, "near"), (50, "far")):
        model = copy.deepcopy(committed)
        assert model.choose_branch("new", batches(data(5, low)), PRUNING) == best
        assert model.added["new"].forward_transfer == [best]
        model.begin_task("new", PRUNING)
        assert model.record("new").ancestors == [best]
    model = copy.deepcopy(committed)
    assert model.choose_branch("new", batches(data(5)), PRUNING, margin=0.99) is None
    assert model.added["new"].forward_transfer == "none"
    alone = copy.deepcopy(committed)
    for name in ("near", "far"):
        alone.router.remove(name)  # committed without sums: nobody knows how near it is
    assert alone.choose_branch("new", batches(data(5)), PRUNING) is None


def test_only_the_nearest_tasks_are_tried(committed: EideticModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def trial(model: Any, name: str, candidate: str | None, *rest: Any) -> float:
        tried.append(candidate)
        return {None: 1.0, "near": 0.99, "far": 0.5}[candidate]

    monkeypatch.setattr(branching, "_trial", trial)
    for nearest, low, expected, chosen in ((1, 3, [None, "near"], None), (1, 50, [None, "far"], "far"),
                                           (2, 3, [None, "near", "far"], "far"), (0, 3, [], None)):  # fmt: skip
        model = copy.deepcopy(committed)
        tried.clear()
        assert model.choose_branch("new", batches(data(5, low)), PRUNING, nearest=nearest) == chosen
        assert tried == expected


def test_a_trial_leaves_no_trace_and_does_not_ask_what_was_before(committed: EideticModel) -> None:
    model = copy.deepcopy(committed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        model.added["new"] = committed.added["new"]
        losses: dict[str | None, float] = {}
        for candidate in (None, "near", "far"):
            given = batches(data(5))
            losses[candidate] = branching._trial(model, "new", candidate, PRUNING, given[:4], given[4:], 1e-2)
        found.append(losses)
        assert model.added["new"].forward_transfer == "auto" and model.learning is None and not model.training
        assert torch.equal(torch.random.get_rng_state(), state)
        after = model.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert found[0] == found[1] and len(set(found[0].values())) == 3
    with pytest.raises(ValueError, match="input_ids"):  # what fails leaves none either
        model.choose_branch("new", [{"labels": batch["labels"]} for batch in batches(data(5))], PRUNING)
    assert model.added["new"].forward_transfer == "auto" and model.learning is None


def test_the_trainer_tries_and_the_task_is_that_of_whoever_names_its_branch(
    committed: EideticModel, tmp_path: Path
) -> None:
    hashes, then = [], logits_of(committed, "near")
    for based_on in ("auto", "near"):
        model = copy.deepcopy(committed)
        model.added.pop("new")
        torch.manual_seed(len(based_on))
        learn(model, "new", tmp_path, data(5), based_on=based_on)
        assert model.record("new").ancestors == ["near"] and model.verify().ok
        assert torch.equal(logits_of(model, "near"), then)
        model.save_pretrained(tmp_path / based_on)
        hashes.append(sha256_of(tmp_path / based_on / "eidetic-task-new.safetensors"))
    assert hashes[0] == hashes[1]


def test_a_resumed_run_goes_on_where_it_began_without_trying_again(
    committed: EideticModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = copy.deepcopy(committed), copy.deepcopy(committed)
    learn(whole, "new", tmp_path, data(5), save_strategy="steps", save_steps=4)
    checkpoint = tmp_path / "checkpoint-4"
    values = json.loads((checkpoint / "config.json").read_text())
    assert values["learning"] == "new" and values["learning_ancestors"] == ["near"]
    with monkeypatch.context() as patch:
        patch.setattr(EideticModel, "choose_branch", lambda *args, **kwargs: pytest.fail("tried again"))
        learn(resumed, "new", tmp_path / "again", data(5), resume=str(checkpoint))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert whole.config.learning_ancestors is None
    other = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth="copy")
    other.add_task("new", labels=LABELS, based_on="auto")
    with pytest.raises(TaskError, match=r"'new' began on the branch \['near'\], and \['near'\] is not committed"):
        learn(other, "new", tmp_path / "other", data(5), resume=str(checkpoint))


def test_the_callback_alone_says_that_a_branch_has_to_be_chosen_before(
    committed: EideticModel, tmp_path: Path
) -> None:
    model, rows = copy.deepcopy(committed), data(5)

    def trainer() -> Trainer:
        callbacks = [EideticCallback("new", PRUNING)]
        return Trainer(model, arguments(tmp_path, max_steps=4), train_dataset=rows, callbacks=callbacks)

    with pytest.raises(
        TaskError, match=r"'new' was added with based_on='auto'.*model.choose_branch\('new', batches\)"
    ):
        trainer()
    assert model.choose_branch("new", batches(rows), PRUNING) == "near"
    trainer().train()
    assert model.record("new").ancestors == ["near"] and model.verify().ok


def test_a_task_that_waits_for_its_branch_is_evaluated_as_it_would_begin(
    committed: EideticModel, tmp_path: Path
) -> None:
    model = copy.deepcopy(committed)
    blind = EideticTrainer(model, "new", arguments(tmp_path), PRUNING, eval_dataset=data(6))
    with pytest.raises(TaskError, match="no branch has been tried for it"):
        blind.evaluate()
    trainer = EideticTrainer(
        model, "new", arguments(tmp_path, learning_rate=1e-2), PRUNING, train_dataset=data(5), eval_dataset=data(6)
    )
    trainer.evaluate()
    assert model.added["new"].forward_transfer == ["near"] and model.learning is None


def test_rows_are_from_all_over_the_data_and_without_what_nobody_reads(
    committed: EideticModel, tmp_path: Path
) -> None:
    rows = data(5).add_column("text", ["w"] * 96)
    trainer = EideticTrainer(committed, "new", arguments(tmp_path), PRUNING, train_dataset=rows)
    found = list(branch_batches(committed, trainer.args, rows, trainer.data_collator))
    assert [len(batch["labels"]) for batch in found] == [16] * 6 and set(found[0]) == {*rows.column_names} - {"text"}
    drawn = torch.cat([batch["input_ids"] for batch in found]).tolist()
    assert sorted(drawn) == sorted(rows["input_ids"][:]) and drawn != rows["input_ids"][:]
    few = list(branch_batches(committed, trainer.args, rows.select(range(9)), trainer.data_collator))
    assert [len(batch["labels"]) for batch in few] == [2, 2, 2, 2, 1]
    stream = rows.to_iterable_dataset()
    assert len(list(branch_batches(committed, trainer.args, stream, trainer.data_collator))) == 6


def test_what_can_not_be_chosen_is_said(committed: EideticModel) -> None:
    model, given = copy.deepcopy(committed), batches(data(5))
    with pytest.raises(ValueError, match="Got 3 batches to choose a branch for 'new' by; expected 4 at least"):
        model.choose_branch("new", given[:3])
    with pytest.raises(TaskError, match="There is no task 'nobody'"):
        model.choose_branch("nobody", given)
    for name in ("near", "plain"):
        if name == "plain":
            model.add_task(name, labels=LABELS)
        with pytest.raises(TaskError, match=f"There is no branch to choose for '{name}'"):
            model.choose_branch(name, given)
    model.begin_task("plain", PRUNING)
    with pytest.raises(TaskError, match="'plain' is being learned"):
        model.choose_branch("new", given)
    assert model.learning == "plain" and model.added["new"].forward_transfer == "auto"
    with pytest.raises(TaskError, match="based_on= is for growth='copy'"):
        tiny_model().add_task("new", labels=LABELS, based_on="auto")


def test_distances_are_between_means_in_units_of_what_tasks_spread() -> None:
    generator = torch.Generator().manual_seed(0)

    def left(shift: float, rows: int = 400) -> TaskStatistics:
        features = (torch.randn(rows, 3, generator=generator) * torch.tensor([10.0, 20.0, 5.0])).round()
        features[:, 2] += shift
        found = RouterSums.zeros(2, 3)
        found.add(features, torch.arange(rows) % 2)
        return statistics_of(kept_of(found, 3))

    others = {"b": left(20), "a": left(0), "c": left(-10, 50)}
    found = distances("new", list(others), {**others, "new": left(0)}.__getitem__)
    assert list(found) == ["a", "b", "c"]
    assert found["a"] < 0.1 and found["b"] == pytest.approx(16, rel=0.2) and found["c"] == pytest.approx(4, rel=0.3)
