"""Blocks on processes of their own train to the weights of one process that has them all."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from retrain.placing.placement import load_placement
from tests.forked import run, run_up_to
from tests.script import SMALL, weights
from tools.run.meters import read_metrics

SCRIPT = "retrain_model.py"
SHORT = [
    # 128 images to train on: ten steps of 32 see each two or three times.
    *(*SMALL, "--data.train-size", "160", "--recipe.lr", "0.02"),
    *("--recipe.steps", "10", "--recipe.evaluate-every", "4", "--recipe.checkpoint-every", "3"),
]
VGG = ["--network", "vgg6a", "--width", "0.25", "--dropout", "0.3"]
RESNET = ["--network", "resnet18", "--width", "0.125"]
VIT = ["--network", "timm/test_vit", "--data.image-size", "32"]
BLOCKS = ["--parallel", "blocks"]
CACHE = ["--rule", "gluing", "--gluing.cache", "--data.augment", "none"]
# 88 images to train on, so that batches of 32 are of two epochs, and known images are among new ones.
SHORT_EPOCHS = ["--data.train-size", "110"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains in one process; equal options are run once."""
    return cache(lambda *options: train(tmp_path_factory.mktemp("alone") / "run", *options))


def train(folder: Path, *options: str, ranks: int = 1) -> Path:
    done = run(SCRIPT, *SHORT, *options, *(BLOCKS if ranks > 1 else []), "--run", str(folder), ranks=ranks)
    assert done.returncode == 0, done.stderr
    return folder


def assert_same(one: Path, other: Path, tolerance: float = 0.0) -> None:
    for name in ("weights.safetensors", "best.safetensors"):
        expected, found = weights(one, name), weights(other, name)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=tolerance, msg=f"{name}: {key}")
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (one, other)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for expected_line, found_line in zip(*lines, strict=True):
        for key in expected_line.keys() - {"images_per_second"}:
            if key.startswith(("idle/", "queue/", "sent_mib/")):  # of which one process has none
                continue
            if tolerance == 0 or "loss" in key:
                assert found_line[key] == pytest.approx(expected_line[key], rel=0, abs=1e-12 + 10 * tolerance)


def sedona_heads(folder: Path) -> str:
    """Uneven blocks with different heads, as a search finds them."""
    path = folder / "decoupling.json"
    content = {"format": "cleave/decoupling", "version": 1, "cuts": [2, 3], "heads": ["aux1", "aux4"]}
    path.write_text(json.dumps(content))
    return str(path)


CASES = {
    "dgl, mixup": (2, VGG, "uniform:2:mlp_sr", ["--data.mixup", "0.4"]),
    "dgl, float64": (3, VGG, "uniform:3:mlp_sr", ["--precision", "fp64"]),
    "sedona": (3, RESNET, "", ["--recipe.ema", "0.9", "--block-rates", "1", "0.5", "2"]),
    "sedona, float64": (2, RESNET, "uniform:2:aux2", ["--precision", "fp64", "--recipe.clip-norm", "0.1"]),
    "predsim, in parts": (2, VGG, "uniform:2:predsim", ["--recipe.accumulate", "2"]),
    "infopro, which sees the images": (3, VGG, "uniform:3:infopro", []),
    "a transformer": (2, VIT, "uniform:2:linear", ["--recipe.optimizer", "adamw", "--recipe.min-lr", "0"]),
    "neuron groups": (3, RESNET, "uniform:2:conv1c2f", ["--groups", "2"]),
    "replay": (3, VGG, "uniform:3:aux1", ["--rule", "replay"]),
    "replay with several blocks, in parts": (
        2,
        VGG,
        "uniform:4:aux1",
        ["--rule", "replay", "--recipe.accumulate", "2"],
    ),
    "replay in more parts than the queue holds": (
        2,
        VGG,
        "uniform:2:aux1",
        ["--rule", "replay", "--recipe.accumulate", "4", "--pipeline.queue", "1"],
    ),
    "gluing": (3, VGG, "uniform:3:aux1", ["--rule", "gluing"]),
    "gluing with several blocks": (2, VGG, "uniform:4:aux1", ["--rule", "gluing"]),
    # Four steps see every image once: later ones take what was stored for them.
    "gluing with a cache, float64": (3, VGG, "uniform:3:aux1", [*CACHE, "--precision", "fp64"]),
    "gluing with a cache, h-steps now and then": (
        3,
        RESNET,
        "uniform:3:aux1",
        [*CACHE, *SHORT_EPOCHS, "--gluing.h-every", "2", "--gluing.refresh", "5"],
    ),
    "gluing with a cache in parts": (
        2,
        VGG,
        "uniform:4:aux1",
        [*CACHE, *SHORT_EPOCHS, "--gluing.h-every", "2", "--recipe.accumulate", "2"],
    ),
    "bf16, several blocks on a process": (2, RESNET, "uniform:3:aux1", ["--precision", "bf16"]),
}


