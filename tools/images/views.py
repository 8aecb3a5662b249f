"""This module makes two random views of every image of a batch, as in SimCLR, on the device that trains.

What happens to an image is drawn for the global batch from a random stream of the step, and each rank takes
its own rows. So results do not depend on the number of ranks. Everything that follows from the draws alone is
computed on the CPU, and every image goes through the same operations. So nothing waits for the device.

Shape suffixes: N = 2B views of this rank's B images, first views first; H rows and W columns.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.images.augment import to_device
from tools.seeding import torch_stream

CROP_DRAWS = ("area", "ratio", "top", "left", "flip")
COLOUR_DRAWS = ("jitter", "order", "brightness", "contrast", "saturation", "hue", "grey")
DRAWS = (*CROP_DRAWS, *COLOUR_DRAWS, "blur", "sigma")
"""These numbers are drawn for each view."""

CONTRAST, SATURATION, HUE = 1, 2, 3  # brightness is 0
ORDERS = torch.tensor(list(itertools.permutations(range(4))))


def draw_views(seed: int, step: int, total: int) -> Tensor:
    """Draw numbers in [0, 1) for both views of every image of the global batch.

    They are (len(DRAWS), 2, total) numbers on the CPU. All are drawn whatever the options are, so that
    turning one option off does not move the others.
    """
    generator = torch_stream(seed, "views", step)
    return torch.rand(len(DRAWS), 2, total, generator=generator, dtype=torch.float64)


class Views:
    """A `Views` applies SimCLR's augmentation to normalised images with one or three channels.

    Unlike torchvision's, a crop that does not fit is not drawn again: the range of its aspect ratio is
    narrowed instead, so its area is uniform in `scale`. A crop is never larger than the image it becomes, so
    antialiasing would change nothing.

    Arguments:
        mean: Each channel's mean, by which the images were normalised.
        std: Each channel's standard deviation.
        seed: The seed of all that is drawn.
        scale: The range of a crop's share of the image's area.
        jitter: The strength of the colour jitter.
        grey: The probability of a grey view.
        blur: The probability of a blurred view.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        scale: tuple[float, float] = (0.08, 1.0),
        jitter: float = 0.5,
        grey: float = 0.2,
        blur: float = 0.0,
    ) -> None:
        assert 0 < scale[0] <= scale[1] <= 1
        self._moments = torch.tensor([list(mean), list(std)], dtype=torch.float64)
        self._seed, self._scale, self._jitter, self._grey, self._blur = seed, scale, jitter, grey, blur

    def __call__(self, images: Tensor, step: int, *, start: int = 0, total: int | None = None) -> Tensor:
        """Return two views of each image (2B, C, H, W): first all images' first views, then the second views.

        The images are rows `start` onwards of a global batch of `total` images (by default, no more follow).
        """
        count, channels, height, width = images.shape
        end = start + count
        assert total is None or end <= total
        table = draw_views(self._seed, step, end if total is None else total)[:, :, start:end].flatten(1)
        drawn = dict(zip(DRAWS, table, strict=True))
        dtype = torch.promote_types(images.dtype, torch.float32)

        def ready(values: Tensor) -> Tensor:
            return to_device(values.to(dtype), images.device)

        mean, std = ready(self._moments)[:, :, None, None]
        views = (images * std + mean).clamp_(0, 1)
        views = crop(torch.cat([views, views]), ready(boxes(drawn, self._scale, height, width)))
        if self._jitter:
            before, after, turns = jitters(drawn, self._jitter)
            views = blend(views, ready(before))
            if channels == 3:
                views = shift_hue(views, ready(turns))
            views = blend(views, ready(after))
        if self._grey and channels == 3:
            chosen = ready(drawn["grey"] < self._grey)
            views = torch.where(chosen[:, None, None, None] > 0, luma(views), views)
        radius = min(height, width) // 20
        if self._blur and radius:
            views = blur(views, ready(kernels(drawn, self._blur, radius)))
        views = views.sub_(mean).div_(std)
        return views.to(images.dtype).contiguous(memory_format=torch.channels_last)


def boxes(drawn: dict[str, Tensor], scale: tuple[float, float], height: int, width: int) -> Tensor:
    """Return where to crop, in whole pixels (5, N): top, left, height, width, and 1 to mirror."""
    area = scale[0] + (scale[1] - scale[0]) * drawn["area"]
    # Only aspect ratios with which a crop of this area fits, while there are any.
    lowest = (width / height * area).clamp(min=3 / 4).log()
    highest = (width / height / area).clamp(max=4 / 3).log()
    ratio = torch.lerp(lowest, highest, drawn["ratio"]).exp()
    rows = (height * width * area / ratio).sqrt().round().clamp(1, height)
    columns = (height * width * area * ratio).sqrt().round().clamp(1, width)
    top, left = drawn["top"] * (height - rows + 1), drawn["left"] * (width - columns + 1)
    return torch.stack([top.floor(), left.floor(), rows, columns, (drawn["flip"] < 0.5).double()])


