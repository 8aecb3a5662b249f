"""Candidate operations have names, and become modules at their places in a network.

An operation is written as words joined by "_": its kind and then its numbers, such as mbconv_k5_e6_se0.25
or mbconv_k3_e4_hard_swish. The blocks are timm's, except ShuffleNet's, which timm does not have.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from timm.layers.helpers import make_divisible
from timm.models._efficientnet_blocks import (
    ConvBnAct,
    DepthwiseSeparableConv,
    EdgeResidual,
    InvertedResidual,
    SqueezeExcite,
)
from torch import Tensor, nn

from tools.mistake import Mistake
from tools.options.catalogue import Catalogue, Row
from tools.options.config import check_choice, check_range

ACTIVATIONS = ("relu", "relu6", "silu", "swish", "gelu", "hard_swish", "leaky_relu")


@dataclass(frozen=True, kw_only=True)
class Style:
    """A style is what all blocks of a space have in common."""

    act: str = "relu"
    """The activation of blocks that name none."""
    se_from: str = "input"
    """Whether squeeze-and-excitation keeps a part of the block's input channels (input) or of the expanded
    ones (expanded)."""
    se_act: str = ""
    """The activation inside squeeze-and-excitation; if empty, it is the block's."""
    se_gate: str = "sigmoid"
    """The gate of squeeze-and-excitation: sigmoid or hard_sigmoid."""
    se_divisor: int = 1
    """The inner channels of squeeze-and-excitation are rounded to a multiple of this number."""

    def __post_init__(self) -> None:
        check_choice("style.act", self.act, ACTIVATIONS)
        check_choice("style.se_from", self.se_from, ("input", "expanded"))
        check_choice("style.se_act", self.se_act, ("", *ACTIVATIONS))
        check_choice("style.se_gate", self.se_gate, ("sigmoid", "hard_sigmoid"))
        check_range("style.se_divisor", self.se_divisor, 1)


@dataclass(frozen=True)
class Place:
    """A place is where in a network an operation stands."""

    in_chs: int
    """The channels that come in."""
    out_chs: int
    """The channels that go out."""
    stride: int
    """The stride of the operation here."""

    @property
    def keeps_shape(self) -> bool:
        """Whether what goes in and what comes out have the same shape."""
        return self.stride == 1 and self.in_chs == self.out_chs


class Op(Protocol):
    """An operation is a candidate for a layer. One of your own needs `build` and a `str` that names it."""

    def build(self, place: Place, style: Style) -> nn.Module:
        """Build the module for a place, with weights from torch's global generator."""


@dataclass(frozen=True)
class Skip:
    """This operation passes its input on, without weights or cost, at places that keep the shape."""

    def build(self, place: Place, style: Style) -> nn.Module:
        if not place.keeps_shape:
            raise ValueError("skip cannot stand where the stride or the number of channels changes")
        return nn.Identity()

    def __str__(self) -> str:
        return "skip"


@dataclass(frozen=True)
class Projection:
    """This operation takes the place of skip where the shape changes.

    It is a 1x1 convolution with BatchNorm and no activation.
    """

    def build(self, place: Place, style: Style) -> nn.Module:
        conv = nn.Conv2d(place.in_chs, place.out_chs, 1, stride=place.stride, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(place.out_chs))

    def __str__(self) -> str:
        return "proj"


@dataclass(frozen=True)
class Conv:
    """This operation is a convolution with BatchNorm and activation."""

    kernel: int = 3
    """The side of the kernel."""
    act: str = ""
    """The activation; if empty, it is the style's."""

    def build(self, place: Place, style: Style) -> nn.Module:
        return ConvBnAct(
            place.in_chs, place.out_chs, self.kernel, stride=place.stride, act_layer=self.act or style.act
        )

    def __str__(self) -> str:
        return _written("conv", k=self.kernel, act=self.act)


