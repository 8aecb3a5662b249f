"""Fronts against comparing all with all, and NSGA-II."""

import functools
import itertools
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.fronts import Fitness, Nsga2, front
from search.limits import Infeasible, Limit
from search.method import Scored
from supernet.additive import Additive, counted
from supernet.space import Architecture
from tests.search.spaces import (
    OPS,
    SMALL,
    Truth,
    assert_asks_properly,
    assert_resumes_anywhere,
    benchmark,
    chosen,
    finish,
    landscape,
    macro,
    made_up,
    space_of,
)

WAYS = ("repair", "dominate")


# ---- domination ----------------------------------------------------------------------------------------


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """By its definition, the first number to be high and the others low."""
    pairs = [(one[0], other[0]), *((-a, -b) for a, b in zip(one[1:], other[1:], strict=True))]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


NUMBERS = st.tuples(*[st.integers(0, 3)] * 3)


@given(NUMBERS, NUMBERS, st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 0.1, 0.5]))
def test_who_keeps_the_limits_dominates_and_then_who_is_less_over_them(
    one: tuple[int, ...], other: tuple[int, ...], excess: float, others: float
) -> None:
    first, second = Fitness(one[0], one[1:], excess), Fitness(other[0], other[1:], others)
    if excess == others == 0:
        assert first.dominates(second) == dominates(one, other)
    else:
        assert first.dominates(second) == (excess < others)
    assert not (first.dominates(second) and second.dominates(first))
    assert (first == second) == ((one, excess) == (other, others))
    assert (first != second) == ((one, excess) != (other, others))
    assert first != one
    if first == second:
        assert hash(first) == hash(second)
        assert not first.dominates(second)


def test_of_two_equally_over_the_limits_neither_dominates() -> None:
    better, worse = Fitness(9, [1], 0.2), Fitness(1, [9], 0.2)
    assert not better.dominates(worse)
    assert not worse.dominates(better)
    assert Fitness(1, [9]).dominates(better)
    assert not better.dominates(Fitness(1, [9]))
    assert better.values == (9, 1)


# ---- fronts --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=0, max_size=30), st.integers(1, 2))
def test_a_front_is_what_nothing_beats(points: list[tuple[int, ...]], number: int) -> None:
    # Two layers of which each is one cost, and a third for telling architectures apart.
    costs = [
        made_up("macs", [[0, 1, 2, 3], [0] * 4, [0] * 30], 7),
        made_up("params", [[0] * 4, [0, 1, 2, 3], [0] * 30]),
    ][:number]
    scored = [Scored(Architecture((*point[1:], at)), float(point[0])) for at, point in enumerate(points)]
    objectives = [point[: number + 1] for point in points]
    expected = [
        each
        for at, (each, mine) in enumerate(zip(scored, objectives, strict=True))
        if not any(dominates(other, mine) for other in objectives) and mine not in objectives[:at]
    ]
    found = front(scored, costs)
    assert sorted(found, key=str) == sorted(expected, key=str)
    firsts = [costs[0].of(each.architecture) for each in found]
    assert firsts == sorted(firsts)
    assert all(isinstance(each, Scored) for each in found)
    assert front(iter(scored), costs) == found
    assert front(found, costs) == found


def test_a_front_keeps_infinite_and_negative_scores() -> None:
    cost = made_up("latency", [[3, 2, 1, 0]])
    scores = [-1.5, 0.1 + 0.2, -math.inf, -7.25]
    scored = [Scored(Architecture((choice,)), score) for choice, score in enumerate(scores)]
    assert front(scored, [cost]) == [scored[3], scored[1]]
    assert front(scored[2:3], [cost]) == [scored[2]]


def test_the_front_of_nas_bench_macro() -> None:
    space = macro()
    truth, macs = landscape(space), counted(space, "macs")
    scored = [Scored(each, truth(each)) for each in space.architectures()]
    best, expected = -math.inf, []
    for each in sorted(scored, key=lambda each: (macs.of(each.architecture), -each.score)):
        if each.score > best:
            best = each.score
            expected.append(each)
    found = front(scored, [macs])
    assert [(macs.of(each.architecture), each.score) for each in found] == [
        (macs.of(each.architecture), each.score) for each in expected
    ]


