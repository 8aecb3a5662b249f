"""This module augments whole batches of images on the device that trains.

What happens to an image is drawn for the global batch from a random stream of the step, and each rank takes
its own rows. So results do not depend on the number of ranks. Crop, padding and flip are index arithmetic in
one gather of bytes. Images stay uint8 (N, H, W, 3) until they are cut, and the result is channels_last at no
extra cost.

Shape suffixes: B images of this rank's batch, H rows and W columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.images.options import DataConfig
from tools.seeding import numpy_stream, torch_stream

NUM_DRAWS = 6
"""Each image takes this many numbers: crop row, crop column, flip, cutout row, cutout column, angle."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A `Policy` holds the options that this module reads."""

    pad: int = 0
    reflect: bool = False
    flip: bool = False
    rotate: float = 0.0
    cutout: int = 0

    @staticmethod
    def of(config: DataConfig) -> "Policy":
        """Return the policy of some image options."""
        standard = config.augment == "standard"
        return Policy(
            pad=config.crop_pad if standard else 0,
            reflect=config.pad_mode == "reflect",
            flip=config.flips and standard,
            rotate=config.rotate,
            cutout=config.cutout,
        )


def draw(seed: int, step: int, batch_size: int) -> Tensor:
    """Draw numbers in [0, 1) for every image of the global batch, (NUM_DRAWS, batch_size) on the CPU.

    All are drawn whatever the policy is, so that turning flips off does not move the crops.
    """
    generator = torch_stream(seed, "augment", step)
    return torch.rand(NUM_DRAWS, batch_size, generator=generator, dtype=torch.float64)


