"""What keeps limits, against trying everything."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from search.limits import MOST_LISTED, TRIES, Infeasible, Limit, Limits, shown
from supernet.additive import TICKS, Additive, counted
from supernet.layers import Conv, MBConv, Skip
from supernet.presets import preset
from supernet.sampling import LimitedSampler, stream
from supernet.space import Architecture, Space
from tests.search.spaces import OPS, SKIPPED, cases, keeps, macro, made_up, network, space_of, total

SEEDS = st.integers(0, 2**32)


def within_by_brute_force(space: Space, limits: Sequence[Limit]) -> list[Architecture]:
    return [each for each in space.architectures() if keeps(each, limits)]


def assert_equally_likely(
    drawn: Sequence[Architecture], members: Sequence[Architecture], weights: Sequence[int] = ()
) -> None:
    """Members as often as one expects, or in proportion to the weights."""
    counts = Counter(drawn)
    assert set(counts) <= set(members)
    weights = weights or [1] * len(members)
    expected = [len(drawn) * weight / sum(weights) for weight in weights]
    assert min(expected) >= 20
    assert len(members) == 1 or chisquare([counts[each] for each in members], expected).pvalue > 1e-3


# ---- what is within ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(cases(), st.booleans())
def test_networks_are_those_of_brute_force(case: tuple[Space, list[Limit]], canonical: bool) -> None:
    space, limits = case
    within = Limits(space, limits, canonical=canonical)
    expected = within_by_brute_force(space, limits)
    for each in space.architectures():
        assert within.allow(each) == keeps(each, limits)
    found = list(within.networks())
    assert len(set(found)) == len(found)
    assert [each.choices for each in found] == sorted(each.choices for each in found)
    if canonical:
        # One of every network, by what it is made of, in the form that the space gives it.
        assert Counter(network(space, each) for each in found) == Counter(
            {network(space, each) for each in expected}
        )
        assert all(within.form(each) == space.canonical(each) == each for each in found)
    else:
        assert set(found) == set(expected)
        assert all(within.form(each) == each for each in found)


@settings(deadline=None, max_examples=100)
@given(cases(), st.booleans(), st.integers(1, 30))
def test_too_few_networks_are_refused(case: tuple[Space, list[Limit]], canonical: bool, needed: int) -> None:
    space, limits = case
    within = Limits(space, limits, canonical=canonical)
    expected = within_by_brute_force(space, limits)
    number = len({network(space, each) for each in expected}) if canonical else len(expected)
    for count in {1, needed, number, number + 1} - {0}:
        if count <= number:
            within.require(count)
            continue
        with pytest.raises(Infeasible) as caught:
            within.require(count)
        text = str(caught.value)
        alone = [limit for limit in limits if not within_by_brute_force(space, [limit])]
        if number:
            whole = len({network(space, each) for each in space.architectures()}) if canonical else space.size
            assert f"only {whole if count > whole else number} networks" in text
            assert f"and {count} are needed" in text
        elif alone:
            cheapest = min(space.architectures(), key=lambda each: total(alone[0].cost, each))
            assert f"the cheapest, {cheapest}, has" in text
            assert shown(alone[0].cost.name, total(alone[0].cost, cheapest)) in text
        else:
            assert "at once" in text
            for limit in limits:
                cheapest = min(space.architectures(), key=lambda each: total(limit.cost, each))
                assert f"the cheapest in {limit.cost.name}, {cheapest}, has" in text


@settings(deadline=None, max_examples=60)
@given(cases(), st.booleans(), SEEDS)
def test_nothing_over_a_limit_is_drawn_or_repaired_to(
    case: tuple[Space, list[Limit]], canonical: bool, seed: int
) -> None:
    space, limits = case
    within = Limits(space, limits, canonical=canonical)
    expected = set(within_by_brute_force(space, limits))
    rng = random.Random(seed)
    starts = rng.sample(list(space.architectures()), min(6, space.size))
    if not expected:
        with pytest.raises(Infeasible):
            within.draw(rng)
        with pytest.raises(Infeasible):
            within.repaired(starts[0], rng)
        return
    for start in starts:
        for found in (within.draw(rng), within.repaired(start, rng)):
            assert found in expected
            assert within.form(found) == found
            assert within.excess(found) == 0
        if start in expected:
            assert within.repaired(start, rng) == within.form(start)


@settings(deadline=None, max_examples=100)
@given(cases(most=300), SEEDS)
def test_a_repair_frees_no_more_layers_than_its_order_needs(
    case: tuple[Space, list[Limit]], seed: int
) -> None:
    space, limits = case
    within = Limits(space, limits, canonical=False)
    expected = within_by_brute_force(space, limits)
    rng = random.Random(seed)
    if not expected:
        return
    every = list(space.architectures())
    for start in rng.sample(every, min(3, len(every))):
        ways = {frozenset(differing(start, each)) for each in expected}

        def completable(free: frozenset[int], ways: set[frozenset[int]] = ways) -> bool:
            return any(way <= free for way in ways)

        changed = differing(start, within.repaired(start, rng))
        # Some layers did not suffice, with one more they did, and nothing else was touched.
        some = [
            frozenset(part)
            for size in range(len(space.layers))
            for part in itertools.combinations(range(len(space.layers)), size)
            if not completable(frozenset(part))
        ]
        assert (start in expected and not changed) or any(
            changed <= part | {last} and completable(part | {last})
            for part in some
            for last in range(len(space.layers))
        )


def differing(one: Architecture, other: Architecture) -> set[int]:
    pairs = zip(one.choices, other.choices, strict=True)
    return {layer for layer, (choice, another) in enumerate(pairs) if choice != another}


def test_a_repair_takes_layers_in_a_random_order_and_draws_what_fits() -> None:
    space = space_of([OPS] * 5)
    cost = made_up("latency", [[0, 1, 2, 3]] * 5)
    within = Limits(space, [Limit(cost, 14)])
    rng = stream(0, "test")
    found = [within.repaired(Architecture((3,) * 5), rng) for _ in range(3000)]
    assert all(len(differing(Architecture((3,) * 5), each)) == 1 for each in found)
    members = [
        Architecture(tuple(choice if at == layer else 3 for at in range(5)))
        for layer in range(5)
        for choice in range(3)
    ]
    assert_equally_likely(found, members)


def test_a_repair_may_have_to_free_every_layer() -> None:
    space = space_of([OPS] * 4)
    one, other = (made_up("latency", [row] * 4) for row in ([0, 9, 9, 5], [9, 0, 9, 5]))
    within = Limits(space, [Limit(one, 20), Limit(other, 20)])  # 3333, or as many of 0 as of 1
    rng = stream(0, "test")
    found = {within.repaired(Architecture((2,) * 4), rng) for _ in range(400)}
    assert all(keeps(each, within.limits) for each in found)
    assert set(found) == set(within_by_brute_force(space, within.limits))


# ---- how it is drawn -----------------------------------------------------------------------------------


def drawing_space() -> Space:
    return space_of([SKIPPED, SKIPPED, SKIPPED, (Conv(1), Conv(3)), (MBConv(3, 2), Skip())])


def limits_for_drawing() -> dict[str, list[Limit]]:
    space = drawing_space()
    macs, params = counted(space, "macs"), counted(space, "params")
    up = made_up("latency", [[3, 0, 1]] * 3 + [[0, 2], [0, 3]], 5)
    down = made_up("activations", [[0, 3, 2]] * 3 + [[2, 0], [3, 0]])
    half = sorted(total(macs, each) for each in space.architectures())[54]
    third = sorted(total(params, each) for each in space.architectures())[36]
    return {
        "none": [],
        "one": [Limit(macs, half)],
        "two": [Limit(macs, half), Limit(params, third)],
        "two the other way": [Limit(params, third), Limit(macs, half)],
        "opposed": [Limit(up, 11), Limit(down, 9)],
        "three": [Limit(macs, half), Limit(up, 11), Limit(down, 11)],
        "cheapest": [Limit(macs, macs.least)],
        "loose": [Limit(macs, macs.most), Limit(up, up.most)],
    }


@pytest.mark.parametrize("canonical", [True, False])
@pytest.mark.parametrize("name", limits_for_drawing())
def test_strings_within_limits_are_equally_likely(name: str, canonical: bool) -> None:
    space, limits = drawing_space(), limits_for_drawing()[name]
    within, rng = Limits(space, limits, canonical=canonical), stream(1, "test")
    expected = Counter(within.form(each) for each in within_by_brute_force(space, limits))
    drawn = [within.draw(rng) for _ in range(25 * sum(expected.values()))]
    assert_equally_likely(drawn, list(expected), list(expected.values()))


def test_strings_that_are_rare_under_each_limit_are_equally_likely() -> None:
    space = space_of([OPS] * 6)
    one = made_up("latency", [[0, 8, 9, 9]] * 6)
    other = made_up("activations", [[8, 0, 9, 9]] * 6)
    limits = [Limit(one, 24), Limit(other, 24)]
    expected = within_by_brute_force(space, limits)
    assert len(expected) == 20  # three of each
    rarely = LimitedSampler(space, cost=one).count(24)
    assert rarely > 5 * len(expected)
    within, rng = Limits(space, limits), stream(2, "test")
    assert_equally_likely([within.draw(rng) for _ in range(1000)], expected)


def test_the_few_strings_that_keep_limits_are_equally_likely() -> None:
    # Of 46,656 strings 2,906 keep one limit, and 20 of them both: more often than not none is met by chance.
    space = space_of([(*OPS, Conv(5), Conv(7))] * 6)
    one = made_up("latency", [[0, 1, 1, 1, 1, 1]] * 6)
    other = made_up("activations", [[1, 0, 1, 1, 1, 1]] * 6)
    within, rng = Limits(space, [Limit(one, 3), Limit(other, 3)]), stream(3, "test")
    expected = [Architecture(choices) for choices in itertools.product((0, 1), repeat=6) if sum(choices) == 3]
    assert set(within.networks()) == set(expected)
    assert 0.1 < (1 - len(expected) / LimitedSampler(space, cost=one).count(3)) ** TRIES < 0.5
    assert_equally_likely([within.draw(rng) for _ in range(400)], expected)


def test_many_strings_that_are_hard_to_find_are_drawn_and_never_over_a_limit() -> None:
    layers, wanted = 20, 8
    space = space_of([(*OPS, Conv(5), Conv(7))] * layers)
    one = made_up("latency", [[0, 1, 1, 1, 1, 1]] * layers)
    other = made_up("activations", [[1, 0, 1, 1, 1, 1]] * layers)
    limits = [Limit(one, layers - wanted), Limit(other, layers - wanted)]
    within = Limits(space, limits)
    rng = stream(4, "test")
    assert len(list(itertools.islice(within.networks(), MOST_LISTED + 1))) == MOST_LISTED + 1
    drawn = [within.draw(rng) for _ in range(18)]
    assert len(set(drawn)) == 18
    assert all(keeps(each, limits) for each in drawn)
    for choice in range(6):  # every candidate of every layer can come
        assert len({layer for each in drawn for layer, at in enumerate(each.choices) if at == choice}) > 8


@pytest.mark.parametrize("name", limits_for_drawing())
def test_the_same_seed_draws_and_repairs_the_same(name: str) -> None:
    space, limits = drawing_space(), limits_for_drawing()[name]

    def found(within: Limits, seed: int) -> list[Architecture]:
        rng = random.Random(seed)
        drawn = [within.draw(rng) for _ in range(20)]
        return drawn + [within.repaired(each, rng) for each in itertools.islice(space.architectures(), 40)]

    one, other = Limits(space, limits), Limits(space, limits)
    assert found(one, 5) == found(one, 5) == found(other, 5)
    if name != "cheapest":
        assert found(one, 5) != found(one, 6)


# ---- refusals and messages -----------------------------------------------------------------------------


def test_unequal_costs_of_equal_layers_are_refused_unless_strings_are_told_apart() -> None:
    space = space_of([SKIPPED, SKIPPED, (Conv(1), Conv(3))])
    assert [len(run) for run in space.runs] == [2, 1]
    cost = made_up("latency", [[1, 0, 2], [1, 0, 3], [5, 6]])
    with pytest.raises(ValueError, match=r"latency: layers 1 to 2 of small are equal"):
        Limits(space, [Limit(cost, 7)])
    assert list(Limits(space).networks())  # without a limit nothing is wrong
    found = list(Limits(space, [Limit(cost, 7)], canonical=False).networks())
    assert set(found) == set(within_by_brute_force(space, [Limit(cost, 7)]))


def test_equal_layers_without_a_skip_may_cost_what_they_like() -> None:
    space = space_of([OPS] * 3)
    cost = made_up("latency", [[1, 2, 3, 4], [4, 3, 2, 1], [0, 9, 0, 9]])
    limits = [Limit(cost, 5)]
    assert set(Limits(space, limits).networks()) == set(within_by_brute_force(space, limits))


def test_limits_of_lwsl_that_nothing_meets_are_refused_with_the_cheapest() -> None:
    space = preset("lwsl_fit", num_classes=1000, image_size=224)
    macs = counted(space, "macs")
    with pytest.raises(Infeasible) as caught:
        Limits(space, [Limit(macs, macs.least - 1)]).require(50)
    assert f"at most {macs.least - 1:,} MACs" in str(caught.value)
    assert f"the cheapest, {macs.cheapest}, has {macs.least:,} MACs" in str(caught.value)
    Limits(space, [Limit(macs, macs.least)]).require(1)


def test_limits_of_lwsl_that_nothing_meets_at_once_are_refused() -> None:
    space = preset("lwsl_fit", num_classes=1000, image_size=224)
    macs = counted(space, "macs")
    # What is not the dearest costs 1: `most` layers may, so that the others must be the dearest.
    against = Additive("activations", 0, tuple(tuple(int(c < max(row)) for c in row) for row in macs.table))
    most = len(space.layers) - 5
    rises = sorted(max(row) - min(row) for row in macs.table)
    middle = macs.least + sum(rises[:5])
    together = [Limit(macs, middle), Limit(against, most)]
    Limits(space, together).require(1)
    for limits in ([Limit(macs, middle - 1), together[1]], [together[0], Limit(against, most - 1)]):
        for each in limits:
            Limits(space, [each]).require(1)
        with pytest.raises(Infeasible, match="at once") as caught:
            Limits(space, limits).require(1)
        for limit in limits:
            assert f"the cheapest in {limit.cost.name}, {limit.cost.cheapest}, has" in str(caught.value)


def test_all_limits_of_a_space_at_once_are_refused_with_their_names() -> None:
    space = space_of([OPS] * 3)
    one, other = made_up("latency", [[0, 9, 9, 9]] * 3), made_up("activations", [[9, 0, 9, 9]] * 3)
    with pytest.raises(Infeasible, match=r"keeps all limits, at most 0\.0013 ms and at most .* MiB"):
        Limits(space, [Limit(one, 13), Limit(other, 13)]).require(1)


def test_a_cost_of_any_name_may_be_limited() -> None:
    space = space_of([OPS] * 3)
    cost = made_up("energy", [[1, 2, 3, 4]] * 3)
    Limits(space, [Limit(cost, 3)]).require(1)
    with pytest.raises(Infeasible, match="energy"):
        Limits(space, [Limit(cost, 2)]).require(1)
    with pytest.raises(Infeasible, match="only 1 network"):
        Limits(space, [Limit(cost, 3)]).require(2)


def test_costs_are_shown_with_their_units() -> None:
    assert shown("macs", 7_713_280) == "7,713,280 MACs"
    assert shown("params", 387_882) == "387,882 parameters"
    assert shown("latency", TICKS / 1000 * 12.3) == "12.3 ms"
    assert shown("activations", 3 * 2**19) == "1.5 MiB of activations"


def test_excess_is_added_up_by_parts_of_the_limits() -> None:
    space = space_of([OPS] * 2)
    one, other = made_up("latency", [[1, 2, 3, 4]] * 2, 2), made_up("activations", [[40, 30, 20, 10]] * 2)
    within = Limits(space, [Limit(one, 5), Limit(other, 50)])
    for each in space.architectures():
        expected = max(0, total(one, each) / 5 - 1) + max(0, total(other, each) / 50 - 1)
        assert within.excess(each) == pytest.approx(expected)
        assert (within.excess(each) == 0) == within.allow(each)


def test_excess_over_a_limit_of_nothing_is_positive() -> None:
    space = space_of([OPS] * 2)
    within = Limits(space, [Limit(made_up("latency", [[0, 1, 2, 3]] * 2), 0)])
    assert within.excess(Architecture((0, 0))) == 0
    assert 0 < within.excess(Architecture((0, 1))) < within.excess(Architecture((3, 3)))


def test_numbers_of_nas_bench_macro() -> None:
    space = macro()
    limit = Limit(counted(space, "macs"), 50_000_000)
    strings = {each for each in space.architectures() if space.macs(each) <= 50_000_000}
    assert set(Limits(space, [limit], canonical=False).networks()) == strings
    assert set(Limits(space, [limit]).networks()) == {space.canonical(each) for each in strings}
    assert len(list(Limits(space).networks())) == space.num_networks == 3969
