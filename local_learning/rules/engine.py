"""What every rule works with: running a block, going backward, updating it."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from local_learning.blocks import DecoupledNet, Outcome


class Part(NamedTuple):
    """Rows of a batch; a batch comes in one part, or in several that share one update."""

    images: Tensor
    targets: Tensor
    indices: Tensor
    """Which images of the training set these are."""
    received: Tensor | None = None
    """The outputs of the block below, where that is on another process; `images` may then be empty."""

    @property
    def inputs(self) -> Tensor:
        """What the first block here takes."""
        return self.images if self.received is None else self.received


class Report(NamedTuple):
    """What a step tells: losses by name ("loss" is the classifier's), and its logits for each part."""

    losses: dict[str, Tensor]
    logits: list[Tensor]


class Rule(Protocol):
    """How a batch becomes updates of all blocks."""

    def step(self, parts: Sequence[Part]) -> Report:
        """Update the blocks by one batch."""

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on besides weights and optimisers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""


class Engine:
    """Runs and updates blocks in plain PyTorch; a stage may do so in mixed precision and on many devices.

    `own` are neighbouring blocks that are trained here, with one optimiser each; the others are on processes
    to which an engine that has only some hands tensors, and from which it takes them.
    """

    def __init__(
        self, net: DecoupledNet, optimizers: Sequence[torch.optim.Optimizer], own: range | None = None
    ) -> None:
        self.own = range(len(net.blocks)) if own is None else own
        assert len(self.own) == len(optimizers), "one optimiser per block"
        self.net = net
        self.optimizers = dict(zip(self.own, optimizers, strict=True))

    @property
    def num_blocks(self) -> int:
        return len(self.net.blocks)

    @property
    def has_top(self) -> bool:
        """Whether the block with the classifier is here."""
        return self.own.stop == self.num_blocks

    @property
    def below_top(self) -> range:
        """The blocks here but the one with the classifier."""
        return range(self.own.start, min(self.own.stop, self.num_blocks - 1))

    def hand_up(self, outputs: Tensor, part: Part) -> None:
        """Give the outputs of the last block here to the block above, with what else it needs of the part."""
        raise AssertionError("all blocks are here")

    def hand_down(self, tensor: Tensor) -> None:
        """Give the block below what it waits for: an error signal, or a gluing variable."""
        raise AssertionError("all blocks are here")

    def from_above(self) -> Tensor:
        """What the block above handed down, in the order in which it did."""
        raise AssertionError("all blocks are here")

    def from_below(self) -> Tensor:
        """What the block below handed up, where a rule asks for it in the middle of a step."""
        raise AssertionError("all blocks are here")

    def all_rows(self, rows: Tensor) -> Tensor:
        """These rows with those of the other processes that train the same blocks, in the batch's order."""
        return rows

    def own_rows(self, rows: Tensor) -> Tensor:
        """Of all rows, those of this process."""
        return rows

    def run(self, index: int, inputs: Tensor, part: Part) -> Outcome:
        """A block with its head and loss."""
        outcome: Outcome = self.net.blocks[index](inputs, part.targets, part.images)
        return outcome

    def features(self, index: int, inputs: Tensor) -> Tensor:
        """A block's layers only, where no gradient of its parameters is wanted."""
        with self.precision():
            outputs: Tensor = self.net.blocks[index].layers(inputs)
        return outputs

    def trained_features(self, index: int, inputs: Tensor) -> Tensor:
        """The layers of a block that has no head, for a backward pass to its parameters."""
        outputs: Tensor = self.net.blocks[index](inputs)
        return outputs

    def objective(self, features: Tensor, part: Part) -> Tensor:
        """The classifier's loss on the features of the last block's layers, as a mean over the rows."""
        block = self.net.blocks[-1]
        loss: Tensor = block.objective(block.read(features), part.targets, part.images)
        return loss

    def backward(self, tensor: Tensor, gradient: Tensor | None = None) -> None:
        """Add to the gradients; `gradient` is that of the loss with respect to the tensor."""
        tensor.backward(gradient)  # type: ignore[no-untyped-call]

    def error_signal(self, inputs: Tensor) -> Tensor:
        """The gradient that a backward pass left at a block's inputs."""
        assert inputs.grad is not None
        return inputs.grad

    def update(self, index: int) -> None:
        """Let a block's optimiser take its step."""
        self.optimizers[index].step()
        self.optimizers[index].zero_grad()

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Around passes outside `run` and `trained_features`, which see to this themselves."""
        return contextlib.nullcontext()

    def part(self, index: int, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around the forward and backward pass of one part; gradients are final after the last."""
        return contextlib.nullcontext()


class Stateless:
    """A rule that remembers nothing from step to step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Means:
    """Means over the parts of a batch, by name."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.values: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add one part's value."""
        share = value.detach() / self._count
        self.values[name] = self.values[name] + share if name in self.values else share


def loss_name(index: int, num_blocks: int) -> str:
    """ "loss" for the classifier's, loss/<block> for the local ones, counted from 1."""
    return "loss" if index == num_blocks - 1 else f"loss/{index + 1}"
