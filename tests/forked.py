"""Runs scripts as `tests.script` does, in processes that need not wait for torch.

Each is forked from one that has imported it. Several ranks are told of each other as torchrun does it.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "retrain.export.run",
        "retrain.run",
        "retrain.truth.run",
        "search.architectures.run",
        "search.report.run",
        "search.cuts.run",
        "supernet.train.run",
        "torch._dynamo",
        "pytest",
    ]
)


def run(script: str, *arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    return _run([script, *arguments], ranks, "")


def run_up_to(name: str, script: str, *arguments: str, ranks: int = 1) -> None:
    """Run a script until SIGKILL strikes, when all is written of a file called `name` but its name.

    With "<name>:<n>" it strikes when the file is opened to add to it for the n-th time.
    """
    done = _run([script, *arguments], ranks, name)
    assert done.returncode == -signal.SIGKILL, f"not killed: {done}"


def _run(words: list[str], ranks: int, deadly: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder) / "stdout", Path(folder) / "stderr"
        processes = [
            FORKS.Process(target=_be_script, args=(words, variables, deadly, out, error))
            for variables in _environments(ranks)
        ]
        try:
            for process in processes:
                process.start()
            deadline = time.monotonic() + 500
            # With one rank killed the machine is taken to be down.
            while (codes := [process.exitcode for process in processes]).count(None) and not (
                -signal.SIGKILL in codes or time.monotonic() > deadline
            ):
                time.sleep(0.005)
        finally:
            for process in processes:
                process.kill()
                process.join()
        codes = [process.exitcode for process in processes]
        worst = -signal.SIGKILL if -signal.SIGKILL in codes else max(code or 0 for code in codes)
        return subprocess.CompletedProcess(words, worst, out.read_text(), error.read_text())


def _environments(ranks: int) -> list[dict[str, str]]:
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _be_script(words: list[str], environment: Mapping[str, str], deadly: str, out: Path, error: Path) -> None:
    name, _, times = deadly.partition(":")
    left = int(times or 0)

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if times and event == "open" and "a" in str(arguments[1]) and Path(str(arguments[0])).name == name:
            left -= 1
        renamed = not times and event == "os.rename" and Path(arguments[1]).name == name
        if renamed or (times and left == 0):
            left = -1  # os.kill is an event too
            os.kill(os.getpid(), signal.SIGKILL)

    for path, stream in ((out, sys.stdout), (error, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    if deadly:
        sys.addaudithook(on_event)
    multiprocessing.set_start_method(None, force=True)  # the script's own workers are made as always
    os.environ.update(environment)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
