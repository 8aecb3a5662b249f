"""Heads need square maps (B, C, S, S); this module makes maps of whatever a layer gives.

Layers of timm models may give other shapes. B is the batch, C channels, S height and width, N tokens.
"""

from collections.abc import Iterable, Sequence
from math import isqrt

import torch
from torch import Tensor, nn

LAYOUTS = ("nchw", "nhwc", "tokens", "flat")


def layout_of(shape: Sequence[int]) -> str:
    """Return how features of this shape, batch first, are laid out.

    The answer is nchw for (B, C, S, S), also where C = S; nhwc for (B, S, S, C); tokens for (B, N, C); and
    flat for (B, C).

    Raises:
        ValueError: for a shape that no head can read, such as a map that is not square.
    """
    if all(size > 0 for size in shape[1:]):
        match tuple(shape[1:]):
            case (_, height, width) if height == width:
                return "nchw"
            case (height, width, _) if height == width:
                return "nhwc"
            case (_, _):
                return "tokens"
            case (_,):
                return "flat"
    raise ValueError(
        f"a head cannot sit on features of shape {tuple(shape)}; "
        "it needs (batch, channels, size, size), (batch, size, size, channels), "
        "(batch, tokens, channels) or (batch, channels)"
    )


def map_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return the channels and the size of the map that `as_map` makes of features.

    `shape` is that of the features, batch first.
    """
    match layout_of(shape):
        case "nchw":
            return shape[1], shape[3]
        case "nhwc":
            return shape[3], shape[1]
        case "tokens":
            return shape[2], isqrt(shape[1])
        case _:
            return shape[1], 1


def as_map(features: Tensor, layout: str) -> Tensor:
    """Return features in one of the layouts as a map (B, C, S, S).

    Of tokens, the last S * S make the map, with S as large as N allows. The tokens before them are taken
    for prefix tokens (class, distillation, registers) and left out. That is right for up to 2S prefix
    tokens.
    """
    match layout:
        case "nchw":
            return features
        case "nhwc":
            return features.permute(0, 3, 1, 2)
        case "tokens":
            batch, tokens, channels = features.shape
            size = isqrt(tokens)
            return features[:, -(size**2) :].transpose(1, 2).reshape(batch, channels, size, size)
        case "flat":
            return features[:, :, None, None]
        case _:
            raise ValueError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")


@torch.no_grad()
def probe(layers: Iterable[nn.Module], features: Tensor) -> Tensor:
    """Return what the layers give in evaluation mode, to learn its shape.

    The modes of the layers stay as they were.
    """
    layers = list(layers)
    modes = [(module, module.training) for layer in layers for module in layer.modules()]
    with torch.random.fork_rng(devices=[features.device] if features.is_cuda else []):
        for layer in layers:
            features = layer.eval()(features)
    for module, mode in modes:
        module.training = mode
    return features
