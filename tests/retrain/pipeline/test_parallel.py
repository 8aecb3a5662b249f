"""Blocks on processes of their own train to the weights of one process that has them all."""

import json
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
    *(*SMALL, "--data.train-size", "80", "--data.test-size", "40", "--recipe.batch-size", "16"),
    *("--recipe.lr", "0.02", "--recipe.steps", "5", "--recipe.evaluate-every", "4"),
    *("--recipe.checkpoint-every", "100"),
]
VGG = ["--network", "vgg6a", "--width", "0.25", "--dropout", "0.3"]
RESNET = ["--network", "resnet18", "--width", "0.125"]
VIT = ["--network", "timm/test_vit", "--data.image-size", "32"]
BLOCKS = ["--parallel", "blocks"]
CACHE = ["--rule", "gluing", "--gluing.cache", "--data.augment", "none"]
# 44 images to train on, so that batches of 16 are of two epochs, and known images are among new ones. Three
# steps see every image once: later ones take what was stored for them.
SHORT_EPOCHS = ["--data.train-size", "55"]

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


def decoupling_file(folder: Path, cuts: list[int], heads: list[str]) -> str:
    """Uneven blocks with different heads, as a search finds them."""
    path = folder / "decoupling.json"
    content = {"format": "cleave/decoupling", "version": 1, "cuts": cuts, "heads": heads}
    path.write_text(json.dumps(content))
    return str(path)


