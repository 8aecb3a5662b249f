"""Every rule works with an engine, which runs blocks, goes backward through them, and updates them."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from local_learning.blocks import DecoupledNet, Outcome


class Part(NamedTuple):
    """A part is some rows of a batch; a batch comes in one part, or in several that share one update."""

    images: Tensor
    """The images of these rows."""
    targets: Tensor
    """The class of each image, or its probabilities."""
    indices: Tensor
    """The numbers of these images in the training set."""
    received: Tensor | None = None
    """The outputs of the block below, where that block is on another process. `images` may then be empty."""

    @property
    def inputs(self) -> Tensor:
        """What the first block here takes as its inputs."""
        return self.images if self.received is None else self.received


class StepReport(NamedTuple):
    """A report holds what a step gives back."""

    losses: dict[str, Tensor]
    """The losses by name; "loss" is the classifier's."""
    logits: list[Tensor]
    """The classifier's logits for each part."""


class Rule(Protocol):
    """A rule turns a batch into updates of all blocks."""

    def step(self, parts: Sequence[Part]) -> StepReport:
        """Update the blocks by one batch."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on, besides weights and optimisers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a saved state."""


class Engine:
    """An engine runs and updates blocks in plain PyTorch.

    A subclass may do so in mixed precision and on many devices. `own` are neighbouring blocks that are
    trained here, each with its own optimiser. The other blocks are on other processes. A subclass that has
    only some blocks sends tensors to those processes and receives tensors from them.
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
        """The number of blocks of the whole network."""
        return len(self.net.blocks)

    @property
    def has_top(self) -> bool:
        """Whether the block with the classifier is here."""
        return self.own.stop == self.num_blocks

    @property
    def below_top(self) -> range:
        """The blocks here, without the one that has the classifier."""
        return range(self.own.start, min(self.own.stop, self.num_blocks - 1))

    def hand_up(self, outputs: Tensor, part: Part) -> None:
        """Give the block above the outputs of the last block here, with what else it needs of the part."""
        raise AssertionError("all blocks are here")

    def hand_down(self, tensor: Tensor) -> None:
        """Give the block below what it waits for: an error signal, or a gluing variable."""
        raise AssertionError("all blocks are here")

    def from_above(self) -> Tensor:
        """Return what the block above handed down, in the order in which it did."""
        raise AssertionError("all blocks are here")

    def from_below(self) -> Tensor:
        """Return what the block below handed up, where a rule needs it in the middle of a step."""
        raise AssertionError("all blocks are here")

    def all_rows(self, rows: Tensor) -> Tensor:
        """Return these rows with those of the other processes that train the same blocks.

        The rows are in the batch's order.
        """
        return rows

    def own_rows(self, rows: Tensor) -> Tensor:
        """Return those of all rows that belong to this process."""
        return rows

    def run(self, index: int, inputs: Tensor, part: Part, *, joined: bool = False) -> Outcome:
        """Run a block with its head and loss, which with `joined` do not teach the block."""
        outcome: Outcome = self.net.blocks[index](inputs, part.targets, part.images, joined)
        return outcome

    def features(self, index: int, inputs: Tensor) -> Tensor:
        """Run a block's layers only, where no gradient of its parameters is wanted."""
        with self.precision():
            outputs: Tensor = self.net.blocks[index].layers(inputs)
        return outputs

    def trained_features(self, index: int, inputs: Tensor) -> Tensor:
        """Run the layers of a block that has no head, for a backward pass to its parameters."""
        outputs: Tensor = self.net.blocks[index](inputs)
        return outputs

    def objective(self, features: Tensor, part: Part) -> Tensor:
        """Return the classifier's loss on features of the last block's layers, as a mean over the rows."""
        block = self.net.blocks[-1]
        loss: Tensor = block.objective(block.read(features), part.targets, part.images)
        return loss

    def backward(self, tensor: Tensor, gradient: Tensor | None = None) -> None:
        """Go backward and add to the gradients.

        `gradient` is that of the loss with respect to the tensor.
        """
        tensor.backward(gradient)  # type: ignore[no-untyped-call]

    def error_signal(self, inputs: Tensor) -> Tensor:
        """Return the gradient that a backward pass left at a block's inputs."""
        assert inputs.grad is not None
        return inputs.grad

    def update(self, index: int) -> None:
        """Let a block's optimiser take its step."""
        self.optimizers[index].step()
        self.optimizers[index].zero_grad()

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context that sets the precision of a pass.

        `run` and `trained_features` set it themselves.
        """
        return contextlib.nullcontext()

    def part(self, index: int, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context for the forward and backward pass of one part.

        Gradients are final after the last part.
        """
        return contextlib.nullcontext()


class Stateless:
    """A stateless rule remembers nothing from step to step."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing, because there is no state."""


class Means:
    """This class takes means over the parts of a batch, by name."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.values: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add the value of one part."""
        share = value.detach() / self._count
        self.values[name] = self.values[name] + share if name in self.values else share


def loss_name(index: int, num_blocks: int) -> str:
    """Return "loss" for the classifier's loss, or loss/<block> for a local one, counted from 1."""
    return "loss" if index == num_blocks - 1 else f"loss/{index + 1}"
