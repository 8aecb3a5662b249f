"""Modules of torch and timm compute with the project's kernels on a CPU, and with torch's own elsewhere.

BatchNorm is fused with the activation that follows it: the map is read and written half as often. Sums over
the batch are taken in parts and added in double precision, so gradients are also more exact than torch's.
Of a depthwise convolution the backward pass is the project's; torch's takes two to eight times as long.
"""

import ctypes
import math
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from tools.kernels.library import library

LAST = torch.channels_last
SMALLEST = {"norm": 1 << 18, "convolution": 1 << 16}
"""Maps with fewer numbers than this are left to torch, which starts its operations sooner."""


def use_kernels(network: nn.Module) -> None:
    """Let depthwise convolutions and BatchNorms of a network use the kernels on a CPU.

    The modules change their class in place; names and weights stay.

    Raises:
        Mistake: if the network is on a CPU, and the kernels cannot be had on this machine.
    """
    if any(parameter.device.type == "cpu" for parameter in network.parameters()):
        library()
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_depthwise(module):
            module.__class__ = Depthwise
        elif type(module) is nn.BatchNorm2d:
            module.__class__ = Norm
        elif type(module) is BatchNormAct2d:
            module.__class__ = NormAct


def _fits(kind: str, inputs: Tensor, *others: Tensor | None) -> bool:
    """Return whether the kernels can compute this: plain numbers that no mode of torch looks at."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and inputs.device.type == "cpu"
        and inputs.ndim == 4
        and inputs.numel() >= SMALLEST[kind]
        and all(other is not None and other.dtype == torch.float32 for other in (inputs, *others))
        and inputs.is_contiguous(memory_format=LAST)
        and type(inputs) is Tensor
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_function_stack()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._get_tracing_state()
    )


# ---- depthwise convolution -------------------------------------------------------------------------------


class Depthwise(nn.Conv2d):
    """This is torch's convolution with a faster backward pass where it is depthwise."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs: Tensor
        if (
            bias is None
            and torch.is_grad_enabled()
            and _is_depthwise(self)
            and _fits("convolution", input, weight)
        ):
            padding = int(self.padding[0])
            outputs = _DepthwiseFunction.apply(input, weight, self.stride[0], padding)  # type: ignore[no-untyped-call]
        else:
            outputs = super()._conv_forward(input, weight, bias)
        return outputs


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is one for the kernels: a square for each channel by itself.

    Small squares without a stride are not, since torch is as fast with them.
    """
    padding = conv.padding
    return (
        (conv.kernel_size[0] > 3 or conv.stride[0] > 1)
        and 1 < conv.groups == conv.in_channels == conv.out_channels
        and conv.padding_mode == "zeros"
        and conv.dilation == (1, 1)
        and not isinstance(padding, str)
        and all(pair[0] == pair[1] for pair in (conv.kernel_size, conv.stride, padding))
    )


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_longlong) for name in ("images", "height", "width", "chs")),
        *((name, ctypes.c_longlong) for name in ("out_height", "out_width", "side", "stride", "padding")),
    ]


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
        shape = _Shape(images, height, width, chs, *gradient.shape[-2:], side, ctx.stride, ctx.padding)
        threads = torch.get_num_threads()
        found_inputs = found_weight = None
        if to_inputs:
            taps = weight.detach().permute(2, 3, 0, 1).reshape(side * side, chs).contiguous()
            found_inputs = torch.empty_like(inputs)
            library().depthwise_backward_inputs(
                _at(gradient), _at(taps), _at(found_inputs), ctypes.byref(shape), threads
            )
        if to_weight:
            taps = torch.empty(side * side, chs)
            parts = torch.empty(-(-images // _IMAGES), side * side, chs)
            library().depthwise_backward_taps(
                _at(gradient), _at(inputs), _at(taps), _at(parts), ctypes.byref(shape), threads
            )
            found_weight = torch.empty_like(weight)
            found_weight.copy_(taps.view(side, side, chs, 1).permute(2, 3, 0, 1))
        return found_inputs, found_weight, None, None


# ---- BatchNorm with an activation ------------------------------------------------------------------------


class Norm(nn.BatchNorm2d):
    """This is torch's BatchNorm in less time and with more exact sums."""

    def forward(self, input: Tensor) -> Tensor:
        return _normalised(self, input, -math.inf, math.inf) if _can(self, input) else super().forward(input)


