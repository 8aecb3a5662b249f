"""Costs that add up over layers, as tables of whole numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from supernet.space import Architecture, Space
from supernet.train.measure import Measured
from tools.options.config import check_choice

TICKS = 10_000_000
"""Latencies are counted in tenths of a microsecond, far below what a measurement can tell apart."""


@dataclass(frozen=True)
class Additive:
    """What stem and tail cost together, and every candidate of every searchable layer."""

    name: str
    fixed: int
    table: tuple[tuple[int, ...], ...]

    def of(self, architecture: Architecture) -> int:
        """The cost of a network."""
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
        """What the cheapest costs."""
        return self.of(self.cheapest)

    @property
    def most(self) -> int:
        """What the dearest costs."""
        return self.of(self.dearest)


def counted(space: Space, name: str) -> Additive:
    """Of each network of a space its "macs" or its "params"."""
    check_choice("cost", name, ("macs", "params"))
    table = tuple(tuple(int(getattr(cost, name)) for cost in row) for row in space.costs)
    return Additive(name, int(getattr(space.fixed_cost, name)), table)


def latency(measured: Measured) -> Additive:
    """Measured time of a batch, in ticks."""
    return _rounded("latency", measured.fixed_seconds, measured.seconds, lambda value: value * TICKS)


def activations(measured: Measured) -> Additive:
    """Bytes that training keeps for one image."""
    return _rounded("activations", measured.fixed_bytes, measured.saved_bytes, float)


def _rounded(
    name: str, fixed: float, table: Sequence[Sequence[float]], unit: Callable[[float], float]
) -> Additive:
    rows = tuple(tuple(round(unit(value)) for value in row) for row in table)
    return Additive(name, round(unit(fixed)), rows)
