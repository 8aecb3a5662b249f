"""The search by the script as users run it."""

import json
import xml.etree.ElementTree
from pathlib import Path

import pytest
import safetensors.torch
import torch

from local_learning.decoupling import load_decoupling
from search.discretisation import discretise
from search.records import load_relaxation
from supernet.network.documents import save_architecture
from supernet.presets import preset
from supernet.space import Architecture
from tests.forked import run, run_up_to
from tests.script import SMALL
from tools.run.meters import read_metrics

SCRIPT = "search_decoupling.py"
BASE = [
    *SMALL,
    *("--heads", "aux1", "linear", "--recipe.evaluate-every", "1", "--recipe.checkpoint-every", "2"),
    *("--recipe.steps", "4", "--recipe.lr", "0.02", "--search.steps", "3", "--search.inner-steps", "1"),
    *("--search.snapshots", "3", "--search.validation-batch", "40", "--search.evaluate-every", "2"),
    *("--search.checkpoint-every", "1", "--search.log-every", "2"),
]
VGG = [*BASE, "--network", "vgg6a", "--width", "0.125", "--dropout", "0.2"]
FEW = ["--recipe.steps", "2", "--search.steps", "2"]
RECORDS = ("--recipe.checkpoint-every", "--recipe.log-every")
"""Of the pretraining alone."""

pytestmark = pytest.mark.slow


def without(words: list[str], *flags: str) -> list[str]:
    """A command line without these options, each of one value."""
    left = [index for index, word in enumerate(words) if word not in flags]
    return [words[index] for index in left if index == 0 or words[index - 1] not in flags]


