import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import nn

from supernet.additive import Additive
from supernet.layers import Conv, MBConv, Place, Projection, Skip, Style
from supernet.presets import PRESETS, preset
from supernet.sampling import LimitedSampler, bins, permutations, sample, sample_network, stream
from supernet.space import Architecture, Fixed, Layer, Space
from supernet.tail import Tail


@dataclass(frozen=True)
class Wide:
    """Two 1x1 convolutions with so many channels between: 8 * width products and parameters in 4 channels."""

    width: int

    def build(self, place: Place, style: Style) -> nn.Module:
        between = nn.Conv2d(place.in_chs, self.width, 1, bias=False)
        return nn.Sequential(between, nn.Conv2d(self.width, place.out_chs, 1, bias=False))

    def __str__(self) -> str:
        return f"wide{self.width}"


def wide_space(widths: Sequence[Sequence[int]]) -> Space:
    """Candidates of these widths, 0 being a skip, on one pixel: costs are 8 * width and the fixed part."""
    layers = [Layer(tuple(Wide(width) if width else Skip() for width in row), 4) for row in widths]
    return Space((Fixed(Projection(), 4),), tuple(layers), Tail(), image_size=1)


def mixed_space() -> Space:
    """Neither do products follow parameters, nor are all totals different."""
    opening = Layer((Projection(), Conv(3), MBConv(3, 2)), 8, 2)
    inner = Layer((Conv(3), Skip(), MBConv(5, 1), Conv(1)), 8)
    return Space((), (opening, inner, Layer((Conv(1), Conv(3)), 12, 2), Layer((Conv(3), Skip()), 12)), Tail())


def costs_of(space: Space, cost: str) -> dict[Architecture, int]:
    return {each: getattr(space, cost)(each) for each in space.architectures()}


@st.composite
def widths_and_limits(draw: st.DrawFn) -> tuple[list[list[int]], int, int]:
    row = st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True).filter(any)
    widths = draw(st.lists(row, min_size=1, max_size=5))
    most = 8 * sum(map(max, widths))
    return widths, draw(st.integers(-8, most + 8)), draw(st.integers(-8, most + 8))


def assert_equally_likely(drawn: Sequence[Architecture], members: Sequence[Architecture]) -> None:
    counts = Counter(drawn)
    assert set(counts) <= set(members)
    assert len(drawn) >= 30 * len(members)
    assert chisquare([counts[member] for member in members]).pvalue > 1e-3


# ---- streams and the whole space -----------------------------------------------------------------------


def test_a_stream_is_its_seed_purpose_and_indices() -> None:
    def numbers(*key: int | str) -> list[int]:
        seed, purpose, *indices = key
        rng = stream(int(seed), str(purpose), *map(int, indices))
        return [rng.randrange(2**100) for _ in range(5)]

    keys = [(0, "paths", 3), (1, "paths", 3), (0, "other", 3), (0, "paths", 4), (0, "paths", 3, 0)]
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)
    assert all(numbers(*key) == numbers(*key) for key in keys)


def test_every_architecture_is_equally_likely() -> None:
    space, rng = mixed_space(), stream(0, "test")
    drawn = [sample(space, rng) for _ in range(6000)]
    assert_equally_likely(drawn, list(space.architectures()))


@pytest.mark.parametrize("name", PRESETS)
def test_candidates_of_presets_are_equally_likely_in_every_layer(name: str) -> None:
    space, rng = preset(name, num_classes=10, image_size=32), stream(1, "test")
    drawn = [sample(space, rng) for _ in range(3000)]
    for index, layer in enumerate(space.layers):
        counts = Counter(architecture.choices[index] for architecture in drawn)
        assert set(counts) == set(range(len(layer)))
        assert chisquare(list(counts.values())).pvalue > 1e-4


def test_the_same_seed_draws_the_same() -> None:
    space = preset("lwsl_table1", num_classes=10, image_size=32)
    sampler, again = LimitedSampler(space), LimitedSampler(space)
    high = (sampler.cost.least + sampler.cost.most) // 2

    def drawn(sampler: LimitedSampler, seed: int) -> list[Architecture]:
        rng = stream(seed, "test")
        return [sampler.draw(rng, high) for _ in range(20)] + [sample(space, rng)]

    assert drawn(sampler, 5) == drawn(sampler, 5) == drawn(again, 5)
    assert not set(drawn(sampler, 5)) & set(drawn(sampler, 6))


