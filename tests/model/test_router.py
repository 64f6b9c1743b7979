"""Routing: the task of a sequence from exact sums, and batches of several tasks in one pass through the trunk."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import roc_auc_score
from support.backbones import ARCHITECTURES, VOCABULARY, tiny_model
from support.data import arguments, learn, logits_of, make_batch, make_data
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TextClassificationPipeline,
    pipeline,
)

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig, RoutedOutput, TaskError
from eidetic_hf.model import life
from eidetic_hf.model.router import Discriminant, Router, RouterSums
from eidetic_hf.network import trunk
from eidetic_hf.views import owner_of

TOPICS = ("alpha", "beta", "gamma", "delta")


def topic_data(topic: int, seed: int = 0, rows: int = 64) -> Dataset:
    """Sequences that begin alike, and whose other tokens come from a range of their own: they can be routed."""
    data = make_data(seed, rows)
    low = 6 + 27 * topic

    def move(row: dict) -> dict:
        ids = [
            0 if not m else 3 if place == 0 else low + (i % 27) if place != 1 else i
            for place, (i, m) in enumerate(zip(row["input_ids"], row["attention_mask"], strict=True))
        ]
        return {"input_ids": ids}

    return data.map(move)


def topic_batch(topics: list[int], seed: int = 5) -> dict[str, torch.Tensor]:
    """One sequence of each topic listed, padded."""
    rows = [topic_data(topic, seed + place, rows=1)[0] for place, topic in enumerate(topics)]
    return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}


def learn_topics(
    model: EideticModel, topics: tuple[int, ...], folder: Path, problem_types: dict[int, str] | None = None
) -> EideticModel:
    """Learn one task for each topic."""
    for topic in topics:
        kind = (problem_types or {}).get(topic, "single_label_classification")
        model.add_task(TOPICS[topic], labels=["x", "y", "z"], problem_type=kind)
        data = topic_data(topic, topic)
        if kind != "single_label_classification":
            data = data.map(lambda row: {"targets": [float(row["labels"] == i) for i in range(3)]})
            data = data.remove_columns("labels").rename_column("targets", "labels")
        EideticTrainer(
            model=model,
            task=TOPICS[topic],
            args=arguments(folder, max_steps=6),
            pruning=PruningConfig(keep=0.3),
            train_dataset=data,
        ).train()
    return model.eval()


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> EideticModel:
    """A tiny BERT that has learned four topics; copy it before you change it."""
    return learn_topics(tiny_model(), (0, 1, 2, 3), tmp_path_factory.mktemp("routed"))


def random_sums(
    seed: int, features: int = 12, labels: int = 3, rows: int = 200
) -> tuple[RouterSums, torch.Tensor, torch.Tensor]:
    """Sums over random whole numbers, and what was summed."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.randint(-40, 40, (labels, features), generator=generator)
    y = torch.randint(0, labels, (rows,), generator=generator)
    x = center[y] + torch.randint(-20, 21, (rows, features), generator=generator)
    sums = RouterSums.zeros(labels, features)
    for start in range(0, rows, 64):
        sums.add(x[start : start + 64].float(), y[start : start + 64])
    return sums, x, y


# -- the closed form --------------------------------------------------------------------------------------------------


