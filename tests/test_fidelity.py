"""A smaller copy of a space is trained, searched and ranked; what comes out is of full size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from supernet.network.storage import supernet_space
from supernet.presets import preset
from supernet.space import Architecture, Fidelity
from tests.forked import run, run_up_to
from tests.script import SMALL, weights

FULL = preset("tiny", num_classes=10, image_size=16)
HALF = ["--space", "tiny", "--fidelity.width", "0.5", "--fidelity.image-size", "8", "--data.crop-pad", "2"]
STEPS = ["--recipe.steps", "4", "--recipe.evaluate-every", "4", "--recipe.checkpoint-every", "2"]
QUIET = ["--records.probes", "0", "--records.shift-images", "0", "--records.calibration-images", "64"]
SUPERNET = [*SMALL, *HALF, *STEPS, *QUIET, "--records.calibration-batch", "32"]
PLACE = ["--device", "cpu", "--threads", "1"]
SCORING = [*PLACE, "--scoring.calibration-images", "64", "--scoring.calibration-batch", "32"]
LIMIT = 280_000
NOTE = {"width": 0.5, "image_size": 8}

pytestmark = pytest.mark.slow


def done(script: str, *options: str, folder: Path) -> str:
    """Run a script and return what it said."""
    ended = run(script, *options, "--run", str(folder))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet at half the width, on images of half the side; it must be left as it is."""
    folder = tmp_path_factory.mktemp("half") / "half"
    assert "tiny, a half-width copy at 8 px (4 layers" in done("train_supernet.py", *SUPERNET, folder=folder)
    return folder


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks of the copy, each trained alone."""
    folder = tmp_path_factory.mktemp("truth") / "truth"
    options = [*SMALL, *HALF, "--networks", "2", "--max-macs", str(LIMIT), "--recipe.steps", "3"]
    said = done("make_truth.py", *options, folder=folder)
    assert "2 networks of tiny, a half-width copy at 8 px" in said
    return folder


def test_the_supernet_is_the_copy_and_knows_the_full_size(half: Path) -> None:
    space = supernet_space(half)
    assert space == FULL.reduced(width=0.5, image_size=8)
    assert space.full == FULL
    results = json.loads((half / "results.json").read_text())
    assert (results["space"], results["fidelity"]) == ("tiny", NOTE)
    assert json.loads((half / "costs.json").read_text())["image_size"] == 16


def test_the_best_network_of_a_search_is_of_full_size(half: Path, tmp_path: Path) -> None:
    options = ["--supernet", str(half), "--method", "random", "--population", "8", "--generations", "0"]
    options += ["--max-macs", str(LIMIT)]
    said = done("search_architecture.py", *options, *SCORING, folder=tmp_path / "search")
    assert "scores of a half-width copy at 8 px; costs and limits of the full size, 16 px" in said
    scored = lines(tmp_path / "search/evaluations.jsonl")
    assert len(scored) == 8
    for line in scored:
        architecture = Architecture(tuple(line["choices"]))
        assert line["fidelity"] == NOTE
        assert line["macs"] == FULL.macs(architecture) <= LIMIT
        assert line["params"] == FULL.params(architecture)
    best = json.loads((tmp_path / "search/best.json").read_text())
    assert best["space"] == "tiny"  # the preset, as for any search
    options = [*SMALL, "--architecture", str(tmp_path / "search/best.json"), "--recipe.steps", "1"]
    done("retrain_model.py", *options, folder=tmp_path / "best")
    trained = json.loads((tmp_path / "best/results.json").read_text())
    assert (trained["macs"], trained["params"]) == (best["macs"], best["params"])


def test_the_truth_has_the_costs_of_the_full_size(truth: Path) -> None:
    copy = FULL.reduced(width=0.5, image_size=8)
    rows = lines(truth / "truth.jsonl")
    assert len(rows) == 2
    for number, row in enumerate(rows, start=1):
        architecture = Architecture(tuple(row["choices"]))
        assert row["fidelity"] == NOTE
        assert row["macs"] == FULL.macs(architecture) <= LIMIT
        assert row["params"] == FULL.params(architecture)
        trained = json.loads((truth / f"trainings/{number:04d}-0/results.json").read_text())
        assert trained["macs"] == copy.macs(architecture)
        assert trained["params"] == copy.params(architecture)


def test_networks_that_are_drawn_are_those_of_the_full_size(truth: Path, tmp_path: Path) -> None:
    options = [*SMALL, "--space", "tiny", "--networks", "2", "--max-macs", str(LIMIT), "--recipe.steps", "1"]
    done("make_truth.py", *options, folder=tmp_path / "full")
    rows = lines(tmp_path / "full/truth.jsonl")
    assert [row["choices"] for row in rows] == [row["choices"] for row in lines(truth / "truth.jsonl")]
    assert all("fidelity" not in row for row in rows)


def test_a_report_compares_by_strings_and_says_the_size(half: Path, tmp_path: Path) -> None:
    table = [{"choices": list(each.choices), "accuracy": FULL.macs(each)} for each in FULL.architectures()]
    (tmp_path / "full.jsonl").write_text("\n".join(map(json.dumps, table)))
    options = ["--supernet", str(half), "--shift-images", "0", *SCORING, "--resamples", "200"]
    named = ["--truth", str(tmp_path / "full.jsonl"), "--networks", "8"]
    said = done("rank_report.py", *options, *named, folder=tmp_path / "one")
    assert "half: spos by cross_entropy, 4 steps of 32 on a half-width copy at 8 px" in said
    page = (tmp_path / "one/report.html").read_text()
    assert "Scores by half are scores of a half-width copy at 8 px." in page
    ranking = json.loads((tmp_path / "one/report.json").read_text())["ranking"]
    assert ranking["networks"] == 8
    # This truth counts the MACs of the full size, and so does the baseline.
    assert ranking["scores"]["MACs"]["tau"]["value"] == pytest.approx(1)


def test_a_report_says_of_which_size_a_table_is(tmp_path: Path) -> None:
    table = [{"choices": list(each.choices), "accuracy": FULL.macs(each)} for each in FULL.architectures()]
    text = "\n".join(json.dumps(line | {"fidelity": NOTE}) for line in table)
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(text)
    line = ["--space", "tiny", "--truth", str(tmp_path / "one.jsonl"), "--resamples", "200"]
    done("rank_report.py", *line, "--scores", f"two={tmp_path / 'two.jsonl'}", folder=tmp_path / "report")
    page = (tmp_path / "report/report.html").read_text()
    assert "The truth is of a half-width copy at 8 px." in page
    assert "Scores by two are scores of a half-width copy at 8 px." in page


def test_a_killed_training_of_a_copy_ends_with_the_same_bits(half: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    run_up_to("step-00000002.json", "train_supernet.py", *SUPERNET, "--run", str(folder))
    done("train_supernet.py", *SUPERNET, folder=folder)
    whole, again = weights(half), weights(folder)
    assert whole.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_another_width_is_refused_like_any_changed_option(half: Path) -> None:
    ended = run("train_supernet.py", *SUPERNET, "--fidelity.width", "0.25", "--run", str(half))
    assert ended.returncode == 2
    assert "--fidelity.width (was 0.5, is 0.25)" in ended.stderr


@pytest.mark.parametrize(
    ("script", "options", "says"),
    [
        ("train_supernet.py", ["--fidelity.width", "0"], "--fidelity.width: 0 is out of range"),
        (
            "train_supernet.py",
            ["--fidelity.width", "0.01"],
            "--fidelity.width: space mine: width 0.01 leaves",
        ),
        (
            "make_truth.py",
            ["--fidelity.width", "0.01"],
            "--fidelity.width: space mine: width 0.01 leaves none",
        ),
        (
            "train_supernet.py",
            ["--fidelity.image-size", "32"],
            "--fidelity.image-size: 32 is more than the 16",
        ),
    ],
)
def test_a_size_that_cannot_be_is_one_line(
    script: str, options: list[str], says: str, tmp_path: Path
) -> None:
    space = tmp_path / "mine.toml"
    space.write_text("[[stages]]\nops = ['conv_k3', 'conv_k5']\ndepth = 2\nout_chs = 8\nstride = 2\n")
    line = [*SMALL, "--space", str(space), *options, "--recipe.steps", "2"]
    line += ["--networks", "2"] if script == "make_truth.py" else []
    ended = run(script, *line, "--run", str(tmp_path / "run"))
    assert ended.returncode == 2
    assert says in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_cuts_have_no_such_size(tmp_path: Path) -> None:
    line = [*SMALL, "--decouplings", "uniform:2:linear", "--fidelity.width", "0.5", "--recipe.steps", "2"]
    ended = run("make_truth.py", *line, "--run", str(tmp_path / "run"))
    assert ended.returncode == 2
    assert "--fidelity.width: is about the networks of a --space" in ended.stderr


def test_lines_of_several_sizes_are_no_truth(tmp_path: Path) -> None:
    both = [{"choices": [0, 0, 0, 0], "accuracy": 0.5}, {"choices": [1, 0, 0, 0], "accuracy": 0.6}]
    both[0]["fidelity"] = Fidelity(0.5, 8)._asdict()
    (tmp_path / "both.jsonl").write_text("\n".join(map(json.dumps, both)))
    line = [
        "--space",
        "tiny",
        "--truth",
        str(tmp_path / "both.jsonl"),
        "--scores",
        str(tmp_path / "both.jsonl"),
    ]
    ended = run("rank_report.py", *line, "--run", str(tmp_path / "run"))
    assert ended.returncode == 2
    assert "its lines are of several sizes (fidelity)" in ended.stderr
