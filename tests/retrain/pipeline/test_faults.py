"""A process that dies, stalls, hangs or cannot write among those that train blocks, and how it goes on."""

import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from tests.forked import Script, run
from tests.script import SMALL, chance, command, finish, ranks_of, start, wait_until, weights

SCRIPT = "retrain_model.py"
RANKS = 3
OPTIONS = [
    *SMALL,
    *("--network", "vgg6a", "--width", "0.25", "--dropout", "0.3", "--decoupling", "uniform:3:aux1"),
    *("--data.train-size", "320", "--data.test-size", "40"),
    *("--recipe.steps", "30", "--recipe.checkpoint-every", "4", "--recipe.lr", "0.02"),
    *("--parallel", "blocks"),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(SCRIPT, *OPTIONS, "--run", str(folder)).returncode == 0
    return folder


def wait_for_checkpoint(folder: Path, process: Script) -> None:
    wait_until(lambda: bool(list(folder.glob("checkpoints/*.json"))), process)


@contextmanager
def begun(folder: Path, *options: str) -> Iterator[Script]:
    """A run on several processes, some way from its start."""
    with Script(SCRIPT, *OPTIONS, *options, "--run", str(folder), ranks=RANKS) as process:
        wait_for_checkpoint(folder, process)
        yield process


def assert_goes_on(folder: Path, whole: Path, ranks: int = 1) -> None:
    done = run(SCRIPT, *OPTIONS, "--run", str(folder), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert_same(folder, whole)


def assert_same(folder: Path, whole: Path) -> None:
    expected, found = weights(whole), weights(folder)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the run itself says of its end, and not its launcher."""
    return [line for line in done.stderr.splitlines() if line.startswith(f"{SCRIPT}: ")]


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path, Script]]:
    """A run in which a process hangs, with that process; the others wait for it while other tests run."""
    victim, folder = chance().randrange(RANKS), tmp_path_factory.mktemp("hung") / "run"
    with begun(folder, "--pipeline.patience", "5") as process:
        process.strike(victim, signal.SIGSTOP)
        yield victim, folder, process


@pytest.mark.usefixtures("hung")  # which waits for the end of its patience meanwhile
def test_a_stall_within_the_patience_is_survived(whole: Path, tmp_path: Path) -> None:
    victim, folder = chance().randrange(RANKS), tmp_path / "run"
    with begun(folder, "--pipeline.patience", "5") as process:
        process.strike(victim, signal.SIGSTOP)
        time.sleep(2.5)
        assert process.poll() is None
        assert not (folder / "results.json").exists()
        process.strike(victim, signal.SIGCONT)
        done = process.finish()
    assert done.returncode == 0, done.stderr
    assert not told(done)
    assert_same(folder, whole)


def test_a_process_that_is_killed_under_a_launcher_is_named(whole: Path, tmp_path: Path) -> None:
    victim, folder = chance().randrange(RANKS), tmp_path / "run"
    process = start(command(SCRIPT, *OPTIONS, "--run", str(folder), ranks=RANKS))
    wait_for_checkpoint(folder, process)
    ranks = ranks_of(process)
    assert len(ranks) == RANKS
    ranks[victim].send_signal(signal.SIGKILL)
    done = finish(process, timeout=60)
    assert done.returncode != 0
    (line,) = told(done)
    assert f"rank {victim} (block {victim + 1} of 3, process {ranks[victim].pid} " in line
    assert "was killed or crashed" in line
    assert re.search(r"the last checkpoint is step \d+\. The same command continues from there\.$", line)
    assert_goes_on(folder, whole)


def test_a_disk_that_is_full_for_one_process(whole: Path, tmp_path: Path) -> None:
    victim, folder = chance().randrange(RANKS), tmp_path / "run"
    with begun(folder) as process:
        # What it prints is less than that, and its part of a checkpoint more.
        psutil.Process(process.ranks[victim].pid).rlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        done = process.finish(timeout=60)
    assert done.returncode == 1
    (line,) = told(done)
    assert f"rank {victim}" in line
    assert "cannot write" in line
    assert list((folder / "checkpoints").glob("step-*.json"))  # the last good one is there, and goes on
    assert_goes_on(folder, whole)


def test_a_signal_stops_all_at_one_step(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with begun(folder) as process:
        for rank in range(RANKS):
            process.strike(rank, signal.SIGINT)
        done = process.finish(timeout=60)
    assert done.returncode != 0
    (line,) = told(done)
    assert re.search(r"stopped by SIGINT after step \d+; the last checkpoint is step \d+", line)
    assert_goes_on(folder, whole, ranks=RANKS)


def test_a_loss_that_is_no_number_ends_all(tmp_path: Path) -> None:
    words = [*OPTIONS, "--recipe.lr", "1e20", "--run", str(tmp_path / "run")]
    done = run(SCRIPT, *words, ranks=RANKS)
    assert done.returncode == 1
    (line,) = told(done)
    assert "is not a finite number" in line or "no numbers" in line


def test_a_hung_process_is_named_and_the_run_goes_on(hung: tuple[int, Path, Script], whole: Path) -> None:
    victim, folder, process = hung
    done = process.finish(timeout=60)  # all end, the hung one too
    assert done.returncode != 0
    (line,) = told(done)
    assert f"rank {victim} (block {victim + 1} of 3" in line
    assert "has given no sign of life for 5 s" in line
    assert_goes_on(folder, whole)
