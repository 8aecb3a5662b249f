import functools
import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search.trie import Work, shared_out, work
from supernet.layers import Conv, Op, Place, Projection, Skip, Style
from supernet.presets import preset
from supernet.sampling import sample, stream
from supernet.space import Architecture, Fixed, Layer, Space
from supernet.supernet import build_architecture
from supernet.tail import Tail
from tools.cost import count_macs

OPS: tuple[Op, ...] = (Conv(1), Conv(3), Conv(5), Projection())


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Up to five layers, some with skips, with a stem or without."""
    chs = 2
    stem = (Fixed(Conv(3), chs),) if draw(st.booleans()) else ()
    chs, layers = chs if stem else 3, list[Layer]()
    for _ in range(draw(st.integers(1, 5))):
        out_chs, stride = draw(st.sampled_from([2, 3])), draw(st.sampled_from([1, 1, 2]))
        ops = draw(st.lists(st.sampled_from(OPS), min_size=1, max_size=3, unique_by=str))
        if stride == 1 and out_chs == chs and draw(st.booleans()):
            ops.insert(draw(st.integers(0, len(ops))), Skip())
        layers.append(Layer(tuple(ops), out_chs, stride))
        chs = out_chs
    tail = Tail(conv_chs=draw(st.sampled_from([0, 4])))
    return Space(stem, tuple(layers), tail, num_classes=3, image_size=8)


@st.composite
def populations(draw: st.DrawFn) -> tuple[Space, list[Architecture]]:
    """A space, and some of its architectures, none of them twice."""
    space = draw(spaces())
    choices = st.tuples(*(st.integers(0, len(layer) - 1) for layer in space.layers))
    drawn = draw(st.lists(choices, max_size=30, unique=True))
    return space, [Architecture(each) for each in drawn]


@functools.cache
def macs_of(op: Any, place: Place, size: int) -> int:
    return count_macs(op.build(place, Style()), (place.in_chs, size, size))


def macs_of_choice(space: Space, layer: int, choice: int) -> int:
    op: Any = space.layers[layer][choice]
    return macs_of(op, space.places[layer], space.sizes[layer])


def is_skip(space: Space, layer: int, choice: int) -> bool:
    return str(space.layers[layer][choice]) == "skip"


def macs_around(space: Space) -> tuple[int, int]:
    """Of the stem and of the tail, from a network's module."""
    net = build_architecture(space, Architecture((0,) * len(space.layers)), stem="unit")
    stem = zip(net.layers, space.stem_places, space.stem_sizes, strict=False)
    macs = sum(count_macs(module, (place.in_chs, size, size)) for module, place, size in stem)
    return macs, count_macs(net.classifier, (space.layers[-1].out_chs, space.sizes[-1], space.sizes[-1]))


def together(space: Space, members: Collection[Architecture], depth: int = 0) -> tuple[int, int]:
    """Layers and MACs of searchable layers, by walking through the tree."""
    if depth == len(space.layers):
        return 0, 0
    layers = macs = 0
    for choice in range(len(space.layers[depth])):
        if group := [each for each in members if each.choices[depth] == choice]:
            layers_behind, macs_behind = together(space, group, depth + 1)
            layers += layers_behind + (not is_skip(space, depth, choice))
            macs += macs_behind + macs_of_choice(space, depth, choice)
    return layers, macs


def by_brute_force(space: Space, architectures: Sequence[Architecture]) -> Work:
    stem, tail = macs_around(space)
    count = len(architectures)
    layers, macs = together(space, architectures)
    ways = [list(enumerate(each.choices)) for each in architectures]
    return Work(
        layers=layers,
        layers_alone=sum(not is_skip(space, *step) for way in ways for step in way),
        macs=macs + (stem if count else 0) + tail * count,
        macs_alone=sum(macs_of_choice(space, *step) for way in ways for step in way) + (stem + tail) * count,
    )


def some(space: Space, count: int, seed: int = 0) -> list[Architecture]:
    """So many different random architectures."""
    rng, found = stream(seed, "some"), dict[Architecture, None]()
    while len(found) < count:
        found[sample(space, rng)] = None
    return list(found)