@dataclass(frozen=True)
class DepthwiseSeparable:
    """This operation is a depthwise and a 1x1 convolution, the latter without activation."""

    kernel: int = 3
    """The side of the depthwise kernel."""
    se: float = 0.0
    """The part of the channels that squeeze-and-excitation keeps; 0 leaves it out."""
    act: str = ""
    """The activation; if empty, it is the style's."""

    def build(self, place: Place, style: Style) -> nn.Module:
        return DepthwiseSeparableConv(
            place.in_chs,
            place.out_chs,
            self.kernel,
            stride=place.stride,
            act_layer=self.act or style.act,
            se_layer=_squeeze_excite(self.se, 1.0, style),
        )

    def __str__(self) -> str:
        return _written("ds", k=self.kernel, se=self.se, act=self.act)


@dataclass(frozen=True)
class MBConv:
    """This is the inverted residual of MobileNetV2, with squeeze-and-excitation where `se` is above 0."""

    kernel: int = 3
    """The side of the depthwise kernel."""
    exp: float = 6.0
    """The factor by which the block expands its channels."""
    se: float = 0.0
    """The part of the channels that squeeze-and-excitation keeps; 0 leaves it out."""
    act: str = ""
    """The activation; if empty, it is the style's."""

    def build(self, place: Place, style: Style) -> nn.Module:
        return InvertedResidual(
            place.in_chs,
            place.out_chs,
            self.kernel,
            stride=place.stride,
            exp_ratio=self.exp,
            act_layer=self.act or style.act,
            se_layer=_squeeze_excite(self.se, self.exp, style),
        )

    def __str__(self) -> str:
        return _written("mbconv", k=self.kernel, e=self.exp, se=self.se, act=self.act)


@dataclass(frozen=True)
class FusedMBConv:
    """This is MBConv with one dense convolution in place of the first two."""

    kernel: int = 3
    """The side of the dense kernel."""
    exp: float = 4.0
    """The factor by which the block expands its channels."""
    se: float = 0.0
    """The part of the channels that squeeze-and-excitation keeps; 0 leaves it out."""
    act: str = ""
    """The activation; if empty, it is the style's."""

    def build(self, place: Place, style: Style) -> nn.Module:
        return EdgeResidual(
            place.in_chs,
            place.out_chs,
            self.kernel,
            stride=place.stride,
            exp_ratio=self.exp,
            act_layer=self.act or style.act,
            se_layer=_squeeze_excite(self.se, self.exp, style),
        )

    def __str__(self) -> str:
        return _written("fused", k=self.kernel, e=self.exp, se=self.se, act=self.act)


@dataclass(frozen=True)
class Shuffle:
    """This is the block of ShuffleNetV2 with a kernel to choose, as in the space of Single Path One-Shot.

    With `xception` it has three depthwise convolutions.
    """

    kernel: int = 3
    """The side of the depthwise kernels."""
    xception: bool = False
    """Whether there are three depthwise convolutions."""
    act: str = ""
    """The activation; if empty, it is the style's."""

    def build(self, place: Place, style: Style) -> nn.Module:
        return ShuffleBlock(place, self.kernel, self.xception, self.act or style.act)

    def __str__(self) -> str:
        word = "x" if self.xception else ""
        return _written(f"shuffle{word}", k=self.kernel, act=self.act)


class ShuffleBlock(nn.Module):
    """In this block half of the channels pass by, and the others go through the branch.

    Then the channels are shuffled. With stride 2 both halves are made from all channels.
    """

    def __init__(self, place: Place, kernel: int, xception: bool, act: str) -> None:
        super().__init__()
        if place.stride == 1 and place.in_chs != place.out_chs:
            raise ValueError("shuffle cannot change the number of channels with stride 1")
        if place.out_chs % 2 or (place.stride == 2 and place.out_chs <= place.in_chs):
            raise ValueError("shuffle needs an even number of channels, with stride 2 more than come in")
        half = place.out_chs // 2
        in_chs = half if place.stride == 1 else place.in_chs
        out_chs = half if place.stride == 1 else place.out_chs - place.in_chs
        self.splits = place.stride == 1
        depthwise = functools.partial(_depthwise, kernel)
        conv = functools.partial(ConvBnAct, kernel_size=1, act_layer=act)
        parts: list[nn.Module]
        if xception:
            parts = [depthwise(in_chs, place.stride), conv(in_chs, half)]
            parts += [depthwise(half), conv(half, half), depthwise(half), conv(half, out_chs)]
        else:
            parts = [conv(in_chs, half), depthwise(half, place.stride), conv(half, out_chs)]
        self.branch = nn.Sequential(*parts)
        self.by = nn.Identity() if self.splits else nn.Sequential(depthwise(in_chs, 2), conv(in_chs, in_chs))
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, features: Tensor) -> Tensor:
        by, rest = features.chunk(2, dim=1) if self.splits else (features, features)
        shuffled: Tensor = self.shuffle(torch.cat([self.by(by), self.branch(rest)], dim=1))
        return shuffled


