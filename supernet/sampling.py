"""Random architectures are drawn from a whole space, or from those whose cost lies between limits.

Each is equally likely: each string of choices, or each network. Skips among equal layers may stand
anywhere, so a network has the more strings the more it skips. Networks are drawn with their skips last.

Costs add up over layers, so the architectures of every total can be counted. They are counted once for the
first layers and once for the last, and the two are put together at a layer in the middle. All is exact:
nothing is drawn and thrown away.
"""

import itertools
import random
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supernet.additive import Additive, counted
from supernet.space import Architecture, Layer, Space
from tools.seeding import derive

Totals = NDArray[np.int64]
Counts = NDArray[Any]
"""An array of 64-bit integers, or of Python's integers where those are too small."""
Ways = tuple[Totals, Counts]
"""What architectures can cost, ascending, and how many of them have each cost."""


def stream(seed: int, purpose: str, *indices: int) -> random.Random:
    """Return a random generator for one stream; it is Python's, which draws integers of any size."""
    return random.Random(derive(seed, purpose, *indices))


def sample(space: Space, rng: random.Random) -> Architecture:
    """Draw an architecture, each equally likely."""
    return Architecture(tuple(rng.randrange(len(layer)) for layer in space.layers))


def sample_network(space: Space, rng: random.Random) -> Architecture:
    """Draw one of the different networks, each equally likely."""
    choices: list[int] = []
    for run in space.runs:
        layer, by_depth = space.layers[run.start], space.networks_by_depth(run)
        depth = list(by_depth)[_weighted(rng, list(by_depth.values()))]
        drawn = [layer.weighted[rng.randrange(len(layer.weighted))] for _ in range(depth)]
        choices += _with_skips(layer, drawn, len(run))
    return Architecture(tuple(choices))


def permutations(space: Space, members: Sequence[Sequence[int]], rng: random.Random) -> list[Architecture]:
    """Draw architectures in which every member of every layer stands once.

    There are as many of them as layers have members.
    """
    orders = [rng.sample(list(of_layer), len(of_layer)) for of_layer in members]
    return [Architecture(choices) for choices in zip(*orders, strict=True)]


class LimitedSampler:
    """This sampler draws from the architectures whose cost lies between two limits.

    With `networks` it counts and draws different networks, otherwise strings of choices.
    """

    def __init__(self, space: Space, *, cost: str | Additive = "macs", networks: bool = False) -> None:
        self.space = space
        self.cost = counted(space, cost) if isinstance(cost, str) else cost
        self._fixed, table = self.cost.fixed, self.cost.table
        exact: type = np.int64 if space.size < 2**62 else object
        self._parts: Sequence[_Layer | _Run]
        if networks:
            rows_of = [table[run.start : run.stop] for run in space.runs]
            self._parts = [
                _Run(space, run, rows, exact) for run, rows in zip(space.runs, rows_of, strict=True)
            ]
        else:
            self._parts = [_Layer(row) for row in table]
        start = _nothing(exact)
        self._front, self._back = [start], [start]  # by the number of parts put together
        count = len(self._parts)
        """Return how many architectures cost from `low` to `high`."""
        while (front := len(self._front) - 1) + (back := len(self._back) - 1) < count:
            if len(self._front[-1][0]) <= len(self._back[-1][0]):
                self._front.append(_extended(self._front[-1], self._parts[front]))
            else:
                self._back.append(_extended(self._back[-1], self._parts[count - 1 - back]))
        self._below = np.concatenate([np.zeros(1, exact), np.cumsum(self._back[-1][1])])
        self._weights: dict[tuple[int, int], tuple[list[int], NDArray[Any]]] = {}

    def count(self, high: int, low: int = 0) -> int:
        """How many architectures cost from `low` to `high`."""
        total, _ = self._totals(high, low)
        return total[-1] if total else 0

    def draw(self, rng: random.Random, high: int, low: int = 0) -> Architecture:
        """Draw an architecture that costs from `low` to `high`, each equally likely.

        Raises:
            ValueError: if there is none; the message names the cheapest.
        """
        total, middles = self._totals(high, low)
        if not total or not total[-1]:
            raise ValueError(
                f"no architecture of {self.space.name} has {low:,} to {high:,} {self.cost.name}; the "
                f"cheapest, {self.cost.cheapest}, has {self.cost.least:,}"
            )
        middle = int(middles[bisect_right(total, rng.randrange(total[-1]))])
        split = len(self._front) - 1
        drawn = [0] * len(self._parts)
        rest = middle
        for index in reversed(range(split)):
            drawn[index], rest = _step(rng, self._front[index], self._parts[index], rest)
        rest = self._last(rng, high - self._fixed - middle, low - self._fixed - middle)
        for index in range(split, len(self._parts)):
            after = self._back[len(self._parts) - 1 - index]
            drawn[index], rest = _step(rng, after, self._parts[index], rest)
        chosen = [part.choices(rng, member) for part, member in zip(self._parts, drawn, strict=True)]
        return Architecture(tuple(itertools.chain.from_iterable(chosen)))

    def _totals(self, high: int, low: int) -> tuple[list[int], Totals]:
        """Return cumulated numbers of architectures by the total of their first layers, and those totals."""
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
        """Draw the total of the last layers, by the number of ways to come to it."""
        ends = self._back[-1][0]
        upper, lower = int(np.searchsorted(ends, high, side="right")), int(np.searchsorted(ends, low))
        drawn = int(self._below[lower]) + rng.randrange(int(self._below[upper] - self._below[lower]))
        return int(ends[int(np.searchsorted(self._below, drawn, side="right")) - 1])


