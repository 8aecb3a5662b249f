"""This module measures how well scores order networks by their truth, with intervals and p values.

In scores and in truth alike, the higher number is the better one. A number for which lower is better (a loss,
a latency) must be negated by the caller.

`tools.chance` computes the effect of chance over networks. Each network brings its own truth, so the noise of
its trainings is already part of the spread between networks. Counting the spread of repeated trainings as
well would count this noise twice.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tools.chance import (
    FEW,
    RESAMPLES,
    Numbers,
    by_exchange,
    by_jackknife,
    by_order,
    taus_left_out,
)
from tools.options.config import check_range
from tools.seeding import numpy_stream


class Tau(NamedTuple):
    """A `Tau` is Kendall's tau-b, its interval, and the chance of one as far from 0 in independent lists."""

    value: float
    low: float
    high: float
    p_value: float
    n: int


class Difference(NamedTuple):
    """A `Difference` is one tau minus another, its interval, and the chance of it if they were equal."""

    value: float
    low: float
    high: float
    p_value: float
    n: int


def kendall_tau(
    scores: ArrayLike,
    truth: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Tau:
    """Return tau-b of scores against the truth, or against the mean of the truth's rows where it has several.

    The interval leaves 0 out exactly where the p value is below 1 - level.

    Arguments:
        scores: A score for each network.
        truth: The true value of each network, or a row of them for each repeat.
        level: The confidence level of the interval.
        resamples: The most permutations that are computed for few networks; see `tools.chance`.
        seed: The seed of the permutations that are drawn for few networks.
    """
    return rank_all([scores], truth, level=level, resamples=resamples, seed=seed)[0][0]


def compare(
    one: ArrayLike,
    other: ArrayLike,
    truth: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Return the tau of one list minus the tau of another, both on the same networks."""
    lists = _Lists([one, other], truth, level=level, resamples=resamples, seed=seed)
    return lists.difference(0, 1)


def rank_all(
    lists: Sequence[ArrayLike],
    truth: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    pairs: Iterable[tuple[int, int]] | None = None,
) -> tuple[list[Tau], dict[tuple[int, int], Difference]]:
    """Return the tau of every list, and the differences for all pairs of lists, or for those in `pairs`."""
    given = _Lists(lists, truth, level=level, resamples=resamples, seed=seed)
    wanted = itertools.combinations(range(len(lists)), 2) if pairs is None else pairs
    return given.taus(), {pair: given.difference(*pair) for pair in wanted}


class _Lists:
    """These lists of scores are compared with one truth, and with each other."""

    def __init__(
        self, lists: Sequence[ArrayLike], truth: ArrayLike, *, level: float, resamples: int, seed: int
    ) -> None:
        check_range("level", level, 0, 1, open_low=True)
        checked = [_checked(scores, truth) for scores in lists]
        self._given, self._mean = [scores for scores, _ in checked], checked[0][1].mean(axis=0)
        self._n, self._level, self._draws, self._seed = len(self._mean), level, resamples, seed
        self._values = [tau_b(scores, self._mean) for scores in self._given]
        self._left = [taus_left_out(scores, self._mean) for scores in self._given if self._n > FEW]

    def taus(self) -> list[Tau]:
        if self._n <= FEW:
            tested = by_order(
                self._values, self._given, self._mean, level=self._level, draws=self._draws, seed=self._seed
            )
        else:
            pairs = zip(self._values, self._left, strict=True)
            tested = [by_jackknife(tau, left, level=self._level, limit=1) for tau, left in pairs]
        return [Tau(*tau, self._n) for tau in tested]

    def difference(self, one: int, other: int) -> Difference:
        value = self._values[one] - self._values[other]
        if self._n <= FEW:
            lists = self._given[one], self._given[other], self._mean
            tested = by_exchange(value, *lists, level=self._level, draws=self._draws, seed=self._seed)
        else:
            left = self._left[one] - self._left[other]
            tested = by_jackknife(value, left, level=self._level, limit=2)
        return Difference(*tested, self._n)


def tau_b(scores: ArrayLike, truth: ArrayLike) -> float:
    """Return Kendall's tau-b alone."""
    return float(stats.kendalltau(scores, truth).statistic)


def spearman(scores: ArrayLike, truth: ArrayLike) -> float:
    """Return Spearman's correlation of ranks; ties have their mean rank."""
    return float(stats.spearmanr(scores, truth).statistic)


def weighted_tau(scores: ArrayLike, truth: ArrayLike) -> float:
    """Return the tau in which a pair of true ranks r and s, from 1, weighs 1/r + 1/s: the top counts most."""
    return float(stats.weightedtau(truth, scores, rank=None).statistic)


def partial_tau(scores: ArrayLike, truth: ArrayLike, given: ArrayLike) -> float:
    """Return how well scores order the truth beyond what something else, such as MACs, already says."""
    both, left, right = tau_b(scores, truth), tau_b(scores, given), tau_b(truth, given)
    if any(math.isclose(abs(tau), 1) for tau in (left, right)):
        return math.nan
    return (both - left * right) / math.sqrt((1 - left**2) * (1 - right**2))


def tau_within(scores: ArrayLike, truth: ArrayLike, part: float, *, of: str = "truth") -> float:
    """Return tau among the best part of the networks, by truth or by scores, with all ties at the edge."""
    check_range("part", part, 0, 1, open_low=True)
    given, true = np.asarray(scores, float), np.asarray(truth, float)
    by = true if of == "truth" else given
    edge = np.sort(by)[::-1][max(2, round(part * len(by))) - 1]
    return tau_b(given[by >= edge], true[by >= edge])


def precision_at(scores: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Return which share of the k best by score is among the k best in truth; of equals, the first counts."""
    return len(set(_best(scores, k)) & set(_best(truth, k))) / k


def best_rank_at(scores: ArrayLike, truth: ArrayLike, k: int) -> int:
    """Return the true rank, from 1, of the best network among the k best by score."""
    true = np.asarray(truth, float)
    return int(1 + np.count_nonzero(true > true[_best(scores, k)].max()))


def regret_at(scores: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Return how far the best of the k best by score is below the best network, in units of the truth."""
    true = np.asarray(truth, float)
    return float(true.max() - true[_best(scores, k)].max())


def repeat_tau(repeats: ArrayLike) -> float:
    """Return the mean tau of each repeat of the truth against the mean of the others."""
    rows = np.atleast_2d(np.asarray(repeats, float))
    if len(rows) < 2:
        return math.nan
    others = [np.delete(rows, number, axis=0).mean(axis=0) for number in range(len(rows))]
    return float(np.mean([tau_b(row, rest) for row, rest in zip(rows, others, strict=True)]))


def noise_ceiling(repeats: ArrayLike, *, draws: int = 20, seed: int = 0) -> float:
    """Return what a perfect score would reach: the tau of the truth's mean to itself with its noise added."""
    rows = np.atleast_2d(np.asarray(repeats, float))
    if len(rows) < 2:
        return math.nan
    mean, rng = rows.mean(axis=0), numpy_stream(seed, "ceiling")
    spread = math.sqrt(rows.var(axis=0, ddof=1).mean() / len(rows))
    return float(np.mean([tau_b(mean, mean + spread * rng.normal(size=len(mean))) for _ in range(draws)]))


def additive_scores(
    choices: ArrayLike, truth: ArrayLike, *, folds: int = 10, ridge: float = 1e-3, seed: int = 0
) -> Numbers:
    """Return scores from a sum over layers of the fitted worth of each choice.

    Each network is scored by a fit to the other networks.
    """
    table, true = np.asarray(choices), np.asarray(truth, float)
    columns = [column == choice for column in table.T for choice in np.unique(column)]
    features = np.stack(columns, axis=1).astype(float)
    order = numpy_stream(seed, "folds").permutation(len(true))
    scores = np.empty(len(true))
    for held in np.array_split(order, min(folds, len(true))):
        kept = np.setdiff1d(order, held)
        centre = true[kept].mean()
        gram = features[kept].T @ features[kept] + ridge * len(kept) * np.eye(features.shape[1])
        worth = np.linalg.solve(gram, features[kept].T @ (true[kept] - centre))
        scores[held] = centre + features[held] @ worth
    return scores


# ---- helpers -------------------------------------------------------------------------------------------


def _checked(scores: ArrayLike, truth: ArrayLike) -> tuple[Numbers, Numbers]:
    """Return both as arrays, the truth with a row for each repeat; refuse lists that order nothing."""
    given, repeats = np.asarray(scores, float), np.atleast_2d(np.asarray(truth, float))
    if given.ndim != 1 or repeats.ndim != 2 or repeats.shape[1] != len(given):
        raise ValueError(
            f"scores {given.shape} and truth {np.shape(truth)} must be of the same networks, the truth "
            "perhaps with a row for each repeat"
        )
    if len(given) < 2:
        raise ValueError("a ranking needs two networks or more")
    for name, values in (("scores", given), ("truth", repeats)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: not all are finite numbers")
    if np.ptp(given) == 0 or np.ptp(repeats.mean(axis=0)) == 0:
        raise ValueError("scores or truth are all the same: they order nothing")
    return given, repeats


def _best(values: ArrayLike, k: int) -> NDArray[np.int64]:
    numbers = np.asarray(values, float)
    check_range("k", k, 1, len(numbers))
    return np.argsort(-numbers, kind="stable")[:k]