class BatchAugment:
    """A `BatchAugment` crops, varies and normalises batches of images from one array."""

    def __init__(
        self, images: Tensor, policy: Policy, *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        assert images.is_contiguous()
        self._images, self._policy = images, policy
        _, self._height, self._width, channels = images.shape
        self._channels = torch.arange(channels, device=images.device)
        self._rows = torch.arange(self._height, device=images.device)
        self._columns = torch.arange(self._width, device=images.device)
        self._normalise = Normalise(self._width, mean=mean, std=std, device=images.device)

    def __call__(self, indices: Tensor, drawn: Tensor) -> Tensor:
        """Return the augmented images (B, 3, H, W).

        Arguments:
            indices: The images' places in the array, on the device.
            drawn: The part of `draw` that belongs to these images.
        """
        policy = self._policy
        places = torch.tensor([2 * policy.pad + 1, 2 * policy.pad + 1, 2, self._height, self._width])
        whole = (drawn[:5] * places[:, None]).floor().long()
        top, left, flip, cut_row, cut_column = to_device(whole, self._images.device)
        images = self._normalise(self._crop(indices, top - policy.pad, left - policy.pad, flip))
        if policy.rotate:
            angles = (2 * drawn[5].float() - 1) * math.radians(policy.rotate)
            images = _rotate(images, to_device(angles, images.device), fill=self._normalise.black)
        if policy.cutout:
            rows = self._outside(cut_row, self._rows)
            columns = self._outside(cut_column, self._columns)
            images *= (rows[:, :, None] | columns[:, None, :])[:, None]
        return images

    def _crop(self, indices: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
        """Cut bytes (B, H, W, 3) at (top, left), which may lie outside the image, and mirror them."""
        height, width = self._height, self._width
        rows_BH = top[:, None] + self._rows
        columns_BW = left[:, None] + torch.where(
            (flip == 1)[:, None] & self._policy.flip, width - 1 - self._columns, self._columns
        )
        inside = self._inside_rows(rows_BH, columns_BW)
        rows_BH, columns_BW = self._fold(rows_BH, height), self._fold(columns_BW, width)
        num_channels = len(self._channels)
        lines = self._images.view(-1, width * num_channels)
        picked = lines.index_select(0, (indices[:, None] * height + rows_BH).view(-1))
        byte = (columns_BW[:, :, None] * num_channels + self._channels).view(-1, 1, width * num_channels)
        cut = picked.view(-1, height, width * num_channels).gather(2, byte.expand(-1, height, -1))
        if inside is not None:
            rows_inside, columns_inside = inside
            cut *= rows_inside[:, :, None]
            cut *= columns_inside[:, None, :].repeat_interleave(num_channels, dim=2)
        return cut.view(-1, height, width, num_channels)

    def _inside_rows(self, rows_BH: Tensor, columns_BW: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return 1 where there is an image and 0 where there is padding, or None without zero padding."""
        if not self._policy.pad or self._policy.reflect:
            return None
        return (
            ((rows_BH >= 0) & (rows_BH < self._height)).to(torch.uint8),
            ((columns_BW >= 0) & (columns_BW < self._width)).to(torch.uint8),
        )

    def _fold(self, places: Tensor, length: int) -> Tensor:
        """Move places outside to the inside: reflect them about the edge pixel, or take the edge itself."""
        if not self._policy.reflect:
            return places.clamp(0, length - 1)
        return (length - 1 - (length - 1 - places.abs()).abs()).abs()

    def _outside(self, centre: Tensor, axis: Tensor) -> Tensor:
        """Return where an axis is not cut out; as in the paper, a cutout may reach over the border."""
        start = centre[:, None] - self._policy.cutout // 2
        return (axis < start) | (axis >= start + self._policy.cutout)


class Normalise:
    """A `Normalise` turns bytes (B, H, W, 3) into channels_last floats (B, 3, H, W), mean 0, deviation 1."""

    def __init__(
        self, width: int, *, mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> None:
        shift, scale = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        self.black = (-shift / scale).float().to(device)
        # A whole line at once, because an inner dimension of 3 would not be vectorised.
        self._scale = (1 / (255 * scale)).float().repeat(width).to(device)
        self._shift = self.black.repeat(width)

    def __call__(self, images: Tensor) -> Tensor:
        count, height, width, channels = images.shape
        lines = images.reshape(-1, width * channels).float()
        return (
            lines.mul_(self._scale).add_(self._shift).view(count, height, width, channels).permute(0, 3, 1, 2)
        )


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for the device."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def mix(
    images: Tensor, labels: Tensor, num_classes: int, config: DataConfig, *, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Apply mixup or CutMix to neighbours 2k and 2k + 1, and return images and target probabilities.

    The order of the images is random already, so neighbours are as good as random partners. Unlike random
    partners, they are on the same rank, however many ranks there are. One draw serves the whole step, as in
    the papers.
    """
    assert len(labels) % 2 == 0
    rng = numpy_stream(seed, "mix", step)
    cut = bool(config.cutmix) and (not config.mixup or rng.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    own = float(rng.beta(alpha, alpha))
    partners = torch.arange(len(labels), device=images.device) ^ 1
    if cut:
        height, width = images.shape[2:]
        (top, bottom), (left, right) = (
            _interval(rng.random(), length, math.sqrt(1 - own)) for length in (height, width)
        )
        own = 1 - (bottom - top) * (right - left) / (height * width)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[partners, :, top:bottom, left:right]
    else:
        mixed = torch.lerp(images[partners], images, own)
    targets = F.one_hot(labels, num_classes).float()
    return mixed, torch.lerp(targets[partners], targets, own)


def _interval(centre: float, length: int, part: float) -> tuple[int, int]:
    middle, half = int(centre * length), int(part * length) // 2
    return max(0, middle - half), min(length, middle + half)


def _rotate(images: Tensor, angles: Tensor, *, fill: Tensor) -> Tensor:
    """Turn each image about its centre, as torchvision does by default: nearest pixel, black outside."""
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    height, width = images.shape[2:]
    turns = torch.stack(
        [cosine, -sine * (height / width), zero, sine * (width / height), cosine, zero], dim=1
    ).view(-1, 2, 3)
    grid = F.affine_grid(turns, list(images.shape), align_corners=False)
    black = fill[:, None, None]
    # grid_sample fills with zeros, so shift black to 0 and back.
    turned = F.grid_sample(images - black, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return (turned + black).contiguous(memory_format=torch.channels_last)
