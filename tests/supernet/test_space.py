import itertools
import random
import re
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from supernet.layers import Conv, FusedMBConv, MBConv, Op, Place, Projection, Shuffle, Skip
from supernet.presets import PRESETS, lwsl, preset
from supernet.sampling import sample
from supernet.space import Architecture, Fixed, Layer, Space, stage
from supernet.supernet import Supernet
from supernet.tail import Tail
from tools.cost import count_macs, count_params

OPS: list[Op] = [Conv(1), Conv(3), Projection(), MBConv(3, 2)]


@st.composite
def staged_spaces(draw: st.DrawFn) -> Space:
    """Stages of which the first layer changes the shape, so that no layer belongs to two."""
    layers: list[Layer] = []
    chs = 4
    for _ in range(draw(st.integers(1, 3))):
        stride = draw(st.integers(1, 2))
        if stride == 1:
            chs += 4
        ops: list[Op] = draw(st.lists(st.sampled_from(OPS), min_size=1, max_size=3, unique_by=str))
        if draw(st.booleans()):
            ops.insert(draw(st.integers(0, len(ops))), Skip())
        layers += stage(ops, depth=draw(st.integers(1, 3)), out_chs=chs, stride=stride)
    return Space((Fixed(Conv(3), 4),), tuple(layers), Tail(), image_size=draw(st.sampled_from([5, 8])))


def network(space: Space, architecture: Architecture) -> tuple[tuple[str, Place], ...]:
    """What really runs, in order."""
    parts = zip(space.describe(architecture), space.places, strict=True)
    return tuple((name, place) for name, place in parts if name != "skip")


# ---- architectures as texts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "text"),
    [((2, 0, 1), "201"), ((10, 0, 3), "10-0-3"), ((0,), "0"), ((9, 9), "99"), ((11,), "11-")],
)
def test_an_architecture_as_a_text_and_back(choices: tuple[int, ...], text: str) -> None:
    assert str(Architecture(choices)) == text
    assert Architecture.parse(text) == Architecture(choices)


@pytest.mark.parametrize("text", ["", "-", "1--", "-1", "1--2", "12a", "1 2", "1.5", "٣"])
def test_what_is_no_architecture_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^'{re.escape(text)}' is no architecture"):
        Architecture.parse(text)


# ---- what a space refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([], "there are no layers to search"),
        ([Layer((Skip(),), 4)], "layer 1 has no candidate but skip"),
        ([Layer((Conv(3),), 4), Layer((), 4)], "layer 2 has no candidate"),
        ([Layer((Conv(3), Conv(5), Conv(3)), 4)], "layer 1 has one candidate twice"),
        ([Layer((Conv(3),), 4), Layer((Conv(3), Skip()), 8)], "layer 2 changes the shape, which skip cannot"),
        ([Layer((Conv(3), Skip()), 4, 2)], "layer 1 changes the shape"),
        ([Layer((Conv(3),), 4), Layer((Conv(3),), 4, 3)], "layer 2 has stride 3; it must be 1 or 2"),
    ],
)
def test_a_space_that_cannot_be_is_refused(layers: list[Layer], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^space mine: {reason}"):
        Space((Fixed(Conv(3), 4),), tuple(layers), Tail(), name="mine")


def test_what_cannot_be_built_at_its_place_is_named_by_it() -> None:
    fine = Layer((Conv(3),), 8)
    odd = Space((), (fine, Layer((Conv(3), Shuffle()), 12)), Tail(), name="mine")
    with pytest.raises(ValueError, match=r"^space mine: layer 2: shuffle cannot change"):
        odd.macs(Architecture((0, 0)))
    with pytest.raises(ValueError, match=r"^space mine: stem 1: skip cannot stand"):
        _ = Space((Fixed(Skip(), 8),), (fine,), Tail(), name="mine").fixed_cost
    with pytest.raises(ValueError, match="stem 2 has stride 4"):
        Space((Fixed(Conv(), 8), Fixed(Conv(), 8, 4)), (fine,), Tail(), name="mine")


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ((0,) * 7, "has 7 choices; space nas_bench_macro has 8 searchable layers"),
        ((0,) * 9, "has 9 choices; space nas_bench_macro has 8 searchable layers"),
        ((0, 0, 3, 0, 0, 0, 0, 0), "layer 3 of space nas_bench_macro has candidates 0 to 2, not 3"),
        ((0, 0, 0, 0, 0, 0, 0, -1), "layer 8 of space nas_bench_macro has candidates 0 to 2, not -1"),
    ],
)
def test_choices_out_of_range_are_refused_by_all_that_take_them(
    choices: tuple[int, ...], reason: str
) -> None:
    space = preset("nas_bench_macro", num_classes=10, image_size=32)
    for take in (space.validate, space.macs, space.params):
        with pytest.raises(ValueError, match=f"{re.escape(reason)}$"):
            take(Architecture(choices))


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ({"conv_chs": -1}, r"tail\.conv_chs: -1"),
        ({"hidden_chs": -2}, r"tail\.hidden_chs: -2"),
        ({"dropout": 1.0}, r"tail\.dropout: 1"),
    ],
)
def test_a_tail_names_what_is_out_of_range(tail: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason} is out of range"):
        Tail(**tail)


