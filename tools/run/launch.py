"""This module makes an Accelerator from a few options: device, precision, processes, threads, trackers."""

import ctypes
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    LoggerType,
    broadcast_object_list,
)

from tools.failures import RunFailed
from tools.mistake import Mistake
from tools.options.config import check_choice, flag, flatten, message_of

_Result = TypeVar("_Result")

# A collective waits this long for a rank that is alive but silent. gloo notices at once when a rank dies;
# with NCCL, the launcher ends the other ranks.
SILENCE = timedelta(minutes=10)

MIXED = ("bf16", "fp16")
"""These precisions are mixed ones."""


def launch(
    *, device: str, precision: str, threads: int, trackers: tuple[str, ...], folder: Path
) -> Accelerator:
    """Make an Accelerator for this process, which is one of those that the launcher started."""
    _check_trackers(trackers)
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise Mistake("device", "this machine has no CUDA device", "use `device` cpu or auto")
    cpu = device == "cpu" or not available
    if cpu and precision == "fp16":
        raise Mistake("precision", "fp16 needs a CUDA device", "use bf16 or fp32 on CPU")
    if cpu:
        torch.set_num_threads(threads or _fair_share_of_cores())
        _keep_freed_memory()
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=precision if precision in MIXED else "no",
            log_with=list(trackers) or None,
            project_dir=folder,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[
                # BatchNorm statistics are made equal before they are read; a broadcast each step is waste.
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=SILENCE),
            ],
        )
    except ValueError as error:
        raise Mistake("precision", str(error)) from None
    return accelerator


def unheard(precision: str, num_processes: int, variables: Mapping[str, str]) -> list[str]:
    """Return the wishes of `accelerate launch` that do not come true, each with its cure.

    The launcher passes on its options as environment variables. Where it starts a single process it sets
    ACCELERATE_USE_CPU. If it was asked for several processes, it also sets an address for them to meet at.
    """
    notes = []
    if num_processes == 1 and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= set(variables):
        notes.append(
            "one process does all the work, though accelerate launch prepared for several (MASTER_ADDR is "
            "set): with --cpu, or without two GPUs and --multi_gpu, it starts one, whatever --num_processes "
            f"says. Give it --multi_gpu --num_processes N; on CPU, give the script {flag('device')} cpu as "
            "well"
        )
    wanted = variables.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted not in ("no", precision):
        cure = wanted if wanted in MIXED else " or ".join(MIXED)
        notes.append(
            f"--mixed_precision {wanted} of accelerate launch is not looked at: {flag('precision')} decides, "
            f"and is {precision}; give the script {flag('precision')} {cure} for mixed precision"
        )
    return notes


def on_main(accelerator: Accelerator, action: Callable[[], _Result]) -> _Result | None:
    """Run an action on the first process only; if it fails, every process fails."""
    result: _Result | None = None
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            result = action()
        except (ValueError, RunFailed) as error:
            failure = error
        except OSError as error:
            failure = RunFailed(_of_system(error), everyone=True)
    failures = [_plain(failure)]
    if accelerator.num_processes > 1:
        broadcast_object_list(failures)
    if failure:
        raise failure
    if failures[0]:
        raise failures[0]
    return result


def from_main(accelerator: Accelerator, action: Callable[[], _Result]) -> _Result:
    """Run an action on the first process and return its result on all; if it fails, every process fails."""
    results: list[Any] = [on_main(accelerator, action)]
    if accelerator.num_processes > 1:
        broadcast_object_list(results)
    result: _Result = results[0]
    return result


def start_trackers(accelerator: Accelerator, config: Any) -> None:
    """Start the trackers that were asked for, and report all options to them."""
    accelerator.init_trackers("cleave", config={key: str(value) for key, value in flatten(config).items()})


def on_every(action: Callable[[], _Result], control: torch.distributed.ProcessGroup) -> list[_Result]:
    """Run an action on every process and return all results; if one fails, every process fails."""
    outcome: tuple[_Result | None, str] = (None, "")
    try:
        outcome = (action(), "")
    except (ValueError, RunFailed) as error:
        outcome = (None, message_of(error))
    except OSError as error:
        outcome = (None, _of_system(error))
    outcomes: list[Any] = [None] * torch.distributed.get_world_size(control)
    torch.distributed.all_gather_object(outcomes, outcome, group=control)
    for rank, (_, failure) in enumerate(outcomes):
        if failure:
            raise RunFailed(f"rank {rank}: {failure}", everyone=True)
    return [result for result, _ in outcomes]


def _of_system(error: OSError) -> str:
    """Return the system's complaint, with the file that it is about; a broken pipe has none."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def _plain(failure: Exception | None) -> Exception | None:
    """Return a failure in a form that can be sent to the other processes, which then fail alike."""
    if failure is None or isinstance(failure, Mistake):
        return failure
    if isinstance(failure, RunFailed):
        return RunFailed(str(failure), everyone=True)
    return ValueError(str(failure))


def _check_trackers(trackers: tuple[str, ...]) -> None:
    known = [str(tracker) for tracker in LoggerType]
    installed = [str(tracker) for tracker in get_available_trackers()]
    for tracker in trackers:
        check_choice("trackers", tracker, known)
        if tracker not in installed and tracker != "all":
            raise Mistake("trackers", f"the package of {tracker} is not installed")


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees: the next step then needs no fresh pages and is 5 % faster.

    Without glibc, nothing else is lost.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # the names in malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
        mallopt(top_pad, 64 << 20)


def _fair_share_of_cores() -> int:
    """Return this process's share of the cores that the ranks on this machine may use.

    Launchers set OMP_NUM_THREADS=1 by default, which would leave the other cores idle.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
