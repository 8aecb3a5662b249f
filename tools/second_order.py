"""This module makes the second derivatives of convolution and BatchNorm as fast as their first ones.

torch differentiates a convolution's backward pass group by group with transposed copies, and BatchNorm's with
dozens of elementary operators. Inside `FastSecondOrder`, both are the functions of this module. They use the
same first-order kernels, and their second derivatives are made of those kernels too. Third derivatives are
not available.

Shapes: x, y, gx, gy (B, C, H, W) or (B, C); cotangents of gx, gw, ... are called ggx, ggw, ...
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class FastSecondOrder(TorchFunctionMode):
    """Inside this context, convolutions and BatchNorms in training mode are computed by this module."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d or func is F.conv2d:
            return _conv2d(*args, **kwargs)
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        if func is F.hardsigmoid:  # torch has no second derivative of it
            return F.relu6(args[0] + 3) / 6
        return func(*args, **kwargs)


class _Geometry(NamedTuple):
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or input.ndim != 4:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    geometry = _Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)
    outputs: Tensor = _Conv.apply(input, weight, geometry)  # type: ignore[no-untyped-call]
    return outputs if bias is None else outputs + bias[:, None, None]


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def _convolve(x: Tensor, w: Tensor, geometry: _Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    return F.conv2d(x, w, None, stride, padding, dilation, groups)


def _convolution_gradients(
    gy: Tensor, x: Tensor, w: Tensor, geometry: _Geometry, *, to_x: bool, to_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of <gy, conv(x, w)>: the first depends on gy and w, the second on gy and x."""
    if not (to_x or to_w):
        return None, None
    stride, padding, dilation, groups = geometry
    gx, gw, _ = aten.convolution_backward(
        gy, x, w, None, stride, padding, dilation, False, [0, 0], groups, [to_x, to_w, False]
    )
    return gx, gw


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return _convolve(x, w, geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        gx, gw = _ConvBackward.apply(gradients[0], x, w, ctx.geometry, *wanted)  # type: ignore[no-untyped-call]
        return gx, gw, None


class _ConvBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, x: Tensor, w: Tensor, geometry: _Geometry, to_x: bool, to_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(gy, x, w)
        ctx.set_materialize_grads(False)
        ctx.geometry = geometry
        return _convolution_gradients(gy, x, w, geometry, to_x=to_x, to_w=to_w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ggx: Tensor | None, ggw: Tensor | None) -> tuple[Tensor | None, ...]:
        gy, x, w = ctx.saved_tensors
        to_gy, to_x, to_w = ctx.needs_input_grad[:3]
        geometry: _Geometry = ctx.geometry
        ggy = gx = gw = None
        if ggx is not None:
            if to_gy:
                ggy = _convolve(ggx, w, geometry)
            _, gw = _convolution_gradients(gy, ggx, w, geometry, to_x=False, to_w=to_w)
        if ggw is not None:
            if to_gy:
                other = _convolve(x, ggw, geometry)
                ggy = other if ggy is None else ggy.add_(other)
            gx, _ = _convolution_gradients(gy, x, ggw, geometry, to_x=to_x, to_w=False)
        return ggy, gx, gw, None, None, None


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    plain = (input, running_mean, running_var, weight, bias, training, momentum, eps)
    if not training or weight is None or bias is None:
        return F.batch_norm(*plain)
    normalised: Tensor
    normalised, _, _ = _BatchNorm.apply(*plain)  # type: ignore[no-untyped-call]
    return normalised


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        training: bool,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, rstd = aten.native_batch_norm(
            x, weight, bias, running_mean, running_var, training, momentum, eps
        )
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.eps = eps
        return y, mean, rstd

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gx, gw, gb = _BatchNormBackward.apply(gradients[0], *ctx.saved_tensors, ctx.eps)  # type: ignore[no-untyped-call]
        return gx, None, None, gw, gb, None, None, None


class _BatchNormBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        gx, gw, gb = _normalisation_gradients(gy, x, weight, mean, rstd, eps)
        ctx.save_for_backward(gy, x, weight, mean, rstd, gw, gb)
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        return gx, gw, gb

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, ggx: Tensor | None, ggw: Tensor | None, ggb: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Derivatives of S = <ggx, gx> + <ggw, gw> + <ggb, gb>.

        With x^ the normalised input, r = rstd, and means over all but channels:
        gx = w r (gy - mean(gy) - x^ mean(gy x^)), gw = sum(gy x^), gb = sum(gy).
        """
        gy, x, weight, mean, rstd, gw, gb = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        level, slope = gb / count, gw / count
        ggw = torch.zeros_like(weight) if ggw is None else ggw
        ggb = torch.zeros_like(weight) if ggb is None else ggb
        if ggx is None:
            ggx = torch.zeros_like(x)
        # The map from gy to gx is symmetric, so the kernel that made gx serves ggx as well.
        ggy, own_slope, own_level = _normalisation_gradients(ggx, x, weight, mean, rstd, ctx.eps)
        own_slope, own_level = own_slope / count, own_level / count
        product = _channel_sum(ggx * gy) / count - own_level * level - own_slope * slope
        to_weight = count * rstd * product
        scale = weight * rstd
        # S depends on x^ through `toward` gy and `own` ggx; x^ and r carry this over to x.
        toward, own = ggw - scale * own_slope, -scale * slope
        rising = toward * slope + own * own_slope + scale * product
        falling = toward * level + own * own_level
        to_x = _affine(gy, rstd * toward).addcmul_(ggx, _wide(rstd * own, x))
        to_x.addcmul_(x, _wide(-(rstd**2) * rising, x)).add_(
            _wide(rstd * (rstd * rising * mean - falling), x)
        )
        ggy.addcmul_(x, _wide(ggw * rstd, x)).add_(_wide(ggb - ggw * rstd * mean, x))
        return ggy, to_x, to_weight, None, None, None


def _normalisation_gradients(
    gy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    gx, gw, gb = aten.native_batch_norm_backward(
        gy, x, weight, None, None, mean, rstd, True, eps, [True, True, True]
    )
    return gx, gw, gb


def _channel_sum(values: Tensor) -> Tensor:
    return values.sum([0, *range(2, values.ndim)])


def _wide(per_channel: Tensor, like: Tensor) -> Tensor:
    return per_channel.view(1, -1, *[1] * (like.ndim - 2))


def _affine(values: Tensor, factor: Tensor) -> Tensor:
    return values * _wide(factor, values)
