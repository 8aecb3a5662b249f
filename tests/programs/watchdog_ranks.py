"""One rank of a ring that hands a tensor on and on, under watch; the arguments say what goes wrong where.

Each rank writes its process and how far it is to a file, so that a test knows when and whom to strike. The
watchdog beats and waits in half its time here.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed

from tools.failures import RunFailed
from tools.options.command import main
from tools.run import watchdog as hurried
from tools.run.signals import waiting_signals
from tools.run.watchdog import Watchdog

hurried.BEAT, hurried.LINGER = hurried.BEAT / 2, hurried.LINGER / 2


@dataclass(frozen=True)
class Config:
    """Where to write, how long to go on, and who has which mishap."""

    folder: str = ""
    steps: int = 1_000_000
    patience: float = 3.0
    mishap: str = ""
    unlucky: int = -1


def run(config: Config) -> None:
    torch.distributed.init_process_group("gloo")
    rank, ranks, folder = (
        torch.distributed.get_rank(),
        torch.distributed.get_world_size(),
        Path(config.folder),
    )
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    threads = set(threading.enumerate())
    with (
        waiting_signals(),
        Watchdog(
            describe=lambda rank: f"block {rank + 1} of {ranks}",
            last_good=lambda: "the last checkpoint is step 10",
            patience=config.patience,
        ) as watchdog,
    ):
        for step in range(config.steps):
            watchdog.note(step)
            time.sleep(0.05)
            if step == 8 and config.unlucky in (rank, ranks):
                go_wrong(config.mishap, rank)
            try:
                hand_on(watchdog, rank, ranks)
            except RuntimeError as error:
                raise RunFailed(watchdog.explain(error, (rank - 1) % ranks)) from error
            (folder / f"step-{rank}").write_text(str(step))
    assert set(threading.enumerate()) == threads
    torch.distributed.destroy_process_group()


def go_wrong(mishap: str, rank: int) -> None:
    if mishap == "error":
        raise RunFailed("the disk is full")
    if mishap == "late":
        time.sleep(rank)
        raise RunFailed("the loss is not a finite number", everyone=True)
    while mishap == "stuck":
        time.sleep(0.1)


def hand_on(watchdog: Watchdog, rank: int, ranks: int) -> None:
    """Rank 0 begins; the round is over when the tensor is back there."""
    tensor = torch.zeros(4)
    with watchdog.waiting():
        if rank == 0:
            torch.distributed.send(tensor, 1)
            torch.distributed.recv(tensor, ranks - 1)
        else:
            torch.distributed.recv(tensor, rank - 1)
            torch.distributed.send(tensor, (rank + 1) % ranks)


if __name__ == "__main__":
    main(Config, run, __doc__)
