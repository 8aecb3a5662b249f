"""What chance does to taus: against every order and exchange by loops, and by simulation."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from tools.chance import FEW, Numbers, by_jackknife, edge_of_chance, fewest, taus_left_out
from tools.ranking import compare, kendall_tau

Lists = tuple[list[float], ...]


def lists(most: int, *, fewest: int = 2, values: int = 5) -> st.SearchStrategy[Lists]:
    """Two scores and a truth of some networks, often with ties, none constant."""
    return (
        st.integers(fewest, most)
        .flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, values), min_size=n, max_size=n)] * 3))
        .filter(lambda each: all(len(set(one)) > 1 for one in each))
    )


def tau_or_0(scores: Sequence[float] | Numbers, truth: Sequence[float] | Numbers) -> float:
    """Scipy's; 0 where a list orders nothing."""
    if len(set(scores)) == 1 or len(set(truth)) == 1:
        return 0.0
    return float(stats.kendalltau(scores, truth).statistic)


def share_as_far(value: float, others: Sequence[float]) -> float:
    return sum(abs(other) >= abs(value) - 1e-9 for other in others) / len(others)


@settings(deadline=None)
@given(lists(9), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
@example(([0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 1, 1, 1, 2]), 0.5)  # its interval has no width
def test_an_interval_leaves_0_out_exactly_where_p_is_small(each: Lists, level: float) -> None:
    one, other, truth = each
    for found in (
        kendall_tau(one, truth, level=level, resamples=600),
        compare(one, other, truth, level=level, resamples=600),
    ):
        assert found.low <= found.value <= found.high
        assert (found.low > 0 or found.high < 0) == (found.p_value < 1 - level)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 12, FEW, FEW + 1, 60])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_same_of_networks_drawn_by_chance(n: int, rounded: bool) -> None:
    rng = np.random.default_rng(n)
    for noise in np.linspace(0.2, 3, 25):
        truth = rng.normal(size=n)
        one, other = truth + noise * rng.normal(size=(2, n))
        if rounded:
            one, other, truth = one.round(), other.round(), truth.round()
        if min(np.ptp(one), np.ptp(other), np.ptp(truth)) == 0:
            continue
        for found in (kendall_tau(one, truth, resamples=500), compare(one, other, truth, resamples=500)):
            assert found.low <= found.value <= found.high
            assert (found.low > 0 or found.high < 0) == (found.p_value < 1 - 0.95)


@settings(deadline=None, max_examples=40)
@given(lists(5))
def test_a_tau_is_held_against_every_order_of_the_truth(each: Lists) -> None:
    scores, _, truth = each
    others = [tau_or_0(scores, order) for order in itertools.permutations(truth)]
    assert kendall_tau(scores, truth).p_value == pytest.approx(share_as_far(tau_or_0(scores, truth), others))


