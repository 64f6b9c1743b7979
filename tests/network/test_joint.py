"""A batch of several tasks in one pass: base's products once for all rows, the copies' beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.backbones import ALL_CONFIGS, CONFIGS, tiny_backbone
from support.data import make_batch
from support.exactness import poison
from support.writers import GREEDY, WRITERS, kind_of_writing, pretrained, prompts
from transformers import BertForMaskedLM

from eidetic_hf import EideticModel, PruningConfig, TaskError
from eidetic_hf.network import units
from eidetic_hf.views import BASE, LEARNING, View

# All but those that compute positions once for all sequences.
ARCHITECTURES = sorted(set(ALL_CONFIGS) - {"deberta-v2", "deberta-v2-own-keys"})
LABELS = {"first": 2, "masked": 3, "branch": 2, "other": 4}
TASKS = ["branch", "first", "masked", "first", "branch", "masked", "first"]


def commit(
    model: EideticModel,
    name: str,
    seed: int,
    see: float = 1.0,
    based_on: str | None = None,
    task_type: str = "sequence-classification",
) -> None:
    """A task with random copies, gates, norms and biases, which reads a share of base."""
    labels = [f"{name}{number}" for number in range(LABELS[name])] if "classification" in task_type else None
    model.add_task(name, task_type, labels, based_on=based_on)
    model.begin_task(name, PruningConfig(own=0.3))
    scatter(model, seed, see)
    batch = {**make_batch(seed, rows=16), "labels": torch.arange(16) % LABELS[name]}
    model.commit_task(router_sums=model.router_sums([batch]) if labels else None)


@torch.no_grad()
def scatter(model: EideticModel, seed: int, see: float = 1.0) -> None:
    """Draw all that the task being learned trains, and which share of base it reads."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    for group in model.groups.values():
        reads = group.kept("_ancestors")
        masked = torch.rand(reads.shape, generator=generator) >= see
        masked[0] = False
        reads[masked] = False
        group.forget_learning_views()


def tasks_of(architecture: str, writes: bool = False) -> EideticModel:
    """Three tasks that classify, or that write."""
    backbone = pretrained(architecture) if writes else tiny_backbone(architecture)
    trunk_layers = 0 if architecture == "albert" else 1
    model = EideticModel.from_backbone(backbone, trunk_layers=trunk_layers, growth="copy")
    task_type = kind_of_writing(model) if writes else "sequence-classification"
    commit(model, "first", 1, task_type=task_type)
    commit(model, "masked", 2, see=0.6, task_type=task_type)
    commit(model, "branch", 3, see=0.8, based_on="masked", task_type=task_type)
    return model


