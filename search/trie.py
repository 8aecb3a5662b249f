"""Architectures that begin alike, put together: how much work that saves, and how to share it out."""

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from supernet.space import Architecture, Space

SUBTREES_PER_PROCESS = 4


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


def work(architectures: Sequence[Architecture], space: Space) -> Work:
    """Of all networks at once, each layer run once for all that agree up to it."""
    weighted = [set(layer.weighted) for layer in space.layers]

    def of(prefixes: Iterable[tuple[int, ...]]) -> tuple[int, int]:
        ends = [(len(prefix) - 1, prefix[-1]) for prefix in prefixes]
        layers = sum(choice in weighted[layer] for layer, choice in ends)
        return layers, sum(space.costs[layer][choice].macs for layer, choice in ends)

    every = [each.choices[:end] for each in architectures for end in range(1, len(each.choices) + 1)]
    (layers, macs), (layers_alone, macs_alone) = of(set(every)), of(every)
    stem, tails = space.stem_cost.macs, len(architectures) * space.tail_cost.macs
    return Work(
        layers,
        layers_alone,
        macs + (stem + tails if architectures else 0),
        macs_alone + len(architectures) * stem + tails,
    )


def shared_out(architectures: Sequence[Architecture], space: Space, parts: int) -> list[list[Architecture]]:
    """So many parts of about the same work, cut along subtrees; the same for the same architectures.

    The dearest subtree is divided at its next layer until there are enough, and then the dearest goes to
    whoever has least.
    """
    if parts == 1:
        return [list(architectures)]
    waiting = [_Subtree(list(architectures), 0, space)]
    while len(waiting) < SUBTREES_PER_PROCESS * parts and len(waiting[0].members) > 1:
        for subtree in heapq.heappop(waiting).divided(space):
            heapq.heappush(waiting, subtree)
    shares: list[list[Architecture]] = [[] for _ in range(parts)]
    loads = [0] * parts
    while waiting:
        subtree = heapq.heappop(waiting)
        least = loads.index(min(loads))
        shares[least] += subtree.members
        loads[least] += subtree.macs
    return shares


class _Subtree:
    """Architectures that agree in their first layers; the dearest comes first."""

    def __init__(self, members: list[Architecture], depth: int, space: Space) -> None:
        self.members, self.depth = members, depth
        self.macs = work(members, space).macs

    def divided(self, space: Space) -> list["_Subtree"]:
        """By the next choice on which they do not agree."""
        depth = self.depth
        while len(groups := self._by_choice(depth)) == 1:
            depth += 1
        return [_Subtree(members, depth + 1, space) for members in groups.values()]

    def _by_choice(self, depth: int) -> dict[int, list[Architecture]]:
        groups: dict[int, list[Architecture]] = {}
        for each in self.members:
            groups.setdefault(each.choices[depth], []).append(each)
        return groups

    def _key(self) -> tuple[int, int, tuple[int, ...]]:
        return -self.macs, -len(self.members), self.members[0].choices if self.members else ()

    def __lt__(self, other: "_Subtree") -> bool:
        return self._key() < other._key()
