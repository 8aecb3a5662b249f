"""The evolutionary search as its callers see it."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from search.baselines import RandomSearch
from search.evolution import Evolution, Infeasible
from search.limits import Limit
from supernet.additive import counted
from supernet.presets import preset
from supernet.space import Architecture
from tests.search.spaces import (
    SMALL,
    WIDE,
    assert_asks_properly,
    assert_resumes_anywhere,
    assert_same,
    benchmark,
    chosen,
    finish,
    landscape,
    macro,
    made_up,
)


def distance(one: Architecture, other: Architecture) -> int:
    return sum(a != b for a, b in zip(one.choices, other.choices, strict=True))


def is_mixture(child: Architecture, parents: Sequence[Architecture], *, one_point: bool = False) -> bool:
    """Whether some two parents have all of a child's choices: the first ones from one, if asked."""

    def from_both(one: Architecture, other: Architecture) -> bool:
        if not one_point:
            return all(
                c in (a, b) for c, a, b in zip(*(each.choices for each in (child, one, other)), strict=True)
            )
        return any(
            child.choices == one.choices[:cut] + other.choices[cut:] for cut in range(len(child.choices))
        )

    return any(from_both(one, other) for one in parents for other in parents)


# ---- asking and telling --------------------------------------------------------------------------------


def test_a_whole_search_of_nas_bench_macro_with_two_limits() -> None:
    space = macro()
    params = sorted(map(space.params, space.architectures()))[4000]

    def make(seed: int) -> Evolution:
        return Evolution(space, max_macs=50e6, max_params=params, seed=seed)

    asked = assert_asks_properly(make, landscape(space))
    assert [len(batch) for batch in asked] == [50] * 21
    assert sum(map(len, asked)) == make(0).planned == 1050
    every = chosen(asked)
    assert all(space.macs(each) <= 50_000_000 and space.params(each) <= params for each in every)
    other = make(1)
    assert set(other.ask()) != set(asked[0])


@pytest.mark.parametrize("options", [{}, {"canonical": False}, {"crossover": "one_point"}, {"population": 7}])
def test_searches_of_a_small_space(options: dict[str, Any]) -> None:
    options = {"population": 10, "generations": 5, "max_macs": 11_000, "parents": 4} | options
    asked = assert_asks_properly(lambda seed: Evolution(SMALL, seed=seed, **options), landscape(SMALL))
    assert [len(batch) for batch in asked] == [options["population"]] * 6


def test_to_ask_again_asks_the_same_and_gives_nothing_away() -> None:
    search = Evolution(SMALL, seed=0, population=5)
    first = search.ask()
    assert search.ask() == first
    search.ask().clear()
    assert search.ask() == first
    search.tell([1, 2, 3, 4, 5])
    assert search.ask() != first
    assert search.ask() == search.ask()


