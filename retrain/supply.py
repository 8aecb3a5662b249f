"""This module supplies a process with images, unless the blocks below it are on other processes."""

from collections.abc import Iterable, Iterator
from itertools import repeat

import torch

from retrain.config import RetrainConfig
from retrain.pipeline.setup import ProcessSetup
from tools.images.augment import to_device
from tools.images.batches import Share, TrainingOrder
from tools.images.datasets import Data
from tools.images.images import Images
from tools.images.loaders import Batch, eval_batches, make_train_loader


class Supply:
    """A `Supply` has training, validation and test images, or nothing on a process without the first block.

    Where gluing variables are kept for each image, all processes know which images come, and their labels.
    """

    def __init__(self, data: Data, config: RetrainConfig, device: torch.device, setup: ProcessSetup) -> None:
        self._data, self._config, self._device = data, config, device
        self._role, self._pipes = setup.role, setup.pipes
        role, self._first = setup.role, setup.role.own.start == 0
        self._loader = (
            make_train_loader(
                data.train,
                data,
                config.data,
                batch_size=config.recipe.batch_size,
                seed=config.seed,
                device=device,
                rank=role.copy,
                world_size=role.copies,
            )
            if self._first
            else None
        )
        self.validation = self._evaluated(data.validation)
        self.test = self._evaluated(data.test)

    def batches(self, start: int, stop: int) -> Iterator[Batch | None]:
        """Return this process's rows of the batches of steps start, start + 1, ... stop - 1."""
        if self._loader:
            return iter(self._loader.batches(start, stop))
        if self._config.gluing.cache:
            return self._without_images(range(start, stop))
        return repeat(None, stop - start)

    def _without_images(self, steps: Iterable[int]) -> Iterator[Batch]:
        split, batch_size = self._data.train, self._config.recipe.batch_size
        order = TrainingOrder(len(split), batch_size, self._config.seed)
        rows = Share(self._role.copy, self._role.copies).rows(batch_size)
        for step in steps:
            indices = order.indices(step)[rows]
            labels = to_device(split.labels[indices], self._device)
            yield Batch(labels.new_empty(len(labels), 0), labels, to_device(indices, self._device))

    def close(self) -> None:
        """Stop the worker processes, if there are any."""
        if self._loader:
            self._loader.close()

    def _evaluated(self, split: Images) -> Iterable[Batch]:
        if not self._first or self._role.copy >= self._pipes:
            return []
        return eval_batches(
            split,
            self._data,
            self._config.data,
            batch_size=max(self._config.recipe.batch_size, 256),
            device=self._device,
            rank=self._role.copy,
            world_size=self._pipes,
        )
