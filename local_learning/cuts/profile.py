"""This module measures what layers, heads and blocks cost, to balance cuts and to compare methods."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from local_learning.blocks import Block, DecoupledNet
from local_learning.chain import Chain
from local_learning.cuts.head_width import PAPER
from local_learning.decoupling import Decoupling
from local_learning.features import as_map
from local_learning.groups import GroupedHeads
from local_learning.heads import HeadsOf, layout_for
from local_learning.later.head import Fit, Summed
from local_learning.later.request import head_at
from tools.cost import count_macs, count_params, saved_activation_bytes
from tools.kernels.modules import use_kernels

_REPEATS = 5
CORRECTIONS = 4


@dataclass(frozen=True)
class Costs:
    """These are the costs of each layer, of a head on each layer, and of the classifier."""

    layers: tuple[float, ...]
    """The cost of each layer."""
    heads: tuple[float, ...]
    """The cost of a head after each layer."""
    classifier: float
    """The cost of the classifier."""
    entries: tuple[float, ...]
    """The cost of beginning a block with each layer: the bytes of its inputs, which no other layer of the
    block keeps."""


def measure_costs(
    chain: Chain,
    head: str,
    num_classes: int,
    image_size: int,
    *,
    by: str,
    image_chs: int = 3,
    batch_size: int = 32,
    head_width: str | float = PAPER,
    kernels: str = "torch",
) -> Costs:
    """Measure the cost of forward and backward passes.

    The chain is left as it is.

    Arguments:
        head: The kind of head to put on each layer. Without one, heads cost nothing.
        by: What to measure: time in seconds, macs (multiply-accumulates of the forward pass), or memory
            (bytes kept for the backward pass).
        kernels: Whose functions compute what is timed, as `--kernels` names them.
    """
    chain = copy.deepcopy(chain).train()
    kernels = kernels if by == "time" else "torch"
    use_kernels(chain, kernels)
    reference = next(chain.parameters())
    with torch.random.fork_rng(devices=[reference.device] if reference.is_cuda else []), torch.enable_grad():
        torch.manual_seed(0)
        features = torch.randn(
            batch_size, image_chs, image_size, image_size, device=reference.device, dtype=reference.dtype
        ).contiguous(memory_format=torch.channels_last)
        pieces, heads = [], []
        image_shape = (image_chs, image_size, image_size)
        heads_of = HeadsOf(chain, num_classes, image_shape, head_width=head_width)
        for number, layer in enumerate(chain.layers, start=1):
            pieces.append((layer, features))
            features = layer(features).detach()
            if head:
                kind, shape = head_at(head, number, chain.num_layers), tuple(features.shape)
                made = _OnFeatures(heads_of.after(number, kind, shape), layout_for(kind, shape))
                # One at a time: the heads of all layers, with gradients, can be far larger than the network.
                use_kernels(made, kernels)
                heads += _measured([(made.train(), features)], by)
                del made
        costs = _measured([*pieces, (chain.classifier, features)], by)
    count = chain.num_layers
    return Costs(
        layers=tuple(costs[:count]),
        heads=tuple(heads) if head else (0.0,) * count,
        classifier=costs[-1],
        entries=tuple(float(inputs.nbytes) if by == "memory" else 0.0 for _, inputs in pieces[:count]),
    )


def balanced(
    chain: Chain,
    num_blocks: int,
    head: str,
    num_classes: int,
    image_size: int,
    *,
    by: str = "time",
    groups: int = 1,
    image_chs: int = 3,
    batch_size: int = 32,
    head_width: str | float = PAPER,
    kernels: str = "torch",
    costs_of: str | None = None,
    blocks_cost: Callable[[Decoupling], Sequence[float]] | None = None,
) -> Decoupling:
    """Return the cuts that make the most expensive block, with its head, cheapest.

    Arguments:
        by: What to measure, as in `measure_costs`.
        kernels: Whose functions compute, likewise.
        costs_of: The kind of head whose cost counts, where it is not `head`. It is empty for rules without
            heads.
        blocks_cost: Measures whole blocks. Layers measured one by one do not quite add up to blocks. Their
            costs are corrected by this function until the cuts no longer change.
    """
    costs = measure_costs(
        chain,
        head if costs_of is None else costs_of,
        num_classes,
        image_size,
        by=by,
        image_chs=image_chs,
        batch_size=batch_size,
        head_width=head_width,
        kernels=kernels,
    )

    def cut(layers: Sequence[float]) -> Decoupling:
        decoupling = Decoupling.balanced(
            layers, costs.heads, costs.classifier, num_blocks, head, groups=groups, entry_costs=costs.entries
        )
        return replace(decoupling, head_width=head_width)

    first = cut(costs.layers)
    return first if blocks_cost is None else _corrected(first, costs, cut, blocks_cost)


def _corrected(
    first: Decoupling,
    costs: Costs,
    cut: Callable[[Sequence[float]], Decoupling],
    blocks_cost: Callable[[Decoupling], Sequence[float]],
) -> Decoupling:
    """Return the best of the cuts that come up when the layers' costs are made to add up to the blocks'."""
    tried: dict[Decoupling, float] = {}
    decoupling = first
    while decoupling not in tried and len(tried) < CORRECTIONS:
        measured = blocks_cost(decoupling)
        tried[decoupling] = max(measured)
        layers = list(costs.layers)
        for block, seconds in zip(decoupling.blocks(len(layers)), measured, strict=True):
            end = costs.heads[block.stop - 1] if block.stop < len(layers) else costs.classifier
            factor = seconds / (sum(costs.layers[index] for index in block) + end)
            for index in block:
                layers[index] *= factor
        decoupling = cut(layers)
    return min(tried, key=lambda decoupling: tried[decoupling])


def module_macs(net: DecoupledNet, image_shape: Sequence[int]) -> list[int]:
    """Return the MACs of each module that could have a device of its own.

    Such a module is a block with its head, or one neuron group of it. The largest number belongs to the
    busiest module, which bounds the time of training in parallel (GN-DGL).
    """
    macs = []
    for block, trunk, inputs in _block_by_block(net, image_shape):
        match block.head:
            case None:
                macs.append(trunk)
            case GroupedHeads(heads=heads, sizes=sizes, shared=shared):
                for head, size in zip(heads, sizes, strict=True):
                    seen = inputs if shared else inputs[:, :size]
                    macs.append(math.ceil(trunk * size / sum(sizes)) + count_macs(head, seen.shape[1:]))
            case head:
                macs.append(trunk + count_macs(head, inputs.shape[1:]))
    return macs


def kept_bytes(net: DecoupledNet, image_shape: Sequence[int]) -> list[int]:
    """Return the bytes that each block keeps for its backward pass, for one image, without autocast.

    Blocks that learn one after the other need the largest number at once. Backpropagation has only one
    number. The net is left as it is.
    """
    reference = next(net.parameters())
    count = 2  # BatchNorm of a map of one pixel refuses a single image
    kept = []
    devices = [reference.device] if reference.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        images = torch.randn(count, *image_shape, device=reference.device, dtype=reference.dtype)
        targets = torch.zeros(count, dtype=torch.long, device=reference.device)
        inputs = images
        for block in net.blocks:
            own, outputs = copy.deepcopy(block).train(), images

            def learn(own: Block = own, inputs: Tensor = inputs) -> None:
                nonlocal outputs
                loss, outputs = own.loss(inputs, targets, images)
                torch.autograd.backward(loss)

            kept.append(math.ceil(saved_activation_bytes(learn) / count))
            inputs = outputs.detach()
    return kept


@dataclass(frozen=True)
class HeadCosts:
    """This is what one head at a cut costs, for one image."""

    params: int
    """The parameters of the head."""
    macs: int
    """The MACs of its forward pass."""
    of_block: float
    """The part of its block's MACs that are the head's."""
    of_above: float
    """Its MACs in relation to those of all layers above the cut and the classifier."""
    kept_bytes: int
    """The bytes that it keeps for its backward pass."""
    depth: int
    """How many convolutions and linear layers it has."""
    depth_above: int
    """How many all layers above the cut and the classifier have."""


def head_costs(net: DecoupledNet, image_shape: Sequence[int]) -> list[HeadCosts]:
    """Return the costs of the head at each cut, over all neuron groups of a block.

    Raises:
        ValueError: if a head has an operation that cannot be counted.
    """
    trunks, heads = [], []
    for block, trunk, inputs in _block_by_block(net, image_shape):
        assert block.head is not None
        trunks.append(trunk)
        heads.append((block.head, count_macs(block.head, inputs.shape[1:]), inputs))
    costs = []
    with torch.enable_grad():
        for index, (head, macs, inputs) in enumerate(heads[:-1]):
            above = sum(trunks[index + 1 :]) + heads[-1][1]
            kept = _measured([(copy.deepcopy(head).train(), inputs)], "memory")[0]
            costs.append(
                HeadCosts(
                    params=count_params(head),
                    macs=macs,
                    of_block=macs / max(1, macs + trunks[index]),
                    of_above=macs / max(1, above),
                    kept_bytes=math.ceil(kept / len(inputs)),
                    depth=_depth(head.heads[0] if isinstance(head, GroupedHeads) else head),
                    depth_above=sum(map(_depth, net.blocks[index + 1 :]))
                    - sum(_depth(each) for each, *_ in heads[index + 1 : -1]),
                )
            )
    return costs


def _block_by_block(net: DecoupledNet, image_shape: Sequence[int]) -> Iterator[tuple[Block, int, Tensor]]:
    """Yield each block, the MACs of its layers, and what its head takes, for two images."""
    reference = next(net.parameters())
    features = torch.zeros(2, *image_shape, device=reference.device, dtype=reference.dtype)
    for block in net.blocks:
        trunk = 0
        for layer in block.layers:
            trunk += count_macs(layer, features.shape[1:])
            features = _shape_after(layer, features)
        yield block, trunk, as_map(features, block.layout) if block.layout else features


def _depth(module: nn.Module) -> int:
    """Return how many convolutions and linear layers a module has, without copies and what fits features."""
    if isinstance(module, Fit):
        return 0
    if isinstance(module, Summed):
        return _depth(module.trained)
    return isinstance(module, nn.Conv2d | nn.Linear) + sum(map(_depth, module.children()))


class _OnFeatures(nn.Module):
    """This head takes features as a layer gives them."""

    def __init__(self, head: nn.Module, layout: str) -> None:
        super().__init__()
        self.head, self.layout = head, layout

    def forward(self, features: Tensor) -> object:
        return self.head(as_map(features, self.layout) if self.layout else features)


@torch.no_grad()
def _shape_after(layer: nn.Module, features: Tensor) -> Tensor:
    probe = copy.deepcopy(layer).eval()
    outputs: Tensor = probe(features)
    return outputs


def _macs(module: nn.Module, inputs: Tensor) -> float:
    return count_macs(module, inputs.shape[1:])


def _kept_bytes(module: nn.Module, inputs: Tensor) -> float:
    """Return the bytes that a module keeps.

    Its inputs are a leaf and do not count. Its outputs do, because whatever follows keeps them as its
    inputs.
    """
    factor = torch.ones((), device=inputs.device, dtype=inputs.dtype, requires_grad=True)

    def run() -> None:
        outputs = module(inputs.detach().requires_grad_())
        _backward(outputs * factor if isinstance(outputs, Tensor) else outputs)

    return saved_activation_bytes(run)


_MEASURES: dict[str, Callable[[nn.Module, Tensor], float]] = {"macs": _macs, "memory": _kept_bytes}


def _measured(pieces: Sequence[tuple[nn.Module, Tensor]], by: str) -> list[float]:
    """Return the cost of each piece.

    Random numbers that are drawn here change nothing that is made afterwards.
    """
    device = pieces[0][1].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return _times(pieces) if by == "time" else [_MEASURES[by](*piece) for piece in pieces]


def _times(pieces: Sequence[tuple[nn.Module, Tensor]]) -> list[float]:
    """Return the seconds of each piece, the best of several rounds.

    The rounds alternate between the pieces, so that a disturbance does not hit one piece alone.
    """
    best = [math.inf] * len(pieces)
    for _ in range(_REPEATS):
        for index, (module, inputs) in enumerate(pieces):
            inputs = inputs.detach().requires_grad_()
            _wait(inputs)
            start = time.perf_counter()
            _backward(module(inputs))
            _wait(inputs)
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _backward(outputs: object) -> None:
    """Go backward from all tensors that a module gave."""
    tensors = list(_flat(outputs))
    torch.autograd.backward(tensors, [torch.ones_like(tensor) for tensor in tensors])


def _flat(outputs: object) -> Iterator[Tensor]:
    """Return all tensors among what a head gave, or the heads of several groups."""
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for part in outputs:  # type: ignore[attr-defined]
            yield from _flat(part)
