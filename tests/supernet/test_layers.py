import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual

from supernet.layers import (
    ACTIVATIONS,
    Conv,
    DepthwiseSeparable,
    FusedMBConv,
    MBConv,
    Op,
    Place,
    Projection,
    Shuffle,
    ShuffleBlock,
    Skip,
    Style,
    parse_op,
)
from tools.cost import count_macs, count_params

KERNELS = st.sampled_from([1, 3, 5, 7, 11])
EXPS = st.floats(0.25, 16).map(lambda exp: round(exp, 9))
RATIOS = st.just(0.0) | st.floats(0.01, 1).map(lambda ratio: round(ratio, 9))
ACTS = st.sampled_from(["", *ACTIVATIONS])
OPS: st.SearchStrategy[Op] = st.one_of(
    st.just(Skip()),
    st.just(Projection()),
    st.builds(Conv, KERNELS, ACTS),
    st.builds(DepthwiseSeparable, KERNELS, RATIOS, ACTS),
    st.builds(MBConv, KERNELS, EXPS, RATIOS, ACTS),
    st.builds(FusedMBConv, KERNELS, EXPS, RATIOS, ACTS),
    st.builds(Shuffle, KERNELS, st.booleans(), ACTS),
)


# ---- names ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(OPS)
def test_an_operation_is_what_its_name_says(op: Op) -> None:
    assert parse_op(str(op)) == op


@pytest.mark.parametrize(
    ("text", "op", "short"),
    [
        ("skip", Skip(), "skip"),
        ("proj", Projection(), "proj"),
        ("conv", Conv(3), "conv_k3"),
        ("ds_se0.25_k5", DepthwiseSeparable(5, 0.25), "ds_k5_se0.25"),
        ("mbconv", MBConv(3, 6.0), "mbconv_k3_e6"),
        ("mbconv_e4.0", MBConv(3, 4), "mbconv_k3_e4"),
        ("mbconv_k3_e4_se0_hard_swish", MBConv(3, 4, 0, "hard_swish"), "mbconv_k3_e4_hard_swish"),
        ("fused_k5_e2.5_relu6", FusedMBConv(5, 2.5, act="relu6"), "fused_k5_e2.5_relu6"),
        ("shuffle_k7", Shuffle(7), "shuffle_k7"),
        ("shufflex", Shuffle(3, xception=True), "shufflex_k3"),
    ],
)
def test_names_may_leave_out_what_is_usual(text: str, op: Op, short: str) -> None:
    assert parse_op(text) == op
    assert str(op) == short


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "unknown"),
        ("mbcov_k3", "did you mean 'mbconv'"),
        ("mbconv_k4", "odd"),
        ("mbconv_k0", "odd"),
        ("mbconv_k3.5", "k must be a whole number"),
        ("mbconv_k3_k5", "k is given twice"),
        ("mbconv_k3_e0_se0.25", "e must be over 0"),
        ("mbconv_e-4", "'e-4' is neither a number"),
        ("mbconv_k3_rellu", "'rellu' is neither a number"),
        ("mbconv_relu_k3", "'relu_k3' is neither a number"),
        ("conv_k3_e6", "conv does not have all of these numbers"),
        ("skip_k3", "skip does not have all of these numbers"),
        ("proj_relu", "proj does not have all of these numbers"),
        ("shuffle_se0.25", "shuffle does not have all of these numbers"),
    ],
)
def test_a_wrong_name_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        parse_op(text)
    assert f"operation '{text}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"act": "rellu"}, {"se_from": "output"}, {"se_act": "none"}, {"se_gate": "tanh"}]
)
def test_a_style_names_what_it_does_not_know(wrong: dict[str, Any]) -> None:
    (key,) = wrong
    with pytest.raises(ValueError, match=rf"^style\.{key}: unknown value '{wrong[key]}'"):
        Style(**wrong)


def test_a_style_rounds_to_multiples_from_one() -> None:
    with pytest.raises(ValueError, match=r"^style\.se_divisor: 0 is out of range"):
        Style(se_divisor=0)


