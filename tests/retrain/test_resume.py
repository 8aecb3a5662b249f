"""Killed at any moment and continued equals uninterrupted, bit for bit."""

import shlex
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.forked import Script, run
from tests.script import (
    SMALL,
    chance,
    command,
    finish,
    ranks_of,
    start,
    wait_for_step,
    weights,
)
from tools.run.meters import read_metrics

SCRIPT = "retrain_model.py"
# What could go wrong on the way back: dropout, BatchNorm, momentum, an average, checkpoints off the epoch.
OPTIONS = [
    *SMALL,
    *("--network", "vgg6a", "--width", "0.125", "--dropout", "0.3", "--recipe.lr", "0.02"),
    *("--data.train-size", "320", "--data.test-size", "40", "--recipe.log-every", "2"),
    *("--recipe.steps", "30", "--recipe.checkpoint-every", "7", "--recipe.ema", "0.9"),
]

pytestmark = pytest.mark.slow


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("weights.safetensors", "best.safetensors"):
        expected, found = weights(one, name), weights(other, name)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert torch.equal(value, found[key]), f"{name}: {key} differs"
    timed = ("images_per_second",)
    lines = [
        [{key: value for key, value in line.items() if key not in timed} for line in read_metrics(path)]
        for path in (one / "metrics.jsonl", other / "metrics.jsonl")
    ]
    assert lines[0] == lines[1]


@pytest.fixture(scope="module", params=[1, 2])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder, ranks = tmp_path_factory.mktemp("whole") / "run", request.param
    done = run(SCRIPT, *OPTIONS, "--run", str(folder), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert f"on {ranks} x cpu" in done.stdout
    return folder, ranks


def assert_continues(folder: Path, whole: Path, ranks: int) -> None:
    done = run(SCRIPT, *OPTIONS, "--run", str(folder), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout
    assert_same_run(whole, folder)


def test_kills_at_random_moments_change_nothing(whole: tuple[Path, int], tmp_path: Path) -> None:
    expected, ranks = whole
    folder, random = tmp_path / "run", chance()
    moments = ((0, 0), (1, 6), (8, 12))  # the first while it is still setting up
    for low, high in moments if ranks == 1 else moments[::2]:
        with Script(SCRIPT, *OPTIONS, "--run", str(folder), ranks=ranks) as process:
            wait_for_step(folder, random.randint(low, high), process)
            time.sleep(random.random() * (0.05 if high else 0.2))
            assert process.poll() is None, "it has ended"
    assert_continues(folder, expected, ranks)


def test_a_signal_makes_a_checkpoint_and_the_run_goes_on(whole: tuple[Path, int], tmp_path: Path) -> None:
    expected, ranks = whole
    folder, signum = tmp_path / "run", {1: signal.SIGINT, 2: signal.SIGTERM}[ranks]
    with Script(SCRIPT, *OPTIONS, "--run", str(folder), ranks=ranks) as process:
        wait_for_step(folder, 8, process)
        for rank in range(ranks):
            process.strike(rank, signum)
        done = process.finish()
    assert f"stopped by {signum.name} after step" in done.stderr
    assert done.returncode == 128 + signum
    assert "Traceback" not in done.stderr
    stopped_at = int(done.stderr.split("after step ")[1].split(";")[0])
    assert (folder / "checkpoints" / f"step-{stopped_at:08d}.pt").exists()
    if ranks == 1:  # which writes
        assert_a_full_disk_keeps_the_checkpoints(folder)
    assert_continues(folder, expected, ranks)


def assert_a_full_disk_keeps_the_checkpoints(folder: Path) -> None:
    before = sorted((folder / "checkpoints").glob("*.json"))
    assert before
    with Script(SCRIPT, *OPTIONS, "--run", str(folder), limit_file_bytes=20_000) as process:
        done = process.finish()
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted((folder / "checkpoints").glob("*.json")) == before


def test_a_launcher_that_is_killed_and_a_rank_that_dies_end_the_run_which_goes_on(
    whole: tuple[Path, int], tmp_path: Path
) -> None:
    expected, ranks = whole
    if ranks == 1:
        pytest.skip("needs two ranks")
    folder = tmp_path / "run"
    line = command(SCRIPT, *OPTIONS, "--run", str(folder), ranks=ranks)
    # The ranks know a launcher by its command line, which a fork does not have.
    launcher = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(folder, 4, launcher)
    orphans = ranks_of(launcher)
    launcher.send_signal(signal.SIGKILL)
    process = start(line)
    wait_for_step(folder, 16, process)  # once the orphans let go of the run
    ranks_of(process)[1].send_signal(signal.SIGKILL)
    done = finish(process, timeout=60)
    assert done.returncode != 0
    assert "continuing" in done.stdout
    assert "lost contact with another process" in done.stderr
    assert "the last checkpoint is step" in done.stderr
    finish(launcher)
    assert len(orphans) == ranks
    assert not psutil.wait_procs(orphans, timeout=60)[1]
    assert_continues(folder, expected, ranks)


def test_a_run_outlives_the_shell_that_started_it(whole: tuple[Path, int], tmp_path: Path) -> None:
    expected, ranks = whole
    if ranks > 1:
        pytest.skip("a launcher's ranks end with it")
    folder = tmp_path / "run"
    line = shlex.join(command(SCRIPT, *OPTIONS, "--run", str(folder)))
    subprocess.run(["sh", "-c", f"{line} >/dev/null 2>&1 &"], check=True)
    deadline = time.monotonic() + 120
    while not (folder / "results.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert_same_run(expected, folder)


def test_ctrl_c_on_workers_and_trainer_together(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [*SMALL, "--network", "mlp", "--data.loader", "stream", "--data.workers", "1"]
    with Script(SCRIPT, *options, "--recipe.steps", "2000", "--run", str(folder)) as process:
        wait_for_step(folder, 5, process)
        trainer = psutil.Process(process.pid)
        workers = trainer.children(recursive=True)
        assert workers
        for one in [trainer, *workers]:
            one.send_signal(signal.SIGINT)
        done = process.finish()
    assert done.returncode == 130, done.stderr
    assert "stopped by SIGINT" in done.stderr
    assert "Traceback" not in done.stderr
