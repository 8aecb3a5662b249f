"""How tensors lie in memory."""

import torch
from torch import nn


def use_channels_last(network: nn.Module) -> None:
    """Lay out convolution weights as their gradients will be; on CPU the faster way by a third.

    `network.to(memory_format=...)` would leave 1x1 kernels as they are, to the displeasure of DDP.
    """
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.clone(memory_format=torch.channels_last)
