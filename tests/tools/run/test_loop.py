"""A signal is heeded when what its step owes is done: the next start does not make the step again."""

import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from tools.failures import Interrupted
from tools.run.folder import Run
from tools.run.loop import Loop
from tools.run.meters import read_metrics
from tools.run.plan import Plan


class Counting:
    """A job that counts, and sends its process a signal in the midst of one step."""

    def __init__(self, signal_at: int = -1) -> None:
        self.count, self.signal_at = torch.zeros(()), signal_at

    def step(self, batch: int, step: int) -> Mapping[str, Tensor]:
        self.count += batch
        if step == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": self.count.clone()}

    def rate(self, step: int) -> float:
        return 1.0

    def evaluate(self) -> Mapping[str, float]:
        return {"validation_count": float(self.count), "score": float(self.count)}

    def keep_best(self, step: int, score: float) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


def batches(start: int, stop: int) -> Iterable[int]:
    return range(start, stop)


def train(folder: Path, job: Counting) -> None:
    folder.mkdir(exist_ok=True)
    plan = Plan(
        num_steps=10,
        images_per_step=1,
        evaluate_every=5,
        checkpoint_every=100,
        log_every=5,
        seed=0,
        identity={},
    )
    Loop(job, plan, Run(folder), Accelerator(cpu=True)).run(batches)


def lines(folder: Path) -> list[dict[str, Any]]:
    timed = ("images_per_second",)
    return [
        {k: v for k, v in line.items() if k not in timed} for line in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize("step", [2, 4, 9])
def test_a_signal_costs_no_line_of_metrics(tmp_path: Path, step: int) -> None:
    train(tmp_path / "whole", Counting())
    with pytest.raises(
        Interrupted, match=f"stopped by SIGTERM after step {step + 1}; the last checkpoint is"
    ):
        train(tmp_path / "cut", Counting(signal_at=step))
    train(tmp_path / "cut", Counting())
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert len(lines(tmp_path / "whole")) == 4
