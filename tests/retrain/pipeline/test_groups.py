"""Neuron groups on processes of their own train to the weights of one process that has them all."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from retrain.placing.placement import load_placement
from tests.forked import Script, run, run_up_to
from tests.script import SMALL, chance, wait_until, weights
from tools.run.checkpoint import load_checkpoint
from tools.run.meters import read_metrics

SCRIPT = "retrain_model.py"
SHORT = [
    *(*SMALL, "--data.train-size", "160", "--recipe.lr", "0.02", "--precision", "fp64"),
    *("--recipe.steps", "7", "--recipe.evaluate-every", "4", "--recipe.checkpoint-every", "3"),
]
BLOCKS = ["--parallel", "blocks"]
RESNET = ["--network", "resnet18", "--width", "0.125", "--decoupling", "uniform:2:conv1c2f"]
GROUPS = [*RESNET, "--groups", "2"]
ADAMW = ["--recipe.optimizer", "adamw", "--recipe.lr", "0.001", "--recipe.min-lr", "0"]

pytestmark = pytest.mark.slow


def train(folder: Path, *options: str, ranks: int = 1) -> Path:
    done = run(SCRIPT, *SHORT, *options, *(BLOCKS if ranks > 1 else []), "--run", str(folder), ranks=ranks)
    assert done.returncode == 0, done.stderr
    return folder


def assert_same(one: Path, other: Path, tolerance: float = 1e-9) -> None:
    """Equal in every weight, in every number of every line of the metrics, and in what came of it."""
    for name in ("weights.safetensors", "best.safetensors"):
        expected, found = weights(one, name), weights(other, name)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=tolerance, msg=f"{name}: {key}")
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (one, other)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for expected_line, found_line in zip(*lines, strict=True):
        for key in expected_line.keys() - {"images_per_second"}:
            if not key.startswith(("idle/", "queue/", "sent_mib/")):  # of which one process has none
                assert found_line[key] == pytest.approx(expected_line[key], rel=0, abs=10 * tolerance), key
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    assert results[0]["test"].keys() == results[1]["test"].keys()
    for which, numbers in results[0]["test"].items():
        assert results[1]["test"][which] == pytest.approx(numbers, rel=0, abs=10 * tolerance)


def decoupling_file(folder: Path, **content: object) -> str:
    path = folder / "decoupling.json"
    path.write_text(json.dumps({"format": "cleave/decoupling", "version": 1, **content}))
    return str(path)


VGG = ["--network", "vgg6a", "--width", "0.125", "--dropout", "0", "--decoupling", "FILE"]
UNEVEN = {"cuts": [1, 2, 3, 4, 5], "heads": ["linear"] * 5, "groups": [1, 1, 3, 1, 1, 1], "uneven": True}
MIXED = {"cuts": [2, 4], "heads": ["linear", "predsim"], "groups": [2, 1, 1]}
PARTS = ["--recipe.clip-norm", "0.1", "--recipe.accumulate", "2"]
CASES = {
    "sgd, an average, and rates": (4, GROUPS, ["--recipe.ema", "0.9", "--block-rates", "1", "0.5", "2"]),
    "adamw, heads apart": (4, GROUPS, [*ADAMW, "--local.no-shared-heads"]),
    "without diversity, heads apart": (4, GROUPS, ["--local.diversity", "0", "--local.no-shared-heads"]),
    "rmsprop, clipped, a batch in parts": (4, GROUPS, ["--recipe.optimizer", "rmsprop", *PARTS]),
    "one block": (2, [*GROUPS, "--decoupling", "uniform:1:infopro"], []),
    "who sees the images": (4, [*GROUPS, "--decoupling", "uniform:2:infopro"], []),
    "uneven groups": (7, VGG, UNEVEN),
    "blocks without groups": (4, VGG, MIXED),
}


@pytest.mark.parametrize("case", CASES)
def test_groups_apart_are_groups_together(case: str, tmp_path: Path) -> None:
    ranks, network, options = CASES[case]
    if isinstance(options, dict):
        network, options = [*network[:-1], decoupling_file(tmp_path, **options)], []
    one = train(tmp_path / "one", *network, *options)
    several = train(tmp_path / "several", *network, *options, ranks=ranks)
    stages = load_placement(several / "placement.json").stages
    assert max(stage.groups for stage in stages) > 1
    assert_same(one, several)


@pytest.mark.parametrize(
    ("options", "others"),
    [(["--recipe.ema", "0.9"], (3, 1)), (ADAMW, (4, 1))],
    ids=["sgd and an average", "adamw"],
)
def test_killed_and_continued_on_any_number_of_processes(
    options: list[str], others: tuple[int, ...], tmp_path: Path
) -> None:
    words = [*GROUPS, *options]
    whole, killed = train(tmp_path / "whole", *words), tmp_path / "killed"
    run_up_to("step-00000006.json", SCRIPT, *SHORT, *words, *BLOCKS, "--run", str(killed), ranks=4)
    parts = {path.name for path in (killed / "checkpoints").glob("step-00000003.part*")}
    assert parts == {"step-00000003.part-0.pt", "step-00000003.part-2.pt"}
    for ranks in others:
        folder = shutil.copytree(killed, tmp_path / f"on-{ranks}")
        assert_same(whole, train(folder, *words, ranks=ranks))


@pytest.mark.parametrize("ranks", [1, 3])
def test_groups_go_on_from_what_began_together(ranks: int, tmp_path: Path) -> None:
    words = [*GROUPS, "--recipe.ema", "0.9"]
    whole, folder = train(tmp_path / "whole", *words), tmp_path / "cut"
    blocks = BLOCKS if ranks > 1 else []
    run_up_to("step-00000006.json", SCRIPT, *SHORT, *words, *blocks, "--run", str(folder), ranks=ranks)
    assert_same(whole, train(folder, *words, ranks=4))


def test_a_checkpoint_of_groups_is_one_of_a_single_process(tmp_path: Path) -> None:
    words = [*GROUPS, *ADAMW, "--recipe.ema", "0.9"]
    states = []
    for ranks in (1, 4):
        found = load_checkpoint(train(tmp_path / f"{ranks}", *words, ranks=ranks) / "checkpoints")
        assert found is not None
        states.append(found[1]["job"])
    assert_alike(*states)


def assert_alike(one: Any, other: Any) -> None:
    """The same keys, shapes and layouts, and the same numbers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_alike(value, other[key])
    elif isinstance(one, torch.Tensor):
        assert one.stride() == other.stride()
        torch.testing.assert_close(other, one, rtol=0, atol=1e-9)
    else:
        assert one == other


