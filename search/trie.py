"""Architectures that begin alike are put together: how much work that saves, and how to share it out."""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from supernet.space import Architecture, Space


class Work(NamedTuple):
    """This is the work of a pass of one image through many networks, together and one by one."""

    layers: int
    """The searchable layers that are run together, without skips."""
    layers_alone: int
    """The searchable layers that are run one by one, without skips."""
    macs: int
    """The multiply-accumulates of all networks together, with stem and tail."""
    macs_alone: int
    """The multiply-accumulates of the networks one by one, with stem and tail."""

    @property
    def saving(self) -> float:
        """How many times more multiply-accumulates the networks take one by one than together."""
        return self.macs_alone / self.macs if self.macs else 1.0


def work(architectures: Iterable[Architecture], space: Space) -> Work:
    """Return the work of all networks at once, with each layer run once for all that agree up to it."""
    members = list(dict.fromkeys(architectures))
    weighted = [set(layer.weighted) for layer in space.layers]

    def of(prefixes: Iterable[tuple[int, ...]]) -> tuple[int, int]:
        ends = [(len(prefix) - 1, prefix[-1]) for prefix in prefixes]
        layers = sum(choice in weighted[layer] for layer, choice in ends)
        return layers, sum(space.costs[layer][choice].macs for layer, choice in ends)

    every = [member.choices[:end] for member in members for end in range(1, len(member.choices) + 1)]
    (layers, macs), (layers_alone, macs_alone) = of(set(every)), of(every)
    stem, tails = space.stem_cost.macs, len(members) * space.tail_cost.macs
    return Work(
        layers,
        layers_alone,
        macs + (stem + tails if members else 0),
        macs_alone + len(members) * stem + tails,
    )


def shared_out(architectures: Iterable[Architecture], space: Space, parts: int) -> list[list[Architecture]]:
    """Share architectures out in `parts` parts of about equal work, each of neighbours in the tree.

    Some parts may be empty. The order of the architectures does not matter, and each is in one part, once.
    """
    members = sorted(set(architectures), key=lambda member: member.choices)
    alone = [work([member], space).macs for member in members]
    pairs = zip(alone, pairwise(members), strict=False)
    added = [work(pair, space).macs - first for first, pair in pairs]

    def cut(most: int) -> list[list[Architecture]]:
        """Put neighbours together as long as they take no more than `most`."""
        shares: list[list[Architecture]] = []
        load = 0
        for number, member in enumerate(members):
            load = load + added[number - 1] if number else most + 1
            if load > most:
                shares.append([])
                load = alone[number]
            shares[-1].append(member)
        return shares

    low, high = max(alone, default=0), sum(alone)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= parts else (middle + 1, high)
    shares = cut(low)
    return shares + [[] for _ in range(parts - len(shares))]
