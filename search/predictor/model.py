"""The predictor: from a few networks with their accuracies to a mean and a spread for every network.

What is predicted is -log of the error, which spreads good networks as far apart as bad ones. The Gaussian
process has few free numbers. Instead of the likeliest ones, a mean over the likely ones is taken, because
few measurements leave them open.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from scipy.stats import norm

from search.predictor.encoding import Choices, Encoding, Points
from search.predictor.process import Process, Settings
from supernet.space import Architecture, Space
from tools.chance import Numbers
from tools.mistake import Mistake
from tools.options.config import check_range
from tools.ranking import Tau, kendall_tau

GRID = tuple(
    Settings(linear, length, noise)
    for linear, length, noise in itertools.product(
        (0.2, 0.5, 0.8, 0.95), (2.0, 4.0, 8.0), (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    )
)
"""These settings are tried."""
KEPT = 8
"""The mean is over so many of them."""
FEWEST = 3
"""Fewer different networks say nothing."""
MARGIN = 2.0
"""A further feature stays if the log marginal likelihood is this much higher with it, odds of 7 to 1."""
FLOOR = 0.001
"""This is added to each error, so that an accuracy of 1 has a logarithm."""
CHUNK = 4_000
"""So many networks are predicted at a time."""


class Predictor:
    """A `Predictor` learns the accuracies of a space's networks from a few of them.

    Strings of one network are one network. Several accuracies of it are several measurements, whose scatter
    says how much noise there is. Accuracies are fractions, or percent where one of them is above 1; what
    is predicted comes in the same units.

    Arguments:
        space: The space of all networks.
        seed: The seed of the networks by which features are scaled, where the space has too many.
        extra: Further features by name, with a value for every network that will be asked about: scores of
            a supernet, proxies, or means that another predictor learned from shorter trainings. Each is kept
            only if the accuracies are clearly likelier with it.
    """

    def __init__(
        self, space: Space, *, seed: int = 0, extra: Mapping[str, Mapping[Architecture, float]] | None = None
    ) -> None:
        check_range("seed", seed, 0)
        self.space, self.seed = space, seed
        self.encoding = Encoding(space, seed=seed)
        self._extra = {name: self._by_network(name, values) for name, values in (extra or {}).items()}
        self.kept: tuple[str, ...] = ()
        """The names of the further features that were kept."""
        self.processes: list[Process] = []
        """The Gaussian processes over which the mean is taken."""

    # ---- learning --------------------------------------------------------------------------------------

    def fit(self, architectures: Sequence[Architecture], accuracies: Sequence[float]) -> Self:
        """Learn from networks and their accuracies, forgetting what was learned before.

        Raises:
            ValueError: The accuracies cannot be learned from, or a network is not one of the space.
        """
        choices, values = self.encoding.networks(architectures), self._checked(architectures, accuracies)
        networks, self._network = np.unique(choices, axis=0, return_inverse=True)
        if len(networks) < FEWEST:
            raise Mistake(
                "architectures",
                f"{len(networks)} different networks are too few to learn from",
                f"give {FEWEST} or more",
            )
        self._unit = 100.0 if values.max() > 1 else 1.0
        targets = -np.log(1 - values / self._unit + FLOOR)
        self._centre, self._scale = float(targets.mean()), float(targets.std())
        self._measured = (targets - self._centre) / self._scale
        self._choices, self.trained = choices, frozenset(map(_architecture, networks.tolist()))
        self.kept = ()
        self._choose(*self._explained(()))
        while rest := [name for name in self._extra if name not in self.kept]:
            tried = [(self._explained((*self.kept, name)), name) for name in rest]
            (processes, points), name = max(tried, key=lambda each: each[0][0][0].evidence)
            if processes[0].evidence < self.processes[0].evidence + MARGIN:
                break
            self.kept = (*self.kept, name)
            self._choose(processes, points)
        return self

    def leave_one_out(self) -> Tau:
        """Return how well each network's place is predicted from all others, with the settings of all."""
        self._require_fit()
        left = np.array([each.left_out(self._network) for each in self.processes])
        counts = np.bincount(self._network)
        return kendall_tau(self._weights @ left, np.bincount(self._network, self._measured) / counts)

    # ---- predicting ------------------------------------------------------------------------------------

    def predict(self, architectures: Sequence[Architecture]) -> tuple[list[float], list[float]]:
        """Return the median and the spread of each network's accuracy, in the units that were given.

        The spread is half the way from the 16 % to the 84 % quantile. It is that of the network's own
        accuracy, without the noise of a single training.
        """
        means, variances = self.posterior(architectures)
        deviations = self._scale * np.sqrt(variances)
        spreads = self._unit * np.exp(-self._centre - self._scale * means) * np.sinh(deviations)
        return self._accuracies(means).tolist(), spreads.tolist()

    def intervals(
        self, architectures: Sequence[Architecture], *, level: float = 0.9
    ) -> tuple[list[float], list[float]]:
        """Return between which accuracies one more training of each network will end, at this level."""
        check_range("level", level, 0, 1, open_low=True)
        means, variances = self.posterior(architectures)
        reach = float(norm.ppf((1 + level) / 2)) * np.sqrt(variances + self.noise)
        return self._accuracies(means - reach).tolist(), self._accuracies(means + reach).tolist()

    def posterior(self, architectures: Sequence[Architecture]) -> tuple[Numbers, Numbers]:
        """Return means and variances of the standardised -log error, without the noise of a training."""
        self._require_fit()
        choices = self.encoding.networks(architectures)
        means, variances = np.empty(len(choices)), np.empty(len(choices))
        for start in range(0, len(choices), CHUNK):
            part = slice(start, start + CHUNK)
            means[part], variances[part] = self._posterior(self._points(choices[part], self.kept))
        return means, variances

    def covariance(self, architectures: Sequence[Architecture]) -> Numbers:
        """Return the covariances that belong to `posterior`; meant for some thousand networks."""
        self._require_fit()
        points = self._points(self.encoding.networks(architectures), self.kept)
        own, to_seen = self.encoding.pairs(points, points), self.encoding.pairs(points, self._seen)
        means = np.array([each.posterior(points.squares, to_seen)[0] for each in self.processes])
        off = means - self._weights @ means
        within = sum(
            weight * each.covariance(own, to_seen)
            for weight, each in zip(self._weights, self.processes, strict=True)
        )
        return np.asarray(within + (self._weights * off.T) @ off)

    @property
    def noise(self) -> float:
        """The variance of a single training, in the units of `posterior`."""
        return float(self._weights @ [each.noise for each in self.processes])

    # ---- helpers ---------------------------------------------------------------------------------------

    def _posterior(self, points: Points) -> tuple[Numbers, Numbers]:
        to_seen = self.encoding.pairs(points, self._seen)
        found = [each.posterior(points.squares, to_seen) for each in self.processes]
        means, variances = np.array([mean for mean, _ in found]), np.array([each for _, each in found])
        mean = self._weights @ means
        return mean, self._weights @ (variances + (means - mean) ** 2)

    def _explained(self, kept: tuple[str, ...]) -> tuple[list[Process], Points]:
        """Return the processes with these further features, the likeliest first, and what they have seen."""
        points = self._points(self._choices, kept)
        pairs = self.encoding.pairs(points, points)
        processes = [Process(settings, pairs, self._measured) for settings in GRID]
        return sorted(processes, key=lambda each: -each.evidence), points

    def _choose(self, processes: list[Process], seen: Points) -> None:
        self.processes, self._seen = processes[:KEPT], seen
        likelihoods = np.exp([each.evidence - processes[0].evidence for each in self.processes])
        self._weights = likelihoods / likelihoods.sum()

    def _points(self, choices: Choices, kept: tuple[str, ...]) -> Points:
        points = self.encoding.points(choices)
        columns = [self._looked_up(name, choices) for name in kept]
        return points._replace(features=np.column_stack([points.features, *columns]))

    def _accuracies(self, values: Numbers) -> Numbers:
        errors = np.exp(-self._centre - self._scale * values) - FLOOR
        return self._unit * np.clip(1 - errors, 0, 1)

    def _by_network(self, name: str, values: Mapping[Architecture, float]) -> dict[tuple[int, ...], float]:
        """Return a further feature by the choices of canonical strings, with mean 0 and variance 1."""
        numbers = np.fromiter(values.values(), float, len(values))
        if not np.isfinite(numbers).all() or not len(numbers) or np.ptp(numbers) == 0:
            raise Mistake("extra", f"the values of '{name}' must be finite numbers that differ")
        scaled = (numbers - numbers.mean()) / numbers.std()
        choices = self.encoding.networks(list(values)).tolist()
        return dict(zip(map(tuple, choices), scaled.tolist(), strict=True))

    def _looked_up(self, name: str, choices: Choices) -> Numbers:
        values = self._extra[name]
        try:
            return np.array([values[tuple(each)] for each in choices.tolist()], float)
        except KeyError as missing:
            architecture = Architecture(missing.args[0])
            raise Mistake("extra", f"'{name}' has no value for {architecture}") from None

    def _checked(self, architectures: Sequence[Architecture], accuracies: Sequence[float]) -> Numbers:
        values = np.asarray(accuracies, float)
        if len(values) != len(architectures):
            raise Mistake(
                "accuracies",
                f"{len(values)} are given for {len(architectures)} architectures",
                "give one each",
            )
        wrong = ~((values >= 0) & (values <= 100))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise Mistake(
                "accuracies",
                f"that of {architectures[at]} is {values[at]:g}",
                "it must be a fraction, or from 0 to 100 percent",
            )
        if len(values) and np.ptp(values) == 0:
            raise Mistake("accuracies", "all are equal: they order nothing")
        return values

    def _require_fit(self) -> None:
        if not self.processes:
            raise ValueError("predictor: nothing was learned yet; call fit first")


def _architecture(choices: Sequence[int]) -> Architecture:
    return Architecture(tuple(choices))