@pytest.mark.parametrize("n", [4, 7, 8, 20])
def test_without_ties_a_p_value_is_the_exact_one(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(5):
        scores, truth = rng.permutation(n), rng.permutation(n)
        exact = stats.kendalltau(scores, truth, method="exact").pvalue
        drawn = 0 if n <= 7 else 4 * math.sqrt(exact * (1 - exact) / 10_000) + 1e-4
        assert kendall_tau(scores, truth).p_value == pytest.approx(exact, abs=drawn + 1e-9)


@settings(deadline=None, max_examples=25)
@given(lists(6))
def test_a_difference_is_held_against_every_exchange_of_ranks(each: Lists) -> None:
    one, other, truth = each
    ranks = stats.rankdata(one), stats.rankdata(other)
    others = []
    for exchanged in itertools.product((False, True), repeat=len(truth)):
        mine, theirs = np.where(exchanged, ranks[1], ranks[0]), np.where(exchanged, ranks[0], ranks[1])
        others.append(tau_or_0(mine, truth) - tau_or_0(theirs, truth))
    value = tau_or_0(one, truth) - tau_or_0(other, truth)
    assert compare(one, other, truth).p_value == pytest.approx(share_as_far(value, others))


def test_of_four_networks_nothing_can_be_told() -> None:
    """The perfect order and its reverse are 2 of 24 orders, and 2 of 16 exchanges."""
    perfect = kendall_tau([1, 2, 3, 4], [1, 2, 3, 4])
    assert perfect.p_value == pytest.approx(1 / 12)
    assert (perfect.low, perfect.high) == (0, 1)
    apart = compare([1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 4])
    assert apart.p_value == pytest.approx(1 / 8)
    assert (apart.low, apart.high) == (0, 2)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
def test_as_many_networks_are_needed_as_the_least_p_value_says(n: int) -> None:
    perfect = np.arange(float(n))
    tau, difference = kendall_tau(perfect, perfect), compare(perfect, -perfect, perfect)
    assert (n >= fewest(0.05)) == (tau.p_value < 0.05)
    assert fewest(tau.p_value) == n + 1
    if n % 2 == 0:  # of an odd number the middle one keeps its rank
        assert difference.p_value == pytest.approx(2.0 ** (1 - n))
        assert n >= fewest(difference.p_value + 1e-9, paired=True)


@settings(deadline=None, max_examples=30)
@given(lists(14, fewest=4, values=3))
def test_leaving_out_is_leaving_out(each: Lists) -> None:
    scores, _, truth = (np.array(values, float) for values in each)
    expected = [tau_or_0(np.delete(scores, number), np.delete(truth, number)) for number in range(len(truth))]
    assert taus_left_out(scores, truth) == pytest.approx(expected, abs=1e-12)


def test_pairs_of_many_networks_are_all_counted() -> None:
    rng = np.random.default_rng(0)
    n = 1100  # three blocks, the last one not full
    truth = rng.normal(size=n).round(1)
    scores = truth + rng.normal(size=n)
    left = taus_left_out(scores, truth)
    for number in (0, 511, 512, 1023, 1024, 1099):
        assert left[number] == pytest.approx(tau_or_0(np.delete(scores, number), np.delete(truth, number)))


@pytest.mark.parametrize("n", [4, 5, 8, 20, 60])
def test_chance_stays_within_its_edge(n: int) -> None:
    rng = np.random.default_rng(n)
    taus = [tau_or_0(rng.random(n), rng.random(n)) for _ in range(800)]
    beyond = np.mean(np.abs(taus) > edge_of_chance(n) + 1e-9)
    assert beyond <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 800)
    assert n < 5 or beyond > 0.005


def unlike(rng: np.random.Generator, n: int, noise: float, *, rounded: bool) -> tuple[Numbers, ...]:
    """Two scores as good as each other, and the truth; none constant."""
    while True:
        truth = rng.normal(size=n)
        one, other = truth + noise * rng.normal(size=(2, n))
        found = (one.round(), other.round(), truth) if rounded else (one, other, truth)
        if all(np.ptp(each) > 0 for each in found):
            return found


@pytest.mark.slow
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("n", [4, 12, 30, 31])
def test_no_more_than_one_in_twenty_is_called_real_by_chance(n: int, rounded: bool) -> None:
    rng, count = np.random.default_rng(n), 400
    noise = 3 * math.sqrt(0.05 * 0.95 / count)
    drawn = [unlike(rng, n, 0.5, rounded=rounded) for _ in range(count)]
    told = [compare(*each, resamples=300, seed=seed).p_value < 0.05 for seed, each in enumerate(drawn)]
    assert np.mean(told) <= 0.05 + noise
    mixed = [(one, rng.permutation(truth)) for one, _, truth in drawn]
    told = [kendall_tau(*each, resamples=300, seed=seed).p_value < 0.05 for seed, each in enumerate(mixed)]
    assert np.mean(told) <= 0.05 + noise
    assert n < 12 or np.mean(told) >= 0.05 - noise


def test_of_few_networks_leaving_out_would_tell_too_much() -> None:
    """Why chance is played through there: of unrelated lists of four every eighth looked related, or more."""
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        scores, truth = rng.normal(size=(2, 4))
        left = taus_left_out(scores, truth)
        found.append(by_jackknife(tau_or_0(scores, truth), left, level=0.95, limit=1).p_value < 0.05)
    assert np.mean(found) > 1 / 8


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.6, 0.95])
@pytest.mark.parametrize("n", [6, 12, 30])
def test_intervals_of_few_networks_cover_at_least_at_their_rate(n: int, rho: float) -> None:
    rng, hits, count = np.random.default_rng(n), 0, 500
    true = 2 / math.pi * math.asin(rho)
    for seed in range(count):
        truth, noise = rng.normal(size=(2, n))
        found = kendall_tau(rho * truth + math.sqrt(1 - rho**2) * noise, truth, resamples=300, seed=seed)
        hits += found.low <= true <= found.high
    assert hits / count >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / count)
