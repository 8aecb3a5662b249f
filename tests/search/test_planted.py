"""The search finds a planted answer, whatever the seed; the objective of the released code does not."""

import pytest

from benchmarks.planted import ANSWER, CUT, KINDS, search
from search.cuts.config import SEDONA_2021
from search.discretisation import discretise

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(3))
def test_the_cut_and_the_head_are_found(seed: int) -> None:
    net = search(seed, steps=25)
    assert discretise(net.alpha, net.beta, KINDS, 2) == ANSWER
    signals = net.alpha.detach().softmax(1)[:, 0]
    assert float(signals[CUT - 1]) > 0.7
    assert float(signals[: CUT - 1].max()) < 0.4
    assert all_half(signals[CUT:].tolist()), "above the cut nothing depends on alpha"


def all_half(values: list[float]) -> bool:
    return all(abs(value - 0.5) < 1e-3 for value in values)


def test_the_released_objective_prefers_the_other_head() -> None:
    net = search(0, SEDONA_2021, steps=25)
    assert discretise(net.alpha, net.beta, KINDS, 2) != ANSWER
    assert float(net.beta.detach().softmax(1)[CUT - 1, 1]) < 0.5
