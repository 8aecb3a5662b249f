"""What a ranking report says in numbers and words, against ways of one's own."""

import io
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.report.figures import expected_regret, regret_figure, tau_figure, true_front
from search.report.modules import kept_by_layer
from search.report.statistics import gather, holm, statistics
from search.report.tables import read_table
from search.report.words import difference, number, verdict
from supernet.presets import preset
from tests.search.spaces import TABLE, macro
from tools.page.pictures import house_style
from tools.ranking import Numbers


def benchmark(asked: dict[str, Numbers], *, resamples: int = 100, count: int = 0) -> dict[str, Any]:
    if not TABLE.exists():
        pytest.skip(f"the benchmark's table is not at {TABLE}")
    table = read_table(TABLE, macro(), option="--truth")
    networks = sorted(table.values, key=lambda each: each.choices)
    networks = networks[:: len(networks) // count] if count else networks
    ranked = gather(macro(), networks, table.repeats(networks), asked, seed=0)
    return statistics(ranked, resamples=resamples, seed=0)


@pytest.mark.slow
def test_the_baselines_of_the_benchmark_are_the_published_ones() -> None:
    found = benchmark({})
    taus = {name: each["tau"]["value"] for name, each in found["scores"].items()}
    assert taus["MACs"] == pytest.approx(0.546, abs=0.001)
    assert taus["params"] == pytest.approx(0.2155, abs=0.001)
    assert taus["depth"] == pytest.approx(0.679, abs=0.001)
    assert taus["additive fit"] == pytest.approx(0.848, abs=0.002)
    assert abs(taus["chance"]) < 0.03
    assert found["repeat_tau"] == pytest.approx(0.895, abs=0.001)
    assert found["noise_ceiling"] == pytest.approx(0.945, abs=0.005)
    assert found["scores"]["depth"]["partial_tau_given_macs"] == pytest.approx(0.498, abs=0.001)
    assert found["scores"]["depth"]["spearman"] == pytest.approx(0.821, abs=0.001)
    assert found["scores"]["MACs"]["precision_at"]["397"] == pytest.approx(0.55, abs=0.01)
    assert found["null_deviation"] == pytest.approx(0.0106, abs=0.0001)
    assert found["scores"]["MACs"]["partial_tau_given_macs"] is None
    json.dumps(found, allow_nan=False)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_its_definition(p_values: list[float]) -> None:
    ordered = sorted(p_values)
    for p_value, adjusted in zip(p_values, holm(p_values), strict=True):
        rank = ordered.index(p_value)  # the first of equals
        steps = [(len(p_values) - place) * ordered[place] for place in range(rank + 1)]
        last = len(ordered) - 1 - ordered[::-1].index(p_value)
        later = [(len(p_values) - place) * ordered[place] for place in range(last + 1)]
        assert min(1, max(steps)) <= adjusted <= min(1, max(later)) + 1e-15


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6))
def test_expected_regret_is_the_mean_over_all_draws(values: list[int]) -> None:
    true = np.array(values, float)
    for k, found in enumerate(expected_regret(true), start=1):
        draws = [max(drawn) for drawn in itertools.combinations(values, k)]
        assert found == pytest.approx(max(values) - np.mean(draws), abs=1e-7)


@pytest.mark.parametrize("baseline", ["params", ""])
def test_regret_is_drawn_of_what_was_asked_for_and_one_baseline(baseline: str) -> None:
    space = preset("tiny", num_classes=10, image_size=16)
    networks = [each for each in space.architectures() if space.canonical(each) == each][:12]
    true, scores = np.arange(12.0) % 5, np.arange(12.0) % 7
    ranked = gather(space, networks, true[None], {"mine": scores, "the same of all": np.ones(12)}, seed=0)
    (axes,) = regret_figure(ranked, baseline).axes
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.lines}
    assert list(drawn) == ["mine", *filter(None, [baseline]), "drawn by chance"]
    best_first = sorted(range(12), key=lambda place: -scores[place])
    for k in range(1, 13):
        assert drawn["mine"][k - 1] == max(true) - max(true[place] for place in best_first[:k])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8, unique=True))
def test_the_front_holds_what_nothing_as_cheap_beats(pairs: list[tuple[int, int]]) -> None:
    truth, macs = (np.array(column, float) for column in zip(*pairs, strict=True))
    front = [
        index
        for index, (true, cost) in enumerate(pairs)
        if not any(t >= true and c <= cost and (t, c) != (true, cost) for t, c in pairs)
    ]
    assert sorted(true_front(truth, macs)) == front


def test_memory_by_layer() -> None:
    mib = 2.0**20
    table = [[1 * mib, 3 * mib], [2 * mib, 4 * mib], [5 * mib, 0.0]]
    assert kept_by_layer(table, "greedy") == [3, 4, 5]
    assert kept_by_layer(table, "nongreedy") == [7, 9, 5]
    assert kept_by_layer(table, "spos") == [2 + 3 + 2.5] * 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, ".50"), (-0.5, "-.50"), (1.0, "1.00"), (0.0, ".00"), (-0.001, ".00"), (None, "-")],
)
def test_numbers_are_written_as_in_papers(value: float | None, text: str) -> None:
    assert number(value) == text


def noisy(rng: np.random.Generator, truth: Numbers, noise: float) -> Numbers:
    found: Numbers = truth + noise * truth.std() * rng.normal(size=len(truth))
    return found