def new_router(names: list[str], features: int = 12) -> Router:
    router = Router()
    router.set_reference(torch.randn(500, 2, features // 2, generator=torch.Generator().manual_seed(0)))
    for name in names:
        router.put(name, random_sums(sum(map(ord, name)))[0])
    return router


def test_all_orders_of_four_tasks_give_the_same_router_bit_for_bit() -> None:
    x = torch.randint(-60, 60, (50, 12)).float()
    answers = []
    for order in itertools.permutations(TOPICS):
        router = new_router(list(order))
        found = router.discriminant(list(order))
        columns = found.log_posteriors(x, sorted(order))
        answers.append((columns, router.outlier_scores(x, ["beta"] * 50, list(order))))
    assert len(answers) == 24
    for posteriors, outlier in answers[1:]:
        assert torch.equal(posteriors, answers[0][0])
        assert torch.equal(outlier, answers[0][1])


def test_a_task_added_and_removed_leaves_no_trace() -> None:
    x = torch.randint(-60, 60, (50, 12)).float()
    router, other = new_router(list(TOPICS[:3])), new_router(list(TOPICS[:3]))
    names = list(TOPICS[:3])
    before = router.discriminant(names).log_posteriors(x, names)
    router.put("delta", random_sums(4)[0])
    assert not torch.allclose(router.discriminant(list(TOPICS)).log_posteriors(x, names), before)
    router.remove("delta")
    assert torch.equal(router.discriminant(names).log_posteriors(x, names), before)
    ours, theirs = router.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_sums_are_exact_in_any_batches_and_on_several_processes() -> None:
    sums, x, y = random_sums(3)
    halves = [RouterSums.zeros(3, 12), RouterSums.zeros(3, 12)]
    for rank, half in enumerate(halves):
        half.add(x[rank::2].flip(0), y[rank::2].flip(0))
    merged = halves[0].merged(halves[1])
    assert torch.equal(merged.moment, sums.moment)
    assert torch.equal(merged.total, sums.total)
    assert torch.equal(merged.count, sums.count)
    matrix = (x.double().T @ x.double()).long()
    rows, columns = np.tril_indices(12)
    assert torch.equal(sums.moment, matrix[rows, columns])


def reference_posteriors(data: list[tuple[np.ndarray, np.ndarray]], x: np.ndarray) -> np.ndarray:
    """The classifier fitted on all data at once: no sums, plain covariances of the sequences."""
    p = x.shape[1]
    n = sum(len(rows) for rows, _ in data)

    def shrink(c: np.ndarray) -> np.ndarray:
        return n / (n + p) * c + p / (n + p) * np.trace(c) / p * np.eye(p)

    prototypes = [rows[labels == label].mean(0) for rows, labels in data for label in range(3)]
    residuals = [
        np.concatenate([rows[labels == label] - rows[labels == label].mean(0) for label in range(3)])
        for rows, labels in data
    ]
    within = shrink(sum(r.T @ r for r in residuals) / (n - len(prototypes)))
    means = np.stack([rows.mean(0) for rows, _ in data])
    center = means.mean(0)
    total = shrink(sum((rows - center).T @ (rows - center) / len(rows) for rows, _ in data) / len(data))

    def space(groups: np.ndarray, metric: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(metric)
        root = vectors / np.sqrt(values) @ vectors.T
        u, s, _ = np.linalg.svd(root @ groups.T, full_matrices=False)
        return root @ u[:, s > 1e-8 * s.max()]

    def log_gauss(z: np.ndarray, mean: np.ndarray, c: np.ndarray) -> np.ndarray:
        d = z - mean
        return -0.5 * np.einsum("bi,ij,bj->b", d, np.linalg.inv(c), d) - 0.5 * np.linalg.slogdet(c)[1]

    result = np.zeros((len(x), len(data)))
    zt = space(means - center, total)
    zl = space(np.stack(prototypes) - np.stack(prototypes).mean(0), within)
    ct = [zt.T @ np.cov(rows.T, bias=True) @ zt for rows, _ in data]
    cl = [zl.T @ (r.T @ r / (len(r) - 3)) @ zl for r in residuals]
    for z, cs, weight, share in ((zt, ct, 0.9, 0.7), (zl, cl, 0.5, 0.3)):
        common, k = sum(cs) / len(cs), z.shape[1]
        for t, (rows, labels) in enumerate(data):
            own = weight * len(rows) / (len(rows) + k)
            c = own * cs[t] + (1 - own) * common + 1e-6 * np.diag(common).mean() * np.eye(k)
            if z is zt:
                log = log_gauss(x @ z, means[t] @ z, c)
            else:
                parts = [
                    log_gauss(x @ z, prototypes[3 * t + label] @ z, c) + np.log((labels == label).mean())
                    for label in range(3)
                ]
                log = np.logaddexp.reduce(parts, axis=0)
            result[:, t] += share * log
    return result - np.logaddexp.reduce(result, axis=1, keepdims=True)


def test_the_router_equals_the_same_classifier_fitted_on_all_data_at_once() -> None:
    data = [random_sums(seed, rows=150 + 50 * seed) for seed in range(4)]
    sums = {TOPICS[i]: data[i][0] for i in range(4)}
    x = torch.randint(-60, 60, (40, 12))
    names = sorted(TOPICS)
    found = Discriminant.fit({name: sums[name] for name in names}, 12).log_posteriors(x, list(TOPICS))
    expected = reference_posteriors([(x.double().numpy(), y.numpy()) for _, x, y in data], x.double().numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_directions_are_capped_for_many_tasks() -> None:
    sums = {f"task{i:03}": random_sums(i, features=200, rows=30)[0] for i in range(90)}
    found = Discriminant.fit(sums, 200)
    assert found.by_task.basis.shape == (200, 64)
    assert found.by_label.basis.shape == (200, 128)
    assert torch.isfinite(found.log_posteriors(torch.randn(3, 200), list(sums))).all()


def test_features_are_whole_numbers_and_keep_their_dtype(routed: EideticModel) -> None:
    model = copy.deepcopy(routed).to(torch.bfloat16)
    assert model.router.reference.need("scale").dtype == torch.float32
    for name, tensor in model.router.sums.state_dict().items():
        assert torch.equal(tensor, routed.router.sums.state_dict()[name])
    features = model.router.features(torch.randn(4, 2, 32) * 100)
    assert torch.equal(features, features.round())
    assert float(features.abs().max()) <= 127


@pytest.mark.parametrize(("parts", "hidden"), [(2, 384), (2, 768), (1, 768), (2, 320), (1, 32)])
def test_wide_features_are_thinned_evenly_and_sums_take_less_than_a_megabyte(parts: int, hidden: int) -> None:
    router = Router()
    router.set_reference(torch.randn(300, parts, hidden))
    columns = router.reference.need("columns")
    assert router.n_features == len(columns.unique()) == min(parts * hidden, 640)
    assert int(columns.max()) < parts * hidden
    for part in range(parts):
        mine = columns[columns // hidden == part]
        assert set(mine.diff().tolist()) <= {-(-hidden // len(mine)), hidden // len(mine)}
    router.put("task", RouterSums.zeros(14, router.n_features))
    size = sum(t.numel() * t.element_size() for t in router.sums.state_dict().values())
    assert size <= 0.01 * 90.9e6


@pytest.mark.parametrize("edge", ["first", "last"])
def test_pooled_states_are_the_mean_and_the_edge_of_the_real_tokens(edge: str) -> None:
    state, mask = torch.randn(3, 6, 4), torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], [1] * 6])
    mean, end = trunk.pool_states({0: torch.zeros(3, 6, 4), 1: state}, mask, edge)
    places = {"first": [0, 2, 0], "last": [2, 5, 5]}[edge]
    for row, (real, place) in enumerate(zip(mask.bool(), places, strict=True)):
        torch.testing.assert_close(mean[row], state[row, real].mean(0))
        assert torch.equal(end[row], state[row, place])
    assert len(trunk.pool_states({0: state}, mask, edge)) == 1
    assert torch.equal(trunk.pool_states({1: state}, None, edge)[1], state[:, {"first": 0, "last": 5}[edge]])


# -- learning and keeping ---------------------------------------------------------------------------------------------


def test_training_leaves_the_sums_of_all_training_sequences(routed: EideticModel) -> None:
    for topic, name in enumerate(TOPICS):
        sums = routed.router.sums_of(name)
        assert sums.count.tolist() == np.bincount(topic_data(topic, topic)["labels"], minlength=3).tolist()


def test_the_order_of_learning_does_not_matter_to_the_bit(routed: EideticModel, tmp_path: Path) -> None:
    other = learn_topics(tiny_model(), (2, 0, 3, 1), tmp_path)
    for name in TOPICS:
        for ours, theirs in zip(
            vars(routed.router.sums_of(name)).values(), vars(other.router.sums_of(name)).values(), strict=True
        ):
            assert torch.equal(ours, theirs)
    batch = topic_batch([0, 1, 2, 3])
    ours, theirs = routed(**batch).router_scores, other(**batch).router_scores
    assert torch.equal(
        ours[:, [routed.tasks.index(name) for name in TOPICS]], theirs[:, [other.tasks.index(name) for name in TOPICS]]
    )


def test_sums_lie_in_the_tasks_own_shard_and_survive_saving(routed: EideticModel, tmp_path: Path) -> None:
    routed.save_pretrained(tmp_path)
    assert owner_of("router.sums.@alpha.moment") == "@alpha"
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
    model.router.sums["@alpha"].need("moment").fill_(7)
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
    from support.backbones import CONFIGS

    torch.manual_seed(0)
    model = EideticModel.from_backbone(CONFIGS["bert"](), trunk_layers=1, growth="fixed")
    learn_topics(model, (0, 1), tmp_path)
    assert set(model(**topic_batch([0, 1, 1])).tasks) <= {"alpha", "beta"}


def test_a_wide_backbone_reads_fewer_sequences_for_the_reference() -> None:
    from eidetic_hf.model.router import reference_inputs

    assert [len(reference_inputs(100, None, hidden)[0]) for hidden in (384, 1024, 2048, 4096)] == [128, 128, 32, 16]


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
    assert np.mean([name == TOPICS[topic] for name, topic in zip(answer.tasks, topics, strict=True)]) > 0.9
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


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({f"w{i:03}": i for i in range(VOCABULARY)}, unk_token="w001"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="w000", unk_token="w001")


def as_texts(batch: dict[str, torch.Tensor]) -> list[str]:
    return [" ".join(f"w{i:03}" for i in row.tolist() if i) for row in batch["input_ids"]]


def test_pipelines_answer_with_task_and_label(
    routed: EideticModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
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
    assert model.router.sums_of("beta").count.tolist() == [64]
    assert model.router.sums_of("gamma").total.shape[0] == 1
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