def crop(images: Tensor, where: Tensor) -> Tensor:
    """Cut out `boxes` and resize them to the whole image, bilinearly."""
    height, width = images.shape[2:]
    top, left, rows, columns, flip = where[:, :, None]
    y_NH, x_NW = _places(top, rows, height), _places(left, columns, width)
    x_NW = torch.where(flip > 0, x_NW.flip(1), x_NW)
    x_NHW, y_NHW = x_NW[:, None, :].expand(-1, height, -1), y_NH[:, :, None].expand(-1, -1, width)
    grid = torch.stack([x_NHW, y_NHW], dim=3)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=True).clamp_(0, 1)


def _places(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return where `size` pixels that show `length` pixels from `start` lie, on a scale from -1 to 1."""
    pixels = torch.arange(size, device=start.device, dtype=start.dtype)
    # Beyond the centres of its outermost pixels, a crop repeats them, whatever lies next to it in the image.
    inside = torch.minimum(((pixels + 0.5) * (length / size) - 0.5).clamp(min=0), length - 1)
    return (start + inside) * (2 / max(size - 1, 1)) - 1


def jitters(drawn: dict[str, Tensor], strength: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return what to `blend` before and after `shift_hue`, and by how many turns to shift.

    Each view has its own order of operations. Shifting the hue is expensive, so it is done once for all
    views, with each view's blends before or after it. Blends of factor 1 fill the unused places.
    """
    applied = drawn["jitter"] < 0.8
    low, high = max(0, 1 - 0.8 * strength), 1 + 0.8 * strength
    kinds = torch.stack([drawn["brightness"], drawn["contrast"], drawn["saturation"]])
    factors = F.pad(torch.where(applied, low + (high - low) * kinds, 1.0), (0, 0, 0, 1), value=1.0)
    turns = torch.where(applied, 0.2 * strength * (2 * drawn["hue"] - 1), 0.0)
    order = ORDERS[(drawn["order"] * len(ORDERS)).long()].T
    hue_done = (order == HUE).long().cumsum(0) > 0

    def side(kinds: Tensor, taken: Tensor) -> Tensor:
        kinds = torch.where(taken, kinds, HUE)
        own = factors.gather(0, kinds)
        return torch.stack([own, (1 - own) * (kinds == CONTRAST), (1 - own) * (kinds == SATURATION)], dim=1)

    return side(order[:-1], ~hue_done[:-1]), side(order[1:], hue_done[1:]), turns


def blend(images: Tensor, weights: Tensor) -> Tensor:
    """Mix images with their mean grey (contrast) and their grey (saturation), in steps: (steps, 3, N)."""
    for own, contrast, saturation in weights[:, :, :, None, None, None].unbind():
        grey = luma(images)
        other = grey * saturation + grey.mean((2, 3), keepdim=True) * contrast
        images = torch.addcmul(other, images, own).clamp_(0, 1)
    return images


def luma(images: Tensor) -> Tensor:
    """Return the grey image (N, 1, H, W); an image of one channel is its own."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue by N turns (1 is the whole circle), with the same value and saturation in HSV."""
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma > 0, chroma, 1.0)  # the hue of grey is never looked at
    sixths = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    sixths = torch.where(value == red, (green - blue) / divisor, sixths) + 6 * turns[:, None, None]
    # A channel falls from value to value - chroma and rises again; each takes a sixth of the circle.
    shifted = []
    for channel_phase in (5, 3, 1):
        phase = (sixths + channel_phase).remainder_(6)
        shifted.append(value - chroma * torch.minimum(phase, 4 - phase).clamp_(0, 1))
    return torch.stack(shifted, dim=1)


def kernels(drawn: dict[str, Tensor], rate: float, radius: int) -> Tensor:
    """Return Gaussian weights (2 radius + 1, N); a view that is not blurred has a 1 in the middle."""
    sigma = 0.1 + 1.9 * drawn["sigma"]
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)[:, None]
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    return torch.where(drawn["blur"] < rate, weights / weights.sum(0), (places == 0).double())


def blur(images: Tensor, weights: Tensor) -> Tensor:
    """Filter each image with its own weights along both axes, reflected at the border."""
    radius = len(weights) // 2
    for dim, padding in ((2, [0, 0, radius, radius]), (3, [radius, radius, 0, 0])):
        padded = F.pad(images, padding, mode="reflect")
        images = torch.zeros_like(images)
        for tap, weight in enumerate(weights):
            images.addcmul_(padded.narrow(dim, tap, images.shape[dim]), weight[:, None, None, None])
    return images
