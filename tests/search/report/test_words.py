"""What a report says of a ranking in words."""

import numpy as np
import pytest

from search.report.statistics import Ranking, holm, rank, with_baselines
from search.report.words import number, percent, percent_points, verdict
from tests.search.report.rankings import ranked
from tests.search.spaces import macro
from tools.chance import Numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, ".50"), (-0.5, "-.50"), (1.0, "1.00"), (0.0, ".00"), (-0.001, ".00"), (None, "-")],
)
def test_numbers_are_written_as_in_papers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_accuracies_are_fractions_or_in_percent() -> None:
    assert percent(0.5) == percent(50.0) == "50.00 %"
    assert percent(None) == "-"
    assert percent_points(0.01, 0.5) == percent_points(1.0, 50.0) == "1.00 points"


def noisy(rng: np.random.Generator, truth: Numbers, noise: float) -> Numbers:
    scores: Numbers = truth + noise * truth.std() * rng.normal(size=len(truth))
    return scores


@pytest.mark.slow
def test_the_verdict_says_what_the_numbers_say() -> None:
    space, rng = macro(), np.random.default_rng(0)
    networks = [who for who in space.architectures() if space.canonical(who) == who][::13]
    depths = np.array([sum(choice > 0 for choice in who.choices) for who in networks])
    quality = depths + rng.normal(size=len(networks))
    repeats = quality + 0.2 * rng.normal(size=(3, len(networks)))
    truth = repeats.mean(axis=0)
    good, poor, none = noisy(rng, truth, 0.1), noisy(rng, truth, 3), rng.normal(size=len(truth))

    def judged(subjects: dict[str, Numbers], strategies: dict[str, str]) -> tuple[Ranking, list[str]]:
        ranking = rank(with_baselines(space, networks, repeats, subjects, seed=0), resamples=300, seed=0)
        return ranking, verdict(ranking, strategies)

    _, lines = judged({"good": good, "poor": poor}, {"good": "nongreedy", "poor": "spos"})
    assert lines[0].startswith("good has the highest tau of the 2 asked for: tau .")
    assert "which is beaten" in lines[0]
    assert "good ranks better than poor" in lines[1]
    assert lines[2].startswith("Beside what needs no supernet, in 13 comparisons: good is above ")
    assert "good less poor" in lines[3]
    assert "here better" in lines[3]

    subjects = {"good": good, "twin": good + 0.0, "poor": poor}
    strategies = {"good": "spos", "twin": "nongreedy", "poor": "nongreedy"}
    _, lines = judged(subjects, strategies)
    assert any("1 of 2 worse, 1 of 2 not told apart" in line for line in lines)

    _, lines = judged({"poor": poor}, {"poor": "spos"})
    assert lines[0].startswith("Counting layers alone ranks networks better")
    _, lines = judged({"good": good}, {})
    assert lines[0].startswith("good ranks networks: tau")
    _, lines = judged({"none": none}, {})
    assert lines[0].startswith("Not told from chance: none has tau")
    _, lines = judged({"turned": -good}, {})
    assert "ranks the wrong way round" in lines[0]
    assert "--losses" in lines[0]
    ranking, lines = judged({"flat": np.ones(len(truth)), "good": good, "twin": good + 0.0}, {})
    assert ranking.orders_nothing == ["flat"]
    assert any("flat gives all networks the same score" in line for line in lines)
    assert any("is not told from" in line and ("twin" in line or "good" in line) for line in lines)


def test_sentences_on_other_runs_stand_before_what_is_to_be_known_of_all_numbers() -> None:
    truth = np.arange(40.0)
    first, *_, others, last = verdict(ranked({"mine": truth}, truth), {}, ["Another run was made."])
    assert first.startswith("mine ranks networks")
    assert others == "Another run was made."
    assert last.startswith("Chance alone stays within")
    flat = verdict(ranked({"flat": np.ones(40)}, truth), {}, ["Another run was made."])
    assert flat == ["flat gives all networks the same score: it orders nothing.", "Another run was made."]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_of_few_networks_nothing_is_told(count: int) -> None:
    truth = np.arange(float(count))
    ranking = ranked({"mine": truth, "other": -truth}, truth)
    lines = verdict(ranking, {"mine": "nongreedy", "other": "spos"})
    few = f"{count} networks are too few to tell"
    assert lines[0].startswith(f"{few} a ranking from chance: mine,") == (count < 5)
    assert lines[1].startswith(f"{few} two scores apart in {len(ranking.comparisons)} comparisons: ")
    words = ("is above", "is below", "ranks better", "beaten", "is not told", "told apart")
    assert not any(word in line for line in lines for word in words)


def test_the_p_value_of_the_best_of_several_counts_them() -> None:
    rng, truth = np.random.default_rng(0), np.arange(12.0)
    subjects = {str(place): rng.normal(size=12) for place in range(5)}
    subjects["mine"] = truth + 4 * rng.normal(size=12)
    ranking = ranked(subjects, truth)
    p_values = {name: ranking.scores[name].tau.p_value for name in subjects}
    adjusted = dict(zip(subjects, holm(list(p_values.values())), strict=True))
    best = max(subjects, key=lambda name: ranking.scores[name].tau.value)
    assert p_values[best] < 0.05 < adjusted[best]
    first, *_ = verdict(ranking, {})
    assert first.startswith(f"Not told from chance: {best}, of the 6 asked for the one with the highest tau,")
    assert f"p = {number(adjusted[best], 3)}, 6 comparisons" in first