# ---- limits --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(widths_and_limits(), st.sampled_from(["macs", "params"]), st.integers(0, 2**32))
def test_counts_and_draws_are_those_of_brute_force(
    case: tuple[list[list[int]], int, int], cost: str, seed: int
) -> None:
    widths, low, high = case
    space = wide_space(widths)
    sampler = LimitedSampler(space, cost=cost)
    fixed = getattr(space.fixed_cost, cost)
    # Not by the space's own tables: 8 products and parameters for every unit of width.
    expected = {
        Architecture(choices): fixed
        + 8 * sum(row[choice] for row, choice in zip(widths, choices, strict=True))
        for choices in itertools.product(*(range(len(row)) for row in widths))
    }
    low, high = fixed + low, fixed + high
    within = [each for each, total in expected.items() if low <= total <= high]
    assert sampler.count(high, low) == len(within)
    assert sampler.count(high) == sum(total <= high for total in expected.values())
    assert sampler.cost.least == min(expected.values()) == expected[sampler.cost.cheapest]
    assert sampler.cost.most == max(expected.values()) == expected[sampler.cost.dearest]
    rng = random.Random(seed)
    if within:
        assert all(sampler.draw(rng, high, low) in within for _ in range(5))
    else:
        with pytest.raises(ValueError, match=f"no architecture of own has .*{sampler.cost.cheapest}, has"):
            sampler.draw(rng, high, low)


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("part", [(0.0, 0.5), (0.3, 0.7), (0.6, 1.0), (0.0, 1.0)])
def test_architectures_within_limits_are_equally_likely(cost: str, part: tuple[float, float]) -> None:
    space = mixed_space()
    costs = costs_of(space, cost)
    ordered = sorted(costs.values())
    low, high = (ordered[int(each * (len(ordered) - 1))] for each in part)
    within = [each for each, total in costs.items() if low <= total <= high]
    sampler, rng = LimitedSampler(space, cost=cost), stream(2, "test")
    assert sampler.count(high, low) == len(within) > 10
    assert_equally_likely([sampler.draw(rng, high, low) for _ in range(100 * len(within))], within)
    if part[0] == 0:
        assert_equally_likely([sampler.draw(rng, high) for _ in range(100 * len(within))], within)


def test_many_architectures_of_few_totals_are_equally_likely() -> None:
    space = wide_space([[1, 2], [0, 1], [1, 2, 3], [0, 2], [1, 3]])
    costs = costs_of(space, "macs")
    middle = sorted(costs.values())[24]
    within = [each for each, total in costs.items() if total == middle]
    sampler, rng = LimitedSampler(space), stream(3, "test")
    assert len(within) > 5
    assert_equally_likely([sampler.draw(rng, middle, middle) for _ in range(100 * len(within))], within)


def test_a_limit_that_nothing_meets_names_the_cheapest() -> None:
    space = preset("nas_bench_macro", num_classes=10, image_size=32)
    sampler, rng = LimitedSampler(space), random.Random(0)
    assert sampler.draw(rng, 7713280) == Architecture((0,) * 8)
    assert sampler.draw(rng, 10**9, 105660928) == Architecture((2,) * 8) == sampler.cost.dearest
    for high, low in ((7713279, 0), (10**9, 105660929), (50_000_000, 60_000_000)):
        assert sampler.count(high, low) == 0
        with pytest.raises(ValueError, match=r"the cheapest, 00000000, has 7,713,280$") as caught:
            sampler.draw(rng, high, low)
        assert f"{low:,} to {high:,} macs" in str(caught.value)
    with pytest.raises(ValueError, match=r"the cheapest, 00000000, has 387,882$"):
        LimitedSampler(space, cost="params").draw(rng, 387881)


def test_an_unknown_cost_is_refused() -> None:
    with pytest.raises(ValueError, match="cost: unknown value 'flops'"):
        LimitedSampler(mixed_space(), cost="flops")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("lwsl_table1", {300: 2109702761713}),
        ("lwsl_fit", {330: 14081881019877871, 370: 31828340203984249, 400: 36520705823825441}),
    ],
)
def test_how_many_architectures_of_lwsl_meet_the_papers_limits(name: str, numbers: dict[int, int]) -> None:
    space = preset(name, num_classes=1000, image_size=224)
    sampler, rng = LimitedSampler(space), stream(4, "test")
    assert sampler.count(sampler.cost.most) == sampler.count(10**12) == space.size
    for millions, number in numbers.items():
        high = millions * 10**6
        assert sampler.count(high) == number
        assert sampler.count(high) + sampler.count(sampler.cost.most, high + 1) == space.size
        for low in (0, high - 10**7, high - 50_000):
            assert all(low <= space.macs(sampler.draw(rng, high, low)) <= high for _ in range(10))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("cost", ["macs", "params"])
def test_draws_from_presets_stay_within_limits(name: str, cost: str) -> None:
    space = preset(name, num_classes=10, image_size=32)
    sampler, rng = LimitedSampler(space, cost=cost), stream(5, "test")
    for _ in range(5):
        first, second = sorted(getattr(space, cost)(sample(space, rng)) for _ in range(2))
        assert sampler.count(second, first) >= 1
        assert first <= getattr(space, cost)(sampler.draw(rng, second, first)) <= second


