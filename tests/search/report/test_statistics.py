"""The numbers of a ranking, against ways of one's own."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.report.statistics import Ranking, holm, rank, with_baselines
from search.report.tables import read_table
from tests.search.report.rankings import ranked
from tests.search.spaces import TABLE, macro
from tools.ranking import compare, kendall_tau, regret_at, tau_b


def benchmark() -> Ranking:
    if not TABLE.exists():
        pytest.skip(f"the benchmark's table is not at {TABLE}")
    table = read_table(TABLE, macro(), option="truth")
    networks = sorted(table.values, key=lambda network: network.choices)
    scored = with_baselines(macro(), networks, table.repeats(networks), {}, seed=0)
    return rank(scored, resamples=100, seed=0)


@pytest.mark.slow
def test_the_baselines_of_the_benchmark_are_the_published_ones() -> None:
    ranking = benchmark()
    taus = {name: score.tau.value for name, score in ranking.scores.items()}
    assert taus["MACs"] == pytest.approx(0.546, abs=0.001)
    assert taus["params"] == pytest.approx(0.2155, abs=0.001)
    assert taus["depth"] == pytest.approx(0.679, abs=0.001)
    assert taus["ReLU units"] == pytest.approx(0.718, abs=0.001)
    assert taus["roots of units"] == pytest.approx(0.770, abs=0.001)
    assert taus["additive fit"] == pytest.approx(0.848, abs=0.002)
    assert abs(taus["chance"]) < 0.03
    assert ranking.repeat_tau == pytest.approx(0.895, abs=0.001)
    assert ranking.noise_ceiling == pytest.approx(0.945, abs=0.005)
    assert ranking.scores["depth"].partial_tau_given_macs == pytest.approx(0.498, abs=0.001)
    assert ranking.scores["depth"].spearman == pytest.approx(0.821, abs=0.001)
    assert ranking.scores["MACs"].precision_at[397] == pytest.approx(0.55, abs=0.01)
    assert ranking.null_deviation == pytest.approx(0.0106, abs=0.0001)
    assert ranking.scores["MACs"].partial_tau_given_macs is None
    json.dumps(ranking.as_data(), allow_nan=False)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_its_definition(p_values: list[float]) -> None:
    ordered = sorted(p_values)
    for p_value, adjusted in zip(p_values, holm(p_values), strict=True):
        rank = ordered.index(p_value)  # the first of equals
        steps = [(len(p_values) - place) * ordered[place] for place in range(rank + 1)]
        last = len(ordered) - 1 - ordered[::-1].index(p_value)
        later = [(len(p_values) - place) * ordered[place] for place in range(last + 1)]
        assert min(1, max(steps)) <= adjusted <= min(1, max(later)) + 1e-15


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_of_few_networks_no_p_value_is_small_and_intervals_agree(count: int) -> None:
    truth = np.arange(float(count))
    ranking = ranked({"mine": truth, "other": -truth}, truth)
    for tau in (score.tau for score in ranking.scores.values()):
        assert (tau.low > 0 or tau.high < 0) == (tau.p_value < 0.05)
    for difference in (comparison.difference for comparison in ranking.comparisons):
        assert difference.p_value >= 2.0 ** (1 - count)
        assert (difference.low > 0 or difference.high < 0) == (difference.p_value < 0.05)


def test_each_number_is_that_of_its_score_and_each_pair_that_of_its_two() -> None:
    rng, truth = np.random.default_rng(0), np.arange(40.0)
    scores = {name: truth + 9 * rng.normal(size=40) for name in ("mine", "other")}
    ranking = ranked({**scores, "flat": np.ones(40)}, truth)
    assert ranking.orders_nothing == ["flat"]
    assert ranking.telling_subjects == ["mine", "other"]
    taus = {name: kendall_tau(values, truth, resamples=100) for name, values in scores.items()}
    adjusted = holm([tau.p_value for tau in taus.values()])
    for (name, tau), p_holm in zip(taus.items(), adjusted, strict=True):
        score = ranking.scores[name]
        assert (score.tau, score.tau_p_holm) == (tau, p_holm)
        assert score.tau_by_repeat == [tau.value]
        assert score.regret_at[10] == regret_at(scores[name], truth, 10)
        best = np.argsort(-scores[name])[:20]
        assert score.tau_in_predicted_best["half"] == tau_b(scores[name][best], truth[best])
        assert score.tau_in_predicted_best["tenth"] is None  # four networks are too few
    assert all(ranking.scores[name].tau_p_holm is None for name in ("MACs", "depth", "chance"))
    pair = ranking.comparison("mine", "other")
    assert pair.difference == compare(scores["mine"], scores["other"], truth, resamples=100)
    turned = ranking.comparison("other", "mine")
    assert (turned.one, turned.other) == ("other", "mine")
    assert turned.difference.value == -pair.difference.value
    assert (turned.difference.low, turned.difference.high) == (-pair.difference.high, -pair.difference.low)
    assert (turned.p_holm, turned.difference.p_value) == (pair.p_holm, pair.difference.p_value)
    names = [name for name in ranking.scores if name != "chance"]
    compared = {frozenset((pair.one, pair.other)) for pair in ranking.comparisons}
    assert compared == {frozenset((one, two)) for one in scores for two in names if one != two}
    assert all(pair.comparisons == len(ranking.comparisons) for pair in ranking.comparisons)


def test_files_have_the_names_of_before() -> None:
    """Whoever reads report.json finds there what its reader of last year found."""
    truth = np.arange(12.0)
    data = ranked({"mine": truth}, truth).as_data()
    assert list(data) == [
        *("networks", "asked", "repeats", "null_deviation", "edge_of_chance", "repeat_tau", "noise_ceiling"),
        *("lower_is_better", "sizes", "scores", "orders_nothing", "differences"),
    ]
    numbers = [
        *("tau", "tau_by_repeat", "spearman", "weighted_tau", "partial_tau_given_macs", "tau_in_true_best"),
        *("tau_in_predicted_best", "precision_at", "best_rank_at", "regret_at"),
    ]
    assert list(data["scores"]["mine"]) == [*numbers, "tau_p_holm"]
    assert list(data["scores"]["depth"]) == numbers
    assert list(data["scores"]["mine"]["tau"]) == ["value", "low", "high", "p_value", "n"]
    assert list(data["scores"]["mine"]["regret_at"]) == ["1", "3", "10"]
    assert list(data["differences"][0]) == [
        *("one", "other", "value", "low", "high", "p_value", "n", "comparisons", "p_holm")
    ]
    assert data["repeat_tau"] is None
    json.dumps(data, allow_nan=False)
