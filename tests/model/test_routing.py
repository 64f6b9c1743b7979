"""Routing in a model: the task of a sequence, read as deep as it has to be, and several tasks in a batch."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from support.backbones import ALL_CONFIGS, ARCHITECTURES, CONFIGS, VOCABULARY, tiny_backbone, tiny_model
from support.data import learn, logits_of, make_batch
from support.exactness import poison
from support.kind_cases import as_text, word_tokenizer
from support.topics import TOPICS, commit_topic, learn_topics, topic_batch, topic_data
from torch import Tensor
from transformers import AutoModelForSequenceClassification, TextClassificationPipeline, pipeline

from eidetic_hf import EideticModel, PruningConfig, RoutedOutput, TaskError
from eidetic_hf.model import life, routing
from eidetic_hf.model.routing import CASCADE, DEEP, SHALLOW
from eidetic_hf.network import trunk
from eidetic_hf.network.backbone import DECODER, family_of
from eidetic_hf.views import owner_of, task_key


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> EideticModel:
    """A tiny BERT that has learned four topics; copy it before you change it."""
    return learn_topics(tiny_model(), (0, 1, 2, 3), tmp_path_factory.mktemp("routed"))


@pytest.fixture(scope="module")
def copies() -> EideticModel:
    """One whose tasks copy units, so that the router reads two depths; copy it before you change it."""
    model = tiny_model(growth="copy")
    for topic in range(4):
        commit_topic(model, topic)
    return model


def as_texts(batch: dict[str, Tensor]) -> list[str]:
    return [as_text([token for token in row if token]) for row in batch["input_ids"].tolist()]


# -- learning and keeping ---------------------------------------------------------------------------------------------


def test_training_leaves_the_sums_of_all_training_sequences(routed: EideticModel) -> None:
    for topic, name in enumerate(TOPICS):
        sums = routed.router.statistics(name)
        assert sums.count.tolist() == np.bincount(topic_data(topic, topic)["labels"], minlength=3).tolist()


def test_the_order_of_learning_does_not_matter_to_the_bit(routed: EideticModel, tmp_path: Path) -> None:
    other = learn_topics(tiny_model(), (2, 0, 3, 1), tmp_path)
    for name in TOPICS:
        ours, theirs = (model.router.sums[f"@{name}"].state_dict() for model in (routed, other))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[each], theirs[each]) for each in ours)
    batch = topic_batch([0, 1, 2, 3])
    ours, theirs = routed(**batch).router_scores, other(**batch).router_scores
    assert torch.equal(
        ours[:, [routed.tasks.index(name) for name in TOPICS]], theirs[:, [other.tasks.index(name) for name in TOPICS]]
    )


def test_sums_lie_in_the_tasks_own_shard_and_survive_saving(routed: EideticModel, tmp_path: Path) -> None:
    routed.save_pretrained(tmp_path)
    assert owner_of("router.sums.@alpha.means") == "@alpha"
    assert owner_of("router.reference.shift") == "trunk"
    loaded = EideticModel.from_pretrained(tmp_path)
    batch = topic_batch([3, 1, 0, 2, 2])
    assert torch.equal(routed(**batch).router_scores, loaded(**batch).router_scores)
    assert torch.equal(routed(**batch).logits, loaded(**batch).logits)
    some = EideticModel.from_pretrained(tmp_path, tasks=["gamma", "alpha"])
    answer = some(**batch)
    assert set(answer.tasks) <= {"alpha", "gamma"}
    assert answer.router_scores.shape == (5, 2)
    assert answer.logits.shape == (5, 6)


def test_the_router_is_no_part_of_what_a_task_reads(routed: EideticModel) -> None:
    assert not any(name.startswith("router.") for name in routed.task_tensors("alpha"))
    model = copy.deepcopy(routed)
    model.router.reference.need("scale").fill_(torch.nan)
    model.router.sums["@alpha"].need("means").fill_(7)
    assert torch.equal(logits_of(model, "alpha"), logits_of(routed, "alpha"))


def test_a_failed_commit_leaves_no_sums(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny_model()
    with monkeypatch.context() as patch:
        patch.setattr(life, "certify", lambda *_: (_ for _ in ()).throw(RuntimeError("full")))
        with pytest.raises(RuntimeError, match="full"):
            learn(model, "first", tmp_path)
    assert not model.router.has("first")
    model.abandon_task()
    assert not model.router.state_dict()


def test_the_first_task_of_a_random_backbone_sets_the_reference_after_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EideticModel.from_backbone(CONFIGS["bert"](), trunk_layers=1, growth="fixed")
    learn_topics(model, (0, 1), tmp_path)
    assert set(model(**topic_batch([0, 1, 1])).tasks) <= {"alpha", "beta"}


# -- answering --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("trunk_layers", [0, 1, 2])
def test_rows_of_a_mixed_batch_equal_their_own_sub_batch(architecture: str, trunk_layers: int, tmp_path: Path) -> None:
    model = learn_topics(tiny_model(architecture, trunk_layers=trunk_layers), (0, 1, 2), tmp_path)
    topics = [int(topic) for topic in torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))]
    batch, names = topic_batch(topics), [TOPICS[topic] for topic in topics]
    before = model.training
    mixed = model(**batch, task=names)
    assert isinstance(mixed, RoutedOutput)
    assert mixed.tasks == names
    assert model.training == before
    for start, name in enumerate(TOPICS[:3]):
        rows = [row for row, other in enumerate(names) if other == name]
        alone = model(**{key: value[rows] for key, value in batch.items()}, task=name).logits
        assert torch.equal(mixed.logits[rows, 3 * start : 3 * start + 3], alone)
        assert torch.isinf(mixed.logits[rows]).sum() == 6 * len(rows)


def test_small_groups_equal_their_own_sub_batch(routed: EideticModel) -> None:
    for names in (["alpha", "beta"], ["delta", "alpha", "beta", "alpha"]):
        batch = make_batch(rows=len(names), length=5)
        mixed = routed(**batch, task=names)
        for row, name in enumerate(names):
            rows = [r for r, other in enumerate(names) if other == name]
            alone = routed(**{key: value[rows] for key, value in batch.items()}, task=name).logits
            start = 3 * TOPICS.index(name)
            assert torch.equal(mixed.logits[row, start : start + 3], alone[rows.index(row)])


def test_the_trunk_runs_once(routed: EideticModel) -> None:
    model = copy.deepcopy(routed)
    calls = {"trunk": 0, "above": 0}
    model.backbone.encoder.layer[0].attention.register_forward_hook(
        lambda *_: calls.__setitem__("trunk", calls["trunk"] + 1)
    )
    model.backbone.encoder.layer[1].attention.register_forward_hook(
        lambda *_: calls.__setitem__("above", calls["above"] + 1)
    )
    model(**topic_batch([0, 1, 2, 3] * 8), task=list(TOPICS) * 8)
    assert calls == {"trunk": 1, "above": 4}


def test_routed_answers_are_those_of_the_task_named(routed: EideticModel) -> None:
    topics = [0, 1, 2, 3, 3, 2, 1, 0] * 4
    batch = topic_batch(topics)
    answer = routed(**batch)
    assert answer.router_scores.shape == (32, 4)
    torch.testing.assert_close(answer.router_scores.sum(1), torch.ones(32, dtype=torch.float64))
    assert np.mean([name == TOPICS[topic] for name, topic in zip(answer.tasks, topics, strict=True)]) > 0.75
    assert torch.equal(answer.logits, routed(**batch, task=answer.tasks).logits)
    assert torch.equal(answer.logits, routed(**batch, return_dict=False)[0])


def test_one_task_needs_no_router(tmp_path: Path) -> None:
    model = tiny_model()
    learn(model, "first", tmp_path)
    model.router.remove("first")
    model.eval()
    assert torch.equal(model(**make_batch()).logits, logits_of(model, "first"))


def test_strange_sequences_are_turned_away(routed: EideticModel) -> None:
    own = topic_batch([0, 1, 2, 3] * 16)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, own["input_ids"].shape, generator=generator)  # of all topics at once
    ids[:, 0] = 3
    strange = {**own, "input_ids": ids * own["attention_mask"]}
    answers, outside = routed(**own, abstain=0.1), routed(**strange, abstain=0.1)
    assert answers.abstained.double().mean() < 0.2
    assert roc_auc_score([0] * 64 + [1] * 64, torch.cat([answers.outlier_scores, outside.outlier_scores])) > 0.7
    assert [name is None for name in outside.tasks] == outside.abstained.tolist()
    assert torch.equal(outside.logits, routed(**strange).logits)
    turned_away = [int(routed(**strange, abstain=share).abstained.sum()) for share in (0.01, 0.05, 0.3, 0.6)]
    assert turned_away == sorted(turned_away)
    assert turned_away[0] < turned_away[-1]
    assert torch.equal(routed(**strange, abstain=True).abstained, routed(**strange, abstain=0.05).abstained)
    assert routed(**own).abstained is None


def test_while_a_task_is_learned_it_is_the_one_that_runs(routed: EideticModel) -> None:
    model = copy.deepcopy(routed)
    model.add_task("fifth", labels=["x", "y"])
    model.begin_task("fifth", PruningConfig(keep=0.5))
    assert model(**make_batch()).logits.shape == (5, 2)
    with pytest.raises(TaskError, match="'fifth' is being learned"):
        model(**make_batch(rows=2), task=["fifth", "alpha"])
    with pytest.raises(ValueError, match="no task is being learned"):
        model(**make_batch(), abstain=True)


def test_threads_serve_routed_batches_at_once(routed: EideticModel) -> None:
    batches = [topic_batch([0, 1, 2, 3] * 6, seed) for seed in range(6)]
    expected = [routed(**batch).logits for batch in batches]
    wrong: list[int] = []

    def serve(number: int) -> None:
        for _ in range(5):
            if not torch.equal(routed(**batches[number]).logits, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_shared_modules_can_be_copied_and_pickled(routed: EideticModel) -> None:
    layer = routed.backbone.encoder.layer[0]
    assert isinstance(layer, trunk._Shared)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is type(layer)
        hidden = torch.randn(2, 5, 32)
        assert torch.equal(other(hidden), layer(hidden))


def test_an_error_inside_leaves_no_pass_behind(routed: EideticModel) -> None:
    batch = topic_batch([0, 1])
    with pytest.raises(Exception, match=r".*"):
        routed(**{**batch, "input_ids": batch["input_ids"] + VOCABULARY * 9})
    assert torch.equal(routed(**batch, task="alpha").logits, routed(**batch, task="alpha").logits)
    assert routed(**batch).logits.shape == (2, 12)


# -- the flat space of labels, and pipelines --------------------------------------------------------------------------


def test_pipelines_answer_with_task_and_label(routed: EideticModel, tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    routed.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert list(model.config.id2label.values()) == [f"{task}/{label}" for task in TOPICS for label in "xyz"]
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer)
    assert isinstance(pipe, TextClassificationPipeline)
    batch = topic_batch([0, 1, 2, 3])
    names = routed(**batch).tasks
    for batch_size in (1, 3):
        answers = pipe(as_texts(batch), batch_size=batch_size)
        assert [answer["label"].split("/")[0] for answer in answers] == names
        assert all(1 / 3 <= answer["score"] <= 1 for answer in answers)
    best = pipe(as_texts(batch)[0], top_k=3)
    assert {answer["label"].split("/")[0] for answer in best} == {names[0]}
    assert sum(answer["score"] for answer in best) == pytest.approx(1)
    everything = pipe(as_texts(batch)[0], top_k=None)
    assert len(everything) == 12
    assert sum(answer["score"] == 0 for answer in everything) == 9
    sigmoid = pipe(as_texts(batch)[0], top_k=None, function_to_apply="sigmoid")
    assert sum(answer["score"] == 0 for answer in sigmoid) == 9
    raw = pipe(as_texts(batch)[0], top_k=1, function_to_apply="none")[0]
    assert raw["score"] == pytest.approx(float(model(**{k: v[:1] for k, v in batch.items()}).logits.max()), abs=1e-5)


def test_multi_label_and_regression_tasks_have_their_place(tmp_path: Path) -> None:
    kinds = {1: "multi_label_classification", 2: "regression"}
    model = learn_topics(tiny_model(), (0, 1, 2), tmp_path, kinds)
    assert model.router.statistics("beta").count.tolist() == [64]
    assert len(model.router.statistics("gamma").means) == 1
    answer = model(**topic_batch([0, 1, 2] * 8))
    assert answer.logits.shape == (24, 9)
    assert len(set(answer.tasks)) == 3
    for row, name in enumerate(answer.tasks):
        start = 3 * TOPICS.index(name)
        assert torch.isfinite(answer.logits[row]).nonzero().flatten().tolist() == [start, start + 1, start + 2]


# -- bad input --------------------------------------------------------------------------------------------------------


def test_routing_needs_a_committed_task() -> None:
    with pytest.raises(TaskError, match="No task is committed"):
        tiny_model()(**make_batch(), abstain=True)
    with pytest.raises(TaskError, match="no task 'alpha'"):
        tiny_model()(**make_batch(rows=1), task=["alpha"])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (["alpha"] * 3, "3 names for a batch of 5"),
        ([], "0 names for a batch of 5"),
        (["alpha"] * 4 + ["omega"], "no task 'omega'"),
        (["alpha"] * 4 + [None], "lists None"),
        ((1, 2, 3, 4, 5), "lists 1"),
    ],
)
def test_bad_lists_of_tasks_are_refused(routed: EideticModel, task: list, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        routed(**make_batch(), task=task)


def test_rows_without_a_token_are_named(routed: EideticModel) -> None:
    batch = make_batch()
    batch["attention_mask"][[1, 3]] = 0
    with pytest.raises(ValueError, match=r"sequences \[1, 3\] have no token"):
        routed(**batch)


def test_an_empty_batch_has_empty_answers(routed: EideticModel) -> None:
    empty = {name: value[:0] for name, value in make_batch().items()}
    for kwargs in ({}, {"task": []}, {"abstain": True}):
        answer = routed(**empty, **kwargs)
        assert answer.logits.shape == (0, 12)
        assert answer.tasks == []


@pytest.mark.parametrize("kwargs", [{"output_hidden_states": True}, {"output_attentions": True}])
def test_what_differs_between_tasks_is_refused(routed: EideticModel, kwargs: dict) -> None:
    with pytest.raises(ValueError, match=r"task='<name>'"):
        routed(**make_batch(), **kwargs)
    assert routed(**make_batch(), task="alpha", output_hidden_states=True).hidden_states is not None


def test_labels_need_a_task(routed: EideticModel) -> None:
    with pytest.raises(ValueError, match="no single task"):
        routed(**make_batch(), labels=torch.zeros(5, dtype=torch.long))


@pytest.mark.parametrize("share", [0.0, 1.0, -1, 2.5])
def test_bad_shares_to_turn_away_are_refused(routed: EideticModel, share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        routed(**make_batch(), abstain=share)


def test_abstaining_needs_a_choice(routed: EideticModel) -> None:
    for task in ("alpha", ["alpha"] * 5):
        with pytest.raises(ValueError, match="abstain"):
            routed(**make_batch(), task=task, abstain=True)


def test_a_task_without_sums_is_no_choice_and_answers_when_it_is_named(routed: EideticModel) -> None:
    model = copy.deepcopy(routed)
    model.router.remove("beta")
    batch = topic_batch([0, 1, 2, 1])
    assert "beta" in routed(**batch).tasks and "beta" not in model(**batch).tasks
    assert torch.equal(logits_of(model, "beta"), logits_of(routed, "beta"))
    for name in model.tasks:
        model.router.remove(name)
    with pytest.raises(TaskError, match="knows nothing of"):
        model(**batch)


def test_route_says_the_task_without_running_what_lies_above_the_trunk(
    routed: EideticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = topic_batch([0, 1, 2, 1])
    answered = routed(**batch, abstain=0.2)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a head was run")

    for head in routed.heads.values():
        monkeypatch.setattr(head, "forward", refuse)
    found = routed.route(**batch, abstain=0.2)
    assert found.logits is None
    assert found.tasks == answered.tasks
    for name in ("router_scores", "abstained", "outlier_scores"):
        assert torch.equal(found[name], answered[name])
    assert set(routed.route(**batch)) == {"tasks", "router_scores"}
    with pytest.raises(ValueError, match="share between 0 and 1"):
        routed.route(**batch, abstain=1.0)
    with pytest.raises(TaskError, match="No task is committed"):
        tiny_model().route(**batch)


# -- what the router reads of base ------------------------------------------------------------------------------------


def trunk_of(architecture: str) -> int:
    return 0 if architecture == "albert" else 1  # which has one layer, run three times


def states_of(model: EideticModel, batch: dict[str, Tensor], until: int) -> list[Tensor]:
    """What the trunk and base put out at every depth."""
    with torch.no_grad():
        shared = model.network.record_trunk(batch)
        if until > model.config.trunk_layers:
            shared = model.network.record_base(shared, batch, until)
    return [shared.state(depth) for depth in range(1, until + 1)]


@pytest.mark.parametrize("architecture", ALL_CONFIGS)
def test_base_is_the_plain_backbone_at_every_depth_whatever_was_learned(architecture: str) -> None:
    plain = tiny_backbone(architecture).eval()
    encoder = plain.get_encoder() if plain.config.is_encoder_decoder else plain
    batch = make_batch()
    with torch.no_grad():
        hidden = encoder(**batch, output_hidden_states=True).hidden_states
    model = tiny_model(architecture, trunk_layers=trunk_of(architecture), growth="copy").eval()
    before = states_of(model, batch, 2)
    real = batch["attention_mask"].bool()
    for depth, state in enumerate(before, 1):
        if architecture == "deberta-v2-own-keys" and depth == 1:
            continue  # a convolution follows its first layer, and is no part of it
        torch.testing.assert_close(state[real], hidden[depth][real], rtol=1e-4, atol=1e-5)
    commit_topic(model, 0)
    commit_topic(model, 2)
    model.add_task("next", labels=["x", "y"])
    model.begin_task("next")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(now, then) for now, then in zip(states_of(model, batch, 2), before, strict=True))


@pytest.mark.parametrize("growth", ["fixed", "copy"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_those_of_a_fresh_model_however_many_tasks_there_are(architecture: str, growth: str) -> None:
    fresh, full = (tiny_model(architecture, growth=growth) for _ in range(2))
    batch = topic_batch([0, 1, 2, 3])
    commit_topic(fresh, 3)
    for topic in range(4):
        commit_topic(full, topic)
    layers = full.router.layout(1).layers
    assert layers == ([1, 2] if growth == "copy" else [1])
    ours, theirs = (routing.read(model, batch, None) for model in (full, fresh))
    assert torch.equal(ours, theirs) and ours.shape == (4, 64 * len(layers))
    for name, tensor in fresh.router.reference.state_dict().items():
        assert torch.equal(tensor, full.router.reference.state_dict()[name]), name
    left = (model.router.sums["@delta"].state_dict() for model in (full, fresh))
    for ours, theirs in zip(*(kept.values() for kept in left), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("growth", ["fixed", "copy"])
def test_routing_reads_no_tensor_of_any_task(growth: str) -> None:
    model = tiny_model(growth=growth)
    for topic in range(3):
        commit_topic(model, topic)
    poisoned, batch = copy.deepcopy(model), topic_batch([0, 1, 2, 2])
    count = 0
    for name, tensor in poisoned.state_dict().items():
        if owner_of(name).startswith("@") and tensor.is_floating_point() and not name.startswith("router."):
            tensor.fill_(torch.nan)
            count += tensor.numel()
    assert count > 1000
    for group in poisoned.groups.values():
        group.forget_views()
    for way in (SHALLOW, CASCADE, DEEP):
        model.routing = poisoned.routing = way
        ours, theirs = model.route(**batch), poisoned.route(**batch)
        assert ours.tasks == theirs.tasks and torch.equal(ours.router_scores, theirs.router_scores)
    ours, theirs = (each.route(**batch, abstain=True).outlier_scores for each in (model, poisoned))
    assert torch.equal(ours, theirs)
    assert torch.isnan(poisoned(**batch, task="alpha").logits).all()


def test_what_a_task_reads_is_enough_for_it_beside_a_router_that_reads_deep(copies: EideticModel) -> None:
    assert torch.equal(logits_of(poison(copies, "beta"), "beta"), logits_of(copies, "beta"))


@pytest.mark.parametrize(
    ("layers", "growth", "message"),
    [
        ([], "copy", "0 [(]the embeddings[)] to 2"),
        ([3], "copy", "0 [(]the embeddings[)] to 2"),
        ([-1], "copy", "0 [(]the embeddings[)] to 2"),
        ([1, 2], "fixed", "to 1, since with growth='fixed' tasks take the units of the layers above the trunk"),
    ],
)
def test_layers_that_the_router_can_not_read_are_refused(layers: list[int], growth: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(growth=growth, router_layers=layers)


def test_the_layers_to_read_can_be_chosen_and_are_kept(tmp_path: Path) -> None:
    model = tiny_model(growth="copy", router_layers=[2, 0])
    for topic in range(2):
        commit_topic(model, topic)
    assert model.router.layout(1).layers == [0, 2] and model.router.n_features == 32 + 2 * 32
    batch = topic_batch([0, 1, 1])
    wanted = {way: at(model, way, batch) for way in (SHALLOW, DEEP)}
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    assert all(torch.equal(at(loaded, way, batch), scores) for way, scores in wanted.items())


# -- how deep it reads ------------------------------------------------------------------------------------------------


def at(model: EideticModel, way: str, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
    model.routing = way
    return model.route(**batch, **kwargs).router_scores


def splitting(model: EideticModel, batch: dict[str, Tensor], patch: pytest.MonkeyPatch) -> Tensor:
    """Let half of a batch's rows go on, and say which."""
    shallow = at(model, SHALLOW, batch).amax(1)
    middle = shallow.sort().values[[len(shallow) // 2 - 1, len(shallow) // 2]]
    assert middle[0] < middle[1]
    patch.setattr(routing, "SURE", float(middle.mean()))
    return shallow < middle.mean()


def assert_cascade(model: EideticModel, batch: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    """Rows that stay have the shallow scores bit for bit; those that go on the deep ones, up to the batch's rounding.

    Features are whole numbers, so it is the products over them alone that may round otherwise.
    """
    goes_on = splitting(model, batch, patch)
    shallow, cascade, deep = (at(model, way, batch) for way in (SHALLOW, CASCADE, DEEP))
    assert 0 < int(goes_on.sum()) < len(goes_on)
    assert torch.equal(cascade[~goes_on], shallow[~goes_on])
    torch.testing.assert_close(cascade[goes_on], deep[goes_on], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(shallow[goes_on], deep[goes_on], rtol=1e-3)


@pytest.mark.parametrize("architecture", sorted(set(ALL_CONFIGS) - {"albert"}))
def test_rows_in_doubt_go_on_to_the_deep_scores_and_the_others_keep_the_shallow_ones(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture, growth="copy")
    for topic in range(3):
        commit_topic(model, topic)
    assert_cascade(model, topic_batch([0, 1, 2, 0, 1, 2]), monkeypatch)


def rows_through(model: EideticModel) -> dict[int, int]:
    """Counts how many rows each layer computes from here on."""
    rows = dict.fromkeys(range(1, 4), 0)

    def count(number: int) -> Callable[..., None]:
        return lambda module, args, output: rows.__setitem__(number, rows[number] + len(output[0]))

    for number, layer in enumerate(model.backbone.encoder.layer, 1):
        layer.attention.register_forward_hook(count(number))
    return rows


@pytest.mark.parametrize("trunk_layers", [0, 1])
def test_each_layer_runs_once_for_each_row_as_deep_as_it_is_read(
    trunk_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(growth="copy", trunk_layers=trunk_layers)
    for topic in range(3):
        commit_topic(model, topic)
    batch = topic_batch([0, 1, 2, 0, 1, 2])
    assert_cascade(model, batch, monkeypatch)
    model.routing = CASCADE
    rows, embedded = rows_through(model), [0]
    model.backbone.embeddings.word_embeddings.register_forward_hook(
        lambda *_: embedded.__setitem__(0, embedded[0] + 1)
    )
    model.route(**batch)
    assert rows == {1: 6, 2: 3, 3: 0} and embedded == [1]
    for way, deeper in ((DEEP, 6), (SHALLOW, 0)):
        rows.update(dict.fromkeys(rows, 0))
        at(model, way, batch)
        assert rows == {1: 6, 2: deeper, 3: 0}
    rows.update(dict.fromkeys(rows, 0))
    model.route(**batch, abstain=True)  # which is asked of the deepest features
    assert rows == {1: 6, 2: 6, 3: 0}


def test_sure_rows_go_no_deeper_and_without_doubt_nothing_does(
    copies: EideticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = copy.deepcopy(copies), topic_batch([0, 1, 2, 3])
    shallow, deep = at(model, SHALLOW, batch), at(model, DEEP, batch)
    for sure, wanted in ((1e-9, shallow), (1.1, deep)):
        monkeypatch.setattr(routing, "SURE", sure)
        torch.testing.assert_close(at(model, CASCADE, batch), wanted, rtol=1e-9, atol=1e-12)


def test_the_way_of_routing_is_checked(copies: EideticModel) -> None:
    assert copies.routing in (SHALLOW, CASCADE, DEEP) and tiny_model().routing == CASCADE
    with pytest.raises(TaskError, match=r"routing='deeper': expected one of \['shallow', 'cascade', 'deep'\]"):
        copies.routing = "deeper"


def test_without_copies_all_ways_are_the_same(routed: EideticModel) -> None:
    model, batch = copy.deepcopy(routed), topic_batch([0, 1, 2, 3])
    shallow, cascade, deep = (at(model, way, batch) for way in (SHALLOW, CASCADE, DEEP))
    assert torch.equal(shallow, deep) and torch.equal(cascade, deep)


def commit_kind(model: EideticModel, name: str, task_type: str, batch: dict[str, Tensor], seed: int) -> None:
    """A task of some kind that is not trained: each Parameter takes a random step."""
    model.add_task(name, task_type)
    model.begin_task(name, PruningConfig(own=0.3))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    model.eval()
    model.commit_task(router_sums=model.router_sums([batch]))


def test_examples_of_several_sequences_go_on_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(growth="copy")

    def choices(topic: int, rows: int, seed: int) -> dict[str, Tensor]:
        data = topic_data(topic, seed, 3 * rows)
        return {n: torch.tensor(data[n][:]).view(rows, 3, -1) for n in ("input_ids", "attention_mask")}

    for topic in range(3):
        data = {**choices(topic, 24, topic), "labels": torch.arange(24) % 3}
        commit_kind(model, TOPICS[topic], "multiple-choice", data, topic)
    parts = [choices(topic, 2, 50 + topic) for topic in range(3)]
    batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    assert_cascade(model, batch, monkeypatch)
    rows = rows_through(model)
    at(model, CASCADE, batch)
    assert rows == {1: 18, 2: 9, 3: 0}
    answer = model(**batch)
    assert answer.logits.shape == (6, 3) and answer.tasks == model.route(**batch).tasks


@pytest.mark.parametrize("architecture", ["gpt2", "gemma", "t5", "bart"])
def test_prompts_are_continued_by_the_task_that_the_cascade_chooses(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture, growth="copy")
    writes = "causal-lm" if family_of(model.backbone.config) == DECODER else "seq2seq-lm"
    for topic in range(3):
        data = topic_data(topic, topic, 24)
        batch = {name: torch.tensor(data[name][:]) for name in ("input_ids", "attention_mask")}
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        commit_kind(model, TOPICS[topic], writes, batch, topic)
    prompts = topic_batch([0, 1, 2, 0, 1, 2])
    if writes == "causal-lm":
        prompts = padded(prompts, 1, 0)
    splitting(model, prompts, monkeypatch)
    model.routing = CASCADE
    chosen = model.route(**prompts).tasks
    assert len(set(chosen)) > 1
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    written = model.generate(**prompts, **options)
    assert torch.equal(written, model.generate(**prompts, task=chosen, **options))


def test_tokens_that_came_later_are_read_at_every_depth_and_by_who_knows_them() -> None:
    model = tiny_model(growth="copy")
    commit_topic(model, 0)
    commit_topic(model, 1)
    model.resize_token_embeddings(VOCABULARY + 3)
    model.add_task("later", labels=["x", "y", "z"])
    model.begin_task("later", PruningConfig(own=0.3))
    data = topic_data(2, 2, 48)
    batch = {name: torch.tensor(data[name][:]) for name in data.column_names}
    batch["input_ids"][:, 2] = VOCABULARY + 1
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])  # it reads a new token, and takes it
    model.eval()
    model.commit_task(router_sums=model.router_sums([batch]))
    asked = topic_batch([0, 1, 2, 0])
    asked["input_ids"][3, 2] = VOCABULARY + 1
    for way in (SHALLOW, CASCADE, DEEP):
        scores = at(model, way, asked)
        assert scores[3].tolist() == [0, 0, 1]
        assert (scores[:3] > 0).all()


# -- padding ----------------------------------------------------------------------------------------------------------


def padded(batch: dict[str, Tensor], before: int, behind: int) -> dict[str, Tensor]:
    """The rows of a batch, each with so much padding on either side of its tokens at least."""
    lengths = batch["attention_mask"].sum(1).tolist()
    width = max(lengths)
    ids = torch.zeros(len(lengths), before + width + behind, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        start = before + width - length if before else 0
        ids[row, start : start + length] = batch["input_ids"][row, :length]
        mask[row, start : start + length] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("growth", ["fixed", "copy"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt2", "opt", "llama", "modernbert", "t5"])
def test_padding_on_either_side_gives_the_same_features_routes_and_answers(architecture: str, growth: str) -> None:
    model = tiny_model(architecture, growth=growth)
    commit_topic(model, 0)
    commit_topic(model, 1)
    right = padded(topic_batch([0, 1, 1, 0]), 0, 0)
    for before, behind in ((0, 4), (4, 0), (1, 0)):
        other = padded(right, before, behind)
        ours, theirs = (routing.read(model, batch, None) for batch in (right, other))
        assert (ours != theirs).double().mean() < 0.01 and float((ours - theirs).abs().max()) <= 1  # one that rounds
        scores = [at(model, DEEP, batch) for batch in (right, other)]
        torch.testing.assert_close(scores[0], scores[1], rtol=0.05, atol=0.02)
        if family_of(model.backbone.config) != DECODER:
            for task in ("alpha", "beta"):
                logits = [model(**batch, task=task).logits for batch in (right, other)]
                torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt2"])
@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_sequences_are_routed_as_in_any_batch(architecture: str, length: int) -> None:
    model = tiny_model(architecture, growth="copy")
    commit_topic(model, 0)
    commit_topic(model, 1)
    ids = torch.tensor([[40, 50]])[:, :length]
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    long = topic_batch([1])
    both = {name: torch.cat([long[name], torch.zeros_like(long[name])]) for name in long}
    for name, value in alone.items():
        both[name][1, :length] = value
    scores = at(model, DEEP, alone)
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(at(model, DEEP, both)[1:], scores, rtol=0.05, atol=0.02)


# -- some tasks, all tasks --------------------------------------------------------------------------------------------


def test_some_tasks_may_be_chosen_and_the_others_are_not(copies: EideticModel) -> None:
    model, batch = copy.deepcopy(copies), topic_batch([0, 1, 2, 3, 3])
    model.routing = DEEP
    some = ["delta", "beta"]
    only = copy.deepcopy(model)
    only.remove_task("alpha")
    only.remove_task("gamma")
    wanted = only.route(**batch, abstain=0.1)
    for found in (model(**batch, tasks=some, abstain=0.1), model.route(**batch, tasks=some, abstain=0.1)):
        assert found.router_scores[:, [0, 2]].eq(0).all()
        assert torch.equal(found.router_scores[:, [1, 3]], wanted.router_scores)
        assert torch.equal(found.outlier_scores, wanted.outlier_scores) and found.tasks == wanted.tasks
        assert {name for near in found.nearest if near for name in near} <= set(some)
    one = model(**batch, tasks=["gamma"])
    assert one.tasks == ["gamma"] * 5
    assert torch.equal(one.logits[:, 6:9], model(**batch, task="gamma").logits)


@pytest.mark.parametrize("tasks", ["alpha", [], ["omega"], ["alpha", "omega"]])
def test_tasks_that_can_not_be_chosen_among_are_refused(copies: EideticModel, tasks: Any) -> None:
    for ask in (copies, copies.route):
        with pytest.raises(TaskError, match=r"expected a list of some of the tasks to choose from, \['alpha', 'beta'"):
            ask(**make_batch(), tasks=tasks)


def test_choices_are_refused_where_the_task_is_given(copies: EideticModel) -> None:
    for kwargs in ({"tasks": ["alpha"]}, {"answer_all": True}):
        with pytest.raises(ValueError, match="are for a batch whose tasks the router chooses"):
            copies(**make_batch(), task="alpha", **kwargs)
        with pytest.raises(ValueError, match="but the tasks were given"):
            copies(**make_batch(), task=["alpha"] * 5, **kwargs)


@pytest.mark.parametrize("growth", ["fixed", "copy"])
def test_all_tasks_answer_each_sequence_as_if_they_were_named(growth: str) -> None:
    model = tiny_model(growth=growth)
    for topic in range(3):
        commit_topic(model, topic)
    model.mixed_batches = "apart"
    batch = topic_batch([0, 1, 2] * 4)
    answer = model(**batch, answer_all=True)
    for place, name in enumerate(TOPICS[:3]):
        assert torch.equal(answer.logits[:, 3 * place : 3 * place + 3], model(**batch, task=name).logits)
    routes = model(**batch)
    assert answer.tasks == routes.tasks and torch.equal(answer.router_scores, routes.router_scores)
    some = model(**batch, answer_all=True, tasks=["gamma", "alpha"])
    assert torch.equal(some.logits[:, :3], answer.logits[:, :3]) and torch.equal(
        some.logits[:, 6:], answer.logits[:, 6:]
    )
    assert torch.isinf(some.logits[:, 3:6]).all() and set(some.tasks) <= {"alpha", "gamma"}


def test_answers_of_several_tasks_that_have_one_place_are_refused() -> None:
    model = tiny_model("gpt2", growth="copy")
    for topic in range(2):
        batch = topic_batch([topic] * 12)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        commit_kind(model, TOPICS[topic], "causal-lm", batch, topic)
    with pytest.raises(ValueError, match=r"answer_all=True with .*for tasks with labels only"):
        model(**topic_batch([0, 1]), answer_all=True)


def test_the_likeliest_tasks_are_named_where_a_sequence_is_turned_away(copies: EideticModel) -> None:
    batch = topic_batch([0, 1, 2, 3] * 4)
    found = copies.route(**batch, abstain=0.9)
    assert int(found.abstained.sum()) > 0
    for away, name, near, scores in zip(
        found.abstained.tolist(), found.tasks, found.nearest, found.router_scores, strict=True
    ):
        assert (name is None) == away == (near is not None)
        assert not away or near == [TOPICS[place] for place in scores.argsort(descending=True)[:3].tolist()]
    assert copies.route(**batch).nearest is None


@pytest.mark.parametrize(
    ("text", "name", "rest"),
    [
        ("sentiment: what a film", "sentiment", "what a film"),
        ("  [Sentiment] : what a film", "sentiment", "what a film"),
        ("(news topic): rates rise", "news_topic", "rates rise"),
        ("News-Topic: rates: rise", "news_topic", "rates: rise"),
        ("sentiment:", None, "sentiment:"),
        ("nothing: here", None, "nothing: here"),
        ("what a film", None, "what a film"),
        ("", None, ""),
    ],
)
def test_a_text_may_name_its_task(text: str, name: str | None, rest: str) -> None:
    assert routing.named_in(text, ["sentiment", "news_topic"]) == (name, rest)


# -- overlaps ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings that a commit gave."""
    lines: list[str] = []
    monkeypatch.setattr(life.logger, "warning", lambda message, *_: lines.append(message))
    return lines


def test_a_commit_says_which_tasks_are_hardly_told_apart(said: list[str]) -> None:
    model = tiny_model(growth="copy")
    commit_topic(model, 0, rows=240)
    commit_topic(model, 2, rows=240)
    assert not said
    commit_topic(model, 0, "twin", seed=1, rows=240)
    (line,) = said
    assert "will not always tell 'twin' from other tasks" in line and "'alpha'" in line and "answer_all" in line
    assert "'gamma'" not in line
    found = routing.overlaps(model, "twin")
    assert list(found) == ["alpha", "gamma"] and found["alpha"] < 0.9 and found["gamma"] > 0.95


def test_versions_of_a_task_and_tasks_without_a_route_do_not_overlap(said: list[str]) -> None:
    model = tiny_model(growth="copy")
    commit_topic(model, 0)
    commit_topic(model, 1, "silent", route=False)
    assert routing.overlaps(model, "silent") == {} and routing.overlaps(model, "alpha") == {}
    assert not said


# -- kept -------------------------------------------------------------------------------------------------------------


def test_all_orders_merges_and_files_give_the_same_routes_bit_for_bit(tmp_path: Path) -> None:
    parts, batch = [tiny_model(growth="copy") for _ in range(2)], topic_batch([0, 1, 2, 3])
    for topic in range(4):
        commit_topic(parts[topic % 2], topic)

    def found(model: EideticModel) -> list[Tensor]:
        model.routing = DEEP
        answer = model.route(**batch, abstain=0.2)
        return [answer.router_scores[:, [model.tasks.index(name) for name in TOPICS]], answer.outlier_scores]

    first, second = copy.deepcopy(parts[0]), copy.deepcopy(parts[1])
    first.merge(parts[1])
    second.merge(parts[0])
    wanted = found(first)
    assert first.tasks != second.tasks
    first.save_pretrained(tmp_path)
    loaded, third = EideticModel.from_pretrained(tmp_path), tiny_model(growth="copy")
    for name in reversed(TOPICS):
        third.load_task(tmp_path, name)
    third.route(**batch)  # its sum is then brought up to date
    commit_topic(third, 1, "fifth", seed=2)
    third.route(**batch)
    third.remove_task("fifth")
    for model in (second, loaded, third):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found(model), wanted, strict=True))
    model = EideticModel.from_pretrained(tmp_path, tasks=["delta", "alpha", "beta"])
    loaded.remove_task("gamma")
    model.routing = loaded.routing = DEEP
    ours, theirs = (each.route(**batch) for each in (model, loaded))
    order = [model.tasks.index(name) for name in loaded.tasks]
    assert torch.equal(ours.router_scores[:, order], theirs.router_scores)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5", "modernbert"])
def test_a_checkpoint_without_a_pool_is_read_as_deep(architecture: str, tmp_path: Path) -> None:
    backbone = tiny_backbone(architecture)
    with torch.no_grad():  # so that norms and biases, which lie beside base's units, matter
        for parameter in backbone.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model = EideticModel.from_backbone(backbone, trunk_layers=1, growth="copy")
    for topic in range(3):
        commit_topic(model, topic)
    batch = topic_batch([0, 1, 2, 2])
    wanted = at(model, DEEP, batch)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "without", include_pool=False)
    assert not (tmp_path / "without" / "eidetic-pool.safetensors").exists()
    for folder, options in (("without", {}), ("whole", {"tasks": list(TOPICS[:3])}), ("whole", {})):
        assert torch.equal(at(EideticModel.from_pretrained(tmp_path / folder, **options), DEEP, batch), wanted)
    private = model.network.base_private()
    loaded = EideticModel.from_pretrained(tmp_path / "without")
    assert torch.equal(loaded.network.base_private(), private)


def test_a_model_in_another_dtype_keeps_what_the_router_knows(copies: EideticModel) -> None:
    model = copy.deepcopy(copies).to(torch.bfloat16)
    assert model.router.reference.need("scale").dtype == torch.float32
    ours, theirs = model.router.sums.state_dict(), copies.router.sums.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in theirs)


@pytest.mark.parametrize("folder", ["format_1/bert", "format_1/t5", "format_2/bert", "format_2/t5", "copies/bert"])
def test_models_of_earlier_versions_route_by_what_they_kept(folder: str) -> None:
    model = EideticModel.from_pretrained(Path(__file__).parents[1] / "golden" / folder)
    names = [name for name in model.tasks if model.router.has(name)]
    assert names and model.router.reference.get("parts") is None
    assert all(model.router.sums[task_key(name)].get("moment") is not None for name in names)
    batch = {"input_ids": torch.randint(3, 40, (6, 9), generator=torch.Generator().manual_seed(0))}
    found = model.route(**batch, abstain=0.1)
    assert found.router_scores.dtype == found.outlier_scores.dtype == torch.float64
    assert torch.isfinite(found.router_scores).all() and torch.isfinite(found.outlier_scores).all()
    torch.testing.assert_close(found.router_scores.sum(1), torch.ones(6, dtype=torch.float64))
    for way in (SHALLOW, DEEP):
        assert torch.equal(at(model, way, batch), found.router_scores)
    again = EideticModel.from_pretrained(Path(__file__).parents[1] / "golden" / folder)
    assert torch.equal(again.route(**batch).router_scores, found.router_scores)
