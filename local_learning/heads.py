"""Heads are the auxiliary networks that give the loss at a cut.

A head takes a map (B, C, S, S), unless its row says that it takes features as a layer gives them. It
returns logits, or a tuple that begins with logits where its loss needs more. Hidden convolutions have no
bias, and a BatchNorm follows each.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import ceil, isqrt
from typing import Any, NamedTuple

import torch
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn
from torch.nn import functional as F

from local_learning.catalogue import HEADS
from local_learning.chain import Chain
from local_learning.cuts.head_width import PAPER, scale_of
from local_learning.features import layout_of, map_shape
from local_learning.later.head import shapes_after
from local_learning.networks.expansion import Expansion
from local_learning.networks.init import initialise
from local_learning.networks.relu_mean import ReluMean
from tools.layout import guard_convolutions
from tools.mistake import Mistake
from tools.options.catalogue import by_name
from tools.options.plugins import call, takes

register_head = HEADS.register


def make_head(
    kind: str,
    in_chs: int,
    in_size: int,
    num_classes: int,
    *,
    width: float = 1.0,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    chain: Chain | None = None,
    cut: int = 0,
    shapes: Sequence[tuple[int, ...]] = (),
) -> nn.Module:
    """Build the head called `kind` for maps of `in_chs` channels and `in_size` pixels.

    The head may be one of ours or a registered one. Initial weights are Kaiming normal from torch's global
    generator. A maker registered by `@register_head(kind)` is called with the first three numbers, and
    with those of the options that it takes.

    Arguments:
        width: A factor on the hidden channels for which the papers give numbers. Other channels follow the
            map.
        image_shape: The shape of the images, which the InfoPro heads reconstruct.
        chain: The network that is cut. Heads of its later layers are made of it.
        cut: The number of the layer after which it is cut.
        shapes: The shapes of what each layer gives, as `local_learning.later.head.shapes_after` finds them,
            where they are known.

    Raises:
        ValueError: for an unknown kind, a number below 1, or a head that does not fit.
    """
    for option, value in {"in_chs": in_chs, "in_size": in_size, "num_classes": num_classes}.items():
        if value < 1:
            raise ValueError(f"{option} is {value}; it must be at least 1")
    row = HEADS.get(kind)
    if row is None:
        raise Mistake("", f"head '{kind}' is unknown{HEADS.hint(kind)}")
    options: dict[str, Any] = {"width": width, "image_shape": image_shape}
    if takes(row.maker, "chain"):
        if chain is None:
            raise ValueError(f"head '{kind}' is made of a network: give the `chain` and the `cut`")
        shapes = shapes or shapes_after(chain, image_shape)
        options |= {"chain": chain, "cut": cut, "shapes": shapes}
    head: nn.Module = call(row.maker, in_chs, in_size, num_classes, **options)
    if not row.draws_weights:
        initialise(head)
    guard_convolutions(head)
    return head


class HeadsOf:
    """This makes the heads of one chain, each for the layer that it is to follow."""

    def __init__(
        self,
        chain: Chain,
        num_classes: int,
        image_shape: tuple[int, int, int],
        *,
        head_width: str | float = PAPER,
        last_layer: float = 1.0,
        make: Callable[..., nn.Module] | None = None,
    ) -> None:
        self._chain, self._num_classes, self._image_shape = chain, num_classes, image_shape
        self._head_width, self._last_layer, self._make = head_width, last_layer, make or make_head
        self._shapes: list[tuple[int, ...]] = []

    def after(self, cut: int, kind: str, shape: Sequence[int], *, in_chs: int = 0) -> nn.Module:
        """Make a head for a cut after layer `cut`, which gives features of this shape.

        `in_chs` are the channels that the head sees, if these are not all.
        """
        chs, size = map_shape(shape)
        chs = in_chs or chs
        width = scale_of(self._head_width, kind, chs, self._num_classes, self._chain.width)
        options: dict[str, Any] = {"width": width, "image_shape": self._image_shape}
        row = HEADS.get(kind)
        if row is not None and takes(row.maker, "chain"):
            self._shapes = self._shapes or shapes_after(self._chain, self._image_shape)
            options |= {"chain": self._chain, "cut": cut, "shapes": self._shapes}
        reference = next(self._chain.parameters())
        head = self._make(kind, chs, size, self._num_classes, **options)
        if self._last_layer != 1 and row is not None and not row.draws_weights:
            _scale_last(head, self._last_layer)
        return head.to(reference.device, reference.dtype)


@torch.no_grad()
def _scale_last(head: nn.Module, factor: float) -> None:
    """Multiply the weights of a head's last linear layer."""
    linears = [part for part in head.modules() if isinstance(part, nn.Linear)]
    if linears:
        linears[-1].weight.mul_(factor)


