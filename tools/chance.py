"""How far from 0 chance takes a tau, or the difference of two: p values, and intervals that agree with them.

An interval leaves 0 out exactly where the p value is below 1 - level: both are read off one distribution.

Up to FEW networks that distribution is made of the data, all of it where it is small. For a tau the truth is
given to the networks in every order, which is exact where scores and truth have nothing to do with each
other, ties or not. For the difference of two taus each network's ranks in the two lists change places or
stay. The hypothesis is that the two lists could change names at any network without any difference. The
ranks of a list depend on each other a little, so simulations hold the test to its level too.

With more networks the spread is the jackknife's, each network left out in turn, and the distribution
Student's. That needs no list to be like another, and asks only whether the two numbers are the same.
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
Rows = TypeVar("Rows", bound=NDArray[Any])

FEW = 30
"""Up to so many networks chance is played through."""
DRAWS = 10_000
"""Most orders, or exchanges, that are played through; where there are more, so many are drawn."""
BLOCK = 512
"""Networks whose pairs with all others are looked at together."""
CLOSE = 1e-9
"""Numbers nearer than this differ by rounding."""


class Tested(NamedTuple):
    """A number, its interval, and the chance of one as far from 0 where 0 is the truth."""

    value: float
    low: float
    high: float
    p_value: float


def by_order(
    values: Sequence[float], lists: Sequence[Numbers], true: Numbers, *, level: float, draws: int, seed: int
) -> list[Tested]:
    """Taus of few networks against those of the truth in other orders.

    An interval keeps its width on the scale of Fisher's z, where that of a tau hardly depends on the tau. The
    scale ends at a tau of n / (n - 1): few networks in perfect order do not show a perfect score.
    """
    within = 1 - 1 / len(true)

    def scale(tau: float) -> float:
        return math.atanh(within * tau)

    found = []
    for value, null in zip(values, _taus_by_order(lists, true, draws, seed), strict=True):
        p_value, edge = _against(value, null, level)
        low, high = (math.tanh(scale(value) + side * scale(edge)) / within for side in (-1, 1))
        found.append(Tested(value, max(low, -1.0), min(high, 1.0), p_value))
    return found


def by_exchange(
    value: float, one: Numbers, other: Numbers, true: Numbers, *, level: float, draws: int, seed: int
) -> Tested:
    """The difference of two taus of few networks against those after exchanges of ranks."""
    p_value, edge = _against(value, _differences_by_exchange(one, other, true, draws, seed), level)
    return Tested(value, max(value - edge, -2.0), min(value + edge, 2.0), p_value)


def by_jackknife(value: float, left_out: Numbers, *, level: float, limit: float) -> Tested:
    """A number of many networks by what it is without each of them; it lies within ± limit."""
    count = len(left_out)
    error = math.sqrt((count - 1) * float(np.var(left_out)))
    if error < CLOSE:  # such as perfect against reversed: no network makes a difference
        return Tested(value, value, value, 1.0 if abs(value) < CLOSE else 0.0)
    edge = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    p_value = float(2 * stats.t.sf(abs(value) / error, count - 1))
    return Tested(value, max(value - edge, -limit), min(value + edge, limit), p_value)


def taus_left_out(scores: Numbers, true: Numbers) -> Numbers:
    """Tau-b without each network in turn."""
    agreeing = np.concatenate(
        [
            (_signs(scores[start : start + BLOCK], scores) * _signs(true[start : start + BLOCK], true)).sum(1)
            for start in range(0, len(true), BLOCK)
        ]
    )
    apart, true_apart = _told_apart(scores), _told_apart(true)
    up, one, other = (each.sum() - 2 * each for each in (agreeing, apart, true_apart))
    return _tau(up, one, other)


def edge_of_chance(n: int, level: float = 0.95) -> float:
    """Within ± this are the taus of independent lists of n without ties, but for one part in 1 - level."""
    if n > FEW:
        return float(stats.norm.ppf((1 + level) / 2)) * null_deviation(n)
    ordered = np.arange(float(n))
    return _against(0.0, _taus_by_order([ordered], ordered, DRAWS, 0)[0], level)[1]


def null_deviation(n: int) -> float:
    """The standard deviation of tau between independent lists of n without ties."""
    return math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))


def fewest(p_value: float, *, paired: bool = False) -> int:
    """How many networks there must be for a p value below this one, of a tau or of a difference, to exist."""

    def least(n: int) -> float:
        return 2.0 ** (1 - n) if paired else 2 / math.factorial(n)

    return next(n for n in itertools.count(2) if least(n) < p_value)


# ---- behind them ---------------------------------------------------------------------------------------


def _against(value: float, null: Numbers, level: float) -> tuple[float, float]:
    """The part of a distribution as far from 0, and the greatest distance that is not too far."""
    far, count = np.abs(null), len(null)
    p_value = int(np.count_nonzero(far >= abs(value) - CLOSE)) / count
    place = int(np.argmax(np.arange(1, count + 1) / count >= 1 - level))
    edge = float(np.sort(far)[::-1][place])
    return p_value, abs(value) if abs(abs(value) - edge) <= CLOSE else edge


def _taus_by_order(lists: Sequence[Numbers], true: Numbers, draws: int, seed: int) -> Numbers:
    """Of each list, a row of taus to the truth in other orders, the given one among them."""
    n = len(true)
    if math.factorial(n) <= draws:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        given = np.arange(n)
        orders = _with_the_given(given, lambda rng: rng.permuted(np.tile(given, (draws, 1)), axis=1), seed)
    truths = _signs(true, true)[orders[:, :, None], orders[:, None, :]].reshape(len(orders), -1)
    signs = np.stack([_signs(scores, scores).ravel() for scores in lists])
    agreeing = signs.astype(np.float32) @ truths.astype(np.float32).T  # exact: sums are small
    apart = np.array([[_told_apart(scores).sum()] for scores in lists])
    return _tau(agreeing.astype(float), apart, _told_apart(true).sum())


def _differences_by_exchange(one: Numbers, other: Numbers, true: Numbers, draws: int, seed: int) -> Numbers:
    """Differences of taus after a part of the networks has exchanged its ranks in the two lists.

    Pairs of either list are a quadratic form in which of both ranks each network has.
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
    """Which networks exchange their ranks: 0 or 1 for each, a row for each way, none among them."""
    if 2**n <= draws:
        return np.array(list(itertools.product((0.0, 1.0), repeat=n)))
    return _with_the_given(np.zeros(n), lambda rng: rng.integers(0, 2, (draws, n)).astype(float), seed)


def _with_the_given(given: Rows, drawn: Callable[[np.random.Generator], Rows], seed: int) -> Rows:
    """Rows of chance, the first of which is what there is: so no p value is below what a draw can tell."""
    rows = drawn(numpy_stream(seed, "chance"))
    rows[0] = given
    return rows


def _tau(agreeing: Numbers, apart: Numbers, true_apart: Numbers) -> Numbers:
    """Tau-b from sums over pairs; of what orders nothing it is 0."""
    product = np.broadcast_to(np.asarray(apart * true_apart, float), np.shape(agreeing))
    tau: Numbers = np.divide(agreeing, np.sqrt(product), out=np.zeros(product.shape), where=product > 0)
    return tau


def _signs(some: Numbers, values: Numbers) -> NDArray[np.int8]:
    """Which of all networks each of some is above (1), beside (0) or below (-1)."""
    above = (some[:, None] > values).astype(np.int8)
    return above - (some[:, None] < values).astype(np.int8)


def _told_apart(values: Numbers) -> Numbers:
    """From how many others each network differs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (len(values) - counts[places]).astype(float)
