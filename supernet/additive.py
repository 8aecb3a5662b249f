"""Costs that add up over layers are kept as tables of whole numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from supernet.space import Architecture, Space
from supernet.tail import build_tail
from supernet.train.measure import Measured
from tools.cost import count_units
from tools.options.config import check_choice

TICKS = 10_000_000
"""Latencies are counted in this many ticks a second, tenths of a microsecond. No measurement is as
precise."""


@dataclass(frozen=True)
class Additive:
    """An additive cost is what stem and tail cost together, and each candidate of each searchable layer."""

    name: str
    """The name of the cost."""
    fixed: int
    """What stem and tail cost together."""
    table: tuple[tuple[int, ...], ...]
    """What each candidate of each searchable layer costs."""

    def of(self, architecture: Architecture) -> int:
        """Return the cost of a network."""
        chosen = zip(self.table, architecture.choices, strict=True)
        return self.fixed + sum(row[choice] for row, choice in chosen)

    @property
    def cheapest(self) -> Architecture:
        """The cheapest architecture, the first among equals."""
        return Architecture(tuple(row.index(min(row)) for row in self.table))

    @property
    def dearest(self) -> Architecture:
        """The dearest architecture, the last among equals."""
        return Architecture(tuple(len(row) - 1 - row[::-1].index(max(row)) for row in self.table))

    @property
    def least(self) -> int:
        """The cost of the cheapest architecture."""
        return self.of(self.cheapest)

    @property
    def most(self) -> int:
        """The cost of the dearest architecture."""
        return self.of(self.dearest)


def counted(space: Space, name: str) -> Additive:
    """Return the "macs" or the "params" of a space's networks."""
    check_choice("cost", name, ("macs", "params"))
    table = tuple(tuple(int(getattr(cost, name)) for cost in row) for row in space.costs)
    return Additive(name, int(getattr(space.fixed_cost, name)), table)


def latency(measured: Measured) -> Additive:
    """Return the measured time of a batch, in ticks."""
    return _rounded("latency", measured.fixed_seconds, measured.seconds, lambda value: value * TICKS)


def activations(measured: Measured) -> Additive:
    """Return the bytes that training keeps for one image."""
    return _rounded("activations", measured.fixed_bytes, measured.saved_bytes, float)


def units(space: Space) -> Additive:
    """Return the number of units: the numbers that come out of a network's activations, for one image."""
    last, size = space.layers[-1].out_chs, space.sizes[-1]
    with torch.device("meta"):
        tail = build_tail(space.tail, last, space.num_classes, space.style)
        parts: list[tuple[nn.Module, int, int]] = [(tail, last, size)]
        for layer, place, side in zip(space.stem, space.stem_places, space.stem_sizes, strict=True):
            parts.append((layer.op.build(place, space.style), place.in_chs, side))
    fixed = sum(count_units(module, (chs, side, side)) for module, chs, side in parts)
    return Additive("units", fixed, space.units)


def _rounded(
    name: str, fixed: float, table: Sequence[Sequence[float]], unit: Callable[[float], float]
) -> Additive:
    rows = tuple(tuple(round(unit(value)) for value in row) for row in table)
    return Additive(name, round(unit(fixed)), rows)
