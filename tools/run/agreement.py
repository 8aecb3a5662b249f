"""What the processes of a run tell each other now and then: a wish to stop, a failure, what was measured.

Processes that go in step hear the answer at once. Those of a pipeline are not at the same step at the same
time, and waiting for the last one would empty it: they ask at one meeting and hear at a later one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Meeting:
    """What was asked after a step; the answers are there once it is concluded."""

    step: int
    votes: tuple[float, ...]
    """The largest of all processes' votes."""
    means: dict[str, float]
    """The mean of each value over the processes that measured it."""
    pace: float = 0.0
    """This process's own seconds per step."""


class Agreement:
    """Meetings, in the order in which they were called; every process calls the same ones."""

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
        """Ask all processes; `counts` names all that is measured, with the number of processes that do so."""
        told = torch.stack(
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
            works.append(self._reduce(told, torch.distributed.ReduceOp.MAX))
            if shares:
                works.append(self._reduce(values, torch.distributed.ReduceOp.SUM))
        meeting = Meeting(step, (), {})
        self._open.append((meeting, told, values, list(counts), works))
        return meeting

    def concluded(self, up_to: int) -> Iterator[Meeting]:
        """The meetings up to that of a step, whose answers are to be heard now."""
        while self._open and self._open[0][0].step <= up_to:
            meeting, told, values, names, works = self._open.pop(0)
            for work in works:
                work.wait()
            meeting.votes = tuple(told.tolist())
            meeting.means = dict(zip(names, values.tolist(), strict=True))
            yield meeting

    def _reduce(self, values: Tensor, how: Any) -> Any:
        return torch.distributed.all_reduce(values, how, group=self._control, async_op=True)
