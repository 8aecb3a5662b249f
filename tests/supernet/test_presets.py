import contextlib
import functools
import itertools
import json
import logging
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from supernet.layers import MBConv, Place, Skip, Style
from supernet.presets import PRESETS, lwsl, preset
from supernet.sampling import sample
from supernet.space import Architecture, Space
from supernet.supernet import Supernet, build_architecture
from supernet.tail import build_tail
from tools.cost import count_macs, count_params

ROOT = Path(__file__).parents[2]
LARGE = ("lwsl_table1", "lwsl_fit", "cream")


@functools.cache  # its costs too are counted once
def large(name: str) -> Space:
    """As in the papers: ImageNet at 224 pixels."""
    return preset(name, num_classes=1000, image_size=224)


@functools.cache
def macro() -> Space:
    return preset("nas_bench_macro", num_classes=10, image_size=32)


def shortest(space: Space) -> Architecture:
    """k3e4 in every stage's first layer, and no more."""
    return Architecture(tuple(0 if len(layer) == 6 else 6 for layer in space.layers))


def widest(space: Space) -> Architecture:
    return Architecture((5,) * len(space.layers))


# ---- the papers' spaces at 224 pixels ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [
        ("lwsl_table1", (27724416, 83955584, 366218880), (2371116, 2993096, 6526932)),
        ("lwsl_fit", (27724416, 83955584, 486518976), (2371116, 2993096, 8086842)),
        ("cream", (15137024, 76082176, 551125376), (1755168, 2109824, 7812248)),
    ],
)
def test_multiply_accumulates_and_parameters(
    name: str, macs: tuple[int, ...], params: tuple[int, ...]
) -> None:
    space = large(name)
    low, high = shortest(space), widest(space)
    assert (space.fixed_cost.macs, space.macs(low), space.macs(high)) == macs
    assert (space.fixed_cost.params, space.params(low), space.params(high)) == params
    for row in space.costs:
        weighted = row[:6]
        assert max(range(6), key=lambda op: weighted[op].macs) == 5
        assert min(range(6), key=lambda op: weighted[op].macs) == 0


@pytest.mark.parametrize(
    ("name", "params"), [("lwsl_table1", 22109724), ("lwsl_fit", 29526624), ("cream", 28841912)]
)
def test_parameters_of_the_whole_supernet(name: str, params: int) -> None:
    with torch.device("meta"):
        net = Supernet(large(name))
    assert count_params(net) == params


@pytest.mark.parametrize(
    ("name", "fixed", "low", "high"),
    [
        ("lwsl_table1", 28571136, 86627456, 374121600),
        ("lwsl_fit", 28571136, 86627456, 496623168),
        ("cream", 16372608, 81131136, 569671680),
    ],
)
def test_fvcore_counts_the_same_products_and_two_more_for_every_number_normalised(
    name: str, fixed: int, low: int, high: int
) -> None:
    space = large(name)
    with fvcores_noise():
        pooled = 97216 if name != "cream" else 320 * 7 * 7
        for architecture, expected in ((shortest(space), low), (widest(space), high)):
            counts = fvcore_counts(build_architecture(space, architecture), torch.zeros(1, 3, 224, 224))
            assert counts["conv"] + counts["linear"] == space.macs(architecture)
            # The table leaves out the pooling, which fvcore counts once for every number pooled.
            assert counts["adaptive_avg_pool2d"] == pooled
            assert set(counts) == {"conv", "linear", "batch_norm", "adaptive_avg_pool2d"}
            assert counts.total() - pooled == expected
        chain = build_architecture(space, shortest(space), stem="unit")
        stem = fvcore_counts(nn.Sequential(*chain.layers[:2]), torch.zeros(1, 3, 224, 224))
        tail = fvcore_counts(chain.classifier, torch.zeros(1, space.layers[-1].out_chs, 7, 7))
    assert stem["conv"] + tail["conv"] + tail["linear"] == space.fixed_cost.macs
    assert stem.total() + tail.total() - pooled == fixed


def test_the_parts_around_lwsls_layers() -> None:
    space = large("lwsl_table1")
    stem, separable = (
        fixed.op.build(place, space.style) for fixed, place in zip(space.stem, space.stem_places, strict=True)
    )
    assert (count_macs(stem, (3, 224, 224)), count_params(stem)) == (5419008, 464)
    assert (count_macs(separable, (16, 112, 112)), count_params(separable)) == (1655936, 756)
    tail = build_tail(space.tail, 192, 1000, space.style)
    assert (count_macs(tail[0], (192, 7, 7)), count_params(tail[0])) == (18665472, 384896)
    assert count_params(tail) == 384896 + 1985000
    assert count_macs(tail, (192, 7, 7)) == 18665472 + 1984000


