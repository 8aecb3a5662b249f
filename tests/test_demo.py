"""The chapters that come with the project: readable, and the demo from end to end at a smaller size."""

import json
import re
from pathlib import Path

import pytest

from tests.forked import run
from tests.scripts import HOUSE, config_of
from tools.chapters.run import ChaptersConfig, read_chapters
from tools.options.config import parse

CHAPTERS = sorted(HOUSE.glob("configs/**/chapters*.toml"))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_command_of_the_chapters_is_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HOUSE)
    monkeypatch.setattr("os.path.isfile", lambda path: True)  # cuts are a file that an earlier chapter makes
    chapters, _ = read_chapters(
        ChaptersConfig(chapters=str(path.relative_to(HOUSE)), data="DIR" * ("{data}" in path.read_text()))
    )
    for chapter in chapters:
        for script, *options in chapter.commands:
            parse(config_of(script), options, prog=script, description="")


@pytest.mark.slow
def test_the_demo_tells_its_story(tmp_path: Path) -> None:
    text = (HOUSE / "configs/demo/chapters.toml").read_text().replace("{here}", "configs/demo")
    assert text.count("--recipe.steps") == 2
    text = re.sub(r"--recipe.steps \d+", "--recipe.steps 6 --data.train-size 300", text)
    images = "--data.test-size 100"
    scored = "--{0}.validation-images 60 --{0}.calibration-images 64"
    for config, options in {
        "supernet": f"{images} {scored.format('records')}",
        "search": f"--generations 1 --population 4 {scored.format('scoring')}",
        "cuts": f"{images} --data.train-size 300 --recipe.steps 4 --recipe.evaluate-every 2 "
        "--search.steps 2 --search.snapshots 2 --search.inner-steps 1 --search.validation-batch 32",
        "retrain": f"{images} --data.train-size 300 --recipe.steps 4 --recipe.evaluate-every 2",
        "report": f"--networks 8 --resamples 100 --shift-images 32 {scored.format('scoring')}",
    }.items():
        text = text.replace(f"configs/demo/{config}.toml", f"configs/demo/{config}.toml {options}")
    (tmp_path / "chapters.toml").write_text(text)
    line = ["demo.py", "--chapters", str(tmp_path / "chapters.toml"), "--device", "cpu"]
    done = run(*line, "--run", str(tmp_path / "demo"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = tmp_path / "demo/report/report.html"
    assert done.stdout.splitlines()[-1].endswith(f"open {report}")
    page = report.read_text()
    for title in (
        "At a glance",
        "What searches found",
        "Where gradients should stop",
        "Trained here, in one piece and in blocks",
    ):
        assert f"<h2>{title}</h2>" in page
    verdict = json.loads((tmp_path / "demo/report/report.json").read_text())["verdict"]
    cut = json.loads((tmp_path / "demo/blocks/results.json").read_text())
    whole = json.loads((tmp_path / "demo/whole/results.json").read_text())
    assert cut["processes"] == 2
    places = f"after layer {cut['cuts'][0]} ({cut['heads'][0]})"
    start = f"Cut into 2 blocks {places}, as the search 'cuts' found, "
    last = next(line for line in verdict if line.startswith(start))
    lost = abs(100 * (whole["test"]["last"]["top1"] - cut["test"]["last"]["top1"]))
    assert (f"{lost:.2f} points" if lost else "as many as in one piece") in last
    middle = json.loads((tmp_path / "demo/middle/results.json").read_text())
    beside = [line for line in verdict if line.startswith(f"Cut {places}, as the search 'cuts' found, ")]
    assert len(beside) == ((middle["cuts"], middle["heads"]) != (cut["cuts"], cut["heads"]))
    for line in beside:
        assert "in the run 'middle', " in line
        assert f"({100 * middle['test']['last']['top1']:.2f} %)" in line
    found = json.loads((tmp_path / "demo/search/best.json").read_text())
    assert any("".join(map(str, found["choices"])) in line for line in verdict)
    assert found["macs"] <= 2e6
