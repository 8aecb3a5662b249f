"""The predictor: against its definition, in simulation, and what it refuses."""

import random
import time

import numpy as np
import pytest

from search.predictor.encoding import Encoding
from search.predictor.model import FLOOR, GRID, KEPT, Predictor
from search.predictor.process import Process, Settings
from supernet.space import Architecture, Space
from tests.search.predictor.worlds import MIXED, NO_SKIP, ONE_LAYER, PLAIN, drawn, mini, networks, tiny
from tests.search.spaces import SMALL, macro
from tools.ranking import kendall_tau, tau_b

NUMBERS = [0.5, 0.61, 0.55, 0.7, 0.42]


def some(space: Space, count: int, seed: int = 0) -> list[Architecture]:
    return random.Random(seed).sample(networks(space), count)


def test_it_is_the_mean_over_the_likeliest_settings() -> None:
    space, rng = mini(), np.random.default_rng(0)
    taken = [*some(space, 15), *some(space, 15)[:5]]
    accuracies = rng.uniform(0.3, 0.9, 20)
    predictor = Predictor(space).fit(taken, accuracies.tolist())
    targets = -np.log(1 - accuracies + FLOOR)
    measured = (targets - targets.mean()) / targets.std()
    every, encoding = networks(space), Encoding(space)
    points, seen = (encoding.points(encoding.networks(each)) for each in (every, taken))
    own, across = encoding.pairs(seen, seen), encoding.pairs(points, seen)
    best = sorted((Process(settings, own, measured) for settings in GRID), key=lambda p: -p.evidence)[:KEPT]
    weights = np.exp([process.evidence for process in best])
    weights /= weights.sum()
    means, variances = np.array([process.posterior(points.squares, across) for process in best]).swapaxes(
        0, 1
    )
    mean = weights @ means
    variance = weights @ (variances + means**2) - mean**2
    found = predictor.posterior(every)
    assert found[0] == pytest.approx(mean, abs=1e-10)
    assert found[1] == pytest.approx(variance, abs=1e-10)
    assert predictor.covariance(every).diagonal() == pytest.approx(variance, abs=1e-10)
    assert predictor.noise == pytest.approx(weights @ [process.noise for process in best])

    medians, spreads = predictor.predict(every)

    def accuracy(deviations: float) -> object:
        return 1 + FLOOR - np.exp(-targets.mean() - targets.std() * (mean + deviations * np.sqrt(variance)))

    assert medians == pytest.approx(accuracy(0))
    assert spreads == pytest.approx((accuracy(1) - accuracy(-1)) / 2)  # type: ignore[operator]
    assert all(type(each) is float for each in (*medians, *spreads))

    numbers = [networks(space).index(each) for each in taken]
    _, network = np.unique(numbers, return_inverse=True)
    order = np.unique(encoding.networks(taken), axis=0).tolist()
    network = np.array([order.index(list(each.choices)) for each in taken])
    left = weights @ [process.left_out(network) for process in best]
    own_means = [measured[network == number].mean() for number in range(15)]
    assert predictor.leave_one_out() == kendall_tau(left, own_means)


@pytest.mark.parametrize(
    "settings", [Settings(0.5, 4.0, 0.1), Settings(0.8, 2.0, 0.3), Settings(0.2, 8.0, 1.0)]
)
def test_intervals_cover_what_they_say(settings: Settings) -> None:
    space, covered, tau = mini(), [], []
    predictor = Predictor(space)
    for seed in range(30):
        own, once = drawn(space, settings, seed)
        order = np.random.default_rng(seed).permutation(len(own))
        taken, rest = order[:40], order[40:]
        predictor.fit([networks(space)[index] for index in taken], once[taken].tolist())
        others = [networks(space)[index] for index in rest]
        lows, highs = predictor.intervals(others, level=0.9)
        covered.append(np.mean((lows <= once[rest]) & (once[rest] <= highs)))
        tau.append(tau_b(predictor.predict(others)[0], own[rest]))
    assert 0.85 <= np.mean(covered) <= 0.95
    assert np.mean(tau) > 0.3


@pytest.mark.parametrize("space", [SMALL, MIXED, NO_SKIP, ONE_LAYER, PLAIN, tiny()], ids=lambda s: s.name)
def test_any_space_will_do(space: Space) -> None:
    own, once = drawn(space, Settings(0.5, 4.0, 0.01), 0)
    every = networks(space)
    count = max(3, min(40, len(every) - 1))
    predictor = Predictor(space).fit(every[:count], once[:count].tolist())
    means, spreads = predictor.predict(every)
    assert np.isfinite(means).all()
    assert (np.array(spreads) > 0).all()
    if len(every) > 20:
        assert tau_b(means, own) > 0.4


def test_strings_of_one_network_are_one_network() -> None:
    rng, space = np.random.default_rng(0), SMALL
    strings = random.Random(0).sample(list(space.architectures()), 30)
    accuracies = rng.uniform(0.3, 0.9, 30).tolist()
    one = Predictor(space).fit(strings, accuracies)
    other = Predictor(space).fit(list(map(space.canonical, strings)), accuracies)
    every = list(space.architectures())
    means, spreads = one.predict(every)
    assert (means, spreads) == one.predict(list(map(space.canonical, every)))
    assert (means, spreads) == other.predict(every)
    assert one.leave_one_out() == other.leave_one_out()
    assert one.leave_one_out().n == len(set(map(space.canonical, strings))) < 30
    assert one.trained == set(map(space.canonical, strings))


