"""Ranking reports by the script, as users make them."""

import csv
import functools
import html
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from local_learning.decoupling import Decoupling
from search.cuts.figures import preference_figure
from search.records import Relaxation, save_relaxation
from supernet.calibrate import calibrate
from supernet.network.storage import load_supernet, snapshots, supernet_notes
from supernet.presets import preset
from supernet.sampling import stream
from supernet.space import Architecture
from supernet.train.config import SupernetConfig
from tests.browser import opened, screenshot
from tests.forked import run, run_up_to
from tests.script import SMALL
from tools.images.datasets import fixed_part, load_data, whole_batches
from tools.images.loaders import eval_batches
from tools.options.config import from_toml
from tools.ranking import kendall_tau
from tools.run.folder import MADE_BY, Run

SCRIPT = "rank_report.py"
SPACE = preset("tiny", num_classes=10, image_size=16)
PLACE = ["--device", "cpu", "--threads", "1"]
BASE = [*PLACE, "--networks", "32", "--scoring.calibration-images", "64", "--scoring.calibration-batch", "32"]
BASE += ["--shift-images", "40", "--resamples", "200"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two supernets that can tell some classes apart, one with snapshots; and a truth."""
    folder = tmp_path_factory.mktemp("home")
    line = [*SMALL, "--space", "tiny", "--recipe.steps", "30", "--recipe.lr", "0.05", "--records.probes", "0"]
    line += ["--records.shift-images", "40", "--recipe.evaluate-every", "15", "--records.snapshots"]
    for strategy in ("spos", "nongreedy"):
        done = run("train_supernet.py", *line, "--strategy", strategy, "--run", str(folder / strategy))
        assert done.returncode == 0, done.stderr
    rng = np.random.default_rng(0)
    lines = ["choices,accuracy 1,accuracy 2"]
    for each in SPACE.architectures():
        if SPACE.canonical(each) == each:
            worth = SPACE.macs(each) / 1e6 + 0.05 * rng.normal(size=2)
            lines.append(f"{each},{worth[0]},{worth[1]}")
    (folder / "truth.csv").write_text("\n".join(lines))
    return folder


def report(
    home: Path, folder: Path, *options: str, supernets: tuple[str, ...] = ("spos",), ranks: int = 1
) -> Path:
    line = [*BASE, "--supernet", *(str(home / name) for name in supernets)]
    line += ["--truth", str(home / "truth.csv"), *options, "--run", str(folder)]
    done = run(SCRIPT, *line, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert f"report {folder / 'report.html'}" in done.stdout
    return folder


def numbers(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())["ranking"]
    return found


def scores_of(folder: Path, part: str) -> dict[Architecture, float]:
    lines = (folder / "scores" / part / "evaluations.jsonl").read_text().splitlines()
    return {Architecture(tuple(entry["choices"])): entry["score"] for entry in map(json.loads, lines)}


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "ranking"
    options = ["--uncalibrated", "6", "--snapshots", "8"]
    return report(home, folder, *options, supernets=("spos", "nongreedy"))


@pytest.fixture(scope="module")
def of_one(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on one supernet, without its snapshots; it must be left as it is."""
    return report(home, tmp_path_factory.mktemp("of_one") / "ranking", "--snapshots", "0")


@pytest.fixture(scope="module")
def searched(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched") / "found"
    line = ["--supernet", str(home / "spos"), *PLACE, "--population", "6", "--generations", "1"]
    line += ["--scoring.calibration-images", "64", "--scoring.calibration-batch", "32"]
    assert run("search_architecture.py", *line, "--run", str(folder)).returncode == 0
    return folder


def test_scores_are_those_of_each_network_alone(home: Path, whole: Path) -> None:
    text = supernet_notes(home / "nongreedy")["config"]
    config = from_toml(SupernetConfig, text, source="notes")
    data = load_data(config.data, config.seed)
    held = fixed_part(data.validation, 5000, config.seed, "scoring")
    validation = list(
        eval_batches(data.validation.subset(held), data, config.data, batch_size=250, device="cpu")
    )
    count, size = whole_batches(data.train, 64, 32)
    seen = fixed_part(data.train, count, config.seed, "calibration")
    calibration = list(
        eval_batches(data.train.subset(seen), data, config.data, batch_size=size, device="cpu")
    )

    loaded = functools.cache(load_supernet)

    def alone(weights: Path, who: Architecture, *, calibrates: bool = True) -> float:
        chain = loaded(weights).extract(who).eval()
        if calibrates:
            calibrate(chain, calibration)
        hits = sum(int((chain(batch.images).argmax(1) == batch.targets).sum()) for batch in validation)
        return hits / len(held)

    scores = scores_of(whole, "nongreedy")
    assert len(scores) == 32
    for who in list(scores)[::8]:
        assert scores[who] == alone(home / "nongreedy", who)
    plain = scores_of(whole, "nongreedy/uncalibrated")
    assert len(plain) == 6
    for who in list(plain)[::2]:
        assert plain[who] == alone(home / "nongreedy", who, calibrates=False)
    kept = snapshots(home / "nongreedy")
    assert [step for step, _ in kept] == [15, 30]
    for step, weights in kept:
        course = scores_of(whole, f"nongreedy/step-{step:08d}")
        assert len(course) == 8
        who = next(iter(course))
        assert course[who] == alone(weights, who)
    assert {who: scores[who] for who in course} == course  # the last snapshot is the end


def test_numbers_are_those_of_the_files(home: Path, whole: Path) -> None:
    with (home / "truth.csv").open() as opened:
        truth = {
            row["choices"]: (float(row["accuracy 1"]), float(row["accuracy 2"]))
            for row in csv.DictReader(opened)
        }
    found = numbers(whole)
    drawn = stream(0, "networks").sample(sorted(map(Architecture.parse, truth), key=lambda a: a.choices), 32)
    repeats = np.array([truth[str(who)] for who in drawn]).T
    for name in ("spos", "nongreedy"):
        scores = scores_of(whole, name)
        tau = kendall_tau([scores[who] for who in drawn], repeats, resamples=200)
        assert found["scores"][name]["tau"] == pytest.approx(tau._asdict())
    macs = kendall_tau([SPACE.macs(who) for who in drawn], repeats, resamples=200)
    assert found["scores"]["MACs"]["tau"]["value"] == pytest.approx(macs.value)
    with (whole / "networks.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert [row["architecture"] for row in rows] == list(map(str, drawn))
    assert [float(row["truth"]) for row in rows] == pytest.approx(repeats.mean(axis=0))
    assert [int(row["macs"]) for row in rows] == [SPACE.macs(who) for who in drawn]
    with (whole / "ranking.csv").open() as opened:
        table = {row["score"]: row for row in csv.DictReader(opened)}
    assert float(table["spos"]["tau.value"]) == found["scores"]["spos"]["tau"]["value"]
    page = (whole / "report.html").read_text()
    for words in (
        "At a glance",
        "Representation shift",
        "Memory by layer",
        "How it came about",
        "noise ceiling",
    ):
        assert words in page or words == "noise ceiling"
    assert "as LWSL has it" in page


def test_killed_and_continued_on_two_ranks_it_is_the_same(home: Path, whole: Path, tmp_path: Path) -> None:
    line = [
        *BASE,
        "--supernet",
        str(home / "spos"),
        str(home / "nongreedy"),
        "--truth",
        str(home / "truth.csv"),
    ]
    line += ["--uncalibrated", "6", "--snapshots", "8", "--run"]
    folder = tmp_path / "ranking"
    for deadly, ranks in (("evaluations.jsonl:2", 2), ("evaluations.jsonl:4", 1)):
        run_up_to(deadly, SCRIPT, *line, str(folder), ranks=ranks)
        files = sorted(folder.glob("scores/**/evaluations.jsonl"))
        with files[-1].open("a") as opened:
            opened.write('{"choices": [0, 1')  # as a kill may leave it
    done = run(SCRIPT, *line, str(folder), ranks=2)
    assert done.returncode == 0, done.stderr
    assert numbers(folder) == numbers(whole)
    assert (folder / "networks.csv").read_bytes() == (whole / "networks.csv").read_bytes()


def test_another_supernet_can_be_added_and_other_images_are_refused(
    home: Path, of_one: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(of_one, tmp_path / "ranking")
    before = (folder / "scores/spos/evaluations.jsonl").read_bytes()
    report(home, folder, "--snapshots", "0", supernets=("spos", "nongreedy"))
    assert (folder / "scores/spos/evaluations.jsonl").read_bytes() == before
    assert set(numbers(folder)["asked"]) == {"spos", "nongreedy"}
    done = run(
        SCRIPT,
        *BASE,
        "--supernet",
        str(home / "spos"),
        "--truth",
        str(home / "truth.csv"),
        "--run",
        str(folder),
        "--scoring.validation-images",
        "50",
    )
    assert done.returncode == 2
    assert "made with another set of validation images; name a new folder" in done.stderr
    for options, says in (
        (["--scoring.calibration-batch", "16"], "size of calibration batches"),
        (["--precision", "fp64"], "precision"),
        (["--scoring.statistics", "ema"], "way to take BatchNorm statistics"),
    ):
        line = [*BASE, "--supernet", str(home / "spos"), "--truth", str(home / "truth.csv"), *options]
        done = run(SCRIPT, *line, "--run", str(folder))
        assert done.returncode == 2
        assert f"made with another {says}" in done.stderr


def test_scores_from_files_and_their_direction(home: Path, whole: Path, tmp_path: Path) -> None:
    scores = scores_of(whole, "spos")
    (tmp_path / "loss.csv").write_text(
        "\n".join(["architecture,score", *(f"{who},{-value}" for who, value in scores.items())])
    )
    (tmp_path / "loss_truth.csv").write_text(
        "\n".join(
            line
            if number == 0
            else ",".join([line.split(",")[0], *(str(-float(x)) for x in line.split(",")[1:])])
            for number, line in enumerate((home / "truth.csv").read_text().splitlines())
        )
    )
    line = [*PLACE, "--space", "tiny", "--image-size", "16", "--resamples", "200"]
    line += ["--scores", f"good={whole / 'scores' / 'spos'}", "--losses", str(tmp_path / "loss.csv")]
    done = run(
        SCRIPT,
        *line,
        "--truth",
        str(tmp_path / "loss_truth.csv"),
        "--truth-is-loss",
        "--run",
        str(tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    found = numbers(tmp_path / "run")
    assert found["networks"] == 32
    expected = numbers(whole)["scores"]["spos"]["tau"]["value"]
    for name in ("good", "loss.csv"):
        assert found["scores"][name]["tau"]["value"] == pytest.approx(expected)


def test_other_runs_are_told_of(home: Path, of_one: Path, searched: Path, tmp_path: Path) -> None:
    training = [*SMALL, "--recipe.steps", "3", "--network", "resnet18", "--width", "0.125"]
    for name, options in (("whole", []), ("halves", ["--decoupling", "uniform:2:aux1"])):
        assert run("retrain_model.py", *training, *options, "--run", str(tmp_path / name)).returncode == 0
    cuts = tmp_path / "cuts"
    cuts.mkdir()
    alpha, beta = ((0.1, 0.9), (0.8, 0.2), (0.3, 0.4)), ((0.5, 0.1), (0.2, 0.3), (0.0, 0.0))
    save_relaxation(cuts / "relaxation.json", Relaxation("four", ("aux1", "aux2"), alpha, beta))
    chosen = {2: Decoupling((2,), ("aux2",))}
    preference_figure(cuts / "preferences.svg", [0.3, 0.6, 0.5], chosen)
    content = {"cuts": [2], "heads": ["aux2"], "groups": 1}
    Run(cuts).write_results({"decouplings": {"2": content}, "words": ["  2 blocks: cut after 2 (aux2)"]})
    truth = tmp_path / "truth"
    truth.mkdir()
    trials = [((2,), ("aux2",), 0.9), ((1,), ("aux1",), 0.7), ((3,), ("aux1",), 0.8), ((1,), ("aux2",), 0.6)]
    lines = [
        {
            "network": "four",
            "cuts": places,
            "heads": heads,
            "name": "x",
            "seed": seed,
            "accuracy": value + seed / 100,
            **({"heads_accuracy": [value / 2 + seed / 100]} if heads == ("aux2",) else {}),
        }
        for places, heads, value in trials
        for seed in (0, 1)
    ]
    (truth / "truth.jsonl").write_text("\n".join(map(json.dumps, lines)))
    folder = report(
        home, shutil.copytree(of_one, tmp_path / "ranking"), "--snapshots", "0", "--search", str(searched),
        "--trained", str(tmp_path / "whole"), str(tmp_path / "halves"), str(truth), "--cuts", str(cuts),
    )  # fmt: skip
    page = (folder / "report.html").read_text()
    for words in (
        "What searches found",
        "Where gradients should stop",
        "Trained here, in one piece and in blocks",
        "which cut is better?",
    ):
        assert words in page
    found = json.loads((searched / "results.json").read_text())
    assert found["best"][0]["architecture"] in page
    assert f" points, over {found['validation_images']} validation images), " in page
    assert "A score by spos of " in page
    assert "  2 blocks: cut after 2 (aux2)" in page
    assert "90.50 ± 0.71 %" in page
    assert "cuts orders the 4 decouplings in 2 blocks with tau" in page
    assert "; 4 are too few to tell that from chance." in page
    folded = dict(re.findall(r"<summary>(.*?)</summary><pre[^>]*>(.*?)</pre></details>", page, re.DOTALL))
    told = {"this report": folder, "search found": searched}
    told |= {f"trained {name}": tmp_path / name for name in ("whole", "halves")}
    supernet = from_toml(SupernetConfig, html.unescape(folded.pop("options of supernet spos")), source="page")
    assert supernet == from_toml(SupernetConfig, (home / "spos" / "config.toml").read_text(), source="file")
    assert set(folded) == {f"options of {name}" for name in told}  # the cuts and the truth have none here
    for name, run_of in told.items():
        wanted = (run_of / "config.toml").read_text()
        wanted = wanted.removeprefix(f"{MADE_BY}rank_report.py\n")  # of itself it shows the options alone
        assert html.unescape(folded[f"options of {name}"]) == wanted, name
    tables = json.loads((folder / "report.json").read_text())["tables"]
    assert {
        "What searches found",
        "Where gradients should stop",
        "Trained here, in one piece and in blocks",
    } <= {t["section"] for t in tables}
    (cut,) = (table for table in tables if table["caption"] == "truth: which cut is better?")
    assert [row[3] for row in cut["rows"]] == ["2", "3", "1", "1"]
    assert [row[7] for row in cut["rows"]] == ["45.50 %", "-", "-", "30.50 %"]
    log_p = [float(row[9]) for row in cut["rows"]]
    chances = [softmax(row) for row in (*alpha, *beta)]
    expected = math.log(chances[0][1] * chances[1][0] * chances[2][1] * chances[4][1])
    assert log_p[0] == pytest.approx(expected, abs=0.006)


def test_searches_alone_with_a_truth(home: Path, searched: Path, tmp_path: Path) -> None:
    line = [*PLACE, "--search", str(searched), "--truth", str(home / "truth.csv")]
    for options, order in (([], 1), (["--truth-is-loss"], -1)):
        folder = tmp_path / f"report{order}"
        done = run(
            SCRIPT, *line, *options, "--space", "tiny", "--data.image-size", "16", "--run", str(folder)
        )
        assert done.returncode == 0, done.stderr
        (table,) = (
            t
            for t in json.loads((folder / "report.json").read_text())["tables"]
            if "true rank" in t["columns"]
        )
        with (home / "truth.csv").open() as opened:
            worth = {
                row["choices"]: float(row["accuracy 1"]) + float(row["accuracy 2"])
                for row in csv.DictReader(opened)
            }
        for row in table["rows"]:
            better = sum(order * value > order * worth[row[1]] for value in worth.values())
            assert row[-1] == f"{better + 1} of {len(worth)}"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--supernet: name a supernet to rank by"),
        (["--supernet", "SPOS"], "--truth: name the truth"),
        (["--truth", "TRUTH"], "--supernet: there is nothing to compare the truth with"),
        (["--scores", "x.csv", "--truth", "TRUTH"], "--space: name the space"),
        (["--supernet", "SPOS", "--space", "tiny", "--truth", "TRUTH"], "--space: the supernet says it"),
        (["--supernet", "SPOS", "--image-size", "8", "--truth", "TRUTH"], "--image-size: the supernet says"),
        (["--supernet", "SPOS", "--truth", "nowhere.csv"], "--truth: there is no file 'nowhere.csv'"),
        (["--supernet", "nowhere", "--truth", "TRUTH"], "--supernet: there is no file 'nowhere'"),
        (["--supernet", "SPOS", "SPOS", "--truth", "TRUTH"], "--supernet, --scores, --losses: two are"),
        (["--supernet", "SPOS", "--truth", "TRUTH", "--networks", "145"], "--networks: 145 are needed"),
        (["--supernet", "SPOS", "--truth", "TRUTH", "--networks", "1"], "--networks: a ranking needs two"),
        (["--supernet", "SPOS", "--truth", "TRUTH", "--networks", "-1"], "--networks: -1 is out of range"),
        (["--supernet", "SPOS", "--truth", "TRUTH", "--resamples", "3"], "--resamples: 3 is out of range"),
        (
            ["--supernet", "SPOS", "--truth", "TRUTH", "--shift-images", "2"],
            "--shift-images: modules are compared",
        ),
        (
            ["--supernet", "SPOS", "--truth", "TRUTH", "--data.train-size", "700"],
            "--data.train-size: the supernet was",
        ),
        (["--supernet", "a/b=SPOS", "--truth", "TRUTH"], "--supernet, --scores, --losses: 'a/b="),
        (["--search", "SPOS"], "--search: "),
        (["--supernet", "SPOS", "--truth", "TRUTH", "--search", "SPOS"], "--search: "),
        (
            ["--supernet", "depth=SPOS", "--truth", "TRUTH"],
            "--supernet, --scores, --losses: 'depth' is a baseline's",
        ),
        (["--supernet", "..=SPOS", "--truth", "TRUTH"], "--supernet, --scores, --losses: '..="),
        (["--scores", "TRUTH", "--truth", "TRUTH", "--space", "nope"], "--space: "),
        (["--trained", "nowhere"], "--trained: 'nowhere' is no finished run of retrain_model.py"),
        (["--cuts", "nowhere"], "--cuts: 'nowhere' is no finished run of search_decoupling.py"),
        (["--supernett", "SPOS"], "unknown option '--supernett'; did you mean '--supernet'?"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(options: list[str], says: str, home: Path, tmp_path: Path) -> None:
    places = {"SPOS": str(home / "spos"), "TRUTH": str(home / "truth.csv")}
    line = [places.get(word, word.replace("=SPOS", f"={home / 'spos'}")) for word in options]
    done = run(SCRIPT, *PLACE, *line, "--run", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"{SCRIPT}: {says}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_spaces_must_agree(home: Path, tmp_path: Path) -> None:
    line = [
        *SMALL,
        "--space",
        "tiny",
        "--recipe.steps",
        "1",
        "--records.probes",
        "0",
        "--data.image-size",
        "20",
    ]
    line += ["--records.shift-images", "0", "--recipe.evaluate-every", "0"]
    assert run("train_supernet.py", *line, "--run", str(tmp_path / "other")).returncode == 0
    done = run(
        SCRIPT, *PLACE, "--supernet", str(home / "spos"), str(tmp_path / "other"), "--truth",
        str(home / "truth.csv"), "--run", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "one report compares supernets of one space" in done.stderr


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_the_report_opens_in_a_browser(width: int, dark: bool, whole: Path) -> None:
    page = whole / "report.html"
    assert page.stat().st_size < 3e6
    told = opened(page, width, dark=dark)
    assert told["errors"] == []
    assert told["fetched"] == []
    assert told["loaded"]
    assert told["width"] == width
    assert told["wanted"] <= width  # nothing but tables is wider than the page, and those move in their place
    assert len(told["drawings"]) > 10
    assert told["pictures"]
    for left, right, height in told["drawings"] + told["pictures"] + told["texts"]:
        assert left >= 0
        assert right <= width
        assert height > 5
    pixels = np.asarray(screenshot(page, width, 1200, dark=dark).convert("L"), float)
    assert pixels.shape == (1200, width)
    assert (pixels[0].mean() < 100) == dark  # the page's ground
    assert 5 < pixels.std() < 100  # with something on it
