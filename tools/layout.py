"""How tensors lie in memory, and the convolution that a CPU gets wrong in one of the layouts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VECTOR = 16
"""Channels that oneDNN's widest vector of float32 holds; those of AVX2 hold 8."""


def use_channels_last(network: nn.Module) -> None:
    """Lay out convolution weights as their gradients will be; on CPU the faster way by a third.

    `network.to(memory_format=...)` would leave 1x1 kernels as they are, to the displeasure of DDP.
    """
    guard_convolutions(network)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.clone(memory_format=torch.channels_last)


def guard_convolutions(network: nn.Module) -> None:
    """Make torch's strided 1x1 convolutions `StridedPointwise`, in place; names and weights stay.

    All that is built here is guarded: chains, blocks, heads, supernets. Others' subclasses of Conv2d and
    direct calls of `conv2d` are not reached.
    """
    for module in network.modules():
        # Groups and channels may change later, so they are looked at when it runs.
        pointwise = type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.stride != (1, 1)
        if pointwise and module.padding in ((0, 0), "valid"):
            module.__class__ = StridedPointwise


class StridedPointwise(nn.Conv2d):
    """A 1x1 convolution with a stride, which picks its pixels first where torch's own is faulty.

    oneDNN, which computes it for torch on x86, gathers these pixels in a buffer for the weights' gradient.
    With fewer channels than a vector holds it writes behind the end of that buffer, if the memory is channels
    last and the stride divides the map: the process dies or hangs, or the gradient is wrong. A contiguous
    input is no way out, because a 1x1 weight in channels last counts as contiguous and decides the layout.
    Picking the pixels beforehand leaves stride 1, which is right: from 16 images on, with the same bits.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.at_risk(input):
            outputs: Tensor = super()._conv_forward(input, weight, bias)
            return outputs
        # Pooling one pixel at a time picks it. A slice would too, but its gradient is not channels last.
        return F.conv2d(F.avg_pool2d(input, 1, self.stride), weight, bias)

    def at_risk(self, input: Tensor) -> bool:
        """Whether torch's own could be faulty on this input, now that gradients are taken."""
        return (
            input.device.type == "cpu"
            and self.groups == 1
            and self.in_channels < VECTOR
            and all(size % step == 0 for size, step in zip(input.shape[-2:], self.stride, strict=True))
            and torch.is_grad_enabled()
        )
