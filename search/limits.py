"""Limits say what architectures may cost: any number of them at once, on costs that add up over layers.

It is known exactly whether some choice for the layers still open keeps all limits. That follows from the
cost vectors of those layers that no other undercuts in everything. So nothing over a limit is ever drawn,
and an architecture over one is repaired where it stands.
"""

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from supernet.additive import TICKS, Additive
from supernet.sampling import LimitedSampler, sample
from supernet.space import Architecture, Space
from tools.mistake import Mistake

_Costs = NDArray[np.int64]

TRIES = 200
"""How many draws from under one of several limits are tried before other ways are taken."""
MOST_LISTED = 5_000
"""Up to this many architectures are listed rather than drawn one by one."""

UNITS = {"macs": (1, " MACs"), "params": (1, " parameters"), "latency": (TICKS / 1000, " ms")}
UNITS |= {"activations": (2**20, " MiB of activations")}


class Infeasible(Mistake):
    """No network, or fewer than are needed, keep the limits."""


class TooMany(Infeasible):
    """More networks are needed than the space has, whatever the limits."""


@dataclass(frozen=True)
class Limit:
    """A limit is the most that a network may cost."""

    cost: Additive
    """The cost that is limited."""
    high: int
    """The most that it may be."""

    def __str__(self) -> str:
        return f"at most {shown(self.cost.name, self.high)}"


def shown(name: str, value: float) -> str:
    """Return a cost with its unit, in words."""
    divisor, unit = UNITS.get(name, (1, f" {name}"))
    number = value / divisor
    return (f"{number:,.0f}" if divisor == 1 else f"{number:,.4g}") + unit


