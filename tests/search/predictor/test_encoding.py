"""What networks become as numbers, against their definitions in plain loops."""

import functools
import itertools
import math

import numpy as np
import pytest

from search.predictor import encoding
from search.predictor.encoding import COST, OTHER, Encoding
from search.predictor.process import Settings
from supernet.additive import units
from supernet.space import Architecture, Space
from tests.search.predictor.worlds import MIXED, NO_SKIP, ONE_LAYER, PLAIN, mini, networks, tiny
from tests.search.spaces import SMALL

SPACES = [SMALL, MIXED, NO_SKIP, ONE_LAYER, PLAIN, mini(), tiny()]


relus_of = functools.cache(units)


def is_active(space: Space, layer: int, choice: int) -> bool:
    row = relus_of(space).table[layer]
    return row[choice] > 0 if any(row) else choice in space.layers[layer].weighted


def by_definition(space: Space, network: Architecture) -> list[float]:
    """All features of a network, constant ones among them."""
    relus = relus_of(space)
    starts = [index for index, place in enumerate(space.places) if not index or not place.keeps_shape]
    active = [is_active(space, layer, choice) for layer, choice in enumerate(network.choices)]
    found = [
        float(sum(active)),
        sum(math.log1p(row[c]) for row, c in zip(relus.table, network.choices, strict=True)),
    ]
    for start, stop in itertools.pairwise([*starts, len(active)]):
        names = {
            str(op)
            for layer in range(start, stop)
            for choice, op in enumerate(space.layers[layer])
            if is_active(space, layer, choice)
        }
        chosen = [str(space.layers[layer][network.choices[layer]]) for layer in range(start, stop)]
        found += [sum(active[start:stop]), active[start]]
        found += [
            sum(here and name == each for here, each in zip(active[start:stop], chosen, strict=True))
            for name in sorted(names)
        ]
    return [*found, math.log1p(space.macs(network)), math.log1p(relus.of(network))]


def apart(space: Space, layer: int, one: int, other: int) -> float:
    """The distance of two candidates of a layer."""
    if one == other:
        return 0.0
    logs = [
        [math.log2(1 + fact) for fact in (cost.macs, relus, getattr(op, "kernel", 1))]
        for cost, relus, op in zip(
            space.costs[layer], relus_of(space).table[layer], space.layers[layer], strict=True
        )
    ]
    active = [is_active(space, layer, choice) for choice in range(len(logs))]
    least = [min(log[fact] for log, on in zip(logs, active, strict=True) if on) for fact in range(3)]
    first, second = (logs[choice] if active[choice] else least for choice in (one, other))
    differ = sum(abs(a - b) for a, b in zip(first, second, strict=True)) / 3
    return COST * differ + OTHER + (active[one] != active[other])


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_features_and_distances_are_as_defined(space: Space) -> None:
    every = networks(space)[::-1][:300]
    made = Encoding(space)
    points = made.points(made.networks(every))
    raw = np.array([by_definition(space, each) for each in networks(space)])
    varied = raw[:, np.ptp(raw, axis=0) > 1e-9]
    scaled = (varied - varied.mean(0)) / varied.std(0) / math.sqrt(varied.shape[1])
    assert points.features == pytest.approx(scaled[::-1][:300], abs=1e-9)
    few = every[:: max(1, len(every) // 7)]
    ones = made.points(made.networks(few))
    distances = [
        [
            sum(
                apart(space, layer, *pair)
                for layer, pair in enumerate(zip(a.choices, b.choices, strict=True))
            )
            for b in few
        ]
        for a in few
    ]
    pairs = made.pairs(ones, ones)
    near = pairs.kernel(Settings(0.0, 3.0, 0.0))
    assert near == pytest.approx(np.exp(np.array(distances) / -3), abs=1e-12)
    assert np.linalg.eigvalsh(near).min() > -1e-12


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_canonical_strings_are_the_spaces_own(space: Space) -> None:
    every = list(space.architectures())[::3]
    assert Encoding(space).networks(every).tolist() == [list(space.canonical(each).choices) for each in every]


def test_a_large_space_is_scaled_by_drawn_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    space = mini()
    whole, every = Encoding(space), networks(space)
    monkeypatch.setattr(encoding, "LISTED", 200)
    one, again, other = (Encoding(space, seed=seed) for seed in (1, 1, 2))
    features = [each.points(each.networks(every)).features for each in (one, again, other, whole)]
    assert (features[0] == features[1]).all()
    assert (features[0] != features[2]).any()
    assert features[0] == pytest.approx(features[3], abs=0.3)


@pytest.mark.parametrize("choices", [(0,), (0, 0, 0, 0, 9), (0, 0, 0, 0, -1), (0, 0, 0, 0, 2**70)])
def test_other_spaces_are_refused(choices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="space small has"):
        Encoding(SMALL).networks([Architecture((0,) * 5), Architecture(choices)])


def test_no_networks_are_none() -> None:
    assert Encoding(SMALL).networks([]).shape == (0, 5)
