"""This module carries weights of later layers down to processes that have copies of them in their heads."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from local_learning.later.refresh import Way
from retrain.placing.placement import PipelineStage, Placement
from tools.run.launch import SILENCE


class ProcessPost:
    """A `ProcessPost` sends from the first process of a stage to every process of another one.

    All processes make theirs at the same time.
    """

    def __init__(
        self,
        placement: Placement,
        rank: int,
        dtype: torch.dtype,
        waiting: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._placement, self._rank, self._dtype, self._waiting = placement, rank, dtype, waiting
        self._group = torch.distributed.new_group(backend="gloo", timeout=SILENCE)
        self._sent: dict[Way, tuple[list[Any], Tensor]] = {}
        self._expected: dict[Way, tuple[Any, Tensor]] = {}

    def send(self, way: Way, values: Tensor) -> None:
        """Send values on their way; wait only if those of the last time are not there yet."""
        if self._rank != self._stage(way.source).ranks.start:
            return
        for work in self._sent.pop(way, ([], values))[0]:
            self._finish(work)
        ranks = self._stage(way.head).ranks
        works = [torch.distributed.isend(values, rank, self._group, self._tag(way)) for rank in ranks]
        self._sent[way] = works, values

    def expect(self, way: Way, size: int) -> None:
        """Make ready for values of this size."""
        values = torch.empty(size, dtype=self._dtype)
        source = self._stage(way.source).ranks.start
        self._expected[way] = torch.distributed.irecv(values, source, self._group, self._tag(way)), values

    def collect(self, way: Way) -> Tensor:
        """Return the values that were expected last, as soon as they are here."""
        work, values = self._expected.pop(way)
        self._finish(work)
        return values

    def _finish(self, work: Any) -> None:
        with self._waiting():
            work.wait()

    def _stage(self, block: int) -> PipelineStage:
        return next(stage for stage in self._placement.stages if block in stage.blocks)

    def _tag(self, way: Way) -> int:
        return way.source * self._placement.num_blocks + way.head
