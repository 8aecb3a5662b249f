"""This job, on which the training loop works, trains a supernet."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from supernet.strategies import TailTraining
from supernet.strategy import Strategy
from supernet.train.config import SupernetConfig
from supernet.train.records import Records, peak_memory, shift_metrics
from supernet.train.shift import Shift
from tools.batchnorm import SharedBatchNorm
from tools.cost import saved_activation_bytes
from tools.images.loaders import Batch
from tools.optim import make_schedule


class SupernetTraining:
    """This job takes a strategy's steps, and then perhaps those of the tail alone.

    It also evaluates the supernet, and saves the state of both.
    """

    def __init__(
        self,
        strategy: Strategy,
        tail: TailTraining | None,
        config: SupernetConfig,
        accelerator: Accelerator,
        *,
        num_steps: int,
        records: Records,
        keep: Callable[[int, float], None],
        note: Callable[[int, Shift | None], None],
    ) -> None:
        self.strategy, self._tail = strategy, tail
        self._config, self._accelerator, self._num_steps = config, accelerator, num_steps
        self._records, self._keep, self._note = records, keep, note
        several = accelerator.num_processes > 1
        self._shares = several and config.sync_batchnorm
        self._dtype = next(strategy.net.parameters()).dtype
        recipe = config.recipe
        self._schedules = [make_schedule(recipe, optimizer, num_steps) for optimizer in strategy.optimizers]
        if tail is not None:
            self._tail_schedule = make_schedule(recipe, tail.optimizers[0], config.tail_steps)
        self._saved: list[int] = []
        self._done = 0
        self.peak = 0
        """The most bytes that training held at any evaluation so far."""

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Take one step on this process's rows of the batch."""
        self._done = step + 1
        self.strategy.net.train()
        images = batch.images.to(self._dtype)
        with SharedBatchNorm() if self._shares else contextlib.nullcontext():
            if step >= self._num_steps:
                assert self._tail is not None
                self._tail_schedule.step_update(step - self._num_steps)
                return self._tail.step(images, batch.targets, step)
            for schedule in self._schedules:
                schedule.step_update(step)
            if self._config.compile or step % self._config.recipe.log_every:
                return self.strategy.step(images, batch.targets, step)
            losses: list[Mapping[str, Tensor]] = []
            work = self.strategy.step
            saved = saved_activation_bytes(
                lambda: losses.append(work(images, batch.targets, step)), leaves=True
            )
        self._saved.append(saved)
        return losses[0]

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step >= self._num_steps and self._tail is not None:
            self._tail_schedule.step_update(step - self._num_steps)
            return float(self._tail.optimizers[0].param_groups[0]["lr"])
        self._schedules[-1].step_update(step)
        return float(self.strategy.optimizers[-1].param_groups[0]["lr"])

    def evaluate(self) -> Mapping[str, float]:
        """Evaluate probes, shift and memory; the score is the probes' mean top-1, once there is one."""
        self._share_buffers()
        device = self._accelerator.device
        self.peak = max(self.peak, peak_memory(device))  # the training's, before the evaluation adds its own
        values: dict[str, float] = {}
        score = -torch.inf
        if self._tail is None or self._done > self._num_steps:
            values = self._records.accuracies(self.strategy.net)
            score = values["validation_top1"]
        shift = self._records.shift(self.strategy.net) if self._records.compares else None
        if shift is not None:
            values |= shift_metrics(shift)
        if self._accelerator.is_main_process:
            self._note(self._done, shift)
        if self._saved:
            values["saved_mib"] = sum(self._saved) / len(self._saved) / 2**20
        values["peak_memory_mib"] = self.peak / 2**20
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        return values | {"score": score}

    def keep_best(self, step: int, score: float) -> None:
        """Write the supernet as the best so far."""
        self._keep(step, score)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on, and what the records have gathered."""
        self._share_buffers()
        scaler = self._accelerator.scaler
        return {
            "strategy": self.strategy.state_dict(),
            "tail": [optimizer.state_dict() for optimizer in self._tail.optimizers] if self._tail else [],
            "scaler": scaler.state_dict() if scaler else {},
            "saved": list(self._saved),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a saved state."""
        self.strategy.load_state_dict(state["strategy"])
        if self._tail:
            for optimizer, saved in zip(self._tail.optimizers, state["tail"], strict=True):
                optimizer.load_state_dict(saved)
        if self._accelerator.scaler:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self._saved = list(state["saved"])

    @property
    def saved_bytes(self) -> float | None:
        """What autograd kept at the peak of a step, as a mean over the steps that were measured."""
        return sum(self._saved) / len(self._saved) if self._saved else None

    def _share_buffers(self) -> None:
        """Give all processes the BatchNorm statistics of the first one, where each kept its own."""
        if self._accelerator.num_processes > 1:
            for buffer in self.strategy.net.buffers():
                torch.distributed.broadcast(buffer, 0)
