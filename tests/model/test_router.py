"""The router alone: features, exact sums and what is kept of them, the closed form, and what users tell it."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from support.topics import TOPICS
from torch import Tensor

from eidetic_hf import TaskError
from eidetic_hf.model.router import (
    Discriminant,
    Layout,
    Router,
    RouterSums,
    layers_to_read,
    reference_inputs,
    size_of_kept,
    to_pool,
)
from eidetic_hf.model.router import discriminant as discriminant_module
from eidetic_hf.model.router import router as router_module
from eidetic_hf.model.router.discriminant import ALL_LOOKED_AT, LOOKED_AT, UNITS, WORK, thinned
from eidetic_hf.model.router.features import MAX_FEATURES
from eidetic_hf.model.router.sums import MEAN_UNITS, directions_kept, kept_of, statistics_of
from eidetic_hf.network.trunk import EDGE, MEAN, PLAIN_MEAN, TrunkPass, pool_states

MANY = ALL_LOOKED_AT + 6
# So few that all correlations are kept, and so many that the strongest directions are.
SIZES = [12, 96]


def random_data(seed: int, features: int = 12, labels: int = 3, rows: int = 200) -> tuple[Tensor, Tensor]:
    """Random whole numbers around labels' centers, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.randint(-20, 21, (labels, features), generator=generator)
    y = torch.arange(rows) % labels
    return center[y] + torch.randint(-30, 31, (rows, features), generator=generator), y


def sums_over(x: Tensor, y: Tensor, labels: int = 3) -> RouterSums:
    sums = RouterSums.zeros(labels, x.shape[1])
    for start in range(0, len(x), 64):
        sums.add(x[start : start + 64].float(), y[start : start + 64])
    return sums


def random_sums(seed: int, features: int = 12, labels: int = 3, rows: int = 200) -> RouterSums:
    return sums_over(*random_data(seed, features, labels, rows), labels)


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode())


def new_router(names: Sequence[str], features: int = 12, rows: int = 200) -> Router:
    """A router that knows tasks by random sums; it reads two layers, a third of the features from the first."""
    router, third = Router(), features // 3
    layout = Layout.of([(1, MEAN), (2, MEAN), (2, EDGE)], [third] * 3)
    router.set_reference(layout, torch.randn(500, features, generator=torch.Generator().manual_seed(0)), 0)
    for name in names:
        router.put(name, random_sums(seed_of(name), features, rows=rows))
    return router


def texts(seed: int = 0, rows: int = 20, features: int = 12) -> Tensor:
    return torch.randint(-60, 61, (rows, features), generator=torch.Generator().manual_seed(seed)).float()


def found_by(router: Router, names: Sequence[str], x: Tensor) -> list[Any]:
    """All that a classifier says of texts, for the tasks in the order of their names."""
    solved, order = router.discriminant(list(names)), sorted(names)
    likeliest = [order[place] for place in solved.log_posteriors(x, order).argmax(1).tolist()]
    return [solved.log_posteriors(x, order), solved.outlier_scores(x, likeliest), solved.nearest_labels(x, 3)]


