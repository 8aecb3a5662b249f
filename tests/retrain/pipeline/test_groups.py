"""Neuron groups on processes of their own train to the weights of one process that has them all."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
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
    *(*SMALL, "--data.train-size", "80", "--data.test-size", "40", "--recipe.batch-size", "16"),
    *("--recipe.lr", "0.02", "--precision", "fp64"),
    *("--recipe.steps", "4", "--recipe.evaluate-every", "3", "--recipe.checkpoint-every", "100"),
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
SGD = ["--recipe.ema", "0.9", "--block-rates", "1", "0.5", "2", "--recipe.accumulate", "2"]
RMSPROP = ["--recipe.optimizer", "rmsprop", "--recipe.clip-norm", "0.1"]
# Other options are those of the runs that are killed and continued below.
CASES = {
    "rmsprop, clipped, without diversity, heads apart": (
        4,
        GROUPS,
        [*RMSPROP, "--local.diversity", "0", "--local.no-shared-heads"],
    ),
    "one block": (2, [*GROUPS, "--decoupling", "uniform:1:infopro"], []),
    "who sees the images": (4, [*GROUPS, "--decoupling", "uniform:2:infopro"], []),
    "uneven groups": (7, VGG, UNEVEN),
    "blocks without groups": (4, VGG, MIXED),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, list[Script]]]:
    """A rank, and runs in which it hangs or is killed; they come to their ends while other tests run."""
    victim, begun = chance().randrange(4), []
    options = [*SHORT, *GROUPS, *BLOCKS, "--recipe.steps", "6000", "--recipe.checkpoint-every", "3"]
    with ExitStack() as stack:
        for kind in (signal.SIGSTOP, signal.SIGKILL):
            words = [*options, "--pipeline.patience", "5"]
            words += ["--run", str(tmp_path_factory.mktemp(kind.name) / "run")]
            process = stack.enter_context(Script(SCRIPT, *words, ranks=4))
            folder = Path(words[-1])
            wait_until(lambda folder=folder: any(folder.glob("checkpoints/*.json")), process)  # type: ignore[misc]
            process.strike(victim, kind)
            begun.append(process)
        yield victim, begun


@pytest.mark.usefixtures("broken")
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
    if "rmsprop" in case:  # in which nobody sees the images
        line = next(line for line in read_metrics(several / "metrics.jsonl") if line["step"] == 4)
        assert line["sent_mib/2"] == line["sent_mib/3"] == 0
        # The labels are sent once.
        assert 0 < line["sent_mib/1"] < line["sent_mib/0"] < 1.01 * line["sent_mib/1"]


@pytest.mark.parametrize(
    ("options", "second"),
    [(SGD, 3), ([*ADAMW, "--recipe.ema", "0.9", "--local.no-shared-heads"], 1)],
    ids=["sgd and an average, rates, a batch in parts", "adamw and an average, heads apart"],
)
def test_killed_and_continued_on_any_number_of_processes(
    options: list[str], second: int, tmp_path: Path
) -> None:
    """Who does what is said, and the last checkpoint is one of a single process."""
    words, folder = [*GROUPS, *options], tmp_path / "run"
    often = [*SHORT, *words, "--recipe.checkpoint-every", "1", "--run", str(folder)]
    run_up_to("step-00000002.json", SCRIPT, *often, *BLOCKS, ranks=4)
    parts = {path.name for path in (folder / "checkpoints").glob("step-00000001.part*")}
    assert parts == {"step-00000001.part-0.pt", "step-00000001.part-2.pt"}
    blocks = BLOCKS if second > 1 else []
    run_up_to("step-00000003.json", SCRIPT, *often, *blocks, ranks=second)
    done = run(SCRIPT, *often, *BLOCKS, ranks=4)
    assert done.returncode == 0, done.stderr
    alone = train(tmp_path / "alone", *words)
    assert_same(alone, folder)
    states = []
    for each in (alone, folder):
        found = load_checkpoint(each / "checkpoints")
        assert found is not None
        states.append(found[1]["job"])
    assert_alike(*states)
    assert (
        "group 1 of block 1 on process 0; group 2 of block 1 on process 1; "
        "group 1 of block 2 and block 3 on process 2; group 2 of block 2 on process 3\n"
    ) in done.stdout


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


def test_what_cannot_be_apart_is_refused(tmp_path: Path) -> None:
    options = [*GROUPS, "--local.diversity-gradient", "released", *BLOCKS]
    done = run(SCRIPT, *SHORT, *options, "--run", str(tmp_path / "run"), ranks=4)
    assert done.returncode == 2
    assert "--local.diversity-gradient" in done.stderr
    assert "3 processes" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_group_that_is_gone_is_named(broken: tuple[int, list[Script]]) -> None:
    victim, begun = broken
    ended = [process.finish(timeout=60) for process in begun]  # all end, one that hangs too
    for done in ended:
        assert done.returncode != 0
        (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"{SCRIPT}: ")]
        own = (
            *("group 1 of block 1", "group 2 of block 1"),
            *("group 1 of block 2 and block 3", "group 2 of block 2"),
        )
        assert f"rank {victim} ({own[victim]} of 3" in line