def test_repeats_that_scatter_say_that_there_is_noise() -> None:
    taken, rng = some(mini(), 15), np.random.default_rng(0)
    values = rng.uniform(0.4, 0.8, 15)
    noises = [
        Predictor(mini())
        .fit(taken * 3, np.ravel([values + s * rng.normal(size=15) for _ in "abc"]).tolist())
        .noise
        for s in (0.001, 0.05)
    ]
    assert noises[0] < noises[1] / 3


def test_percent_are_fractions_times_100() -> None:
    taken, every = some(mini(), 5), networks(mini())
    fractions = Predictor(mini()).fit(taken, NUMBERS)
    percent = Predictor(mini()).fit(taken, [100 * each for each in NUMBERS])
    for one, other in zip(
        (*fractions.predict(every), *fractions.intervals(every)),
        (*percent.predict(every), *percent.intervals(every)),
        strict=True,
    ):
        assert other == pytest.approx(100 * np.array(one))


def test_a_seed_says_all_and_learning_begins_anew() -> None:
    every = networks(mini())
    one, other = Predictor(mini(), seed=3), Predictor(mini(), seed=3)
    other.fit(some(mini(), 9, 1), [0.1 * each for each in range(9)])
    assert one.fit(some(mini(), 5), NUMBERS) is one
    assert one.predict(every) == other.fit(some(mini(), 5), NUMBERS).predict(every)
    in_order, backwards = one.predict(every), one.predict(every[::-1])
    assert in_order[0] == pytest.approx(backwards[0][::-1])


# ---- further features ----------------------------------------------------------------------------------


def test_a_further_feature_stays_only_where_it_tells_something() -> None:
    space, every = mini(), networks(mini())
    own, once = drawn(space, Settings(0.2, 2.0, 0.1), 0)
    rng = np.random.default_rng(100)
    extra = {
        "scores": dict(zip(every, (own + 0.01 * rng.normal(size=len(own))).tolist(), strict=True)),
        "chance": dict(zip(every, rng.normal(size=len(own)).tolist(), strict=True)),
    }
    taken = rng.permutation(len(own))[:25]
    rest = np.setdiff1d(np.arange(len(own)), taken)
    taus = []
    for given in ({}, extra):
        predictor = Predictor(space, extra=given)
        predictor.fit([every[index] for index in taken], once[taken].tolist())
        taus.append(tau_b(predictor.predict([every[index] for index in rest])[0], own[rest]))
    assert predictor.kept == ("scores",)
    assert taus[1] > taus[0] + 0.1
    few = [every[index] for index in taken[:3]]
    assert predictor.fit(few, [0.5, 0.6, 0.55]).kept == ()


def test_a_further_feature_needs_values() -> None:
    every = networks(mini())
    with pytest.raises(ValueError, match="the values of 'scores' must be finite numbers that differ"):
        Predictor(mini(), extra={"scores": dict.fromkeys(every, 1.0)})
    predictor = Predictor(mini(), extra={"scores": {every[0]: 1.0, every[1]: 2.0}})
    with pytest.raises(ValueError, match=f"'scores' has no value for {every[2]}"):
        predictor.fit(every[:3], [0.1, 0.2, 0.3])


# ---- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracies", "message"),
    [
        ([0.5, float("nan"), 0.6], "accuracies`?: that of .* is nan; it must be a fraction"),
        ([0.5, -0.1, 0.6], "is -0.1; it must"),
        ([50, 101, 60], "is 101; it must"),
        ([0.5, 0.5, 0.5], "accuracies`?: all are equal"),
        ([0.5, 0.6], "2 are given for 3 architectures"),
    ],
)
def test_bad_accuracies_are_refused(accuracies: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Predictor(mini()).fit(some(mini(), 3), accuracies)
    assert "\n" not in str(caught.value)


def test_too_few_networks_are_refused() -> None:
    one, *others = SMALL.architectures()
    strings = [each for each in (one, *others) if SMALL.canonical(each) == SMALL.canonical(others[-1])]
    with pytest.raises(ValueError, match="2 different networks are too few to learn from; give 3 or more"):
        Predictor(SMALL).fit([one, *strings], np.linspace(0.1, 0.9, 1 + len(strings)).tolist())


def test_another_space_and_no_learning_are_refused() -> None:
    with pytest.raises(ValueError, match="space mini has 5"):
        Predictor(mini()).fit([*some(mini(), 3), Architecture((0,))], NUMBERS[:4])
    with pytest.raises(ValueError, match="call fit first"):
        Predictor(mini()).predict(some(mini(), 1))
    with pytest.raises(ValueError, match="call fit first"):
        Predictor(mini()).leave_one_out()
    predictor = Predictor(mini()).fit(some(mini(), 5), NUMBERS)
    with pytest.raises(ValueError, match="space mini has 5"):
        predictor.predict([Architecture((0,) * 8)])
    assert predictor.predict([]) == ([], [])


def test_all_of_a_benchmark_takes_less_than_a_second() -> None:
    every = list(macro().architectures())
    taken = random.Random(0).sample(every, 100)
    predictor = Predictor(macro()).fit(taken, np.random.default_rng(0).uniform(0.7, 0.95, 100).tolist())
    began = time.process_time()
    predictor.predict(every)
    assert time.process_time() - began < 1
