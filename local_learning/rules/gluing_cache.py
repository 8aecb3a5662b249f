"""BlockProp keeps some tensors of each image from visit to visit (Gotmare et al., 2018, Algorithm 2)."""

from collections.abc import Mapping
from typing import Any

import psutil
import torch
from torch import Tensor

from local_learning.options import GluingOptions
from tools.mistake import Mistake

Inputs = dict[int, Tensor]
"""The inputs of blocks, by the block's number, counted from 0."""


class GluingCache:
    """This cache keeps some blocks' gluing variables for every image of a training set.

    It also counts how often each image was visited. The variables lie in main memory, also where the
    blocks are on another device.
    """

    def __init__(self, options: GluingOptions, num_images: int) -> None:
        self._options = options
        self._kept: Inputs = {}
        self._visits = torch.zeros(num_images, dtype=torch.int32)

    def wanted(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of these images start from a forward pass, and which of them take an h-step."""
        visits, refresh = self._visits[images], self._options.refresh
        fresh = visits % refresh == 0 if refresh else visits == 0
        return fresh, fresh | (visits % self._options.h_every == 0)

    def seen(self, images: Tensor) -> None:
        """Count a visit of each of these images."""
        self._visits.index_add_(0, images, torch.ones_like(images, dtype=torch.int32))

    def recall(self, images: Tensor, device: torch.device) -> Inputs:
        """Return what is stored for these images; before the first visit it is nothing."""
        return {block: kept[images].to(device) for block, kept in self._kept.items()}

    def store(self, images: Tensor, variables: Inputs) -> None:
        """Keep the variables of these images; where an image is there twice, the later one counts."""
        if not self._kept:
            self._kept = self._make_room(variables)
        for block, rows in variables.items():
            kept = self._kept[block]
            for image, row in zip(images.tolist(), rows.to(kept.device), strict=True):
                kept[image] = row

    def _make_room(self, variables: Inputs) -> Inputs:
        count = len(self._visits)
        size = count * sum(rows[0].numel() * rows.element_size() for rows in variables.values())
        available = psutil.virtual_memory().available
        if size > 0.9 * available:
            raise Mistake(
                "gluing.cache",
                f"{count:,} images' gluing variables take {size / 2**30:.1f} GiB, of which "
                f"{available / 2**30:.1f} GiB are free",
                "cut where the maps are smaller, or go without it",
            )
        return {
            block: rows.new_zeros((count, *rows.shape[1:]), device="cpu") for block, rows in variables.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that is kept."""
        return {"cache": dict(self._kept), "visits": self._visits}

    def load_state_dict(self, state: Mapping[str, Any], blocks: range) -> None:
        """Return to a saved state, keeping only the variables of the given blocks."""
        kept = state["cache"]
        if not isinstance(kept, Mapping):  # an older checkpoint, in which one process had all variables
            kept = dict(enumerate(kept, start=1))
        self._kept = {block: kept[block] for block in blocks if block in kept}
        self._visits = state["visits"]
