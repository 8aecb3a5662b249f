"""These are the decouplings that SEDONA found, from its Tables 10-13. Free of torch."""

from dataclasses import dataclass

from local_learning.decoupling import Decoupling


@dataclass(frozen=True)
class _Ranking:
    layers: tuple[int, ...]
    """The layers by descending softmax(alpha)_1. The cuts for K blocks are the first K - 1."""

    heads: tuple[int, ...]
    """The m of the head Aux m at each of these layers, the argmax of beta."""

    ties: tuple[frozenset[int], ...] = ()
    """Layers whose softmax(alpha)_1 is equal in float32, so that their order is arbitrary.

    From layer 35 of ResNet-152 on, softmax(beta) is a tie as well; the heads are those of Table 10."""


_RANKINGS = {
    "resnet152": _Ranking(
        (11, 13, 17, 19, 22, 23, 25, 26, 28, 29, 49, 31, 48, 38, 37, 36),
        (4, 4, 4, 3, 2, 4, 2, 2, 4, 2, 4, 2, 4, 4, 4, 4),
        (frozenset({28, 29}), frozenset(range(31, 50))),
    ),
    "resnet101": _Ranking(
        (7, 11, 12, 22, 25, 27, 28, 29, 19, 32, 31, 30, 26, 24, 23, 20),
        (4, 4, 4, 4, 4, 4, 4, 4, 4, 3, 2, 4, 4, 4, 4, 4),
        (frozenset({19, 29}),),
    ),
    "resnet50": _Ranking(
        (10, 12, 11, 13, 15, 14, 9, 6, 5, 2, 8, 4, 3, 1, 7),
        (4, 4, 4, 4, 4, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1),
    ),
    "vgg19": _Ranking(
        (6, 13, 14, 15, 12, 11, 8, 9, 7, 10, 4, 5, 2, 1, 3),
        (4, 1, 1, 1, 1, 2, 1, 4, 1, 4, 1, 1, 1, 1, 1),
    ),
}

PUBLISHED = tuple(_RANKINGS)
"""These networks have a published decoupling."""


def published(name: str, num_blocks: int) -> Decoupling:
    """Return SEDONA's decoupling of a network into `num_blocks` blocks.

    Raises:
        ValueError: for a network or a number of blocks that the paper does not have.
    """
    ranking = _ranking(name, num_blocks)
    chosen = sorted(zip(ranking.layers[: num_blocks - 1], ranking.heads, strict=False))
    return Decoupling(tuple(layer for layer, _ in chosen), tuple(f"aux{m}" for _, m in chosen))


def is_tied(name: str, num_blocks: int) -> bool:
    """Return whether the published values leave the cuts open.

    They do where a layer that was chosen equals one that was left out.
    """
    ranking = _ranking(name, num_blocks)
    chosen = set(ranking.layers[: num_blocks - 1])
    return any(chosen & tie and tie - chosen for tie in ranking.ties)


def _ranking(name: str, num_blocks: int) -> _Ranking:
    if name not in _RANKINGS:
        raise ValueError(f"network '{name}' has no published decoupling; there are {', '.join(PUBLISHED)}")
    ranking = _RANKINGS[name]
    most = len(ranking.layers) + 1
    if not 1 <= num_blocks <= most:
        raise ValueError(f"num_blocks is {num_blocks}; for {name} 1 to {most} blocks are published")
    return ranking