class NormAct(BatchNormAct2d):
    """This is timm's BatchNorm with an activation, in half the time where that is ReLU, ReLU6 or none."""

    def forward(self, x: Tensor) -> Tensor:
        act = _CLAMPS.get(type(self.act))
        if act is None or not isinstance(self.drop, nn.Identity) or not _can(self, x):
            result: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return result
        return _normalised(self, x, *act)


_CLAMPS = {
    nn.Identity: (-math.inf, math.inf),
    nn.ReLU: (0.0, math.inf),
    nn.ReLU6: (0.0, 6.0),
}


def _can(norm: nn.BatchNorm2d, inputs: Tensor) -> bool:
    return norm.training and _fits("norm", inputs, norm.weight, norm.bias)


def _normalised(norm: nn.BatchNorm2d, inputs: Tensor, low: float, high: float) -> Tensor:
    """Normalise by the batch, clamp, and keep the running statistics."""
    outputs: Tensor
    outputs, mean, variance = _NormFunction.apply(inputs, norm.weight, norm.bias, norm.eps, low, high)  # type: ignore[no-untyped-call]
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        part = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        count = inputs.numel() // inputs.shape[1]
        norm.running_mean.lerp_(mean, part)
        norm.running_var.lerp_(variance * (count / max(1, count - 1)), part)
    return outputs


class _NormFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, eps: float, low: float, high: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, chs = inputs.numel() // inputs.shape[1], inputs.shape[1]
        mean, variance = torch.empty(2, chs)
        parts = torch.empty(-(-rows // _ROWS), 2, chs)
        size = (ctypes.c_longlong(rows), ctypes.c_longlong(chs))
        threads = torch.get_num_threads()
        library().norm_statistics(_at(inputs), *size, _at(mean), _at(variance), _at(parts), threads)
        inverse = torch.rsqrt(variance + eps)
        scale = inverse * weight.detach()
        shift = bias.detach() - mean * scale
        outputs = torch.empty_like(inputs)
        clamp = (ctypes.c_float(low), ctypes.c_float(high))
        library().norm_forward(_at(inputs), _at(outputs), _at(scale), _at(shift), *clamp, *size, threads)
        ctx.save_for_backward(inputs, weight, bias, mean, inverse)
        ctx.scale, ctx.shift = scale, shift
        ctx.eps, ctx.low, ctx.high = eps, low, high
        ctx.mark_non_differentiable(mean, variance)
        return outputs, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, bias, mean, inverse = ctx.saved_tensors
        gradient = gradients[0]
        if torch.is_grad_enabled():  # the gradient will be differentiated, which torch's own can be
            outputs = F.batch_norm(inputs, None, None, weight, bias, True, 0.0, ctx.eps)
            if ctx.low > -math.inf:
                outputs = F.hardtanh(outputs, ctx.low, ctx.high) if ctx.high < math.inf else F.relu(outputs)
            found = torch.autograd.grad(outputs, (inputs, weight, bias), gradient, create_graph=True)
            return *found, None, None, None
        gradient = gradient.contiguous(memory_format=LAST)
        rows, chs = inputs.numel() // inputs.shape[1], inputs.shape[1]
        parts = torch.empty(-(-rows // _ROWS), 2, chs)
        total, product = torch.empty(2, chs)
        maps = [_at(tensor) for tensor in (gradient, inputs, mean, ctx.scale, ctx.shift)]
        size = (ctypes.c_longlong(rows), ctypes.c_longlong(chs))
        clamp = (ctypes.c_float(ctx.low), ctypes.c_float(ctx.high))
        threads = torch.get_num_threads()
        library().norm_backward_sums(*maps, *clamp, *size, _at(total), _at(product), _at(parts), threads)
        found_inputs = None
        if ctx.needs_input_grad[0]:
            level = ctx.scale * total / rows
            slope = ctx.scale * inverse.square() * product / rows
            found_inputs = torch.empty_like(inputs)
            library().norm_backward_inputs(
                *maps, _at(level), _at(slope), *clamp, *size, _at(found_inputs), threads
            )
        return found_inputs, product * inverse, total, None, None, None


_ROWS, _IMAGES = 64, 8
"""The sizes of the parts, as in the kernels."""


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
