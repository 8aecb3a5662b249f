"""This module is the process that takes one training of a truth after the other, until none is left."""

import fcntl
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Literal, Protocol

import torch

from retrain.config import RetrainConfig
from retrain.run import train_network
from retrain.truth.config import TruthConfig
from retrain.truth.plan import Trial, config_of, folder_of, read_plan, unfinished
from tools.failures import Interrupted, RunFailed, known_cause
from tools.files.atomic import write_bytes
from tools.images.datasets import Data, load_data
from tools.mistake import quoted
from tools.options.command import is_ours
from tools.options.config import flag, to_toml
from tools.options.plugins import load
from tools.run.folder import Run
from tools.run.launch import launch

SECONDS_BETWEEN_CLAIMS = 0.2


@dataclass(frozen=True)
class Begun:
    """A `Begun` reports that a worker has taken a training."""

    trial: Trial


@dataclass(frozen=True)
class Ending:
    """An `Ending` says how a worker ended."""

    kind: Literal["done", "failed", "mistake", "interrupted"]
    message: str = ""
    signum: int = 0


class Sender(Protocol):
    """A `Sender` is the end of a pipe to the process that receives reports."""

    def send(self, obj: object, /) -> None:
        """Send an object."""


def run_worker(config: TruthConfig, environment: Mapping[str, str], sender: Sender) -> None:
    """Train what nobody else trains, and report how it ended; this is the target of a process."""
    _mind_parent()
    # Ctrl-C reaches every process of a terminal; workers notice it in their loop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    # Its data loaders start workers as retrain_model.py does, however this process was started.
    multiprocessing.set_start_method(None, force=True)
    gc.freeze()  # what is imported stays, so collecting after each training need not look through it
    run, current = Run(Path(config.run)), ""
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            load(config.plugins)
            data: Data | None = None
            plan = read_plan(run)
            for trial in _claimed(run, plan.trials):
                current = f"{trial}: "
                sender.send(Begun(trial))
                data = data or load_data(config.images, config.seed)
                _train(config_of(config, run, plan, trial), folder_of(run, trial), data)
                tidy(folder_of(run, trial), keep_weights=config.keep_weights)
        ending = Ending("done")
    except Interrupted as error:
        ending = Ending("interrupted", str(error), error.signum)
    except KeyboardInterrupt:
        ending = Ending("interrupted", "", signal.SIGINT)
    except RunFailed as error:
        crowded = config.jobs > 1 and "out of memory" in str(error)
        fewer = f" Or give fewer {flag('jobs')}." if crowded else ""
        ending = Ending("failed", f"{current}{error}{fewer}")
    except ValueError as error:
        mistake = Ending("mistake", f"{current}{quoted(error)}")
        ending = mistake if is_ours(error) else _unexpected(current, error)
    except Exception as error:
        ending = _unexpected(current, error)
    try:
        sender.send(ending)
    except OSError:  # the process that would receive the report is gone
        sys.exit(1)


def tidy(run: Run, *, keep_weights: bool) -> None:
    """Remove what a finished training no longer needs; the notes of its checkpoints stay as a record."""
    if not run.results_path.exists():
        return
    for path in run.checkpoints.glob("*.pt"):
        path.unlink(missing_ok=True)
    if not keep_weights:
        run.best_weights.unlink(missing_ok=True)
        run.last_weights.unlink(missing_ok=True)


def _claimed(run: Run, trials: Sequence[Trial]) -> Iterator[Trial]:
    """Return trainings, each claimed while the caller works on it, until all are finished."""
    while trials := unfinished(run, trials):
        for trial in trials:
            folder = folder_of(run, trial)
            with _claim(folder) as is_ours:
                if is_ours and not folder.results_path.exists():
                    yield trial
                    break
        else:  # other workers train all that is left; they may still be stopped
            time.sleep(SECONDS_BETWEEN_CLAIMS)


@contextmanager
def _claim(run: Run) -> Iterator[bool]:
    """Hold a training's folder by the lock that every run has; give False if another process holds it."""
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock = (run.path / ".lock").open("a+")
    except OSError as error:
        raise RunFailed(f"cannot write in {run.path}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise RunFailed(
                f"cannot lock {lock.name}: {error.strerror}; workers share their trainings by locks, so that "
                f"{flag('run')} must be on a file system that has them"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield True


def _train(config: RetrainConfig, run: Run, data: Data) -> None:
    """Run one training with its own Accelerator, because half precision's scaler must not know of another."""
    accelerator = launch(
        device=config.device,
        precision=config.precision,
        threads=config.threads,
        trackers=(),
        folder=run.path,
    )
    write_bytes(run.config_path, to_toml(config).encode())
    try:
        train_network(config, run, accelerator, lambda: data)
    except RuntimeError as error:
        cause = known_cause(error, 1)
        if not cause:
            raise
        raise RunFailed(f"{cause}. The same command continues from what was saved.") from error
    accelerator.free_memory()
    if config.compile:
        torch.compiler.reset()


def _unexpected(current: str, error: Exception) -> Ending:
    traceback.print_exc()
    return Ending("failed", f"{current}{type(error).__name__}, see the traceback above")


def _mind_parent() -> None:
    """Stop in order, as after SIGTERM, as soon as the process that started this one is gone."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
