"""Modules of torch and timm compute with the project's kernels on a CPU, and with torch's own elsewhere.

BatchNorm is fused with the activation that follows it: the map is read and written half as often. Sums over
the batch are taken in parts and added in double precision, so gradients are also more exact than torch's.
Of a depthwise convolution the backward pass is the project's; torch's takes two to eight times as long.
Where both surround each other, as in MBConv, the maps between them are never in memory.
"""

import ctypes
import math
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from timm.models._efficientnet_blocks import InvertedResidual
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
        elif type(module) is InvertedResidual:
            module.__class__ = MBConv


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
    """Return whether a convolution is one for the kernels.

    Small squares without a stride are not, since torch is as fast with them.
    """
    return (conv.kernel_size[0] > 3 or conv.stride[0] > 1) and _is_square_depthwise(conv)


def _is_square_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether a convolution has a square for each channel by itself."""
    padding = conv.padding
    return (
        1 < conv.groups == conv.in_channels == conv.out_channels
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
    _keep(norm, mean, variance, inputs.numel() // inputs.shape[1])
    return outputs


def _keep(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move the running statistics towards those of a batch of `count` pixels."""
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        part = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, part)
        norm.running_var.lerp_(variance * (count / max(1, count - 1)), part)


class _NormFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, eps: float, low: float, high: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, chs = inputs.numel() // inputs.shape[1], inputs.shape[1]
        size = (ctypes.c_longlong(rows), ctypes.c_longlong(chs))
        threads = torch.get_num_threads()
        mean, variance = _statistics(inputs)
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
            outputs = _torchs(inputs, weight, bias, ctx.eps, ctx.low, ctx.high)
            found = torch.autograd.grad(outputs, (inputs, weight, bias), gradient, create_graph=True)
            return *found, None, None, None
        gradient = gradient.contiguous(memory_format=LAST)
        rows, chs = inputs.numel() // inputs.shape[1], inputs.shape[1]
        parts = torch.empty(-(-rows // _ROWS), 2, chs)
        total, product = sums = torch.empty(2, chs)
        maps = [_at(tensor) for tensor in (gradient, inputs, mean, ctx.scale, ctx.shift)]
        size = (ctypes.c_longlong(rows), ctypes.c_longlong(chs))
        clamp = (ctypes.c_float(ctx.low), ctypes.c_float(ctx.high))
        threads = torch.get_num_threads()
        library().norm_backward_sums(*maps, *clamp, *size, _at(sums), _at(parts), threads)
        found_inputs = None
        if ctx.needs_input_grad[0]:
            level = ctx.scale * total / rows
            slope = ctx.scale * inverse.square() * product / rows
            found_inputs = torch.empty_like(inputs)
            library().norm_backward_inputs(
                *maps, _at(level), _at(slope), *clamp, *size, _at(found_inputs), threads
            )
        return found_inputs, product * inverse, total, None, None, None


def _statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each channel."""
    rows, chs = inputs.numel() // inputs.shape[1], inputs.shape[1]
    mean, variance = torch.empty(2, chs)
    parts = torch.empty(-(-rows // _ROWS), 2, chs)
    size = (ctypes.c_longlong(rows), ctypes.c_longlong(chs))
    library().norm_statistics(
        _at(inputs), *size, _at(mean), _at(variance), _at(parts), torch.get_num_threads()
    )
    return mean, variance


def _torchs(inputs: Tensor, weight: Tensor, bias: Tensor, eps: float, low: float, high: float) -> Tensor:
    """Return what torch's own functions make of the same."""
    outputs = F.batch_norm(inputs, None, None, weight, bias, True, 0.0, eps)
    if low > -math.inf:
        outputs = F.hardtanh(outputs, low, high) if high < math.inf else F.relu(outputs)
    return outputs


# ---- MBConv ------------------------------------------------------------------------------------------------


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
        and _is_square_depthwise(conv)
        and int(conv.padding[0]) < conv.kernel_size[0] <= min(features.shape[-2:]) + 2 * int(conv.padding[0])
        and all(type(norm) is NormAct for norm in norms)
        and all(type(norm.act) in _CLAMPS and isinstance(norm.drop, nn.Identity) for norm in norms)
        and not any(map(_is_watched, (conv, *norms)))
        and all(_can(norm, features) for norm in norms)
        and torch.is_grad_enabled()
        and _fits("convolution", features, conv.weight)
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
    settings = tuple((norm.eps, *_CLAMPS[type(norm.act)]) for norm in norms)
    outputs: Tensor
    outputs, *found = _ChainFunction.apply(inputs, *weights, settings, conv.stride[0], int(conv.padding[0]))  # type: ignore[no-untyped-call]
    for norm, pixels, mean, variance in zip(norms, (inputs, outputs), found[::2], found[1::2], strict=True):
        _keep(norm, mean, variance, pixels.numel() // pixels.shape[1])
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
        shape = _Shape(images, height, width, chs, *out_sizes, side, stride, padding)
        (eps, *clamp), (second_eps, *second_clamp) = settings
        mean, variance = _statistics(inputs)
        inverse = torch.rsqrt(variance + eps)
        scale = inverse * weight.detach()
        shift = bias.detach() - mean * scale
        taps = kernel.detach().permute(2, 3, 0, 1).reshape(side * side, chs).contiguous()
        middle = torch.empty(images, chs, *out_sizes, memory_format=LAST)
        second_mean, second_variance = torch.empty(2, chs)
        parts = torch.empty(images, 2, chs)
        library().chain_forward(
            *map(_at, (inputs, taps, middle)),
            ctypes.byref(_Norm(_at(mean), _at(scale), _at(shift), None, None, *clamp)),
            *map(_at, (second_mean, second_variance, parts)),
            ctypes.byref(shape),
            threads,
        )
        second_inverse = torch.rsqrt(second_variance + second_eps)
        second_scale = second_inverse * second_weight.detach()
        second_shift = second_bias.detach() - second_mean * second_scale
        outputs = torch.empty_like(middle)
        library().norm_forward(
            *map(_at, (middle, outputs, second_scale, second_shift)),
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
            features = _torchs(inputs, weight, bias, *first_settings)
            features = F.conv2d(features, kernel, None, shape.stride, shape.padding, 1, len(kernel))
            outputs = _torchs(features, second_weight, second_bias, *second_settings)
            wanted = (inputs, weight, bias, kernel, second_weight, second_bias)
            return *torch.autograd.grad(outputs, wanted, gradient, create_graph=True), None, None, None
        gradient = gradient.contiguous(memory_format=LAST)
        chs, threads = inputs.shape[1], torch.get_num_threads()
        mean, scale, shift, inverse = ctx.firsts
        second_mean, second_scale, second_shift, second_inverse = ctx.seconds
        rows = middle.numel() // chs
        parts = torch.empty(-(-rows // _ROWS), 2, chs)
        second_total, second_product = sums = torch.empty(2, chs)
        library().norm_backward_sums(
            *map(_at, (gradient, middle, second_mean, second_scale, second_shift)),
            *map(ctypes.c_float, second_settings[1:]),
            ctypes.c_longlong(rows),
            ctypes.c_longlong(chs),
            *map(_at, (sums, parts)),
            threads,
        )
        level = second_scale * second_total / rows
        slope = second_scale * second_inverse.square() * second_product / rows
        values = len(ctx.taps) + 2
        parts = torch.empty(-(-len(inputs) // _IMAGES), values, chs)
        sums = torch.empty(values, chs)
        found_inputs = torch.empty_like(inputs)
        library().chain_backward(
            *map(_at, (gradient, inputs, middle, ctx.taps)),
            ctypes.byref(_Norm(_at(mean), _at(scale), _at(shift), None, None, *first_settings[1:])),
            ctypes.byref(
                _Norm(
                    *map(_at, (second_mean, second_scale, second_shift, level, slope)), *second_settings[1:]
                )
            ),
            *map(_at, (found_inputs, sums, parts)),
            ctypes.byref(shape),
            threads,
        )
        *_, total, product = sums
        rows = inputs.numel() // chs
        level = scale * total / rows
        slope = scale * inverse.square() * product / rows
        library().norm_backward_inputs(
            *map(_at, (found_inputs, inputs, mean, scale, shift, level, slope)),
            *map(ctypes.c_float, (-math.inf, math.inf)),
            ctypes.c_longlong(rows),
            ctypes.c_longlong(chs),
            _at(found_inputs),
            threads,
        )
        found_kernel = torch.empty_like(kernel)
        side = kernel.shape[-1]
        found_kernel.copy_(sums[:-2].view(side, side, chs, 1).permute(2, 3, 0, 1))
        found = (found_inputs, product * inverse, total, found_kernel)
        return *found, second_product * second_inverse, second_total, None, None, None


_ROWS, _IMAGES = 64, 8
"""The sizes of the parts, as in the kernels."""


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