# ---- stages and places ---------------------------------------------------------------------------------


def test_a_stage_opens_without_skip_unless_told_otherwise() -> None:
    ops = (Conv(3), Skip(), Conv(5))
    opening, *rest = stage(ops, depth=3, out_chs=8, stride=2)
    assert opening == Layer((Conv(3), Conv(5)), 8, 2)
    assert rest == [Layer(ops, 8)] * 2
    assert stage(ops, depth=1, out_chs=8, stride=2, first=[Projection()]) == [Layer((Projection(),), 8, 2)]
    assert rest[0].weighted == (0, 2)
    assert list(rest[0]) == [rest[0][index] for index in range(len(rest[0]))] == list(ops)


@settings(deadline=None, max_examples=15)
@given(staged_spaces(), st.randoms(use_true_random=False))
def test_places_and_sizes_are_what_modules_meet(space: Space, rng: random.Random) -> None:
    net = Supernet(space).eval()
    features = torch.randn(1, 3, space.image_size, space.image_size)
    for layer, place, size in zip(net.stem, space.stem_places, space.stem_sizes, strict=True):
        assert features.shape[1:] == (place.in_chs, size, size)
        features = layer(features)
    architecture = sample(space, rng)
    for index, (place, size) in enumerate(zip(space.places, space.sizes, strict=False)):
        assert features.shape[1:] == (place.in_chs, size, size)
        features = net.candidate(index, architecture.choices[index])(features)
        assert place.keeps_shape == (place.stride == 1 and features.shape[1] == place.in_chs)
    assert features.shape[1:] == (space.layers[-1].out_chs, space.sizes[-1], space.sizes[-1])
    assert net.tail(features).shape == (1, space.num_classes)


# ---- costs ---------------------------------------------------------------------------------------------


DISTINCT = [name for name in PRESETS if name != "lwsl_table1"]  # lwsl_fit has all of its layers, and more


@pytest.mark.parametrize("name", DISTINCT)
def test_costs_add_up_to_what_the_extracted_network_costs(name: str) -> None:
    """Of architectures that have every candidate of every layer between them."""
    space = preset(name, num_classes=10, image_size=32)
    with torch.device("meta"):  # the counter looks at shapes alone
        net = Supernet(space)
    for choice in range(max(map(len, space.layers))):
        architecture = Architecture(tuple(min(choice, len(layer) - 1) for layer in space.layers))
        chain = net.extract(architecture)
        assert space.macs(architecture) == count_macs(chain, (3, 32, 32))
        assert space.params(architecture) == count_params(chain)


@pytest.mark.parametrize(
    ("name", "image_size", "num_classes"),
    [
        *[(name, 224, 1000) for name in DISTINCT],
        *[(name, 45, 7) for name in ("lwsl_table1", "nas_bench_macro")],
    ],
)
def test_costs_add_up_for_other_images_and_classes(name: str, image_size: int, num_classes: int) -> None:
    space = preset(name, num_classes=num_classes, image_size=image_size)
    with torch.device("meta"):
        net = Supernet(space)
    architecture = sample(space, random.Random(0))
    chain = net.extract(architecture)
    assert space.macs(architecture) == count_macs(chain, (3, image_size, image_size))
    assert space.params(architecture) == count_params(chain)