@pytest.mark.slow
def test_the_verdict_says_what_the_numbers_say() -> None:
    space, rng = macro(), np.random.default_rng(0)
    networks = [each for each in space.architectures() if space.canonical(each) == each][::13]
    depths = np.array([sum(choice > 0 for choice in each.choices) for each in networks])
    quality = depths + rng.normal(size=len(networks))
    repeats = quality + 0.2 * rng.normal(size=(3, len(networks)))
    truth = repeats.mean(axis=0)
    good, poor, none = noisy(rng, truth, 0.1), noisy(rng, truth, 3), rng.normal(size=len(truth))

    def told(asked: dict[str, Numbers], strategies: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
        ranked = gather(space, networks, repeats, asked, seed=0)
        found = statistics(ranked, resamples=300, seed=0)
        return found, verdict(found, strategies)

    found, lines = told({"good": good, "poor": poor}, {"good": "nongreedy", "poor": "spos"})
    assert lines[0].startswith("good has the highest tau of the 2 asked for: tau .")
    assert "which is beaten" in lines[0]
    assert "good ranks better than poor" in lines[1]
    assert lines[2].startswith("Beside what needs no supernet, in 9 comparisons: good is above ")
    assert "good less poor" in lines[3]
    assert "here better" in lines[3]
    turned = difference(found, "poor", "good")
    assert turned["value"] == -difference(found, "good", "poor")["value"]
    assert turned["low"] <= turned["value"] <= turned["high"]

    asked = {"good": good, "twin": good + 0.0, "poor": poor}
    strategies = {"good": "spos", "twin": "nongreedy", "poor": "nongreedy"}
    found, lines = told(asked, strategies)
    assert any("1 of 2 worse, 1 of 2 not told apart" in line for line in lines)

    _, lines = told({"poor": poor}, {"poor": "spos"})
    assert lines[0].startswith("Counting layers alone ranks networks better")
    _, lines = told({"good": good}, {})
    assert lines[0].startswith("good ranks networks: tau")
    _, lines = told({"none": none}, {})
    assert lines[0].startswith("Not told from chance: none has tau")
    _, lines = told({"turned": -good}, {})
    assert "ranks the wrong way round" in lines[0]
    assert "--losses" in lines[0]
    found, lines = told({"flat": np.ones(len(truth)), "good": good, "twin": good + 0.0}, {})
    assert found["orders_nothing"] == ["flat"]
    assert any("flat gives all networks the same score" in line for line in lines)
    assert any("is not told from" in line and ("twin" in line or "good" in line) for line in lines)


def of_few(count: int, asked: dict[str, Numbers], truth: Numbers) -> tuple[dict[str, Any], list[str]]:
    networks = list(macro().architectures())[1000 : 1000 + 7 * count : 7]
    found = statistics(gather(macro(), networks, truth[None], asked, seed=0), resamples=100, seed=0)
    json.dumps(found, allow_nan=False)
    return found, verdict(found, {"mine": "nongreedy", "other": "spos"})


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_of_few_networks_nothing_is_told(count: int) -> None:
    truth = np.arange(float(count))
    found, lines = of_few(count, {"mine": truth, "other": -truth}, truth)
    few = f"{count} networks are too few to tell"
    assert lines[0].startswith(f"{few} a ranking from chance: mine,") == (count < 5)
    assert lines[1].startswith(f"{few} two scores apart in {len(found['differences'])} comparisons: ")
    words = ("is above", "is below", "ranks better", "beaten", "is not told", "told apart")
    assert not any(word in line for line in lines for word in words)
    for tau in (each["tau"] for each in found["scores"].values()):
        assert (tau["low"] > 0 or tau["high"] < 0) == (tau["p_value"] < 0.05)
    for pair in found["differences"]:
        assert pair["p_value"] >= 2.0 ** (1 - count)
        assert (pair["low"] > 0 or pair["high"] < 0) == (pair["p_value"] < 0.05)


def test_the_p_value_of_the_best_of_several_counts_them() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(12.0)
    asked = {str(number): rng.normal(size=12) for number in range(5)} | {
        "mine": truth + 4 * rng.normal(size=12)
    }
    found, lines = of_few(12, asked, truth)
    p_values = {name: found["scores"][name]["tau"]["p_value"] for name in asked}
    adjusted = {name: found["scores"][name]["tau_p_holm"] for name in asked}
    assert list(adjusted.values()) == holm(list(p_values.values()))
    best = max(asked, key=lambda name: found["scores"][name]["tau"]["value"])
    assert p_values[best] < 0.05 < adjusted[best]
    assert lines[0].startswith(
        f"Not told from chance: {best}, of the 6 asked for the one with the highest tau,"
    )
    assert f"p = {number(adjusted[best], 3)}, 6 comparisons" in lines[0]


@pytest.mark.parametrize("count", [4, 40])
def test_no_number_of_the_tau_figure_stands_on_a_name_or_a_line(count: int) -> None:
    rng, truth = np.random.default_rng(1), np.arange(float(count))
    asked = {
        "mine": truth + count * rng.normal(size=count),
        "a name of some length": -truth,
        "perfect": truth,
    }
    found, _ = of_few(count, asked, truth)
    with house_style():
        figure = tau_figure(found, list(asked))
        figure.savefig(io.BytesIO(), format="svg")
    (axes,) = figure.axes
    inside, whole = axes.get_window_extent(), figure.bbox
    assert len(axes.texts) == len(axes.get_yticklabels())
    for text, name in zip(axes.texts, axes.get_yticklabels(), strict=True):
        box = text.get_window_extent()
        assert inside.x1 <= box.x0 < box.x1 <= whole.x1
        assert name.get_window_extent().x1 <= inside.x0
