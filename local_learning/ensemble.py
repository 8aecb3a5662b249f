"""Predictions from several heads at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from local_learning.losses import upcast
from tools.options.config import check_choice


def last_two(logits: Sequence[Tensor]) -> Tensor:
    """SEDONA's ensemble: the sum of the last two heads' log-probabilities; of the only one, where it is."""
    return torch.stack([upcast(each).log_softmax(dim=1) for each in logits[-2:]]).sum(dim=0)


def layerwise(outputs: Sequence[Sequence[Tensor]], on: str = "softmax") -> Tensor:
    """GN-DGL's and DGL's ensemble: a mean over all blocks, each weighing twice as much as the one below.

    `outputs` has the logits of each block's neuron groups, which weigh the same. They are averaged as
    probabilities, or with `on` "logits" as they are (DGL on CIFAR-10).
    """
    check_choice("on", on, ("softmax", "logits"))
    blocks = []
    for depth, groups in enumerate(outputs):
        votes = torch.stack([upcast(each) for each in groups])
        votes = votes.softmax(dim=2) if on == "softmax" else votes
        blocks.append(votes.mean(dim=0) * (2**depth / (2 ** len(outputs) - 1)))
    return torch.stack(blocks).sum(dim=0)
