"""Chance, all there is, and regularised evolution."""

import json
import statistics
from collections import Counter
from typing import Any

import pytest
from scipy.stats import chisquare

from search.baselines import MOST_NETWORKS, Exhaustive, RandomSearch, RegularisedEvolution
from search.limits import Infeasible, Limit
from search.method import Method
from supernet.space import Architecture
from tests.search.spaces import (
    OPS,
    SMALL,
    WIDE,
    assert_asks_properly,
    assert_resumes_anywhere,
    chosen,
    finish,
    landscape,
    macro,
    made_up,
    space_of,
)

METHODS = (RandomSearch, Exhaustive, RegularisedEvolution)


def within(high: int, *, canonical: bool) -> set[Architecture]:
    every = {each for each in SMALL.architectures() if SMALL.macs(each) <= high}
    return {SMALL.canonical(each) for each in every} if canonical else every


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("canonical", [True, False])
def test_what_holds_of_every_search(method: type[Method], canonical: bool) -> None:
    def make(seed: int) -> Method:
        return method(SMALL, seed=seed, population=12, generations=3, max_macs=11_000, canonical=canonical)

    asked = assert_asks_properly(make, landscape(SMALL))
    every = chosen(asked)
    assert set(every) <= within(11_000, canonical=canonical)
    if method is Exhaustive:
        assert set(every) == within(11_000, canonical=canonical)
        assert finish(make(1), landscape(SMALL)) == asked
    else:
        assert len(every) == make(0).planned == 48
        assert make(1).ask() != asked[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("generations", [1, 10])
def test_every_search_goes_on_from_anywhere(method: type[Method], generations: int) -> None:
    options: dict[str, Any] = {"population": 25, "generations": generations, "max_macs": 11_000}
    assert_resumes_anywhere(lambda: method(SMALL, seed=2, **options), landscape(SMALL))


@pytest.mark.parametrize("method", [RandomSearch, RegularisedEvolution])
def test_a_space_is_exhausted_before_a_search_ends_early(method: type[Method]) -> None:
    search = method(SMALL, seed=0, population=11, generations=500, max_macs=11_000)
    every = chosen(finish(search, landscape(SMALL)))
    assert len(every) == len(set(every))
    assert set(every) == within(11_000, canonical=True)
    assert len(every) == search.planned < 5000


# ---- chance --------------------------------------------------------------------------------------------


def test_chance_asks_for_as_many_every_time() -> None:
    assert [len(batch) for batch in finish(RandomSearch(WIDE, seed=0), landscape(WIDE))] == [50] * 21


def test_chance_does_not_listen() -> None:
    one, other = (RandomSearch(WIDE, seed=0, population=10, generations=3) for _ in range(2))
    assert finish(one, landscape(WIDE, 0)) == finish(other, landscape(WIDE, 1))


def test_chance_draws_every_network_as_often() -> None:
    space = space_of([OPS] * 3)
    cost = made_up("latency", [[0, 1, 2, 3]] * 3)
    counts: Counter[Architecture] = Counter()
    for seed in range(1000):
        counts.update(RandomSearch(space, seed=seed, population=2, limits=[Limit(cost, 4)]).ask())
    assert len(counts) == sum(cost.of(each) <= 4 for each in space.architectures())
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_chance_takes_fewer_networks_than_it_asks_for_at_once_but_not_none() -> None:
    least = min(map(SMALL.macs, SMALL.architectures()))
    search = RandomSearch(SMALL, seed=0, max_macs=least)
    only = [each for each in SMALL.architectures() if SMALL.macs(each) == least]
    assert [search.ask()] == [[SMALL.canonical(only[0])]]
    search.tell([1.0])
    assert search.ask() == []
    with pytest.raises(Infeasible, match=f"has {least:,} MACs"):
        RandomSearch(SMALL, seed=0, max_macs=least - 1)


# ---- all there is --------------------------------------------------------------------------------------


def test_all_networks_are_asked_for_once_in_chunks() -> None:
    space = macro()
    search = Exhaustive(space, seed=0, population=100, generations=0)
    asked = finish(search, landscape(space))
    assert [len(batch) for batch in asked] == [100] * 39 + [69]
    assert set(chosen(asked)) == {space.canonical(each) for each in space.architectures()}
    assert len(set(chosen(asked))) == search.planned == space.num_networks == 3969
    truth = landscape(space)
    assert search.best()[0].score == max(truth(each) for each in chosen(asked))
    # Those of common first layers stand together.
    for layers in range(1, 9):
        heads = [each.choices[:layers] for each in chosen(asked)]
        starts = [head for index, head in enumerate(heads) if not index or heads[index - 1] != head]
        assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("population", [1, 36, 72, 1000])
def test_chunks_that_come_out_even_do_not_matter(population: int) -> None:
    search = Exhaustive(SMALL, seed=0, population=population, canonical=False)
    every = chosen(finish(search, landscape(SMALL)))
    assert every == sorted(SMALL.architectures(), key=lambda each: each.choices)
    assert search.planned == SMALL.size == 270


def test_too_many_networks_are_refused_unless_limits_leave_few() -> None:
    with pytest.raises(ValueError, match=f"exhaustive: more than {MOST_NETWORKS:,} networks of small"):
        Exhaustive(WIDE, seed=0)
    least = min(WIDE.costs[0])
    search = Exhaustive(WIDE, seed=0, max_macs=WIDE.fixed_cost.macs + 20 * least.macs)
    assert search.planned == len(search.ask()) >= 1


# ---- regularised evolution -----------------------------------------------------------------------------


@pytest.mark.parametrize("brood", [1, 7, 10, 500])
def test_as_many_are_scored_as_planned(brood: int) -> None:
    search = RegularisedEvolution(WIDE, seed=0, population=20, generations=3, brood=brood)
    sizes = [len(batch) for batch in finish(search, landscape(WIDE))]
    assert sum(sizes) == search.planned == 80
    assert sizes[0] == 20
    assert sizes[1:-1] == [brood] * (len(sizes) - 2)
    assert 0 < sizes[-1] <= max(brood, 60)


def test_the_oldest_die_however_good_they_are() -> None:
    search = RegularisedEvolution(
        WIDE, seed=0, population=20, generations=8, brood=20, sample=20, mutation=0.05
    )
    first = search.ask()
    search.tell([100.0 + index for index in range(20)])
    second = search.ask()
    # The best of all that live breeds: a sample of 20 is everyone.
    assert (
        max(sum(a != b for a, b in zip(each.choices, first[-1].choices, strict=True)) for each in second) <= 6
    )
    search.tell([float(index) for index in range(20)])
    third = search.ask()
    # The first are dead now, though better by far: the mutants are the second's best one's.
    assert all(
        sum(a != b for a, b in zip(each.choices, second[-1].choices, strict=True)) <= 6 for each in third
    )
    apart = [sum(a != b for a, b in zip(each.choices, first[-1].choices, strict=True)) for each in third]
    nearer = [sum(a != b for a, b in zip(each.choices, second[-1].choices, strict=True)) for each in third]
    assert statistics.mean(nearer) < statistics.mean(apart)
    assert search.best()[0].architecture == first[-1]


def test_only_the_oldest_die() -> None:
    search = RegularisedEvolution(
        WIDE, seed=0, population=20, generations=8, brood=5, sample=20, mutation=0.05
    )
    first = search.ask()
    search.tell([50.0 + (index == 5) for index in range(20)])  # the sixth is best, and dies after six more
    search.ask()
    search.tell([0.0] * 5)
    for each in search.ask():
        assert sum(a != b for a, b in zip(each.choices, first[5].choices, strict=True)) <= 6
    search.tell([0.0] * 5)
    random = [
        sum(a != b for a, b in zip(each.choices, first[5].choices, strict=True)) for each in search.ask()
    ]
    assert min(random) > 6


def test_a_smaller_sample_presses_less() -> None:
    truth = landscape(WIDE)
    spreads = []
    for sample in (1, 20):
        search = RegularisedEvolution(WIDE, seed=0, population=20, brood=20, sample=sample, mutation=0.05)
        search.tell([truth(each) for each in search.ask()])
        parents = [each.architecture for each in search.history[0]]
        nearest = {
            min(parents, key=lambda one: sum(a != b for a, b in zip(one.choices, each.choices, strict=True)))
            for each in search.ask()
        }
        spreads.append(len(nearest))
    assert spreads[0] > 8
    assert spreads[1] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 0}, "sample: 0 is out of range"),
        ({"brood": 0}, "brood: 0 is out of range"),
        ({"mutation": 0}, "mutation: 0 is out of range"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegularisedEvolution(SMALL, seed=0, **options)


def test_its_state_is_refused_with_other_options() -> None:
    search = RegularisedEvolution(SMALL, seed=0)
    state = json.loads(json.dumps(search.state_dict()))
    for other in ({"brood": 3}, {"sample": 3}, {"mutation": 0.3}):
        with pytest.raises(ValueError, match=f"{next(iter(other))} was"):
            RegularisedEvolution(SMALL, seed=0, **other).load_state_dict(state)


def test_regularised_evolution_beats_chance() -> None:
    space = macro()
    scores: dict[str, list[float]] = {"regularised": [], "random": []}
    for seed in range(6):
        truth = landscape(space, seed)
        for method in (RegularisedEvolution, RandomSearch):
            search = method(space, max_macs=50e6, seed=seed, generations=5)
            finish(search, truth)
            scores[search.name].append(search.best()[0].score)
    assert statistics.mean(scores["regularised"]) > statistics.mean(scores["random"])
