"""This module sets the memory layout of tensors, and repairs a convolution that one layout breaks on CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VECTOR = 16
"""oneDNN's widest vector of float32 holds this many channels; those of AVX2 hold 8."""


def use_channels_last(network: nn.Module) -> None:
    """Lay out convolution weights as their gradients will be, which is a third faster on CPU.

    `network.to(memory_format=...)` would leave 1x1 kernels as they are, and DDP would warn about them.
    """
    guard_convolutions(network)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.clone(memory_format=torch.channels_last)


def guard_convolutions(network: nn.Module) -> None:
    """Turn torch's strided 1x1 convolutions into `StridedPointwise`, in place; names and weights stay.

    Chains, blocks, heads and supernets that this project builds are all guarded. Subclasses of Conv2d from
    elsewhere and direct calls of `conv2d` are not reached.
    """
    for module in network.modules():
        # Groups and channels may change later, so they are looked at when it runs.
        pointwise = type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.stride != (1, 1)
        if pointwise and module.padding in ((0, 0), "valid"):
            module.__class__ = StridedPointwise


class StridedPointwise(nn.Conv2d):
    """A `StridedPointwise` is a strided 1x1 convolution that avoids a fault in torch's own on CPU.

    On x86, torch computes this convolution with oneDNN, which gathers the pixels in a buffer for the weights'
    gradient. It writes past the end of that buffer if there are fewer channels than a vector holds, the
    memory is channels last and the stride divides the map. The process then dies or hangs, or the gradient is
    wrong. A contiguous input does not help, because a 1x1 weight in channels last counts as contiguous and
    decides the layout. Picking the pixels first leaves stride 1, which is computed correctly; from 16 images
    on, the result has the same bits.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.at_risk(input):
            outputs: Tensor = super()._conv_forward(input, weight, bias)
            return outputs
        # Pooling over one pixel at a time picks it. A slice would too, but its gradient is not channels last.
        return F.conv2d(F.avg_pool2d(input, 1, self.stride), weight, bias)

    def at_risk(self, input: Tensor) -> bool:
        """Return whether torch's own convolution could be faulty on this input, with gradients enabled."""
        return (
            input.device.type == "cpu"
            and self.groups == 1
            and self.in_channels < VECTOR
            and all(size % step == 0 for size, step in zip(input.shape[-2:], self.stride, strict=True))
            and torch.is_grad_enabled()
        )
