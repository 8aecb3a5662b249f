"""The middle of an MBConv is one function, and the maps between its two BatchNorms are never in memory."""

import ctypes
import math
from typing import Any

import torch
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn
from torch.nn import functional as F

from tools.kernels.depthwise import Depthwise, is_square_depthwise
from tools.kernels.library import library
from tools.kernels.maps import IMAGES, LAST, ROWS, Shape, at, fits
from tools.kernels.norm import CLAMPS, NormAct, as_torch, can_normalise, keep_statistics, statistics


class MBConv(InvertedResidual):
    """This is timm's block, which goes from its first BatchNorm to its second in one function."""

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor
        if self.conv_s2d is not None:
            features = super().forward(x)  # type: ignore[no-untyped-call]
            return features
        features = self.conv_pw(x)
        if _fuses(self, features):
            features = _convolved(self.bn1, self.conv_dw, self.bn2, features)
        else:
            features = self.bn2(self.conv_dw(self.bn1(features)))
        features = self.bn3(self.conv_pwl(self.se(self.aa(features))))  # type: ignore[misc]
        return self.drop_path(features) + x if self.has_skip else features


def _fuses(block: MBConv, features: Tensor) -> bool:
    """Return whether nobody would miss the maps between the block's first and second BatchNorm."""
    conv, norms = block.conv_dw, (block.bn1, block.bn2)
    return (
        isinstance(conv, nn.Conv2d)
        and type(conv) in (nn.Conv2d, Depthwise)
        and conv.bias is None
        and conv.kernel_size[0] in _SIDES
        and conv.stride[0] in _STRIDES
        and is_square_depthwise(conv)
        and int(conv.padding[0]) < conv.kernel_size[0] <= min(features.shape[-2:]) + 2 * int(conv.padding[0])
        and all(type(norm) is NormAct for norm in norms)
        and all(type(norm.act) in CLAMPS and isinstance(norm.drop, nn.Identity) for norm in norms)
        and not any(map(_is_watched, (conv, *norms)))
        and all(can_normalise(norm, features) for norm in norms)
        and torch.is_grad_enabled()
        and fits("convolution", features, conv.weight)
    )


_SIDES, _STRIDES = (3, 5, 7), (1, 2)


def _is_watched(module: nn.Module) -> bool:
    """Return whether somebody has asked to be told of this module's inputs or outputs."""
    everywhere = torch.nn.modules.module
    hooks = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(module, f"_{kind}") or getattr(everywhere, f"_global_{kind}") for kind in hooks)


def _convolved(first: NormAct, conv: nn.Conv2d, second: NormAct, inputs: Tensor) -> Tensor:
    """Normalise, clamp, convolve depthwise, normalise and clamp again, and keep the running statistics."""
    norms = (first, second)
    weights = (first.weight, first.bias, conv.weight, second.weight, second.bias)
    settings = tuple((norm.eps, *CLAMPS[type(norm.act)]) for norm in norms)
    outputs: Tensor
    outputs, *found = _ChainFunction.apply(inputs, *weights, settings, conv.stride[0], int(conv.padding[0]))  # type: ignore[no-untyped-call]
    for norm, pixels, mean, variance in zip(norms, (inputs, outputs), found[::2], found[1::2], strict=True):
        keep_statistics(norm, mean, variance, pixels.numel() // pixels.shape[1])
    return outputs


class _Norm(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("mean", "scale", "shift", "level", "slope")),
        *((name, ctypes.c_float) for name in ("low", "high")),
    ]


