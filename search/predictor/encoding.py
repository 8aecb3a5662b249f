"""Networks of a space become numbers, all of them made from the space itself.

Features describe a network as a whole: how many layers of each stage are active, whether the first is, how
many layers there are of each kind, and what they cost. The distance of two networks compares them layer by
layer. A layer is active where its candidate has activations; a skip has none, and neither has a projection.

A feature for each candidate of each layer is left out. They are as many as all others together, and with 20
trained networks they made the predictor worse.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag

from search.predictor.process import Pairs
from supernet.additive import counted, units
from supernet.space import Architecture, Layer, Space
from tools.chance import Numbers
from tools.seeding import numpy_stream

Choices = NDArray[np.int64]

LISTED = 10_000
"""Up to this many strings of a space, all are looked at to scale features; of more, so many are drawn."""
COST = 0.3
"""The distance of two active candidates of which one has twice the MACs, units and kernel of the other."""
OTHER = 0.1
"""The further distance of any two different candidates."""


class Points(NamedTuple):
    """`Points` are networks as a kernel sees them."""

    rows: Numbers
    """For each network, a 1 for the candidate of each layer and 0 for the others."""
    features: Numbers
    """For each network, numbers whose squares sum to 1 in the mean over the space."""

    @property
    def squares(self) -> Numbers:
        """The product of each network's features with themselves."""
        return np.asarray((self.features**2).sum(1))


class Encoding:
    """An `Encoding` turns networks of one space into numbers."""

    def __init__(self, space: Space, *, seed: int = 0) -> None:
        self.space = space
        self._starts = np.cumsum([0, *map(len, space.layers)])
        macs, relus = counted(space, "macs"), units(space)
        self._active = [_active(layer, row) for layer, row in zip(space.layers, relus.table, strict=True)]
        self._totals = np.array([_flat(macs.table), _flat(relus.table)]).T
        self._fixed = np.array([macs.fixed, relus.fixed])
        self._sums = self._additive(_flat(relus.table))
        self._steps = block_diag(*(self._layer_steps(layer) for layer in range(len(space.layers))))
        raw = self._raw(self._rows(self._reference(seed)))
        self._centre, scale = raw.mean(0), raw.std(0)
        self._kept = scale > 1e-9 * (1 + np.abs(self._centre))
        self._scale = scale[self._kept]

    def networks(self, architectures: Sequence[Architecture]) -> Choices:
        """Return the choices of the canonical string of each network, a row each.

        Raises:
            ValueError: One of them is no architecture of the space.
        """
        layers = self.space.layers
        if not len(architectures):
            return np.empty((0, len(layers)), np.int64)
        try:
            choices = np.array([each.choices for each in architectures], np.int64)
            fits = choices.shape[1:] == (len(layers),)
        except (ValueError, OverflowError):
            fits = False
        if not fits or (choices < 0).any() or (choices >= np.diff(self._starts)).any():
            for each in architectures:
                self.space.validate(each)
        return self._canonical(choices)

    def points(self, networks: Choices) -> Points:
        """Return networks as a kernel sees them."""
        rows = self._rows(networks)
        features = (self._raw(rows) - self._centre)[:, self._kept] / self._scale
        return Points(rows, features / np.sqrt(max(1, features.shape[1])))

    def pairs(self, ones: Points, others: Points) -> Pairs:
        """Return what a kernel needs to know of some networks and others."""
        return Pairs(ones.features @ others.features.T, ones.rows @ (self._steps @ others.rows.T))

    # ---- the making ------------------------------------------------------------------------------------

    def _additive(self, relus: Numbers) -> Numbers:
        """Return what each candidate of each layer adds to each feature that is a sum over layers."""
        active = np.concatenate(self._active)
        names = np.array([str(op) for layer in self.space.layers for op in layer])
        shape = [not place.keeps_shape for place in self.space.places]
        shape[0] = True
        first = np.repeat(shape, np.diff(self._starts))
        stage = np.repeat(np.cumsum(shape), np.diff(self._starts))
        columns = [active, np.log1p(relus)]
        for number in range(1, stage[-1] + 1):
            here = active & (stage == number)
            columns += [here, here & first, *(here & (names == name) for name in sorted(set(names[here])))]
        return np.array(columns, float).T

    def _rows(self, networks: Choices) -> Numbers:
        rows = np.zeros((len(networks), self._starts[-1]))
        np.put_along_axis(rows, networks + self._starts[:-1], 1, axis=1)
        return rows

    def _raw(self, rows: Numbers) -> Numbers:
        totals = np.log1p(rows @ self._totals + self._fixed)
        return np.hstack([rows @ self._sums, totals])

    def _layer_steps(self, layer: int) -> Numbers:
        """Return the distance of each two candidates of a layer.

        It is a sum of distances along lines, so exp(-distance) is a kernel whatever the candidates are.
        """
        ops, active = self.space.layers[layer].ops, self._active[layer]
        between = slice(self._starts[layer], self._starts[layer + 1])
        sides = [np.max(getattr(op, "kernel", 1)) for op in ops]
        facts = np.log2(1 + np.column_stack([self._totals[between], np.array(sides)]))
        facts[~active] = facts[active].min(0)  # what is not active is as far from the cheapest as can be
        steps = COST * _apart(facts).mean(-1) + _apart(active[:, None].astype(float))[..., 0]
        return np.where(np.eye(len(ops), dtype=bool), 0.0, steps + OTHER)

    def _canonical(self, choices: Choices) -> Choices:
        """Return the same networks with skips moved to the end among equal layers."""
        found = choices.copy()
        for run in self.space.runs:
            layer, between = self.space.layers[run.start], slice(run.start, run.stop)
            skips = ~np.isin(np.arange(len(layer)), layer.weighted)
            order = np.argsort(skips[choices[:, between]], axis=1, kind="stable")
            found[:, between] = np.take_along_axis(choices[:, between], order, axis=1)
        return found

    def _reference(self, seed: int) -> Choices:
        """Return different networks of the space: all of them, or those that strings drawn at random are."""
        lengths = np.diff(self._starts)
        if self.space.size <= LISTED:
            strings = np.indices(tuple(lengths.tolist())).reshape(len(lengths), -1).T
        else:
            strings = numpy_stream(seed, "predictor/reference").integers(
                0, lengths, size=(LISTED, len(lengths))
            )
        return np.unique(self._canonical(strings), axis=0)


def _active(layer: Layer, relus: Sequence[int]) -> NDArray[np.bool_]:
    """Return which candidates have activations; where none has, which have weights."""
    active = np.array(relus) > 0
    return active if active.any() else np.isin(np.arange(len(layer)), layer.weighted)


def _flat(table: Sequence[Sequence[int]]) -> Numbers:
    return np.array([value for row in table for value in row], float)


def _apart(facts: Numbers) -> Numbers:
    return np.abs(facts[:, None] - facts[None])
