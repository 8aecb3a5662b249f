"""Depthwise convolutions with a backward pass of the project's; torch's takes two to eight times as long."""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.kernels.library import library
from tools.kernels.maps import IMAGES, LAST, Shape, at, fits


class Depthwise(nn.Conv2d):
    """This is torch's convolution with a faster backward pass where it is depthwise."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs: Tensor
        if (
            bias is None
            and torch.is_grad_enabled()
            and is_depthwise(self)
            and fits("convolution", input, weight)
        ):
            padding = int(self.padding[0])
            outputs = _DepthwiseFunction.apply(input, weight, self.stride[0], padding)  # type: ignore[no-untyped-call]
        else:
            outputs = super()._conv_forward(input, weight, bias)
        return outputs


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is one for the kernels.

    Small squares without a stride are not, since torch is as fast with them.
    """
    return (conv.kernel_size[0] > 3 or conv.stride[0] > 1) and is_square_depthwise(conv)


def is_square_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether a convolution has a square for each channel by itself."""
    padding = conv.padding
    return (
        1 < conv.groups == conv.in_channels == conv.out_channels
        and conv.padding_mode == "zeros"
        and conv.dilation == (1, 1)
        and not isinstance(padding, str)
        and all(pair[0] == pair[1] for pair in (conv.kernel_size, conv.stride, padding))
    )


class _DepthwiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(inputs, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        (gradient,) = gradients
        to_inputs, to_weight = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # the gradient will be differentiated, which torch's own can be
            geometry = ([ctx.stride] * 2, [ctx.padding] * 2, [1, 1], False, [0, 0], len(weight))
            found = torch.ops.aten.convolution_backward(
                gradient, inputs, weight, None, *geometry, [to_inputs, to_weight, False]
            )
            return found[0], found[1], None, None
        gradient = gradient.contiguous(memory_format=LAST)
        images, chs, height, width = inputs.shape
        side = weight.shape[-1]
        shape = Shape(images, height, width, chs, *gradient.shape[-2:], side, ctx.stride, ctx.padding)
        threads = torch.get_num_threads()
        found_inputs = found_weight = None
        if to_inputs:
            taps = weight.detach().permute(2, 3, 0, 1).reshape(side * side, chs).contiguous()
            found_inputs = torch.empty_like(inputs)
            library().depthwise_backward_inputs(
                at(gradient), at(taps), at(found_inputs), ctypes.byref(shape), threads
            )
        if to_weight:
            taps = torch.empty(side * side, chs)
            parts = torch.empty(-(-images // IMAGES), side * side, chs)
            library().depthwise_backward_taps(
                at(gradient), at(inputs), at(taps), at(parts), ctypes.byref(shape), threads
            )
            found_weight = torch.empty_like(weight)
            found_weight.copy_(taps.view(side, side, chs, 1).permute(2, 3, 0, 1))
        return found_inputs, found_weight, None, None
