"""BatchNorm is fused with the activation that follows it: the map is read and written half as often.

Sums over the batch are taken in parts and added in double precision, so gradients are also more exact than
torch's.
"""

import ctypes
import math
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from tools.kernels.library import library
from tools.kernels.maps import LAST, ROWS, at, fits


class Norm(nn.BatchNorm2d):
    """This is torch's BatchNorm in less time and with more exact sums."""

    def forward(self, input: Tensor) -> Tensor:
        return (
            _normalised(self, input, -math.inf, math.inf)
            if can_normalise(self, input)
            else super().forward(input)
        )


class NormAct(BatchNormAct2d):
    """This is timm's BatchNorm with an activation, in half the time where that is ReLU, ReLU6 or none."""

    def forward(self, x: Tensor) -> Tensor:
        act = CLAMPS.get(type(self.act))
        if act is None or not isinstance(self.drop, nn.Identity) or not can_normalise(self, x):
            result: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return result
        return _normalised(self, x, *act)


CLAMPS = {
    nn.Identity: (-math.inf, math.inf),
    nn.ReLU: (0.0, math.inf),
    nn.ReLU6: (0.0, 6.0),
}


def can_normalise(norm: nn.BatchNorm2d, inputs: Tensor) -> bool:
    """Return whether the kernels can normalise this map by its batch."""
    return norm.training and fits("norm", inputs, norm.weight, norm.bias)


def _normalised(norm: nn.BatchNorm2d, inputs: Tensor, low: float, high: float) -> Tensor:
    """Normalise by the batch, clamp, and keep the running statistics."""
    outputs: Tensor
    outputs, mean, variance = _NormFunction.apply(inputs, norm.weight, norm.bias, norm.eps, low, high)  # type: ignore[no-untyped-call]
    keep_statistics(norm, mean, variance, inputs.numel() // inputs.shape[1])
    return outputs


def keep_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
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
        mean, variance = statistics(inputs)
        inverse = torch.rsqrt(variance + eps)
        scale = inverse * weight.detach()
        shift = bias.detach() - mean * scale
        outputs = torch.empty_like(inputs)
        clamp = (ctypes.c_float(low), ctypes.c_float(high))
        library().norm_forward(at(inputs), at(outputs), at(scale), at(shift), *clamp, *size, threads)
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
            outputs = as_torch(inputs, weight, bias, ctx.eps, ctx.low, ctx.high)
            found = torch.autograd.grad(outputs, (inputs, weight, bias), gradient, create_graph=True)
            return *found, None, None, None
        gradient = gradient.contiguous(memory_format=LAST)
        rows, chs = inputs.numel() // inputs.shape[1], inputs.shape[1]
        parts = torch.empty(-(-rows // ROWS), 2, chs)
        total, product = sums = torch.empty(2, chs)
        maps = [at(tensor) for tensor in (gradient, inputs, mean, ctx.scale, ctx.shift)]
        size = (ctypes.c_longlong(rows), ctypes.c_longlong(chs))
        clamp = (ctypes.c_float(ctx.low), ctypes.c_float(ctx.high))
        threads = torch.get_num_threads()
        library().norm_backward_sums(*maps, *clamp, *size, at(sums), at(parts), threads)
        found_inputs = None
        if ctx.needs_input_grad[0]:
            level = ctx.scale * total / rows
            slope = ctx.scale * inverse.square() * product / rows
            found_inputs = torch.empty_like(inputs)
            library().norm_backward_inputs(
                *maps, at(level), at(slope), *clamp, *size, at(found_inputs), threads
            )
        return found_inputs, product * inverse, total, None, None, None


def statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each channel."""
    rows, chs = inputs.numel() // inputs.shape[1], inputs.shape[1]
    mean, variance = torch.empty(2, chs)
    parts = torch.empty(-(-rows // ROWS), 2, chs)
    size = (ctypes.c_longlong(rows), ctypes.c_longlong(chs))
    library().norm_statistics(at(inputs), *size, at(mean), at(variance), at(parts), torch.get_num_threads())
    return mean, variance


def as_torch(inputs: Tensor, weight: Tensor, bias: Tensor, eps: float, low: float, high: float) -> Tensor:
    """Return what torch's own functions make of the same."""
    outputs = F.batch_norm(inputs, None, None, weight, bias, True, 0.0, eps)
    if low > -math.inf:
        outputs = F.hardtanh(outputs, low, high) if high < math.inf else F.relu(outputs)
    return outputs
