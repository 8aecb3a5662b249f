"""Runs of retrain_model.py as a report reads them, and which of them it takes to be alike."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrain.config import RetrainConfig
from search.records import Relaxation, save_relaxation
from search.report.comparisons import trained_section
from search.report.trained import read_training
from supernet.network.documents import save_architecture
from supernet.presets import preset
from supernet.space import Architecture
from tools.images.options import DataConfig
from tools.options.config import to_toml
from tools.run.folder import Run


def finished(folder: Path, results: dict[str, Any], **options: str) -> str:
    folder.mkdir()
    text = "".join(f'{name} = "{value}"\n' for name, value in {"network": "net", **options}.items())
    (folder / "config.toml").write_text(text)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "validation_top1": 0.5}) + "\n")
    common = {"macs": 1, "params": 1, "steps": 1, "training_seconds": 1.0, "test_images": 100}
    Run(folder).write_results({**common, **results})
    return str(folder)


def test_a_run_is_read(tmp_path: Path) -> None:
    test = {"test": {"last": {"top1": 0.5, "last_two_top1": 0.6}}}
    path = finished(
        tmp_path / "run", {**test, "cuts": [1, 3], "heads": ["a", "b"], "kept_bytes": [2**20, 2**21]}
    )
    training = read_training("mine", Path(path))
    assert (training.name, training.network, training.cuts, training.heads) == (
        "mine",
        "net",
        (1, 3),
        ("a", "b"),
    )
    assert (training.accuracy, training.last_two_accuracy, training.kept_mib) == (0.5, 0.6, 2.0)
    assert training.error == pytest.approx(0.05)  # of 100 images, half of them right
    assert (training.groups, training.processes, training.course) == (1, None, [(1, 50.0)])
    assert training.options["network"] == "net"
    assert training.options["data.flip"] is True  # which the file does not say
    whole = read_training("whole", Path(finished(tmp_path / "whole", test)))
    assert (whole.cuts, whole.heads) == ((), ())


YOUNG = ("classifier_init", "extend", "head_width", "alignment_every", "skip_broken")
"""Options of a training that runs of before do not have."""


def sentence_on(folder: Path, cut: RetrainConfig, whole: RetrainConfig) -> str:
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
    _, (line, *_) = trained_section(tuple(paths), ())
    return line


def test_a_longer_run_and_one_of_before_are_compared(tmp_path: Path) -> None:
    cut = RetrainConfig(decoupling="uniform:2:aux1", extend=True)
    line = sentence_on(tmp_path / "alike", cut, RetrainConfig())
    assert line.startswith("Cut into 2 blocks after layer 1 (aux1), resnet18 gets 50.00 % of the test images")
    line = sentence_on(tmp_path / "other", replace(cut, data=DataConfig(flip=False)), RetrainConfig())
    assert line.endswith("they also differ in --data.flip.")


@pytest.mark.parametrize(("begun", "end"), [("timm", ""), ("torch", "also differ in --classifier-init.")])
def test_a_classifier_of_before_began_with_the_range_of_timm(begun: str, end: str, tmp_path: Path) -> None:
    whole = RetrainConfig(architecture="best.json")
    line = sentence_on(
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
        _, lines = trained_section((str(whole), str(tmp_path / stem)), searches)
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
    _, lines = trained_section(asked, searches)
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
    _, nothing = trained_section(asked[1:3], ())
    assert nothing == []
