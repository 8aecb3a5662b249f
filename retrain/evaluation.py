"""Accuracy by exact counts: every image once, whatever the number of processes."""

from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from local_learning.blocks import DecoupledNet
from local_learning.ensemble import last_two, layerwise
from tools.loaders import Batch
from tools.tally import tally


def evaluate(
    network: DecoupledNet, batches: Iterable[Batch], accelerator: Accelerator
) -> Mapping[str, float]:
    """Loss, top-1 and top-5 of the classifier in eval mode, over all processes' batches together.

    Where there are other heads, also the top-1 of each by block, of the last two together as in SEDONA, and
    of all, weighted by depth, as in GN-DGL; groups of a block count by the mean of their softmax.
    """
    dtype = next(network.parameters()).dtype

    def count(batch: Batch) -> Mapping[str, Tensor]:
        with accelerator.autocast():
            outputs = network.all_logits(batch.images.to(dtype))
        wide = [tuple(z.to(torch.promote_types(z.dtype, torch.float32)) for z in heads) for heads in outputs]
        return _counts(wide, batch.targets)

    return tally(network, count, batches)


def _counts(outputs: list[tuple[Tensor, ...]], targets: Tensor) -> dict[str, Tensor]:
    """Sums over a batch of what is measured."""
    heads = [_as_one(groups) for groups in outputs]
    logits = heads[-1]
    found = {
        "images": torch.tensor(len(targets), device=logits.device),
        "loss": F.cross_entropy(logits, targets, reduction="sum"),
        "top1": _hits(logits, targets),
        "top5": _hits(logits, targets, min(5, logits.shape[1])),
    }
    if len(heads) > 1:
        found["last_two_top1"] = _hits(last_two(heads), targets)
        found["layerwise_top1"] = _hits(layerwise(outputs), targets)
        found |= {f"heads_top1/{k}": _hits(head, targets) for k, head in enumerate(heads[:-1], start=1)}
    return found


def _as_one(groups: tuple[Tensor, ...]) -> Tensor:
    """The logits of a block: its only ones, or the logarithm of the mean probability of its groups."""
    if len(groups) == 1:
        return groups[0]
    return torch.stack([F.log_softmax(each, 1) for each in groups]).logsumexp(0)


def _hits(scores: Tensor, targets: Tensor, k: int = 1) -> Tensor:
    return (scores.topk(k).indices == targets[:, None]).sum()
