"""A Gaussian process against an explicit inverse, and against learning anew without each network."""

import numpy as np
import pytest

from search.predictor.encoding import Encoding
from search.predictor.process import Process, Settings
from supernet.space import Space
from tests.search.predictor.worlds import MIXED, mini, networks

SETTINGS = [Settings(0.2, 2.0, 0.01), Settings(0.8, 4.0, 0.3), Settings(0.95, 8.0, 3.0), Settings(0, 1, 0.1)]


@pytest.mark.parametrize("space", [MIXED, mini()], ids=lambda space: space.name)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_is_as_by_an_explicit_inverse(space: Space, settings: Settings) -> None:
    rng, encoding = np.random.default_rng(0), Encoding(space)
    every = encoding.points(encoding.networks(networks(space)))
    kernel = encoding.pairs(every, every).kernel(settings)
    seen = rng.integers(len(kernel), size=25)  # some of them several times
    measured = rng.normal(size=25)
    inverse = np.linalg.inv(kernel[np.ix_(seen, seen)] + settings.noise * np.eye(25))
    amplitude = measured @ inverse @ measured / 25
    covariance = amplitude * (kernel - kernel[:, seen] @ inverse @ kernel[seen])
    _, log_determinant = np.linalg.slogdet(2 * np.pi * amplitude * np.linalg.inv(inverse))
    evidence = -0.5 * (log_determinant + measured @ inverse @ measured / amplitude)

    points = encoding.points(encoding.networks([networks(space)[index] for index in seen]))
    process = Process(settings, encoding.pairs(points, points), measured)
    means, variances = process.posterior(every.squares, encoding.pairs(every, points))
    assert means == pytest.approx(kernel[:, seen] @ inverse @ measured, abs=1e-10)
    assert variances == pytest.approx(covariance.diagonal(), abs=1e-10)
    joint = process.covariance(encoding.pairs(every, every), encoding.pairs(every, points))
    assert joint == pytest.approx(covariance, abs=1e-10)
    assert process.evidence == pytest.approx(evidence, abs=1e-10)
    assert process.noise == pytest.approx(settings.noise * amplitude, abs=1e-12)


def test_the_amplitude_explains_the_measurements_best() -> None:
    rng, encoding = np.random.default_rng(0), Encoding(MIXED)
    points = encoding.points(encoding.networks(networks(MIXED)[:20]))
    pairs, settings, measured = encoding.pairs(points, points), SETTINGS[1], rng.normal(size=20)
    process = Process(settings, pairs, measured)
    covariance = pairs.kernel(settings) + settings.noise * np.eye(20)

    def evidence(amplitude: float) -> float:
        _, log_determinant = np.linalg.slogdet(2 * np.pi * amplitude * covariance)
        return float(-0.5 * (log_determinant + measured @ np.linalg.inv(amplitude * covariance) @ measured))

    assert evidence(process.amplitude) == pytest.approx(process.evidence, abs=1e-10)
    assert all(evidence(factor * process.amplitude) < process.evidence for factor in (0.9, 1.1))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_leaving_out_is_learning_anew_without(settings: Settings) -> None:
    rng, encoding = np.random.default_rng(1), Encoding(MIXED)
    network = np.sort(np.concatenate([np.arange(12), rng.integers(12, size=6)]))
    choices = encoding.networks([networks(MIXED)[4 * index] for index in network])
    measured, points = rng.normal(size=18), encoding.points(choices)
    found = Process(settings, encoding.pairs(points, points), measured).left_out(network)
    for number in range(12):
        own = network == number
        rest, out = encoding.points(choices[~own]), encoding.points(choices[own][:1])
        process = Process(settings, encoding.pairs(rest, rest), measured[~own])
        (mean,), _ = process.posterior(out.squares, encoding.pairs(out, rest))
        assert found[number] == pytest.approx(mean, abs=1e-10)
