"""This module exchanges slices at every step among the neuron groups of one block, on a process each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrain.pipeline.role import Role
from retrain.pipeline.transfers import Traffic


class GroupExchange:
    """A `GroupExchange` gets slices and logits from the processes that have the other groups.

    It is a `local_learning.slices.Exchange`."""

    def __init__(self, role: Role, traffic: Traffic) -> None:
        self._role, self._traffic = role, traffic

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled code waits for nobody
    def __call__(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Return the tensors of all groups; the own one is returned as it is."""
        role = self._role
        dense = own.movedim(1, -1).contiguous()
        slices = [
            dense if place == role.place else dense.new_empty(*dense.shape[:-1], chs)
            for place, chs in enumerate(sizes)
        ]
        # all_gather needs slices of one size.
        works = [
            torch.distributed.broadcast(tensor, group=role.group, async_op=True, group_src=place)
            for place, tensor in enumerate(slices)
        ]
        self._traffic.wait(works)
        return [own if place == role.place else tensor.movedim(-1, 1) for place, tensor in enumerate(slices)]

    def __deepcopy__(self, memo: dict[int, Any]) -> "GroupExchange":
        return self  # an averaged network exchanges with the same processes
