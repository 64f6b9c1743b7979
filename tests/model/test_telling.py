"""What users tell the router of a model: it is kept beside the tasks, and no byte of them changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.backbones import tiny_backbone, tiny_model
from support.data import logits_of
from support.folders import hashes, shards
from support.kind_cases import as_text, word_tokenizer
from support.topics import TOPICS, commit_topic, topic_batch
from torch import Tensor

from eidetic_hf import EideticModel, TaskError
from eidetic_hf.model import joining, routing
from eidetic_hf.model.checkpoint.layout import TOLD_FILE
from eidetic_hf.views import owner_of

TOKENIZER = word_tokenizer()
TEXTS = [as_text([3, 4, 40, 41, 70, 71, 20]), as_text([3, 5, 12, 66, 95])]
WEIGHT = 500


@pytest.fixture(scope="module")
def untold() -> EideticModel:
    """Three tasks that copy units; copy it before you change it."""
    model = tiny_model(growth="copy")
    for topic in range(3):
        commit_topic(model, topic)
    model.routing = "deep"
    return model


@pytest.fixture
def model(untold: EideticModel) -> EideticModel:
    return copy.deepcopy(untold)


def read(texts: list[str]) -> dict[str, Tensor]:
    return dict(TOKENIZER(texts, padding=True, return_tensors="pt", return_token_type_ids=False))


def scores(model: EideticModel, tasks: tuple[str, ...] = TOPICS[:3]) -> Tensor:
    """Posteriors of tasks for texts of each topic, and two that mix them, as deep as the router reads."""
    model.routing = "deep"
    found = [model.route(**batch).router_scores for batch in (topic_batch([0, 1, 2]), read(TEXTS))]
    return torch.cat(found)[:, [model.tasks.index(name) for name in tasks]]


def tell(model: EideticModel) -> None:
    """Tell the router one of everything."""
    model.router.add_examples("beta", TEXTS, labels=["x", "z"], tokenizer=TOKENIZER, weight=WEIGHT)
    model.router.add_examples("gamma", TEXTS[:1], tokenizer=TOKENIZER)
    model.router.set_prior("gamma", 3.0)
    model.router.set_threshold("alpha", 0.4)


def told_of(model: EideticModel) -> dict[str, Tensor]:
    return dict(model.router.told.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def least_likely(model: EideticModel, text: str) -> str:
    found = model.route(**read([text])).router_scores[0]
    return model.tasks[int(found.argmin())]


# -- examples ---------------------------------------------------------------------------------------------------------


def test_a_text_that_went_wrong_goes_right_once_it_was_added(model: EideticModel) -> None:
    for text in TEXTS:
        name = least_likely(model, text)
        before = float(model.route(**read([text])).router_scores[0, model.tasks.index(name)])
        model.router.add_examples(name, text, tokenizer=TOKENIZER)
        after = float(model.route(**read([text])).router_scores[0, model.tasks.index(name)])
        assert after > before
        model.router.add_examples(name, text, tokenizer=TOKENIZER, weight=20_000)
        assert model.route(**read([text])).tasks == [name] and model(**read([text])).tasks == [name]


def test_adding_and_forgetting_restore_every_bit_and_leave_no_file(model: EideticModel, tmp_path: Path) -> None:
    before, model_files = scores(model), tmp_path / "model"
    model.save_pretrained(model_files)
    untold = hashes(model_files)
    assert TOLD_FILE not in untold
    for text in TEXTS:
        model.router.add_examples("beta", text, tokenizer=TOKENIZER, weight=WEIGHT)
    assert not torch.equal(scores(model), before)
    model.save_pretrained(model_files)
    assert TOLD_FILE in hashes(model_files)
    for text in TEXTS:
        model.router.forget_examples("beta", [text], tokenizer=TOKENIZER)
    assert torch.equal(scores(model), before)
    model.save_pretrained(model_files)
    assert shards(model_files) == {name: sha for name, sha in untold.items() if name.endswith(".safetensors")}
    assert torch.equal(scores(EideticModel.from_pretrained(model_files)), before)


def test_what_is_told_changes_no_byte_of_another_shard_and_no_answer(model: EideticModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "untold")
    answers = [logits_of(model, name) for name in model.tasks]
    tell(model)
    model.save_pretrained(tmp_path / "told")
    untold, told = shards(tmp_path / "untold"), shards(tmp_path / "told")
    assert set(told) - set(untold) == {TOLD_FILE}
    assert {name: sha for name, sha in told.items() if name != TOLD_FILE} == untold
    assert all(torch.equal(logits_of(model, n), a) for n, a in zip(model.tasks, answers, strict=True))
    assert model.verify().ok
    assert all(owner_of(f"router.told.{name}") == "told" for name in told_of(model))


def test_in_whatever_order_texts_are_added_the_file_is_the_same(model: EideticModel, tmp_path: Path) -> None:
    other = copy.deepcopy(model)
    for router, order in ((model.router, (0, 1)), (other.router, (1, 0))):
        for place in order:
            router.add_examples("beta", TEXTS[place], labels="xz"[place], tokenizer=TOKENIZER)
    assert torch.equal(scores(model), scores(other))
    model.save_pretrained(tmp_path / "one")
    other.save_pretrained(tmp_path / "other")
    assert shards(tmp_path / "one") == shards(tmp_path / "other")


def test_labels_are_names_or_numbers_and_texts_may_be_token_ids(model: EideticModel) -> None:
    others = [copy.deepcopy(model) for _ in range(2)]
    model.router.add_examples("beta", TEXTS, labels=["x", "z"], tokenizer=TOKENIZER)
    others[0].router.add_examples("beta", TEXTS, labels=[0, 2], tokenizer=TOKENIZER)
    others[1].router.add_examples("beta", read(TEXTS), labels=["x", 2])
    assert all(same(told_of(model), told_of(other)) for other in others)
    assert model.router.told["@beta"].need("labels").tolist() == [0, 2]


def test_the_tokenizer_is_that_of_the_folder(model: EideticModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    loaded.router.add_examples("beta", TEXTS, labels=[0, 2])
    model.router.add_examples("beta", TEXTS, labels=[0, 2], tokenizer=TOKENIZER)
    assert same(told_of(model), told_of(loaded))
    loaded.routing = "deep"
    found = loaded.router.explain(TEXTS[0])[0]
    assert found["task"] == model.route(**read(TEXTS[:1])).tasks[0]
    assert found["probability"] == pytest.approx(float(model.route(**read(TEXTS[:1])).router_scores.max()))
    assert found["nearest"][0]["label"] in ("x", "y", "z")


def test_without_a_tokenizer_one_is_asked_for(model: EideticModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer in the folder of this model: pass tokenizer="):
        model.router.add_examples("beta", TEXTS)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer in \['"):
        EideticModel.from_pretrained(tmp_path).router.explain(TEXTS)


@pytest.mark.parametrize("texts", [[], "", "  ", ["a", ""], [3]])
def test_texts_that_are_none_are_refused(model: EideticModel, texts: Any) -> None:
    for ask in (
        lambda: model.router.add_examples("beta", texts, tokenizer=TOKENIZER),
        lambda: model.router.forget_examples("beta", texts, tokenizer=TOKENIZER),
        lambda: model.router.explain(texts, tokenizer=TOKENIZER),
    ):
        with pytest.raises(ValueError, match="expected a text, or a list of at least one, none of them empty"):
            ask()


def test_long_texts_are_cut_where_positions_end(model: EideticModel) -> None:
    model.router.add_examples("beta", as_text([40] * 300), tokenizer=TOKENIZER)
    assert len(model.router.told["@beta"].need("examples")) == 1


# -- kept, and taken along --------------------------------------------------------------------------------------------


def reloaded(model: EideticModel, folder: Path) -> EideticModel:
    model.save_pretrained(folder)
    return EideticModel.from_pretrained(folder)


def from_state(model: EideticModel, folder: Path) -> EideticModel:
    other = reloaded(model, folder)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("way", ["shallow", "cascade", "deep"])
def test_an_explanation_is_of_the_choice_that_a_call_makes(
    model: EideticModel, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = topic_batch([0, 1, 2, 2, 1, 0])
    model.routing = "shallow"
    sure = float(model.route(**batch).router_scores.amax(1).median())
    monkeypatch.setattr(routing, "SURE", sure)  # some rows decided by the first layer, and some not
    model.routing = way
    chosen, found = model.route(**batch), model.router.explain(batch)
    assert [each["task"] for each in found] == chosen.tasks
    probabilities = torch.tensor([each["probability"] for each in found], dtype=torch.float64)
    torch.testing.assert_close(probabilities, chosen.router_scores.amax(1).double(), rtol=1e-5, atol=1e-6)
    expected = {"shallow": {"first layer"}, "cascade": {"first layer", "all layers"}, "deep": {"all layers"}}
    assert {each["decided_by"] for each in found} == expected[way]


@pytest.mark.parametrize(
    "way",
    [
        reloaded,
        from_state,
        lambda model, folder: copy.deepcopy(model),
        lambda model, folder: pickle.loads(pickle.dumps(model)),
        lambda model, folder: reloaded(reloaded(model, folder / "one"), folder / "two"),
    ],
    ids=["saved", "state", "copied", "pickled", "twice"],
)
def test_what_was_told_is_kept(
    model: EideticModel, way: Callable[[EideticModel, Path], EideticModel], tmp_path: Path
) -> None:
    tell(model)
    other = way(model, tmp_path)
    assert same(told_of(other), told_of(model)) and len(told_of(model)) == 8
    assert torch.equal(scores(other), scores(model))
    assert other.router.prior("gamma") == 3 and other.router.threshold("alpha", 0.05) == 0.4
    other.router.forget_examples("beta", TEXTS, labels=["x", "z"], tokenizer=TOKENIZER)
    model.router.forget_examples("beta", TEXTS, labels=["x", "z"], tokenizer=TOKENIZER)
    assert torch.equal(scores(other), scores(model))


def test_of_some_tasks_what_was_told_of_them_is_loaded(model: EideticModel, tmp_path: Path) -> None:
    tell(model)
    model.save_pretrained(tmp_path / "all")
    some = EideticModel.from_pretrained(tmp_path / "all", tasks=["gamma", "beta"])
    assert {name.split(".")[0] for name in told_of(some)} == {"@beta", "@gamma"}
    batch = topic_batch([0, 1, 2])
    some.routing = model.routing = "deep"
    wanted = model.route(**batch, tasks=["beta", "gamma"]).router_scores[:, [1, 2]]
    found = some.route(**batch).router_scores[:, [some.tasks.index(name) for name in ("beta", "gamma")]]
    assert torch.equal(found, wanted)
    one = EideticModel.from_pretrained(tmp_path / "all", tasks=["gamma"])
    one.save_pretrained(tmp_path / "one", include_pool=False)
    assert {name.split(".")[0] for name in told_of(EideticModel.from_pretrained(tmp_path / "one"))} == {"@gamma"}


def test_a_removed_task_takes_along_what_was_told_of_it(model: EideticModel, tmp_path: Path) -> None:
    tell(model)
    model.save_pretrained(tmp_path)
    never = tiny_model(growth="copy")
    for topic in (0, 2):
        commit_topic(never, topic)
    never.router.add_examples("gamma", TEXTS[:1], tokenizer=TOKENIZER)
    never.router.set_prior("gamma", 3.0)
    model.remove_task("beta")
    assert torch.equal(scores(model, ("alpha", "gamma")), scores(never, ("alpha", "gamma")))
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    assert same(told_of(loaded), told_of(model))
    assert {name.split(".")[0] for name in told_of(loaded)} == {"@alpha", "@gamma"}
    for name in ("alpha", "gamma"):
        loaded.remove_task(name)
    loaded.save_pretrained(tmp_path)
    assert TOLD_FILE not in hashes(tmp_path)


def test_an_interrupted_removal_gives_back_what_was_told(model: EideticModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(model)
    before, wanted = told_of(model), scores(model)

    def fail(*_: Any) -> None:
        raise RuntimeError("in between")

    with monkeypatch.context() as patch:
        patch.setattr(model.network, "pack", fail)
        with pytest.raises(RuntimeError, match="in between"):
            model.remove_task("beta")
    assert same(told_of(model), before) and torch.equal(scores(model), wanted)


def other_half(told: bool = True) -> EideticModel:
    """Another model of the same backbone, with a task of its own that was told something."""
    other = tiny_model(growth="copy")
    commit_topic(other, 3)
    if told:
        other.router.add_examples("delta", TEXTS, labels=[1, 1], tokenizer=TOKENIZER, weight=WEIGHT)
        other.router.set_threshold("delta", 0.2)
    return other


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_task_that_comes_brings_along_what_was_told_of_it(
    model: EideticModel, as_folder: bool, tmp_path: Path
) -> None:
    tell(model)
    other = other_half()
    wanted = copy.deepcopy(model)
    commit_topic(wanted, 3)
    wanted.router.add_examples("delta", TEXTS, labels=[1, 1], tokenizer=TOKENIZER, weight=WEIGHT)
    wanted.router.set_threshold("delta", 0.2)
    other.save_pretrained(tmp_path / "other")
    source: Any = tmp_path / "other" if as_folder else other
    loaded, merged, renamed = (copy.deepcopy(model) for _ in range(3))
    assert loaded.load_task(source, "delta") == merged.merge(source) == ["delta"]
    for each in (loaded, merged):
        assert same(told_of(each), told_of(wanted)) and torch.equal(scores(each, TOPICS), scores(wanted, TOPICS))
    assert renamed.merge(source, prefix="their.") == ["their.delta"]
    assert renamed.router.threshold("their.delta", 0.05) == 0.2
    ours, theirs = (
        each.router.told[key].state_dict() for each, key in ((renamed, "@their%2Edelta"), (other, "@delta"))
    )
    assert same(ours, theirs)
    back = reloaded(renamed, tmp_path / "renamed")
    assert same(told_of(back), told_of(renamed)) and back.verify().ok


def test_tasks_of_which_nothing_was_told_come_without(model: EideticModel, tmp_path: Path) -> None:
    other = other_half(told=False)
    other.save_pretrained(tmp_path)
    assert TOLD_FILE not in hashes(tmp_path)
    assert model.merge(tmp_path) == ["delta"] and not told_of(model)
    tell(model)
    empty = tiny_model(growth="copy")
    model.save_pretrained(tmp_path / "all")
    assert empty.load_task(tmp_path / "all", "delta") == ["delta"]
    assert not told_of(empty)  # the file tells of others


def test_a_checkpoint_that_names_its_backbone_keeps_what_was_told(tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    model = EideticModel.from_backbone(tmp_path / "backbone", trunk_layers=1, growth="copy", router_layers=[0, 2])
    for topic in range(3):
        commit_topic(model, topic)
    tell(model)
    model.save_pretrained(tmp_path / "small", include_base=False)
    assert TOLD_FILE in hashes(tmp_path / "small") and "eidetic-base.safetensors" not in hashes(tmp_path / "small")
    loaded = EideticModel.from_pretrained(tmp_path / "small")
    assert same(told_of(loaded), told_of(model)) and torch.equal(scores(loaded), scores(model))
    assert loaded.router.layout(1).layers == [0, 2] and loaded.config.router_layers == [0, 2]
    whole = EideticModel.from_backbone(tmp_path / "backbone", trunk_layers=1, growth="copy", router_layers=[0, 2])
    assert whole.load_task(tmp_path / "small", "beta") == ["beta"]
    assert {name.split(".")[0] for name in told_of(whole)} == {"@beta"}


def test_versions_are_told_of_one_by_one(model: EideticModel, tmp_path: Path) -> None:
    model.add_version("beta")
    model.begin_task("beta@2")
    batch = {**topic_batch([1, 1, 1, 3, 3, 3]), "labels": torch.tensor([0, 1, 2, 0, 1, 2])}
    model.commit_task(router_sums=model.router_sums([batch]))
    model.router.add_examples("beta", TEXTS, labels=[0, 0], tokenizer=TOKENIZER, weight=WEIGHT)
    model.router.set_prior("beta@2", 5.0)
    first = model.route(**read(TEXTS))
    model.set_default_version("beta", 2)
    second = model.route(**read(TEXTS))
    assert first.router_scores[:, 3].eq(0).all() and second.router_scores[:, 1].eq(0).all()
    loaded = reloaded(model, tmp_path)
    assert same(told_of(loaded), told_of(model)) and loaded.router.prior("beta@2") == 5
    loaded.routing = model.routing
    assert torch.equal(loaded.route(**read(TEXTS)).router_scores, second.router_scores)
    model.remove_task("beta@2")
    assert {name.split(".")[0] for name in told_of(model)} == {"@beta"}
    found = model.route(**read(TEXTS)).router_scores
    assert torch.equal(found, first.router_scores[:, :3])


# -- priors and thresholds --------------------------------------------------------------------------------------------


def test_a_prior_moves_routes_by_its_log(model: EideticModel) -> None:
    before = scores(model).log()
    model.router.set_prior("gamma", 12.0)
    after = scores(model).log()
    moved = (after[:, 2] - after[:, 0]) - (before[:, 2] - before[:, 0])
    torch.testing.assert_close(moved, torch.full_like(moved, 12).log(), rtol=1e-6, atol=1e-6)
    for way in ("shallow", "cascade"):
        model.routing = way
        plain = model.route(**read(TEXTS)).router_scores[:, 2]
        model.router.set_prior("gamma", 1e6)
        raised = model.route(**read(TEXTS)).router_scores[:, 2]
        assert (raised > plain).all()
        model.router.set_prior("gamma", 12.0)
    model.router.set_prior("gamma", 1)
    assert torch.equal(scores(model).log(), before)


def test_a_threshold_goes_before_what_a_call_says(model: EideticModel) -> None:
    batch = topic_batch([0, 1, 2] * 8)
    plain = model.route(**batch, abstain=0.02)
    model.router.set_threshold("beta", 0.98)
    strict = model.route(**batch, abstain=0.02)
    likeliest = [model.tasks[place] for place in strict.router_scores.argmax(1).tolist()]
    changed = [
        n for n, a, b in zip(likeliest, plain.abstained.tolist(), strict.abstained.tolist(), strict=True) if a != b
    ]
    assert set(changed) == {"beta"}
    everywhere = model.route(**batch, abstain=0.98)
    mine = torch.tensor([name == "beta" for name in likeliest])
    assert torch.equal(strict.abstained[mine], everywhere.abstained[mine])
    assert torch.equal(strict.abstained[~mine], plain.abstained[~mine])


# -- routers that read other layers -----------------------------------------------------------------------------------


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings that came with tasks."""
    lines: list[str] = []
    monkeypatch.setattr(joining.logger, "warning", lambda message, *_: lines.append(message))
    return lines


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_task_whose_router_read_other_layers_comes_without_its_route(
    model: EideticModel, as_folder: bool, said: list[str], tmp_path: Path
) -> None:
    other = tiny_model(growth="copy", router_layers=[0, 1])
    commit_topic(other, 3)
    other.router.set_prior("delta", 4)
    other.save_pretrained(tmp_path / "other")
    before, reference = scores(model), dict(model.router.reference.state_dict())
    assert model.merge(tmp_path / "other" if as_folder else other) == ["delta"]
    (line,) = said
    assert "The router reads other layers there" in line and "['delta']" in line and "name the task" in line
    assert not model.router.has("delta") and not told_of(model) and model.verify().ok
    assert same(dict(model.router.reference.state_dict()), reference)
    assert torch.equal(scores(model), before)
    assert set(model.route(**topic_batch([3, 3])).tasks) <= set(TOPICS[:3])
    assert torch.equal(logits_of(model, "delta"), logits_of(other, "delta"))
    loaded = reloaded(model, tmp_path / "all")
    assert torch.equal(logits_of(loaded, "delta"), logits_of(other, "delta")) and not loaded.router.has("delta")
    model.remove_task("delta")
    assert torch.equal(scores(model), before)