ROWS = {
    (24, 40, 2, 56): (
        "10914432/8726 16371648/13046 12118656/10262 18177984/15350 13924992/12566 20887488/18806"
    ),
    (40, 40, 1, 28): (
        "11167360/18330 16751040/27450 13174400/20890 19761600/31290 16184960/24730 24277440/37050"
    ),
    (40, 80, 2, 28): (
        "7811840/24810 11717760/37130 8313600/27370 12470400/40970 9066240/31210 13599360/46730"
    ),
    (80, 80, 1, 14): (
        "10612480/68660 15918720/102900 11616000/73780 17424000/110580 13121280/81460 19681920/122100"
    ),
    (80, 96, 1, 14): (
        "11616000/73812 17424000/110612 12619520/78932 18929280/118292 14124800/86612 21187200/129812"
    ),
    (96, 96, 1, 14): (
        "15146496/97752 22719744/146520 16350720/103896 24526080/155736 18157056/113112 27235584/169560"
    ),
    (96, 192, 2, 14): (
        "11025792/134808 16538688/202008 11326848/140952 16990272/211224 11778432/150168 17667648/225048"
    ),
    (192, 192, 1, 7): (
        "14863104/379824 22294656/569520 15465216/392112 23197824/587952 16368384/410544 24552576/615600"
    ),
}


@pytest.mark.parametrize("name", ["lwsl_table1", "lwsl_fit"])
def test_every_candidate_costs_what_the_table_says(name: str) -> None:
    space = large(name)
    met = set()
    for place, size, row in zip(space.places, space.sizes, space.costs, strict=False):
        key = (place.in_chs, place.out_chs, place.stride, size)
        assert " ".join(f"{cost.macs}/{cost.params}" for cost in row[:6]) == ROWS[key]
        assert row[6:] in ((), ((0, 0),))
        met.add(key)
    assert met == set(ROWS)


