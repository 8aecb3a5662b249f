"""This module compares scores of networks with their truth, and computes the numbers of report.json."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from supernet.layers import Projection, Skip
from supernet.space import Architecture, Space
from tools.chance import Numbers, edge_of_chance, fewest, null_deviation
from tools.ranking import (
    Difference,
    Tau,
    additive_scores,
    best_rank_at,
    noise_ceiling,
    partial_tau,
    precision_at,
    rank_all,
    regret_at,
    repeat_tau,
    spearman,
    tau_b,
    tau_within,
    weighted_tau,
)
from tools.seeding import numpy_stream

PARTS = {"tenth": 0.1, "quarter": 0.25, "half": 0.5}
FEWEST_IN_PART = 5
"""A part must have at least this many networks for a tau within it."""
SURE = 0.05
"""A difference is told apart if its p value, adjusted for the number of comparisons, is below this."""


@dataclass(frozen=True, kw_only=True)
class ScoredNetworks:
    """These are networks with their truth and all their scores, by the scores' names."""

    networks: Sequence[Architecture]
    truth: Numbers
    """The truth has a row for each repeat; higher is better."""
    macs: Numbers
    scores: Mapping[str, Numbers]
    """The scores that the report is about, followed by the baselines; higher is better."""
    subjects: Sequence[str]
    """The names of the scores that the report is about."""
    negated: frozenset[str] = frozenset()
    """The subjects, and perhaps "truth", for which lower is better in their files."""

    @property
    def mean(self) -> Numbers:
        """Return the mean of the truth over its repeats."""
        mean: Numbers = self.truth.mean(axis=0)
        return mean


