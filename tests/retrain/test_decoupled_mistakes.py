"""What can be wrong in asking for blocks: one line that names it, exit code 2, no traceback."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.forked import run
from tests.script import SMALL

SCRIPT = "retrain_model.py"
OPTIONS = [*SMALL, "--network", "vgg6a", "--width", "0.125", "--recipe.steps", "1"]

RIGHT = {
    "format": "cleave/decoupling",
    "version": 1,
    "cuts": [1, 3],
    "heads": ["linear", "linear"],
    "groups": 1,
}
THREE = ["--decoupling", "uniform:3:aux1"]
FIVE = ["--decoupling", "uniform:5:linear"]  # all blocks of one layer, which groups can split
GLUING = [*THREE, "--rule", "gluing"]

pytestmark = pytest.mark.slow


FILES: list[tuple[dict[str, Any], str]] = [
    ({"cuts": [3, 1]}, "cuts: 3 and 1 are out of order; cuts ascend"),
    ({"cuts": [2, 2]}, "cuts: 2 is there twice"),
    ({"cuts": [2, 9]}, "cuts: there is no layer 9 to cut after; the network has 5"),
    ({"cuts": [0, 2]}, "cuts: there is no layer 0; layers count from 1"),
    ({"cuts": "1 3"}, "'cuts' must be a list, not '1 3'"),
    ({"heads": ["linear"]}, "2 cuts need 2 heads, not 1"),
    ({"heads": ["linear", "aux9"]}, "head 'aux9' is unknown; did you mean 'aux4'?"),
    (
        {"num_layers": 8, "network": "resnet18"},
        "it is for resnet18 of 8 layers; vgg6a has 5",
    ),
    ({"groups": [2, 2]}, "groups: 3 blocks need 3 numbers, not 2"),
    ({"groups": [3, 1, 1]}, "groups: 3 groups do not divide the 16 channels of layer 1; choose a divisor"),
    ({"grups": 2}, "unknown key 'grups'; did you mean 'groups'?"),
    ({"version": 2}, "version 2 of cleave/decoupling is not known here, only 1"),
    (
        {"format": "cleave/architecture"},
        "expected a file of format 'cleave/decoupling', found 'cleave/architecture'",
    ),
]


@pytest.mark.parametrize(("changes", "says"), FILES, ids=[str(changes) for changes, _ in FILES])
def test_a_file_that_is_wrong(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = tmp_path / "decoupling.json"
    path.write_text(json.dumps(RIGHT | changes))
    said = one_line(tmp_path, "--decoupling", str(path))
    assert said.startswith(f"retrain_model.py: --decoupling {path}: ")
    assert said.count(str(path)) == 1 or "format" in said
    assert says in said


OTHERS = [
    (["--decoupling", "uniform:4:aux9"], "--decoupling: head 'aux9' is unknown; did you mean 'aux4'?"),
    (["--decoupling", "uniform:4"], "--decoupling: 'uniform:4' names no head; write uniform:K:HEAD"),
    (
        ["--decoupling", "unifrom:4:aux1"],
        "--decoupling: there is no file 'unifrom:4:aux1'; did you mean 'uniform:4:aux1'?",
    ),
    (
        ["--decoupling", "uniform:99:aux1"],
        "--decoupling uniform:99:aux1: num_blocks is 99; a network of 5 layers has at most 5 blocks",
    ),
    (
        ["--decoupling", "published:4", "--network", "resnet18"],
        "--decoupling published:4: network 'resnet18' has no published decoupling; there are resnet152, "
        "resnet101, resnet50, vgg19",
    ),
    (
        ["--decoupling", "published:40", "--network", "vgg19", "--data.image-size", "32"],
        "--decoupling published:40: num_blocks is 40; for vgg19 1 to 16 blocks are published",
    ),
    (["--decoupling", "{}/none.json"], "/none.json'; it takes a decoupling.json, uniform:K:HEAD"),
    (["--decoupling", "{}"], "is a folder; it takes a decoupling.json"),
    (["--decoupling", "balanced:3:aux1", "--balance", "foo"], "--balance: unknown value 'foo'; known: time"),
    (["--rule", "greedy"], "--rule: greedy needs --decoupling, such as uniform:4:aux2"),
    (["--rule", "replay"], "--rule: replay needs --decoupling"),
    (["--rule", "foo"], "--rule: unknown value 'foo'; known: backprop, greedy, replay, gluing"),
    (["--groups", "2"], "--groups: splits the blocks of a --decoupling, such as uniform:4:conv1c2f"),
    ([*FIVE, "--groups", "2", "--rule", "replay"], "--groups: their heads teach them, which --rule replay"),
    (
        [*FIVE, "--groups", "3"],
        "groups: 3 groups do not divide the 16 channels of layer 1; choose a divisor",
    ),
    (
        [*FIVE, "--groups", "2", "--data.mixup", "0.2"],
        "--data.mixup and --data.cutmix: the loss between groups or images needs one class each",
    ),
    ([*THREE, "--block-rates", "1", "2"], "--block-rates: 2 factors for 3 blocks; give one for each"),
    ([*THREE, "--block-rates", "1", "2", "-1"], "--block-rates: -1 is out of range"),
    ([*GLUING, "--gluing.cache"], "--gluing.cache: gluing variables are kept for each image"),
    (
        [*GLUING, "--gluing.cache", "--data.augment", "none", "--data.mixup", "0.2"],
        "it goes with --data.augment none, without mixup, cutmix, rotate",
    ),
    (
        [*GLUING, "--gluing.penalty", "1", "2", "3"],
        "--gluing.penalty: 3 values for 2 boundaries; give one, or one for each",
    ),
    (
        [*GLUING, "--gluing.cache", "--data.augment", "none", "--data.rotate", "9"],
        "without mixup, cutmix, rotate",
    ),
    ([*GLUING, "--precision", "bf16"], "--precision: --rule gluing moves by less than bf16 tells"),
    ([*GLUING, "--gluing.h-every", "2"], "--gluing.h-every: needs --gluing.cache"),
    ([*GLUING, "--gluing.refresh", "2"], "--gluing.refresh: needs --gluing.cache"),
    (
        ["--decoupling", "uniform:3:aug9"],
        "head 'aug9' asks for 9 layers above the cut after layer 1, and there are 4; take aug4",
    ),
    (["--decoupling", "uniform:3:augg"], "--decoupling: head 'augg' is unknown; did you mean 'aug"),
    (
        [*THREE, "--local.whole-first", "50", "--precision", "fp16"],
        "--local.whole-first: blocks that go backward together cannot each scale their gradients",
    ),
    (["--decoupling", "uniform:3:aug2@0.01"], "head 'aug2@0.01' leaves none of the"),
    (["--decoupling", "uniform:3:aug2@5"], "--decoupling: head 'aug2@5': the width is 5; it must be above 0"),
    (["--decoupling", "balanced:3:aug3~.5"], "has a slope; which goes with uniform:K:HEAD alone"),
    (["--decoupling", "uniform:3:aug1+man"], "--local.refresh: heads with +man have copies that follow the"),
    ([*THREE, "--local.momentum", "0.5"], "--local.momentum: goes with --local.refresh"),
    ([*THREE, "--local.refresh", "2"], "--local.refresh: a training with heads aux1 does not look at it"),
    (
        [*THREE, "--local.whole-first", "60", "--local.join-last", "50"],
        "--local.whole-first and --local.join-last: are more than all steps together",
    ),
    (
        [*THREE, "--local.whole-first", "60", "--parallel", "blocks"],
        "--local.whole-first: trains the whole network, which no process of --parallel blocks has",
    ),
    (
        [*FIVE, "--groups", "2", "--local.movement", "0.1"],
        "--local.movement: is for blocks without neuron groups; leave out --groups",
    ),
]


@pytest.mark.parametrize(("arguments", "says"), OTHERS, ids=[" ".join(case[0]) for case in OTHERS])
def test_options_that_are_wrong(tmp_path: Path, arguments: list[str], says: str) -> None:
    assert says in one_line(tmp_path, *(argument.format(tmp_path) for argument in arguments))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--decoupling", "uniform:99:aux1"], "num_blocks is 99"),
        ([*GLUING, "--gluing.penalty", "1", "2", "3"], "--gluing.penalty: 3 values for 2 boundaries"),
    ],
)
def test_one_of_two_ranks_says_it(tmp_path: Path, arguments: list[str], says: str) -> None:
    assert says in one_line(tmp_path, *arguments, ranks=2)


def test_a_file_that_is_right(tmp_path: Path) -> None:
    path = tmp_path / "decoupling.json"
    path.write_text(json.dumps(RIGHT))
    done = run(SCRIPT, *OPTIONS, "--decoupling", str(path), "--run", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr


def one_line(folder: Path, *arguments: str, ranks: int = 1) -> str:
    done = run(SCRIPT, *OPTIONS, *arguments, "--run", str(folder / "run"), ranks=ranks)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr
