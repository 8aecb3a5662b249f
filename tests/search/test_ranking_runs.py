"""Sentences of a report about other runs: how uncertain a truth is, and which trainings are compared."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search.ranking_runs import _known
from search.ranking_trained import Training, _compared, _searched_against_others
from search.tables import Table
from supernet.presets import preset

SPACE = preset("nas_bench_macro", num_classes=10, image_size=32)


def test_a_truth_is_as_uncertain_as_most_of_its_trainings() -> None:
    rng = np.random.default_rng(0)
    networks = [SPACE.canonical(each) for each in list(SPACE.architectures())[::5]]
    values = {who: tuple(90 + 0.21 * rng.normal(size=3)) for who in networks}
    for who in networks[::20]:  # a few hardly train
        values[who] = tuple(60 + 20 * rng.normal(size=3))
    truth = Table(values, len(values), "accuracy")
    known = _known(networks[1], SPACE, truth, lower=False)
    assert known is not None
    assert known.error == pytest.approx(0.21 / math.sqrt(3), rel=0.1)
    assert known.among == len(values)
    middle = sorted(map(SPACE.params, values))[len(values) // 2]
    within = _known(networks[1], SPACE, truth, lower=False, limits={"params": middle, "latency_ms": 1.0})
    assert within is not None
    assert within.among == sum(SPACE.params(who) <= middle for who in values)
    once = Table({who: each[:1] for who, each in values.items()}, len(values), "accuracy")
    alone = _known(networks[1], SPACE, once, lower=False)
    assert alone is not None
    assert math.isnan(alone.error)


def training(name: str, top1: float, cuts: tuple[int, ...] = (), **options: object) -> Training:
    results: dict[str, object] = {"test": {"last": {"top1": top1}}, "cuts": cuts, "training_seconds": 10.0}
    results |= {"test_images": 2000, "kept_bytes": [3000, 1000] if cuts else [4000]}
    return Training(name=name, path=Path(name), network="net", options=options, results=results)


def test_only_trainings_that_are_alike_are_compared() -> None:
    blocks = training("blocks", 0.60, (3,), rule="", decoupling="uniform:2:aux1", seed=0, width=1.0)
    whole = training("whole", 0.63, rule="", decoupling="", seed=0, width=1.0)
    wide = training("wide", 0.90, rule="", decoupling="", seed=0, width=2.0)
    (line,) = _compared([wide, blocks, whole])
    edge = 196 * math.sqrt(0.6 * 0.4 / 2000 + 0.63 * 0.37 / 2000)
    assert f"3.00 points less than in one piece (63.00 %): within the {edge:.1f} points" in line
    assert "keeps 0.75 times the activations" in line
    (line,) = _compared([wide, blocks])
    assert line == (
        "What cutting does to net cannot be told from blocks and wide: they also differ in --width."
    )
    assert _compared([whole, wide]) == []
    (line,) = _compared([blocks, training("same", 0.60, rule="", seed=0, width=1.0)])
    assert "as many as in one piece" in line


def test_searched_cuts_are_compared_with_others_of_as_many_blocks() -> None:
    def cut(name: str, top1: float, *places: int, found_by: str = "", **options: object) -> Training:
        made = training(name, top1, places, **{"rule": "greedy", **options})
        heads = {"heads": ["linear"] * len(places)}
        return replace(made, results={**made.results, **heads}, found_by=found_by)

    mine = cut("mine", 0.50, 1, found_by="'cuts'", parallel="blocks")
    (line,) = _searched_against_others([mine, cut("middle", 0.57, 2, parallel="none")])
    edge = 196 * math.sqrt(0.5 * 0.5 / 2000 + 0.57 * 0.43 / 2000)
    assert line.startswith(
        "Cut after layer 1 (linear), as the search 'cuts' found, net gets 50.00 %, 7.00 points less than by "
        "the cuts of middle, after layer 2 (linear), which no search here found (57.00 %): more than the "
        f"{edge:.1f} points"
    )
    for other in (
        cut("three", 0.57, 2, 3),
        cut("found too", 0.57, 2, found_by="'cuts' (balanced)"),
        cut("another rule", 0.57, 2, rule="replay"),
        cut("longer", 0.57, 2, steps=900),
        replace(cut("another network", 0.57, 2), network="other"),
    ):
        assert _searched_against_others([mine, other]) == []
