"""Tasks that come and go: all others answer as before, bit for bit, and nothing of what went stays behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from golden import make_golden
from golden.make_golden import BERT, answer_of
from support.backbones import BERT_LIKE, tiny_backbone
from support.data import logits_of, make_batch
from support.exactness import poison
from support.folders import answers, edit_json, hashes, same, shards
from support.quick import learn_quickly
from torch import Tensor
from transformers import AutoModel, BertConfig

from eidetic_hf import CheckpointError, EideticModel, TaskError
from eidetic_hf.model import certificate, joining
from eidetic_hf.model.certificate import Evidence

GROWTHS = ["fixed", "copy"]
GOLDEN = Path(__file__).parents[1] / "golden"


def start(growth: str, seed: int = 0, **kwargs: Any) -> EideticModel:
    return EideticModel.from_backbone(tiny_backbone("bert", seed), trunk_layers=1, growth=growth, **kwargs)


def learn(model: EideticModel, name: str, seed: int, on: str | None = None, **kwargs: Any) -> None:
    """Learn a task from base or no other, or one that reads another."""
    if model.config.growth == "copy":
        learn_quickly(model, name, seed, based_on=on, **kwargs)
    else:
        learn_quickly(model, name, seed, forward_transfer="none" if on is None else [on], **kwargs)


class Pair(NamedTuple):
    """Two models of one backbone, with a task and one that reads it each.

    Attributes:
        ours: with `a` and `b`.
        theirs: with `c` and `d`.
        folder: with `ours` and `theirs` saved.
        answers: of all tasks.
    """

    ours: EideticModel
    theirs: EideticModel
    folder: Path
    answers: dict[str, Tensor]


@pytest.fixture(scope="module", params=GROWTHS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    ours, theirs = start(request.param), start(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    for seed, (model, names) in enumerate(((ours, "ab"), (theirs, "cd"))):
        learn(model, names[0], seed)
        learn(model, names[1], seed + 10, names[0])
    ours.save_pretrained(folder / "ours")
    theirs.save_pretrained(folder / "theirs")
    return Pair(ours, theirs, folder, {**answers(ours), **answers(theirs)})


def state(model: EideticModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_as(model: EideticModel, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def backbone_for(model: EideticModel) -> Any:
    return tiny_backbone("bert") if model.config.growth == "fixed" else None


# -- merged -----------------------------------------------------------------------------------------------------------


def test_a_merged_model_answers_for_all_tasks_of_both_bit_for_bit(pair: Pair, tmp_path: Path) -> None:
    model = copy.deepcopy(pair.ours)
    assert model.merge(pair.folder / "theirs") == ["c", "d"]
    assert same(answers(model), pair.answers) and model.verify().ok
    for name, logits in pair.answers.items():
        assert torch.equal(logits_of(poison(model, name), name), logits), name
    model.save_pretrained(tmp_path / "both")
    loaded = EideticModel.from_pretrained(tmp_path / "both")
    assert same(answers(loaded), pair.answers) and loaded.verify().ok
    both = shards(tmp_path / "both")
    for folder in ("ours", "theirs"):  # a shard is handed on as it is
        for name, sha256 in shards(pair.folder / folder).items():
            assert name == "eidetic-pool.safetensors" or both[name] == sha256, name
    learn(loaded, "next", 3, "c")
    assert loaded.verify().ok and same({name: logits_of(loaded, name) for name in pair.answers}, pair.answers)


def test_merging_counts_each_unit(pair: Pair) -> None:
    model = copy.deepcopy(pair.ours)
    model.merge(pair.theirs)
    capacity, ours, theirs = model.capacity(), pair.ours.capacity(), pair.theirs.capacity()
    assert capacity["owned"] == {**ours["owned"], **theirs["owned"]}
    for group in model.network.unit_groups():
        keys = ["@a", "@b", "@c", "@d"]
        ids = [set(group.units.need(key).tolist()) for key in [*keys, "pool"]]
        if model.config.growth == "fixed":  # claimed by both: there twice, and free only if nobody claimed it
            assert ids[4] == set(range(group.total - model.config.expanded.get(group.name, 0))).difference(*ids[:4])
        assert group.owners.total == sum(group.count(key) for key in group.order)
    if model.config.growth == "fixed":
        assert sum(model.config.expanded.values()) == capacity["total"] - ours["total"] > 0


def test_the_router_of_a_merged_model_is_that_of_one_that_learned_everything() -> None:
    models = [start("copy") for _ in range(3)]
    for number, names in enumerate((["a"], ["b"], ["a", "b"])):
        for name in names:
            learn(models[number], name, ord(name))
    models[0].merge(models[1])
    batch = make_batch(rows=8)
    first, second = models[0].route(**batch), models[2].route(**batch)
    assert first.tasks == second.tasks and torch.equal(first.router_scores, second.router_scores)


def test_what_both_have_is_shared_and_another_task_of_the_same_name_is_an_error(pair: Pair) -> None:
    model = copy.deepcopy(pair.ours)
    assert model.merge(pair.ours) == [] and model.merge(pair.folder / "ours", prefix="x-") == []
    other = start(model.config.growth)
    learn(other, "a", 77)
    before = state(model)
    with pytest.raises(TaskError, match=r"another task 'a' here than the 'a' of the other model.*prefix='theirs-'"):
        model.merge(other)
    assert is_as(model, before) and model.tasks == ["a", "b"]
    assert model.merge(other, prefix="theirs-") == ["theirs-a"]
    assert torch.equal(logits_of(model, "theirs-a"), logits_of(other, "a")) and model.verify().ok
    learn(other, "e", 5, "a")
    with pytest.raises(TaskError, match=r"another task 'a' here"):  # which `e` reads
        model.load_task(other, "e")


# -- one task ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_folder", [False, True])
def test_a_task_comes_with_those_that_it_reads_under_any_name(pair: Pair, from_folder: bool, tmp_path: Path) -> None:
    source: Any = pair.folder / "theirs" if from_folder else pair.theirs
    model = copy.deepcopy(pair.ours)
    assert model.load_task(source, "d", name="renamed.v2") == ["c", "renamed.v2"]
    assert model.record("renamed.v2").ancestors == ["c"]
    assert torch.equal(logits_of(model, "renamed.v2"), pair.answers["d"]) and model.verify().ok
    assert torch.equal(logits_of(poison(model, "renamed.v2"), "renamed.v2"), pair.answers["d"])
    assert model.load_task(source, "c", name="again") == ["again"]
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path, tasks=["renamed.v2", "b"])
    assert torch.equal(logits_of(loaded, "renamed.v2"), pair.answers["d"]) and loaded.verify().ok
    assert torch.equal(logits_of(loaded, "b"), pair.answers["b"])


def test_a_task_comes_into_a_model_without_any_and_is_routed_to(pair: Pair) -> None:
    model = start(pair.ours.config.growth)
    assert model.load_task(pair.folder / "ours", "a") == ["a"]
    assert model.load_task(pair.folder / "theirs", "c") == ["c"]
    assert same(answers(model), {name: pair.answers[name] for name in "ac"})
    assert set(model.route(**make_batch(rows=8)).tasks) <= {"a", "c"}


def test_what_does_not_fit_is_refused_and_nothing_changes(pair: Pair, tmp_path: Path) -> None:
    model = copy.deepcopy(pair.ours)
    before = state(model)
    growth = model.config.growth
    another = start(growth, seed=1)
    learn(another, "z", 0)
    deeper = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=2, growth=growth)
    learn(deeper, "z", 0)
    narrow = AutoModel.from_config(BertConfig(**{**BERT_LIKE, "hidden_size": 16}))
    narrower = EideticModel.from_backbone(narrow, trunk_layers=1, growth=growth)
    learn(narrower, "z", 0)
    unlike = start("copy" if growth == "fixed" else "fixed")
    other_kind = EideticModel.from_backbone(tiny_backbone("roberta"), trunk_layers=1, growth=growth)
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: model.load_task(pair.theirs, "z"), TaskError, r"no task 'z' there; there are \['c', 'd'\]"),
        (lambda: model.load_task(another, "z"), TaskError, "another backbone than this model's.*differ first in back"),
        (lambda: model.merge(deeper), TaskError, "have trunk_layers=2, and this model has 1"),
        (lambda: model.merge(narrower), TaskError, "'z' of the other model does not fit this model"),
        (lambda: model.merge(unlike), TaskError, "growth="),
        (lambda: model.merge(other_kind), TaskError, "of a roberta backbone, and this model is a bert"),
        (lambda: model.load_task(pair.theirs, "c", name="a/b"), TaskError, "cannot name a task"),
        (lambda: model.load_task(tmp_path, "c"), CheckpointError, "has no config.json"),
        (lambda: model.load_task(pair.theirs, "c", nme="x"), TypeError, "nme"),
        (lambda: model.remove_task("nobody"), TaskError, r"no committed task 'nobody' to remove; committed are"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
        assert is_as(model, before) and model.tasks == ["a", "b"] and model.config.expanded == {}
    assert same(answers(model), {name: pair.answers[name] for name in "ab"})
    model.add_task("next", labels=["x", "y"])
    model.begin_task("next")
    for call in (lambda: model.merge(pair.theirs), lambda: model.remove_task("b")):
        with pytest.raises(TaskError, match="'next' is being learned"):
            call()


def test_a_damaged_shard_is_refused(pair: Pair, tmp_path: Path) -> None:
    pair.theirs.save_pretrained(tmp_path)
    path = tmp_path / "eidetic-task-c.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    model = copy.deepcopy(pair.ours)
    with pytest.raises(CheckpointError, match="not the file that was saved"):
        model.load_task(tmp_path, "c")
    assert model.tasks == ["a", "b"]


@pytest.mark.parametrize("where", ["_check_came", "_count", "fill_task"])
def test_a_failure_on_the_way_leaves_the_model_as_it_was(
    pair: Pair, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(pair.ours)
    before, calls = state(model), []

    def fail(*args: Any, **kwargs: Any) -> None:
        calls.append(where)
        if where == "_check_came" or len(calls) == 2:
            raise MemoryError("no room")
        original(*args, **kwargs)

    original = getattr(joining, where)
    monkeypatch.setattr(joining, where, fail)
    with pytest.raises(MemoryError):
        model.merge(pair.theirs)
    monkeypatch.undo()
    assert is_as(model, before) and model.config.expanded == {} and model.tasks == ["a", "b"]
    assert same(answers(model), {name: pair.answers[name] for name in "ab"}) and model.verify().ok
    assert model.merge(pair.theirs) == ["c", "d"] and same(answers(model), pair.answers)


@pytest.mark.parametrize("form", ["format_1", "format_2"])
def test_tasks_come_out_of_a_folder_of_any_format(form: str, tmp_path: Path) -> None:
    folder = GOLDEN / form / "bert"
    model = EideticModel.from_backbone(make_golden.backbone(BertConfig(**BERT)), trunk_layers=1, growth="fixed")
    assert model.load_task(folder, "answers", name="mine") == ["mine"]
    assert model.load_task(folder, "names", name="tags") == ["topics", "answers", "tags"]
    golden = EideticModel.from_pretrained(folder, tasks=["names"])
    assert torch.equal(answer_of(model, "tags"), answer_of(golden, "names"))
    assert model.verify().ok
    model.save_pretrained(tmp_path)
    assert EideticModel.from_pretrained(tmp_path).verify().ok
    again = EideticModel.from_pretrained(tmp_path)
    again.remove_task("mine", backbone=make_golden.backbone(BertConfig(**BERT)))
    assert torch.equal(answer_of(again, "tags"), answer_of(golden, "names")) and again.verify().ok


# -- removed ----------------------------------------------------------------------------------------------------------


def test_a_task_that_others_read_is_removed_with_them_or_not_at_all(pair: Pair) -> None:
    model = copy.deepcopy(pair.ours)
    model.merge(pair.theirs)
    model.add_task("next", labels=["x", "y"], **({"based_on": "b"} if model.config.growth == "copy" else {}))
    readers = "'b', 'next'" if model.config.growth == "copy" else "'b'"
    with pytest.raises(TaskError, match=rf"'a' can not be removed: \[{readers}\] read it.*cascade=True"):
        model.remove_task("a")
    assert model.tasks == ["a", "b", "c", "d"]
    gone = model.remove_task("a", cascade=True, backbone=backbone_for(model))
    assert gone[:2] == ["a", "b"] and ("next" in model.added) == (model.config.growth == "fixed")
    left = {name: pair.answers[name] for name in "cd"}
    assert same(answers(model), left) and model.verify().ok
    for name, logits in left.items():
        assert torch.equal(logits_of(poison(model, name), name), logits)
    with pytest.raises(TaskError, match="no task 'a'"):
        logits_of(model, "a")
    learn(model, "a", 9, "c")
    assert model.verify().ok and torch.equal(logits_of(model, "d"), pair.answers["d"])


def test_removing_the_last_tasks_leaves_the_model_that_had_not_learned_them(pair: Pair) -> None:
    before = state(pair.ours)
    model = copy.deepcopy(pair.ours)
    learn(model, "e", 4, "b")
    learn(model, "f", 5)
    model.remove_task("e", backbone=backbone_for(model))
    model.remove_task("f", backbone=backbone_for(model))
    assert is_as(model, before)
    model.merge(pair.theirs)
    model.remove_task("c", cascade=True, backbone=backbone_for(model))
    if model.config.growth == "copy":
        assert is_as(model, before)
    assert same(answers(model), answers(pair.ours)) and model.config.expanded == {}
    now = model.state_dict()
    assert {name for name in before if not torch.equal(now[name], before[name])} == set()


def test_after_saving_none_of_its_bytes_is_in_the_folder(pair: Pair, tmp_path: Path) -> None:
    model = copy.deepcopy(pair.ours)
    learn(model, "secret", 4, metrics={"accuracy": 0.123456789})
    model.save_pretrained(tmp_path)
    evidence = Evidence(model)
    record = model.record("secret")
    owned = {
        name: tensor
        for section in evidence.sections(record)
        if section.owner == "@secret"
        for name, tensor in evidence.tensors(section).items()
    }
    owned.update({name: t for name, t in model.state_dict().items() if ".@secret" in name and t.numel() > 3})
    rows = {
        (name, number): row.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        for name, tensor in owned.items()
        if tensor.is_floating_point() or "router" in name
        for number, row in enumerate(tensor.reshape(len(tensor) if tensor.dim() > 1 else 1, -1)[:9])
        if row.unique().numel() > 3
    }
    assert len(rows) > 100

    def found() -> set[tuple[str, int]]:
        contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        return {name for name, row in rows.items() if any(row in content for content in contents)}

    assert found() == set(rows)
    model.remove_task("secret", backbone=backbone_for(model))
    model.save_pretrained(tmp_path)
    assert found() == set()
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"secret" in text or b"0.123456789" in text for text in texts)
    assert hashes(tmp_path).keys() == hashes(pair.folder / "ours").keys()
    loaded = EideticModel.from_pretrained(tmp_path)
    assert same(answers(loaded), {name: pair.answers[name] for name in "ab"}) and loaded.verify().ok


def test_a_folder_keeps_a_task_of_the_same_name_that_is_another(pair: Pair, tmp_path: Path) -> None:
    other = start(pair.ours.config.growth)
    learn(other, "a", 50)
    other.save_pretrained(tmp_path)
    model = copy.deepcopy(pair.ours)
    model.remove_task("a", cascade=True, backbone=backbone_for(model))
    with pytest.raises(CheckpointError, match="holds the task 'a', which this model does not have"):
        model.save_pretrained(tmp_path)
    assert EideticModel.from_pretrained(tmp_path).tasks == ["a"]


def test_a_task_that_was_removed_may_be_learned_anew_in_the_same_folder(pair: Pair, tmp_path: Path) -> None:
    model = copy.deepcopy(pair.ours)
    model.save_pretrained(tmp_path)
    model.remove_task("b", backbone=backbone_for(model))
    learn(model, "b", 99, "a")
    then = answers(model)
    assert not torch.equal(then["b"], pair.answers["b"])
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    assert same(answers(loaded), then) and loaded.verify().ok
    loaded.remove_task("b", backbone=backbone_for(model))
    loaded.load_task(pair.folder / "ours", "b")  # and the first one may come back
    loaded.save_pretrained(tmp_path)
    assert same(answers(EideticModel.from_pretrained(tmp_path)), {name: pair.answers[name] for name in "ab"})


def test_tasks_come_and_go_in_a_release_without_a_pool(pair: Pair, tmp_path: Path) -> None:
    pair.ours.save_pretrained(tmp_path / "release", include_pool=False)
    model = EideticModel.from_pretrained(tmp_path / "release")
    assert model.merge(pair.folder / "theirs") == ["c", "d"] and model.config.expanded == {}
    assert model.remove_task("b") == ["b"] and model.config.expanded == {}
    model.save_pretrained(tmp_path / "release")
    loaded = EideticModel.from_pretrained(tmp_path / "release")
    assert same(answers(loaded), {name: pair.answers[name] for name in "acd"}) and loaded.verify().ok


def test_units_return_at_pretrained_values_and_only_of_the_right_backbone(tmp_path: Path) -> None:
    model = start("fixed")
    before = state(model)
    learn(model, "a", 0)
    for backbone, message in (
        (None, "could not be loaded"),
        (tiny_backbone("bert", seed=1), "is not the backbone that this model was made from: they differ in"),
        (str(tmp_path / "nowhere"), "could not be loaded"),
    ):
        with pytest.raises((TaskError, OSError), match=message):
            model.remove_task("a", backbone=backbone)
        assert model.tasks == ["a"]
    tiny_backbone("bert").save_pretrained(tmp_path / "backbone")
    assert model.remove_task("a", backbone=str(tmp_path / "backbone")) == ["a"]
    now = model.state_dict()
    assert all(torch.equal(now[name], before[name]) for name in before)


def test_expanded_units_return_to_the_pool_as_new_ones() -> None:
    model = start("fixed")
    model.expand(8)
    learn(model, "a", 0, keep=0.9)
    total = model.capacity()["total"]
    ids = {group.name: group.units.need("@a").tolist() for group in model.network.unit_groups()}
    assert any(max(each) >= 64 for each in ids.values())
    model.remove_task("a", backbone=tiny_backbone("bert"))
    assert model.capacity()["free"] == model.capacity()["total"] == total
    group = model.groups["layers_2_neurons"]
    assert group.units.need("pool").tolist() == list(range(72))
    assert not group.members[-1].segment("pool").weight[64:].any()
    learn(model, "b", 1)
    assert model.verify().ok


def test_a_model_made_from_a_configuration_loses_no_task_that_trained_its_trunk() -> None:
    model = EideticModel.from_backbone(BertConfig(**BERT_LIKE), trunk_layers=1, growth="fixed")
    learn(model, "a", 0)
    learn(model, "b", 1)
    with pytest.raises(TaskError, match="'a' can not be removed: it trained the trunk of a random backbone"):
        model.remove_task("a")
    then = logits_of(model, "a")
    assert model.remove_task("b") == ["b"]
    assert torch.equal(logits_of(model, "a"), then) and model.capacity()["free"] > 0 and model.verify().ok


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", GROWTHS)
def test_tokens_come_and_go_with_the_task_that_learned_them(growth: str, tmp_path: Path) -> None:
    model, batch = start(growth), make_batch()
    learn(model, "a", 0)
    model.resize_token_embeddings(124)
    learn(model, "b", 1, reads=[121, 123])
    assert model.record("b").vocab_size == 124
    learn(model, "c", 2)
    new = {**batch, "input_ids": batch["input_ids"].clone().fill_(122)}
    want = {"b": logits_of(model, "b", new), "a": logits_of(model, "a")}
    other = start(growth)
    other.load_task(model, "b")
    assert other.config.vocab_size == 124 and torch.equal(logits_of(other, "b", new), want["b"])
    other.save_pretrained(tmp_path)
    assert torch.equal(logits_of(EideticModel.from_pretrained(tmp_path), "b", new), want["b"])
    crowded = start(growth)
    crowded.resize_token_embeddings(122)
    with pytest.raises(TaskError, match="tokens of its own, from 120 on, and this model has 122 tokens already"):
        crowded.load_task(model, "b")
    with pytest.raises(TaskError, match=r"\['c'\] read it"):  # it knows these tokens, too
        model.remove_task("b", backbone=tiny_backbone("bert"))
    model.remove_task("b", cascade=True, backbone=tiny_backbone("bert"))
    assert model.input_rows.count("pool") == 4 and torch.equal(logits_of(model, "a"), want["a"])
    learn(model, "b", 3, reads=[121])
    assert model.record("b").vocab_size == 124 and model.verify().ok


# -- a folder that names its backbone ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """As `pair`, with a backbone that lies in a folder."""
    folder = tmp_path_factory.mktemp("copies")
    tiny_backbone("bert").save_pretrained(folder / "backbone")
    models = [EideticModel.from_backbone(str(folder / "backbone"), trunk_layers=1, growth="copy") for _ in range(2)]
    learn(models[0], "a", 0)
    learn(models[0], "b", 1, "a")
    learn(models[1], "c", 2)
    models[0].save_pretrained(folder / "ours", include_base=False)
    return Pair(models[0], models[1], folder, {**answers(models[0]), **answers(models[1])})


def test_a_folder_without_its_backbone_is_loaded_on_it_and_learns_on(copies: Pair, tmp_path: Path) -> None:
    names = set(hashes(copies.folder / "ours"))
    assert not {"eidetic-base.safetensors", "eidetic-pool.safetensors"} & names
    ours = {name: copies.answers[name] for name in "ab"}
    for backbone in (None, copies.folder / "backbone", tiny_backbone("bert")):
        loaded = EideticModel.from_pretrained(copies.folder / "ours", backbone=backbone)
        assert same(answers(loaded), ours) and loaded.verify().ok
    assert torch.equal(loaded.route(**make_batch()).router_scores, copies.ours.route(**make_batch()).router_scores)
    learn(loaded, "next", 5, "b")
    loaded.save_pretrained(tmp_path / "whole")
    whole = EideticModel.from_pretrained(tmp_path / "whole")
    assert whole.tasks == ["a", "b", "next"] and whole.verify().ok
    for name, sha256 in shards(copies.folder / "ours").items():
        assert "trunk" in name or shards(tmp_path / "whole")[name] == sha256
    only = EideticModel.from_pretrained(copies.folder / "ours", tasks=["a"])
    assert only.tasks == ["a"] and torch.equal(logits_of(only, "a"), ours["a"])


def test_tasks_come_out_of_a_folder_without_its_backbone(copies: Pair) -> None:
    model = copy.deepcopy(copies.theirs)
    assert model.load_task(copies.folder / "ours", "b") == ["a", "b"]
    assert {name: True for name in "cab"} == {
        name: torch.equal(logits, copies.answers[name]) for name, logits in answers(model).items()
    }
    fresh = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth="copy")
    assert fresh.merge(copies.folder / "ours") == ["a", "b"] and fresh.verify().ok


def test_another_backbone_or_none_is_refused_and_no_backbone_is_lost(copies: Pair, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"learned on backbone with SHA-256 \w*; what was found has \w*\. Load"):
        EideticModel.from_pretrained(copies.folder / "ours", backbone=tiny_backbone("bert", seed=1))
    copies.ours.save_pretrained(tmp_path / "moved", include_base=False)
    with pytest.raises(CheckpointError, match="does not hold its backbone, but names it: backbone, which could not"):
        EideticModel.from_pretrained(tmp_path / "moved")
    copies.ours.save_pretrained(tmp_path / "whole")
    before = hashes(tmp_path / "whole")
    with pytest.raises(
        CheckpointError, match=r"holds the backbone, which a save with include_base=False would delete"
    ):
        copies.ours.save_pretrained(tmp_path / "whole", include_base=False)
    assert hashes(tmp_path / "whole") == before
    copies.ours.save_pretrained(tmp_path / "moved")  # the other way round it is completed
    assert same(answers(EideticModel.from_pretrained(tmp_path / "moved")), answers(copies.ours))
    with pytest.raises(CheckpointError, match="include_base=False is for growth='copy'"):
        start("fixed").save_pretrained(tmp_path / "fixed", include_base=False)
    with pytest.raises(CheckpointError, match="it needs a model with a backbone with a name"):
        nameless = start("copy")
        learn(nameless, "a", 0)
        nameless.save_pretrained(tmp_path / "nameless", include_base=False)


# -- parents ----------------------------------------------------------------------------------------------------------


def test_a_shard_names_its_base_and_its_parents_by_hash(copies: Pair, tmp_path: Path) -> None:
    probe = copies.ours.probes["@b"]
    assert probe.need("parents").tolist() == [
        list(bytes.fromhex(copies.ours.record("a").certificate["weights_sha256"]))
    ]
    assert probe.get("base_digests") is not None and probe.get("trunk_digests") is not None
    other = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth="copy")
    learn(other, "a", 123)
    other.save_pretrained(tmp_path)
    copies.ours.save_pretrained(tmp_path / "ours")
    shard = "eidetic-task-a.safetensors"
    (tmp_path / "ours" / shard).write_bytes((tmp_path / shard).read_bytes())  # another parent, and the books edited

    def swap(values: dict[str, Any]) -> None:
        values["files"][shard] = other.config.files[shard]
        values["tasks"][0] = other.config.to_dict()["tasks"][0]

    edit_json(tmp_path / "ours" / "config.json", swap)
    report = EideticModel.from_pretrained(tmp_path / "ours").verify()
    assert not report.ok and "b: CHANGED" in str(report) and "a: weights and logits equal" in str(report)
    assert certificate.renamed("x.@a.y.@a", {"@a": "@b"}) == "x.@b.y.@b"
