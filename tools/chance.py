"""This module computes p values of taus and of their differences, and the intervals that match them.

An interval leaves 0 out exactly where the p value is below 1 - level, since both come from one distribution.

For up to FEW networks that distribution is made from the data, and in full where there are few enough cases.
For a tau, the truth is given to the networks in every order. This is exact where scores and truth are
unrelated, with or without ties. For the difference of two taus, each network's ranks in the two lists are
swapped or kept. The hypothesis is that swapping the two lists' names at any network makes no difference. The
ranks within a list depend on each other slightly, so simulations also check that the test keeps its level.

For more networks the standard error comes from the jackknife, which leaves out each network in turn, and
Student's distribution is used. This does not assume that the lists are alike; it only tests whether the two
numbers are equal.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tools.seeding import numpy_stream

Numbers = NDArray[np.float64]
_Rows = TypeVar("_Rows", bound=NDArray[Any])

FEW = 30
"""Up to this many networks, the distribution of chance is computed from permutations of the data."""
RESAMPLES = 10_000
"""At most this many orders or swaps are computed; where there are more, this many are drawn at random."""
BLOCK = 512
"""This many networks are compared with all others at a time."""
CLOSE = 1e-9
"""Numbers that differ by less than this differ only by rounding."""


class Tested(NamedTuple):
    """A `Tested` is a number, its interval, and the probability of one as far from 0 if the truth is 0."""

    value: float
    low: float
    high: float
    p_value: float


def by_order(
    values: Sequence[float], lists: Sequence[Numbers], true: Numbers, *, level: float, draws: int, seed: int
) -> list[Tested]:
    """Test the taus of few networks against the taus of the truth in other orders.

    An interval keeps its width on Fisher's z scale, where the width hardly depends on tau. The scale ends at
    a tau of n / (n - 1), because few networks in perfect order do not prove a perfect score.
    """
    within = 1 - 1 / len(true)

    def scale(tau: float) -> float:
        return math.atanh(within * tau)

    results = []
    for value, null in zip(values, _taus_by_order(lists, true, draws, seed), strict=True):
        p_value, edge = _against(value, null, level)
        low, high = (math.tanh(scale(value) + side * scale(edge)) / within for side in (-1, 1))
        # To rounding, an interval without width may miss the value that it is of.
        results.append(Tested(value, min(max(low, -1.0), value), max(min(high, 1.0), value), p_value))
    return results


def by_exchange(
    value: float, one: Numbers, other: Numbers, true: Numbers, *, level: float, draws: int, seed: int
) -> Tested:
    """Test the difference of two taus of few networks against the differences after swaps of ranks."""
    p_value, edge = _against(value, _differences_by_exchange(one, other, true, draws, seed), level)
    return Tested(value, max(value - edge, -2.0), min(value + edge, 2.0), p_value)


def by_jackknife(value: float, left_out: Numbers, *, level: float, limit: float) -> Tested:
    """Test a number of many networks by its values without each of them; it lies within ± limit."""
    count = len(left_out)
    error = math.sqrt((count - 1) * float(np.var(left_out)))
    if error < CLOSE:  # such as a perfect and a reversed order: no network makes a difference
        return Tested(value, value, value, 1.0 if abs(value) < CLOSE else 0.0)
    edge = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    p_value = float(2 * stats.t.sf(abs(value) / error, count - 1))
    return Tested(value, max(value - edge, -limit), min(value + edge, limit), p_value)


def taus_left_out(scores: Numbers, true: Numbers) -> Numbers:
    """Return tau-b without each network in turn."""
    agreeing = np.concatenate(
        [
            (_signs(scores[start : start + BLOCK], scores) * _signs(true[start : start + BLOCK], true)).sum(1)
            for start in range(0, len(true), BLOCK)
        ]
    )
    apart, true_apart = _told_apart(scores), _told_apart(true)
    up, one, other = (pairs.sum() - 2 * pairs for pairs in (agreeing, apart, true_apart))
    return _tau(up, one, other)


def edge_of_chance(n: int, level: float = 0.95) -> float:
    """Return the bound of chance: independent lists of n without ties have a tau within it, at this level."""
    if n > FEW:
        return float(stats.norm.ppf((1 + level) / 2)) * null_deviation(n)
    ordered = np.arange(float(n))
    return _against(0.0, _taus_by_order([ordered], ordered, RESAMPLES, 0)[0], level)[1]


def null_deviation(n: int) -> float:
    """Return the standard deviation of tau between independent lists of n without ties."""
    return math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))


def fewest(p_value: float, *, paired: bool = False) -> int:
    """Return how many networks it takes for a tau's, or a difference's, p value to fall below this one."""

    def least(n: int) -> float:
        return 2.0 ** (1 - n) if paired else 2 / math.factorial(n)

    return next(n for n in itertools.count(2) if least(n) < p_value)


# ---- helpers -------------------------------------------------------------------------------------------


def _against(value: float, null: Numbers, level: float) -> tuple[float, float]:
    """Return the part of a distribution as far from 0 as a value, and the greatest usual distance."""
    far, count = np.abs(null), len(null)
    p_value = int(np.count_nonzero(far >= abs(value) - CLOSE)) / count
    place = int(np.argmax(np.arange(1, count + 1) / count >= 1 - level))
    edge = float(np.sort(far)[::-1][place])
    return p_value, abs(value) if abs(abs(value) - edge) <= CLOSE else edge


def _taus_by_order(lists: Sequence[Numbers], true: Numbers, draws: int, seed: int) -> Numbers:
    """Return, for each list, its taus to the truth in other orders, the given order among them."""
    n = len(true)
    if math.factorial(n) <= draws:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        given = np.arange(n)
        orders = _with_the_given(given, lambda rng: rng.permuted(np.tile(given, (draws, 1)), axis=1), seed)
    one, other = np.triu_indices(n, 1)  # each pair of networks once
    ranks = np.unique(true, return_inverse=True)[1].astype(np.float32).T[orders.T]
    truths = np.sign(ranks[one] - ranks[other])
    signs = np.stack([_signs(scores, scores)[one, other] for scores in lists])
    agreeing = 2 * (signs.astype(np.float32) @ truths)  # exact: sums are small
    apart = np.array([[_told_apart(scores).sum()] for scores in lists])
    return _tau(agreeing.astype(float), apart, _told_apart(true).sum())


def _differences_by_exchange(one: Numbers, other: Numbers, true: Numbers, draws: int, seed: int) -> Numbers:
    """Return the differences of taus after some networks have swapped their ranks in the two lists.

    The pairs of either list are a quadratic form in the choice between each network's two ranks.
    """
    ranks = np.concatenate([stats.rankdata(one), stats.rankdata(other)])
    signs = _signs(ranks, ranks).astype(float)
    agreeing, told_apart = signs * np.tile(_signs(true, true), (2, 2)), signs**2
    exchanged = _exchanges(len(true), draws, seed)
    taken = np.hstack([1 - exchanged, exchanged])

    def taus(taken: Numbers) -> Numbers:
        up, apart = (((taken @ pairs) * taken).sum(1) for pairs in (agreeing, told_apart))
        return _tau(up, apart, _told_apart(true).sum())

    return taus(taken) - taus(1 - taken)


@functools.lru_cache(maxsize=1)
def _exchanges(n: int, draws: int, seed: int) -> Numbers:
    """Return which networks swap their ranks: a row of 0 and 1 for each way, no swap at all among them."""
    if 2**n <= draws:
        return np.array(list(itertools.product((0.0, 1.0), repeat=n)))
    return _with_the_given(np.zeros(n), lambda rng: rng.integers(0, 2, (draws, n)).astype(float), seed)


def _with_the_given(given: _Rows, drawn: Callable[[np.random.Generator], _Rows], seed: int) -> _Rows:
    """Return drawn rows with the given one first, so that no p value is below what the draws can show."""
    rows = drawn(numpy_stream(seed, "chance"))
    rows[0] = given
    return rows


def _tau(agreeing: Numbers, apart: Numbers, true_apart: Numbers) -> Numbers:
    """Return tau-b from sums over pairs; a list whose values are all equal has a tau of 0."""
    product = np.broadcast_to(np.asarray(apart * true_apart, float), np.shape(agreeing))
    tau: Numbers = np.divide(agreeing, np.sqrt(product), out=np.zeros(product.shape), where=product > 0)
    return tau


def _signs(some: Numbers, values: Numbers) -> NDArray[np.int8]:
    """Return 1, 0 or -1 for each of `some` against each of `values`: above, equal or below."""
    above = (some[:, None] > values).astype(np.int8)
    return above - (some[:, None] < values).astype(np.int8)


def _told_apart(values: Numbers) -> Numbers:
    """Return how many other networks each network differs from."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (len(values) - counts[places]).astype(float)
