"""Which networks are proposed: against trying all of them, within limits, and the same for a seed."""

import itertools

import numpy as np
import pytest

from search.limits import Limit, Limits
from search.predictor import design
from search.predictor.design import PRIOR, candidates, first_networks, next_networks
from search.predictor.encoding import Encoding
from search.predictor.model import Predictor
from search.predictor.process import Process, Settings
from supernet.additive import counted
from tests.search.predictor.worlds import MIXED, drawn, mini, networks, tiny
from tests.search.spaces import SMALL

EVERY = networks(mini())
OWN, ONCE = drawn(mini(), Settings(0.5, 4.0, 0.1), 0)


def learned(count: int = 12) -> Predictor:
    order = np.random.default_rng(0).permutation(len(EVERY))[:count]
    return Predictor(mini()).fit([EVERY[index] for index in order], ONCE[order].tolist())


def test_the_first_networks_lower_the_variances_of_all_most() -> None:
    encoding = Encoding(SMALL)
    every = networks(SMALL)
    points = encoding.points(encoding.networks(every))
    chosen = first_networks(encoding, every, 5)
    taken: list[int] = []
    for each in chosen:
        sums = []
        for index in range(len(every)):
            seen = encoding.points(encoding.networks([every[i] for i in (*taken, index)]))
            process = Process(PRIOR, encoding.pairs(seen, seen), np.ones(len(taken) + 1))
            _, variances = process.posterior(points.squares, encoding.pairs(points, seen))
            sums.append(variances.sum() / process.amplitude)
        assert sums[every.index(each)] == pytest.approx(min(sums))
        taken.append(every.index(each))


def test_first_networks_are_those_of_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(design, "COMPARED", 60)
    encoding, among = Encoding(mini()), list(mini().architectures())
    one = first_networks(encoding, among, 20, seed=1)
    assert one == first_networks(encoding, among, 20, seed=1)
    assert one != first_networks(encoding, among, 20, seed=2)
    assert len(set(map(mini().canonical, one))) == 20


def test_the_largest_spread_is_next_and_lowers_its_neighbours() -> None:
    predictor = learned()
    chosen = next_networks(predictor, EVERY, 4)
    assert not predictor.trained & set(chosen)
    untrained = [each for each in EVERY if each not in predictor.trained]
    assert chosen[0] == untrained[int(predictor.posterior(untrained)[1].argmax())]
    now = predictor.covariance(untrained)
    for before, after in itertools.pairwise(chosen):
        index = untrained.index(before)
        now = now - np.outer(now[index], now[index]) / (now[index, index] + predictor.noise)
        left = [i for i, each in enumerate(untrained) if each not in chosen[: chosen.index(after)]]
        assert untrained.index(after) == max(left, key=lambda i: now[i, i])


def test_the_largest_expected_rise_is_next() -> None:
    predictor, rng = learned(), np.random.default_rng(0)
    untrained = [each for each in EVERY if each not in predictor.trained]
    means, variances = predictor.posterior(untrained)
    best = predictor.posterior(list(predictor.trained))[0].max()
    draws = means + np.sqrt(variances) * rng.normal(size=(40_000, 1))
    rises = np.maximum(draws - best, 0).mean(0)
    (chosen,) = next_networks(predictor, EVERY, 1, aim="best")
    assert rises[untrained.index(chosen)] > 0.98 * rises.max()


@pytest.mark.parametrize("aim", ["rank", "best"])
def test_nothing_over_a_limit_is_proposed(aim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = counted(mini(), "macs")
    high = int(np.median([cost.of(each) for each in EVERY]))
    within = Limits(mini(), [Limit(cost, high)])
    everything = candidates(within)
    assert set(everything) == {each for each in EVERY if cost.of(each) <= high}
    monkeypatch.setattr(design, "LISTED", 30)
    monkeypatch.setattr(design, "COMPARED", 9)
    for among in (everything, candidates(within, seed=1)):
        assert all(cost.of(each) <= high for each in among)
        chosen = next_networks(learned(), among, 8, aim=aim)
        assert set(chosen) <= set(among)
        assert len(set(chosen)) == 8
        assert set(first_networks(Encoding(mini()), among, 12)) <= set(among)
    assert candidates(within, seed=1) == candidates(within, seed=1) != candidates(within, seed=2)


def test_what_cannot_be_proposed_is_refused() -> None:
    predictor = learned()
    rest = len(EVERY) - len(predictor.trained)
    assert len(next_networks(predictor, EVERY * 2, rest)) == rest
    with pytest.raises(ValueError, match=f"{rest + 1} networks are asked for; from 1 to {rest} can"):
        next_networks(predictor, EVERY, rest + 1)
    with pytest.raises(ValueError, match="aim: unknown value 'worst'"):
        next_networks(predictor, EVERY, 1, aim="worst")
    with pytest.raises(ValueError, match="space mixed has 5 searchable"):
        first_networks(Encoding(MIXED), [EVERY[0], *networks(tiny())], 1)