def test_routers_that_read_the_same_are_joined_without_a_word(model: EideticModel, said: list[str]) -> None:
    assert model.merge(other_half()) == ["delta"] and model.router.has("delta")
    assert tiny_model(growth="copy").merge(model) == [*TOPICS[:3], "delta"]
    assert not said


def test_the_first_task_that_comes_brings_what_the_router_reads(said: list[str]) -> None:
    other, empty = tiny_model(growth="copy", router_layers=[0, 1]), tiny_model(growth="copy")
    commit_topic(other, 3)
    commit_topic(other, 0)
    assert empty.merge(other) == ["delta", "alpha"] and not said
    batch = topic_batch([0, 3])
    other.routing = empty.routing = "deep"
    assert torch.equal(empty.route(**batch).router_scores, other.route(**batch).router_scores)
    silent = tiny_model(growth="copy", router_layers=[2])
    commit_topic(silent, 1, route=False)
    assert empty.merge(silent) == ["beta"] and not said  # it had no route to lose
    assert routing.layers_of_router(empty) == [0, 1]


def test_a_task_nobody_knows_is_refused_by_name(model: EideticModel) -> None:
    with pytest.raises(TaskError, match="knows nothing of a task 'omega'"):
        model.router.add_examples("omega", TEXTS, tokenizer=TOKENIZER)