@dataclass(frozen=True, kw_only=True)
class Score:
    """A `Score` says how well one score orders the networks; None means that there is no such number."""

    tau: Tau
    tau_p_holm: float | None
    """The p value of tau, adjusted for the number of subjects; a baseline has none."""
    tau_by_repeat: Sequence[float]
    """The tau against each single repeat of the truth."""
    spearman: float | None
    weighted_tau: float | None
    partial_tau_given_macs: float | None
    tau_in_true_best: Mapping[str, float | None]
    """The tau within the best networks by the truth, for each of PARTS."""
    tau_in_predicted_best: Mapping[str, float | None]
    """The tau within the best networks by this score, for each of PARTS."""
    precision_at: Mapping[int, float]
    """The share of the k best by score that is among the k best in truth, for each k."""
    best_rank_at: Mapping[int, int]
    """The true rank of the best network among the k best by score, for each k."""
    regret_at: Mapping[int, float]
    """The truth that is lost with this network instead of the best network of all, for each k."""

    def as_data(self) -> dict[str, Any]:
        """Return the numbers in the form of report.json."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("precision_at", "best_rank_at", "regret_at"):
            data[name] = {str(k): value for k, value in data[name].items()}
        p_holm = data.pop("tau_p_holm")
        last = {} if p_holm is None else {"tau_p_holm": p_holm}
        return {**data, "tau": self.tau._asdict(), "tau_by_repeat": list(self.tau_by_repeat), **last}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A `Comparison` is the tau of one score minus the tau of another, with its p value."""

    one: str
    other: str
    difference: Difference
    comparisons: int
    """The number of comparisons in the ranking."""
    p_holm: float
    """The p value, adjusted for that number."""

    @property
    def verdict(self) -> str:
        """Return whether the first score is "above", "below" or "not told from" the other."""
        if self.p_holm >= SURE:
            return "not told from"
        return "above" if self.difference.value > 0 else "below"

    def turned(self) -> "Comparison":
        """Return the same comparison with the two scores exchanged."""
        value, low, high = (-self.difference.value, -self.difference.high, -self.difference.low)
        difference = self.difference._replace(value=value, low=low, high=high)
        return dataclasses.replace(self, one=self.other, other=self.one, difference=difference)

    def as_data(self) -> dict[str, Any]:
        """Return the numbers in the form of report.json."""
        data = {"one": self.one, "other": self.other, **self.difference._asdict()}
        return {**data, "comparisons": self.comparisons, "p_holm": self.p_holm}


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A `Ranking` holds the numbers that a report gives; None means that there is no such number."""

    networks: int
    subjects: Sequence[str]
    """The names of the scores that the report is about; the other scores are baselines."""
    repeats: int
    """The number of trainings that each network has in the truth."""
    null_deviation: float
    edge_of_chance: float
    """A random order has a tau beyond this in 5 of 100 rankings."""
    repeat_tau: float | None
    noise_ceiling: float | None
    lower_is_better: Sequence[str]
    """The names of the scores that were negated."""
    sizes: Sequence[int]
    """The values of k for which the k best networks are examined."""
    scores: Mapping[str, Score]
    """The scores by name, without those that give all networks the same number."""
    orders_nothing: Sequence[str]
    """The names of the scores that give all networks the same number."""
    comparisons: Sequence[Comparison]

    @property
    def needed(self) -> int:
        """Return the smallest number of networks with which a comparison can tell two scores apart."""
        return fewest(SURE / max(1, len(self.comparisons)), paired=True)

    @property
    def telling_subjects(self) -> list[str]:
        """Return the subjects that give networks different numbers."""
        return [name for name in self.subjects if name in self.scores]

    def comparison(self, one: str, other: str) -> Comparison:
        """Return the tau of `one` minus the tau of `other`."""
        for comparison in self.comparisons:
            if (comparison.one, comparison.other) == (one, other):
                return comparison
            if (comparison.one, comparison.other) == (other, one):
                return comparison.turned()
        raise AssertionError(f"{one} and {other} were not compared")

    def as_data(self) -> dict[str, Any]:
        """Return the numbers in the form, and with the names, of report.json."""
        return {
            "networks": self.networks,
            "asked": list(self.subjects),
            "repeats": self.repeats,
            "null_deviation": self.null_deviation,
            "edge_of_chance": self.edge_of_chance,
            "repeat_tau": self.repeat_tau,
            "noise_ceiling": self.noise_ceiling,
            "lower_is_better": list(self.lower_is_better),
            "sizes": list(self.sizes),
            "scores": {name: score.as_data() for name, score in self.scores.items()},
            "orders_nothing": list(self.orders_nothing),
            "differences": [comparison.as_data() for comparison in self.comparisons],
        }


def with_baselines(
    space: Space,
    networks: Sequence[Architecture],
    truth: Numbers,
    subjects: Mapping[str, Numbers],
    *,
    seed: int,
    negated: Iterable[str] = (),
) -> ScoredNetworks:
    """Return the networks with the scores that a report is about, and with the baselines."""
    macs = np.array([space.macs(network) for network in networks], float)
    choices = np.array([network.choices for network in networks])
    units = _units(space, networks)
    baselines = {
        "MACs": macs,
        "params": np.array([space.params(network) for network in networks], float),
        "depth": np.array([_depth(space, network) for network in networks], float),
        "ReLU units": units.sum(axis=1),
        "roots of units": np.sqrt(units).sum(axis=1),
        "additive fit": additive_scores(choices, truth.mean(axis=0), seed=seed),
        "chance": numpy_stream(seed, "chance").permutation(len(networks)).astype(float),
    }
    return ScoredNetworks(
        networks=networks,
        truth=truth,
        macs=macs,
        scores={**subjects, **baselines},
        subjects=list(subjects),
        negated=frozenset(negated),
    )


def rank(scored: ScoredNetworks, *, resamples: int, seed: int) -> Ranking:
    """Compare every score with the truth, and the scores with each other."""
    n = len(scored.networks)
    telling = {name: scores for name, scores in scored.scores.items() if np.ptp(scores) > 0}
    names = list(telling)
    pairs = [
        (one, other)
        for one, other in itertools.combinations(range(len(names)), 2)
        if _is_compared(names[one], names[other], scored.subjects)
    ]
    taus, differences = rank_all(
        list(telling.values()), scored.truth, resamples=resamples, seed=seed, pairs=pairs
    )
    by_name = dict(zip(names, taus, strict=True))
    subjects = [name for name in names if name in scored.subjects]
    p_holm = dict(zip(subjects, holm([by_name[name].p_value for name in subjects]), strict=True))
    sizes = sorted({k for k in (1, 10, round(n / 10), round(n / 4)) if 0 < k < n})
    return Ranking(
        networks=n,
        subjects=scored.subjects,
        repeats=len(scored.truth),
        null_deviation=null_deviation(n),
        edge_of_chance=edge_of_chance(n),
        repeat_tau=_or_none(repeat_tau(scored.truth)),
        noise_ceiling=_or_none(noise_ceiling(scored.truth, seed=seed)),
        lower_is_better=sorted(scored.negated),
        sizes=sizes,
        scores={
            name: _score(telling[name], scored, tau=tau, tau_p_holm=p_holm.get(name), sizes=sizes)
            for name, tau in by_name.items()
        },
        orders_nothing=[name for name in scored.scores if name not in telling],
        comparisons=_comparisons(names, differences),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for the number of comparisons, by Holm's procedure."""
    count, highest = len(p_values), 0.0
    adjusted = [0.0] * count
    for place, index in enumerate(sorted(range(count), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (count - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _comparisons(names: Sequence[str], differences: Mapping[tuple[int, int], Difference]) -> list[Comparison]:
    p_holm = holm([difference.p_value for difference in differences.values()])
    return [
        Comparison(
            one=names[one],
            other=names[other],
            difference=difference,
            comparisons=len(differences),
            p_holm=adjusted,
        )
        for ((one, other), difference), adjusted in zip(differences.items(), p_holm, strict=True)
    ]


def _score(
    scores: Numbers,
    scored: ScoredNetworks,
    *,
    tau: Tau,
    tau_p_holm: float | None,
    sizes: Sequence[int],
) -> Score:
    true = scored.mean
    return Score(
        tau=tau,
        tau_p_holm=tau_p_holm,
        tau_by_repeat=[tau_b(scores, row) for row in scored.truth],
        spearman=_or_none(spearman(scores, true)),
        weighted_tau=_or_none(weighted_tau(scores, true)),
        partial_tau_given_macs=_or_none(partial_tau(scores, true, scored.macs)),
        tau_in_true_best=_taus_within(scores, true, of="truth"),
        tau_in_predicted_best=_taus_within(scores, true, of="scores"),
        precision_at={k: precision_at(scores, true, k) for k in sizes},
        best_rank_at={k: best_rank_at(scores, true, k) for k in sizes},
        regret_at={k: regret_at(scores, true, k) for k in sizes},
    )


def _taus_within(scores: Numbers, true: Numbers, *, of: str) -> dict[str, float | None]:
    """Return the tau within each of PARTS that has enough networks."""
    return {
        name: _or_none(tau_within(scores, true, part, of=of)) if part * len(true) >= FEWEST_IN_PART else None
        for name, part in PARTS.items()
    }


def _or_none(value: float) -> float | None:
    """Return None for NaN, because JSON has no NaN."""
    return None if math.isnan(value) else value


def _is_compared(one: str, other: str, subjects: Sequence[str]) -> bool:
    """Return whether two scores are compared: two subjects, or a subject and a baseline other than chance."""
    return (one in subjects or other in subjects) and "chance" not in (one, other)


def _depth(space: Space, architecture: Architecture) -> int:
    chosen = zip(space.layers, architecture.choices, strict=True)
    return sum(not isinstance(layer[choice], Skip | Projection) for layer, choice in chosen)


def _units(space: Space, architectures: Sequence[Architecture]) -> Numbers:
    """Return how many units each searchable layer of each network has."""
    rows = [zip(space.units, each.choices, strict=True) for each in architectures]
    return np.array([[units[choice] for units, choice in row] for row in rows], float)