def test_only_what_was_asked_for_may_be_told() -> None:
    search = Evolution(SMALL, seed=0, population=5)
    with pytest.raises(ValueError, match="nothing was asked for"):
        search.tell([1.0] * 5)
    asked = search.ask()
    for scores in ([], [1.0] * 4, [1.0] * 6):
        with pytest.raises(ValueError, match=f"5 architectures were asked for, not {len(scores)}"):
            search.tell(scores)
    with pytest.raises(ValueError, match=f"the score of {asked[3]} is not a number"):
        search.tell([1, 2, 3, float("nan"), 5])
    # None of these left a trace.
    assert search.history == []
    assert search.best() == []
    assert search.ask() == asked
    search.tell([1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="nothing was asked for"):
        search.tell([1, 2, 3, 4, 5])
    assert [list(each) for each in search.history[0]] == [[a, i] for i, a in enumerate(asked, start=1)]


def test_scores_may_be_infinite_and_the_first_of_equals_is_best() -> None:
    search = Evolution(SMALL, seed=0, population=6, generations=2)
    one = search.ask()
    search.tell([float("-inf"), 3, 3, float("-inf"), 3, 2])
    two = search.ask()
    search.tell([3, 2, 3, 1, float("-inf"), 3])
    found = [each.architecture for each in search.best(7)]
    assert found == [one[1], one[2], one[4], two[0], two[2], two[5], one[5]]
    assert search.best() == [(one[1], 3)]
    assert len(search.best(100)) == 12
    assert search.ask()


@pytest.mark.parametrize("generations", [0, 1, 3])
def test_the_last_generation_counts(generations: int) -> None:
    search = Evolution(WIDE, seed=0, population=8, generations=generations)
    for generation in range(generations + 1):
        asked = search.ask()
        search.tell([generation + index / 10 for index in range(8)])
    assert search.ask() == []
    assert search.best() == [(asked[-1], generations + 0.7)]
    assert [each.architecture for each in search.best(8)] == asked[::-1]


def test_the_name_of_a_search_and_its_limits_are_public() -> None:
    search = Evolution(macro(), max_macs=50_000_000.9, max_params=2e6, seed=3)
    assert search.name == "evolution"
    assert [(each.cost.name, each.high) for each in search.within.limits] == [
        ("macs", 50_000_000),
        ("params", 2_000_000),
    ]
    assert search.planned == 50 * (20 + 1)


def test_other_costs_that_add_up_are_limited_as_well() -> None:
    cost = made_up("latency", [[5, 0, 7]] * 3 + [[1, 4], [1, 2, 3, 4, 0]], 2)
    limits = [Limit(cost, 20)]
    search = Evolution(SMALL, seed=0, population=10, generations=4, limits=limits, max_macs=11_000)
    every = chosen(finish(search, landscape(SMALL)))
    assert len(every) == 50
    assert all(cost.of(each) <= 20 and SMALL.macs(each) <= 11_000 for each in every)


# ---- generations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("crossover", ["uniform", "one_point"])
def test_half_of_a_generation_are_mutants_of_the_best_and_half_their_children(crossover: str) -> None:
    truth = landscape(WIDE)
    search = Evolution(WIDE, seed=0, crossover=crossover, population=60, generations=5)
    changes = []
    while batch := search.ask():
        if search.history:
            parents = [each.architecture for each in search.best(10)]
            mixed = [is_mixture(each, parents, one_point=crossover == "one_point") for each in batch]
            others = [each for each, mixture in zip(batch, mixed, strict=True) if not mixture]
            assert len(batch) == 60
            # Some mutants are mixtures by chance; no child is missing.
            assert (18 if crossover == "one_point" else 6) <= len(others) <= 30
            nearest = [min(distance(each, parent) for parent in parents) for each in others]
            assert max(nearest) <= 8
            changes += nearest
        search.tell([truth(each) for each in batch])
    # 20 layers, of which one in ten is drawn anew, three in four times to something else.
    assert 1.5 <= statistics.mean(changes) <= 3


def test_how_much_mutants_differ_is_an_option() -> None:
    means = []
    for mutation in (0.1, 0.4, 1.0):
        search = Evolution(WIDE, seed=0, population=60, mutation=mutation, parents=1)
        search.tell([0.0] * 30 + [1.0] + [0.0] * (len(search.ask()) - 31))
        (parent,) = search.best()
        changed = [distance(each, parent.architecture) for each in search.ask()]
        means.append(statistics.mean(sorted(changed)[:30]))
        assert min(changed) > 0
    assert means == pytest.approx([20 * rate * 0.75 for rate in (0.1, 0.4, 1.0)], rel=0.35)


def test_the_best_ever_breed_and_not_those_of_the_last_generation() -> None:
    search = Evolution(WIDE, seed=1, population=40, generations=4, parents=3)
    first = search.ask()
    search.tell([float(index) for index in range(40)])
    parents = first[-3:]
    for _ in range(3):
        asked = search.ask()
        near = [min(distance(each, parent) for parent in parents) <= 8 for each in asked]
        mixed = [is_mixture(each, parents) for each in asked]
        assert sum(a or b for a, b in zip(near, mixed, strict=True)) == 40
        search.tell([-1.0] * 40)


def test_what_is_told_matters_from_the_next_generation_on() -> None:
    one, other = (Evolution(WIDE, seed=0, population=20) for _ in range(2))
    assert one.ask() == other.ask()
    one.tell([float(index) for index in range(20)])
    other.tell([float(-index) for index in range(20)])
    assert one.ask() != other.ask()


def test_every_network_of_a_small_space_is_asked_for_once() -> None:
    for canonical in (True, False):
        search = Evolution(
            SMALL, seed=0, population=7, generations=1000, canonical=canonical, max_macs=11_000
        )
        every = chosen(finish(search, landscape(SMALL)))
        within = [each for each in SMALL.architectures() if SMALL.macs(each) <= 11_000]
        expected = {SMALL.canonical(each) for each in within} if canonical else set(within)
        assert set(every) == expected
        assert len(every) == len(expected) == search.planned < 7000
        assert search.ask() == []


# ---- refusals ------------------------------------------------------------------------------------------


def test_limits_that_too_few_networks_keep_are_refused_at_once() -> None:
    costs = sorted({SMALL.canonical(each): SMALL.macs(each) for each in SMALL.architectures()}.values())
    high = costs[19]
    number = sum(cost <= high for cost in costs)
    Evolution(SMALL, max_macs=high, seed=0, population=number)
    with pytest.raises(Infeasible, match=f"only {number} networks of small have at most {high:,} MACs"):
        Evolution(SMALL, max_macs=high, seed=0, population=number + 1)
    with pytest.raises(Infeasible, match=r"the cheapest, .*, has"):
        Evolution(SMALL, max_macs=costs[0] - 1, seed=0, population=1)
    with pytest.raises(Infeasible, match=r"the cheapest, .*, has"):
        Evolution(preset("lwsl_fit", num_classes=1000, image_size=224), max_macs=1e6, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 0}, "population: 0 is out of range"),
        ({"generations": -1}, "generations: -1 is out of range"),
        ({"parents": 0}, "parents: 0 is out of range"),
        ({"mutation": 0.0}, "mutation: 0 is out of range"),
        ({"mutation": 1.5}, "mutation: 1.5 is out of range"),
        ({"crossover": "two_point"}, "crossover: unknown value 'two_point'"),
        ({"seed": -1}, "seed: -1 is out of range"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evolution(SMALL, **({"seed": 0} | options))


# ---- resuming ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"max_macs": 11_000, "crossover": "one_point"}, {"max_macs": 11_000, "generations": 9}]
)
def test_a_search_goes_on_from_anywhere(options: dict[str, Any]) -> None:
    options = {"seed": 3, "population": 9, "generations": 4, "parents": 3} | options
    assert_resumes_anywhere(lambda: Evolution(SMALL, **options), landscape(SMALL))


