import contextlib
import logging
import warnings
from collections.abc import Iterator

import pytest
import timm
import torch
from timm.layers.config import set_fused_attn
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tools.cost import count_macs, count_params, count_units, saved_activation_bytes


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


# ---- parameters and multiply-accumulates ---------------------------------------------------------------


def test_a_small_network_by_hand() -> None:
    # 16x16 outputs of 3*9 products in 8 channels; 8x8 outputs of 2*9 in 8 channels; 8 x 5.
    assert count_macs(small_net(), (3, 16, 16)) == 16 * 16 * 8 * 27 + 8 * 8 * 8 * 18 + 40
    assert count_params(small_net()) == 8 * 27 + 16 + 8 * 18 + 8 + 45
    assert count_units(small_net(), (3, 16, 16)) == 16 * 16 * 8


def test_every_activation_counts_and_no_gate_does() -> None:
    kinds = (
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.ELU,
        nn.CELU,
        nn.SELU,
        nn.SiLU,
        nn.GELU,
        nn.Hardswish,
        nn.Mish,
    )
    for kind in (*kinds, nn.PReLU):
        assert count_units(kind(), (4, 5, 5)) == 100, kind
    for gate in (nn.Sigmoid, nn.Hardsigmoid, nn.Identity):
        assert count_units(gate(), (4, 5, 5)) == 0, gate
    assert count_units(nn.Sequential(nn.ReLU(inplace=True), nn.SiLU(inplace=True)), (7,)) == 14


def test_shared_parameters_count_once_and_their_products_twice() -> None:
    layer = nn.Linear(6, 6)
    net = nn.Sequential(layer, layer)
    assert count_params(net) == 42
    assert count_macs(net, (6,)) == 72


def test_four_numbers_are_a_shape_with_its_batch() -> None:
    assert count_macs(small_net(), (4, 3, 16, 16)) == 4 * count_macs(small_net(), (3, 16, 16))


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenetv3_small_050", "efficientnet_b0", "regnety_002", "densenet121", "ghostnet_050"],
)
def test_counts_agree_with_fvcore_and_with_torch(name: str) -> None:
    net = timm.create_model(name).eval()
    images = torch.zeros(1, 3, 64, 64)
    assert count_macs(net, (3, 64, 64)) == fvcore_macs(net, images) == torch_flops(net, images) / 2
    assert count_params(net) == sum(p.numel() for p in net.parameters())


def test_fused_attention_costs_what_its_products_cost() -> None:
    images = torch.zeros(1, 3, 64, 64)
    counts = []
    for fused in (True, False):
        set_fused_attn(fused)
        try:
            net = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
        finally:
            set_fused_attn(True)
        counts.append(count_macs(net, (3, 64, 64)))
    assert counts[0] == counts[1] == fvcore_macs(net, images) == torch_flops(net, images) / 2


def test_torchs_own_attention_is_not_hidden_by_its_fast_path() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            result: tuple[Tensor, None] = self.attention(tokens, tokens, tokens, need_weights=False)
            return result[0]

    assert count_macs(Attention(), (6, 8)) == 6 * 8 * 24 + 2 * 6 * 6 * 8 + 6 * 8 * 8
    assert torch.backends.mha.get_fastpath_enabled()


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.fft(x).real
        return spectrum


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.cleave_tests.product(x)
        return product


@torch.library.custom_op("cleave_tests::product", mutates_args=())
def product(x: Tensor) -> Tensor:
    return x @ x.mT


@pytest.mark.parametrize(
    ("net", "op"),
    [
        (Spectrum(), "_fft"),
        (Custom(), "cleave_tests.product"),
        (nn.Bilinear(4, 4, 4), "_trilinear"),
        (nn.LSTM(4, 4), "rnn|lstm"),
    ],
)
def test_an_operator_without_a_formula_is_an_error(net: nn.Module, op: str) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = net(x, x) if isinstance(net, nn.Bilinear) else net(x)
            return result

    with pytest.raises(ValueError, match=f"cannot count .*({op})"):
        count_macs(Twice(), (4, 4))


def test_counting_changes_nothing() -> None:
    net = small_net().train()
    net[1].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    count_macs(nn.Sequential(net, nn.Dropout()), (3, 16, 16))
    assert [module.training for module in net] == [True, False, True, True, True, True, True]
    assert net.training
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_counting_leaves_the_modes_when_it_fails() -> None:
    net = nn.Sequential(Spectrum(), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="_fft"):
        count_macs(net, (3,))
    assert net.training
    assert net[1].training


