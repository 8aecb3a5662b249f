"""This module says which blocks or neuron groups a process trains, and with which other processes."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator

from retrain.placing.placement import Placement
from tools.run.launch import SILENCE


@dataclass(frozen=True)
class Role:
    """A `Role` is shared by processes that train the same blocks, each on its rows or its neuron group."""

    own: range
    """These blocks, counted from 0, are trained by the role's processes."""
    copies: int = 1
    """This many processes share the rows of a batch."""
    copy: int = 0
    """This process is the one of this number among them."""
    group: torch.distributed.ProcessGroup | None = None
    """This group holds the role's processes alone; None means all processes, or a single one."""
    control: torch.distributed.ProcessGroup | None = None
    """This group holds all processes, with a CPU backend; it is None if every process has all blocks."""
    groups: int = 1
    """The first of the blocks is split into this many neuron groups, one for each process."""
    place: int = 0
    """This process has the neuron group of this number."""
    cpu_group: torch.distributed.ProcessGroup | None = None
    """This group holds the processes with these neuron groups, with a backend that works on CPU."""

    @property
    def is_part(self) -> bool:
        """Return whether other processes have other blocks."""
        return self.control is not None

    @property
    def speaks(self) -> bool:
        """Return whether this process acts for the role, where one process does."""
        return self.copy == 0 and self.place == 0


def whole_role(num_blocks: int, accelerator: Accelerator) -> Role:
    """Return the role in which every process trains all blocks."""
    return Role(range(num_blocks), accelerator.num_processes, accelerator.process_index)


def role_of(placement: Placement, accelerator: Accelerator) -> Role:
    """Return this process's role; all processes must call this, because it makes their process groups."""
    control = torch.distributed.new_group(backend="gloo", timeout=SILENCE)
    role = None
    for stage in placement.stages:
        # Every process takes part in making every group, also of a stage that is not its own.
        ranks, split = list(stage.ranks), stage.groups > 1
        group = torch.distributed.new_group(ranks, timeout=SILENCE) if len(ranks) > 1 else None
        cpu_group = torch.distributed.new_group(ranks, backend="gloo", timeout=SILENCE) if split else None
        if accelerator.process_index in stage.ranks:
            place = accelerator.process_index - stage.ranks.start
            if split:
                own = stage.blocks if place == 0 else stage.blocks[:1]
                role = Role(
                    own, group=group, control=control, groups=stage.groups, place=place, cpu_group=cpu_group
                )
            else:
                role = Role(stage.blocks, stage.copies, place, group, control)
    assert role is not None, "a placement has a stage for every process"
    return role
