"""This module starts, watches and stops the worker processes of one rank, outside its process group."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.context import ForkServerContext, SpawnContext
from types import TracebackType
from typing import Self

import torch

from retrain.truth.config import TruthConfig
from retrain.truth.worker import Begun, Ending, run_worker
from tools.options.config import flag

GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_")
"""These prefixes are those of the variables by which a launcher makes processes into ranks."""


class Workers:
    """A `Workers` holds a number of worker processes; leaving the context stops those that still work."""

    def __init__(self, config: TruthConfig, size: int, device: torch.device) -> None:
        environment = _environment(config.jobs, device)
        context = _context(device)
        with _as_environment(environment):
            self._workers = [_Worker(context, config, environment) for _ in range(size)]

    @property
    def working(self) -> bool:
        """Return whether any worker still works."""
        return any(worker.ending is None for worker in self._workers)

    @property
    def signum(self) -> int:
        """Return the signal that stopped one of the workers, or 0."""
        return max((worker.ending.signum for worker in self._workers if worker.ending), default=0)

    @property
    def failure(self) -> Ending | None:
        """Return what made one of the workers end early, or None."""
        failed = ("failed", "mistake")
        endings = [worker.ending for worker in self._workers if worker.ending]
        return next((ending for ending in endings if ending.kind in failed), None)

    def look(self, patience: float) -> None:
        """Note what the workers report and which are gone; return after so many seconds at the latest."""
        receivers = [worker.receiver for worker in self._workers if worker.ending is None]
        for receiver in connection.wait(receivers, patience):
            next(worker for worker in self._workers if worker.receiver is receiver).read()

    def stop(self) -> None:
        """Ask all workers to stop, each with a checkpoint of its training, and wait until they have."""
        for worker in self._workers:
            worker.send_signal(signal.SIGTERM)
        try:
            for worker in self._workers:
                worker.process.join()
        except KeyboardInterrupt:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill all workers at once."""
        for worker in self._workers:
            worker.send_signal(signal.SIGKILL)
            worker.process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind and issubclass(kind, KeyboardInterrupt):
            self.kill()
        else:
            self.stop()


class _Worker:
    """A process, the training that it works on, and how it ended."""

    def __init__(
        self, context: ForkServerContext | SpawnContext, config: TruthConfig, environment: dict[str, str]
    ) -> None:
        self.receiver, its_end = context.Pipe(duplex=False)
        self.ending: Ending | None = None
        self._begun = ""
        # Not a daemon, because the streaming loader starts processes of its own.
        self.process = context.Process(target=run_worker, args=(config, environment, its_end))
        self.process.start()
        its_end.close()

    def read(self) -> None:
        """Note the worker's next report, or that it is gone without one."""
        try:
            report = self.receiver.recv()
        except (EOFError, OSError):
            self.process.join()
            self.ending = self._without_a_word(self.process.exitcode or 0)
            return
        if isinstance(report, Begun):
            self._begun = str(report.trial)
        else:
            assert isinstance(report, Ending)
            self.ending = report

    def send_signal(self, signum: signal.Signals) -> None:
        """Send a signal if the worker is alive."""
        if self.process.is_alive():
            assert self.process.pid
            with suppress(ProcessLookupError):  # it may end between the question and the signal
                os.kill(self.process.pid, signum)

    def _without_a_word(self, code: int) -> Ending:
        if -code in (signal.SIGTERM, signal.SIGINT):
            return Ending("interrupted", signum=-code)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        why = (
            f", as the system does when memory runs out (lower {flag('jobs')})"
            if -code == signal.SIGKILL
            else ""
        )
        return Ending(
            "failed",
            f"{self._begun or 'before its first training'}: worker process {self.process.pid} {how}{why}; "
            "the same command continues from what was saved",
        )


def _context(device: torch.device) -> ForkServerContext | SpawnContext:
    """Return how workers are started: on CPU, forked from a process with all imports; CUDA forbids forks."""
    if device.type != "cpu":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["retrain.truth.worker"])
    return context


def _environment(jobs: int, device: torch.device) -> dict[str, str]:
    """Return this process's variables without its rank, with only its device and its share of the cores."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(GROUP)}
    mine["LOCAL_WORLD_SIZE"] = str(jobs * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if device.type == "cuda" and device.index is not None:
        visible = mine.get("CUDA_VISIBLE_DEVICES", "").split(",")
        mine["CUDA_VISIBLE_DEVICES"] = visible[device.index] if visible[0] else str(device.index)
    return mine


@contextmanager
def _as_environment(environment: dict[str, str]) -> Iterator[None]:
    """Start new processes with these variables inside this context."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