class _ChainFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        kernel: Tensor,
        second_weight: Tensor,
        second_bias: Tensor,
        settings: tuple[tuple[float, float, float], ...],
        stride: int,
        padding: int,
    ) -> tuple[Tensor, ...]:
        images, chs, height, width = inputs.shape
        side, threads = kernel.shape[-1], torch.get_num_threads()
        out_sizes = [(size + 2 * padding - side) // stride + 1 for size in (height, width)]
        shape = Shape(images, height, width, chs, *out_sizes, side, stride, padding)
        (eps, *clamp), (second_eps, *second_clamp) = settings
        mean, variance = statistics(inputs)
        inverse = torch.rsqrt(variance + eps)
        scale = inverse * weight.detach()
        shift = bias.detach() - mean * scale
        taps = kernel.detach().permute(2, 3, 0, 1).reshape(side * side, chs).contiguous()
        middle = torch.empty(images, chs, *out_sizes, memory_format=LAST)
        second_mean, second_variance = torch.empty(2, chs)
        parts = torch.empty(images, 2, chs)
        library().chain_forward(
            *map(at, (inputs, taps, middle)),
            ctypes.byref(_Norm(at(mean), at(scale), at(shift), None, None, *clamp)),
            *map(at, (second_mean, second_variance, parts)),
            ctypes.byref(shape),
            threads,
        )
        second_inverse = torch.rsqrt(second_variance + second_eps)
        second_scale = second_inverse * second_weight.detach()
        second_shift = second_bias.detach() - second_mean * second_scale
        outputs = torch.empty_like(middle)
        library().norm_forward(
            *map(at, (middle, outputs, second_scale, second_shift)),
            *map(ctypes.c_float, second_clamp),
            ctypes.c_longlong(middle.numel() // chs),
            ctypes.c_longlong(chs),
            threads,
        )
        ctx.save_for_backward(inputs, weight, bias, kernel, second_weight, second_bias, middle)
        ctx.firsts, ctx.seconds = (
            (mean, scale, shift, inverse),
            (second_mean, second_scale, second_shift, second_inverse),
        )
        ctx.settings, ctx.shape, ctx.taps = settings, shape, taps
        found = mean, variance, second_mean, second_variance
        ctx.mark_non_differentiable(*found)
        return outputs, *found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, bias, kernel, second_weight, second_bias, middle = ctx.saved_tensors
        gradient, shape = gradients[0], ctx.shape
        first_settings, second_settings = ctx.settings
        if torch.is_grad_enabled():  # the gradient will be differentiated, which torch's own can be
            features = as_torch(inputs, weight, bias, *first_settings)
            features = F.conv2d(features, kernel, None, shape.stride, shape.padding, 1, len(kernel))
            outputs = as_torch(features, second_weight, second_bias, *second_settings)
            wanted = (inputs, weight, bias, kernel, second_weight, second_bias)
            return *torch.autograd.grad(outputs, wanted, gradient, create_graph=True), None, None, None
        gradient = gradient.contiguous(memory_format=LAST)
        chs, threads = inputs.shape[1], torch.get_num_threads()
        mean, scale, shift, inverse = ctx.firsts
        second_mean, second_scale, second_shift, second_inverse = ctx.seconds
        rows = middle.numel() // chs
        parts = torch.empty(-(-rows // ROWS), 2, chs)
        second_total, second_product = sums = torch.empty(2, chs)
        library().norm_backward_sums(
            *map(at, (gradient, middle, second_mean, second_scale, second_shift)),
            *map(ctypes.c_float, second_settings[1:]),
            ctypes.c_longlong(rows),
            ctypes.c_longlong(chs),
            *map(at, (sums, parts)),
            threads,
        )
        level = second_scale * second_total / rows
        slope = second_scale * second_inverse.square() * second_product / rows
        values = len(ctx.taps) + 2
        parts = torch.empty(-(-len(inputs) // IMAGES), values, chs)
        sums = torch.empty(values, chs)
        found_inputs = torch.empty_like(inputs)
        library().chain_backward(
            *map(at, (gradient, inputs, middle, ctx.taps)),
            ctypes.byref(_Norm(at(mean), at(scale), at(shift), None, None, *first_settings[1:])),
            ctypes.byref(
                _Norm(*map(at, (second_mean, second_scale, second_shift, level, slope)), *second_settings[1:])
            ),
            *map(at, (found_inputs, sums, parts)),
            ctypes.byref(shape),
            threads,
        )
        *_, total, product = sums
        rows = inputs.numel() // chs
        level = scale * total / rows
        slope = scale * inverse.square() * product / rows
        library().norm_backward_inputs(
            *map(at, (found_inputs, inputs, mean, scale, shift, level, slope)),
            *map(ctypes.c_float, (-math.inf, math.inf)),
            ctypes.c_longlong(rows),
            ctypes.c_longlong(chs),
            at(found_inputs),
            threads,
        )
        found_kernel = torch.empty_like(kernel)
        side = kernel.shape[-1]
        found_kernel.copy_(sums[:-2].view(side, side, chs, 1).permute(2, 3, 0, 1))
        found = (found_inputs, product * inverse, total, found_kernel)
        return *found, second_product * second_inverse, second_total, None, None, None
