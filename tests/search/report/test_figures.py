"""What the figures of a ranking draw."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.report.figures import expected_regret, regret_figure, tau_figure, true_front
from search.report.statistics import with_baselines
from supernet.presets import preset
from tests.search.report.rankings import ranked
from tools.page.pictures import house_style


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6))
def test_expected_regret_is_the_mean_over_all_draws(values: list[int]) -> None:
    true = np.array(values, float)
    for k, regret in enumerate(expected_regret(true), start=1):
        draws = [max(drawn) for drawn in itertools.combinations(values, k)]
        assert regret == pytest.approx(max(values) - np.mean(draws), abs=1e-7)


@pytest.mark.parametrize("baseline", ["params", ""])
def test_regret_is_drawn_of_what_was_asked_for_and_one_baseline(baseline: str) -> None:
    space = preset("tiny", num_classes=10, image_size=16)
    networks = [who for who in space.architectures() if space.canonical(who) == who][:12]
    true, scores = np.arange(12.0) % 5, np.arange(12.0) % 7
    subjects = {"mine": scores, "the same of all": np.ones(12)}
    scored = with_baselines(space, networks, true[None], subjects, seed=0)
    (axes,) = regret_figure(scored, baseline).axes
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


@pytest.mark.parametrize("count", [4, 40])
def test_no_number_of_the_tau_figure_stands_on_a_name_or_a_line(count: int) -> None:
    rng, truth = np.random.default_rng(1), np.arange(float(count))
    subjects = {
        "mine": truth + count * rng.normal(size=count),
        "a name of some length": -truth,
        "perfect": truth,
    }
    ranking = ranked(subjects, truth)
    with house_style():
        figure = tau_figure(ranking)
        figure.savefig(io.BytesIO(), format="svg")
    (axes,) = figure.axes
    names = sorted(ranking.scores.keys() - {"chance"}, key=lambda name: ranking.scores[name].tau.value)
    assert [text.get_text() for text in axes.texts] == [
        f"{ranking.scores[name].tau.value:.2f}".replace("0.", ".", 1) for name in names
    ]
    inside, whole = axes.get_window_extent(), figure.bbox
    assert len(axes.texts) == len(axes.get_yticklabels())
    for text, name in zip(axes.texts, axes.get_yticklabels(), strict=True):
        box = text.get_window_extent()
        assert inside.x1 <= box.x0 < box.x1 <= whole.x1
        assert name.get_window_extent().x1 <= inside.x0