def test_half_and_double_precision_count_alike() -> None:
    assert count_macs(small_net().double(), (3, 16, 16)) == count_macs(small_net(), (3, 16, 16))


# ---- saved activations ---------------------------------------------------------------------------------


def test_saved_bytes_of_a_small_network_by_hand() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs = torch.randn(5, 3)
    # The inputs of the first linear layer; the ReLU's output, which the second shares. No weights.
    assert saved_activation_bytes(lambda: net(inputs).sum().backward()) == 4 * (5 * 3 + 5 * 4)


def test_saved_bytes_of_a_convolution_with_batchnorm_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    inputs = torch.randn(2, 3, 6, 6)
    numbers = 2 * 3 * 36  # the convolution's inputs
    numbers += 2 * 8 * 36 + 4 * 8  # BatchNorm's: running statistics (held, if unused) and the batch's
    numbers += 2 * 8 * 36  # the ReLU's output
    assert saved_activation_bytes(lambda: net(inputs).sum().backward()) == 4 * numbers


def test_blocks_one_after_the_other_cost_the_largest_not_the_sum() -> None:
    small, large = nn.Linear(10, 10), nn.Sequential(nn.Linear(10, 50), nn.Tanh(), nn.Linear(50, 10))
    inputs = torch.randn(8, 10)

    def alone(net: nn.Module) -> int:
        return saved_activation_bytes(lambda: net(inputs).sum().backward())

    def in_turn() -> None:
        small(inputs).sum().backward()
        large(inputs).sum().backward()
        small(inputs).sum().backward()

    def together() -> None:
        middle = small(inputs)
        (middle.sum() + large(middle.detach()).sum()).backward()

    assert saved_activation_bytes(in_turn) == max(alone(small), alone(large)) == alone(large)
    assert saved_activation_bytes(together) > alone(large)


def test_what_a_view_keeps_alive_counts_in_full_and_once() -> None:
    weight = torch.randn(1, requires_grad=True)
    data = torch.randn(100)
    # Both products save a part of the same storage.
    assert saved_activation_bytes(lambda: (weight * data[:3]).sum() + (weight * data[5:9]).sum()) == 400


def test_nothing_is_saved_without_gradients() -> None:
    net = small_net()
    with torch.no_grad():
        assert saved_activation_bytes(lambda: net(torch.randn(2, 3, 8, 8))) == 0


def test_the_graph_still_gives_its_gradients() -> None:
    net = small_net()
    inputs = torch.randn(4, 3, 8, 8)
    net(inputs).square().sum().backward()
    expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    saved_activation_bytes(lambda: net(inputs).square().sum().backward())
    got = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


# ---- the two other counters ----------------------------------------------------------------------------


@contextlib.contextmanager
def fvcores_noise() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch.jit.trace's remarks on shapes that become constants, and its deprecation
        warnings.filterwarnings("ignore", message="Converting a tensor to a Python")
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        yield


def fvcore_macs(net: nn.Module, images: Tensor) -> int:
    with fvcores_noise():
        from fvcore.nn import FlopCountAnalysis

        logging.getLogger("fvcore").setLevel(logging.ERROR)
        analysis = FlopCountAnalysis(net, images)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = analysis.by_operator()
    return int(sum(by_operator[op] for op in ("conv", "linear", "matmul", "addmm", "bmm", "einsum")))


def torch_flops(net: nn.Module, images: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(images)
    return int(counter.get_total_flops())


def test_frozen_parameters_are_no_activations_and_leaves_only_where_asked() -> None:
    layer = nn.Linear(8, 4)
    inputs = torch.randn(2, 8, requires_grad=True)
    layer.weight.requires_grad_(False)
    assert saved_activation_bytes(lambda: layer(inputs).sum()) == 0
    layer.weight.requires_grad_(True)
    assert saved_activation_bytes(lambda: layer(inputs).sum()) == 0
    assert saved_activation_bytes(lambda: layer(inputs).sum(), leaves=True) == inputs.nbytes
    assert saved_activation_bytes(lambda: layer(inputs.detach()).sum()) == inputs.nbytes
