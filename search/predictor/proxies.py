"""Scores of a supernet's networks at its initial weights: no training, no labels, one pass forward."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search.evaluator import outputs_of
from supernet.space import Architecture
from supernet.supernet import Supernet
from tools.activations import Activations
from tools.mistake import Mistake

AT_ONCE = 2**20
"""So many units are multiplied at once. float32 counts exactly up to 2**24."""


@torch.inference_mode(False)  # inference tensors lack the counts by which writes into inputs are noticed
@torch.no_grad()
def nwot(supernet: Supernet, images: Tensor, architectures: Iterable[Architecture]) -> list[float]:
    """Return the NASWOT score of each architecture (Mellor et al. 2021), which tells images apart.

    It is log|det K|. K has a row and a column for each image. It counts the units that are on for both, or
    off for both. A unit is one output of an activation. It is on if it is above 0, and so is its input then,
    for ReLU as for others, such as SiLU. K is a sum over layers. So networks that begin alike share their
    beginning, and each score is that of its network alone, bit for bit.

    BatchNorm normalises by the batch, and all else is in evaluation mode. The supernet stays as it is. A
    network with the same units on for two images has -inf.

    Raises:
        Mistake: about `images`, if there are fewer than two, or two are the same.
    """
    wanted = list(architectures)
    for architecture in wanted:
        supernet.space.validate(architecture)
    if len(images) < 2:
        raise Mistake("images", f"{len(images)} cannot be told apart", "take two at least, better 64")
    if len(torch.unique(images, dim=0)) < len(images):
        raise Mistake("images", "two of them are the same, which no network tells apart", "leave one out")
    reference = next(supernet.parameters())
    images = images.to(reference.device, reference.dtype)
    if images.is_inference():
        images = images.clone()
    net = _by_the_batch(supernet)
    features, agreement = _run(nn.Sequential(*net.stem), images, "the stem")
    ways = sorted(set(wanted), key=lambda way: way.choices)
    scores = dict(_walk(net, features, agreement, ways))
    return [scores[architecture] for architecture in wanted]


def _by_the_batch(supernet: Supernet) -> Supernet:
    """Return a supernet with the same weights, but without running statistics and in evaluation mode."""
    net = copy.deepcopy(supernet, {id(each): each for each in supernet.parameters()}).eval()
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean = module.running_var = None
    return net


def _walk(
    net: Supernet, features: Tensor, agreement: Tensor, ways: Sequence[Architecture], layer: int = 0
) -> Iterator[tuple[Architecture, float]]:
    """Go depth first through sorted networks that agree up to a layer, and yield their scores."""
    if layer == len(net.space.layers):
        yield ways[0], _log_determinant(agreement + _run(net.tail, features, "the tail")[1])
        return
    for choice, group in groupby(ways, key=lambda way: way.choices[layer]):
        outputs, own = _run(net.candidate(layer, choice), features, f"layer {layer + 1}")
        yield from _walk(net, outputs, agreement + own, list(group), layer + 1)


def _run(module: nn.Module, features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return a module's outputs, and for each two images the units that agree less those that differ."""
    count = len(features)
    agreement = torch.zeros(count, count, dtype=torch.float64)

    def add(given: Tensor) -> None:
        nonlocal agreement
        signs = torch.where(given > 0, 1.0, -1.0).flatten(1)
        for part in torch.split(signs, AT_ONCE, dim=1):
            agreement = agreement + (part @ part.T).to("cpu", torch.float64)

    with Activations(add):
        return outputs_of(module, features, name), agreement


def _log_determinant(agreement: Tensor) -> float:
    """Return log|det K|; every count is a whole number, and so exact."""
    units = agreement.diagonal()
    if (agreement == units).sum() > len(units):
        return float("-inf")  # of two equal rows, which rounding might not leave
    return float(torch.linalg.slogdet((agreement + units) / 2).logabsdet)
