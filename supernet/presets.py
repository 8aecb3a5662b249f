"""Spaces are made by name: those of the papers, and one for trying things out."""

from supernet.layers import Conv, DepthwiseSeparable, MBConv, Op, Projection, Skip, Style
from supernet.space import Fixed, Layer, Space, stage
from supernet.spaces import SPACES
from supernet.tail import Tail
from tools.options.catalogue import by_name
from tools.options.config import check_choice

PRESETS = SPACES.ours
register_space = SPACES.register
SIX = tuple(MBConv(kernel, exp, 0.25) for kernel in (3, 5, 7) for exp in (4, 6))


def preset(name: str, *, num_classes: int, image_size: int, in_chs: int = 3, width: float = 1.0) -> Space:
    """Return the space called `name`, for square images of `image_size` pixels.

    With a `width` under 1 it is a copy with this part of the channels; its `full` is the space itself.
    """
    check_choice("space", name, PRESETS)
    space: Space = SPACES[name].maker(num_classes=num_classes, image_size=image_size, in_chs=in_chs)
    return space.reduced(width=width)


@by_name
def lwsl(
    depth: int,
    *,
    name: str,
    num_classes: int = 1000,
    image_size: int = 224,
    in_chs: int = 3,
    skippable_first: bool = False,
) -> Space:
    """Return Table I of LWSL with `depth` layers in each stage.

    The squeeze keeps a quarter of a block's input channels. With `skippable_first` a stage's first layer
    may be skipped where it keeps the shape, as the fifth stage's does.
    """
    ops: tuple[Op, ...] = (*SIX, Skip())
    layers: list[Layer] = []
    before = 24
    for out_chs, stride in ((40, 2), (80, 2), (96, 1), (192, 2), (192, 1)):
        keeps = stride == 1 and out_chs == before
        first = ops if skippable_first and keeps else ()
        layers += stage(ops, depth=depth, out_chs=out_chs, stride=stride, first=first)
        before = out_chs
    return Space(
        (Fixed(Conv(3), 16, 2), Fixed(DepthwiseSeparable(3, 0.25), 24, 2)),
        tuple(layers),
        Tail(conv_chs=1984),
        name=name,
        style=Style(act="silu"),
        num_classes=num_classes,
        image_size=image_size,
        in_chs=in_chs,
    )


@by_name
def cream(num_classes: int, image_size: int, in_chs: int) -> Space:
    """Return the space of Cream of the Crop.

    Its squeeze-and-excitation keeps a quarter of the expanded channels.
    """
    layers: list[Layer] = []
    for out_chs, stride in ((24, 2), (40, 2), (80, 2), (96, 1), (192, 2)):
        layers += stage((*SIX, Skip()), depth=4, out_chs=out_chs, stride=stride)
    return Space(
        (Fixed(Conv(3), 16, 2), Fixed(DepthwiseSeparable(3, 0.25), 16)),
        tuple(layers),
        Tail(conv_chs=320, hidden_chs=1280),
        name="cream",
        style=Style(act="silu", se_from="expanded", se_act="relu", se_gate="hard_sigmoid", se_divisor=8),
        num_classes=num_classes,
        image_size=image_size,
        in_chs=in_chs,
    )


@by_name
def nas_bench_macro(num_classes: int, image_size: int, in_chs: int) -> Space:
    """Return the space of NAS-Bench-Macro, whose choices are the benchmark's digits."""
    blocks = (MBConv(3, 3), MBConv(5, 6))
    layers: list[Layer] = []
    for out_chs, depth in ((64, 2), (128, 3), (256, 3)):
        layers += stage(
            (Skip(), *blocks), depth=depth, out_chs=out_chs, stride=2, first=(Projection(), *blocks)
        )
    return Space(
        (Fixed(Conv(3), 32),),
        tuple(layers),
        Tail(conv_chs=1280),
        name="nas_bench_macro",
        num_classes=num_classes,
        image_size=image_size,
        in_chs=in_chs,
    )


@by_name
def tiny(num_classes: int, image_size: int, in_chs: int) -> Space:
    """Return a space for trying things out, which takes seconds on a CPU."""
    ops = (MBConv(3, 2), MBConv(5, 2), MBConv(3, 4, 0.25), Skip())
    layers = [
        *stage(ops, depth=2, out_chs=16, stride=2),
        *stage(ops, depth=2, out_chs=24, stride=2),
    ]
    return Space(
        (Fixed(Conv(3), 8),),
        tuple(layers),
        Tail(conv_chs=64),
        name="tiny",
        num_classes=num_classes,
        image_size=image_size,
        in_chs=in_chs,
    )