@pytest.mark.parametrize("name", ["cream", "nas_bench_macro", "tiny"])
def test_costs_add_up_where_numbers_really_run(name: str) -> None:
    space = preset(name, num_classes=10, image_size=32, in_chs=1)
    net = Supernet(space)
    architecture = sample(space, random.Random(1))
    assert space.macs(architecture) == count_macs(net.extract(architecture), (1, 32, 32))
    assert space.params(architecture) == count_params(net.extract(architecture, fresh=True))


@settings(deadline=None, max_examples=15)
@given(staged_spaces(), st.randoms(use_true_random=False))
def test_costs_of_own_spaces_add_up(space: Space, rng: random.Random) -> None:
    with torch.device("meta"):
        net = Supernet(space)
    architecture = sample(space, rng)
    chain = net.extract(architecture)
    assert space.macs(architecture) == count_macs(chain, (3, space.image_size, space.image_size))
    assert space.params(architecture) == count_params(chain)
    chosen = [row[choice] for row, choice in zip(space.costs, architecture.choices, strict=True)]
    assert space.macs(architecture) == space.fixed_cost.macs + sum(cost.macs for cost in chosen)
    assert space.params(architecture) == space.fixed_cost.params + sum(cost.params for cost in chosen)


def test_equal_candidates_at_maps_of_other_sizes_cost_otherwise() -> None:
    layer = Layer((Conv(3), Projection()), 4, 2)
    space = Space((Fixed(Conv(3), 4),), (layer, layer), Tail(), image_size=8)
    assert space.costs == (
        ((16 * 144, 144 + 8), (16 * 16, 16 + 8)),
        ((4 * 144, 144 + 8), (4 * 16, 16 + 8)),
    )


@pytest.mark.parametrize("name", ["cream", "nas_bench_macro", "tiny"])
def test_units_are_what_the_layers_activations_give(name: str) -> None:
    space = preset(name, num_classes=10, image_size=32)
    net, counts = Supernet(space), list[int]()
    for module in net.layers.modules():
        if isinstance(module, nn.ReLU | nn.SiLU):
            module.register_forward_hook(lambda _, inputs, outputs: counts.append(outputs[0].numel()))
    for choice in range(max(map(len, space.layers))):
        architecture = Architecture(tuple(min(choice, len(layer) - 1) for layer in space.layers))
        counts.clear()
        with torch.no_grad():
            net(torch.zeros(2, 3, 32, 32), architecture)
        units = [row[choice] for row, choice in zip(space.units, architecture.choices, strict=True)]
        assert sum(units) == sum(counts)


def test_units_of_nas_bench_macro_by_hand() -> None:
    space = preset("nas_bench_macro", num_classes=10, image_size=32)
    first = [(32, 32, 16), (64, 16, 16), (64, 16, 8), (128, 8, 8), (128, 8, 8), (128, 8, 4), (256, 4, 4)]
    rows = [
        (0, *(chs * exp * (before**2 + after**2) for exp in (3, 6)))
        for chs, before, after in [*first, first[-1]]
    ]
    assert space.units == tuple(rows)


@pytest.mark.parametrize(
    "tail",
    [Tail(), Tail(conv_chs=6), Tail(hidden_chs=5), Tail(conv_chs=6, hidden_chs=5, dropout=0.5)],
)
def test_what_a_tail_costs_by_hand(tail: Tail) -> None:
    space = Space((), (Layer((Projection(),), 4),), tail, num_classes=7, image_size=8)
    macs = params = 0
    chs = 4
    if tail.conv_chs:
        macs, params, chs = 64 * chs * tail.conv_chs, (chs + 2) * tail.conv_chs, tail.conv_chs
    if tail.hidden_chs:
        macs, params = macs + chs * tail.hidden_chs, params + (chs + 1) * tail.hidden_chs
        chs = tail.hidden_chs
    assert space.fixed_cost == (macs + 7 * chs, params + 7 * (chs + 1))
    assert tail.feature_chs(4) == chs


# ---- which architectures are one network ---------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(staged_spaces())
def test_classes_of_equal_networks(space: Space) -> None:
    classes = defaultdict(set)
    for architecture in space.architectures():
        classes[network(space, architecture)].add(space.canonical(architecture))
    # One canonical form a network, and no form for two of them.
    assert all(len(forms) == 1 for forms in classes.values())
    forms = set.union(*classes.values())
    assert len(forms) == len(classes) == space.num_networks
    for form in forms:
        space.validate(form)
        assert space.canonical(form) == form


