"""Where a process stands among the others: the blocks or neuron groups that it trains, and with whom."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator

from retrain.placing.placement import Placement
from tools.run.launch import SILENCE


@dataclass(frozen=True)
class Role:
    """The processes that train the same blocks, each on its rows of every batch, or one neuron group each."""

    own: range
    """The blocks, counted from 0."""
    copies: int = 1
    """How many processes they are."""
    copy: int = 0
    """Which of them this one is."""
    group: torch.distributed.ProcessGroup | None = None
    """They and nobody else; None where they are all there are, or one."""
    control: torch.distributed.ProcessGroup | None = None
    """All processes, by a backend that works on CPU; None where every process has all blocks."""
    groups: int = 1
    """Into so many neuron groups the first of the blocks is split, one for each process."""
    place: int = 0
    """Which of them is here."""
    desk: torch.distributed.ProcessGroup | None = None
    """The processes with these neuron groups, by a backend that works on CPU."""

    @property
    def is_part(self) -> bool:
        """Whether other processes have other blocks."""
        return self.control is not None

    @property
    def speaks(self) -> bool:
        """Whether this process answers for the role, where one does."""
        return self.copy == 0 and self.place == 0


def whole_role(num_blocks: int, accelerator: Accelerator) -> Role:
    """Every process trains all blocks."""
    return Role(range(num_blocks), accelerator.num_processes, accelerator.process_index)


def role_of(placement: Placement, accelerator: Accelerator) -> Role:
    """This process's role; called on all processes, as it makes the groups by which they talk."""
    control = torch.distributed.new_group(backend="gloo", timeout=SILENCE)
    found = None
    for stage in placement.stages:
        # Every process takes part in making every group, its own or not.
        ranks, split = list(stage.ranks), stage.groups > 1
        group = torch.distributed.new_group(ranks, timeout=SILENCE) if len(ranks) > 1 else None
        desk = torch.distributed.new_group(ranks, backend="gloo", timeout=SILENCE) if split else None
        if accelerator.process_index in stage.ranks:
            place = accelerator.process_index - stage.ranks.start
            if split:
                own = stage.blocks if place == 0 else stage.blocks[:1]
                found = Role(own, group=group, control=control, groups=stage.groups, place=place, desk=desk)
            else:
                found = Role(stage.blocks, stage.copies, place, group, control)
    assert found is not None, "a placement has a stage for every process"
    return found
