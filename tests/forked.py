"""This module runs scripts as `tests.script` does, in processes that need not wait for torch.

Each process is a fork of one that has imported torch. Several ranks find each other as under torchrun.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

from tests.forking import be_program, begin_by_forks, server_by_fork

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.warm"])


def warm_up() -> None:
    """Start the server of forks as a fork of this process, and of what it has imported."""
    with server_by_fork():
        multiprocessing.forkserver.ensure_running()


class Script:
    """A `Script` is a script that runs on some ranks; none of them outlives the `with` block.

    It sends itself `signum` when it comes to the file that `deadly` names as `run_up_to` says.
    """

    def __init__(
        self,
        *words: str,
        ranks: int = 1,
        deadly: str = "",
        signum: int = signal.SIGKILL,
        limit_file_bytes: int = 0,
    ) -> None:
        self.words = words
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        for path in self._files:
            path.touch()
        self.ranks = [
            FORKS.Process(
                target=_be_script, args=(words, variables, deadly, signum, limit_file_bytes, self._files)
            )
            for variables in _environments(ranks)
        ]
        for process in self.ranks:
            process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        self.kill()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """Return the process of rank 0, or of a launcher."""
        pid = self.ranks[0].pid
        assert pid is not None
        return pid

    @property
    def said(self) -> str:
        """What it has printed up to now."""
        return self._files[0].read_text()

    def poll(self) -> int | None:
        """Return None while a rank runs, and then the exit code of the rank that ended worst."""
        codes = [process.exitcode for process in self.ranks]
        known = [code for code in codes if code is not None]
        if len(known) < len(codes):
            return None
        return next((code for code in known if code < 0), max(known))

    def strike(self, rank: int, signum: int) -> None:
        """Send a signal to a rank."""
        pid = self.ranks[rank].pid
        assert pid is not None
        os.kill(pid, signum)

    def finish(
        self, timeout: float = 500, *, down_with_one: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Wait until all ranks have ended.

        With `down_with_one`, the SIGKILL of one rank kills all of them, as when a machine goes down.
        """
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if down_with_one and -signal.SIGKILL in [process.exitcode for process in self.ranks]:
                self.kill()
            elif time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(self.words, timeout, *map(Path.read_text, self._files))
            running = [process.sentinel for process in self.ranks if process.exitcode is None]
            if running:  # to wait for none of them would be to wait for the whole time
                multiprocessing.connection.wait(running, max(0.0, deadline - time.monotonic()))
        out, error = map(Path.read_text, self._files)
        return subprocess.CompletedProcess(self.words, code, out, error)

    def kill(self) -> None:
        """Kill all ranks and the processes that they started, as when a machine goes down."""
        alive = [process for process in self.ranks if process.exitcode is None]
        started: list[psutil.Process] = []
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                started += psutil.Process(process.pid).children(recursive=True)
        for each in [*alive, *started]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        for process in alive:
            process.join()
        psutil.wait_procs(started, timeout=20)


def run(script: str, *arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    with Script(script, *arguments, ranks=ranks) as process:
        return process.finish()


def run_up_to(name: str, script: str, *arguments: str, ranks: int = 1) -> None:
    """Run a script and kill it when the file called `name` is complete but has not yet got its name.

    With "<name>:<n>", kill it when that file is opened for appending for the n-th time. All ranks are killed
    with the one that is struck.
    """
    with Script(script, *arguments, ranks=ranks, deadly=name) as process:
        done = process.finish(down_with_one=True)
    assert done.returncode == -signal.SIGKILL, f"not killed: {done}"


def _environments(ranks: int) -> list[dict[str, str]]:
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _be_script(
    words: Sequence[str],
    environment: Mapping[str, str],
    deadly: str,
    signum: int,
    limit_file_bytes: int,
    files: list[Path],
) -> None:
    name, _, times = deadly.partition(":")
    left, pid = int(times or 0), os.getpid()

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if os.getpid() != pid:
            return  # workers of the script are not struck
        if times and event == "open" and "a" in str(arguments[1]) and Path(str(arguments[0])).name == name:
            left -= 1
        renamed = not times and event == "os.rename" and Path(arguments[1]).name == name
        if renamed or (times and left == 0):
            left = -1  # os.kill is an event too
            os.kill(pid, signum)

    for path, stream in zip(files, (sys.stdout, sys.stderr), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    if limit_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_file_bytes, limit_file_bytes))
    if deadly:
        sys.addaudithook(on_event)
    multiprocessing.set_start_method(None, force=True)  # the script's own workers are made as always
    if environment:  # begun by a rank, the server of forks could not be a fork itself
        begin_by_forks()
        multiprocessing.forkserver.ensure_running()
    os.environ.update(environment)
    begin_by_forks()
    be_program(words)
