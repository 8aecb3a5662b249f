"""This module defines a batch, the order of the training images, and which of them belong to a rank."""

from typing import NamedTuple

import torch
from torch import Tensor

from tools.mistake import Mistake
from tools.seeding import torch_stream


class Batch(NamedTuple):
    """A `Batch` is one rank's part of one step's images."""

    images: Tensor
    """The images are float32 (B, C, H, W), channels_last in memory."""
    targets: Tensor
    """The targets are class numbers (B,), or probabilities (B, classes) with mixup or CutMix."""
    indices: Tensor
    """The indices are the images' places in their split (B,)."""


class Share(NamedTuple):
    """A `Share` is a rank and the number of ranks among which batches are shared."""

    rank: int = 0
    world_size: int = 1

    def rows(self, count: int) -> slice:
        """Return this rank's part of `count` rows; the parts of all ranks cover all rows exactly once."""
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)


class TrainingOrder:
    """A `TrainingOrder` is an endless order of images, cut into full batches.

    It is made of one permutation per epoch, laid end to end. The images of a step are a pure function of the
    seed and the step.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_images, self.batch_size = num_images, batch_size
        self._seed = seed
        self._permutations: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        """Return the places of one global batch's images."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        first, last = start // self.num_images, (stop - 1) // self.num_images
        epochs = torch.cat([self._permutation(epoch) for epoch in range(first, last + 1)])
        return epochs[start - first * self.num_images : stop - first * self.num_images]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            generator = torch_stream(self._seed, "order", epoch)
            self._permutations[epoch] = torch.randperm(self.num_images, generator=generator)
        return self._permutations[epoch]


def check_shared(batch_size: int, processes: int, *, parts: int = 1) -> None:
    """Refuse a batch that the processes cannot share evenly, where each runs its share in so many parts."""
    if batch_size % (parts * processes):
        among = f" in `recipe.accumulate` {parts} parts each" if parts > 1 else ""
        raise Mistake(
            "recipe.batch_size",
            f"{batch_size} images cannot be shared evenly among {processes} processes{among}",
        )