# ---- more architectures than 64 bits count --------------------------------------------------------------


@pytest.mark.parametrize("layers", [40, 61, 62, 63, 64, 100])
def test_spaces_of_any_size_are_counted_exactly(layers: int) -> None:
    space = wide_space([[1, 2]] * layers)
    sampler = LimitedSampler(space)
    assert space.size == 2**layers
    ways = [math.comb(layers, wider) for wider in range(layers + 1)]
    for wider in (0, 1, layers // 3, layers // 2, layers - 1, layers):
        exactly = sampler.cost.least + 8 * wider
        assert sampler.count(exactly, exactly) == ways[wider]
        assert sampler.count(exactly) == sum(ways[: wider + 1])
        assert sampler.count(sampler.cost.most, exactly) == sum(ways[wider:])
        assert space.macs(sampler.draw(random.Random(wider), exactly, exactly)) == exactly


@pytest.mark.parametrize("layers", [61, 64])
def test_draws_from_spaces_of_any_size_are_equally_likely(layers: int) -> None:
    space = wide_space([[1, 2]] * layers)
    sampler, rng = LimitedSampler(space), stream(6, "test")
    # Of a total with k of n layers wide, each layer is wide in k / n of the architectures.
    wide = layers // 3
    exactly = sampler.cost.least + 8 * wide
    drawn = [sampler.draw(rng, exactly, exactly) for _ in range(800)]
    assert len(set(drawn)) == len(drawn)
    counts = [sum(architecture.choices[index] for architecture in drawn) for index in range(layers)]
    assert chisquare(counts).pvalue > 1e-3
    together = [
        sum(each.choices[0] == each.choices[index] == 1 for each in drawn) for index in range(1, layers)
    ]
    assert chisquare(together).pvalue > 1e-3
    # And up to a limit, totals come as often as there are architectures of them.
    limited = [sum(sampler.draw(rng, exactly).choices) for _ in range(800)]
    ways = [math.comb(layers, wider) for wider in range(wide + 1)]
    kept = range(wide - 4, wide + 1)
    seen = Counter(max(total, wide - 4) for total in limited)
    shares = [sum(ways[: wide - 3]) if total == wide - 4 else ways[total] for total in kept]
    expected = [800 * share / sum(ways) for share in shares]
    assert chisquare([seen[total] for total in kept], expected).pvalue > 1e-3


# ---- networks instead of strings -----------------------------------------------------------------------


def skipping_space() -> Space:
    """Runs of two, of one without a skip, and of one with; totals that several networks share."""
    shrinking = Layer((Conv(1), Projection()), 4, 2)
    of_two = Layer((Wide(1), Skip(), Wide(2)), 4)
    layers = (of_two, of_two, shrinking, Layer((Skip(), Wide(1), Wide(2)), 4))
    return Space((Fixed(Projection(), 4),), layers, Tail(), image_size=4)


class Branching(random.Random):
    """Goes through all that a draw can come to, one after the other, and says how likely each was."""

    def __init__(self) -> None:
        super().__init__(0)
        self._way: list[list[int]] = []
        self._at = 0

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        assert stop is None
        if self._at == len(self._way):
            self._way.append([0, start])
        drawn, among = self._way[self._at]
        assert among == start
        self._at += 1
        return drawn

    def chances(self, draw: Callable[[random.Random], Architecture]) -> dict[Architecture, Fraction]:
        found: dict[Architecture, Fraction] = {}
        while True:
            self._at = 0
            drawn = draw(self)
            chance = math.prod((Fraction(1, among) for _, among in self._way), start=Fraction(1))
            found[drawn] = found.get(drawn, Fraction(0)) + chance
            while self._way and self._way[-1][0] == self._way[-1][1] - 1:
                self._way.pop()
            if not self._way:
                return found
            self._way[-1][0] += 1


def networks_of(space: Space) -> dict[Architecture, int]:
    """The different networks and their numbers of strings, by taking the skips of layers 1 and 2 out."""
    found: dict[tuple[object, ...], Architecture] = {}
    strings = Counter[tuple[object, ...]]()
    for each in space.architectures():
        words = [str(layer[choice]) for layer, choice in zip(space.layers, each.choices, strict=True)]
        key = (*(word for word in words[:2] if word != "skip"), *words[2:])
        strings[key] += 1
        found[key] = space.canonical(each)
    return {network: strings[key] for key, network in found.items()}


def test_each_network_is_exactly_as_likely_as_another() -> None:
    space = skipping_space()
    networks = networks_of(space)
    # (1 + 2 + 4) * 2 * 3, of 9 * 2 * 3 strings.
    assert len(networks) == space.num_networks == 42 < space.size == 54
    chances = Branching().chances(lambda rng: sample_network(space, rng))
    assert chances == dict.fromkeys(networks, Fraction(1, 42))
    # By strings a network is the likelier the more of them it has.
    chances = Branching().chances(lambda rng: space.canonical(sample(space, rng)))
    assert chances == {network: Fraction(strings, 54) for network, strings in networks.items()}


@pytest.mark.parametrize("part", [(0.0, 0.3), (0.45, 0.55), (0.9, 1.0)])
def test_networks_within_limits_are_exactly_as_likely(part: tuple[float, float]) -> None:
    space = skipping_space()
    costs = {each: space.macs(each) for each in networks_of(space)}
    ordered = sorted(costs.values())
    low, high = (ordered[int(each * (len(ordered) - 1))] for each in part)
    within = [each for each, total in costs.items() if low <= total <= high]
    sampler = LimitedSampler(space, networks=True)
    assert sampler.count(high, low) == len(within) > 3
    assert sampler.count(sampler.cost.most) == len(costs)
    chances = Branching().chances(lambda rng: sampler.draw(rng, high, low))
    assert chances == dict.fromkeys(within, Fraction(1, len(within)))


def test_skips_that_cost_something_count_as_well() -> None:
    space = wide_space([[1, 0, 2], [1, 0, 2], [0, 3]])
    uneven = Additive("ticks", 5, ((4, 1, 6), (3, 2, 7), (1, 9)))
    costs = {each: uneven.of(each) for each in map(space.canonical, space.architectures())}
    sampler = LimitedSampler(space, cost=uneven, networks=True)
    for limit in sorted(set(costs.values()))[::3]:
        within = [each for each, total in costs.items() if total <= limit]
        assert sampler.count(limit) == len(within)
        chances = Branching().chances(lambda rng, high=limit: sampler.draw(rng, high))  # type: ignore[misc]
        assert chances == dict.fromkeys(within, Fraction(1, len(within)))


@pytest.mark.parametrize("name", PRESETS)
def test_networks_of_presets_are_counted_and_drawn_within_limits(name: str) -> None:
    space, rng = preset(name, num_classes=10, image_size=32), stream(8, "test")
    sampler = LimitedSampler(space, networks=True)
    assert sampler.count(sampler.cost.most) == space.num_networks
    for _ in range(5):
        low, high = sorted(space.macs(sample_network(space, rng)) for _ in range(2))
        drawn = sampler.draw(rng, high, low)
        assert low <= space.macs(drawn) <= high
        assert space.canonical(drawn) == drawn


@pytest.mark.parametrize("layers", [39, 41, 100])
def test_networks_of_long_runs_are_counted_exactly(layers: int) -> None:
    space = wide_space([[1, 2, 0]] * layers)
    sampler, rng = LimitedSampler(space, networks=True), stream(9, "test")
    # Of so many layers with so many wide ones: total = layers + wide.
    ways = [sum(math.comb(depth, total - depth) for depth in range(total + 1)) for total in range(layers + 1)]
    for total in (0, 1, layers // 2, layers):
        exactly = sampler.cost.least + 8 * total
        assert sampler.count(exactly, exactly) == ways[total]
        assert space.macs(sampler.draw(rng, exactly, exactly)) == exactly
    assert sampler.count(sampler.cost.most) == space.num_networks == 2 ** (layers + 1) - 1


# ---- permutations and bins -----------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 5), st.randoms(use_true_random=False))
def test_in_permutations_every_member_of_a_layer_stands_once(
    number: int, layers: int, rng: random.Random
) -> None:
    members = [rng.sample(range(9), number) for _ in range(layers)]
    before = [list(of_layer) for of_layer in members]
    found = permutations(mixed_space(), members, rng)
    assert len(found) == number
    for index, of_layer in enumerate(members):
        assert sorted(architecture.choices[index] for architecture in found) == sorted(of_layer)
    assert members == before


def test_permutations_are_equally_likely_and_independent() -> None:
    rng, space = stream(7, "test"), mixed_space()
    drawn = [tuple(permutations(space, [(0, 1, 2), (4, 5, 6)], rng)) for _ in range(3600)]
    counts = Counter(drawn)
    assert len(counts) == 36
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_layers_with_unequal_numbers_have_no_permutations() -> None:
    with pytest.raises(ValueError, match="shorter"):
        permutations(mixed_space(), [(0, 1), (0, 1, 2)][::-1], random.Random(0))


@given(st.integers(-5, 50), st.integers(0, 60), st.integers(1, 70))
def test_bins_cover_an_interval_without_overlap(low: int, length: int, width: int) -> None:
    found = bins(low, low + length, width)
    members = [number for start, stop in found for number in range(start, stop + 1)]
    assert members == list(range(low, low + length + 1))
    assert all(stop - start + 1 == width for start, stop in found[:-1])
    # The upper end belongs to the last.
    assert all(stop - start <= width for start, stop in found)