@pytest.mark.parametrize("image_size", [97, 224])
@pytest.mark.parametrize("name", LARGE)
def test_every_candidate_costs_what_the_closed_form_says(name: str, image_size: int) -> None:
    space = preset(name, num_classes=10, image_size=image_size)
    side = -(-image_size // (2 if name == "cream" else 4))
    for place, layer, row in zip(space.places, space.layers, space.costs, strict=True):
        small = -(-side // place.stride)
        assert [str(op) for op in layer.ops[:6]] == [
            f"mbconv_k{kernel}_e{exp}_se0.25" for kernel in (3, 5, 7) for exp in (4, 6)
        ]
        for (kernel, exp), cost in zip(itertools.product((3, 5, 7), (4, 6)), row, strict=False):
            assert cost == closed_form(place, side, small, kernel, exp, se(name, place.in_chs, exp))
        side = small


def se(name: str, in_chs: int, exp: int) -> int:
    """Inner channels of squeeze-and-excitation."""
    if name != "cream":
        return round(in_chs / 4)
    # timm's rounding to multiples of 8, never below nine tenths.
    wanted = in_chs * exp / 4
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def closed_form(place: Place, side: int, small: int, kernel: int, exp: int, inner: int) -> tuple[int, int]:
    chs, out, middle = place.in_chs, place.out_chs, place.in_chs * exp
    macs = side**2 * chs * middle + small**2 * middle * kernel**2 + 2 * middle * inner
    macs += small**2 * middle * out
    params = chs * middle + middle * kernel**2 + middle * out + 2 * middle * inner
    params += 5 * middle + inner + 2 * out
    return macs, params


def test_fvcore_counts_candidates_of_lwsl_by_their_closed_form() -> None:
    """Each kind of candidate, and each place with two of them."""
    kinds = list(itertools.product((3, 5, 7), (4, 6)))
    drawn = [(place, kinds[(index + more) % 6]) for index, place in enumerate(ROWS) for more in (0, 3)]
    for (chs, out, stride, side), (kernel, exp) in drawn:
        place, small, middle = Place(chs, out, stride), side // stride, chs * exp
        block = MBConv(kernel, exp, 0.25).build(place, Style(act="silu")).eval()
        with fvcores_noise():
            counts = fvcore_counts(block, torch.zeros(1, chs, side, side))
        macs, _ = closed_form(place, side, small, kernel, exp, round(chs / 4))
        assert counts["conv"] == macs
        assert counts.total() == macs + 2 * (side**2 * middle + small**2 * middle + small**2 * out)


@pytest.mark.parametrize(
    ("name", "size", "networks"),
    [
        ("lwsl_table1", 2196527536224, 1143137652768),
        ("lwsl_fit", 36917038301316768, 9062647172085024),
        ("cream", 36917038301316768, 9062647172085024),
    ],
)
def test_how_many_architectures_and_networks_there_are(name: str, size: int, networks: int) -> None:
    space = large(name)
    assert space.size == size
    assert space.num_networks == networks
    depth = len(space.layers) // 5
    assert size == 6**5 * 7 ** (5 * depth - 5)
    assert networks == (6 * sum(6**deep for deep in range(depth))) ** 5


def test_only_a_stages_first_layer_cannot_be_skipped() -> None:
    for name in LARGE:
        space = large(name)
        depth = len(space.layers) // 5
        for index, layer in enumerate(space.layers):
            assert any(isinstance(op, Skip) for op in layer) == (index % depth > 0)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_for_the_images_that_it_is_asked_for(name: str) -> None:
    space = preset(name, num_classes=7, image_size=40, in_chs=2)
    assert (space.name, space.num_classes, space.image_size, space.in_chs) == (name, 7, 40, 2)
    net = Supernet(space).eval()
    assert net(torch.randn(2, 2, 40, 40), sample(space, random.Random(0))).shape == (2, 7)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="space: unknown value 'lwsl'"):
        preset("lwsl", num_classes=10, image_size=32)


@pytest.mark.parametrize(("depth", "size"), [(3, 2196527536224), (4, 36917038301316768), (1, 7776)])
def test_lwsls_stages_have_the_depth_asked_for(depth: int, size: int) -> None:
    assert lwsl(depth, name="mine").size == size


# ---- timm's EfficientNet, from its own description -----------------------------------------------------


def timms(space: Space, architecture: Architecture) -> nn.Module:
    stages = [["ds_r1_k3_s2_e1_c24_se0.25"]]
    depth = len(space.layers) // 5
    for index, (layer, choice) in enumerate(zip(space.layers, architecture.choices, strict=True)):
        if index % depth == 0:
            stages.append([])
        if choice < 6:
            kernel, exp = (3, 5, 7)[choice // 2], (4, 6)[choice % 2]
            stages[-1].append(f"ir_r1_k{kernel}_s{layer.stride}_e{exp}_c{layer.out_chs}_se0.25")
    return EfficientNet(
        decode_arch_def(stages),  # type: ignore[no-untyped-call]
        num_classes=space.num_classes,
        num_features=1984,
        stem_size=16,
        act_layer=nn.SiLU,
    )


@pytest.mark.parametrize(("name", "seed"), [("lwsl_table1", 0), ("lwsl_fit", 1), ("lwsl_fit", 2)])
def test_an_architecture_of_lwsl_is_timms_efficientnet(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    space = large(name)
    architecture = sample(space, random.Random(seed))
    net = build_architecture(space, architecture).double().eval()
    theirs = timms(space, architecture).double().eval()
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    assert count_params(theirs) == count_params(net) == space.params(architecture)
    assert count_macs(theirs, (3, 224, 224)) == space.macs(architecture)
    ours = net.state_dict()
    assert [value.shape for value in theirs.state_dict().values()] == [v.shape for v in ours.values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.values(), strict=True)))
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(images), theirs(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("choose", "macs", "params"), [(shortest, 83955584, 2993096), (widest, 366218880, 6526932)]
)
def test_timms_own_smallest_and_largest(choose: Any, macs: int, params: int) -> None:
    space = large("lwsl_table1")
    net = timms(space, choose(space))
    assert (count_macs(net, (3, 224, 224)), count_params(net)) == (macs, params)


# ---- NAS-Bench-Macro -----------------------------------------------------------------------------------


def macros_cost(digits: str) -> tuple[int, int]:
    """Multiply-accumulates and parameters by the reference's formulas."""
    macs, params = 32**2 * 27 * 32, 27 * 32 + 64
    chs, side = 32, 32
    for index, digit in enumerate(digits):
        out = 64 if index < 2 else 128 if index < 5 else 256
        small = side // 2 if index in (0, 2, 5) else side
        if digit != "0":
            exp, kernel = {"1": (3, 3), "2": (6, 5)}[digit]
            middle = exp * chs
            macs += side**2 * chs * middle + small**2 * middle * (kernel**2 + out)
            params += chs * middle + kernel**2 * middle + middle * out + 4 * middle + 2 * out
        elif small != side:
            macs, params = macs + small**2 * chs * out, params + chs * out + 2 * out
        chs, side = out, small
    macs += 16 * 256 * 1280 + 1280 * 10
    return macs, params + 256 * 1280 + 2 * 1280 + 1280 * 10 + 10


def texts() -> Iterator[str]:
    return map("".join, itertools.product("012", repeat=8))


@pytest.mark.parametrize(
    ("digits", "macs", "params"),
    [
        ("00000000", 7713280, 387882),
        ("11111111", 53246464, 1588874),
        ("22222222", 105660928, 2932586),
        ("02012100", 47327744, 890666),
    ],
)
def test_pinned_networks_of_nas_bench_macro(digits: str, macs: int, params: int) -> None:
    architecture = Architecture.parse(digits)
    assert (macro().macs(architecture), macro().params(architecture)) == (macs, params)
    net = Supernet(macro()).extract(architecture)
    assert (count_macs(net, (3, 32, 32)), count_params(net)) == (macs, params)
    assert macros_cost(digits) == (macs, params)


def test_every_network_of_nas_bench_macro_costs_what_the_formulas_say() -> None:
    space = macro()
    for digits in texts():
        architecture = Architecture.parse(digits)
        assert (space.macs(architecture), space.params(architecture)) == macros_cost(digits)


def test_every_network_of_nas_bench_macro_costs_what_its_authors_wrote() -> None:
    path = ROOT / "data/nas-bench-macro_cifar10.json"
    if not path.exists():
        pytest.skip(f"the benchmark's table is not at {path}")
    table = json.loads(path.read_text(encoding="utf-8"))
    space = macro()
    assert set(table) == set(texts())
    for digits, entry in table.items():
        architecture = Architecture.parse(digits)
        assert (space.macs(architecture), space.params(architecture)) == (entry["flops"], entry["params"])


def test_the_networks_of_nas_bench_macro() -> None:
    space = macro()
    assert [str(architecture) for architecture in space.architectures()] == list(texts())
    assert space.size == 6561
    groups = Counter(space.canonical(architecture) for architecture in space.architectures())
    assert len(groups) == space.num_networks == 3969
    assert Counter(groups.values()) == {1: 2025, 2: 1620, 4: 324}

    def deduplicated(digits: str) -> str:
        def tail(part: str) -> str:
            return part.replace("0", "") + "0" * part.count("0")

        return digits[:3] + tail(digits[3:5]) + digits[5] + tail(digits[6:])

    for digits in texts():
        assert str(space.canonical(Architecture.parse(digits))) == deduplicated(digits)


def test_digits_of_nas_bench_macro_are_its_operations() -> None:
    space = macro()
    first, other = (["proj", "mbconv_k3_e3", "mbconv_k5_e6"], ["skip", "mbconv_k3_e3", "mbconv_k5_e6"])
    assert [[str(op) for op in layer] for layer in space.layers] == [
        first, other, first, other, other, first, other, other,
    ]  # fmt: skip
    net = Supernet(space)
    assert not any(isinstance(each, nn.SiLU | nn.Dropout) for each in net.modules())
    # Of the projections that stand for 0, and of the ends of blocks, none is followed by an activation.
    images = torch.randn(4, 3, 32, 32)
    features = net.begin(images)
    assert (features >= 0).all()
    for index in range(8):
        for choice in (0, 1, 2):
            if space.layers[index].stride == 2:
                assert (net.candidate(index, choice)(features) < 0).any()
        features = net.candidate(index, 1)(features)


# ---- the independent counter ---------------------------------------------------------------------------


@contextlib.contextmanager
def fvcores_noise() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch.jit.trace's remarks on shapes that become constants, and its deprecation
        warnings.filterwarnings("ignore", message="Converting a tensor to a Python")
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        yield


def fvcore_counts(net: nn.Module, images: Tensor) -> "Counter[str]":
    """What fvcore counts in evaluation mode for one image, by operator."""
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    analysis = FlopCountAnalysis(net.eval(), images)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return Counter({operator: int(count) for operator, count in analysis.by_operator().items() if count})
