"""A single network takes BatchNorm statistics of its own; those of a supernet's training fit no path."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def calibrate(chain: nn.Module, batches: Iterable[Sequence[Any] | Tensor]) -> None:
    """Replace running statistics by the mean of those of the batches, which all count the same.

    Batches are images, or begin with images. Only BatchNorm is in training mode meanwhile, so nothing but
    the statistics changes. Without any batch the statistics would stay reset, which is refused.
    """
    seen = 0
    with gathering([chain]):
        reference = next(chain.parameters())
        for batch in batches:
            chain(images_of(batch).to(reference.device, reference.dtype))
            seen += 1
    if not seen and has_statistics(chain):
        raise ValueError("there are no images to take BatchNorm statistics from")


@contextmanager
def gathering(networks: Iterable[nn.Module], momentum: float | None = None) -> Iterator[None]:
    """Let BatchNorm layers of the networks take new statistics inside this context.

    All else is in evaluation mode. The statistics are means over the batches or, with a `momentum`, moving
    averages.
    """
    networks = list(networks)
    tops = [network.training for network in networks]
    modules = [module for network in networks for module in network.modules()]
    modes = [module.training for module in modules]
    layers = [module for module in modules if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for network in networks:
        network.eval()
    for layer in layers:
        layer.reset_running_stats()
        if layer.num_batches_tracked is not None:
            # Each batch reads it: on a GPU that would wait for the device, layer by layer.
            layer.num_batches_tracked = layer.num_batches_tracked.cpu()
        layer.momentum = momentum
        layer.training = True  # this layer alone: timm's have others inside, such as dropout
    try:
        yield
    finally:
        for layer, before in zip(layers, momenta, strict=True):
            layer.momentum = before
            if layer.num_batches_tracked is not None and layer.running_mean is not None:
                layer.num_batches_tracked = layer.num_batches_tracked.to(layer.running_mean.device)
        for network, top in zip(networks, tops, strict=True):
            network.train(top)  # some modules do more here than set a flag
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def images_of(batch: Sequence[Any] | Tensor) -> Tensor:
    """Return the images of a batch, which are all of it or come first."""
    images: Tensor = batch if isinstance(batch, Tensor) else batch[0]
    return images


def has_statistics(network: nn.Module) -> bool:
    """Return whether a network has BatchNorm layers."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())