def bins(low: int, high: int, width: int) -> list[tuple[int, int]]:
    """Return intervals of `width` from `low` to `high`, both included; the last may be narrower."""
    edges = [*range(low, max(high, low + 1), width), high]
    return [(start, stop - 1) for start, stop in itertools.pairwise(edges[:-1])] + [(edges[-2], high)]


class _Layer:
    """This part of an architecture is one layer; its members are the layer's candidates."""

    def __init__(self, costs: Sequence[int]) -> None:
        self.costs: Sequence[int] = costs
        self.ways: Sequence[int] = [1] * len(costs)
        """In how many ways each member comes about."""

    def choices(self, rng: random.Random, member: int) -> list[int]:
        """Return the choices of a member."""
        return [member]


class _Run:
    """This part is a run of layers among which skips may stand anywhere.

    Its members are what these layers can cost together.
    """

    def __init__(self, space: Space, run: range, rows: Sequence[Sequence[int]], exact: type) -> None:
        self._layer, self._length = space.layers[run.start], len(run)
        self._rows = [_Layer([row[choice] for choice in self._layer.weighted]) for row in rows]
        self._by_depth = [_nothing(exact)]
        for row in self._rows:
            self._by_depth.append(_extended(self._by_depth[-1], row))
        self._depths = list(space.networks_by_depth(run))
        skips = _with_skips(self._layer, [], 1)
        self._skipped = {
            depth: sum(row[skip] for row in rows[depth:] for skip in skips) for depth in self._depths
        }
        """What the skips behind this many layers cost. It is nothing if products are counted."""
        members = [
            (self._by_depth[depth][0] + self._skipped[depth], self._by_depth[depth][1])
            for depth in self._depths
        ]
        totals, counts = _merged(*map(np.concatenate, zip(*members, strict=True)))
        self.costs: Sequence[int] = totals.tolist()
        self.ways: Sequence[int] = counts.tolist()

    def choices(self, rng: random.Random, member: int) -> list[int]:
        """Draw one of the networks of a member's cost, each equally likely."""
        total = self.costs[member]
        ways = [_number(self._by_depth[depth], total - self._skipped[depth]) for depth in self._depths]
        depth = self._depths[_weighted(rng, ways)]
        drawn, rest = [0] * depth, total - self._skipped[depth]
        for index in reversed(range(depth)):
            drawn[index], rest = _step(rng, self._by_depth[index], self._rows[index], rest)
        return _with_skips(self._layer, [self._layer.weighted[place] for place in drawn], self._length)


def _with_skips(layer: Layer, choices: list[int], length: int) -> list[int]:
    """Return `length` choices of equal layers: those given, and skips behind them."""
    skips = [choice for choice in range(len(layer)) if choice not in layer.weighted]
    return choices + skips * (length - len(choices))


def _nothing(exact: type) -> Ways:
    """Return the ways of no layers: one way to cost nothing."""
    return np.zeros(1, np.int64), np.ones(1, exact)


def _extended(others: Ways, part: _Layer | _Run) -> Ways:
    """Return the totals, and how many ways lead to each, with one more part."""
    totals, counts = others
    sums = (totals[:, None] + np.array(part.costs, np.int64)).ravel()
    return _merged(sums, np.outer(counts, np.array(part.ways, counts.dtype)).ravel())


def _merged(totals: Totals, counts: Counts) -> Ways:
    """Return each total once, in ascending order."""
    different, where = np.unique(totals, return_inverse=True)
    added = np.zeros(len(different), counts.dtype)
    np.add.at(added, where, counts)
    return different, added


def _number(ways: Ways, total: int) -> int:
    """Return in how many ways a total comes about."""
    totals, counts = ways
    at = int(np.searchsorted(totals, total))
    return int(counts[at]) if at < len(totals) and int(totals[at]) == total else 0


def _step(rng: random.Random, others: Ways, part: _Layer | _Run, total: int) -> tuple[int, int]:
    """Draw a member of one part, by the ways in which the others make up the rest; return it and the rest."""
    members = zip(part.costs, part.ways, strict=True)
    choice = _weighted(rng, [ways * _number(others, total - cost) for cost, ways in members])
    return choice, total - part.costs[choice]


def _weighted(rng: random.Random, ways: list[int]) -> int:
    drawn = rng.randrange(sum(ways))
    for choice, count in enumerate(ways):
        drawn -= count
        if drawn < 0:
            return choice
    raise AssertionError