KINDS: dict[str, Callable[..., Op]] = {
    "skip": Skip,
    "proj": Projection,
    "conv": Conv,
    "ds": DepthwiseSeparable,
    "mbconv": MBConv,
    "fused": FusedMBConv,
    "shuffle": Shuffle,
    "shufflex": functools.partial(Shuffle, xception=True),
}
OPERATIONS: Catalogue[Row] = Catalogue(
    "operation", Row, [Row(name=name, make=kind) for name, kind in KINDS.items()], form="[A-Za-z][A-Za-z0-9]*"
)
"""These are our operations and the user's own."""

register_op = OPERATIONS.register

_NUMBERS = {"k": ("kernel", int), "e": ("exp", float), "se": ("se", float)}


def parse_op(text: str) -> Op:
    """Return the operation that a text names; `str` of it is that text in its shortest form."""
    kind, *words = text.split("_", 1)
    if kind not in OPERATIONS:
        raise Mistake("", f"operation '{text}' is unknown{OPERATIONS.hint(kind)}")
    maker = OPERATIONS[kind].maker
    values: dict[str, Any] = {}
    rest = words[0] if words else ""
    while rest:
        match = re.match(r"(k|e|se)(\d+(?:\.\d+)?)(?:_|$)", rest)
        if match is None:
            break
        name, number = _NUMBERS[match[1]]
        if name in values:
            raise ValueError(f"operation '{text}': {match[1]} is given twice")
        try:
            values[name] = number(match[2])
        except ValueError:
            raise ValueError(f"operation '{text}': {match[1]} must be a whole number") from None
        rest = rest[match.end() :]
    if rest and rest not in ACTIVATIONS:
        raise ValueError(
            f"operation '{text}': '{rest}' is neither a number (k5, e6, se0.25) nor one of the activations "
            f"{', '.join(ACTIVATIONS)}"
        )
    if rest:
        values["act"] = rest
    if values.get("kernel", 1) % 2 == 0:
        raise ValueError(f"operation '{text}': kernels have an odd side")
    if values.get("exp", 1) == 0:
        raise ValueError(f"operation '{text}': e must be over 0")
    try:
        op: Op = maker(**values)
    except TypeError:
        raise ValueError(f"operation '{text}': {kind} does not have all of these numbers") from None
    return op


def _written(kind: str, *, act: str, **numbers: float) -> str:
    words = [f"{name}{value}".removesuffix(".0") for name, value in numbers.items() if name != "se" or value]
    return "_".join([kind, *words, *([act] if act else [])])


def _squeeze_excite(ratio: float, exp: float, style: Style) -> Any:
    """Return what timm's blocks take for squeeze-and-excitation: a maker, or None."""
    if not ratio:
        return None

    def rounding(chs: float) -> int:
        if style.se_divisor == 1:
            return max(1, round(chs))
        return int(make_divisible(chs, style.se_divisor))  # type: ignore[no-untyped-call]

    return functools.partial(
        SqueezeExcite,
        rd_ratio=ratio if style.se_from == "expanded" else ratio / exp,
        rd_round_fn=rounding,
        force_act_layer=style.se_act or None,
        gate_layer=style.se_gate,
    )


def _depthwise(kernel: int, chs: int, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(chs, chs, kernel, stride=stride, padding=kernel // 2, groups=chs, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(chs))
