"""This module lets a run's processes share news now and then: a wish to stop, a failure, measured values.

Processes that run in step receive the answer at once. The processes of a pipeline are at different steps at
any one time, and waiting for the last one would empty the pipeline. So they post a question at one step and
read the answer at a later one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Meeting:
    """A `Meeting` is what the processes share after one step; its answers are there once it is concluded."""

    step: int
    votes: tuple[float, ...]
    """For each vote, this is the largest value over all processes."""
    means: dict[str, float]
    """For each name, this is the mean over the processes that measured it."""
    pace: float = 0.0
    """This process takes so many seconds per step."""


class Agreement:
    """An `Agreement` holds meetings in the order of their calls; every process calls the same ones."""

    def __init__(self, device: torch.device, control: torch.distributed.ProcessGroup | None) -> None:
        self._control = control
        self._device = torch.device("cpu") if control else device
        self._alone = not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1
        self._open: list[tuple[Meeting, Tensor, Tensor, list[str], list[Any]]] = []

    def call(
        self,
        step: int,
        votes: Sequence[Tensor | float],
        means: Mapping[str, Tensor],
        counts: Mapping[str, int],
    ) -> Meeting:
        """Start a meeting of all processes.

        Arguments:
            step: The step after which the meeting is held.
            votes: This process's votes; the largest of all processes counts.
            means: The values that this process measured.
            counts: The names of all values, each with the number of processes that measure it.
        """
        ballot = torch.stack(
            [torch.as_tensor(vote, device=self._device, dtype=torch.float64) for vote in votes]
        )
        shares = [
            means[name].to(self._device, torch.float64) / count
            if name in means
            else torch.zeros((), dtype=torch.float64, device=self._device)
            for name, count in counts.items()
        ]
        values = torch.stack(shares) if shares else torch.zeros(0, dtype=torch.float64, device=self._device)
        works = []
        if not self._alone:
            works.append(self._reduce(ballot, torch.distributed.ReduceOp.MAX))
            if shares:
                works.append(self._reduce(values, torch.distributed.ReduceOp.SUM))
        meeting = Meeting(step, (), {})
        self._open.append((meeting, ballot, values, list(counts), works))
        return meeting

    def concluded(self, up_to: int) -> Iterator[Meeting]:
        """Conclude and return the meetings up to that of a step, waiting for their answers."""
        while self._open and self._open[0][0].step <= up_to:
            meeting, ballot, values, names, works = self._open.pop(0)
            for work in works:
                work.wait()
            meeting.votes = tuple(ballot.tolist())
            meeting.means = dict(zip(names, values.tolist(), strict=True))
            yield meeting

    def _reduce(self, values: Tensor, how: Any) -> Any:
        return torch.distributed.all_reduce(values, how, group=self._control, async_op=True)
