"""Neuron groups of one block, each on a process of its own: what they tell each other at every step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrain.pipeline.role import Role
from retrain.pipeline.transfers import Traffic


class GroupExchange:
    """What a process hears from those with the other groups: a `local_learning.slices.Exchange` of slices,
    and of logits."""

    def __init__(self, role: Role, traffic: Traffic) -> None:
        self._role, self._traffic = role, traffic

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled code waits for nobody
    def __call__(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """The tensors of all groups; the own one as it is."""
        role = self._role
        dense = own.movedim(1, -1).contiguous()
        found = [
            dense if place == role.place else dense.new_empty(*dense.shape[:-1], chs)
            for place, chs in enumerate(sizes)
        ]
        # A gathering would want all slices of one size.
        works = [
            torch.distributed.broadcast(each, group=role.group, async_op=True, group_src=place)
            for place, each in enumerate(found)
        ]
        self._traffic.wait(works)
        return [own if place == role.place else each.movedim(-1, 1) for place, each in enumerate(found)]

    def __deepcopy__(self, memo: dict[int, Any]) -> "GroupExchange":
        return self  # an averaged network has the same others