RULES = {rule: ["--rule", rule] for rule in ("greedy", "replay", "gluing")}
# The checkpoint of step 3 is in the middle of what comes down from step 2 to step 4.
RULES["greedy, refreshed"] = ["--local.refresh", "2", "--local.momentum", "0.5"]
RULES["gluing with a cache"] = [*CACHE, *SHORT_EPOCHS, "--gluing.h-every", "2"]
# Each tells the processes, the network, the cuts, the options, and those that one process does without. Every
# rule, loss and option of the recipe is in one of them at least.
CASES: dict[str, tuple[int, list[str], str | tuple[list[int], list[str]], list[str], list[str]]] = {
    "heads of all kinds, bf16, mixup, an average, several blocks on a process": (
        2,
        RESNET,
        ([2, 3], ["aux1", "aux4"]),
        [
            *("--precision", "bf16", "--data.mixup", "0.4", "--recipe.ema", "0.9"),
            *("--block-rates", "1", "0.5", "2"),
        ],
        [],
    ),
    "dgl, float64, clipped": (
        3,
        VGG,
        "uniform:3:mlp_sr",
        ["--precision", "fp64", "--recipe.clip-norm", "0.1"],
        ["--pipeline.queue", "1"],
    ),
    "predsim and infopro, which sees the images, in parts": (
        3,
        VGG,
        ([2, 4], ["predsim", "infopro"]),
        ["--recipe.accumulate", "2"],
        [],
    ),
    "neuron groups, adamw": (
        3,
        RESNET,
        "uniform:2:conv1c2f",
        ["--groups", "2", "--recipe.optimizer", "adamw", "--recipe.min-lr", "0"],
        ["--pipeline.queue", "16"],
    ),
    "replay with several blocks, in more parts than the queue holds": (
        2,
        VGG,
        "uniform:4:aux1",
        ["--rule", "replay", "--recipe.accumulate", "4"],
        ["--pipeline.queue", "1"],
    ),
    # Of the three processes, one has two blocks, and one has neighbours on both sides.
    "gluing with several blocks": (3, VGG, "uniform:4:aux1", ["--rule", "gluing"], []),
    "gluing with a cache, in parts": (
        2,
        VGG,
        "uniform:4:aux1",
        [*RULES["gluing with a cache"], "--gluing.refresh", "5", "--recipe.accumulate", "2"],
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_bit_is_as_in_one_process(case: str, tmp_path: Path) -> None:
    ranks, network, cuts, options, pipeline = CASES[case]
    decoupling = cuts if isinstance(cuts, str) else decoupling_file(tmp_path, *cuts)
    words = [*network, "--decoupling", decoupling, *options]
    assert_same(train(tmp_path / "one", *words), train(tmp_path / "several", *words, *pipeline, ranks=ranks))


FINE = {rule: [*words, "--precision", "fp64"] for rule, words in RULES.items()}
FINE["gluing with a cache"] += ["--gluing.penalty", "0.01"]  # rounding does not grow while gaps are small


# Greedy blocks share rows below, and what gluing adds to replay it adds with a cache as well.
@pytest.mark.parametrize("rule", ["replay", "gluing with a cache"])
def test_blocks_and_rows_on_four_processes(rule: str, alone: Callable[..., Path], tmp_path: Path) -> None:
    words = [*RESNET, "--decoupling", "uniform:2:aux2", *FINE[rule]]
    assert_same(alone(*words), train(tmp_path / "several", *words, ranks=4), tolerance=1e-9)


@pytest.mark.parametrize("rule", ["greedy, refreshed", "gluing with a cache"])
def test_rows_shared_unevenly_between_stages(rule: str, alone: Callable[..., Path], tmp_path: Path) -> None:
    head = "aug2+man" if "refreshed" in rule else "aux2"
    words = [*RESNET, "--decoupling", f"uniform:2:{head}", *FINE[rule]]
    several = train(tmp_path / "several", *words, ranks=3)
    assert sorted(stage.copies for stage in load_placement(several / "placement.json").stages) == [1, 2]
    assert_same(alone(*words), several, tolerance=1e-9)


@pytest.mark.parametrize(("ranks", "tolerance"), [(2, 0.0), (4, 1e-6)])
def test_a_transformer_in_float32(
    ranks: int, tolerance: float, alone: Callable[..., Path], tmp_path: Path
) -> None:
    # Without BatchNorm, which lets the rounding of its statistics grow from step to step.
    words = [*VIT, "--decoupling", "uniform:2:linear", "--recipe.lr", "0.001", "--recipe.min-lr", "0"]
    words += ["--recipe.steps", "3"]
    assert_same(alone(*words), train(tmp_path / "several", *words, ranks=ranks), tolerance)


def test_nothing_is_sent_back_and_bf16_halves_the_bytes(tmp_path: Path) -> None:
    sent = {}
    for transfer in ("full", "bf16"):
        words = [*VGG, "--decoupling", "uniform:2:aux1", "--pipeline.transfer", transfer]
        words += ["--recipe.steps", "2"]
        lines = read_metrics(train(tmp_path / transfer, *words, ranks=2) / "metrics.jsonl")
        line = next(line for line in lines if line["step"] == 2)
        assert line["sent_mib/1"] == 0
        assert {"idle/0", "idle/1", "queue/1", "loss/1", "loss", "train_top1"} <= line.keys()
        sent[transfer] = line["sent_mib/0"]
    assert sent["bf16"] == pytest.approx(sent["full"] / 2, rel=0.01)


@pytest.mark.parametrize(
    ("rule", "second", "third"),
    [("greedy, refreshed", 2, 1), ("replay", 1, 2), ("gluing with a cache", 1, 3)],
)
def test_killed_and_continued_on_another_number_of_processes(
    rule: str, second: int, third: int, tmp_path: Path
) -> None:
    head, folder = "aug2" if "refreshed" in rule else "aux1", tmp_path
    words = [*VGG, "--decoupling", f"uniform:3:{head}", *RULES[rule], "--recipe.ema", "0.9"]
    often = [*SHORT, *words, "--recipe.checkpoint-every", "1", "--run", str(folder / "run")]
    run_up_to("step-00000003.json", SCRIPT, *often, *BLOCKS, ranks=3)
    assert sorted(path.name for path in (folder / "run/checkpoints").glob("step-00000002*")) == [
        "step-00000002.json",
        *(f"step-00000002.part-{rank}.pt" for rank in range(3)),
        "step-00000002.pt",
    ]
    run_up_to("step-00000004.json", SCRIPT, *often, *(BLOCKS if second > 1 else []), ranks=second)
    continued = train(folder / "run", *words, "--recipe.checkpoint-every", "1", ranks=third)
    one = train(folder / "one", *words)
    assert_same(one, continued)
    assert not list((continued / "checkpoints").glob("step-0000000[23]*"))  # of older ones nothing is left
    if "cache" in rule:
        assert_each_process_keeps_the_variables_of_its_own_blocks(one, continued)


def assert_each_process_keeps_the_variables_of_its_own_blocks(one: Path, several: Path) -> None:
    states = [
        torch.load(folder / "checkpoints" / name, weights_only=True)["job"]["rule"]["cache"]
        for folder, name in (
            (one, "step-00000005.pt"),
            *((several, f"step-00000005.part-{rank}.pt") for rank in range(3)),
        )
    ]
    whole, *parts = states
    assert [list(part) for part in parts] == [[], [1], [2]]
    for part in parts:
        for block, kept in part.items():
            assert kept.shape[0] == 44
            assert torch.equal(kept, whole[block])


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
