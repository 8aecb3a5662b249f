"""The widest part of a head is computed without its wide map.

That part is a 1x1 convolution, BatchNorm, ReLU and a global average. A head that ends in 2048 channels
makes its largest map last, only to average it. Where that map is large it need not exist. The convolution
is linear, so its statistics follow from the covariance of its inputs. The mean of a ReLU is a linear
function of the inputs' means over those pixels at which the channel is on:

    mean(relu(w' x + b)) = w' q + b n,   q = mean(on x), n = mean(on), on = (w' x + b > 0)

Here w' and b are the weight and bias into which BatchNorm is folded. Which pixels are on is computed
sample by sample, and again in the backward pass. All else is small, and can be differentiated any number
of times.

Shapes: B samples, K channels that come in, S pixels, M channels that go out.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from local_learning.networks.relu_mean import relu_mean
from tools.batchnorm import statistics_are_shared

AT_ONCE = 2**18
"""How many values of the wide map exist at a time on a CPU, so that they fit into its cache."""


class Expansion(nn.Module):
    """This module gives the means over the map of relu(bn(conv(x))): (B, K, H, W) to (B, M)."""

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_chs)

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.folds(inputs):
            return relu_mean(self.bn(self.conv(inputs)))
        with torch.autocast(inputs.device.type, enabled=False):
            return self._folded(inputs.flatten(2).to(self.conv.weight.dtype))

    def _folded(self, x: Tensor) -> Tensor:
        mean, count = x.mean((0, 2)), x.shape[0] * x.shape[2]
        centred = x - mean[:, None]
        covariance = torch.bmm(centred, centred.mT).sum(0) / count
        weight = self.conv.weight.flatten(1)
        variance = ((weight @ covariance) * weight).sum(1)
        self._move_statistics((weight @ mean).detach(), variance.detach() * (count / max(1, count - 1)))
        weight = (self.bn.weight * torch.rsqrt(variance + self.bn.eps))[:, None] * weight
        q, n = _MeansWhereOn.apply(centred, weight.detach(), self.bn.bias.detach())  # type: ignore[no-untyped-call]
        means: Tensor = torch.einsum("bmk,mk->bm", q, weight) + self.bn.bias * n
        return means

    def _move_statistics(self, mean: Tensor, variance: Tensor) -> None:
        bn = self.bn
        if bn.track_running_stats:
            assert bn.momentum is not None
            assert bn.running_mean is not None
            assert bn.running_var is not None
            assert bn.num_batches_tracked is not None
            bn.num_batches_tracked.add_(1)
            bn.running_mean.lerp_(mean, bn.momentum)
            bn.running_var.lerp_(variance, bn.momentum)

    def folds(self, inputs: Tensor) -> bool:
        """Return whether the means are computed without the wide map.

        They are if the map is large beside its inputs, and nothing wants to see it or its statistics.
        """
        return (
            self.training
            and 2 * inputs.shape[1] <= inputs.shape[2] * inputs.shape[3]
            and torch.is_grad_enabled()
            and isinstance(self.bn, nn.BatchNorm2d)
            and self.bn.momentum is not None
            and not torch.compiler.is_compiling()
            and not statistics_are_shared()
        )


class _MeansWhereOn(torch.autograd.Function):
    """q (B, M, K) and n (B, M) of x (B, K, S); x is differentiated only where it is averaged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, bias)
        ctx.set_materialize_grads(False)
        n = x.new_empty(len(x), len(weight))
        q = _means_where_on(x, x, weight, bias, n)
        ctx.mark_non_differentiable(n)
        return q, n

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        if gradients[0] is None:
            return None, None, None
        gx: Tensor = _SpreadWhereOn.apply(gradients[0], *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return gx, None, None


class _SpreadWhereOn(torch.autograd.Function):
    """The transpose of the means: from (B, M, K) to (B, K, S)."""

    @staticmethod
    def forward(ctx: Any, gq: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        shares = gq.transpose(1, 2) / x.shape[2]
        gx = torch.empty_like(x)
        for rows, on in _where_on(x, weight, bias):
            gx[rows] = torch.bmm(shares[rows], on)
        return gx

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _means_where_on(gradients[0], *ctx.saved_tensors), None, None, None


def _means_where_on(
    values: Tensor, x: Tensor, weight: Tensor, bias: Tensor, parts: Tensor | None = None
) -> Tensor:
    """Return the means over pixels of (B, K, S) values where a channel is on.

    `parts` is set to the share of pixels at which it is on.
    """
    means = x.new_empty(len(x), len(weight), x.shape[1])
    for rows, on in _where_on(x, weight, bias):
        torch.bmm(on, values[rows].transpose(1, 2), out=means[rows])
        if parts is not None:
            torch.mean(on, 2, out=parts[rows])
    return means.div_(x.shape[2])


def _where_on(x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows, with 1 where their channels are on and 0 elsewhere (rows, M, S)."""
    values = len(weight) * x.shape[2]
    at_once = max(1, AT_ONCE // values) if x.device.type == "cpu" else len(x)
    for start in range(0, len(x), at_once):
        part = x[start : start + at_once]
        wide = torch.baddbmm(bias[:, None], weight.expand(len(part), *weight.shape), part)
        yield slice(start, start + at_once), wide.gt_(0)