# ---- work ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(populations())
def test_work_is_that_of_walking_through_the_tree(population: tuple[Space, list[Architecture]]) -> None:
    space, architectures = population
    found = work(architectures, space)
    assert found == by_brute_force(space, architectures)
    assert found == work(architectures[::-1], space)
    assert found.macs_alone == sum(space.macs(each) for each in architectures)
    assert found.macs <= found.macs_alone
    assert found.layers <= found.layers_alone
    if architectures:
        assert found.saving == found.macs_alone / found.macs


@pytest.mark.parametrize("name", ["tiny", "nas_bench_macro", "lwsl_table1"])
def test_work_in_the_presets(name: str) -> None:
    space = preset(name, num_classes=10, image_size=64)
    architectures = some(space, 30)
    assert work(architectures, space) == by_brute_force(space, architectures)


def test_work_by_hand() -> None:
    layer = Layer((Conv(1), Conv(3), Skip()), 2)
    space = Space((Fixed(Conv(1), 2),), (layer, layer, layer), Tail(), num_classes=5, image_size=4)
    one, three, stem, tail = 16 * 4, 16 * 4 * 9, 16 * 6, 10
    architectures = [Architecture(each) for each in [(0, 2, 1), (0, 1, 2), (0, 2, 0), (2, 2, 2)]]
    # After layer 1's 0: a skip with 1 and 0 behind, and 1 with a skip behind. Then nothing but skips.
    alone = 3 * one + three + three + one
    assert work(architectures, space) == Work(
        layers=1 + 2 + 1,
        layers_alone=6,
        macs=stem + one + (three + one) + three + 4 * tail,
        macs_alone=4 * stem + alone + 4 * tail,
    )


def test_work_of_one_saves_nothing_and_of_none_is_none() -> None:
    space = preset("tiny", num_classes=10, image_size=32)
    assert work([], space) == (0, 0, 0, 0)
    assert work([], space).saving == 1
    (only,) = some(space, 1)
    found = work([only], space)
    assert found.layers == found.layers_alone
    assert found.macs == found.macs_alone == space.macs(only)
    assert found.saving == 1


def test_in_inference_mode_work_is_the_same() -> None:
    spaces = [preset("tiny", num_classes=10, image_size=32) for _ in range(2)]  # each finds its own costs
    with torch.inference_mode():
        found = work(some(spaces[0], 5), spaces[0])
    assert found == work(some(spaces[1], 5), spaces[1])


def test_the_whole_of_nas_bench_macro() -> None:
    space = preset("nas_bench_macro", num_classes=10, image_size=32)
    strings = {str(space.canonical(each)) for each in space.architectures()}
    assert len(strings) == 3969
    # With skips as layers: a known number, once for all that begin alike, and one by one.
    beginnings = {string[:end] for string in strings for end in range(1, 9)}
    assert len(beginnings) == 6546
    assert 8 * len(strings) == 31752
    # 0 is a skip where a layer keeps the shape: everywhere but in the first layers of the three stages.
    keeping = (1, 3, 4, 6, 7)
    skips_alone = sum(string[index] == "0" for string in strings for index in keeping)
    skips = sum(len(each) - 1 in keeping and each[-1] == "0" for each in beginnings)
    architectures = [Architecture.parse(string) for string in strings]
    found = work(architectures, space)
    assert found == by_brute_force(space, architectures)
    assert found.layers == 6546 - skips
    assert found.layers_alone == 31752 - skips_alone
    # By counting: of a stage of three, each opening has 1 + 2 + 4 endings, of which 2 + 4 run a second
    # layer and 4 a third; layers of the tree are run once for each way to come to them.
    first = 3 + 3 * 2
    second = 9 * (3 + 3 * 2 + 3 * 4)
    third = 9 * 21 * (3 + 3 * 2 + 3 * 4)
    assert found.layers == first + second + third == 4167
    depths_of_three = 3 * (1 * 1 + 2 * 2 + 4 * 3)
    assert found.layers_alone == 441 * (3 * 1 + 6 * 2) + 2 * 9 * 21 * depths_of_three == 25893
    assert found.macs_alone == sum(map(space.macs, architectures))
    assert found.saving > 3.8


# ---- shares --------------------------------------------------------------------------------------------


def assert_partition(shares: list[list[Architecture]], architectures: list[Architecture]) -> None:
    assert sorted(each.choices for share in shares for each in share) == sorted(
        each.choices for each in architectures
    )