@pytest.mark.parametrize("case", CASES)
def test_every_bit_is_as_in_one_process(case: str, tmp_path: Path) -> None:
    ranks, network, cuts, options = CASES[case]
    words = [*network, "--decoupling", cuts or sedona_heads(tmp_path), *options]
    alone = words[: words.index("--pipeline.queue")] if "--pipeline.queue" in words else words
    assert_same(train(tmp_path / "one", *alone), train(tmp_path / "several", *words, ranks=ranks))


RULES = {rule: ["--rule", rule] for rule in ("greedy", "replay", "gluing")}
# Rounding does not grow while the gaps are small.
RULES["gluing with a cache"] = [*CACHE, *SHORT_EPOCHS, "--gluing.h-every", "2", "--gluing.penalty", "0.01"]


@pytest.mark.parametrize("rule", RULES)
def test_blocks_and_rows_on_four_processes(rule: str, alone: Callable[..., Path], tmp_path: Path) -> None:
    words = [*RESNET, "--decoupling", "uniform:2:aux2", *RULES[rule], "--precision", "fp64"]
    assert_same(alone(*words), train(tmp_path / "several", *words, ranks=4), tolerance=1e-9)


@pytest.mark.parametrize("rule", ["greedy", "gluing with a cache"])
def test_rows_shared_unevenly_between_stages(rule: str, alone: Callable[..., Path], tmp_path: Path) -> None:
    words = [*RESNET, "--decoupling", "uniform:2:aux2", *RULES[rule], "--precision", "fp64"]
    several = train(tmp_path / "several", *words, ranks=3)
    assert sorted(stage.copies for stage in load_placement(several / "placement.json").stages) == [1, 2]
    assert_same(alone(*words), several, tolerance=1e-9)


def test_four_processes_in_float32(tmp_path: Path) -> None:
    # Without BatchNorm, which lets the rounding of its statistics grow from step to step.
    words = [*VIT, "--decoupling", "uniform:2:linear", "--recipe.lr", "0.001", "--recipe.min-lr", "0"]
    one, several = train(tmp_path / "one", *words), train(tmp_path / "several", *words, ranks=4)
    assert_same(one, several, tolerance=1e-6)


def test_the_length_of_the_queue_changes_nothing(tmp_path: Path) -> None:
    words = [*VGG, "--decoupling", "uniform:3:aux1"]
    short = train(tmp_path / "short", *words, "--pipeline.queue", "1", ranks=3)
    assert_same(short, train(tmp_path / "long", *words, "--pipeline.queue", "16", ranks=3))


def test_nothing_is_sent_back_and_bf16_halves_the_bytes(tmp_path: Path) -> None:
    sent = {}
    for transfer in ("full", "bf16"):
        words = [*VGG, "--decoupling", "uniform:2:aux1", "--pipeline.transfer", transfer]
        lines = read_metrics(train(tmp_path / transfer, *words, ranks=2) / "metrics.jsonl")
        line = next(line for line in lines if line["step"] == 10)
        assert line["sent_mib/1"] == 0
        assert {"idle/0", "idle/1", "queue/1", "loss/1", "loss", "train_top1"} <= line.keys()
        sent[transfer] = line["sent_mib/0"]
    assert sent["bf16"] == pytest.approx(sent["full"] / 2, rel=0.01)


