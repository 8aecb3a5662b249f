"""This module runs the real scripts in real processes, as a user does."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import safetensors.torch
from torch import Tensor

from tests.forked import Script
from tools.run.meters import read_metrics

Running = subprocess.Popen[str] | Script

SMALL = [
    *("--device", "cpu", "--threads", "1", "--data.image-size", "16"),
    *("--data.train-size", "640", "--data.test-size", "100", "--data.validation", "0.2"),
    *("--recipe.batch-size", "32", "--recipe.log-every", "5"),
]


def command(script: str, *arguments: str, ranks: int = 1) -> list[str]:
    """Return the command line that runs a script on some ranks."""
    if ranks == 1:
        return [sys.executable, script, *arguments]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launcher += ["--num_processes", str(ranks), "--num_machines", "1", "--mixed_precision", "no"]
    return [*launcher, "--dynamo_backend", "no", "--main_process_port", "0", script, *arguments]


def start(line: Sequence[str]) -> Script:
    """Start a command as a fork that need not import torch; the output is read by `finish`."""
    assert line[0] == sys.executable
    return Script(*line[1:])


def finish(process: Running, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """Wait for a started command, which does not outlive the wait."""
    if isinstance(process, Script):
        with process:
            return process.finish(timeout)
    try:
        out, error = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        for one in psutil.Process(process.pid).children(recursive=True):
            one.kill()
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def ranks_of(process: Running) -> list[psutil.Process]:
    """Return the processes that a launcher has started, in the order of their ranks."""
    return sorted(psutil.Process(process.pid).children(), key=lambda rank: rank.pid)


def wait_for_step(folder: Path, step: int, process: Running) -> None:
    """Wait until the run has written metrics of a step."""
    wait_until(lambda: _last_step(folder) >= step, process)


def wait_until(met: Callable[[], bool], process: Running, timeout: float = 120) -> None:
    """Wait for a condition while a command runs; if the command ends early, fail and show its output."""
    deadline = time.monotonic() + timeout
    while not met():
        if process.poll() is not None:
            raise AssertionError(f"ended early: {finish(process)}")
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def weights(folder: Path, name: str = "weights.safetensors") -> dict[str, Tensor]:
    """Return the tensors of a run's weights file."""
    return safetensors.torch.load_file(folder / name)


def chance() -> random.Random:
    """Return a generator with a random seed, and print the seed so that a failure can be repeated."""
    seed = int.from_bytes(os.urandom(4), "little")
    print("chance seed", seed)
    return random.Random(seed)


def _last_step(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return int(lines[-1]["step"]) if lines else 0
