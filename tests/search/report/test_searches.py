"""Sentences of a report about other runs: how uncertain a truth is, and which trainings are compared."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrain.config import RetrainConfig
from search.architectures.evaluations import said_of_noise, score_error
from search.records import Relaxation, save_relaxation
from search.report.searches import _known
from search.report.tables import Table
from search.report.trained import Training, _compared, _searched_against_others, trained
from supernet.network.documents import save_architecture
from supernet.presets import preset
from supernet.space import Architecture
from tools.images.options import DataConfig
from tools.options.config import to_toml
from tools.run.folder import Run

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


def test_a_score_is_as_uncertain_as_draws_of_its_images_make_it() -> None:
    rng = np.random.default_rng(0)
    for share, images in ((0.3, 16), (0.5, 500), (0.9, 2000)):
        drawn = rng.binomial(images, share, size=20_000) / images
        assert score_error(share, images) == pytest.approx(drawn.std(), rel=0.03)
    assert said_of_noise(0.5, 16) == "uncertain by 12.5 points, over 16 validation images"
    assert score_error(1.0, 16) == score_error(0.0, 16) > 0.04  # all right of 16 are not all right of all


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
    told = f"within the {edge:.1f} points of chance; one seed each, not tested. Its largest block"
    assert f"3.00 points less than in one piece (63.00 %): {told}" in line
    assert "keeps 0.75 times the activations" in line
    (line,) = _compared([wide, blocks])
    assert line == (
        "What cutting does to net cannot be told from blocks and wide: they also differ in --width."
    )
    assert _compared([whole, wide]) == []
    (line,) = _compared([blocks, training("same", 0.60, rule="", seed=0, width=1.0)])
    assert "as many as in one piece" in line


def cut(name: str, top1: float, *places: int, found: bool = False, **options: object) -> Training:
    made = training(name, top1, places, **{"rule": "greedy", **options})
    heads = {"heads": ["linear"] * len(places)}
    return replace(made, results={**made.results, **heads}, found_by=("cuts",) * found)


def test_searched_cuts_are_compared_with_others_of_as_many_blocks() -> None:
    mine = cut("mine", 0.50, 1, found=True, parallel="blocks")
    middle = cut("middle", 0.57, 2, parallel="none")
    (line,) = _searched_against_others([mine, middle])
    edge = 196 * math.sqrt(0.5 * 0.5 / 2000 + 0.57 * 0.43 / 2000)
    start = (
        "Cut after layer 1 (linear), as the search 'cuts' found, net gets 50.00 % of the test images right, "
    )
    end = f" (57.00 %): more than the {edge:.1f} points of chance; one seed each, not tested."
    assert line == (
        f"{start}7.00 points less than in the run 'middle', cut after layer 2 (linear) without a search{end}"
    )
    (line,) = _searched_against_others([mine, replace(middle, balanced_by=("cuts", "more"))])
    assert "cut after layer 2 (linear), as the searches 'cuts' and 'more' have it for blocks of like" in line
    there = cut("there", 0.57, 1, found=False)
    (line,) = _searched_against_others([mine, replace(there, results={**there.results, "heads": ["aux1"]})])
    assert line == f"{start}7.00 points less than in the run 'there', with other heads there, aux1{end}"


@pytest.mark.parametrize(
    "other",
    [
        cut("three", 0.57, 2, 3),
        cut("found too", 0.57, 2, found=True),
        cut("the same", 0.57, 1),
        cut("another rule", 0.57, 2, rule="replay"),
        cut("longer", 0.57, 2, steps=900),
        cut("uneven", 0.57, 2, uneven_groups=True),
        replace(cut("another network", 0.57, 2), network="other"),
        replace(cut("groups", 0.57, 2), results={**cut("", 0.57, 2).results, "groups": 2}),
        replace(cut("no heads known", 0.57, 2), results=training("", 0.57, (2,)).results),
    ],
    ids=lambda other: other.name,
)
def test_what_differs_in_more_than_cuts_is_not_compared(other: Training) -> None:
    assert _searched_against_others([cut("mine", 0.50, 1, found=True), other]) == []


def finished(folder: Path, results: dict[str, Any], **options: str) -> str:
    folder.mkdir()
    text = "".join(f'{name} = "{value}"\n' for name, value in {"network": "net", **options}.items())
    (folder / "config.toml").write_text(text)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "validation_top1": 0.5}) + "\n")
    common = {"macs": 1, "params": 1, "steps": 1, "training_seconds": 1.0, "test_images": 100}
    Run(folder).write_results({**common, **results})
    return str(folder)


YOUNG = ("classifier_init", "extend", "head_width", "alignment_every", "skip_broken")
"""Options of a training that runs of before do not have."""


def told_of(folder: Path, cut: RetrainConfig, whole: RetrainConfig) -> str:
    """What a report says of two runs, of which the one in one piece was made before the youngest options."""
    folder.mkdir()
    blocks = {"cuts": [1], "heads": ["aux1"], "head_width": "map", "test": {"last": {"top1": 0.5}}}
    paths = [finished(folder / "cut", blocks), finished(folder / "whole", {"test": {"last": {"top1": 0.9}}})]
    for path, config in zip(map(Path, paths), (cut, whole), strict=True):
        lines = to_toml(config).splitlines()
        if config is whole:
            lines = [line for line in lines if not line.startswith(YOUNG)]
        (path / "config.toml").write_text("\n".join(lines))
        if config.architecture:
            space = preset("tiny", num_classes=10, image_size=16)
            save_architecture(path / "architecture.json", Architecture((0, 1, 2, 3)), space, stem="fused")
    _, (line, *_) = trained(tuple(paths), ())
    return line


def test_a_longer_run_and_one_of_before_are_compared(tmp_path: Path) -> None:
    cut = RetrainConfig(decoupling="uniform:2:aux1", extend=True)
    line = told_of(tmp_path / "alike", cut, RetrainConfig())
    assert line.startswith("Cut into 2 blocks after layer 1 (aux1), resnet18 gets 50.00 % of the test images")
    line = told_of(tmp_path / "other", replace(cut, data=DataConfig(flip=False)), RetrainConfig())
    assert line.endswith("they also differ in --data.flip.")


@pytest.mark.parametrize(("begun", "end"), [("timm", ""), ("torch", "also differ in --classifier-init.")])
def test_a_classifier_of_before_began_with_the_range_of_timm(begun: str, end: str, tmp_path: Path) -> None:
    whole = RetrainConfig(architecture="best.json")
    line = told_of(
        tmp_path / "runs", replace(whole, decoupling="uniform:2:aux1", classifier_init=begun), whole
    )
    assert line.startswith("What cutting does" if end else "Cut into 2 blocks")
    assert line.endswith(end)


def test_cuts_of_two_ways_to_count_a_stem_are_not_the_same(tmp_path: Path) -> None:
    space, architecture = preset("tiny", num_classes=10, image_size=16), Architecture((0, 1, 2, 3))
    for stem in ("unit", "fused"):
        marks = {"stem": stem} if stem == "fused" else {}  # before, no file said so
        results = {"cuts": [1], "heads": ["a"], "groups": 1, "test": {"last": {"top1": 0.5}}}
        path = Path(
            finished(tmp_path / stem, results, architecture="best.json", decoupling="x", stem="fused")
        )
        save_architecture(path / "architecture.json", architecture, space, **marks)
        row = ((0.1, 0.9),) * 3
        searched = tmp_path / f"{stem} search"
        searched.mkdir()
        save_relaxation(searched / "relaxation.json", Relaxation("tiny/0123", ("a", "b"), row, row, marks))
        Run(searched).write_results({"decouplings": {"2": {"cuts": [1], "heads": ["a"], "groups": 1}}})
    whole = Path(finished(tmp_path / "whole", {"test": {"last": {"top1": 0.9}}}, architecture="best.json"))
    save_architecture(whole / "architecture.json", architecture, space, stem="fused")
    searches = tuple(str(tmp_path / f"{stem} search") for stem in ("unit", "fused"))
    for stem in ("unit", "fused"):
        _, lines = trained((str(whole), str(tmp_path / stem)), searches)
        assert f"as the search '{stem} search' found, tiny/0123 gets 50.00 %" in lines[0]


def test_the_searches_that_chose_cuts_are_named(tmp_path: Path) -> None:
    def search(name: str, place: int, balanced: int) -> str:
        folder = tmp_path / name
        folder.mkdir()
        alpha = ((0.1, 0.9),) * 3
        save_relaxation(folder / "relaxation.json", Relaxation("net", ("a", "b"), alpha, alpha))
        content = {
            key: {"2": {"cuts": [at], "heads": ["a"], "groups": 1}}
            for key, at in (("decouplings", place), ("balanced", balanced))
        }
        Run(folder).write_results(content)
        return str(folder)

    def trained_at(name: str, place: int, top1: float, head: str = "a", **options: str) -> str:
        results = {"cuts": [place], "heads": [head], "groups": 1, "test": {"last": {"top1": top1}}}
        return finished(tmp_path / name, results, decoupling=name, **options)

    searches = (search("one", 1, 3), search("two", 1, 3))
    asked = (
        finished(tmp_path / "whole", {"test": {"last": {"top1": 0.9}}}),
        trained_at("mine", 1, 0.5),
        trained_at("middle", 2, 0.5, rule="greedy"),
        trained_at("even", 3, 0.7),
        trained_at("other head", 1, 0.4, "b"),
        trained_at("replayed", 1, 0.3, "b", rule="replay"),
    )
    _, lines = trained(asked, searches)
    by = "as the searches 'one' and 'two' found, "
    wholes, others, (chance,) = lines[:5], lines[5:-1], lines[-1:]
    assert [line.split(", net gets")[0] for line in wholes] == [
        f"Cut into 2 blocks {where}"
        for where in (
            "after layer 1 (a), as the searches 'one' and 'two' found",
            "after layer 2 (a)",
            "after layer 3 (a)",
            "after layer 1 (b)",
            "after layer 1, as the searches 'one' and 'two' found",
        )
    ]
    assert len(others) == 3
    assert all(line.startswith(f"Cut after layer 1 (a), {by}net gets 50.00 %") for line in others)
    assert "as many as in the run 'middle', cut after layer 2 (a) without a search (50.00 %)" in others[0]
    assert "'even', cut after layer 3 (a), as the searches 'one' and 'two' have it for" in others[1]
    assert "10.00 points more than in the run 'other head', with other heads there, b" in others[2]
    assert chance.startswith("Points of chance: ")
    _, nothing = trained(asked[1:3], ())
    assert nothing == []