# ---- the modules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("place", [Place(8, 16, 2), Place(8, 8, 1)])
@pytest.mark.parametrize(
    "name", ["conv", "conv_k1", "ds_k5_se0.25", "mbconv_k7", "fused_k5_e2", "proj", "shuffle_k5", "shufflex"]
)
def test_maps_shrink_by_the_stride_rounded_up(name: str, place: Place, size: int) -> None:
    side = -(-size // place.stride)
    assert parse_op(name).build(place, Style())(torch.randn(2, 8, size, size)).shape == (
        2,
        place.out_chs,
        side,
        side,
    )


@pytest.mark.parametrize("place", [Place(8, 8, 2), Place(8, 16, 1)])
def test_skip_stands_only_where_the_shape_is_kept(place: Place) -> None:
    with pytest.raises(ValueError, match="skip cannot stand"):
        Skip().build(place, Style())
    images = torch.randn(1, 8, 4, 4)
    assert Skip().build(Place(8, 8, 1), Style())(images) is images


@pytest.mark.parametrize("style", [Style(act="silu"), Style(act="relu", se_from="expanded", se_divisor=8)])
@pytest.mark.parametrize("place", [Place(8, 8, 1), Place(8, 16, 1), Place(8, 8, 2)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_mbconv_is_the_reference_formula(kernel: int, place: Place, style: Style) -> None:
    torch.manual_seed(0)
    block = scrambled(MBConv(kernel, 6, 0.25).build(place, style))
    inputs = torch.randn(3, 8, 9, 9, dtype=torch.float64)
    squeezed = 2 if style.se_from == "input" else 16  # a quarter of 8, of 48 rounded to a multiple of 8
    weights = iter(block.state_dict().values())

    def convolved(features: Tensor, out_chs: int, side: int, stride: int = 1, groups: int = 1) -> Tensor:
        weight, *norm = (next(weights) for _ in range(6))
        assert weight.shape == (out_chs, features.shape[1] // groups, side, side)
        features = F.conv2d(features, weight, stride=stride, padding=side // 2, groups=groups)
        scale, shift, mean, var, _ = (each[:, None, None] if each.ndim else each for each in norm)
        normed: Tensor = (features - mean) / (var + 1e-5).sqrt() * scale + shift
        return normed

    act = F.silu if style.act == "silu" else F.relu
    middle = act(convolved(inputs, 48, 1))
    middle = act(convolved(middle, 48, kernel, place.stride, 48))
    reduce, reduce_bias, expand, expand_bias = (next(weights) for _ in range(4))
    assert reduce.shape == (squeezed, 48, 1, 1)
    summary = middle.mean((2, 3)) @ reduce.flatten(1).T + reduce_bias
    gate = torch.sigmoid(act(summary) @ expand.flatten(1).T + expand_bias)
    output = convolved(middle * gate[:, :, None, None], place.out_chs, 1)
    output = output + inputs if place.keeps_shape else output
    assert next(weights, None) is None
    torch.testing.assert_close(block(inputs), output, rtol=1e-12, atol=1e-12)


def test_a_projection_has_no_activation() -> None:
    torch.manual_seed(0)
    block = scrambled(Projection().build(Place(4, 6, 2), Style()))
    inputs = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    weight, scale, shift, mean, var, _ = block.state_dict().values()
    mixed = torch.einsum("nchw,oc->nohw", inputs[:, :, ::2, ::2], weight[:, :, 0, 0])
    mean, var, scale, shift = (each[:, None, None] for each in (mean, var, scale, shift))
    output = (mixed - mean) / (var + 1e-5).sqrt() * scale + shift
    torch.testing.assert_close(block(inputs), output, rtol=1e-12, atol=1e-12)
    assert (output < 0).any()


@pytest.mark.parametrize("kind", ["conv", "ds", "mbconv", "fused", "shuffle", "shufflex"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_a_named_activation_stands_before_that_of_the_space(kind: str, act: str) -> None:
    torch.manual_seed(0)
    other = Style(act="gelu" if act != "gelu" else "relu")
    place = Place(8, 8, 1)
    named = parse_op(f"{kind}_{act}").build(place, other).eval()
    by_style = parse_op(kind).build(place, Style(act=act)).eval()
    unlike = parse_op(kind).build(place, other).eval()
    by_style.load_state_dict(named.state_dict())
    unlike.load_state_dict(named.state_dict())
    images = 5 * torch.randn(2, 8, 6, 6)
    assert torch.equal(named(images), by_style(images))
    assert not torch.equal(named(images), unlike(images))


@pytest.mark.parametrize("kind", ["mbconv_k3_e6", "fused_k3_e6"])
def test_squeeze_and_excitation_follows_the_style(kind: str) -> None:
    place = Place(8, 8, 1)

    values = torch.linspace(-5, 5, 101, dtype=torch.float64)

    def parts(style: Style) -> tuple[int, Tensor, Tensor]:
        se: Any = parse_op(f"{kind}_se0.25").build(place, style).get_submodule("se")
        return se.conv_reduce.out_channels, se.act1(values.clone()), se.gate(values.clone())

    width, act, gate = parts(Style(act="silu"))
    assert width == 2
    assert torch.equal(act, F.silu(values))
    torch.testing.assert_close(gate, 1 / (1 + (-values).exp()), rtol=1e-12, atol=1e-12)
    assert parts(Style(act="silu", se_from="expanded"))[0] == 12
    width, act, gate = parts(
        Style(act="silu", se_from="expanded", se_act="relu", se_gate="hard_sigmoid", se_divisor=8)
    )
    assert width == 16
    assert torch.equal(act, values.clamp(0))
    torch.testing.assert_close(gate, (values / 6 + 0.5).clamp(0, 1), rtol=1e-12, atol=1e-12)
    assert isinstance(parse_op(kind).build(place, Style()).get_submodule("se"), nn.Identity)
    narrowest: Any = parse_op(f"{kind}_se0.01").build(place, Style()).get_submodule("se")
    assert narrowest.conv_reduce.out_channels == 1


def scrambled(block: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with other statistics than 0 and 1."""
    for buffer in [*block.buffers(), *block.parameters()]:
        if buffer.ndim == 1:
            buffer.data = torch.rand_like(buffer) + 0.5
    return block.double().eval()


# ---- ShuffleNet's block --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [Place(16, 16, 1), Place(8, 16, 2)])
def test_the_shuffle_block_is_torchvisions_where_that_has_it(place: Place) -> None:
    torch.manual_seed(0)
    ours = ShuffleBlock(place, 3, xception=False, act="relu")
    theirs = InvertedResidual(place.in_chs, place.out_chs, place.stride)
    assert count_params(ours) == count_params(theirs)
    assert count_macs(ours, (place.in_chs, 9, 9)) == count_macs(theirs, (place.in_chs, 9, 9))
    for block in (ours, theirs):
        scrambled(block)
    copied = [*ours.by.state_dict().values(), *ours.branch.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), copied, strict=True)))
    images = torch.randn(2, place.in_chs, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", [Place(16, 16, 1), Place(8, 16, 2), Place(6, 16, 2), Place(4, 10, 2)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("xception", [False, True])
def test_the_shuffle_block_costs_what_its_formula_says(xception: bool, kernel: int, place: Place) -> None:
    block = ShuffleBlock(place, kernel, xception, "relu")
    half, area, small = place.out_chs // 2, 64, 64 // place.stride**2
    given_, made = (half, half) if place.stride == 1 else (place.in_chs, place.out_chs - place.in_chs)
    depthwise = kernel * kernel
    # (outputs' area, weights of the convolution, channels of the BatchNorm behind it)
    parts = [(small, depthwise * given_, given_), (small, given_**2, given_)] if place.stride == 2 else []
    if xception:
        parts += [(small, depthwise * given_, given_), (small, given_ * half, half)]
        parts += [(small, depthwise * half, half), (small, half * half, half)]
        parts += [(small, depthwise * half, half), (small, half * made, made)]
    else:
        parts += [(area, given_ * half, half), (small, depthwise * half, half), (small, half * made, made)]
    assert count_macs(block, (place.in_chs, 8, 8)) == sum(side * weights for side, weights, _ in parts)
    assert count_params(block) == sum(weights + 2 * chs for _, weights, chs in parts)
    assert block(torch.randn(2, place.in_chs, 8, 8)).shape == (
        2,
        place.out_chs,
        8 // place.stride,
        8 // place.stride,
    )


def test_the_passing_half_is_every_second_channel() -> None:
    images = torch.randn(2, 8, 4, 4)
    assert torch.equal(ShuffleBlock(Place(8, 8, 1), 3, False, "relu")(images)[:, ::2], images[:, :4])


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (Place(8, 16, 1), "cannot change the number of channels with stride 1"),
        (Place(7, 7, 1), "even number"),
        (Place(8, 15, 2), "even number"),
        (Place(8, 8, 2), "more than come in"),
        (Place(8, 4, 2), "more than come in"),
    ],
)
def test_a_shuffle_block_that_cannot_be_is_refused(place: Place, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Shuffle().build(place, Style())
