"""This module connects a process with those that have the blocks below and above its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from local_learning.rules.engine import Part
from retrain.pipeline.transfers import Inlet, Outlet, Peer, Traffic, peers
from retrain.placing.placement import PipelineStage, Placement
from tools.run.launch import SILENCE
from tools.run.watchdog import Watchdog


class Neighbours:
    """A `Neighbours` sends activations, labels and evaluation images up, and what some rules send back down.

    If a block has neuron groups, every process of it sends its slice to all processes above, which put the
    slices side by side. Everything else that is sent comes from the first of these processes. All processes
    make their `Neighbours` at the same time.
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
        watchdog: Watchdog,
        channels: slice | None = None,
        described: bool = False,
    ) -> None:
        """Make the connections.

        Arguments:
            placement: Which processes have which blocks.
            rank: This process's rank.
            batch_size: The images of a batch over all processes.
            parts: The number of parts that a batch comes in; each part is a message.
            queue: The number of messages that may be under way.
            rounded: Whether activations are sent in bf16.
            with_images: Whether blocks above need the images too.
            watchdog: The watchdog of all processes.
            channels: The channels of the map that this process sends, if it has one neuron group.
            described: Whether the layout of messages differs, so that each message describes its own.
        """
        batch_size //= parts
        self.traffic, self.waiting, self._watchdog, self._step = (
            Traffic(watchdog.waiting),
            watchdog.waiting,
            watchdog,
            0,
        )
        self._with_images, self._channels = with_images, channels
        index = placement.stage_of(rank)
        own = placement.stages[index]
        below = placement.stages[index - 1] if index else None
        above = placement.stages[index + 1] if index + 1 < len(placement.stages) else None
        self._copy = 0 if own.groups > 1 else rank - own.ranks.start
        self._sends_rest = own.groups == 1 or rank == own.ranks.start
        # Over one NCCL communicator, the two directions would wait for each other.
        up, down = (torch.distributed.new_group(timeout=SILENCE) for _ in range(2))
        # A receive that NCCL posts ahead is a kernel, and blocks everything that waits for the device.
        ahead = 0 if torch.distributed.get_backend(up) == "nccl" else queue
        self._from_below: list[Inlet] = []
        self._to_below = self._from_above = self._to_above = None
        if below:
            of = self._peers(own, below, batch_size)
            self._from_below = [
                Inlet(one, self.traffic, up, ahead=ahead, counted=number == 0, described=described)
                for number, one in enumerate(of)
            ]
            # A step's signals are received in the next step, so all its parts must be able to be under way.
            limit = max(queue, parts)
            self._to_below = Outlet(of[0], self.traffic, down, limit=limit, described=described)
        if above:
            # Every group above needs the whole map.
            to = [peer for one in self._peers(own, above, batch_size) for peer in one]
            self._to_above = Outlet(to, self.traffic, up, limit=queue, rounded=rounded, described=described)
            self._from_above = Inlet(to, self.traffic, down, ahead=0, described=described)
        self.pipes = min(stage.copies for stage in placement.stages)
        """This many evaluations run side by side, each through one copy of every stage."""
        self.pipe = self._copy
        self._evaluated_below: list[Inlet] = []
        self._evaluated_above = None
        if below and self.pipe < self.pipes:
            self._evaluated_below = [
                Inlet([peer], self.traffic, up, ahead=0, described=True) for peer in self._pipe(below)
            ]
        if above and self.pipe < self.pipes:
            to = self._pipe(above)
            self._evaluated_above = Outlet(to, self.traffic, up, limit=2, described=True)

    def begin(self, step: int) -> None:
        """Let the other processes know that this one makes progress."""
        self._step = step
        self._watchdog.note(step)

    def take_parts(self, count: int, coming: int) -> list[Part]:
        """Return the parts of the next batch from below.

        `coming` steps, this one included, will certainly come.
        """
        parts = []
        for number in range(count):
            messages = [inlet.receive(coming * count - number) for inlet in self._from_below]
            features, targets, *images = _side_by_side(messages)
            seen = images[0] if images else features.new_zeros(0)
            parts.append(Part(seen, targets, targets.new_zeros(0), features))
        return parts

    def from_below(self) -> Tensor:
        """Return what was sent up for the rows of a part that is already here."""
        return _side_by_side([inlet.receive() for inlet in self._from_below])[0]

    def hand_up(self, outputs: Tensor, part: Part) -> None:
        """Send outputs up, if a process is above; of the topmost groups, the first has the classifier."""
        if self._to_above:
            rest = [part.targets, *([part.images] if self._with_images else [])]
            self._to_above.send(self._own_share([outputs, *rest]))

    def hand_down(self, tensor: Tensor) -> None:
        """Send a tensor to the blocks below."""
        assert self._to_below is not None
        self._to_below.send([tensor])

    def from_above(self) -> Tensor:
        """Return what the blocks above sent down."""
        assert self._from_above is not None
        (tensor,) = self._from_above.receive()
        return tensor

    def pass_evaluated(self, tensors: Sequence[Tensor]) -> None:
        """Send a batch of an evaluation on; an empty one means that all batches were sent."""
        self._watchdog.note(self._step)
        if self._evaluated_above and tensors:
            self._evaluated_above.send(self._own_share(tensors))
        elif self._evaluated_above:
            self._evaluated_above.end()

    def take_evaluated(self) -> list[Tensor]:
        """Return the next batch of an evaluation from below, or nothing after the last one."""
        self._watchdog.note(self._step)
        return _side_by_side([inlet.receive() for inlet in self._evaluated_below])

    def _own_share(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return this process's part of a message: of the first tensor its channels, if it has a slice."""
        if self._channels is None:
            return list(tensors)
        # Dense with the channels last, as convolutions on CPU leave it.
        own = tensors[0][:, self._channels].movedim(1, -1).contiguous().movedim(-1, 1)
        return [own, *(tensors[1:] if self._sends_rest else [])]

    def _peers(self, own: PipelineStage, other: PipelineStage, batch_size: int) -> list[list[Peer]]:
        """Return the processes that have the same rows: a list for each of the other's neuron groups."""
        if own.groups == other.groups == 1:
            return [peers(own, self._copy, other, batch_size)]
        return [[peer] for peer in self._pipe(other)]

    def _pipe(self, other: PipelineStage) -> list[Peer]:
        ranks = other.ranks if other.groups > 1 else [other.ranks.start + self._copy]
        return [Peer(rank, slice(None)) for rank in ranks]


def _side_by_side(messages: Sequence[list[Tensor]]) -> list[Tensor]:
    """Return the slices of a map as one tensor, and the other tensors of the first message."""
    if len(messages) < 2 or not messages[0]:
        return messages[0] if messages else []
    first, *rest = messages[0]
    return [torch.cat([first, *(message[0] for message in messages[1:])], dim=1), *rest]
