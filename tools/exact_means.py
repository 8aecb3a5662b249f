"""This module computes exact means over all images of a split, whatever the number of processes."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from tools.images.batches import Batch


@torch.no_grad()
def exact_means(
    network: nn.Module, count: Callable[[Batch], Mapping[str, Tensor]], batches: Iterable[Batch]
) -> dict[str, float]:
    """Return the means over all images of the sums that `count` returns for each batch.

    The sums are taken in evaluation mode over all processes, and divided by the sum named "images".
    """
    training = network.training
    network.eval()
    totals: dict[str, Tensor] = {}
    for batch in batches:
        for name, value in count(batch).items():
            totals[name] = totals.get(name, 0) + value.double()
    network.train(training)
    sums = torch.stack(list(totals.values()))
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    by_name = dict(zip(totals, sums.tolist(), strict=True))
    images = by_name.pop("images")
    return {name: value / images for name, value in by_name.items()}
