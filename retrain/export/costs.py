"""This module counts a network's cost for one image in the three common ways."""

import logging
import warnings
from dataclasses import dataclass

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tools.cost import count_macs, count_params


@dataclass(frozen=True)
class ImageCosts:
    """An `ImageCosts` is the cost of one image in evaluation mode."""

    params: int
    macs: int | None
    """These are the multiply-accumulates of convolutions, linear layers and products, or None if unknown."""
    fvcore: int
    """fvcore counts the same, and also numbers that are normalised (two each) and pooled."""
    fvcore_by_operator: dict[str, int]
    torch_flops: int
    """torch's FlopCounterMode counts two for each multiply-accumulate."""

    def __str__(self) -> str:
        macs = "an unknown number of" if self.macs is None else f"{self.macs:,}"
        return (
            f"{self.params:,} params; for one image {macs} MACs (the papers' FLOPs), {self.fvcore:,} by "
            f"fvcore (with BatchNorm and pooling), {self.torch_flops:,} FLOPs by torch (2 per MAC)"
        )


def count_costs(network: nn.Module, image_shape: tuple[int, ...]) -> ImageCosts:
    """Return all costs of a network that is in evaluation mode."""
    assert not network.training
    images = torch.zeros(1, *image_shape)
    try:
        macs = count_macs(network, image_shape)
    except ValueError:
        macs = None
    by_operator = _fvcores(network, images)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    return ImageCosts(
        count_params(network), macs, sum(by_operator.values()), by_operator, int(counter.get_total_flops())
    )


def _fvcores(network: nn.Module, images: torch.Tensor) -> dict[str, int]:
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come from torch.jit, by which fvcore looks into the network
        analysis = FlopCountAnalysis(network, images)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return {name: int(count) for name, count in analysis.by_operator().items() if count}
