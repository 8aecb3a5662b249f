"""A Gaussian process on networks: its kernel, how well it explains measurements, and what it says of others.

The kernel is linear in the features of structure, and falls with the distance of two networks:
K = w x xᵀ + (1 - w) exp(-d / l). Measurements have independent noise of variance v. All is scaled by one
amplitude, which is the one that explains the measurements best.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

from tools.chance import Numbers


@dataclass(frozen=True)
class Settings:
    """These are the free numbers of the kernel."""

    linear: float
    """The share of the linear part, w."""
    length: float
    """The distance over which the likeness of two networks falls to a third, l."""
    noise: float
    """The variance of a measurement of a network, in units of the amplitude, v."""


class Pairs:
    """`Pairs` say of networks, a row each, and of others, a column each, what any kernel needs to know.

    Arguments:
        products: The products of their features.
        distances: Their distances.
    """

    def __init__(self, products: Numbers, distances: Numbers) -> None:
        self._products, self._distances = products, distances
        self._near: dict[float, Numbers] = {}

    def kernel(self, settings: Settings) -> Numbers:
        """Return the prior covariances, for an amplitude of 1."""
        if settings.length not in self._near:
            self._near[settings.length] = np.exp(self._distances / -settings.length)
        return settings.linear * self._products + (1 - settings.linear) * self._near[settings.length]


class Process:
    """A `Process` is a Gaussian process that has seen measurements, whose mean is 0."""

    def __init__(self, settings: Settings, pairs: Pairs, measured: Numbers) -> None:
        self.settings, self._measured = settings, measured
        covariance = pairs.kernel(settings) + settings.noise * np.eye(len(measured))
        self._factor = cholesky(covariance, lower=True)
        self._weights = cho_solve((self._factor, True), measured)
        self.amplitude = float(measured @ self._weights) / len(measured)
        """The variance by which the kernel is multiplied."""
        log_determinant = 2 * float(np.log(np.diag(self._factor)).sum())
        explained = len(measured) * (math.log(2 * math.pi * self.amplitude) + 1)
        self.evidence = -0.5 * (log_determinant + explained)
        """The log marginal likelihood of the measurements."""

    @property
    def noise(self) -> float:
        """The variance of a measurement of a network."""
        return self.amplitude * self.settings.noise

    def posterior(self, squares: Numbers, to_seen: Pairs) -> tuple[Numbers, Numbers]:
        """Return the mean and the variance of networks, without the noise of a measurement.

        Arguments:
            squares: The product of each network's features with themselves.
            to_seen: The networks with the measured ones.
        """
        across, linear = to_seen.kernel(self.settings), self.settings.linear
        prior = linear * squares + 1 - linear
        variance = prior - (self._known(across) ** 2).sum(0)
        return across @ self._weights, self.amplitude * np.maximum(variance, 0)

    def covariance(self, pairs: Pairs, to_seen: Pairs) -> Numbers:
        """Return the covariance of networks with each other, likewise; `pairs` are they with each other."""
        known = self._known(to_seen.kernel(self.settings))
        return self.amplitude * (pairs.kernel(self.settings) - known.T @ known)

    def left_out(self, network: NDArray[np.int64]) -> Numbers:
        """Return the mean of each network from all measurements but its own.

        Arguments:
            network: The number of the network that each measurement is of, from 0.
        """
        inverse = cho_solve((self._factor, True), np.eye(len(network)))
        means = []
        for number in range(int(network.max()) + 1):
            own = np.flatnonzero(network == number)
            error = np.linalg.solve(inverse[np.ix_(own, own)], self._weights[own])
            means.append(float((self._measured[own] - error).mean()))
        return np.array(means)

    def _known(self, across: Numbers) -> Numbers:
        found: Numbers = solve_triangular(self._factor, across.T, lower=True, check_finite=False)
        return found