@settings(deadline=None, max_examples=100)
@given(populations(), st.integers(1, 8))
def test_every_architecture_is_in_one_share(population: tuple[Space, list[Architecture]], parts: int) -> None:
    space, architectures = population
    before = list(architectures)
    shares = shared_out(architectures, space, parts)
    assert architectures == before
    assert len(shares) == parts
    assert_partition(shares, architectures)
    assert shares == shared_out(tuple(architectures), space, parts)
    assert sum(map(bool, shares)) <= len(architectures)
    if len(architectures) > 1 and parts > 1:
        assert sum(map(bool, shares)) > 1, "somebody else could have done something"


@settings(deadline=None, max_examples=60)
@given(populations(), st.integers(2, 8))
def test_nobody_has_much_more_than_the_rest(population: tuple[Space, list[Architecture]], parts: int) -> None:
    """No share is over the mean of what all do, but for the one piece that it was given last."""
    space, architectures = population
    loads = [work(share, space).macs for share in shared_out(architectures, space, parts)]
    if architectures:
        alone = max(space.macs(each) for each in architectures)
        mean = Fraction(work(architectures, space).macs_alone, parts)
        assert max(loads) <= mean + alone


@pytest.mark.parametrize("name", ["tiny", "nas_bench_macro", "cream"])
@pytest.mark.parametrize("parts", range(1, 9))
def test_shares_of_fifty_are_about_equal(name: str, parts: int) -> None:
    space = preset(name, num_classes=10, image_size=32)
    for seed in range(3):
        architectures = some(space, 50, seed)
        shares = shared_out(architectures, space, parts)
        assert_partition(shares, architectures)
        loads = [work(share, space).macs for share in shares]
        assert max(loads) * parts < 1.3 * sum(loads)
        # Cutting along subtrees keeps most of what is shared, as long as there are many for each.
        assert max(loads) * parts < (1.35 if parts <= 4 else 2) * work(architectures, space).macs


def test_those_that_begin_alike_stay_together() -> None:
    space = preset("nas_bench_macro", num_classes=10, image_size=32)
    groups = [
        [Architecture((*opening, 1, 1, 2, 1, 1, last)) for last in range(3)]
        for opening in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 1), (2, 1), (0, 2), (1, 0)]
    ]
    mixed = [each for several in zip(*groups, strict=True) for each in several]
    shares = shared_out(mixed, space, 2)
    assert_partition(shares, mixed)
    loads = [work(share, space).macs for share in shares]
    assert max(loads) < 1.2 * min(loads)
    for group in groups:
        assert any(set(group) <= set(share) for share in shares)


@pytest.mark.parametrize("count", range(5))
def test_fewer_architectures_than_parts(count: int) -> None:
    space = preset("tiny", num_classes=10, image_size=32)
    architectures = some(space, count)
    for parts in range(max(1, count), 9):
        shares = shared_out(architectures, space, parts)
        assert Counter(map(len, shares)) == Counter([1] * count + [0] * (parts - count))
        assert_partition(shares, architectures)


def test_architectures_that_agree_until_the_last_layer_are_divided() -> None:
    space = preset("tiny", num_classes=10, image_size=32)
    alike = [Architecture((1, 3, 2, last)) for last in range(4)]
    assert [len(share) for share in shared_out(alike, space, 4)] == [1] * 4
    assert_partition(shared_out(alike, space, 2), alike)


def test_a_single_dear_one_does_not_leave_the_rest_in_one_piece() -> None:
    """The dearest cannot be divided, but what is less dear than it can."""
    cheap: tuple[Op, ...] = (Conv(1), Conv(3), Conv(5), Skip())
    layers = (Layer((Conv(1), Conv(31)), 2), Layer(cheap, 2), Layer(cheap, 2))
    space = Space((), layers, Tail(), num_classes=2, image_size=8)
    dear = Architecture((1, 0, 0))
    rest = [Architecture((0, *choices)) for choices in itertools.product(range(4), repeat=2)]
    for parts in (2, 3, 4):
        loads = [work(share, space).macs for share in shared_out([*rest, dear], space, parts)]
        assert max(loads) <= max(space.macs(dear), work(rest, space).macs)


def test_one_architecture_given_twice_is_shared_out_as_well() -> None:
    space = preset("tiny", num_classes=10, image_size=32)
    one, other = some(space, 2)
    for twice in ([one, one], [one, other, one]):
        for parts in (1, 2, 3):
            found = {each for share in shared_out(twice, space, parts) for each in share}
            assert found == set(twice)
