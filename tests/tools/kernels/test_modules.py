import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

import tools.kernels.depthwise
import tools.kernels.maps
import tools.kernels.mbconv
import tools.kernels.norm
from supernet.presets import preset
from supernet.space import Architecture
from supernet.supernet import Supernet
from tools.batchnorm import frozen_statistics
from tools.cost import saved_activation_bytes
from tools.kernels.dense import Dense, why_no_gain
from tools.kernels.depthwise import Depthwise
from tools.kernels.mbconv import MBConv
from tools.kernels.modules import use_kernels
from tools.kernels.norm import Norm, NormAct
from tools.layout import use_channels_last
from tools.second_order import FastSecondOrder

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _small_maps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools.kernels.maps, "SMALLEST", {"norm": 1, "convolution": 1})


def maps(images: int, chs: int, height: int, width: int) -> Tensor:
    source = torch.Generator().manual_seed(0)
    drawn = torch.randn(images, chs, height, width, generator=source) * 2 + 0.7
    return drawn.contiguous(memory_format=LAST)


def derivatives(module: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Return outputs and the gradients of inputs and parameters, along one direction in all types."""
    inputs = inputs.detach().requires_grad_()
    outputs = module(inputs)
    source = torch.Generator().manual_seed(1)
    along = torch.randn(outputs.shape, generator=source).to(inputs.dtype)
    found = torch.autograd.grad(outputs, [inputs, *module.parameters()], along)
    return [outputs.detach(), *found]


def assert_near(module: nn.Module, inputs: Tensor, tolerance: float = 2e-6) -> None:
    """Compare a module with itself in float64 and in torch's usual layout, where it is torch's own."""
    exact = derivatives(copy.deepcopy(module).double(), inputs.double().contiguous())
    for found, right in zip(derivatives(module, inputs), exact, strict=True):
        assert (found.double() - right).norm() <= tolerance * right.norm()


CONVOLUTIONS = [
    (side, stride, padding, chs, height, width)
    for (side, stride), padding, (chs, height, width) in itertools.product(
        ((2, 2), (3, 2), (4, 1), (5, 1), (5, 2), (7, 3)),
        (0, 1, 3),
        ((5, 9, 7), (83, 8, 11), (64, 7, 7)),
    )
]


@pytest.mark.parametrize(("side", "stride", "padding", "chs", "height", "width"), CONVOLUTIONS)
def test_gradients_of_a_depthwise_convolution(
    side: int, stride: int, padding: int, chs: int, height: int, width: int
) -> None:
    conv = nn.Conv2d(chs, chs, side, stride, padding, groups=chs, bias=False)
    use_kernels(conv)
    assert type(conv) is Depthwise
    assert_near(conv, maps(9, chs, height, width))


@pytest.mark.parametrize("act", [nn.Identity, nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize(("images", "chs", "side"), [(4, 3, 2), (5, 83, 6), (9, 64, 8)])
def test_gradients_of_batchnorm_with_an_activation(
    act: type[nn.Module], images: int, chs: int, side: int
) -> None:
    norm = BatchNormAct2d(chs, act_layer=act)
    nn.init.uniform_(norm.weight, -1.0, 2.0)
    nn.init.normal_(norm.bias)
    theirs = copy.deepcopy(norm)
    use_kernels(norm)
    inputs = maps(images, chs, side, side)
    assert_near(norm, inputs)
    norm(inputs), theirs(inputs), theirs(inputs)
    for ours, right in zip(norm.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(ours, right)


CHAINS = [
    (side, stride, padding, chs, height, width)
    for side, stride, (chs, height, width) in itertools.product(
        (3, 5, 7), (1, 2), ((5, 9, 7), (83, 8, 11), (32, 16, 16), (64, 7, 4))
    )
    for padding in {0, side // 2, side - 1}
    if side <= min(height, width) + 2 * padding
]


def mbconv(chs: int = 6, side: int = 3, stride: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    net = InvertedResidual(chs, chs, side, stride=stride, exp_ratio=4, act_layer=act)
    use_channels_last(net)
    for norm in (net.bn1, net.bn2, net.bn3):
        nn.init.uniform_(norm.weight, -1.0, 2.0)
        nn.init.normal_(norm.bias)
    return net


class Middle(nn.Sequential):
    """The part of a block from its first BatchNorm to its second, in one function."""

    def forward(self, features: Tensor) -> Tensor:
        if features.dtype == torch.float64:
            return super().forward(features)  # type: ignore[no-any-return,no-untyped-call]
        first, conv, second = self
        return tools.kernels.mbconv._convolved(first, conv, second, features)  # type: ignore[arg-type]


@pytest.mark.parametrize(("side", "stride", "padding", "chs", "height", "width"), CHAINS)
def test_gradients_from_one_batchnorm_to_the_next(
    side: int, stride: int, padding: int, chs: int, height: int, width: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(chs, chs, side, stride, padding, groups=chs, bias=False)
    norms = (BatchNormAct2d(chs, act_layer=nn.ReLU6), BatchNormAct2d(chs))
    middle = Middle(norms[0], conv, norms[1])
    for norm in norms:
        # A weight near zero makes the map nearly constant, which the second BatchNorm takes away again.
        nn.init.uniform_(norm.weight, 1.0, 2.0)
        nn.init.normal_(norm.bias)
    use_kernels(middle)
    assert_near(middle, maps(9, chs, height, width))


@pytest.mark.parametrize(("side", "stride", "act"), [(3, 1, nn.ReLU), (5, 2, nn.ReLU6), (7, 1, nn.ReLU)])
def test_a_block_of_timm_computes_what_it_did(side: int, stride: int, act: type[nn.Module]) -> None:
    block = mbconv(13, side, stride, act)
    theirs, inputs = copy.deepcopy(block), maps(9, 13, 12, 12)
    use_kernels(block)
    assert type(block) is MBConv
    assert_near(block, inputs, 1e-5)
    block(inputs), theirs(inputs), theirs(inputs)
    for ours, right in zip(block.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(ours, right)


def test_a_block_keeps_less_for_its_backward_pass() -> None:
    """Of four maps as wide as the expansion, the one between BatchNorm and convolution is not kept."""
    block, inputs = mbconv(16), maps(8, 16, 16, 16)
    before = saved_activation_bytes(lambda: block(inputs))
    use_kernels(block)
    assert before - saved_activation_bytes(lambda: block(inputs)) > 0.9 * 8 * 64 * 16 * 16 * 4


@pytest.mark.parametrize("name", ["bn1", "conv_dw", "bn2"])
def test_who_watches_the_inside_of_a_block_sees_it(name: str) -> None:
    seen: list[torch.Size] = []
    block = mbconv()
    use_kernels(block)
    block.get_submodule(name).register_forward_hook(lambda module, args, outputs: seen.append(outputs.shape))
    block(maps(4, 6, 8, 8))
    assert seen == [(4, 24, 8, 8)]


def block() -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 24, 5, padding=2, groups=24, bias=False)
    net = nn.Sequential(BatchNormAct2d(24), conv, BatchNormAct2d(24, act_layer=nn.ReLU6), nn.BatchNorm2d(24))
    use_channels_last(net)
    return net


@pytest.mark.parametrize("make", [block, lambda: Middle(*list(block())[:3])])
def test_threads_change_no_bit(make: Callable[[], nn.Module]) -> None:
    net = make()
    use_kernels(net)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(derivatives(net, maps(20, 24, 12, 12)))
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize("make", [block, lambda: mbconv(24)])
def test_second_derivatives_are_torchs(make: Callable[[], nn.Module]) -> None:
    """The gradient of the gradient's norm, with the kernels and in float64."""

    def second(net: nn.Module, inputs: Tensor) -> list[Tensor]:
        inputs = inputs.detach().requires_grad_()
        outputs = net(inputs)
        source = torch.Generator().manual_seed(1)
        loss = (outputs.square() * torch.randn(outputs.shape, generator=source).to(inputs.dtype)).mean()
        first = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        total = torch.stack([gradient.square().sum() for gradient in first]).sum()
        return list(torch.autograd.grad(total, [inputs, *net.parameters()]))

    net, inputs = make(), maps(6, 24, 8, 8)
    exact = second(copy.deepcopy(net).double(), inputs.double().contiguous())
    use_kernels(net)
    for found, right in zip(second(net, inputs), exact, strict=True):
        assert (found.double() - right).norm() <= 1e-3 * right.norm()  # torch itself is off by half of that


def _in_second_order(net: nn.Module, inputs: Tensor) -> Tensor:
    with FastSecondOrder():
        return net(inputs)  # type: ignore[no-any-return]


def _in_bfloat16(net: nn.Module, inputs: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net(inputs)  # type: ignore[no-any-return]


def _for_each_image(net: nn.Module, inputs: Tensor) -> Tensor:
    parts = inputs.view(2, -1, *inputs.shape[1:])
    with frozen_statistics(net):
        return torch.func.vmap(lambda part: torch.func.functional_call(net, {}, part))(parts)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "way",
    [
        _in_second_order,
        _in_bfloat16,
        _for_each_image,
        lambda net, inputs: net(inputs.double()),
        lambda net, inputs: next(net.children())(inputs.contiguous()),
        lambda net, inputs: net.eval()(inputs),
    ],
)
@pytest.mark.parametrize("make", [block, lambda: mbconv(24)])
def test_whatever_the_kernels_do_not_know_is_left_to_torch(
    make: Callable[[], nn.Module],
    way: Callable[[nn.Module, Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, inputs = make(), maps(6, 24, 8, 8)
    theirs = copy.deepcopy(net)
    use_kernels(net)

    def refuse() -> None:
        raise AssertionError("a kernel was called")

    for user in (tools.kernels.depthwise, tools.kernels.norm, tools.kernels.mbconv):
        monkeypatch.setattr(user, "library", refuse)
    if way.__name__ == "<lambda>" and "double" in way.__code__.co_names:
        net.double(), theirs.double()
    assert torch.equal(way(net, inputs), way(theirs, inputs))


def test_a_supernet_learns_as_with_torchs_own_functions() -> None:
    """After 100 steps the losses differ by less than two trainings that differ in rounding alone."""
    torch.manual_seed(0)
    first = Supernet(preset("tiny", num_classes=4, image_size=16))
    use_channels_last(first)
    images = maps(64, 3, 16, 16)
    labels = torch.arange(64) % 4

    def losses(net: Supernet) -> Tensor:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        found = []
        for step in range(100):
            path = Architecture(tuple(step % len(layer) for layer in net.space.layers))
            loss = nn.functional.cross_entropy(net(images, path), labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            found.append(loss.detach())
        return torch.stack(found)

    fast = copy.deepcopy(first)
    use_kernels(fast)
    assert any(type(module) is NormAct for module in fast.modules())
    assert fast.state_dict().keys() == first.state_dict().keys()
    ours, theirs = losses(fast), losses(first)
    torch.testing.assert_close(ours[:10], theirs[:10], rtol=1e-4, atol=1e-5)
    assert float((ours - theirs).abs().mean()) < 0.02
    assert float(ours[-10:].mean()) < 0.6 * math.log(4)


def test_names_and_copies_stay() -> None:
    net = block()
    names = list(net.state_dict())
    use_kernels(net)
    again = copy.deepcopy(net)
    assert list(again.state_dict()) == names
    assert [type(module) for module in again.children()] == [NormAct, Depthwise, NormAct, Norm]
    assert [type(module) for module in block().children()] == [
        BatchNormAct2d,
        nn.Conv2d,
        BatchNormAct2d,
        nn.BatchNorm2d,
    ]


# ---- a training ----------------------------------------------------------------------------------------


def test_a_hundred_steps_end_as_near_to_float64_as_with_torchs_own() -> None:
    """Rounding grows from step to step, whoever rounds; so torch's own error is the measure."""
    space = preset("tiny", num_classes=10, image_size=16)
    torch.manual_seed(0)
    begin = Supernet(space).extract(Architecture((1,) * len(space.layers)))
    use_channels_last(begin)
    images, labels = maps(8 * 16, 3, 16, 16), torch.arange(8 * 16) % 10

    def trained(dtype: torch.dtype, *, native: bool) -> tuple[nn.Module, Tensor]:
        net = copy.deepcopy(begin).to(dtype).train()
        if native:
            use_kernels(net)
            assert any(isinstance(part, MBConv) for part in net.modules())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
        losses = []
        for step in range(100):
            rows = slice(step % 8 * 16, step % 8 * 16 + 16)
            loss = nn.functional.cross_entropy(net(images[rows].to(dtype)), labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.detach().double())
        return net, torch.stack(losses)

    exact, right = trained(torch.float64, native=False)
    apart, wrong = [], []
    for native in (False, True):
        net, losses = trained(torch.float32, native=native)
        pairs = zip(net.parameters(), exact.parameters(), strict=True)
        squares = [
            ((one.double() - two).detach().square().sum(), two.detach().square().sum()) for one, two in pairs
        ]
        apart.append(float((sum(s for s, _ in squares) / sum(s for _, s in squares)) ** 0.5))
        wrong.append(float((losses - right).abs().max()))
    assert apart[1] <= max(2 * apart[0], 1e-4)
    assert wrong[1] <= max(2 * wrong[0], 1e-4)
    assert wrong[1] < 1e-3


# ---- bf16 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "stride", "padding"), [(1, 1, 0), (3, 2, 1)])
def test_a_dense_convolution_multiplies_in_bf16(side: int, stride: int, padding: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 48, side, stride, padding)
    theirs = copy.deepcopy(conv)
    use_kernels(conv, "bf16")
    assert type(conv) is Dense
    inputs = maps(5, 24, 9, 7)
    rounded = copy.deepcopy(theirs).double()
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().double()
    exact = derivatives(rounded, inputs.bfloat16().double())
    for found, right in zip(derivatives(conv, inputs), exact, strict=True):
        assert found.dtype == torch.float32
        assert 0 < (found.double() - right).norm() <= 0.005 * right.norm()
    with torch.no_grad():
        assert torch.equal(conv(inputs), theirs(inputs))


def test_pixels_and_groups_stay_in_fp32() -> None:
    for conv in (nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3, groups=2)):
        use_kernels(conv, "bf16")
        assert type(conv) is nn.Conv2d


def test_torch_is_left_alone() -> None:
    net = block()
    use_kernels(net, "torch")
    assert [type(module) for module in net.children()] == [type(module) for module in block().children()]


def test_training_with_bf16_stays_near_that_without() -> None:
    torch.manual_seed(0)
    first = Supernet(preset("tiny", num_classes=4, image_size=16)).extract(Architecture((1, 1, 1, 1)))
    use_channels_last(first)
    images, labels = maps(64, 3, 16, 16), torch.arange(64) % 4
    losses = []
    for kind in ("native", "bf16"):
        net = copy.deepcopy(first).train()
        use_kernels(net, kind)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
        for _ in range(20):
            loss = nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        losses.append(float(loss.detach()))
    native, bf16 = losses
    assert native < 0.9 * math.log(4)
    assert bf16 == pytest.approx(native, abs=0.05)
    assert bf16 != native


@pytest.mark.parametrize(
    ("device", "has", "said"),
    [
        ("cuda", {}, "--precision bf16"),
        ("cpu", {"avx2": True, "avx512_bf16": False}, "native"),
        ("cpu", {"amx_bf16": True}, ""),
    ],
)
def test_where_bf16_gains_nothing_a_run_says_so(
    device: str, has: dict[str, bool], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    notes = " ".join(why_no_gain(device))
    assert said in notes
    assert bool(notes) == bool(said)
