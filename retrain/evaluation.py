"""Accuracy by exact counts: every image once, whatever the number of processes."""

from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from tools.loaders import Batch


@torch.no_grad()
def evaluate(network: nn.Module, batches: Iterable[Batch], accelerator: Accelerator) -> Mapping[str, float]:
    """Loss, top-1 and top-5 of the network in eval mode over all processes' batches together."""
    training, dtype = network.training, next(network.parameters()).dtype
    network.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    for batch in batches:
        with accelerator.autocast():
            logits = network(batch.images.to(dtype))
        totals += _counts(logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.targets)
    network.train(training)
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(totals)
    images, loss, top1, top5 = totals.tolist()
    return {"loss": loss / images, "top1": top1 / images, "top5": top5 / images}


def _counts(logits: Tensor, targets: Tensor) -> Tensor:
    k = min(5, logits.shape[1])
    hits = logits.topk(k).indices == targets[:, None]
    loss = F.cross_entropy(logits, targets, reduction="sum")
    counts = [torch.tensor(float(len(targets)), device=logits.device), loss, hits[:, 0].sum(), hits.sum()]
    return torch.stack([count.double() for count in counts])
