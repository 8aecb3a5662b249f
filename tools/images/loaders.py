"""This module makes batches of images: endless ones for training, and every image once for evaluation.

Small sets lie on the device that trains and are augmented there, a whole batch at once. Other sets are
streamed by worker processes. Batch sizes are global: each rank gets its rows of the one global batch, whose
content depends only on the options, the seed and the step.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch

from tools.images.augment import BatchAugment, Normalise, Policy, draw, mix, to_device
from tools.images.batches import Batch, Share, TrainingOrder, check_shared
from tools.images.datasets import Data
from tools.images.images import ArrayImages, Images
from tools.images.options import DataConfig
from tools.images.streaming import StreamedEvaluation, StreamLoader
from tools.mistake import Mistake

__all__ = ["Batch", "DeviceLoader", "StreamLoader", "TrainLoader", "eval_batches", "make_train_loader"]


class TrainLoader(Protocol):
    """A `TrainLoader` gives the batches that training reads."""

    batch_size: int

    @property
    def steps_per_epoch(self) -> float:
        """Return how many steps see as many images as the split has."""

    def batch(self, step: int) -> Batch:
        """Return this rank's part of one step's batch."""

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Return the batches of steps start, start + 1, ... stop - 1."""

    def close(self) -> None:
        """Stop the worker processes, if there are any; the loader can be used again."""


def make_train_loader(
    split: Images,
    data: Data,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
) -> TrainLoader:
    """Return the loader that the options ask for, for one of the data's splits."""
    if not len(split):
        raise ValueError("there are no images to train on")
    check_shared(batch_size, world_size)
    part = batch_size // world_size
    if (config.mixup or config.cutmix) and part % 2:
        raise Mistake(
            "recipe.batch_size", f"mixup and cutmix pair images; {part} per process is an odd number"
        )
    order, share = TrainingOrder(len(split), batch_size, seed), Share(rank, world_size)
    if config.streamed:
        return StreamLoader(split, data, config, order=order, seed=seed, device=device, share=share)
    assert isinstance(split, ArrayImages)
    return DeviceLoader(split, data, config, order=order, seed=seed, device=device, share=share)


def eval_batches(
    split: Images,
    data: Data,
    config: DataConfig,
    *,
    batch_size: int,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
) -> Iterable[Batch]:
    """Return every image of a split once, over all ranks together, only normalised and brought to size.

    The ranks' parts may be uneven, so add up counts, not means. Iterating again gives the same batches.
    """
    share = Share(rank, world_size)
    if isinstance(split, ArrayImages):
        return DeviceEvaluation(split, data, batch_size=batch_size, device=device, share=share)
    return StreamedEvaluation(split, data, config, batch_size=batch_size, device=device, share=share)


class DeviceLoader:
    """A `DeviceLoader` makes training batches from images that lie on the device as bytes."""

    def __init__(
        self,
        split: ArrayImages,
        data: Data,
        config: DataConfig,
        *,
        order: TrainingOrder,
        seed: int,
        device: torch.device | str,
        share: Share,
    ) -> None:
        self.batch_size = order.batch_size
        self._order, self._seed, self._config = order, seed, config
        self._device = torch.device(device)
        self._num_classes = data.num_classes
        self._rows = share.rows(self.batch_size)
        self._labels = split.labels.to(self._device)
        self._augment = BatchAugment(
            split.images.to(self._device), Policy.of(config), mean=data.mean, std=data.std
        )

    @property
    def steps_per_epoch(self) -> float:
        return self._order.num_images / self.batch_size

    def batch(self, step: int) -> Batch:
        indices = to_device(self._order.indices(step)[self._rows], self._device)
        drawn = draw(self._seed, step, self.batch_size)[:, self._rows]
        images, targets = self._augment(indices, drawn), self._labels[indices]
        if self._config.mixup or self._config.cutmix:
            images, targets = mix(
                images, targets, self._num_classes, self._config, seed=self._seed, step=step
            )
        return Batch(images, targets, indices)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        return map(self.batch, range(start, stop))

    def close(self) -> None:
        """Do nothing, because there are no worker processes."""


class DeviceEvaluation:
    """A `DeviceEvaluation` makes evaluation batches from images in memory."""

    def __init__(
        self, split: ArrayImages, data: Data, *, batch_size: int, device: torch.device | str, share: Share
    ) -> None:
        self._device, self._batch_size, self._share = torch.device(device), batch_size, share
        self._images, self._labels = split.images.to(self._device), split.labels.to(self._device)
        self._normalise = Normalise(split.images.shape[2], mean=data.mean, std=data.std, device=self._device)

    def __iter__(self) -> Iterator[Batch]:
        for indices in torch.split(torch.arange(len(self._labels), device=self._device), self._batch_size):
            mine = indices[self._share.rows(len(indices))]
            if len(mine):
                yield Batch(self._normalise(self._images[mine]), self._labels[mine], mine)
