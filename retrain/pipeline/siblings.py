"""Neuron groups of one block, each on a process of its own: what they tell each other at every step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrain.pipeline.crossing import Traffic
from retrain.pipeline.team import Team


class Siblings:
    """What a process hears from those with the other groups: a `local_learning.slices.Exchange` of slices,
    and of logits."""

    def __init__(self, team: Team, traffic: Traffic) -> None:
        self._team, self._traffic = team, traffic

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled code waits for nobody
    def __call__(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """The tensors of all groups; the own one as it is."""
        team = self._team
        dense = own.movedim(1, -1).contiguous()
        found = [
            dense if place == team.place else dense.new_empty(*dense.shape[:-1], chs)
            for place, chs in enumerate(sizes)
        ]
        # A gathering would want all slices of one size.
        works = [
            torch.distributed.broadcast(each, group=team.group, async_op=True, group_src=place)
            for place, each in enumerate(found)
        ]
        self._traffic.wait(works)
        return [own if place == team.place else each.movedim(-1, 1) for place, each in enumerate(found)]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Siblings":
        return self  # an averaged network has the same siblings