def test_who_does_what_is_said(tmp_path: Path) -> None:
    options = [*SHORT, *GROUPS, *BLOCKS, "--run", str(tmp_path / "run")]
    done = run(SCRIPT, *options, ranks=4)
    assert (
        "group 1 of block 1 on process 0; group 2 of block 1 on process 1; "
        "group 1 of block 2 and block 3 on process 2; group 2 of block 2 on process 3\n"
    ) in done.stdout
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    line = next(line for line in lines if line["step"] == 7)
    assert line["sent_mib/2"] == line["sent_mib/3"] == 0
    # The labels are sent once.
    assert 0 < line["sent_mib/1"] < line["sent_mib/0"] < 1.01 * line["sent_mib/1"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--local.diversity-gradient", "released"], "--local.diversity-gradient"),
        (["--network", "timm/mobilenetv2_050", "--data.image-size", "32"], "in one neuron group alone"),
    ],
)
def test_what_cannot_be_apart_is_refused(options: list[str], complaint: str, tmp_path: Path) -> None:
    network = [*GROUPS, *options] if "--network" not in options else [*options, *GROUPS[4:]]
    done = run(SCRIPT, *SHORT, *network, *BLOCKS, "--run", str(tmp_path / "run"), ranks=4)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "3 processes" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP])
def test_a_group_that_is_gone_is_named(kind: signal.Signals, tmp_path: Path) -> None:
    victim, folder = chance().randrange(4), tmp_path / "run"
    options = [*SHORT, *GROUPS, *BLOCKS, "--recipe.steps", "6000", "--pipeline.patience", "6"]
    with Script(SCRIPT, *options, "--run", str(folder), ranks=4) as process:
        wait_until(lambda: bool(list(folder.glob("checkpoints/*.json"))), process)
        process.strike(victim, kind)
        done = process.finish(timeout=60)  # all end, one that hangs too
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"{SCRIPT}: ")]
    own = ("group 1 of block 1", "group 2 of block 1", "group 1 of block 2 and block 3", "group 2 of block 2")
    assert f"rank {victim} ({own[victim]} of 3" in line
