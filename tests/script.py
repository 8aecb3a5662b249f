"""Runs the real scripts in real processes, as a user does."""

import os
import random
import signal
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
    """The command line that runs a script on so many ranks."""
    if ranks == 1:
        return [sys.executable, script, *arguments]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launcher += ["--num_processes", str(ranks), "--num_machines", "1", "--mixed_precision", "no"]
    return [*launcher, "--dynamo_backend", "no", "--main_process_port", "0", script, *arguments]


def start(line: Sequence[str], limit_file_bytes: int = 0) -> subprocess.Popen[str]:
    """Start a command; the output is read by `finish`."""
    if limit_file_bytes:
        line = ["prlimit", f"--fsize={limit_file_bytes}", "--", *line]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """Wait for a started command, which does not outlive the wait."""
    try:
        out, error = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        for one in psutil.Process(process.pid).children(recursive=True):
            one.kill()
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def run(script: str, *arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    return finish(start(command(script, *arguments, ranks=ranks)))


def ranks_of(process: subprocess.Popen[str], script: str) -> list[psutil.Process]:
    """The processes under a launcher that run the script."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if script in child.cmdline() and "--multi_gpu" not in child.cmdline()]


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL for a launcher and all it started, as when a machine goes down."""
    doomed = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in doomed:
        one.send_signal(signal.SIGKILL)
    psutil.wait_procs(doomed[:-1], timeout=20)
    finish(process)


def wait_for_step(folder: Path, step: int, process: Running) -> None:
    """Wait until the run has written metrics of a step."""
    wait_until(lambda: _last_step(folder) >= step, process)


def wait_until(met: Callable[[], bool], process: Running, timeout: float = 120) -> None:
    """Wait for a condition while a command runs; its early end is a failure that shows what it said."""
    deadline = time.monotonic() + timeout
    while not met():
        if process.poll() is not None:
            said = finish(process) if isinstance(process, subprocess.Popen) else process.finish()
            raise AssertionError(f"ended early: {said}")
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def weights(folder: Path, name: str = "weights.safetensors") -> dict[str, Tensor]:
    """The tensors of a run's weights file."""
    return safetensors.torch.load_file(folder / name)


def chance() -> random.Random:
    """Real chance, printed so that a failure can be repeated."""
    seed = int.from_bytes(os.urandom(4), "little")
    print("chance seed", seed)
    return random.Random(seed)


def _last_step(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return int(lines[-1]["step"]) if lines else 0
