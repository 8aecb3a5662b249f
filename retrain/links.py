"""A process's ties to those that have the blocks below and above its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from local_learning.rules.engine import Part
from retrain.crossing import Inlet, Outlet, Peer, Traffic, peers
from retrain.placement import Placement, Stage
from tools.launch import SILENCE
from tools.vigil import Vigil


class Links:
    """Activations go up, with the labels; what some rules hand down goes down; images of an evaluation go up.

    Made on all processes at once.
    """

    def __init__(
        self,
        placement: Placement,
        rank: int,
        batch_size: int,
        *,
        parts: int,
        queue: int,
        rounded: bool,
        with_images: bool,
        vigil: Vigil,
    ) -> None:
        """`batch_size`: images of all processes in a batch, which comes in so many `parts`, each a message;
        `with_images`: blocks above want them too."""
        batch_size //= parts
        self.traffic, self.waiting, self._vigil, self._step = Traffic(vigil.waiting), vigil.waiting, vigil, 0
        self._with_images = with_images
        index = placement.stage_of(rank)
        own = placement.stages[index]
        below = placement.stages[index - 1] if index else None
        above = placement.stages[index + 1] if index + 1 < len(placement.stages) else None
        copy = rank - own.ranks.start
        # Both ways over one communicator of NCCL's would wait for each other.
        up, down = (torch.distributed.new_group(timeout=SILENCE) for _ in range(2))
        # A receive of NCCL's that is posted ahead is a kernel, and holds up whatever waits for the device.
        ahead = 0 if torch.distributed.get_backend(up) == "nccl" else queue
        self._from_below = self._to_below = self._from_above = self._to_above = None
        if below:
            of = peers(own, copy, below, batch_size)
            self._from_below = Inlet(of, self.traffic, up, ahead=ahead, counted=True)
            # A step's signals are taken in the next one: all its parts must be able to be under way.
            self._to_below = Outlet(of, self.traffic, down, limit=max(queue, parts))
        if above:
            to = peers(own, copy, above, batch_size)
            self._to_above = Outlet(to, self.traffic, up, limit=queue, rounded=rounded)
            self._from_above = Inlet(to, self.traffic, down, ahead=0)
        self.pipes = min(stage.copies for stage in placement.stages)
        """So many evaluations run side by side, each through one copy of every stage."""
        self.pipe = copy
        self._evaluated_below = self._evaluated_above = None
        if below and copy < self.pipes:
            of = _pipe(copy, below)
            self._evaluated_below = Inlet(of, self.traffic, up, ahead=0, described=True)
        if above and copy < self.pipes:
            to = _pipe(copy, above)
            self._evaluated_above = Outlet(to, self.traffic, up, limit=2, described=True)

    def begin(self, step: int) -> None:
        """Let the others know that this process gets on."""
        self._step = step
        self._vigil.note(step)

    def take_parts(self, count: int, coming: int) -> list[Part]:
        """The parts of the next batch from below; of `coming` more steps, this one included, it is certain
        that they come."""
        assert self._from_below is not None
        parts = []
        for number in range(count):
            features, targets, *images = self._from_below.receive(coming * count - number)
            seen = images[0] if images else features.new_zeros(0)
            parts.append(Part(seen, targets, targets.new_zeros(0), features))
        return parts

    def hand_up(self, outputs: Tensor, part: Part) -> None:
        assert self._to_above is not None
        self._to_above.send([outputs, part.targets, *([part.images] if self._with_images else [])])

    def hand_down(self, tensor: Tensor) -> None:
        assert self._to_below is not None
        self._to_below.send([tensor])

    def from_above(self) -> Tensor:
        assert self._from_above is not None
        (tensor,) = self._from_above.receive()
        return tensor

    def pass_evaluated(self, tensors: Sequence[Tensor]) -> None:
        """Send a batch of an evaluation on; none: that was all."""
        self._vigil.note(self._step)
        if self._evaluated_above and tensors:
            self._evaluated_above.send(tensors)
        elif self._evaluated_above:
            self._evaluated_above.end()

    def take_evaluated(self) -> list[Tensor]:
        """The next batch of an evaluation from below; nothing after the last."""
        self._vigil.note(self._step)
        return self._evaluated_below.receive() if self._evaluated_below else []


def _pipe(copy: int, other: Stage) -> list[Peer]:
    return [Peer(other.ranks.start + copy, slice(None))]
