"""BatchNorm statistics of a single network: those of a supernet's training fit no path through it."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def calibrate(chain: nn.Module, batches: Iterable[Sequence[Any] | Tensor]) -> None:
    """Replace running statistics by the mean of those of the batches, each of which counts the same.

    Batches are images, or begin with images. Only BatchNorm is in training mode meanwhile, so that nothing
    but statistics changes. Without a batch they are left reset, and that is refused.
    """
    layers = [module for module in chain.modules() if isinstance(module, _BatchNorm)]
    modes = [(module, module.training) for module in chain.modules()]
    momenta = [layer.momentum for layer in layers]
    chain.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative: the mean over batches
        layer.training = True  # without what timm's hold inside, such as dropout
    seen = 0
    try:
        reference = next(chain.parameters())
        for batch in batches:
            images: Tensor = batch if isinstance(batch, Tensor) else batch[0]
            chain(images.to(reference.device, reference.dtype))
            seen += 1
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if layers and not seen:
        raise ValueError("there are no images to take BatchNorm statistics from")
