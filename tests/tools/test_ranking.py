"""Statistics of rankings against their definitions, by loops, and the coverage of intervals by simulation."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.chance import Numbers, null_deviation
from tools.ranking import (
    additive_scores,
    best_rank_at,
    compare,
    kendall_tau,
    noise_ceiling,
    partial_tau,
    precision_at,
    regret_at,
    repeat_tau,
    spearman,
    tau_b,
    tau_within,
    weighted_tau,
)

few = (
    st.integers(2, 12)
    .flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 5), min_size=n, max_size=n) for _ in range(3)]))
    .filter(lambda lists: all(len(set(values)) > 1 for values in lists))
)


def tau_by_loops(scores: Sequence[float] | Numbers, truth: Sequence[float] | Numbers) -> float:
    """Kendall 1945: concordant less discordant pairs, over the geometric mean of those not tied in each."""
    pairs = list(itertools.combinations(range(len(scores)), 2))
    one = [np.sign(scores[i] - scores[j]) for i, j in pairs]
    other = [np.sign(truth[i] - truth[j]) for i, j in pairs]
    both = sum(a * b for a, b in zip(one, other, strict=True))
    return float(both / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other)))


def ranks(values: list[float]) -> list[float]:
    """From 1, the highest first, ties at their mean."""
    return [sum(v > each for v in values) + (sum(v == each for v in values) + 1) / 2 for each in values]


@given(few)
def test_tau_is_its_definition(lists: tuple[list[float], ...]) -> None:
    scores, truth, _ = lists
    found = kendall_tau(scores, truth, resamples=20)
    assert found.value == pytest.approx(tau_by_loops(scores, truth), abs=1e-12)
    assert found.n == len(scores)
    assert 0 <= found.p_value <= 1
    assert kendall_tau([-each for each in scores], truth, resamples=20).value == pytest.approx(-found.value)
    assert tau_b(scores, truth) == found.value


@given(few)
def test_the_other_correlations_are_their_definitions(lists: tuple[list[float], ...]) -> None:
    scores, truth, third = lists
    expected = np.corrcoef(ranks(scores), ranks(truth))[0, 1]
    assert spearman(scores, truth) == pytest.approx(expected, abs=1e-9)
    a, b, c = tau_b(scores, truth), tau_b(scores, third), tau_b(truth, third)
    if max(abs(b), abs(c)) < 1 - 1e-9:
        wanted = (a - b * c) / math.sqrt((1 - b * b) * (1 - c * c))
        assert partial_tau(scores, truth, third) == pytest.approx(wanted, abs=1e-9)


@given(st.lists(st.integers(0, 50), min_size=3, max_size=10, unique=True), st.randoms())
def test_weighted_tau_weighs_by_true_rank(truth: list[float], random: object) -> None:
    scores = [each * 7 % 11 + each / 100 for each in truth]
    place = ranks(truth)
    pairs = list(itertools.combinations(range(len(truth)), 2))
    weights = [1 / place[i] + 1 / place[j] for i, j in pairs]
    agree = [np.sign((truth[i] - truth[j]) * (scores[i] - scores[j])) for i, j in pairs]
    wanted = sum(w * s for w, s in zip(weights, agree, strict=True)) / sum(weights)
    assert weighted_tau(scores, truth) == pytest.approx(wanted, abs=1e-9)


@given(few, st.integers(1, 12))
def test_the_best_k(lists: tuple[list[float], ...], k: int) -> None:
    scores, truth, _ = lists
    k = min(k, len(scores))
    chosen = sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
    true = sorted(range(len(truth)), key=lambda i: -truth[i])[:k]
    assert precision_at(scores, truth, k) == len(set(chosen) & set(true)) / k
    best = max(truth[i] for i in chosen)
    assert best_rank_at(scores, truth, k) == 1 + sum(value > best for value in truth)
    assert regret_at(scores, truth, k) == max(truth) - best


def test_tau_within_the_best() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.normal(size=40), rng.normal(size=40)
    order = np.argsort(-truth)[:10]
    assert tau_within(scores, truth, 0.25) == pytest.approx(tau_by_loops(scores[order], truth[order]))
    order = np.argsort(-scores)[:10]
    assert tau_within(scores, truth, 0.25, of="scores") == pytest.approx(
        tau_by_loops(scores[order], truth[order])
    )


@pytest.mark.parametrize(("n", "wanted"), [(13, 0.210), (23, 0.150), (32, 0.124), (100, 0.068)])
def test_the_null_deviation_is_the_published_one(n: int, wanted: float) -> None:
    assert null_deviation(n) == pytest.approx(wanted, abs=5e-4)
    rng = np.random.default_rng(n)
    drawn = [tau_b(rng.random(n), rng.random(n)) for _ in range(700)]
    assert np.std(drawn) == pytest.approx(wanted, rel=0.08)


def correlated(rng: np.random.Generator, n: int, rho: float) -> tuple[Numbers, Numbers]:
    one, other = rng.normal(size=(2, n))
    return one, rho * one + math.sqrt(1 - rho**2) * other


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_intervals_cover_at_their_rate(rho: float) -> None:
    rng, hits, count = np.random.default_rng(1), 0, 1200
    true = 2 / math.pi * math.asin(rho)
    for seed in range(count):
        found = kendall_tau(*correlated(rng, 50, rho), level=0.9, resamples=400, seed=seed)
        hits += found.low <= true <= found.high
    assert hits / count == pytest.approx(0.9, abs=0.02)


@pytest.mark.slow
def test_equal_scores_are_seldom_called_different() -> None:
    rng, found = np.random.default_rng(2), []
    for seed in range(300):
        truth = rng.normal(size=40)
        noisy = [truth + rng.normal(size=40) for _ in range(2)]
        found.append(compare(noisy[0], noisy[1], truth, resamples=400, seed=seed).p_value < 0.1)
    assert np.mean(found) < 0.15
    truth = rng.normal(size=200)
    better, worse = (truth + spread * rng.normal(size=200) for spread in (0.5, 2.0))
    told = compare(better, worse, truth)
    assert told.p_value < 0.01
    assert 0 < told.low < told.value < told.high
    back = compare(worse, better, truth)
    assert back.value == pytest.approx(-told.value)
    assert back.p_value == told.p_value


@pytest.mark.slow
def test_intervals_cover_where_the_truth_has_noisy_repeats() -> None:
    """A network brings the noise of its trainings along."""
    rng, hits, count = np.random.default_rng(4), 0, 800

    def drawn(n: int) -> tuple[Numbers, Numbers]:
        scores, quality = correlated(rng, n, 0.7)
        return scores, quality + rng.normal(size=(3, n))

    true = tau_b(*(values.mean(axis=0) if values.ndim > 1 else values for values in drawn(20_000)))
    for seed in range(count):
        found = kendall_tau(*drawn(50), resamples=400, seed=seed)
        hits += found.low <= true <= found.high
    assert hits / count == pytest.approx(0.95, abs=0.02)


def test_repeats_agree_as_far_as_their_noise_lets_them() -> None:
    rng = np.random.default_rng(3)
    scores, quality = correlated(rng, 3000, 0.8)
    repeats = quality + 0.5 * rng.normal(size=(3, 3000))
    assert kendall_tau(scores[:60], repeats[:, :60]).value == tau_b(scores[:60], repeats[:, :60].mean(axis=0))
    pairs = [tau_b(repeats[i], np.delete(repeats, i, 0).mean(axis=0)) for i in range(3)]
    assert repeat_tau(repeats) == pytest.approx(np.mean(pairs))
    # What a perfect score reaches, here known: that is not what one training reaches.
    perfect = tau_b(quality, repeats.mean(axis=0))
    assert noise_ceiling(repeats) == pytest.approx(perfect, abs=0.02)
    assert repeat_tau(repeats) < perfect - 0.1
    assert math.isnan(repeat_tau(quality))
    assert math.isnan(noise_ceiling(quality))


def test_differences_where_no_network_makes_a_difference() -> None:
    truth = np.arange(40.0)
    assert compare(truth, -truth, truth).p_value < 1e-6
    assert compare(truth, truth, truth).p_value == 1
    assert compare(truth[:30], -truth[:30], truth[:30]).p_value < 0.001
    assert compare(truth[:30], truth[:30], truth[:30]).p_value == 1
    assert compare(truth[:3], -truth[:3], truth[:3]).p_value == 0.5  # the ranks of two networks differ


def test_what_is_given_itself_says_nothing_more() -> None:
    given = [3.0, 1, 1, 2, 5, 5, 0]
    assert math.isnan(partial_tau(given, [1, 2, 3, 4, 5, 6, 7], given))


def test_the_seed_decides() -> None:
    scores, truth = correlated(np.random.default_rng(4), 30, 0.5)
    assert kendall_tau(scores, truth, seed=1) == kendall_tau(scores, truth, seed=1)
    assert kendall_tau(scores, truth, seed=1) != kendall_tau(scores, truth, seed=2)


def test_additive_scores_know_nothing_of_whom_they_score() -> None:
    rng = np.random.default_rng(5)
    choices = rng.integers(0, 3, size=(300, 6))
    worth = rng.normal(size=(6, 3))
    truth = worth[np.arange(6), choices].sum(axis=1)
    assert tau_b(additive_scores(choices, truth), truth) > 0.98
    noise = rng.normal(size=300)
    assert abs(tau_b(additive_scores(choices, noise), noise)) < 0.15, "it has seen what it scores"


@pytest.mark.parametrize(
    ("scores", "truth", "says"),
    [
        ([1.0], [1.0], "two networks or more"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "of the same networks"),
        ([1.0, math.nan], [1.0, 2.0], "scores: not all are finite"),
        ([1.0, 2.0], [1.0, math.inf], "truth: not all are finite"),
        ([1.0, 1.0], [1.0, 2.0], "order nothing"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores: list[float], truth: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kendall_tau(scores, truth)
