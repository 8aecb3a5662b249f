"""Convolutions in channels last, against float64 in the contiguous layout, each in a process of its own."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.convolutions import POINT, Case, alone, in_a_process
from local_learning.blocks import decouple
from local_learning.chain import Chain
from local_learning.decoupling import Decoupling
from local_learning.heads import register_head
from search.hypergradient import hypergradient
from search.relaxation import RelaxedNet
from supernet.layers import Conv, Projection
from supernet.space import Architecture, Fixed, Layer, Space
from supernet.supernet import Supernet
from supernet.tail import Tail
from tests.forked import FORKS
from tools.layout import StridedPointwise, guard_convolutions, use_channels_last

LAST = torch.channels_last
CASES = {
    "AVX-512": POINT,
    "AVX2": replace(POINT, in_chs=4, isa="AVX2"),
    "second order": replace(POINT, in_chs=12, order=2, bias=True),
    "two threads": replace(POINT, in_chs=3, size=(64, 48), threads=2),
    "one stride": replace(POINT, stride=(1, 2)),
    "bfloat16": replace(POINT, dtype="bfloat16"),
}
SIZE, CLASSES = 56, 5


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_guarded_convolution_is_right(case: Case) -> None:
    assert case.guarded
    assert alone(case, mended=True, patience=20, processes=FORKS) == {"outcome": "right"}


@pytest.mark.parametrize("name", ["AVX-512", "AVX2"])
def test_whether_torch_needs_the_guard(name: str) -> None:
    found = alone(CASES[name], mended=False, patience=20, processes=FORKS)
    if found["outcome"] != "right":
        pytest.skip(f"the guard is needed: plain torch {torch.__version__} with {name} here {found}")


# ---- every way to a network ----------------------------------------------------------------------------

Errors = dict[str, float]


def pointwise(chs: int, size: int, num_classes: int) -> nn.Module:
    """A head of a user."""
    return nn.Sequential(nn.Conv2d(chs, 16, 1, stride=2), nn.ReLU(), *readout(16, num_classes))


def readout(chs: int, num_classes: int = CLASSES) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(chs, num_classes)]


def small_chain() -> Chain:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU())
    return Chain([first, second, nn.Conv2d(12, 16, 1, stride=2)], nn.Sequential(*readout(16)))


def batch() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, SIZE, SIZE, generator=source)
    return images.contiguous(memory_format=LAST), torch.arange(4) % CLASSES


def compare(net: nn.Module, losses: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Errors:
    """Relative errors of all gradients."""
    images, targets = batch()
    exact = copy.deepcopy(net).double()
    losses(net, images, targets).backward()  # type: ignore[no-untyped-call]
    losses(exact, images.double().contiguous(), targets).backward()  # type: ignore[no-untyped-call]
    return apart(*({name: p.grad for name, p in each.named_parameters()} for each in (net, exact)))


def apart(found: dict[str, Tensor | None], right: dict[str, Tensor | None]) -> Errors:
    assert found.keys() == right.keys()
    pairs = {name: (value, right[name]) for name, value in found.items()}
    largest = max(float(value.norm()) for value in right.values() if value is not None)
    return {
        name: float((value.double() - true).norm() / max(float(true.norm()), 1e-3 * largest))
        for name, (value, true) in pairs.items()
        if value is not None and true is not None
    }


def classified(net: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(net(images), targets)


def a_chain() -> Errors:
    return compare(small_chain(), classified)


def laid_out() -> Errors:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1, stride=2), *readout(16))
    use_channels_last(net)
    return compare(net, classified)


def blocks() -> Errors:
    register_head("pointwise")(pointwise)
    net = decouple(small_chain(), Decoupling((1,), ("pointwise",)), CLASSES, SIZE)
    use_channels_last(net)
    return compare(net, lambda net, images, targets: sum(net.losses(images, targets)))  # type: ignore


def a_head_of_ones_own() -> Errors:
    def make(kind: str, chs: int, size: int, num_classes: int, **_: object) -> nn.Module:
        return pointwise(chs, size, num_classes)

    net = decouple(small_chain(), Decoupling((1,), ("linear",)), CLASSES, SIZE, make=make)
    return compare(net, lambda net, images, targets: sum(net.losses(images, targets)))  # type: ignore


def a_supernet(*, extracted: bool) -> Errors:
    torch.manual_seed(0)
    layer = Layer((Projection(), Conv(1)), 16, 2)
    net = Supernet(Space((Fixed(Conv(3), 8),), (layer,), Tail(), num_classes=CLASSES, image_size=SIZE))
    one, other = Architecture((0,)), Architecture((1,))
    if extracted:
        return compare(net.extract(one), classified)
    return compare(net, lambda net, x, y: nn.functional.cross_entropy(net(x, one) + net(x, other), y))


def second_order() -> Errors:
    register_head("pointwise")(pointwise)
    found = []
    for dtype in (torch.float32, torch.float64):
        net = RelaxedNet(small_chain(), ["pointwise", "linear"], CLASSES, SIZE)
        torch.manual_seed(2)
        nn.init.normal_(net.heads[0][0][0].weight)  # type: ignore
        use_channels_last(net.to(dtype))
        images, targets = batch()
        part = (images.to(dtype) if dtype == torch.float32 else images.to(dtype).contiguous(), targets)
        done = hypergradient(net, [part, part], part, lr=0.01, momentum=0.9, weight_decay=1e-3)
        found.append({"alpha": done.alpha, "beta": done.beta, **done.parameters})
    return apart(*found)  # type: ignore[arg-type]


def image_by_image() -> Errors:
    found = []
    for dtype in (torch.float32, torch.float64):
        net = small_chain().eval().to(dtype)
        images, targets = batch()

        def loss(weights: dict[str, Tensor], image: Tensor, target: Tensor, net: Chain = net) -> Tensor:
            return nn.functional.cross_entropy(functional_call(net, weights, image[None]), target[None])

        weights = {name: p.detach() for name, p in net.named_parameters()}
        found.append(vmap(grad(loss), (None, 0, 0))(weights, images.to(dtype), targets))
    return apart(*found)


WAYS: dict[str, Callable[[], Errors]] = {
    "a chain": a_chain,
    "laid out": laid_out,
    "blocks": blocks,
    "a head of one's own": a_head_of_ones_own,
    "a supernet": partial(a_supernet, extracted=False),
    "extracted": partial(a_supernet, extracted=True),
    "second order": second_order,
    "image by image": image_by_image,
}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_right_on_every_way(way: str) -> None:
    found = in_a_process(WAYS[way], 20, FORKS)
    assert isinstance(found, dict), f"the process {found}"
    assert found
    assert max(found.values()) < 1e-3, found


# ---- nothing else changes ------------------------------------------------------------------------------


def test_only_strided_pointwise_convolutions_are_guarded() -> None:
    plain = [nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 8, 1, stride=2, padding=1)]
    net = nn.Sequential(*plain, nn.Conv2d(8, 8, 1, stride=2))
    names = list(net.state_dict())
    guard_convolutions(net)
    assert [type(each) for each in net] == [nn.Conv2d] * 3 + [StridedPointwise]
    assert list(net.state_dict()) == names
    assert isinstance(copy.deepcopy(net)[3], StridedPointwise)


@pytest.mark.parametrize(
    "case",
    [replace(POINT, size=(57, 57)), replace(POINT, in_chs=16), replace(POINT, in_chs=16, groups=2)],
)
def test_what_torch_gets_right_stays_bit_equal(case: Case) -> None:
    assert not case.guarded
    conv = case.make()
    mended = copy.deepcopy(conv)
    guard_convolutions(mended)
    images = torch.randn(2, case.in_chs, *case.size).contiguous(memory_format=LAST).requires_grad_()
    found = []
    for each in (conv, mended):
        outputs = each(images)
        found.append([outputs, *torch.autograd.grad(outputs.pow(2).sum(), [images, each.weight])])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_is_exported_or_only_evaluated_is_torchs_own() -> None:
    conv = POINT.make().eval()
    images = torch.randn(2, 8, SIZE, SIZE).contiguous(memory_format=LAST)
    with torch.no_grad():
        expected = conv(images)
        guard_convolutions(conv)
        assert torch.equal(conv(images), expected)
        program = torch.export.export(conv, (images,))
    assert not [node for node in program.graph.nodes if "pool" in str(node.target)]


def test_picked_pixels_keep_layout_and_bits() -> None:
    """On a map so small that torch's own is right, too."""
    conv, images = nn.Conv2d(8, 16, 1, 2, bias=False), torch.randn(32, 8, 8, 8).contiguous(memory_format=LAST)
    mended = copy.deepcopy(conv)
    guard_convolutions(mended)
    found = []
    for each in (conv, mended):
        leaf = images.detach().requires_grad_()
        found.append(torch.autograd.grad(each(leaf).pow(2).sum(), [leaf, each.weight]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