# ---- NSGA-II -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over_limit", WAYS)
@pytest.mark.parametrize(
    "options", [{}, {"canonical": False}, {"crossover": "one_point", "max_params": 1200}]
)
def test_what_holds_of_every_search(over_limit: str, options: dict[str, Any]) -> None:
    def make(seed: int) -> Nsga2:
        given: dict[str, Any] = {
            "population": 8,
            "generations": 5,
            "max_macs": 11_000,
            "over_limit": over_limit,
        }
        return Nsga2(SMALL, seed=seed, **(given | options))

    asked = assert_asks_properly(make, landscape(SMALL))
    assert make(1).ask() != asked[0]
    assert all(SMALL.macs(each) <= 11_000 for each in chosen(asked))
    if over_limit == "repair":
        assert [len(batch) for batch in asked] == [8] * 6
    assert all(0 < len(batch) <= 8 for batch in asked)


@pytest.mark.parametrize("over_limit", WAYS)
@pytest.mark.parametrize("generations", [2, 4])
def test_it_goes_on_from_anywhere(over_limit: str, generations: int) -> None:
    def make() -> Nsga2:
        limits = {"max_macs": 11_000, "max_params": 1200}
        return Nsga2(
            SMALL,
            seed=1,
            population=12,
            generations=generations,
            over_limit=over_limit,
            **limits,  # type: ignore[arg-type]
        )

    assert_resumes_anywhere(make, landscape(SMALL))


@pytest.mark.parametrize("over_limit", WAYS)
def test_every_network_of_a_small_space_is_asked_for_once(over_limit: str) -> None:
    search = Nsga2(SMALL, seed=0, population=9, generations=500, max_macs=11_000, over_limit=over_limit)
    every = chosen(finish(search, landscape(SMALL)))
    expected = {SMALL.canonical(each) for each in SMALL.architectures() if SMALL.macs(each) <= 11_000}
    assert set(every) == expected
    assert len(every) == len(expected)
    assert search.ask() == []


@pytest.mark.parametrize("over_limit", WAYS)
def test_limits_that_hardly_anything_keeps(over_limit: str) -> None:
    space = macro()
    costs = sorted({space.canonical(each): space.macs(each) for each in space.architectures()}.values())
    high = costs[59]
    search = Nsga2(space, seed=0, population=10, generations=5, max_macs=high, over_limit=over_limit)
    every = chosen(finish(search, landscape(space)))
    assert every
    assert all(space.macs(each) <= high for each in every)
    with pytest.raises(Infeasible):
        Nsga2(space, seed=0, population=100, max_macs=high, over_limit=over_limit)


@pytest.mark.parametrize("over_limit", WAYS)
def test_a_limit_of_nothing(over_limit: str) -> None:
    cost = made_up("latency", [[0, 1, 2, 3]] * 3 + [[0, 0, 0, 0]] * 3)
    space = space_of([OPS] * 6)
    search = Nsga2(
        space, seed=0, population=10, generations=3, limits=[Limit(cost, 0)], over_limit=over_limit
    )
    every = chosen(finish(search, landscape(space)))
    assert all(each.choices[:3] == (0, 0, 0) for each in every)


def hypervolume(points: Sequence[tuple[float, float]], score: float, cost: float) -> float:
    """The area of what is worse than some of the points (score, cost) and better than a corner."""
    area, best = 0.0, score
    for high, low in sorted(points, key=lambda point: (point[1], -point[0])):
        if high > best and low < cost:
            area += (high - best) * (cost - low)
            best = high
    return area


@functools.cache
def macro_within() -> list[tuple[Architecture, int]]:
    """All networks of NAS-Bench-Macro that keep a limit, with their costs."""
    space, macs = macro(), counted(macro(), "macs")
    networks = {space.canonical(each) for each in space.architectures()}
    return [(each, cost) for each in networks if (cost := macs.of(each)) <= 80_000_000]


def share_of_hypervolume(truth: Truth, over_limit: str, seed: int) -> float:
    space, macs = macro(), counted(macro(), "macs")
    true = [(truth(each), cost) for each, cost in macro_within()]
    worst, dearest = min(score for score, _ in true), max(cost for _, cost in true)
    search = Nsga2(space, max_macs=80_000_000, seed=seed, generations=19, over_limit=over_limit)
    asked = chosen(finish(search, truth))
    assert len(asked) <= 1000
    found = front([each for told in search.history for each in told], [macs])
    all_found = [(each.score, macs.of(each.architecture)) for each in found]
    return hypervolume(all_found, worst, dearest) / hypervolume(true, worst, dearest)


