"""Architectures that begin alike, put together: how much work that saves, and how to share it out."""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from supernet.space import Architecture, Space


class Work(NamedTuple):
    """What a pass of one image through many networks takes, together and one by one."""

    layers: int
    """Searchable layers that are run, skips left out."""
    layers_alone: int
    macs: int
    """With stem and tail."""
    macs_alone: int

    @property
    def saving(self) -> float:
        """How many times the multiply-accumulates of one by one are those of all together."""
        return self.macs_alone / self.macs if self.macs else 1.0


def work(architectures: Iterable[Architecture], space: Space) -> Work:
    """Of all networks at once, each layer run once for all that agree up to it."""
    members = list(dict.fromkeys(architectures))
    weighted = [set(layer.weighted) for layer in space.layers]

    def of(prefixes: Iterable[tuple[int, ...]]) -> tuple[int, int]:
        ends = [(len(prefix) - 1, prefix[-1]) for prefix in prefixes]
        layers = sum(choice in weighted[layer] for layer, choice in ends)
        return layers, sum(space.costs[layer][choice].macs for layer, choice in ends)

    every = [each.choices[:end] for each in members for end in range(1, len(each.choices) + 1)]
    (layers, macs), (layers_alone, macs_alone) = of(set(every)), of(every)
    stem, tails = space.stem_cost.macs, len(members) * space.tail_cost.macs
    return Work(
        layers,
        layers_alone,
        macs + (stem + tails if members else 0),
        macs_alone + len(members) * stem + tails,
    )


def shared_out(architectures: Iterable[Architecture], space: Space, parts: int) -> list[list[Architecture]]:
    """So many parts of about the same work, each of neighbours in the tree; some may be empty.

    The order of the architectures does not matter, and each is in one part, once.
    """
    members = sorted(set(architectures), key=lambda each: each.choices)
    alone = [work([each], space).macs for each in members]
    pairs = zip(alone, pairwise(members), strict=False)
    added = [work(pair, space).macs - first for first, pair in pairs]

    def cut(most: int) -> list[list[Architecture]]:
        """Neighbours together as long as they take no more than so much."""
        shares: list[list[Architecture]] = []
        load = 0
        for number, each in enumerate(members):
            load = load + added[number - 1] if number else most + 1
            if load > most:
                shares.append([])
                load = alone[number]
            shares[-1].append(each)
        return shares

    low, high = max(alone, default=0), sum(alone)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= parts else (middle + 1, high)
    shares = cut(low)
    return shares + [[] for _ in range(parts - len(shares))]