class Limits:
    """This class holds the networks of a space that keep all of some limits."""

    def __init__(self, space: Space, limits: Sequence[Limit] = (), *, canonical: bool = True) -> None:
        self.space, self.limits, self._canonical = space, tuple(limits), canonical
        # There is a row for each candidate and a column for each limit; without limits, a column of zeros.
        self._table = [
            np.array([[limit.cost.table[layer][i] for limit in limits] or [0] for i in range(len(ops))])
            for layer, ops in enumerate(space.layers)
        ]
        self._room = np.array([limit.high - limit.cost.fixed for limit in limits] or [0])
        for limit, run in itertools.product(limits if canonical else (), space.runs):
            if len({limit.cost.table[layer] for layer in run}) > 1:
                raise Mistake(
                    "",
                    f"{limit.cost.name}: layers {run[0] + 1} to {run[-1] + 1} of {space.name} are equal, but "
                    "their costs are not",
                    "let networks that differ in where they skip count as different (`canonical=False`)",
                )

    def form(self, architecture: Architecture) -> Architecture:
        """Return the string that stands for a network: the canonical one, or every string for itself."""
        return self.space.canonical(architecture) if self._canonical else architecture

    def allow(self, architecture: Architecture) -> bool:
        """Return whether an architecture keeps all limits."""
        return all(limit.cost.of(architecture) <= limit.high for limit in self.limits)

    def excess(self, architecture: Architecture) -> float:
        """Return by how much an architecture is over the limits, or 0 if it keeps them.

        The excesses are added up, each as a part of its limit.
        """
        over = ((limit.cost.of(architecture) - limit.high, limit.high) for limit in self.limits)
        return sum(max(0, beyond) / max(1, high) for beyond, high in over)

    def require(self, count: int) -> None:
        """Refuse limits that fewer than `count` different networks keep.

        Raises:
            Infeasible: at once; the message names the cheapest architecture.
        """
        for limit in self.limits:
            if limit.cost.least > limit.high:
                cheapest = limit.cost.cheapest
                raise Infeasible(
                    "",
                    f"no architecture of {self.space.name} has {limit}; the cheapest, {cheapest}, has "
                    f"{shown(limit.cost.name, limit.cost.least)}",
                )
        there = len(list(itertools.islice(self.networks(), count)))
        in_words = " and ".join(map(str, self.limits))
        if there < min(count, 1):
            reasons = "; ".join(
                f"the cheapest in {limit.cost.name}, {limit.cost.cheapest}, has "
                + ", ".join(
                    shown(other.cost.name, other.cost.of(limit.cost.cheapest)) for other in self.limits
                )
                for limit in self.limits
            )
            raise Infeasible(
                "", f"no architecture of {self.space.name} keeps all limits, {in_words}, at once: {reasons}"
            )
        whole = self.space.num_networks if self._canonical else self.space.size
        if whole < count:
            raise TooMany(
                "",
                f"{self.space.name} has only {whole} networks, and {count} are needed for a population",
                "lower the population",
            )
        if there < count:
            raise Infeasible(
                "",
                f"only {there} networks of {self.space.name} have {in_words}, and {count} are needed for a "
                "population",
                "raise the limit, or lower the population",
            )

    def networks(self) -> Iterator[Architecture]:
        """Yield all of these networks in their form, sorted by their first layers."""
        return self._listed(canonical=self._canonical)

    def draw(self, rng: random.Random) -> Architecture:
        """Draw a network, every string that keeps the limits equally likely, in its form.

        Several limits may be hard to keep together, and yet be kept by more strings than can be listed.
        Then strings are not quite equally likely: choices are drawn layer by layer in a random order,
        among those that can be completed.
        """
        if not _fits(self._behind[0], self._room):
            self.require(1)
        return self.form(self._string(rng))

    def repaired(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """Return the architecture with as few layers drawn anew as keeps the limits.

        Layers are taken in a random order. An architecture that keeps the limits comes back as it is, in
        its form.
        """
        order = rng.sample(range(len(self._table)), len(self._table))
        return self.form(self._completed(architecture, order, rng))

    # ---- drawing ---------------------------------------------------------------------------------------

    def _string(self, rng: random.Random) -> Architecture:
        if not self.limits:
            return sample(self.space, rng)
        tries = 1 if len(self.limits) == 1 else TRIES
        # Where draws failed before, the strings are listed.
        if "_few" in vars(self) and len(self._few) <= MOST_LISTED:
            tries = 0
        limit, sampler = self._scarcest
        for _ in range(tries):
            drawn = sampler.draw(rng, limit.high)
            if self.allow(drawn):
                return drawn
        if len(self._few) <= MOST_LISTED:
            return rng.choice(self._few)
        order = rng.sample(range(len(self._table)), len(self._table))
        return self._completed(None, order, rng)

    @functools.cached_property
    def _scarcest(self) -> tuple[Limit, LimitedSampler]:
        """The limit that the fewest strings keep, and what draws from those."""
        samplers = [(limit, LimitedSampler(self.space, cost=limit.cost)) for limit in self.limits]
        return min(samplers, key=lambda pair: pair[1].count(pair[0].high))

    @functools.cached_property
    def _few(self) -> list[Architecture]:
        """All strings that keep the limits, or the first of them where there are too many."""
        return list(itertools.islice(self._listed(canonical=False), MOST_LISTED + 1))

    def _completed(
        self, start: Architecture | None, order: Sequence[int], rng: random.Random
    ) -> Architecture:
        """Free layers of `start` in an order until the others leave enough room, and draw those layers."""
        choices = list(start.choices) if start else [0] * len(self._table)
        free = 0 if start else len(order)
        room = self._room - sum(
            (self._table[layer][choices[layer]] for layer in order[free:]), np.zeros_like(self._room)
        )
        fronts = [np.zeros((1, len(self._room)), np.int64)]
        for layer in order[:free]:
            fronts.append(_undercut(fronts[-1], self._table[layer]))
        while not _fits(fronts[-1], room):
            if free == len(order):
                self.require(1)
            layer = order[free]
            room = room + self._table[layer][choices[layer]]
            fronts.append(_undercut(fronts[-1], self._table[layer]))
            free += 1
        for layer, others in zip(reversed(order[:free]), reversed(fronts[:-1]), strict=True):
            row = self._table[layer]
            choices[layer] = rng.choice([i for i in range(len(row)) if _fits(others, room - row[i])])
            room = room - row[choices[layer]]
        return Architecture(tuple(choices))

    # ---- listing ---------------------------------------------------------------------------------------

    @functools.cached_property
    def _behind(self) -> list[_Costs]:
        """What the layers from each one on cost at least; the last entry is for no layers."""
        fronts = [np.zeros((1, len(self._room)), np.int64)]
        before = np.cumsum([row.min(axis=0) for row in self._table], axis=0)
        for layer in reversed(range(len(self._table))):
            front = _undercut(fronts[-1], self._table[layer])
            least = before[layer - 1] if layer else np.zeros_like(self._room)
            fronts.append(front[(front <= self._room - least).all(axis=1)])
        return fronts[::-1]

    def _listed(self, *, canonical: bool) -> Iterator[Architecture]:
        """Yield the strings that keep the limits; every branch that is entered leads to one."""
        after_skip = {layer for run in self.space.runs for layer in run[1:]} if canonical else set()
        weighted = [set(layer.weighted) for layer in self.space.layers]

        def from_layer(chosen: tuple[int, ...], room: _Costs) -> Iterator[Architecture]:
            layer = len(chosen)
            if layer == len(self._table):
                yield Architecture(chosen)
                return
            skipped = layer in after_skip and chosen[-1] not in weighted[layer - 1]
            for choice, cost in enumerate(self._table[layer]):
                if skipped and choice in weighted[layer]:
                    continue
                if _fits(self._behind[layer + 1], room - cost):
                    yield from from_layer((*chosen, choice), room - cost)

        if _fits(self._behind[0], self._room):
            yield from from_layer((), self._room)


def _fits(front: _Costs, room: _Costs) -> bool:
    return bool((front <= room).all(axis=1).any())


def _undercut(front: _Costs, row: _Costs) -> _Costs:
    """Return the sums of both, without those that another one undercuts or equals in every cost."""
    sums = np.unique((front[:, None] + row).reshape(-1, row.shape[1]), axis=0)
    kept = []
    while len(sums):
        kept.append(sums[0])  # it is lexicographically least, so no other undercuts it
        sums = sums[~(sums >= sums[0]).all(axis=1)]
    return np.stack(kept) if kept else sums