def test_hypervolume_of_staircases() -> None:
    assert hypervolume([(1, 1)], 0, 2) == 1
    assert hypervolume([(1, 0), (2, 1), (1, 1), (3, 2)], 0, 2) == 3
    assert hypervolume([], 0, 2) == 0


@pytest.mark.parametrize(
    ("over_limit", "seed"), [("repair", 0), ("repair", 1), ("dominate", 2), ("dominate", 3)]
)
def test_a_thousand_scores_find_nearly_all_of_the_front(over_limit: str, seed: int) -> None:
    assert 0.99 <= share_of_hypervolume(landscape(macro(), seed), over_limit, seed) <= 1 + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("over_limit", WAYS)
def test_a_thousand_scores_find_nearly_all_of_the_front_of_the_benchmark(over_limit: str) -> None:
    for seed in range(3):
        assert 0.99 <= share_of_hypervolume(benchmark(), over_limit, seed) <= 1 + 1e-9


def test_costs_to_lower_are_the_macs_or_what_is_given() -> None:
    assert Nsga2(SMALL, seed=0).costs == (counted(SMALL, "macs"),)
    costs = [counted(SMALL, "params"), made_up("latency", [[1, 0, 2]] * 3 + [[0, 1], [0, 1, 2, 3, 0]])]
    search = Nsga2(SMALL, seed=0, population=20, generations=5, costs=costs)
    assert search.costs == tuple(costs)
    truth = landscape(SMALL)
    finish(search, truth)
    every = {SMALL.canonical(each) for each in SMALL.architectures()}
    reached = front([each for told in search.history for each in told], costs)
    best = front([Scored(each, truth(each)) for each in every], costs)
    assert len(set(reached) & set(best)) >= 0.8 * len(best)


def test_it_looks_at_its_costs() -> None:
    cheap: dict[str, float] = {}
    for name, table in {"low": [[0, 1, 2, 3]] * 12, "none": [[0] * 4] * 12}.items():
        space = space_of([OPS] * 12)
        search = Nsga2(space, seed=0, population=20, generations=8, costs=[made_up("latency", table)])
        real = made_up("latency", [[0, 1, 2, 3]] * 12)
        finish(search, lambda each: 0.0)
        cheap[name] = sum(real.of(each.architecture) for each in search.history[-1]) / 20
    assert cheap["low"] < 0.6 * cheap["none"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over_limit": "drop"}, "over_limit: unknown value 'drop'"),
        ({"crossover": "two_point"}, "crossover: unknown value 'two_point'"),
        ({"mutation": 0.0}, "mutation: 0 is out of range"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Nsga2(SMALL, seed=0, **options)


def test_its_state_is_refused_with_other_options() -> None:
    state = json.loads(json.dumps(Nsga2(SMALL, seed=0).state_dict()))
    others: list[dict[str, Any]] = [{"over_limit": "dominate"}, {"costs": [counted(SMALL, "params")]}]
    for other in others:
        with pytest.raises(ValueError, match=f"{next(iter(other))} was"):
            Nsga2(SMALL, seed=0, **other).load_state_dict(state)


def test_all_scores_equal_or_unbounded() -> None:
    for over_limit, score in itertools.product(WAYS, (0.0, -math.inf)):
        search = Nsga2(SMALL, seed=0, population=10, generations=4, over_limit=over_limit, max_macs=11_000)
        rng = random.Random(0)
        every = chosen(finish(search, lambda each, score=score, rng=rng: rng.choice([score, 1.0])))  # type: ignore[misc]
        assert len(set(every)) == len(every)


def test_limits_on_costs_that_are_not_lowered_hold_as_well() -> None:
    cost: Additive = made_up("latency", [[5, 0, 7]] * 3 + [[1, 4], [1, 2, 3, 4, 0]], 2)
    for over_limit in WAYS:
        search = Nsga2(
            SMALL, seed=0, population=8, generations=4, limits=[Limit(cost, 20)], over_limit=over_limit
        )
        assert all(cost.of(each) <= 20 for each in chosen(finish(search, landscape(SMALL))))