def test_a_state_keeps_scores_to_the_last_digit() -> None:
    search = Evolution(SMALL, seed=0, population=4)
    search.ask()
    search.tell([0.1 + 0.2, 1e-300, float("-inf"), -1 / 3])
    again = Evolution(SMALL, seed=0, population=4)
    again.load_state_dict(json.loads(json.dumps(search.state_dict())))
    assert_same(again, search)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"population": 6}, "population was 5, is 6"),
        ({"generations": 5}, "generations was 20, is 5"),
        ({"parents": 3}, "parents was 10, is 3"),
        ({"mutation": 0.2}, "mutation was 0.1, is 0.2"),
        ({"crossover": "one_point"}, "crossover was 'uniform', is 'one_point'"),
        ({"canonical": False}, "canonical was True, is False"),
        ({"max_macs": 3000}, "limits was"),
        ({"max_macs": None}, "limits was"),
        ({"max_params": 500}, "limits was"),
    ],
)
def test_a_state_of_other_options_is_refused(other: dict[str, Any], named: str) -> None:
    options: dict[str, Any] = {"seed": 0, "population": 5, "max_macs": 3001}
    search = Evolution(SMALL, **options)
    search.ask()
    again = Evolution(SMALL, **(options | other))
    before = again.state_dict()
    with pytest.raises(ValueError, match=f"the state is of another search: {named}"):
        again.load_state_dict(json.loads(json.dumps(search.state_dict())))
    assert again.state_dict() == before


def test_a_state_of_another_method_space_or_version_is_refused() -> None:
    search = Evolution(SMALL, seed=0, population=5)
    search.ask()
    search.tell([1, 2, 3, 4, 5])
    state = json.loads(json.dumps(search.state_dict()))
    with pytest.raises(ValueError, match="of another search"):
        RandomSearch(SMALL, seed=0, population=5).load_state_dict(state)
    with pytest.raises(ValueError, match="of another search: space"):
        Evolution(macro(), seed=0, population=5).load_state_dict(state)
    with pytest.raises(ValueError, match="of another search: candidates"):
        Evolution(WIDE, seed=0, population=5).load_state_dict(state)
    with pytest.raises(ValueError, match="told scores already"):
        search.load_state_dict(state)
    state["told"][0][0], state["told"][0][1] = state["told"][0][1], state["told"][0][0]
    with pytest.raises(ValueError, match="another version"):
        Evolution(SMALL, seed=0, population=5).load_state_dict(state)


def test_a_state_with_a_limit_on_another_table_is_refused() -> None:
    # Of the same name and height: what was measured on another machine, say.
    one = made_up("latency", [[1, 0, 1]] * 3 + [[0, 0], [0, 0, 0, 0, 9]])
    other = made_up("latency", [[1, 0, 1]] * 3 + [[0, 0], [0, 0, 0, 9, 9]])
    search = Evolution(SMALL, seed=0, population=5, limits=[Limit(one, 8)])
    again = Evolution(SMALL, seed=0, population=5, limits=[Limit(other, 8)])
    with pytest.raises(ValueError, match="of another search"):
        again.load_state_dict(json.loads(json.dumps(search.state_dict())))


# ---- what it finds -------------------------------------------------------------------------------------


def test_it_beats_chance_at_equal_numbers_of_scores() -> None:
    space, regrets = macro(), dict[str, list[float]](evolution=[], random=[])
    networks = {space.canonical(each) for each in space.architectures()}
    within = [each for each in networks if space.macs(each) <= 50_000_000]
    for seed in range(8):
        truth = landscape(space, seed)
        best = max(map(truth, within))
        for method in (Evolution, RandomSearch):
            search = method(space, max_macs=50_000_000, seed=seed, generations=5)
            assert len(chosen(finish(search, truth))) == 300
            regrets[search.name].append(best - search.best()[0].score)
    assert all(min(each) >= -1e-9 for each in regrets.values())
    assert statistics.mean(regrets["evolution"]) < 0.3 * statistics.mean(regrets["random"])


@pytest.mark.slow
def test_it_finds_the_best_of_nas_bench_macro_but_for_a_tenth_of_a_point() -> None:
    space, truth = macro(), benchmark()
    limit = counted(space, "macs")
    within = [each for each in space.architectures() if limit.of(each) <= 50_000_000]
    best = max(map(truth, within))
    regrets = []
    for seed in range(10):
        search = Evolution(space, max_macs=50_000_000, seed=seed, generations=11)
        assert len(chosen(finish(search, truth))) == 600
        regrets.append(best - search.best()[0].score)
    assert statistics.median(regrets) <= 0.1
