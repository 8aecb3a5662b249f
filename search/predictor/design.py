"""Which networks to train: the first ones, and then those that teach most or promise most."""

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
from scipy.stats import norm

from search.limits import Limits
from search.predictor.encoding import Encoding
from search.predictor.model import Predictor
from search.predictor.process import Settings
from supernet.sampling import stream
from supernet.space import Architecture
from tools.chance import Numbers
from tools.mistake import Mistake
from tools.options.config import check_choice
from tools.seeding import numpy_stream

LISTED = 20_000
"""Up to this many networks within the limits are all candidates; of more, so many are drawn."""
COMPARED = 1_500
"""So many candidates are compared with each other."""
PRIOR = Settings(linear=0.5, length=4.0, noise=0.1)
"""The kernel by which the first networks are chosen."""
AIMS = ("rank", "best")
"""What the next networks can be for."""


def candidates(within: Limits, *, seed: int = 0) -> list[Architecture]:
    """Return the networks that keep all limits, or some that are drawn where there are too many."""
    every = list(islice(within.networks(), LISTED + 1))
    if len(every) <= LISTED:
        return every
    rng = stream(seed, "predictor/candidates")
    return list(dict.fromkeys(within.draw(rng) for _ in range(LISTED)))


def first_networks(
    encoding: Encoding, among: Sequence[Architecture], count: int, *, seed: int = 0
) -> list[Architecture]:
    """Return the networks of `among` to train first, the most telling one first.

    Each is the one whose measurement, after those before it, lowers the variances of all most.
    """
    networks = _different(encoding, among, count)
    if len(networks) > COMPARED:
        drawn = numpy_stream(seed, "predictor/first").permutation(len(networks))[: max(COMPARED, count)]
        networks = [networks[index] for index in drawn]
    points = encoding.points(encoding.networks(networks))
    covariance = encoding.pairs(points, points).kernel(PRIOR)

    def lowered(now: Numbers) -> Numbers:
        return np.asarray((now**2).sum(0) / (now.diagonal() + PRIOR.noise))

    return [networks[index] for index in _greedy(covariance, PRIOR.noise, count, lowered)]


def next_networks(
    predictor: Predictor, among: Sequence[Architecture], count: int, *, aim: str = "rank"
) -> list[Architecture]:
    """Return untrained networks of `among` to train next.

    Each is chosen as if those before it had ended at their means. To rank all networks, it is the one of the
    largest spread; to find the best, the one that is expected to rise most above the best so far.

    Arguments:
        predictor: What was learned so far.
        among: The networks that may be proposed, and no others are.
        count: How many to propose.
        aim: "rank" or "best".
    """
    check_choice("aim", aim, AIMS)
    networks = _different(predictor.encoding, among, count, predictor.trained)
    means, variances = predictor.posterior(networks)
    best = predictor.posterior(sorted(predictor.trained, key=str))[0].max()

    def worth(means: Numbers, variances: Numbers) -> Numbers:
        spreads = np.sqrt(np.maximum(variances, 1e-12))
        return spreads if aim == "rank" else _expected_rise(means - best, spreads)

    kept = np.argsort(-worth(means, variances), kind="stable")[: max(COMPARED, count)]
    covariance = predictor.covariance([networks[index] for index in kept])
    chosen = _greedy(covariance, predictor.noise, count, lambda now: worth(means[kept], now.diagonal()))
    return [networks[kept[index]] for index in chosen]


def _expected_rise(above: Numbers, spreads: Numbers) -> Numbers:
    """Return the mean of what is over 0 of normal numbers with these means and spreads."""
    return np.asarray(above * norm.cdf(above / spreads) + spreads * norm.pdf(above / spreads))


def _greedy(covariance: Numbers, noise: float, count: int, worth: Callable[[Numbers], Numbers]) -> list[int]:
    """Choose one after the other by its worth under the covariance that those before it leave."""
    now, chosen = covariance.copy(), list[int]()
    for _ in range(count):
        values = worth(now)
        values[chosen] = -np.inf
        index = int(values.argmax())
        chosen.append(index)
        now -= np.outer(now[:, index], now[index] / (now[index, index] + noise))
    return chosen


def _different(
    encoding: Encoding,
    among: Sequence[Architecture],
    count: int,
    known: frozenset[Architecture] = frozenset(),
) -> list[Architecture]:
    """Return the first string of each network that is not known; refuse fewer than `count` of them."""
    by_network: dict[Architecture, Architecture] = {}
    for each, choices in zip(among, encoding.networks(among).tolist(), strict=True):
        by_network.setdefault(Architecture(tuple(choices)), each)
    found = [each for network, each in by_network.items() if network not in known]
    if not 0 < count <= len(found):
        raise Mistake("count", f"{count} networks are asked for", f"from 1 to {len(found)} can be proposed")
    return found
