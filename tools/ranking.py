"""How well one list of scores orders what another, the truth, says; with intervals, and what chance would do.

Everywhere the higher number is the better one, in scores and in truth. What is the other way round (a loss,
a latency) must be negated by whoever knows it.

Intervals are percentiles over resampled networks: n of n with replacement. Pairs of a network with itself are
then ties in both lists, which tau-b leaves out. Where the truth has repeats, these are resampled too.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tools.config import check_range
from tools.seeding import numpy_stream

Numbers = NDArray[np.float64]

RESAMPLES = 2000
BLOCK = 512
"""Networks whose pairs with all others are looked at together."""


class Tau(NamedTuple):
    """Kendall's tau-b, its interval, and the chance that independent lists give one as far from 0."""

    value: float
    low: float
    high: float
    p_value: float
    n: int


class Difference(NamedTuple):
    """How much higher one tau is than another, its interval, and the chance of that if they were equal."""

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
    """Tau-b of scores against the truth, or against the mean of its rows where it has several."""
    given, repeats = _checked(scores, truth)
    tested = stats.kendalltau(given, repeats.mean(axis=0))
    low, high = _interval(_resampled([given], repeats, resamples, seed)[0], level)
    return Tau(float(tested.statistic), low, high, float(tested.pvalue), len(given))


def compare(
    one: ArrayLike,
    other: ArrayLike,
    truth: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Tau of one list less tau of another, both on the same networks, and resampled together."""
    first, repeats = _checked(one, truth)
    second, _ = _checked(other, truth)
    mean = repeats.mean(axis=0)
    value = tau_b(first, mean) - tau_b(second, mean)
    taken = _resampled([first, second], repeats, resamples, seed)
    differences = taken[0] - taken[1]
    low, high = _interval(differences, level)
    below = (1 + np.count_nonzero(differences <= 0)) / (1 + len(differences))
    above = (1 + np.count_nonzero(differences >= 0)) / (1 + len(differences))
    return Difference(value, low, high, float(min(1.0, 2 * min(below, above))), len(first))


def tau_b(scores: ArrayLike, truth: ArrayLike) -> float:
    """Kendall's tau-b alone."""
    return float(stats.kendalltau(scores, truth).statistic)


def spearman(scores: ArrayLike, truth: ArrayLike) -> float:
    """The correlation of ranks, ties at their mean rank."""
    return float(stats.spearmanr(scores, truth).statistic)


def weighted_tau(scores: ArrayLike, truth: ArrayLike) -> float:
    """Tau in which the top of the truth counts most: a pair weighs 1/r + 1/s, its true ranks from 1."""
    return float(stats.weightedtau(truth, scores, rank=None).statistic)


def partial_tau(scores: ArrayLike, truth: ArrayLike, given: ArrayLike) -> float:
    """What scores say of the truth beyond what something else, such as MACs, says already."""
    both, left, right = tau_b(scores, truth), tau_b(scores, given), tau_b(truth, given)
    rest = math.sqrt((1 - left**2) * (1 - right**2))
    return (both - left * right) / rest if rest else math.nan


def tau_within(scores: ArrayLike, truth: ArrayLike, part: float, *, of: str = "truth") -> float:
    """Tau among the best part of the networks, by the truth or by the scores; ties at the edge are in."""
    check_range("part", part, 0, 1, open_low=True)
    given, true = np.asarray(scores, float), np.asarray(truth, float)
    by = true if of == "truth" else given
    edge = np.sort(by)[::-1][max(2, round(part * len(by))) - 1]
    return tau_b(given[by >= edge], true[by >= edge])


def precision_at(scores: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Which part of the k best by score is among the k best in truth; of equals the first counts."""
    return len(set(_best(scores, k)) & set(_best(truth, k))) / k


def best_rank_at(scores: ArrayLike, truth: ArrayLike, k: int) -> int:
    """The true rank, from 1, of the best of the k best by score."""
    true = np.asarray(truth, float)
    return int(1 + np.count_nonzero(true > true[_best(scores, k)].max()))


def regret_at(scores: ArrayLike, truth: ArrayLike, k: int) -> float:
    """How much better the best network is than the best of the k best by score, in units of the truth."""
    true = np.asarray(truth, float)
    return float(true.max() - true[_best(scores, k)].max())


def null_deviation(n: int) -> float:
    """The standard deviation of tau between independent lists of n without ties."""
    return math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))


def noise_ceiling(repeats: ArrayLike) -> float:
    """The mean tau of each repeat of the truth against the mean of the others: a score hardly does better."""
    rows = np.atleast_2d(np.asarray(repeats, float))
    if len(rows) < 2:
        return math.nan
    others = [np.delete(rows, number, axis=0).mean(axis=0) for number in range(len(rows))]
    return float(np.mean([tau_b(row, rest) for row, rest in zip(rows, others, strict=True)]))


def additive_scores(
    choices: ArrayLike, truth: ArrayLike, *, folds: int = 10, ridge: float = 1e-3, seed: int = 0
) -> Numbers:
    """What a sum over layers of the worth of each choice, fitted to the others, says of each network.

    Each network is scored by a fit in which it had no part.
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


# ---- behind them ---------------------------------------------------------------------------------------


def _checked(scores: ArrayLike, truth: ArrayLike) -> tuple[Numbers, Numbers]:
    """Both as arrays, the truth with a row for each repeat; lists that order nothing are refused."""
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


def _interval(values: Numbers, level: float) -> tuple[float, float]:
    check_range("level", level, 0, 1, open_low=True)
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(lists: Sequence[Numbers], repeats: Numbers, resamples: int, seed: int) -> list[Numbers]:
    """Tau-b of each list in every resample, the same resamples for all lists."""
    rng = numpy_stream(seed, "bootstrap")
    count = len(lists[0])
    rows = rng.integers(len(repeats), size=(resamples, len(repeats)))
    drawn = Counter(map(tuple, np.sort(rows, axis=1).tolist()))
    found: list[list[Numbers]] = [[] for _ in lists]
    for chosen, times in sorted(drawn.items()):
        weights = rng.multinomial(count, np.full(count, 1 / count), times).astype(float)
        true = repeats[list(chosen)].mean(axis=0)
        for taken, given in zip(found, lists, strict=True):
            taken.append(_weighted_taus(given, true, weights))
    return [np.concatenate(taken) for taken in found]


def _weighted_taus(given: Numbers, true: Numbers, weights: Numbers) -> Numbers:
    """Tau-b where network i stands weights[b, i] times, for every b: sums over pairs are quadratic forms."""
    sums = np.zeros((3, len(weights)))
    for start in range(0, len(given), BLOCK):
        part = slice(start, start + BLOCK)
        one = np.sign(given[:, None] - given[None, part])
        other = np.sign(true[:, None] - true[None, part])
        for row, pairs in enumerate((one * other, one * one, other * other)):
            sums[row] += ((weights @ pairs) * weights[:, part]).sum(axis=1)
    with np.errstate(invalid="ignore"):
        taus: Numbers = sums[0] / np.sqrt(sums[1] * sums[2])
    return taus
