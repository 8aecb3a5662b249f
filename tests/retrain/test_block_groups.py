"""Neuron groups on processes of their own train to the weights of one process that has them all."""

import json
from pathlib import Path

import pytest
import torch

from retrain.placement import load_placement
from tests.forked import run, run_up_to
from tests.script import SMALL, weights
from tools.meters import read_metrics

SCRIPT = "retrain_model.py"
SHORT = [
    *SMALL,
    *("--recipe.steps", "20", "--recipe.evaluate-every", "8", "--recipe.checkpoint-every", "7"),
    *("--recipe.lr", "0.02", "--precision", "fp64"),
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
    assert results[1]["test"] == pytest.approx(results[0]["test"]["last"], abs=10 * tolerance) or (
        results[0]["test"].keys() == results[1]["test"].keys()
    )
    for which, numbers in results[0]["test"].items():
        assert results[1]["test"][which] == pytest.approx(numbers, rel=0, abs=10 * tolerance)


CASES = {
    "sgd": (4, GROUPS, []),
}


@pytest.mark.parametrize("case", CASES)
def test_groups_apart_are_groups_together(case: str, tmp_path: Path) -> None:
    ranks, network, options = CASES[case]
    one = train(tmp_path / "one", *network, *options)
    several = train(tmp_path / "several", *network, *options, ranks=ranks)
    stages = load_placement(several / "placement.json").stages
    assert max(stage.groups for stage in stages) > 1
    assert_same(one, several)