@settings(deadline=None, max_examples=20)
@given(staged_spaces())
def test_all_architectures_once_and_in_order(space: Space) -> None:
    found = [architecture.choices for architecture in space.architectures()]
    assert found == sorted(set(itertools.product(*(range(len(layer)) for layer in space.layers))))
    assert len(found) == space.size


@pytest.mark.parametrize("name", PRESETS)
def test_a_canonical_architecture_is_the_same_network(name: str) -> None:
    space = preset(name, num_classes=10, image_size=32)
    rng = random.Random(2)
    changed = 0
    for _ in range(200):
        architecture = sample(space, rng)
        canonical = space.canonical(architecture)
        changed += canonical != architecture
        assert space.canonical(canonical) == canonical
        assert network(space, canonical) == network(space, architecture)
        assert space.macs(canonical) == space.macs(architecture)
        assert space.params(canonical) == space.params(architecture)
        names = space.describe(canonical)
        for index in range(1, len(names)):
            if names[index - 1] == "skip" != names[index]:
                assert space.layers[index] != space.layers[index - 1]
    # In the tiny space a stage has one layer that may be skipped: there is nothing to move.
    assert changed == 0 if name == "tiny" else changed > 20


def test_skips_move_behind_the_operations_in_their_order() -> None:
    space = preset("nas_bench_macro", num_classes=10, image_size=32)

    def canonical(text: str) -> str:
        return str(space.canonical(Architecture.parse(text)))

    assert canonical("00002010") == "00020010"
    assert canonical("10012001") == "10012010"
    assert canonical("01000012") == "01000012"
    assert canonical("00000021") == "00000021"
    assert canonical("22202202") == "22220220"


def test_layers_with_other_candidates_do_not_change_places() -> None:
    few, more = (Conv(3), Skip()), (Conv(3), Conv(5), Skip())
    space = Space((Fixed(Conv(3), 4),), (Layer(few, 4), Layer(more, 4), Layer(more, 4)), Tail())
    assert space.canonical(Architecture((1, 2, 1))) == Architecture((1, 1, 2))
    assert space.num_networks == 2 * 7


def test_a_fifth_stage_that_may_be_skipped_goes_on_from_the_fourth() -> None:
    space = lwsl(3, name="open", skippable_first=True)
    assert [len(layer) for layer in space.layers] == [6, 7, 7] * 3 + [6, 7, 7, 7, 7, 7]
    assert space.size == 6**4 * 7**11
    run = sum(6**depth for depth in range(6))
    assert space.num_networks == 258**3 * 6 * run
    one = Architecture((0,) * 9 + (5, 6, 1, 6, 2, 6))
    other = Architecture((0,) * 9 + (5, 1, 6, 2, 6, 6))
    assert space.canonical(one) == space.canonical(other) == Architecture((0,) * 9 + (5, 1, 2, 6, 6, 6))
    assert network(space, one) == network(space, other)
    # Two layers a stage: all ends of such networks, whatever comes before.
    small = replace(lwsl(2, name="open", skippable_first=True, image_size=14), stem=(Fixed(Conv(3), 96),))
    small = replace(small, layers=small.layers[6:])
    seen = {network(small, architecture) for architecture in small.architectures()}
    forms = {small.canonical(architecture) for architecture in small.architectures()}
    assert small.size == 6 * 7**3
    assert len(seen) == len(forms) == small.num_networks == 6 * (1 + 6 + 36 + 216)


def test_an_op_of_ones_own_is_a_candidate_like_others() -> None:
    class Mean:
        def build(self, place: Place, style: Any) -> torch.nn.Module:
            return torch.nn.Sequential(
                torch.nn.AvgPool2d(3, place.stride, 1), Conv(1).build(place_after, style)
            )

        def __str__(self) -> str:
            return "mean"

    place_after = Place(4, 6, 1)
    space = Space((Fixed(Conv(3), 4),), (Layer((Mean(), FusedMBConv(3, 2)), 6, 2),), Tail())
    assert space.costs[0][0] == (16 * 16 * 24, 24 + 12)
    net = Supernet(space)
    images = torch.randn(4, 3, 32, 32)
    chain = net.extract(Architecture((0,)))
    assert torch.equal(net(images, Architecture((0,))), chain(images))