def layout_for(kind: str, shape: Sequence[int]) -> str:
    """Return the layout of features that a kind of head takes as a map, or nothing if it takes them as given.

    `shape` is that of the features, batch first.
    """
    row = HEADS.get(kind)
    return layout_of(shape) if row is None or row.takes_map else ""


class PredSimOutput(NamedTuple):
    """PredSim's two losses look at these outputs."""

    logits: Tensor
    """The logits of the classifier."""
    similarity: Tensor
    """The map whose pairwise similarities within a batch the similarity loss compares."""


@by_name
class PredSimHead(nn.Module):
    """This head predicts and matches similarities, by a pooled linear classifier beside one convolution.

    The map is pooled to the largest n x n that keeps C * n * n within 2048 features. It is a square, as in
    SEDONA's Table 1. SEDONA's code halves height and width by turns instead, and may keep twice as many
    features.
    """

    def __init__(self, in_chs: int, in_size: int, num_classes: int, *, width: float) -> None:
        super().__init__()
        size = max(1, min(in_size, isqrt(_scaled(2048, width) // in_chs)))
        self.predict = nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(size),
                flatten=nn.Flatten(),
                fc=nn.Linear(in_chs * size**2, num_classes),
            )
        )
        self.similarity = nn.Conv2d(in_chs, in_chs, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> PredSimOutput:
        return PredSimOutput(self.predict(features), self.similarity(features))


class InfoProOutput(NamedTuple):
    """InfoPro's two losses look at these outputs."""

    logits: Tensor
    """The logits of the classifier."""
    reconstruction: Tensor
    """The reconstructed image, before the sigmoid."""


@by_name
class InfoProHead(nn.Module):
    """This is InfoPro's head for cross-entropy: a classifier, and a decoder that reconstructs the image."""

    def __init__(
        self, in_chs: int, in_size: int, num_classes: int, *, width: float, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.decoder = _decoder(in_chs, width, image_shape)
        self.classifier = _infopro_conv1c2f(in_chs, width, num_classes)

    def forward(self, features: Tensor) -> InfoProOutput:
        return InfoProOutput(self.classifier(features), self.decoder(features))


class InfoProContrastOutput(NamedTuple):
    """InfoPro's two losses look at these outputs where contrast takes the place of cross-entropy."""

    logits: Tensor
    """The logits of a probe, whose gradient does not reach the features."""
    reconstruction: Tensor
    """The reconstructed image, before the sigmoid."""
    embedding: Tensor
    """The embedding that the contrast compares, of length 1."""


@by_name
class InfoProContrastHead(nn.Module):
    """This is InfoPro's head for contrast: a projection, the decoder, and a probe that gives an accuracy."""

    def __init__(
        self, in_chs: int, in_size: int, num_classes: int, *, width: float, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.decoder = _decoder(in_chs, width, image_shape)
        self.projection = _infopro_conv1c2f(in_chs, width, _scaled(128, width))
        self.probe = nn.Sequential(_pooled_fc(in_chs, num_classes))

    def forward(self, features: Tensor) -> InfoProContrastOutput:
        return InfoProContrastOutput(
            self.probe(features.detach()),
            self.decoder(features),
            F.normalize(self.projection(features)),
        )


@by_name
def conv1c2f(in_chs: int, in_size: int, num_classes: int, *, width: float) -> nn.Module:
    """Make a head of one convolution and two linear layers (InfoPro, GN-DGL).

    The convolution has stride 2 and doubles the channels.
    """
    return _conv1c2f(in_chs, 2 * in_chs, 2, _scaled(128, width), num_classes)


@by_name
def linear(in_chs: int, in_size: int, num_classes: int) -> nn.Module:
    """Make a head of a global average and a linear classifier."""
    return nn.Sequential(_pooled_fc(in_chs, num_classes))


@by_name
def linear4(in_chs: int, in_size: int, num_classes: int) -> nn.Module:
    """Make a head of averages over 4x4 parts of the map and a linear classifier: it sees where things are."""
    size = min(4, in_size)
    head = OrderedDict[str, nn.Module](pool=nn.AdaptiveAvgPool2d(size), flatten=nn.Flatten())
    head["fc"] = nn.Linear(in_chs * size**2, num_classes)
    return nn.Sequential(head)


@by_name
def aux(in_chs: int, in_size: int, num_classes: int, *, width: float, depth: int) -> nn.Module:
    """Make one of SEDONA's Aux heads.

    It works on a quarter of the map's channels and has `depth` - 1 inverted residuals. timm rounds an
    expansion to a multiple of 8, which changes nothing where `in_chs` divides by 16.
    """
    chs, out_chs = max(1, in_chs // 4), _scaled(2048, width)
    wide_chs = max(1, int(1.5 * chs))
    residuals = [(chs, chs, 1), (chs, wide_chs, 2), (wide_chs, wide_chs, 1)]
    if in_size // 2 < 2:  # the map is too small for another stride
        residuals[1:] = [(chs, chs, 1), (chs, chs, 1)]

    head = OrderedDict[str, nn.Module](
        reduce=_conv_bn(in_chs, chs, 1), depthwise=_conv_bn(chs, chs, 3, stride=2, groups=chs)
    )
    for index, (from_chs, to_chs, stride) in enumerate(residuals[: depth - 1], 1):
        head[f"residual{index}"] = InvertedResidual(from_chs, to_chs, stride=stride, exp_ratio=4)
        chs = to_chs
    head["expand"] = Expansion(chs, out_chs)
    head["fc"] = nn.Linear(out_chs, num_classes)
    return nn.Sequential(head)


@by_name
def mlp_sr(in_chs: int, in_size: int, num_classes: int) -> nn.Module:
    """Make DGL's MLP-SR head: 1x1 convolutions on a map a quarter as wide, and an MLP on a map of 2x2."""
    head = OrderedDict[str, nn.Module](reduce=nn.AdaptiveAvgPool2d(ceil(in_size / 4)))
    for index in range(1, 4):
        head[f"conv{index}"] = _conv_bn(in_chs, in_chs, 1)
    head["pool"] = nn.AdaptiveAvgPool2d(2)
    head["flatten"] = nn.Flatten()
    chs = 4 * in_chs
    for index in range(1, 4):
        head[f"fc{index}"] = nn.Sequential(
            OrderedDict(fc=nn.Linear(chs, chs), bn=nn.BatchNorm1d(chs), act=nn.ReLU(inplace=True))
        )
    head["fc"] = nn.Linear(chs, num_classes)
    return nn.Sequential(head)


def _conv1c2f(in_chs: int, conv_chs: int, stride: int, hidden: int, num_outputs: int) -> nn.Module:
    """Make one convolution and two linear layers."""
    return nn.Sequential(
        OrderedDict(
            conv=_conv_bn(in_chs, conv_chs, 3, stride=stride, act=False),
            pool=ReluMean(),
            hidden=nn.Linear(conv_chs, hidden),
            act=nn.ReLU(inplace=True),
            fc=nn.Linear(hidden, num_outputs),
        )
    )


def _infopro_conv1c2f(in_chs: int, width: float, num_outputs: int) -> nn.Module:
    """Make InfoPro's version; from 64 channels on, its convolution keeps the size and channels of the map."""
    conv_chs, stride = (in_chs, 1) if in_chs >= _scaled(64, width) else (2 * in_chs, 2)
    return _conv1c2f(in_chs, conv_chs, stride, _scaled(128, width), num_outputs)


def _decoder(in_chs: int, width: float, image_shape: tuple[int, int, int]) -> nn.Module:
    """Make InfoPro's decoder without the sigmoid at its end, because the loss takes logits."""
    image_chs, *image_size = image_shape
    hidden = _scaled(12, width)
    return nn.Sequential(
        OrderedDict(
            upsample=nn.Upsample(tuple(image_size), mode="bilinear", align_corners=True),
            hidden=_conv_bn(in_chs, hidden, 3),
            conv=nn.Conv2d(hidden, image_chs, 3, padding=1),
        )
    )


def _pooled_fc(in_chs: int, num_outputs: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(in_chs, num_outputs))


def _conv_bn(
    in_chs: int, out_chs: int, kernel_size: int, *, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Module:
    """Make a convolution that keeps the map's size but for its stride, BatchNorm and, with `act`, ReLU."""
    conv = nn.Conv2d(
        in_chs,
        out_chs,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
    )
    parts = OrderedDict[str, nn.Module](conv=conv, bn=nn.BatchNorm2d(out_chs))
    if act:
        parts["act"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)


def _scaled(chs: int, width: float) -> int:
    return max(1, round(chs * width))
