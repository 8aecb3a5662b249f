"""Heads of later layers are brought near the layers themselves, every few steps, by what these were before.

The values that a head gets at one refresh are those that the layers had at the refresh before. So a process
that trains the blocks above can send them in time, and nobody waits for them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from local_learning.blocks import DecoupledNet
from local_learning.later.renewed import parts_of, resized
from local_learning.later.request import parse_later


class Link(NamedTuple):
    """A link joins a tensor of a head to the tensor of a later layer that it is a copy of."""

    head: str
    """The name of the head's tensor in its block."""
    source: str
    """The name of the layer's tensor in its own block."""
    shape: tuple[int, ...]
    """The shape of the layer's tensor."""


class Way(NamedTuple):
    """A way leads from a block down to the head of another one."""

    source: int
    """The block whose layers are copied."""
    head: int
    """The block whose head has the copies."""


def ways_down(net: DecoupledNet) -> dict[Way, list[Link]]:
    """Return the links between the heads of a whole net and the blocks above them."""
    blocks = net.decoupling.blocks(sum(len(block.layers) for block in net.blocks))
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()} for block in net.blocks
    ]
    ways: dict[Way, list[Link]] = {}
    for index, kind in enumerate(net.decoupling.heads):
        head, later = net.blocks[index].head, parse_later(kind)
        if head is None or later is None:
            continue
        for name, tensor in head.state_dict().items():
            part, _, rest = name.partition(".")
            if later.averaged:
                copied, _, rest = rest.partition(".")
                if copied != "averaged":
                    continue  # it is trained
            if part == "classifier":
                above, source = len(blocks) - 1, f"head.{rest}"
            elif part.startswith("layer"):
                layer = int(part.removeprefix("layer")) - 1
                above = next(number for number, block in enumerate(blocks) if layer in block)
                source = f"layers.{layer - blocks[above].start}.{rest}"
            else:
                continue  # what fits features to a layer is the head's own
            if tensor.is_floating_point():
                link = Link(f"head.{name}", source, shapes[above][source])
                ways.setdefault(Way(above, index), []).append(link)
    return ways


class Post(Protocol):
    """A post carries values down to the processes that have the heads."""

    def send(self, way: Way, values: Tensor) -> None:
        """Send values on their way, without waiting."""

    def expect(self, way: Way, size: int) -> None:
        """Make ready for values of this size that another process will send."""

    def collect(self, way: Way) -> Tensor:
        """Return the values that were expected last, as soon as they are here."""


class Refresh:
    """This sets the heads of some blocks to what the layers above them were, or moves them towards it."""

    def __init__(
        self,
        net: DecoupledNet,
        ways: Mapping[Way, Sequence[Link]],
        own: range,
        *,
        every: int,
        momentum: float = 0.0,
        post: Post | None = None,
    ) -> None:
        """Take the net, of which the blocks in `own` are here.

        Arguments:
            ways: The links of the whole net.
            every: The number of steps between two refreshes.
            momentum: The part of the head's own values that stays.
            post: The post between processes, where others have some of the blocks.
        """
        self._net, self._ways, self._own, self._post = net, ways, own, post
        self._every, self._momentum = every, momentum
        self._coming: dict[Way, Tensor | None] = {}

    def after(self, step: int) -> None:
        """Refresh the heads if it is time to, after the update of a step."""
        if (step + 1) % self._every:
            return
        for way in self._here():
            if way in self._coming:
                self._apply(way, self._arrived(way))
        self._coming.clear()
        for way, links in self._ways.items():
            if way.source in self._own:
                values = self._values(way.source, [link.source for link in links])
                if way.head in self._own:
                    self._coming[way] = values
                else:
                    self._others.send(way, values)
            elif way.head in self._own:
                self._others.expect(way, sum(math.prod(link.shape) for link in links))
                self._coming[way] = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the values that are still to come to the heads here."""
        return {f"{way.source}/{way.head}": self._arrived(way) for way in self._coming}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a saved state, of which some may belong to other processes."""
        named = {f"{way.source}/{way.head}": way for way in self._here()}
        self._coming = {way: state[name] for name, way in named.items() if name in state}

    def _here(self) -> Iterator[Way]:
        return (way for way in self._ways if way.head in self._own)

    @property
    def _others(self) -> Post:
        assert self._post is not None, "all blocks are here"
        return self._post

    def _arrived(self, way: Way) -> Tensor:
        values = self._coming[way]
        if values is None:
            values = self._coming[way] = self._others.collect(way)
        return values

    def _values(self, index: int, names: Sequence[str]) -> Tensor:
        tensors = self._net.blocks[index].state_dict()
        return torch.cat([tensors[name].detach().flatten() for name in names]).cpu()

    @torch.no_grad()
    def _apply(self, way: Way, values: Tensor) -> None:
        links, tensors = self._ways[way], self._net.blocks[way.head].state_dict()
        parts = torch.split(values, [math.prod(link.shape) for link in links])
        for link, part in zip(links, parts, strict=True):
            own = tensors[link.head]
            wanted = resized(part.view(link.shape), own.shape, parts_of(link.head))
            own.lerp_(wanted.to(own), 1 - self._momentum)


def bytes_down(ways: Mapping[Way, Sequence[Link]], itemsize: int) -> int:
    """Return the bytes that one refresh brings down to all heads."""
    return itemsize * sum(math.prod(link.shape) for links in ways.values() for link in links)
