"""The widest part of a head, a few channels at a time: 1x1 convolution, BatchNorm, ReLU, global average.

A head that ends in 2048 channels makes its largest map last, only to average it. All four operators work
channel by channel, so that slices of channels can go through them one after the other; and because a slice
costs little to make, it is made again in the backward pass instead of being kept.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import has_torch_function
from torch.utils.checkpoint import checkpoint

from local_learning.relu_mean import relu_mean

SLICES = 4

LARGE = 2**21
"""Values of the wide map, over the batch, from which on slices are worth the trouble: 8 MiB."""


class Expansion(nn.Module):
    """Means over the map of relu(bn(conv(x))): (B, in_chs, H, W) to (B, out_chs)."""

    def __init__(self, in_chs: int, out_chs: int, *, large: int = LARGE) -> None:
        super().__init__()
        self.large = large
        self.conv = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_chs)

    def forward(self, inputs: Tensor) -> Tensor:
        if not self._slices(inputs):
            return relu_mean(self.bn(self.conv(inputs)))
        tracked = self.bn.track_running_stats
        if tracked:
            assert self.bn.num_batches_tracked is not None
            self.bn.num_batches_tracked.add_(1)
        columns = [self.conv.weight, self.bn.weight, self.bn.bias]
        columns += [self.bn.running_mean, self.bn.running_var]  # type: ignore[list-item]  # this one has both
        parts = []
        for weight, scale, shift, mean, var in zip(
            *(column.chunk(SLICES) for column in columns), strict=True
        ):
            run = _Slice(mean, var, self.bn.momentum or 0.0, self.bn.eps, moves=tracked)
            arguments = (inputs, weight, scale, shift)
            parts.append(checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(parts, dim=1)

    def _slices(self, inputs: Tensor) -> bool:
        """Whether there is something to save, and nothing that would not be there when it is made again.

        SyncBatchNorm and compilers have ways of their own, and modes that intercept functions (as for
        BatchNorm over CPU ranks) are off in a backward pass.
        """
        return (
            self.training
            and inputs.shape[0] * self.bn.num_features * inputs.shape[2] * inputs.shape[3] >= self.large
            and torch.is_grad_enabled()
            and type(self.bn) is nn.BatchNorm2d
            and self.bn.momentum is not None
            and not torch.compiler.is_compiling()
            and not has_torch_function((inputs,))
        )


class _Slice:
    """One slice of channels; running statistics move at the first call, not when it is made again."""

    def __init__(self, mean: Tensor, var: Tensor, momentum: float, eps: float, *, moves: bool) -> None:
        self._mean, self._var, self._moves = mean, var, moves
        self._momentum, self._eps = momentum, eps

    def __call__(self, inputs: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        features = F.conv2d(inputs, weight)
        mean, var = (self._mean, self._var) if self._moves else (self._mean.clone(), self._var.clone())
        self._moves = False
        return relu_mean(F.batch_norm(features, mean, var, scale, shift, True, self._momentum, self._eps))
