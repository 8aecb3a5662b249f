"""ReLU and global average pooling become one operator that keeps little for the backward pass."""

from typing import Any

import torch
from torch import Tensor, nn


class ReluMean(nn.Module):
    """This module gives the mean of each channel after ReLU: (B, C, H, W) to (B, C).

    Autograd would keep the whole map after the ReLU, and a head's last map is its largest. The backward
    pass needs only whether each value is positive, which takes one byte. The operator can be
    differentiated twice.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        return relu_mean(inputs)


def relu_mean(inputs: Tensor) -> Tensor:
    """Return the mean of each channel after ReLU: (B, C, H, W) to (B, C)."""
    outputs: Tensor = _ReluMean.apply(inputs)  # type: ignore[no-untyped-call]
    return outputs


class _ReluMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs > 0)
        return inputs.clamp_min(0).mean((2, 3))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        share = gradients[0][:, :, None, None] / (positive.shape[2] * positive.shape[3])
        return torch.where(positive, share, share.new_zeros(()))
