"""Several heads can predict together, or each by itself."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from local_learning.losses import upcast
from tools.options.config import check_choice


def last_two(logits: Sequence[Tensor]) -> Tensor:
    """Return SEDONA's ensemble, the sum of the last two heads' log-probabilities.

    A single head stands alone.
    """
    return torch.stack([upcast(head).log_softmax(dim=1) for head in logits[-2:]]).sum(dim=0)


def layerwise(outputs: Sequence[Sequence[Tensor]], on: str = "softmax") -> Tensor:
    """Return GN-DGL's and DGL's ensemble, in which each block counts twice as much as the one below.

    `outputs` holds the logits of each block's neuron groups, which all count the same. The ensemble is a
    mean over probabilities, or over the logits themselves where `on` is "logits" (DGL on CIFAR-10).
    """
    check_choice("on", on, ("softmax", "logits"))
    blocks = []
    for depth, groups in enumerate(outputs):
        votes = torch.stack([upcast(logits) for logits in groups])
        votes = votes.softmax(dim=2) if on == "softmax" else votes
        blocks.append(votes.mean(dim=0) * (2**depth / (2 ** len(outputs) - 1)))
    return torch.stack(blocks).sum(dim=0)


def accuracies_of_heads(measured: Mapping[str, float]) -> dict[int, float]:
    """Return, by block, the accuracy of the head that gives its loss, from what an evaluation measured."""
    return {int(name.rpartition("/")[2]): value for name, value in measured.items() if "heads_top1/" in name}