def searched(folder: Path, *options: str, ranks: int = 1) -> Path:
    done = run(SCRIPT, *options, "--run", str(folder), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert f"on {ranks} x cpu" in done.stdout
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched(tmp_path_factory.mktemp("whole") / "run", *VGG)


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched(tmp_path_factory.mktemp("whole") / "run", *VGG, ranks=2)


def assert_same_search(one: Path, other: Path) -> None:
    ends = (
        ("relaxation.json", "decoupling-2.json", "decoupling-5.json")
        if (one / "results.json").exists()
        else ()
    )
    for name in (*ends, "hypergradients.jsonl"):
        assert (one / name).read_text() == (other / name).read_text(), name
    for part in ("", "pretraining/") if ends else ("",):
        lines = [
            [
                {key: value for key, value in line.items() if key != "images_per_second"}
                for line in read_metrics(folder / f"{part}metrics.jsonl")
            ]
            for folder in (one, other)
        ]
        assert lines[0] == lines[1]


IN_PRETRAINING, IN_THE_SEARCH, A_SNAPSHOT = "step-00000004.json", "step-00000002.json", "000001-0.safetensors"
AFTER = "decoupling-2.json"
"""What is written next after relaxation.json."""


def test_killed_moved_and_continued_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    """It is killed again and again, each time further on."""
    folder, other = tmp_path / "run", tmp_path / "other"
    for deadly in (A_SNAPSHOT, IN_PRETRAINING):
        run_up_to(deadly, SCRIPT, *VGG, "--run", str(folder))
    done = run(SCRIPT, *VGG, "--search.pretrained-run", str(folder), "--run", str(other))
    assert done.returncode == 2
    assert "has come to step" in done.stderr, "an unfinished pretraining is no start"
    assert "of 4" in done.stderr
    run_up_to(IN_THE_SEARCH, SCRIPT, *VGG, "--run", str(folder))
    folder.rename(tmp_path / "there")
    for deadly in ("relaxation.json", "results.json"):
        run_up_to(deadly, SCRIPT, *VGG, "--run", str(tmp_path / "there"))
    assert_same_search(searched(tmp_path / "there", *VGG), whole)


def test_two_ranks_killed_and_continued_equal_uninterrupted_ones(of_two_ranks: Path, tmp_path: Path) -> None:
    for deadly in (IN_PRETRAINING, IN_THE_SEARCH):
        run_up_to(deadly, SCRIPT, *VGG, "--run", str(tmp_path / "run"), ranks=2)
    assert_same_search(searched(tmp_path / "run", *VGG, ranks=2), of_two_ranks)


@pytest.mark.parametrize("fixture", ["whole", "of_two_ranks"])
def test_what_a_search_leaves(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    relaxation = load_relaxation(folder / "relaxation.json")
    assert relaxation.head_kinds == ("aux1", "linear")
    assert len(relaxation.alpha) == len(relaxation.beta) == 4
    for blocks in range(2, 6):
        found = load_decoupling(folder / f"decoupling-{blocks}.json")
        assert found == discretise(relaxation.alpha, relaxation.beta, relaxation.head_kinds, blocks)
        assert load_decoupling(folder / f"decoupling-{blocks}-balanced.json").num_blocks == blocks
    for name in ("preferences.svg", "structure-2.svg", "structure-4.svg"):
        xml.etree.ElementTree.parse(folder / name)
    last = [line for line in read_metrics(folder / "metrics.jsonl") if "signal/1" in line][-1]
    shares = torch.tensor(relaxation.alpha, dtype=torch.float64).softmax(1)[:, 0].tolist()
    assert [last[f"signal/{layer}"] for layer in range(1, 5)] == pytest.approx(shares)
    words = (folder / "findings.txt").read_text()
    assert "2 blocks: cut after" in words
    assert "by layer: the local signal's share" in words
    kept = [json.loads(line) for line in (folder / "hypergradients.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == [1, 2, 3]
    assert all(len(line["signal"]) == len(line["heads"]["linear"]) == 4 for line in kept)
    results = json.loads((folder / "results.json").read_text())
    assert [row["share"] for row in results["effects"]] == pytest.approx(shares)
    assert all(row["share_error"] > 0 < row["effect_error"] for row in results["effects"])
    assert results["pretraining_steps"] == 4
    assert results["decouplings"]["2"]["cuts"] == list(load_decoupling(folder / "decoupling-2.json").cuts)
    assert not (folder / "snapshots").exists(), "weights are of no use after a search"


def test_a_finished_search_says_so_and_other_options_are_refused(whole: Path, of_two_ranks: Path) -> None:
    for folder, ranks in ((whole, 1), (of_two_ranks, 2)):
        again = run(SCRIPT, *VGG, "--run", str(folder), ranks=ranks)
        assert again.returncode == 0
        assert "is finished" in again.stdout
    other = run(SCRIPT, *VGG, "--run", str(whole), "--search.lr", "0.5")
    assert other.returncode == 2
    assert "--search.lr (was 0.01, is 0.5)" in other.stderr


def test_its_decoupling_trains(whole: Path, tmp_path: Path) -> None:
    options = [*SMALL, "--network", "vgg6a", "--width", "0.125", "--recipe.steps", "3"]
    where = ["--decoupling", str(whole / "decoupling-3.json"), "--run", str(tmp_path / "run")]
    done = run("retrain_model.py", *options, *where)
    assert done.returncode == 0, done.stderr


def test_a_search_can_start_from_weights(tmp_path: Path) -> None:
    options = [*SMALL, "--network", "vgg6a", "--width", "0.125", "--recipe.steps", "3"]
    run("retrain_model.py", *options, "--run", str(tmp_path / "trained"))
    given = tmp_path / "trained" / "weights.safetensors"
    few = ["--search.no-pretraining", "--search.steps", "1", "--search.checkpoint-every", "1"]
    few += ["--weights", str(given), "--run", str(tmp_path / "run")]
    plain = without(VGG, *RECORDS, "--recipe.evaluate-every", "--search.snapshots")
    run_up_to("relaxation.json", SCRIPT, *plain, *few)
    first = tmp_path / "run" / "pretraining" / "snapshots" / "000000-0.safetensors"
    start, trained = safetensors.torch.load_file(first), safetensors.torch.load_file(given)
    assert all(torch.equal(start[name], value) for name, value in trained.items())


def test_pretraining_on_two_ranks_gives_the_numbers_of_one(tmp_path: Path) -> None:
    options = [*BASE, *FEW, "--network", "resnet18", "--width", "0.0625", "--precision", "fp64"]
    options += ["--search.steps", "1", "--search.snapshots", "1"]
    lines = []
    for ranks in (1, 2):
        folder = tmp_path / f"on{ranks}"
        run_up_to("relaxation.json", SCRIPT, *options, "--run", str(folder), ranks=ranks)
        lines.append(read_metrics(folder / "pretraining" / "metrics.jsonl"))
    for one, other in zip(*lines, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"images_per_second"}:
            assert one[name] == pytest.approx(other[name], rel=1e-8), name


def test_a_search_can_start_from_anothers_pretraining(whole: Path, tmp_path: Path) -> None:
    options = [*VGG, "--search.pretrained-run", str(whole)]
    again = searched(tmp_path / "again", *options)
    assert (again / "relaxation.json").read_text() == (whole / "relaxation.json").read_text()
    assert json.loads((again / "results.json").read_text())["pretraining_steps"] == 0, "it made none"
    other = [*BASE, "--network", "vgg6a", "--width", "0.25", "--search.pretrained-run", str(whole)]
    refused = run(SCRIPT, *other, "--run", str(tmp_path / "other"))
    assert refused.returncode == 2
    assert "was pretrained with other options: --width (0.125 there)" in refused.stderr
    others = {"--seed": "3", "--recipe.lr": "0.5", "--search.compat": "sedona-2021"}
    words = [word for pair in others.items() for word in pair]
    words += ["--search.inner-steps", "2"]  # the released code needs them, and any number may differ
    refused = run(SCRIPT, *options, *words, "--run", str(tmp_path / "other"))
    assert refused.returncode == 2
    _, _, named = refused.stderr.partition("other options: ")
    assert sorted(each.split(" (")[0] for each in named.split("), ")) == sorted(others)


def test_an_architecture_can_start_from_its_own_pretraining_and_from_no_other(tmp_path: Path) -> None:
    space = preset("tiny", num_classes=10, image_size=16)
    files = []
    for name, who in (("one", "2101"), ("same", "2101"), ("other", "2001")):
        files.append(tmp_path / f"{name}.json")
        save_architecture(files[-1], Architecture.parse(who), space)
    folder, again = tmp_path / "first", tmp_path / "again"
    few = [*BASE, *FEW, "--search.steps", "1"]
    run_up_to(AFTER, SCRIPT, *few, "--architecture", str(files[0]), "--run", str(folder))
    files[0].unlink()  # the run has a copy of its own
    given = [*few, "--search.pretrained-run", str(folder)]
    run_up_to(AFTER, SCRIPT, *given, "--architecture", str(files[1]), "--run", str(again))
    assert (again / "relaxation.json").read_text() == (folder / "relaxation.json").read_text()
    for options in (["--architecture", str(files[2])], VGG[len(BASE) :]):
        refused = run(SCRIPT, *given, *options, "--run", str(tmp_path / "refused"))
        assert refused.returncode == 2
        assert "was pretrained with other options: " in refused.stderr
        assert f"--architecture ('{files[0]}' there)" in refused.stderr


def test_repeats_are_searches_of_their_own_and_their_mean_counts(tmp_path: Path) -> None:
    options = [*VGG, "--search.steps", "2", "--search.repeats", "2"]
    done = run(SCRIPT, *options, "--run", str(tmp_path / "whole"))
    assert "searching from 3 snapshots, the best of 4 that were evaluated: of steps " in done.stdout
    assert "of 2 searches from this pretraining have these cuts" in done.stdout
    whole = tmp_path / "whole"
    ends = []
    for part in (whole, whole / "repeat-2"):
        last = [line for line in read_metrics(part / "metrics.jsonl") if "signal/1" in line][-1]
        ends.append(torch.tensor([last[f"signal/{layer}"] for layer in range(1, 5)]).logit())
        assert len((part / "hypergradients.jsonl").read_text().splitlines()) == 2
    assert not torch.equal(*ends)
    alpha = torch.tensor(load_relaxation(whole / "relaxation.json").alpha)
    torch.testing.assert_close(alpha[:, 0] - alpha[:, 1], torch.stack(ends).mean(0), rtol=1e-4, atol=1e-5)
    run_up_to("hypergradients.jsonl", SCRIPT, *options, "--run", str(tmp_path / "cut"))
    again = searched(tmp_path / "cut", *options)
    assert_same_search(again, whole)
    assert_same_search(again / "repeat-2", whole / "repeat-2")


@pytest.mark.parametrize(
    "options",
    [
        ["--search.compat", "sedona-2021"],
        ["--search.no-pretraining", "--search.memory", "oldest"],
        ["--search.memory", "oldest", "--search.snapshots", "0", "--search.inner-lr", "0.01"],
        [
            *(
                "--search.snapshots",
                "1",
                "--search.statistics",
                "batch",
                "--search.keep-snapshots-on",
                "disk",
            ),
            *("--search.controls", "2", "--precision", "fp64"),
        ],
    ],
)
def test_other_ways_to_search(options: list[str], tmp_path: Path) -> None:
    plain = without(VGG, *RECORDS) if "--search.no-pretraining" in options else VGG
    folder = searched(tmp_path / "run", *plain, *FEW, "--search.inner-steps", "2", *options)
    assert load_relaxation(folder / "relaxation.json").alpha[0][0] != 0
    if "--search.controls" in options:
        assert len(list((folder / "controls").iterdir())) == 8


@pytest.mark.parametrize(
    ("network", "head"), [("timm/vit_tiny_patch16_224", "aux1"), ("timm/mobilenetv3_small_050", "linear")]
)
def test_other_networks(network: str, head: str, tmp_path: Path) -> None:
    few = ["--recipe.steps", "1", "--search.steps", "1", "--heads", head]
    few += ["--recipe.batch-size", "4", "--search.validation-batch", "4", "--data.train-size", "40"]
    searched(tmp_path / "run", *BASE, "--network", network, *few, "--data.image-size", "32")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--heads", "aux1", "predsim"], "--heads: unknown value 'predsim'"),
        (["--heads", "aux1", "aug2@9"], "--heads: head 'aug2@9': the width is 9"),
        (["--heads", "aug3~.5"], "--heads: 'aug3~.5' has a slope; a search chooses the depth"),
        (["--heads", "aux1", "aux1"], "--heads: name one kind or more, each once"),
        (["--recipe.optimizer", "adam"], "--recipe.optimizer: the search differentiates plain SGD"),
        (["--data.validation", "0"], "--data.validation: the search needs validation images"),
        (["--search.inner-steps", "0"], "--search.inner-steps: 0 is out of range"),
        (
            ["--search.pretrained-run", "nowhere"],
            "--search.pretrained-run: there is no pretraining in 'nowhere'",
        ),
        (
            ["--search.compat", "sedona"],
            "--search.compat: unknown value 'sedona'; did you mean 'sedona-2021'",
        ),
        (["--recipe.batch-size", "1"], "--recipe.batch-size: BatchNorm needs two images or more"),
        (["--network", "mlp"], "--network mlp: a network of one layer cannot be cut"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], words: str, tmp_path: Path) -> None:
    done = run(SCRIPT, *VGG, "--run", str(tmp_path / "run"), *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_two_ranks_search_by_the_mean_of_their_hypergradients() -> None:
    done = run("tests/programs/search_ranks.py", ranks=2)
    assert done.stdout.count("equal") == 2, done.stderr