@torch.no_grad()
def mixed(model: EideticModel, tasks: list[str] | None = None, **kwargs: Any) -> torch.Tensor:
    tasks = TASKS if tasks is None else tasks
    return model(**make_batch(rows=len(tasks)), task=tasks, **kwargs).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_several_tasks_are_answered_in_one_pass_as_by_each_task(architecture: str) -> None:
    model = tasks_of(architecture)
    assert model.mixed_batches == "joint"
    joint = mixed(model)
    model.mixed_batches = "apart"
    apart = mixed(model)
    assert not torch.equal(joint, apart)  # else it was not computed in another way
    torch.testing.assert_close(joint, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_later_tasks_and_files_change_no_bit_of_a_mixed_batch(architecture: str, tmp_path: Path) -> None:
    model = tasks_of(architecture)
    answers = mixed(model)
    commit(model, "other", 4, based_on="branch")
    assert torch.equal(mixed(model)[:, : answers.shape[1]], answers)
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    assert loaded.mixed_batches == "joint"
    assert torch.equal(mixed(loaded)[:, : answers.shape[1]], answers)
    pair = ["first", "branch", "first"]  # reads no private tensor of "masked", but its units
    assert torch.equal(mixed(poison(model, *set(pair)), pair), mixed(model, pair))
    assert torch.equal(mixed(poison(model, *set(TASKS))), mixed(model))


def test_a_row_is_the_same_up_to_rounding_whatever_the_other_rows_are() -> None:
    model = tasks_of("bert")
    batch = make_batch(rows=6)
    with torch.no_grad():
        whole = model(**batch, task=["first", "masked", "branch"] * 2).logits
        for rows in ([0, 1], [5, 0, 4], [3, 2, 1, 4]):
            part = {name: value[rows] for name, value in batch.items()}
            names = [["first", "masked", "branch"][row % 3] for row in rows]
            torch.testing.assert_close(model(**part, task=names).logits, whole[rows], rtol=1e-5, atol=1e-5)


def test_what_was_used_longest_ago_leaves_the_cache_first() -> None:
    model = tasks_of("bert")
    model.cache_bytes = 0
    model.cache_bytes = None
    mixed(model, ["first"] * 7)
    size = model.network.cache.used
    mixed(model, ["masked"] * 7)
    mixed(model, ["first"] * 7)  # which gathers nothing
    model.cache_bytes = model.network.cache.used
    before = mixed(model, ["masked"] * 3 + ["first"] * 4)  # its own cache: what "first" copied is read in place
    mixed(model, ["branch"] * 7)
    linear = model.network.projections[-1]
    held = {key for key in ("@first", "@masked", "@branch") if key in linear._plans}
    assert size > 0 and held == {"@first", "@branch"}
    assert torch.equal(mixed(model, ["masked"] * 3 + ["first"] * 4), before)


KINDS = {
    "token-classification": {"labels": ["O", "B-x", "I-x"]},
    "question-answering": {},
    "multiple-choice": {},
    "masked-lm": {},
    "feature-extraction": {"pooling": "mean"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_answers_each_row_with_its_own_head(kind: str) -> None:
    model = EideticModel.from_backbone(BertForMaskedLM(CONFIGS["bert"]()), trunk_layers=1, growth="copy")
    for seed, name in enumerate(("first", "branch")):
        model.add_task(name, kind, **KINDS[kind])
        model.begin_task(name, PruningConfig(own=0.3))
        scatter(model, seed)
        model.commit_task()
    batch = make_batch(rows=6)
    if kind == "multiple-choice":
        batch = {name: value.unflatten(0, (3, 2)) for name, value in batch.items()}
    names = ["branch", "first", "branch"] if kind == "multiple-choice" else ["branch", "first"] * 3
    answers = {}
    for way in ("joint", "apart"):
        model.mixed_batches = way
        with torch.no_grad():
            answers[way] = model(**batch, task=names)
    parts = [part for part, value in answers["joint"].items() if isinstance(value, torch.Tensor)]
    assert parts
    for part in parts:
        assert not torch.equal(answers["joint"][part], answers["apart"][part])
        torch.testing.assert_close(answers["joint"][part], answers["apart"][part], rtol=1e-5, atol=1e-5)


def test_the_router_sends_rows_of_one_batch_to_several_tasks_side_by_side() -> None:
    model = tasks_of("bert")
    batch = make_batch(rows=8)
    with torch.no_grad():
        routed = model(**batch)
        given = model(**batch, task=routed.tasks)
    assert len(set(routed.tasks)) > 1
    assert torch.equal(routed.logits, given.logits)


def test_gradients_reach_what_a_mixed_batch_was_computed_from() -> None:
    model = tasks_of("bert")
    ids = make_batch(rows=4)["input_ids"]
    found = {}
    for way in ("joint", "apart"):
        model.mixed_batches = way
        embedded = model.get_input_embeddings()(ids).requires_grad_()
        logits = model(inputs_embeds=embedded, task=["first", "masked", "branch", "first"]).logits
        logits[logits.isfinite()].square().sum().backward()
        found[way] = embedded.grad
    assert float(found["apart"].abs().max()) > 0
    torch.testing.assert_close(found["joint"], found["apart"], rtol=1e-4, atol=1e-6)


def test_bfloat16_and_autocast_answer_mixed_batches() -> None:
    model = tasks_of("bert")
    exact = mixed(model)
    finite = exact.isfinite()
    with torch.autocast("cpu", torch.bfloat16):
        cast = mixed(model)
    torch.testing.assert_close(cast.float()[finite], exact[finite], rtol=0.1, atol=0.1)
    model.mixed_batches = "apart"
    mixed(model)
    model.to(torch.bfloat16)  # what was gathered before is gathered again
    for way in ("apart", "joint"):
        model.mixed_batches = way
        half = mixed(model)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float()[finite], exact[finite], rtol=0.1, atol=0.1)


def test_tasks_that_know_other_tokens_are_computed_apart() -> None:
    model = tasks_of("bert")
    model.resize_token_embeddings(model.config.vocab_size + 8)
    batch = {"input_ids": torch.full((2, 6), 4), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    batch["input_ids"][1, 2] = 121
    model.add_task("other", labels=list("wxyz"))
    model.begin_task("other", PruningConfig(own=0.3))
    model(**batch, labels=torch.tensor([0, 1]))  # reads a new token, and so takes them all
    model.commit_task()
    assert model.network.runs_beside(["@first", "@masked"]) and not model.network.runs_beside(["@first", "@other"])
    with torch.no_grad():
        together = model(**batch, task=["first", "other"]).logits
        alone = model(input_ids=batch["input_ids"][1:], task="other").logits
    torch.testing.assert_close(together[1:, -4:], alone)


def test_the_way_is_chosen_where_there_are_two() -> None:
    model = tasks_of("bert")
    with pytest.raises(TaskError, match="mixed_batches='both': expected 'joint' or 'apart'"):
        model.mixed_batches = "both"
    fixed = EideticModel.from_backbone(tiny_backbone("bert"), growth="fixed")
    assert fixed.mixed_batches == "apart"
    with pytest.raises(TaskError, match="is for growth='copy'"):
        fixed.mixed_batches = "joint"
    shared = EideticModel.from_backbone(tiny_backbone("deberta-v2"), growth="copy")
    assert shared.mixed_batches == "apart"
    with pytest.raises(TaskError, match="computes its relative positions once"):
        shared.mixed_batches = "joint"
    with pytest.raises(ValueError, match=r"5 rows for 2 sequences.*mixed_batches = 'apart'"):
        list(View.several({"@a": 1, "@b": 1}).slices(5))


# -- writing ----------------------------------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "beams": {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2},
    "sampling": {"max_new_tokens": 5, "do_sample": True, "top_k": 1, "num_return_sequences": 2},
}


def written(model: EideticModel, way: str, **options: Any) -> tuple[list[list[int]], int]:
    """What prompts of several tasks are continued with, and how often the backbone ran for it."""
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    batch, tasks = prompts(model, rows=6), ["branch", "first", "masked", "first", "masked", "branch"]
    handle = model.backbone.register_forward_pre_hook(count)
    model.mixed_batches = way
    texts = model.generate(**batch, task=tasks, **options)
    handle.remove()
    return texts.tolist(), runs


@pytest.mark.parametrize("architecture", WRITERS)
def test_texts_of_several_tasks_are_written_in_one_loop(architecture: str) -> None:
    model = tasks_of(architecture, writes=True)
    for name, options in WAYS.items():
        joint, runs = written(model, "joint", **options)
        apart, runs_apart = written(model, "apart", **options)
        assert joint == apart, name
        assert 3 * runs == runs_apart or model.config.is_encoder_decoder, name
        assert len({tuple(text) for text in joint}) > 3


def test_a_text_that_has_ended_is_filled_up_while_others_go_on() -> None:
    model = tasks_of("gpt2", writes=True)
    end = written(model, "apart", **GREEDY)[0][1][8]  # what the second text begins with
    options = {**GREEDY, "eos_token_id": end, "pad_token_id": 3}
    joint, _ = written(model, "joint", **options)
    assert joint == written(model, "apart", **options)[0]
    assert joint[1][8:] == [end, *[3] * 6] and any(3 not in text[8:] for text in joint)


def test_output_embeddings_of_a_tasks_own_score_its_rows_alone() -> None:
    model = EideticModel.from_backbone(pretrained("gpt2"), trunk_layers=1, growth="copy")
    for seed, name in enumerate(("first", "masked", "branch")):
        model.add_task(name, "causal-lm", own_output_embeddings=name == "masked")
        model.begin_task(name, PruningConfig(own=0.3))
        scatter(model, seed)
        model.commit_task()
    assert written(model, "joint", **GREEDY)[0] == written(model, "apart", **GREEDY)[0]


def test_tasks_whose_texts_end_otherwise_write_one_after_another() -> None:
    model = tasks_of("gpt2", writes=True)
    model.record("masked").special_tokens = {"eos_token_id": 7, "pad_token_id": 9}
    joint, runs = written(model, "joint", **GREEDY)
    assert (joint, runs) == written(model, "apart", **GREEDY)


# -- learning ---------------------------------------------------------------------------------------------------------


def gradients(model: EideticModel, probe: str) -> dict[str, torch.Tensor]:
    """The loss, the gradients of all that is trained, and what probes read, of a step."""
    batch = {**make_batch(rows=4), "labels": torch.tensor([0, 1, 1, 0])}
    model.zero_grad()
    for group in model.groups.values():
        group.reset()
        group.kept("_ancestors")[3] = False
        group.forget_learning_views()
    loss = model(**batch, view=View(LEARNING, probe=probe)).loss
    loss.backward()
    found = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }
    for name, group in model.groups.items():
        found |= {f"{name}{suffix}": group.reading(suffix).clone() for suffix in ("", "_ancestors")}
    return {**found, "loss": loss.detach()}


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "opt", "phi3", "t5", "deberta-v2"])
def test_base_read_where_it_lies_gives_what_gathered_units_give(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tasks_of(architecture)
    model.add_task("next", labels=["x", "y"], based_on="branch")
    model.begin_task("next", PruningConfig(own=0.1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    monkeypatch.setattr(units, "_DETOUR", 10)
    in_place = gradients(model, "fisher")
    assert all("learning:False" not in projection._plans for projection in model.network.projections)
    monkeypatch.setattr(units, "_DETOUR", 0)
    of_copies = gradients(model, "fisher")
    assert all("learning:False" in projection._plans for projection in model.network.projections)
    assert in_place.keys() == of_copies.keys() and len(in_place) > 20
    for name, value in of_copies.items():
        torch.testing.assert_close(in_place[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_what_is_learned_masks_out_much_of_base_before_its_units_are_gathered() -> None:
    model = tasks_of("bert")
    model.add_task("next", labels=["x", "y"])
    model.begin_task("next", PruningConfig(own=0.05))
    group = model.groups["layers_2_neurons"]
    assert group.learning_difference(False) is not None and group.learning_difference(True) is not None
    group.kept("_ancestors")[: group.count(BASE) // 2] = False
    group.forget_learning_views()
    assert group.learning_difference(False) is None and group.learning_difference(True) is not None
    whole = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth="fixed")
    whole.add_task("next", labels=["x", "y"])
    whole.begin_task("next")
    assert whole.groups["layers_2_neurons"].learning_difference(False) is None
