"""Which units are kept: importance, schedule, floors, budgets."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.backbones import tiny_model
from support.data import arguments, learn, make_data

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig, TaskError
from eidetic_hf.model.pruning import choose_units, cubic_keep
from eidetic_hf.network.importance import UnitProbe, importances
from eidetic_hf.views import LEARNING, View


def test_the_cubic_schedule_starts_at_everything_ends_at_the_target_and_is_steepest_first() -> None:
    kept = [cubic_keep(step / 10, 0.3) for step in range(11)]
    assert kept[0] == 1 and kept[10] == 0.3
    assert all(a > b for a, b in pairwise(kept))
    assert kept[0] - kept[1] > 10 * (kept[8] - kept[9])
    assert cubic_keep(0.5, 0.3) == pytest.approx(0.3 + 0.7 * 0.125)


def test_one_threshold_holds_over_all_layers_but_for_floors_and_the_dead_stay_dead() -> None:
    scores = [torch.tensor([9.0, 8.0, 7.0, math.nan]), torch.tensor([1.0, 2.0, 3.0, 100.0])]
    alive = [torch.ones(4, dtype=torch.bool), torch.tensor([True, True, True, False])]
    masks = choose_units(scores, alive, 4, [0, 0])
    assert [m.tolist() for m in masks] == [[True, True, True, False], [False, False, True, False]]
    masks = choose_units(scores, alive, 4, [0, 2])
    assert [m.tolist() for m in masks] == [[True, True, False, False], [False, True, True, False]]
    masks = choose_units(scores, alive, 100, [0, 0])  # never more than what is alive
    assert [int(m.sum()) for m in masks] == [4, 3]


def test_ties_are_broken_the_same_way_every_time() -> None:
    scores, alive = [torch.zeros(6)] * 2, [torch.ones(6, dtype=torch.bool)] * 2
    assert [m.tolist() for m in choose_units(scores, alive, 3, [1, 1])] == [
        [True, True, False, False, False, False],
        [True, False, False, False, False, False],
    ]


@pytest.mark.parametrize("measure", ["fisher", "taylor"])
def test_the_probe_scores_the_gradient_of_a_units_gate_and_leaves_padding_out(measure: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 8, requires_grad=True)  # four units of width two
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    weight = torch.randn(3, 5, 8)
    scores = torch.zeros(4)
    (UnitProbe.apply(hidden, scores, None, View(LEARNING, probe=measure, token_mask=mask)) * weight).sum().backward()
    by_token = (hidden.detach() * weight).unflatten(-1, (4, 2)).sum(-1) * mask.unsqueeze(-1)
    by_sequence = by_token.sum(1)
    expected = by_sequence.square().sum(0) if measure == "fisher" else by_sequence.sum(0).abs()
    torch.testing.assert_close(scores, expected)
    assert torch.equal(hidden.grad, weight)


def test_scores_of_kept_units_land_in_their_places() -> None:
    hidden = torch.ones(1, 1, 2, requires_grad=True)
    scores = torch.zeros(5)
    view = View(LEARNING, probe="fisher")
    UnitProbe.apply(hidden, scores, torch.tensor([1, 4]), view).mul(torch.tensor([2.0, 3.0])).sum().backward()
    assert scores.tolist() == [0, 4, 0, 0, 9]


def test_padding_tokens_change_no_score(tmp_path: Path) -> None:
    """The same sequences, padded further: the scores stay, up to rounding."""
    totals = []
    for extra in (0, 7):
        model = tiny_model()
        model.add_task("first", labels=["x", "y", "z"])
        learner = model.begin_task("first")
        learner.active_probe = "fisher"
        torch.manual_seed(0)
        model.heads[LEARNING].classifier.weight.data.normal_()
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        data = make_data(0)[:8]
        batch = {name: torch.tensor(value) for name, value in data.items()}
        for name in ("input_ids", "attention_mask"):
            batch[name] = torch.nn.functional.pad(batch[name], (0, extra))
        model(**batch).loss.backward()
        learner.gather_importance()
        totals.append(torch.cat([group.importance() for group in model.groups.values()]))
    assert (totals[0] > 0).all()
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("importance", importances())
def test_no_importance_touches_an_owned_unit(importance: str, tmp_path: Path) -> None:
    model = tiny_model()
    pruning = PruningConfig(keep=0.5, importance=importance)
    learn(model, "first", tmp_path, pruning=pruning)
    owned = {name: group.units.get("@first").clone() for name, group in model.groups.items()}
    learn(model, "second", tmp_path, 1, pruning=pruning)
    for name, group in model.groups.items():
        assert torch.equal(group.units.get("@first"), owned[name])
        ids = torch.cat([group.units.get(key) for key in ("@first", "@second", "pool")])
        assert sorted(ids.tolist()) == list(range(group.total))
    shares = model.capacity()["free_share_by_kind"]
    assert shares["neurons"] == pytest.approx(0.25, abs=0.02)
    assert model.verify().ok


def test_random_and_weight_norms_choose_what_they_say(tmp_path: Path) -> None:
    model = tiny_model()
    model.add_task("first", labels=["x", "y"])
    learner = model.begin_task("first", PruningConfig(keep=0.25, importance="l2", floor=0.0))
    group = model.groups["layers_1_neurons"]
    up, down = (member.segments[LEARNING].weight for member in group.members)
    torch.testing.assert_close(learner.importance(group), (up.square().sum(1) + down.square().sum(1)).sqrt())
    learner.config = PruningConfig(importance="l1")
    torch.testing.assert_close(learner.importance(group), up.abs().sum(1) + down.abs().sum(1))
    learner.config = PruningConfig(importance="random", seed=1)
    once = learner.importance(group)
    assert torch.equal(once, learner.importance(group))
    assert not torch.equal(once, learner.importance(model.groups["layers_2_neurons"]))
    learner.config = PruningConfig(importance="random", seed=2)
    assert not torch.equal(once, learner.importance(group))


def test_every_layer_keeps_its_floor_and_at_least_one_unit_of_each_kind(tmp_path: Path) -> None:
    model = tiny_model()
    learn(model, "first", tmp_path, pruning=PruningConfig(keep=0.05, importance="l2", floor=1.0))
    units = model.record("first").units
    assert units["layers.1.heads"] == units["layers.2.heads"] == 1
    assert units["layers.1.neurons"] == units["layers.2.neurons"] == 3


def test_pruned_units_return_at_their_pretrained_values(tmp_path: Path) -> None:
    model = tiny_model()
    before = {}
    for name, group in model.groups.items():
        for index, member in enumerate(group.members):
            before[name, index] = member.segments["pool"].weight.clone()
    learn(model, "first", tmp_path)
    for name, group in model.groups.items():
        for index, member in enumerate(group.members):
            free = member.rows(group.units.get("pool").long())
            assert torch.equal(member.segments["pool"].weight, before[name, index][free])
            own = member.rows(group.units.get("@first").long())
            assert not torch.equal(member.segments["@first"].weight, before[name, index][own])


def test_random_recycling_draws_pruned_units_anew(tmp_path: Path) -> None:
    model = tiny_model()
    before = model.groups["layers_1_neurons"].members[0].segments["pool"].weight.clone()
    learn(model, "first", tmp_path, pruning=PruningConfig(keep=0.4, recycle="random"))
    group = model.groups["layers_1_neurons"]
    pool = group.members[0].segments["pool"]
    assert not (pool.weight == before[group.units.get("pool").long()]).any()
    assert pool.weight.std() == pytest.approx(0.02, rel=0.2)
    assert (pool.bias == 0).all()


def fill(model: EideticModel, folder: Path) -> None:
    learn(model, "first", folder, pruning=PruningConfig(keep=1.0))
    assert model.capacity()["free"] == 0


def test_an_exhausted_pool_leaves_private_parameters_to_learn_with(tmp_path: Path) -> None:
    model = tiny_model()
    fill(model, tmp_path)
    trainer = learn(model, "second", tmp_path, 1, max_steps=150, learning_rate=0.03)
    assert sum(model.record("second").units.values()) == 0
    private = sum(t.numel() for n, t in model.task_tensors("second").items() if "@second" in n)
    assert 0 < private < 1500
    assert trainer.evaluate()["eval_accuracy"] > 0.5
    assert model.verify().ok


@pytest.mark.parametrize("importance", importances())
def test_one_exhausted_group_among_others_is_no_obstacle(importance: str, tmp_path: Path) -> None:
    model = tiny_model()
    model.add_task("first", labels=["x", "y", "z"])
    learner = model.begin_task("first", PruningConfig(keep=1.0))
    for name in ("layers_1_heads", "layers_2_neurons"):
        model.groups[name].progress.get("kept")[2:] = False
    model.commit_task()
    assert learner.complete
    assert model.capacity()["groups"]["layers.1.neurons"]["free"] == 0
    learn(model, "second", tmp_path, pruning=PruningConfig(keep=0.4, importance=importance, keep_ancestors=0.9))
    assert model.record("second").units["layers.1.neurons"] == 0
    assert model.record("second").units["layers.2.neurons"] == 25
    assert model.verify().ok


def test_an_exhausted_pool_can_be_an_error_or_expanded(tmp_path: Path) -> None:
    model = tiny_model()
    fill(model, tmp_path)
    model.add_task("second", labels=["x", "y", "z"])
    with pytest.raises(TaskError, match=r"No unit is free in 4 of 4 groups.*on_exhausted='private' or 'expand'"):
        model.begin_task("second", PruningConfig(on_exhausted="error"))
    trainer = EideticTrainer(
        model=model,
        task="second",
        args=arguments(tmp_path),
        pruning=PruningConfig(keep=0.5, floor=1.0, on_exhausted="expand", expand_by=0.25),
        train_dataset=make_data(1),
    )
    trainer.train()
    assert model.capacity()["groups"]["layers.1.neurons"] == {"first": 64, "second": 8, "free": 8}
    assert model.verify().ok
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert loaded.capacity() == model.capacity()
    assert loaded.verify().ok


def test_abandoning_a_task_takes_its_expansion_back(tmp_path: Path) -> None:
    model = tiny_model()
    fill(model, tmp_path)
    before, capacity = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model.capacity()
    model.add_task("second", labels=["x", "y", "z"])
    model.begin_task("second", PruningConfig(on_exhausted="expand", expand_by=0.25))
    assert model.capacity()["groups"]["layers.1.neurons"]["free"] == 16
    model.abandon_task()
    after = model.state_dict()
    assert model.capacity() == capacity and after.keys() == before.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    with pytest.raises(ValueError, match=r"no unit group 'layers.9.heads'"):
        model.expand(4, ["layers.9.heads"])
    with pytest.raises(ValueError, match="expected 1 together with a tolerance"):
        PruningConfig(tolerance=0.1, keep_ancestors=0.5)


def test_expanding_changes_no_output_even_of_the_network_being_learned(trained: EideticModel) -> None:
    import copy

    plain, grown = copy.deepcopy(trained), copy.deepcopy(trained)
    grown.expand(8)
    outputs = []
    for model in (plain, grown):
        model.add_task("third", labels=["x", "y", "z"])
        torch.manual_seed(0)
        model.begin_task("third")
        data = {name: torch.tensor(value) for name, value in make_data(5)[:4].items()}
        outputs.append(model.eval()(**data, output_hidden_states=True).hidden_states[-1])
    assert (
        grown.capacity()["groups"]["layers.2.heads"]["free"]
        == plain.capacity()["groups"]["layers.2.heads"]["free"] + 8
    )
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize("tolerance", [0.0, 1e9])
def test_a_tolerance_prunes_as_far_as_the_metric_allows_and_rolls_back_what_it_does_not(
    tolerance: float, tmp_path: Path
) -> None:
    model = tiny_model()
    model.add_task("first", labels=["x", "y", "z"])
    trainer = EideticTrainer(
        model=model,
        task="first",
        args=arguments(tmp_path, max_steps=40),
        pruning=PruningConfig(tolerance=tolerance, rounds=3, start=0.2, end=0.8, floor=0.0),
        train_dataset=make_data(0),
        eval_dataset=make_data(1, rows=16),
    )
    evaluations = []
    inner = trainer.callback_handler.on_evaluate

    def on_evaluate(args: object, state: object, control: object, metrics: dict[str, float]) -> object:
        evaluations.append(model.learner.kept_share())
        if tolerance == 0 and len(evaluations) > 1:
            metrics["eval_loss"] = 100.0
        return inner(args, state, control, metrics)

    trainer.callback_handler.on_evaluate = on_evaluate
    trainer.train()
    owned = 1 - model.capacity()["free_share"]
    if tolerance == 0:
        assert evaluations == pytest.approx([1.0, 0.5, 0.75, 0.875], abs=0.05)
        assert owned == 1.0
    else:
        assert evaluations == pytest.approx([1.0, 0.5, 0.25, 0.125], abs=0.05)
        assert owned == pytest.approx(0.125, abs=0.03)
    assert model.verify().ok


def test_distillation_pulls_the_pruned_networks_logits_towards_the_unpruned_ones(tmp_path: Path) -> None:
    model = tiny_model()
    model.add_task("first", labels=["x", "y", "z"])
    learner = model.begin_task("first", PruningConfig(keep=0.2, distillation=0.5, importance="l2"))
    batch = {name: torch.tensor(value) for name, value in make_data(0)[:16].items()}
    model.train()
    plain = model(**batch).loss.item()
    learner.take_snapshot("teacher")
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    learner.prune(0.2)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    output = model(**batch)
    hard = torch.nn.functional.cross_entropy(output.logits, batch["labels"]).item()
    assert math.isfinite(plain) and output.loss.item() != pytest.approx(0.5 * hard, rel=1e-4)
    output.loss.backward()
    optimizer.step()
    assert model.training
    restored = dict(model.named_parameters())
    learner.restore_snapshot("teacher")
    zero = model(**batch)
    hard = torch.nn.functional.cross_entropy(zero.logits, batch["labels"]).item()
    # The network is its own teacher again, so that only the hard half of the loss is left.
    assert zero.loss.item() == pytest.approx(0.5 * hard, rel=1e-5)
    assert all(parameter.grad is not None for parameter in restored.values())