@pytest.mark.parametrize("rule", ["greedy", "replay", "gluing with a cache"])
def test_killed_and_continued_on_another_number_of_processes(rule: str, tmp_path: Path) -> None:
    words = [*VGG, "--decoupling", "uniform:3:aux1", *RULES[rule], "--recipe.ema", "0.9"]
    whole, killed = train(tmp_path / "whole", *words), tmp_path / "killed"
    run_up_to("step-00000006.json", SCRIPT, *SHORT, *words, *BLOCKS, "--run", str(killed), ranks=3)
    assert sorted(path.name for path in (killed / "checkpoints").glob("step-00000003*")) == [
        "step-00000003.json",
        *(f"step-00000003.part-{rank}.pt" for rank in range(3)),
        "step-00000003.pt",
    ]
    for ranks in (2, 1):
        folder = shutil.copytree(killed, tmp_path / f"on-{ranks}")
        assert_same(whole, train(folder, *words, ranks=ranks))
        assert not list((folder / "checkpoints").glob("step-00000003*"))  # of the older one nothing is left


def test_each_process_keeps_the_variables_of_its_own_blocks(tmp_path: Path) -> None:
    words = [*VGG, "--decoupling", "uniform:3:aux1", *CACHE, *SHORT_EPOCHS]
    one, several = train(tmp_path / "one", *words), train(tmp_path / "several", *words, ranks=3)
    states = [
        torch.load(folder / "checkpoints" / name, weights_only=True)["job"]["rule"]["cache"]
        for folder, name in (
            (one, "step-00000009.pt"),
            *((several, f"step-00000009.part-{rank}.pt") for rank in range(3)),
        )
    ]
    whole, *parts = states
    assert [list(part) for part in parts] == [[], [1], [2]]
    for part in parts:
        for block, kept in part.items():
            assert kept.shape[0] == 88
            assert torch.equal(kept, whole[block])


@pytest.mark.parametrize("rule", ["greedy", "gluing with a cache"])
def test_one_process_begins_and_several_go_on(rule: str, tmp_path: Path) -> None:
    words = [*VGG, "--decoupling", "uniform:2:aux1", *RULES[rule]]
    whole, folder = train(tmp_path / "whole", *words), tmp_path / "cut"
    run_up_to("step-00000006.json", SCRIPT, *SHORT, *words, "--run", str(folder))
    assert_same(whole, train(folder, *words, ranks=2))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--decoupling", "uniform:2:aux1", "--precision", "fp16"], "bf16 or fp32"),
        ([], "--parallel blocks: needs --decoupling"),
        (["--decoupling", "uniform:2:aux1", "--alignment"], "--alignment"),
        (["--decoupling", "uniform:2:aux1", "--rule", "gluing", "--pipeline.transfer", "bf16"], "bf16"),
    ],
)
def test_what_cannot_be_shared_is_refused(options: list[str], complaint: str, tmp_path: Path) -> None:
    done = run(SCRIPT, *SHORT, *VGG, *options, *BLOCKS, "--run", str(tmp_path / "run"))
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    words = [*VGG, "--decoupling", "uniform:2:aux1", "--recipe.batch-size", "25"]
    done = run(SCRIPT, *SHORT, *words, *BLOCKS, "--run", str(tmp_path / "run"), ranks=3)
    assert done.returncode == 2
    assert "25" in done.stderr
    done = run(SCRIPT, *SHORT, *VGG, "--parallel", "none", "--run", str(tmp_path / "run"), ranks=2)
    assert done.returncode == 2
    assert "--parallel" in done.stderr
