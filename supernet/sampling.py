"""Random architectures: of the whole space, or of those whose cost lies between limits, each equally likely.

Costs add up over layers, so the architectures of every total can be counted: once for the first layers and
once for the last, which are put together at a layer in the middle. All is exact, nothing is tried and
thrown away.
"""

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supernet.additive import Additive, counted
from supernet.space import Architecture, Space
from tools.seeding import derive

Totals = NDArray[np.int64]
Counts = NDArray[Any]
"""Of 64-bit integers, or of Python's where those are too small."""


def stream(seed: int, purpose: str, *indices: int) -> random.Random:
    """A generator for one stream; Python's, for its integers of any size."""
    return random.Random(derive(seed, purpose, *indices))


def sample(space: Space, rng: random.Random) -> Architecture:
    """Any architecture, each equally likely."""
    return Architecture(tuple(rng.randrange(len(layer)) for layer in space.layers))


def permutations(space: Space, members: Sequence[Sequence[int]], rng: random.Random) -> list[Architecture]:
    """As many architectures as layers have members, in which every member of every layer stands once."""
    orders = [rng.sample(list(of_layer), len(of_layer)) for of_layer in members]
    return [Architecture(choices) for choices in zip(*orders, strict=True)]


class LimitedSampler:
    """Draws from the architectures whose cost is at most a limit, and at least another."""

    def __init__(self, space: Space, *, cost: str | Additive = "macs") -> None:
        self.space = space
        self.cost = counted(space, cost) if isinstance(cost, str) else cost
        self._fixed, self._table = self.cost.fixed, self.cost.table
        exact: type = np.int64 if space.size < 2**62 else object
        start: tuple[Totals, Counts] = np.zeros(1, np.int64), np.ones(1, exact)
        self._front, self._back = [start], [start]  # by the number of layers put together
        count = len(self._table)
        while (front := len(self._front) - 1) + (back := len(self._back) - 1) < count:
            if len(self._front[-1][0]) <= len(self._back[-1][0]):
                self._front.append(_extended(*self._front[-1], self._table[front]))
            else:
                self._back.append(_extended(*self._back[-1], self._table[count - 1 - back]))
        self._below = np.concatenate([np.zeros(1, exact), np.cumsum(self._back[-1][1])])
        self._weights: dict[tuple[int, int], tuple[list[int], NDArray[Any]]] = {}

    def count(self, high: int, low: int = 0) -> int:
        """How many architectures cost from `low` to `high`."""
        total, _ = self._totals(high, low)
        return total[-1] if total else 0

    def draw(self, rng: random.Random, high: int, low: int = 0) -> Architecture:
        """One of those that cost from `low` to `high`, each equally likely.

        Raises:
            ValueError: if there are none, with the cheapest.
        """
        total, middles = self._totals(high, low)
        if not total or not total[-1]:
            raise ValueError(
                f"no architecture of {self.space.name} has {low:,} to {high:,} {self.cost.name}; the "
                f"cheapest, {self.cost.cheapest}, has {self.cost.least:,}"
            )
        middle = int(middles[bisect_right(total, rng.randrange(total[-1]))])
        split = len(self._front) - 1
        choices = [0] * len(self._table)
        rest = middle
        for index in reversed(range(split)):
            choices[index], rest = self._step(rng, self._front[index], self._table[index], rest)
        rest = self._last(rng, high - self._fixed - middle, low - self._fixed - middle)
        for index in range(split, len(self._table)):
            after = self._back[len(self._table) - 1 - index]
            choices[index], rest = self._step(rng, after, self._table[index], rest)
        return Architecture(tuple(choices))

    def _totals(self, high: int, low: int) -> tuple[list[int], Totals]:
        """Running numbers of architectures by the total of their first layers, and those totals."""
        if (high, low) not in self._weights:
            totals, counts = self._front[-1]
            ends = self._back[-1][0]
            upper = np.searchsorted(ends, high - self._fixed - totals, side="right")
            lower = np.searchsorted(ends, low - self._fixed - totals, side="left")
            ways = counts * (self._below[upper] - self._below[np.minimum(lower, upper)])
            kept = np.flatnonzero(ways)
            self._weights[high, low] = np.cumsum(ways[kept]).tolist(), totals[kept]
        return self._weights[high, low]

    def _last(self, rng: random.Random, high: int, low: int) -> int:
        """The total of the last layers, by the number of ways to come to it."""
        ends = self._back[-1][0]
        upper, lower = int(np.searchsorted(ends, high, side="right")), int(np.searchsorted(ends, low))
        drawn = int(self._below[lower]) + rng.randrange(int(self._below[upper] - self._below[lower]))
        return int(ends[int(np.searchsorted(self._below, drawn, side="right")) - 1])

    @staticmethod
    def _step(
        rng: random.Random, others: tuple[Totals, Counts], row: Sequence[int], total: int
    ) -> tuple[int, int]:
        """A choice for one layer, by the ways in which the others make up the rest; and the rest."""
        totals, counts = others
        ways = []
        for cost in row:
            at = int(np.searchsorted(totals, total - cost))
            found = at < len(totals) and int(totals[at]) == total - cost
            ways.append(int(counts[at]) if found else 0)
        choice = _weighted(rng, ways)
        return choice, total - row[choice]


def bins(low: int, high: int, width: int) -> list[tuple[int, int]]:
    """Intervals of a width from `low` to `high`, the last perhaps narrower; both ends belong to them."""
    edges = [*range(low, max(high, low + 1), width), high]
    return [(start, stop - 1) for start, stop in pairwise(edges[:-1])] + [(edges[-2], high)]


def _extended(totals: Totals, counts: Counts, row: Sequence[int]) -> tuple[Totals, Counts]:
    """Totals and their numbers with one more layer."""
    sums = (totals[:, None] + np.array(row, np.int64)).ravel()
    ways = np.repeat(counts, len(row))
    found, where = np.unique(sums, return_inverse=True)
    added = np.zeros(len(found), counts.dtype)
    np.add.at(added, where, ways)
    return found, added


def _weighted(rng: random.Random, ways: list[int]) -> int:
    drawn = rng.randrange(sum(ways))
    for choice, count in enumerate(ways):
        drawn -= count
        if drawn < 0:
            return choice
    raise AssertionError