def same(one: list[Any], other: list[Any]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and one[2] == other[2]


@pytest.fixture
def added_up(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one for each task whose covariance is added to, or taken out of, the sum of all."""
    calls: list[object] = []
    inner = router_module.whole_covariance
    monkeypatch.setattr(router_module, "whole_covariance", lambda kept: (calls.append(kept), inner(kept))[1])
    return calls


# -- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", SIZES)
def test_all_orders_of_four_tasks_give_the_same_router_bit_for_bit(features: int) -> None:
    x = texts(features=features)
    every = [found_by(new_router(order, features), order, x) for order in itertools.permutations(TOPICS)]
    assert len(every) == 24 and all(same(found, every[0]) for found in every)
    assert len(set(every[0][0].argmax(1).tolist())) > 1


@pytest.mark.parametrize("features", SIZES)
def test_a_task_that_went_leaves_no_trace_whether_it_is_taken_out_or_all_is_added_up_anew(
    features: int, added_up: list[object]
) -> None:
    names = ["a", "b", "c", "d", "e"]
    x, wanted = texts(features=features), found_by(new_router(names, features), names, texts(features=features))
    router = new_router([*names, "f"], features)
    assert not torch.equal(found_by(router, [*names, "f"], x)[0][:, :5], wanted[0])
    added_up.clear()
    router.remove("f")
    assert same(found_by(router, names, x), wanted) and len(added_up) == 1  # taken out, and nothing more
    router.forget()
    assert same(found_by(router, names, x), wanted) and len(added_up) == 1 + len(names)
    ours, never = router.state_dict(), new_router(names, features).state_dict()
    assert ours.keys() == never.keys() and all(torch.equal(ours[name], never[name]) for name in ours)


def test_a_sum_is_brought_up_to_date_by_what_came_and_went(added_up: list[object]) -> None:
    names = [f"t{number}" for number in range(8)]
    router, x = new_router(names), texts()
    router.discriminant(names)
    added_up.clear()
    assert same(found_by(router, names[1:], x), found_by(new_router(names[1:]), names[1:], x))
    assert len(added_up) == 1 + 7  # one was taken out; the other router added up seven
    router.put("t0", random_sums(77))  # another of the same name
    other = new_router(names[1:])
    other.put("t0", random_sums(77))
    assert same(found_by(router, names, x), found_by(other, names, x))
    assert not torch.equal(found_by(router, names, x)[0], found_by(new_router(names), names, x)[0])


def test_among_many_tasks_no_order_and_no_task_that_went_changes_a_bit() -> None:
    names = [f"task{number:02}" for number in range(MANY)]
    x = texts(rows=9)
    wanted = found_by(new_router(names, rows=24), names, x)
    for order in (names[::-1], names[30:] + names[:30]):
        assert same(found_by(new_router(order, rows=24), order, x), wanted)
    router = new_router([*names, "more", "most"], rows=24)
    router.discriminant([*names, "more", "most"])
    router.remove("more")
    router.remove("most")
    assert same(found_by(router, names, x), wanted)


def test_of_many_tasks_the_likeliest_of_a_row_are_looked_at_as_if_all_were(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"task{number:02}" for number in range(MANY)]
    router, x = new_router(names, rows=24), texts(rows=3)
    solved = router.discriminant(names)
    some = solved.scores(x)
    assert LOOKED_AT <= len(solved.tasks.roots) <= 3 * LOOKED_AT
    router.forget()
    with monkeypatch.context() as patch:
        patch.setattr(discriminant_module, "ALL_LOOKED_AT", MANY)
        every = router.discriminant(names).scores(x)
    assert len(router.discriminant(names).tasks.roots) == MANY
    assert torch.isclose(some, every, rtol=1e-12, atol=1e-9).sum(1).tolist() == [LOOKED_AT] * 3


def test_the_rows_of_a_batch_are_scored_alike_whatever_stands_beside_them() -> None:
    names = [f"task{number:02}" for number in range(MANY)]
    router, x = new_router(names, rows=24), texts(rows=8)
    whole = router.discriminant(names).scores(x)
    for row in range(8):
        torch.testing.assert_close(router.discriminant(names).scores(x[row : row + 1])[0], whole[row])


def test_threads_that_ask_at_once_solve_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"t{number}" for number in range(8)]
    router, x = new_router(names), texts()
    wanted = [found_by(new_router(names), names[:count], x)[0] for count in (7, 8)]
    inside, peak, both = [0], [0], threading.Barrier(2)
    inner = router_module.whole_covariance

    def watched(kept: Any) -> Tensor:
        inside[0] += 1
        peak[0] = max(peak[0], inside[0])
        with suppress(threading.BrokenBarrierError):
            both.wait(0.05)  # where nothing holds the other one back, it comes in
        inside[0] -= 1
        return inner(kept)

    monkeypatch.setattr(router_module, "whole_covariance", watched)
    found: dict[int, Tensor] = {}

    def solve(count: int) -> None:
        found[count] = router.discriminant(names[:count]).log_posteriors(x, names[:count])

    threads = [threading.Thread(target=solve, args=(count,)) for count in (7, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peak == [1]
    assert torch.equal(found[7], wanted[0]) and torch.equal(found[8], wanted[1])


def test_a_router_can_be_copied_and_pickled() -> None:
    router, x = new_router(TOPICS), texts()
    wanted = found_by(router, TOPICS, x)
    for other in (copy.deepcopy(router), pickle.loads(pickle.dumps(router))):
        assert same(found_by(other, TOPICS, x), wanted)


def test_posteriors_are_the_same_bits_in_any_order_of_the_columns() -> None:
    router, x = new_router(TOPICS), texts(rows=200)
    priors = torch.tensor([0.1, 0.7, 2.0, 1.0], dtype=torch.float64).log()
    solved = router.discriminant(list(TOPICS))
    for log_priors in (None, priors):
        wanted = solved.log_posteriors(x, list(TOPICS), log_priors)
        for order in itertools.permutations(range(4)):
            given = None if log_priors is None else log_priors[list(order)]
            found = solved.log_posteriors(x, [TOPICS[place] for place in order], given)
            assert torch.equal(found, wanted[:, list(order)])


# -- the closed form --------------------------------------------------------------------------------------------------


def reference_posteriors(data: list[tuple[np.ndarray, np.ndarray]], x: np.ndarray) -> np.ndarray:
    """The classifier fitted on all data at once: no sums, plain covariances of the sequences."""
    p, n, tasks = x.shape[1], sum(len(rows) for rows, _ in data), len(data)
    means = np.stack([rows.mean(0) for rows, _ in data])
    center = means.mean(0)
    prototypes = [np.stack([rows[labels == label].mean(0) for label in range(3)]) for rows, labels in data]
    residuals = [rows - prototypes[t][labels] for t, (rows, labels) in enumerate(data)]
    around_task = [np.cov(rows.T, bias=True) for rows, _ in data]
    around_label = [r.T @ r / len(r) for r in residuals]
    ridge = max(0.3 * (p / n) ** 2, 0.003)

    def log_gauss(z: np.ndarray, mean: np.ndarray, c: np.ndarray) -> np.ndarray:
        d = z - mean
        return -0.5 * np.einsum("bi,ij,bj->b", d, np.linalg.inv(c), d) - 0.5 * np.linalg.slogdet(c)[1]

    result = np.zeros((len(x), tasks))
    groups = ([mean[None] for mean in means], prototypes)
    for centers, own, weight, share in (
        (groups[0], around_task, 0.8, 0.9),
        (groups[1], around_label, 0.2, 0.5),
    ):
        within = sum(own) / tasks
        within = within + ridge * np.trace(within) / p * np.eye(p)
        values, vectors = np.linalg.eigh(within)
        root = vectors / np.sqrt(values) @ vectors.T
        every = np.concatenate(centers) - center
        u, s, _ = np.linalg.svd(root @ (every - every.mean(0)).T, full_matrices=False)
        basis = root @ u[:, s > 1e-6 * s.max()]
        k, z = basis.shape[1], (x - center) @ basis
        for t, (rows, labels) in enumerate(data):
            kept = share * len(rows) / (len(rows) + k)
            c = kept * basis.T @ own[t] @ basis + (1 - kept + 1e-6) * np.eye(k)
            parts = [
                log_gauss(z, (mean - center) @ basis, c)
                + (np.log((labels == label).mean()) if len(centers[t]) > 1 else 0)
                for label, mean in enumerate(centers[t])
            ]
            result[:, t] += weight * np.logaddexp.reduce(parts, axis=0)
    result *= min(14.4 / p**0.5, 1)
    return result - np.logaddexp.reduce(result, axis=1, keepdims=True)


def test_the_router_equals_the_same_classifier_fitted_on_all_data_at_once() -> None:
    data = [random_data(seed, rows=150 + 50 * seed) for seed in range(4)]
    router, x = new_router([]), texts(rows=40)
    for name, (rows, labels) in zip(TOPICS, data, strict=True):
        router.put(name, sums_over(rows, labels))
    found = router.discriminant(list(TOPICS)).log_posteriors(x, list(TOPICS))
    expected = reference_posteriors([(rows.double().numpy(), y.numpy()) for rows, y in data], x.double().numpy())
    # Means are kept in 256ths, correlations in float32.
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3, atol=2e-3)
    assert np.ptp(expected) > 1


@pytest.mark.parametrize(("labels", "features"), [(20, 96), (150, 96), (40, 12)])
def test_labels_far_apart_in_comparison_with_what_they_spread_can_be_routed(labels: int, features: int) -> None:
    generator, router, data = torch.Generator().manual_seed(0), new_router([], features), {}
    for name in TOPICS[:3]:
        center = torch.randint(-40, 41, (labels, features), generator=generator)
        y = torch.arange(10 * labels) % labels
        x = center[y] + torch.randint(-1, 2, (len(y), features), generator=generator)
        router.put(name, sums_over(x, y, labels))
        data[name] = x[:50].float()
    solved = router.discriminant(list(TOPICS[:3]))
    for name, x in data.items():
        found = solved.log_posteriors(x, list(TOPICS[:3]))
        assert torch.isfinite(found).all() and torch.isfinite(solved.outlier_scores(x, [name] * 50)).all()
        assert float((found.argmax(1) == TOPICS.index(name)).double().mean()) > 0.9


def test_directions_are_capped_for_many_tasks() -> None:
    names = [f"task{number:02}" for number in range(70)]
    router = new_router(names, features=192, rows=30)
    found = router.discriminant(names)
    assert found.tasks.basis.shape == (192, 64) and found.tasks.slopes is not None
    assert found.labels.basis.shape == (192, 128) and found.labels.slopes is not None
    assert torch.isfinite(found.log_posteriors(texts(features=192, rows=3), names)).all()
    assert found.bytes > 0


def test_priors_move_the_log_odds_by_their_logs() -> None:
    router, x = new_router(TOPICS), texts()
    before = router.discriminant(TOPICS).log_posteriors(x, list(TOPICS))
    assert router.log_priors(TOPICS) is None
    router.set_prior("beta", 7.0)
    after = router.discriminant(TOPICS).log_posteriors(x, list(TOPICS), router.log_priors(TOPICS))
    odds = [log[:, 1] - log[:, 0] for log in (before, after)]
    torch.testing.assert_close(odds[1] - odds[0], torch.full_like(odds[0], np.log(7)))
    router.set_prior("beta", 1)
    assert router.log_priors(TOPICS) is None and not router.told.state_dict()


def test_outlier_scores_of_a_tasks_own_sequences_lie_around_zero_and_strange_ones_far_above() -> None:
    router = new_router(TOPICS)
    solved = router.discriminant(list(TOPICS))
    for name in TOPICS:
        x, _ = random_data(seed_of(name))
        own = solved.outlier_scores(x.float(), [name] * len(x))
        assert abs(float(own.mean())) < 0.3 and 0.2 < float(own.std()) < 1.2
        strange = solved.outlier_scores(texts(rows=50) * 2, [name] * 50)
        assert float(strange.median()) > float(own.quantile(0.99))


def test_the_first_features_are_all_that_a_shallow_classifier_reads() -> None:
    for features in SIZES:
        router, x = new_router(TOPICS, features), texts(features=features)
        first = features // 3
        shallow = router.discriminant(list(TOPICS), first)
        assert int(shallow.columns.max()) == first - 1
        wanted = shallow.log_posteriors(x, list(TOPICS))
        x[:, first:] = torch.nan
        assert torch.equal(shallow.log_posteriors(x, list(TOPICS)), wanted)
        assert torch.equal(shallow.log_posteriors(x[:, :first], list(TOPICS)), wanted)
        assert not torch.isfinite(router.discriminant(list(TOPICS)).log_posteriors(x, list(TOPICS))).any()


def test_among_many_tasks_fewer_features_are_read_evenly_and_as_many_for_similar_numbers_of_tasks() -> None:
    columns, directions = thinned(2304, 352, 4)
    assert torch.equal(columns, torch.arange(2304)) and directions == 352
    columns, directions = thinned(2304, 352, 1000)
    assert 64 <= len(columns) < 2304 and 16 <= directions < 352
    assert len(columns) ** 2 * directions * 1024 == pytest.approx(WORK, rel=0.02)
    assert set(columns.diff().tolist()) <= {2304 // len(columns), -(-2304 // len(columns))}
    for n_tasks in (513, 1024):
        again, same_directions = thinned(2304, 352, n_tasks)
        assert torch.equal(again, columns) and same_directions == directions
    assert len(thinned(2304, 352, 1025)[0]) < len(columns)


def test_a_router_whose_tasks_left_nothing_says_which() -> None:
    router = new_router(["a"])
    router.make_room("b")
    assert router.known() == ["a"] and not router.has("b")
    with pytest.raises(TaskError, match=r"knows nothing of \['b'\]"):
        router.discriminant(["a", "b"])


# -- overlaps ---------------------------------------------------------------------------------------------------------


def test_tasks_of_the_same_texts_overlap_by_half_and_far_ones_not_at_all() -> None:
    x, y = random_data(1, rows=600)
    router = new_router([])
    router.put("one", sums_over(x[::2], y[::2]))
    router.put("same", sums_over(x[1::2], y[1::2]))
    router.put("near", sums_over(x + 8, y))
    router.put("far", sums_over(x + 90, y))
    found = router.overlaps("one", ["far", "same", "near"])
    assert list(found) == ["same", "near", "far"]
    assert found["same"] == pytest.approx(0.5, abs=0.1) and found["far"] > 0.999
    assert found["same"] < found["near"] < found["far"]
    router.put("same", sums_over(x[::2], y[::2]))
    assert router.overlaps("one", ["same"]) == {"same": 0.5}


def test_of_many_tasks_the_eight_nearest_are_held_against_one() -> None:
    router = new_router([])
    x, y = random_data(1, rows=90)
    for number in range(12):
        router.put(f"t{number:02}", sums_over((x + 5 * number).clamp(-127, 127), y))
    found = router.overlaps("t00", [f"t{number:02}" for number in range(11, 0, -1)])
    assert set(found) == {f"t{number:02}" for number in range(1, 9)}


# -- sums, and what is kept of them -----------------------------------------------------------------------------------


def test_sums_are_exact_in_any_batches_and_on_several_processes() -> None:
    x, y = random_data(3)
    sums, halves = sums_over(x, y), [RouterSums.zeros(3, 12), RouterSums.zeros(3, 12)]
    for rank, half in enumerate(halves):
        half.add(x[rank::2].flip(0), y[rank::2].flip(0))
    merged = halves[0].merged(halves[1])
    matrix = (x.double().T @ x.double()).long()
    assert torch.equal(sums.moment, matrix) and torch.equal(merged.moment, sums.moment)
    assert torch.equal(merged.total, sums.total) and torch.equal(merged.count, sums.count)


@pytest.mark.parametrize("features", SIZES)
def test_what_is_kept_is_the_same_bytes_in_any_batches_and_on_several_processes(features: int) -> None:
    x, y = random_data(3, features)
    kept = kept_of(sums_over(x, y), 64)
    parts = [sums_over(x[start::3].flip(0), y[start::3].flip(0)) for start in (2, 0, 1)]
    again = kept_of(parts[0].merged(parts[1]).merged(parts[2]), 64)
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) and kept[name].dtype == again[name].dtype for name in kept)


def decaying(rows: int = 800, features: int = 160) -> Tensor:
    """Whole-numbered features whose correlations lie in a few strong directions and many weak ones."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(rows, features, generator=generator) * 0.93 ** torch.arange(features)
    mixed = latent @ torch.linalg.qr(torch.randn(features, features, generator=generator))[0]
    return (mixed / mixed.std(0) * torch.linspace(6, 20, features)).round().clamp(-127, 127)


def around_labels(x: Tensor, y: Tensor) -> Tensor:
    """The exact covariance of sequences around the means of their labels."""
    centered = x.double() - torch.stack([x[y == label].double().mean(0) for label in range(3)])[y]
    return centered.T @ centered / len(x)


def test_the_directions_that_are_kept_are_near_the_exact_covariance() -> None:
    x, y = decaying(), torch.arange(800) % 3
    x[y == 1] += 30
    found = statistics_of(kept_of(sums_over(x, y), 64))
    exact = around_labels(x, y)
    assert found.factor is not None and found.factor.shape == (160, 64) and found.correlations is None
    around = found.covariance().double()
    torch.testing.assert_close(around.diagonal(), exact.diagonal(), rtol=1e-6, atol=0)
    error = float((around - exact).norm() / exact.norm())
    assert error < 0.02
    fewer = statistics_of(kept_of(sums_over(x, y), 16)).covariance().double()
    assert error < 0.2 * float((fewer - exact).norm() / exact.norm())
    means = torch.stack([x[y == label].double().mean(0) for label in range(3)])
    assert float((found.means - means).abs().max()) <= 0.5 / MEAN_UNITS
    torch.testing.assert_close(found.mean, x.double().mean(0), rtol=0, atol=0.5 / MEAN_UNITS)


def test_of_few_features_all_correlations_are_kept() -> None:
    x, y = random_data(5)
    kept = kept_of(sums_over(x, y), 12)
    assert "factor" not in kept and kept["correlations"].shape == (78,)
    found = statistics_of(kept)
    torch.testing.assert_close(found.covariance().double(), around_labels(x, y), rtol=1e-5, atol=1e-4)
    whole, beside = torch.from_numpy(np.cov(x.double().numpy().T, bias=True)), found.between()
    torch.testing.assert_close(found.covariance().double() + beside.T @ beside, whole, rtol=1e-3, atol=0.5)


@pytest.mark.parametrize("features", SIZES)
def test_a_projected_covariance_is_the_projection_of_the_covariance(features: int) -> None:
    found = statistics_of(kept_of(random_sums(2, features), 64))
    basis = torch.randn(features, 5, dtype=torch.float64)
    whole = found.covariance().double()
    torch.testing.assert_close(found.projected(basis), basis.T @ whole @ basis, rtol=1e-5, atol=1e-2)
    some = statistics_of(kept_of(random_sums(2, features), 64), torch.tensor([0, 3, 7]))
    assert len(some.deviation) == 3 and some.means.shape == (3, 3)
    torch.testing.assert_close(some.covariance(), found.covariance()[[0, 3, 7]][:, [0, 3, 7]], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("features", SIZES)
def test_a_sum_over_tasks_is_whole_so_that_one_can_be_taken_out_again(features: int) -> None:
    found = discriminant_module.whole_covariance(statistics_of(kept_of(random_sums(2, features), 64)))
    assert torch.equal(found, found.round()) and float(found.abs().max()) > UNITS


@pytest.mark.parametrize(("labels", "features", "directions"), [(3, 12, 64), (1, 96, 64), (7, 130, 32), (2, 64, 64)])
def test_the_size_of_what_is_kept_is_known_before(labels: int, features: int, directions: int) -> None:
    kept = kept_of(random_sums(1, features, labels, rows=60), directions)
    sizes = size_of_kept(labels, features, directions)
    assert {n: (t.shape, t.dtype) for n, t in kept.items()} == {n: (t.shape, t.dtype) for n, t in sizes.items()}


def test_a_task_of_a_small_sentence_encoder_leaves_less_than_a_hundredth_of_it() -> None:
    backbone = 90_900_000  # bytes of all-MiniLM-L6-v2
    directions = directions_kept(MAX_FEATURES, backbone)
    size = sum(tensor.nbytes for tensor in size_of_kept(4, MAX_FEATURES, directions).values())
    assert 0.008 * backbone < size <= 0.01 * backbone
    assert directions_kept(MAX_FEATURES, 10**10) == 512 and directions_kept(MAX_FEATURES, 0) == 64
    assert directions_kept(20, 0) == 20


def test_sums_that_older_models_kept_whole_are_read_exactly() -> None:
    sums = random_sums(4)
    rows, columns = np.tril_indices(12)
    old = statistics_of({"count": sums.count, "total": sums.total, "moment": sums.moment[rows, columns]})
    new = statistics_of(kept_of(sums, 12))
    assert torch.equal(old.count, new.count) and old.size == 200
    torch.testing.assert_close(old.means, new.means, rtol=0, atol=0.5 / MEAN_UNITS)
    torch.testing.assert_close(old.covariance(), new.covariance(), rtol=1e-5, atol=1e-4)


def test_a_label_without_a_sequence_is_no_place_to_be_near_to() -> None:
    x, y = random_data(3)
    router = new_router(["b"])
    router.put("a", sums_over(x, y * 2, labels=5))
    solved = router.discriminant(["a", "b"])
    near = {(task, label) for row in solved.nearest_labels(texts(), 10) for task, label, _ in row}
    assert near == {("a", 0), ("a", 2), ("a", 4), ("b", 0), ("b", 1), ("b", 2)}
    assert torch.isfinite(solved.log_posteriors(texts(), ["a", "b"])).all()


# -- features ---------------------------------------------------------------------------------------------------------


def test_features_are_whole_numbers_in_bounds() -> None:
    router = new_router([])
    features = router.features(torch.randn(40, 12) * 100)
    assert torch.equal(features, features.round()) and float(features.abs().max()) == 127
    quiet = router.features(torch.randn(400, 12, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(quiet.std(0), torch.full((12,), 10.0), rtol=0.15, atol=0)


def test_the_first_parts_give_the_first_features() -> None:
    router = new_router([])
    pooled = torch.randn(5, 12)
    assert torch.equal(router.features(pooled[:, :4]), router.features(pooled)[:, :4])
    assert torch.equal(router.features(pooled[:, :8]), router.features(pooled)[:, :8])
    assert router.layout(1).up_to(1) == [(1, MEAN)] and router.layout(1).layers == [1, 2]


def test_a_number_that_never_varies_is_no_feature() -> None:
    router = Router()
    pooled = torch.randn(50, 4)
    pooled[:, 2] = 1.5
    router.set_reference(Layout.of([(1, MEAN)], [4]), pooled, 0)
    assert router.features(torch.randn(6, 4) * 9)[:, 2].tolist() == [0] * 6


@pytest.mark.parametrize(("parts", "hidden"), [(3, 384), (6, 768), (5, 512), (1, 32), (6, 4096)])
def test_wide_features_are_thinned_evenly(parts: int, hidden: int) -> None:
    columns = Layout.of([(layer, MEAN) for layer in range(parts)], [hidden] * parts).columns
    assert len(columns) == len(columns.unique()) == min(parts * hidden, MAX_FEATURES)
    assert int(columns.max()) < parts * hidden
    step = parts * hidden / len(columns)
    assert set(columns.diff().tolist()) <= {int(step), int(np.ceil(step))}


@pytest.mark.parametrize(
    ("trunk_layers", "n_layers", "copies", "layers"),
    [
        (2, 6, True, [2, 3, 4]),
        (4, 12, True, [4, 6, 8]),
        (0, 6, True, [2, 3, 4]),
        (0, 12, True, [4, 6, 8]),
        (1, 2, True, [1]),
        (3, 3, True, [3]),
        (0, 1, True, [0]),
        (2, 6, False, [1, 2]),
        (1, 6, False, [1]),
        (0, 6, False, [0]),
    ],
)
def test_the_layers_that_are_read_suit_depth_trunk_and_growth(
    trunk_layers: int, n_layers: int, copies: bool, layers: list[int]
) -> None:
    assert layers_to_read(trunk_layers, n_layers, copies) == layers


def test_of_the_embeddings_the_mean_alone_is_pooled() -> None:
    assert to_pool([2, 0]) == [(0, MEAN), (2, MEAN), (2, EDGE)]
    old = Layout.before_depths(0, torch.arange(3))
    assert old.up_to(9) == [(0, PLAIN_MEAN)]
    assert Layout.before_depths(2, torch.arange(3)).up_to(9) == [(2, PLAIN_MEAN), (2, EDGE)]


def test_a_wide_backbone_reads_fewer_sequences_for_the_reference() -> None:
    assert [len(reference_inputs(100, None, hidden)[0]) for hidden in (384, 1024, 2048, 4096)] == [128, 128, 32, 16]
    ids, mask = reference_inputs(100, 20)
    assert ids.shape == mask.shape == (128, 20)
    ends = ids.gather(1, mask.sum(1, keepdim=True) - 1)
    assert len(ids[:, 0].unique()) == len(ends.unique()) == 1  # as if a tokenizer framed them
    assert int(mask.sum(1).min()) >= 4


MASKS = [
    [1, 1, 1, 1, 0, 0],
    [0, 0, 1, 1, 1, 1],
    [1, 1, 1, 1, 1, 1],
    [1, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 1, 1],
    [0, 1, 1, 1, 0, 0],
]


@pytest.mark.parametrize("edge", ["first", "last"])
def test_pooled_states_are_those_of_the_real_tokens_within_the_frame(edge: str) -> None:
    state, mask = torch.randn(6, 6, 4), torch.tensor(MASKS)
    trunk = TrunkPass(states={2: state})
    mean, end, plain = pool_states(trunk, [(2, MEAN), (2, EDGE), (2, PLAIN_MEAN)], mask, edge)
    for row, real in enumerate(mask.bool()):
        tokens = state[row, real]
        inner = tokens if len(tokens) < 3 else tokens[1:-1] if edge == "first" else tokens[1:]
        torch.testing.assert_close(mean[row], inner.mean(0))
        torch.testing.assert_close(plain[row], tokens.mean(0))
        assert torch.equal(end[row], tokens[0 if edge == "first" else -1])
    (whole,) = pool_states(trunk, [(2, EDGE)], None, edge)
    assert torch.equal(whole, state[:, 0 if edge == "first" else 5])


def test_padding_holds_anything_and_stands_anywhere() -> None:
    tokens = torch.randn(1, 4, 8)
    parts = [(1, MEAN), (1, EDGE)]
    wanted = pool_states(TrunkPass(states={1: tokens}), parts, None, "first")
    for before, behind in ((0, 3), (3, 0), (1, 2)):
        padded = torch.cat([torch.full((1, before, 8), 1e4), tokens, torch.full((1, behind, 8), -1e4)], 1)
        mask = torch.tensor([[0] * before + [1] * 4 + [0] * behind])
        for ours, theirs in zip(pool_states(TrunkPass(states={1: padded}), parts, mask, "first"), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


# -- what users tell --------------------------------------------------------------------------------------------------


@pytest.fixture
def told() -> Router:
    """A router whose texts are their features already."""
    router = new_router(TOPICS)
    router.read_by(lambda x, tokenizer: torch.as_tensor(x).float(), lambda task: ["x", "y", "z"])
    return router


def posteriors(router: Router, x: Tensor) -> Tensor:
    return router.discriminant(list(TOPICS)).log_posteriors(x, list(TOPICS), router.log_priors(TOPICS))


def test_a_text_that_was_shown_with_weight_goes_where_it_was_shown(told: Router) -> None:
    x = texts()
    row = x[:1]
    ranking = [TOPICS[place] for place in posteriors(told, row)[0].argsort(descending=True).tolist()]
    assert ranking[1] == told.explain(row)[0]["runner_up"]
    before = posteriors(told, row)
    told.add_examples(ranking[1], row, weight=100)
    assert told.explain(row)[0]["task"] == ranking[1]
    told.forget_examples(ranking[1], row)
    assert torch.equal(posteriors(told, row), before)


def test_adding_and_forgetting_leave_no_trace(told: Router) -> None:
    x = texts()
    before, kept = found_by(told, TOPICS, x), dict(told.state_dict())
    told.add_examples("beta", x[:3])
    assert not torch.equal(posteriors(told, x), before[0])
    told.add_examples("beta", x[5:6], labels="z", weight=9)
    told.add_examples("gamma", x[3:4], labels=[0])
    told.forget_examples("gamma", x[3:4])
    told.forget_examples("beta", x[5:6], labels=["z"])
    told.forget_examples("beta", x[:3])
    assert same(found_by(told, TOPICS, x), before)
    assert told.state_dict().keys() == kept.keys()


def test_a_text_is_forgotten_under_the_label_under_which_it_was_added(told: Router) -> None:
    x = texts()
    near = told.discriminant(["beta"]).nearest_labels(x[:1], 1)[0][0][1]
    other = (near + 1) % 3
    told.add_examples("beta", x[:1], labels=other)
    told.forget_examples("beta", x[:1])
    assert not told.told.state_dict()


def test_the_order_in_which_texts_are_shown_does_not_matter(told: Router) -> None:
    x, other = texts(), copy.deepcopy(told)
    steps: list[Callable[[Router], None]] = [
        lambda router: router.add_examples("beta", x[:2], labels=["x", "y"]),
        lambda router: router.add_examples("beta", x[2:4], labels=1, weight=5),
        lambda router: router.add_examples("delta", x[4:5], labels=["z"]),
        lambda router: router.forget_examples("alpha", x[5:6], labels=2),
    ]
    for step in steps:
        step(told)
    for step in reversed(steps):
        step(other)
    ours, theirs = told.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert same(found_by(told, TOPICS, x), found_by(other, TOPICS, x))


def test_an_example_counts_a_hundredth_of_a_tasks_sequences_and_of_its_label_alone(told: Router) -> None:
    x = texts()
    told.add_examples("beta", x[:1], labels="y")
    slots = told.told["@beta"]
    assert slots.need("weights").tolist() == [2] and slots.need("labels").tolist() == [1]
    assert torch.equal(slots.need("examples").float(), x[:1])
    kept = told.statistics("beta")
    means = {"before": kept.means, "after": told.discriminant(["beta"])}
    shown = (kept.means[1] * kept.count[1] + 2 * x[0].double()) / (kept.count[1] + 2)
    centers = means["after"].labels.centers
    told.forget_examples("beta", x[:1])
    plain = told.discriminant(["beta"]).labels.centers
    assert centers.shape == plain.shape and not torch.allclose(shown, kept.means[1])
    assert not torch.equal(centers, plain)


def test_an_example_is_forgotten_though_a_feature_was_rounded_otherwise(told: Router) -> None:
    x = texts(rows=3)
    before = told.discriminant(list(TOPICS)).log_posteriors(texts(), list(TOPICS))
    told.add_examples("beta", x, labels=["x", "y", "z"])
    again = x.clone()
    again[:, 4] += 1
    told.forget_examples("beta", again)
    assert not told.told["@beta"].state_dict()
    assert torch.equal(told.discriminant(list(TOPICS)).log_posteriors(texts(), list(TOPICS)), before)
    told.add_examples("beta", x, labels=["x", "y", "z"])
    told.forget_examples("beta", x + 9, weight=1)  # other texts: taken out of what was learned
    assert len(told.told["@beta"].need("weights")) == 6


def test_forgetting_texts_that_a_task_was_learned_from_is_as_if_they_had_not_been(told: Router) -> None:
    x, y = random_data(seed_of("beta"))
    told.forget_examples("beta", x[:20], labels=y[:20].tolist())
    without = sums_over(x[20:], y[20:])
    wanted = torch.stack([without.total[label].double() / without.count[label] for label in range(3)])
    solved = told.discriminant(list(TOPICS))
    wanted = (wanted - solved.center) @ solved.labels.basis
    mine = solved.labels.centers[solved.labels.owner == solved.names.index("beta")]
    torch.testing.assert_close(mine, wanted, rtol=1e-2, atol=1e-2)


def test_what_a_label_had_can_be_forgotten_but_not_all_that_a_task_had(told: Router) -> None:
    x, y = random_data(seed_of("beta"))
    count = int((y == 0).sum())
    told.forget_examples("beta", x[:1], labels=0, weight=count)
    solved = told.discriminant(["alpha", "beta"])
    assert ("beta", 0) not in {(t, n) for row in solved.nearest_labels(texts(), 6) for t, n, _ in row}
    told.forget_examples("beta", x[1:2], labels=1, weight=200)
    before = dict(told.state_dict())
    with pytest.raises(TaskError, match=r"No text of 'beta' would be left.*remove_task\('beta'\)"):
        told.forget_examples("beta", x[2:3], labels=2, weight=200)
    after = told.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_a_task_of_no_labels_takes_texts_without(told: Router) -> None:
    x, y = random_data(3)
    told.put("tags", sums_over(x, y * 0, labels=1))
    told.add_examples("tags", texts()[:2])
    assert told.told["@tags"].need("labels").tolist() == [0, 0]


@pytest.mark.parametrize("weight", [0, -1, 1.5, "3"])
def test_bad_weights_are_refused(told: Router, weight: Any) -> None:
    for tell in (told.add_examples, told.forget_examples):
        with pytest.raises(ValueError, match=r"weight=.*expected a whole number of sequences, 1 or more"):
            tell("beta", texts()[:1], weight=weight)


@pytest.mark.parametrize("labels", [["nobody"], [0, 1], [3], "w", -1, [None]])
def test_bad_labels_are_refused(told: Router, labels: Any) -> None:
    with pytest.raises(ValueError, match=r"for 1 texts: expected as many, of \['x', 'y', 'z'\], or their numbers"):
        told.add_examples("beta", texts()[:1], labels=labels)


def test_a_task_that_the_router_does_not_know_is_refused(told: Router) -> None:
    for tell in (
        lambda: told.add_examples("omega", texts()),
        lambda: told.forget_examples("omega", texts()),
        lambda: told.set_prior("omega", 2),
        lambda: told.set_threshold("omega", 0.1),
        lambda: told.explain(texts(), tasks=["alpha", "omega"]),
    ):
        with pytest.raises(TaskError, match=r"knows nothing of a task 'omega'; it knows \['alpha', 'beta'"):
            tell()


@pytest.mark.parametrize("prior", [0, -1, float("inf"), float("nan")])
def test_bad_priors_are_refused(told: Router, prior: float) -> None:
    with pytest.raises(ValueError, match="expected a number above 0"):
        told.set_prior("beta", prior)


@pytest.mark.parametrize("share", [0, 1, -0.5, 2])
def test_bad_thresholds_are_refused(told: Router, share: float) -> None:
    with pytest.raises(ValueError, match="expected a number between 0 and 1, or None"):
        told.set_threshold("beta", share)


def test_thresholds_are_a_tasks_own(told: Router) -> None:
    told.set_threshold("beta", 0.25)
    assert told.threshold("beta", 0.05) == 0.25 and told.threshold("alpha", 0.05) == 0.05
    told.set_threshold("beta", None)
    assert told.threshold("beta", 0.05) == 0.05 and not told.told.state_dict()


def test_an_explanation_says_what_the_classifier_found(told: Router) -> None:
    x = texts()
    solved = told.discriminant(list(TOPICS))
    scores = solved.log_posteriors(x, list(TOPICS)).exp()
    for row, found in enumerate(told.explain(x)):
        top = scores[row].topk(2)
        assert found["task"] == TOPICS[int(top.indices[0])] and found["runner_up"] == TOPICS[int(top.indices[1])]
        assert found["probability"] == float(top.values[0])
        assert found["margin"] == pytest.approx(float(top.values[0] - top.values[1]))
        assert found["outlier_score"] == float(solved.outlier_scores(x, [found["task"]] * len(x))[row])
        near = [(each["task"], "xyz".index(each["label"]), each["distance"]) for each in found["nearest"]]
        assert near == solved.nearest_labels(x, 3)[row]
    with pytest.raises(TaskError, match="There is no task to choose among"):
        told.explain(x[:1], tasks=[])
    only = told.explain(x[:1], tasks=["beta"])[0]
    assert only["task"] == "beta" and only["runner_up"] is None and only["probability"] == only["margin"] == 1


def test_a_router_of_no_model_reads_no_texts() -> None:
    with pytest.raises(RuntimeError, match="belongs to no model"):
        new_router(["a"]).add_examples("a", ["a text"])


# -- other routers ----------------------------------------------------------------------------------------------------


def test_routers_read_alike_where_layers_and_scale_are_the_same_up_to_rounding() -> None:
    router, reference = new_router([]), dict(new_router([]).reference.state_dict())
    assert router.reads_alike(reference) and router.reads_alike({})
    assert router.reads_alike({**reference, "shift": reference["shift"] + 1e-5})
    for name, value in {
        "shift": reference["shift"] + 0.1,
        "scale": reference["scale"] * 1.1,
        "columns": reference["columns"].flip(0),
        "parts": reference["parts"] + 1,
    }.items():
        assert not router.reads_alike({**reference, name: value}), name
    del reference["parts"]  # as models had it before the router read several depths
    assert not router.reads_alike(reference)


def test_fit_takes_tasks_as_they_are_given() -> None:
    """`Discriminant.fit` alone, of what a router hands to it."""
    router = new_router(TOPICS)
    names = sorted(TOPICS)
    kept = {name: router.statistics(name) for name in names}
    whole = sum(discriminant_module.whole_covariance(each).double() for each in kept.values())
    summaries = {name: (each.count, each.means) for name, each in kept.items()}
    beside = torch.cat([each.between() for each in kept.values()])
    within, between = whole / (UNITS * len(names)), beside.T @ beside / len(names)
    found = Discriminant.fit(router.statistics, summaries, torch.arange(12), within, between)
    assert torch.equal(found.log_posteriors(texts(), names), router.discriminant(names).log_posteriors(texts(), names))
