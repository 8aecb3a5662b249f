"""This module measures accuracy by exact counts: every image once, whatever the number of processes."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, pairwise

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from local_learning.blocks import DecoupledNet
from local_learning.ensemble import accuracies_of_heads, last_two, layerwise
from local_learning.groups import GroupedHeads
from retrain.pipeline.neighbours import Neighbours
from retrain.pipeline.role import Role
from tools.exact_means import exact_means
from tools.images.loaders import Batch
from tools.options.config import flag


def evaluate(
    network: DecoupledNet, batches: Iterable[Batch], accelerator: Accelerator
) -> Mapping[str, float]:
    """Return the classifier's loss, top-1 and top-5 in evaluation mode, over all processes.

    With up to five classes there is no top-5. Where there are other heads, two ensembles are also measured:
    the last two heads together, as in SEDONA, and all heads weighted by depth, as in GN-DGL. The top-1 of
    each head is given by block. The neuron groups of a block count by the mean of their softmax.
    """
    dtype = next(network.parameters()).dtype

    def count(batch: Batch) -> Mapping[str, Tensor]:
        with accelerator.autocast():
            outputs = network.all_logits(batch.images.to(dtype))
        return _counts([_wide(heads) for heads in outputs], batch.targets)

    return exact_means(network, count, batches)


def votes(network: DecoupledNet) -> list[int]:
    """Return the number of logits of every block that has a head: one, or one per neuron group."""
    heads = [block.head for block in network.blocks if block.head is not None]
    return [len(head.heads) if isinstance(head, GroupedHeads) else 1 for head in heads]


def heads_at_chance(accuracies: Mapping[str, float], num_classes: int) -> dict[int, float]:
    """Return the accuracy of those heads that do little better than guessing, by block."""
    chance = 1 / num_classes
    limit = min(1.5 * chance, chance + 0.1 * (1 - chance))
    return {block: value for block, value in accuracies_of_heads(accuracies).items() if value < limit}


def about_chance(block: int, accuracy: float, num_classes: int) -> str:
    """Say that the head of a block has not learnt, and what helps."""
    return (
        f"the head of block {block} is right for {accuracy:.2%} of the images, where guessing is for "
        f"{1 / num_classes:.2%}, and teaches its block little. A lower {flag('local.head_rate')}, such as "
        f"0.25, may cure this, and so may, for heads of the papers, {flag('local.last_layer')} 0.1"
    )


@torch.no_grad()
def evaluate_in_stages(
    network: DecoupledNet,
    batches: Iterable[Batch],
    accelerator: Accelerator,
    *,
    role: Role,
    neighbours: Neighbours,
    votes: list[int],
) -> Mapping[str, float]:
    """Evaluate as `evaluate` does, where other processes have other blocks.

    Images enter at the first stage and are counted at the last one. `votes` are those of the whole network.
    Processes beyond the last complete pipe take no part.
    """
    totals: dict[str, Tensor] = {}
    training = network.training
    network.eval()
    if neighbours.pipe < neighbours.pipes:
        source = _images(batches, network) if role.own.start == 0 else _evaluated(neighbours)
        for features, targets, logits in source:
            with accelerator.autocast():
                for index in role.own:
                    features, block_logits = network.blocks[index].judge(features)
                    logits += _wide(block_logits)
            if role.own.stop < len(network.blocks):
                neighbours.pass_evaluated([features, targets, *([torch.stack(logits, 1)] if logits else [])])
                continue
            heads = [tuple(logits[start:end]) for start, end in pairwise(accumulate(votes, initial=0))]
            for name, value in _counts(heads, targets).items():
                totals[name] = totals.get(name, 0) + value.double().cpu()
        neighbours.pass_evaluated([])
    network.train(training)
    gathered: list[dict[str, Tensor]] = [{}] * accelerator.num_processes
    with neighbours.waiting():
        torch.distributed.all_gather_object(gathered, totals, group=role.control)
    neighbours.traffic.taken()  # the cost of an evaluation belongs to no step
    counted = [counts for counts in gathered if counts]
    sums = {name: sum(float(counts[name]) for counts in counted) for name in counted[0]}
    images = sums.pop("images")
    return {name: value / images for name, value in sums.items()}


def _images(batches: Iterable[Batch], network: DecoupledNet) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    dtype = next(network.parameters()).dtype
    for batch in batches:
        yield batch.images.to(dtype), batch.targets, []


def _evaluated(neighbours: Neighbours) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """Return features, targets and the logits of all heads below, batch by batch."""
    while message := neighbours.take_evaluated():
        features, targets, *logits = message
        yield features, targets, list(logits[0].unbind(1)) if logits else []


def _wide(heads: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple(z.to(torch.promote_types(z.dtype, torch.float32)) for z in heads)


def _counts(outputs: list[tuple[Tensor, ...]], targets: Tensor) -> dict[str, Tensor]:
    """Return the sums over a batch of everything that is measured."""
    heads = [_as_one(groups) for groups in outputs]
    logits = heads[-1]
    sums = {
        "images": torch.tensor(len(targets), device=logits.device),
        "loss": F.cross_entropy(logits, targets, reduction="sum"),
    } | _top(logits, targets)
    if len(heads) > 1:
        sums |= _top(last_two(heads), targets, "last_two_")
        sums |= _top(layerwise(outputs), targets, "layerwise_")
        sums |= {f"heads_top1/{k}": _hits(head, targets) for k, head in enumerate(heads[:-1], start=1)}
    if logits.shape[1] <= 5:  # all classes are among the five best, so top-5 says nothing
        return {name: value for name, value in sums.items() if not name.endswith("top5")}
    return sums


def _as_one(groups: tuple[Tensor, ...]) -> Tensor:
    """Return a block's logits: its only ones, or the logarithm of its groups' mean probability."""
    if len(groups) == 1:
        return groups[0]
    return torch.stack([F.log_softmax(logits, 1) for logits in groups]).logsumexp(0)


def _top(scores: Tensor, targets: Tensor, prefix: str = "") -> dict[str, Tensor]:
    """Count how often the label has the highest score, and one of the five highest."""
    return {f"{prefix}top{k}": _hits(scores, targets, min(k, scores.shape[1])) for k in (1, 5)}


def _hits(scores: Tensor, targets: Tensor, k: int = 1) -> Tensor:
    return (scores.topk(k).indices == targets[:, None]).sum()
