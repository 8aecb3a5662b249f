import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from tools.images.views import (
    DRAWS,
    ORDERS,
    Views,
    blend,
    blur,
    boxes,
    crop,
    draw_views,
    kernels,
    luma,
    shift_hue,
)

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
BATCH, HEIGHT, WIDTH = 48, 40, 44


def pictures(count: int = BATCH, channels: int = 3, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Values from 0 to 1 of whole bytes, with grey, black and white among the pixels."""
    generator = torch.Generator().manual_seed(count)
    bytes_ = torch.randint(0, 256, (count, channels, height, width), generator=generator)
    bytes_[0], bytes_[1, :, ::2], bytes_[2] = 0, 255, bytes_[2, :1]
    return bytes_.float() / 255


def normalised(images: Tensor) -> Tensor:
    channels = images.shape[1]
    whole: Tensor = reference.normalize(images, list(MEAN[:channels]), list(STD[:channels]))
    return whole.contiguous(memory_format=torch.channels_last)


def make(channels: int = 3, seed: int = 0, **options: float | tuple[float, float]) -> Views:
    return Views(mean=MEAN[:channels], std=STD[:channels], seed=seed, **options)  # type: ignore[arg-type]


def one_by_one(images: Tensor, drawn: Tensor, *, jitter: float, grey: float, rate: float) -> Tensor:
    """What torchvision makes of each image, given the same draws (for the whole area range)."""
    height, width = images.shape[2:]
    done = []
    for number, values in enumerate(drawn.flatten(1).T.tolist()):
        drawn_of = dict(zip(DRAWS, values, strict=True))
        image = images[number % len(images)]
        area = 0.08 + 0.92 * drawn_of["area"]
        aspect = width / height
        low, high = math.log(max(3 / 4, area * aspect)), math.log(min(4 / 3, aspect / area))
        ratio = math.exp(low + (high - low) * drawn_of["ratio"])
        rows = min(height, round(math.sqrt(area * height * width / ratio)))
        columns = min(width, round(math.sqrt(area * height * width * ratio)))
        top = int(drawn_of["top"] * (height - rows + 1))
        left = int(drawn_of["left"] * (width - columns + 1))
        image = reference.resized_crop(image, top, left, rows, columns, [height, width], antialias=True)
        if drawn_of["flip"] < 0.5:
            image = reference.horizontal_flip(image)
        if drawn_of["jitter"] < 0.8:
            least = max(0, 1 - 0.8 * jitter)
            brightness, contrast, saturation = (
                least + (1 + 0.8 * jitter - least) * drawn_of[name]
                for name in ("brightness", "contrast", "saturation")
            )
            for kind in ORDERS[int(24 * drawn_of["order"])].tolist():
                if kind == 0:
                    image = reference.adjust_brightness(image, brightness)
                elif kind == 1:
                    image = reference.adjust_contrast(image, contrast)
                elif kind == 2:
                    image = reference.adjust_saturation(image, saturation)
                else:
                    image = reference.adjust_hue(image, 0.2 * jitter * (2 * drawn_of["hue"] - 1))
        if drawn_of["grey"] < grey and len(image) == 3:
            image = reference.rgb_to_grayscale(image, num_output_channels=3)
        if drawn_of["blur"] < rate:
            size = 2 * (min(height, width) // 20) + 1
            image = reference.gaussian_blur(image, [size, size], [0.1 + 1.9 * drawn_of["sigma"]] * 2)
        done.append(image)
    return torch.stack(done)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("jitter", "grey", "rate"), [(0, 0, 0), (0.5, 0.2, 0), (1, 0.2, 0.5), (1.5, 0, 1)])
def test_whole_batches_equal_torchvision_one_by_one(
    channels: int, jitter: float, grey: float, rate: float
) -> None:
    images = pictures(channels=channels)
    views = make(channels, jitter=jitter, grey=grey, blur=rate)(normalised(images), 3)
    expected = one_by_one(images, draw_views(0, 3, BATCH), jitter=jitter, grey=grey, rate=rate)
    # Jitter and the division by the deviation enlarge rounding.
    torch.testing.assert_close(views, normalised(expected), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("weights", "adjust"),
    [
        ((lambda factor: (factor, 0, 0)), reference.adjust_brightness),
        ((lambda factor: (factor, 1 - factor, 0)), reference.adjust_contrast),
        ((lambda factor: (factor, 0, 1 - factor)), reference.adjust_saturation),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_blends_are_torchvisions_adjustments(
    weights: Callable[[float], tuple[float, float, float]],
    adjust: Callable[[Tensor, float], Tensor],
    channels: int,
) -> None:
    factors = [0.0, 0.3, 1.0, 1.8]
    images = pictures(4, channels)
    blended = blend(images, torch.tensor([weights(factor) for factor in factors]).T[None])
    for image, factor, result in zip(images, factors, blended, strict=True):
        torch.testing.assert_close(result, adjust(image, factor))
    assert torch.equal(blended[2], images[2])


def test_hue_is_torchvisions() -> None:
    images = pictures(9)
    turns = torch.linspace(-0.5, 0.5, 9)
    for image, turn, result in zip(images, turns.tolist(), shift_hue(images, turns), strict=True):
        torch.testing.assert_close(result, reference.adjust_hue(image, turn), atol=1e-5, rtol=0)
    torch.testing.assert_close(shift_hue(images, torch.zeros(9)), images, atol=1e-6, rtol=0)


def test_grey_is_torchvisions() -> None:
    images = pictures()
    torch.testing.assert_close(luma(images), reference.rgb_to_grayscale(images))


@pytest.mark.parametrize("radius", [1, 3, 11])
def test_blur_is_torchvisions(radius: int) -> None:
    images = pictures(6)
    drawn = {"sigma": torch.linspace(0, 1, 6).double(), "blur": torch.tensor([0, 0.1, 0.2, 0.3, 0.4, 0.9])}
    blurred = blur(images, kernels(drawn, 0.5, radius).float())
    for number in range(5):
        sigma = 0.1 + 1.9 * number / 5
        size = 2 * radius + 1
        expected = reference.gaussian_blur(images[number], [size, size], [sigma, sigma])
        torch.testing.assert_close(blurred[number], expected)
    assert torch.equal(blurred[5], images[5])


@pytest.mark.parametrize("flip", [0, 1])
def test_crops_are_torchvisions(flip: int) -> None:
    images = pictures(9)[3:]
    places = [(0, 0, HEIGHT, WIDTH), (0, 0, 20, 22), (20, 22, 20, 22), (7, 3, 13, 31), (39, 43, 1, 1)]
    places.append((3, 0, 37, WIDTH))
    cut = crop(images, torch.tensor([(*place, flip) for place in places]).float().T)
    for image, place, result in zip(images, places, cut, strict=True):
        expected = reference.resized_crop(image, *place, size=[HEIGHT, WIDTH], antialias=True)
        expected = reference.horizontal_flip(expected) if flip else expected
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_with_everything_off_each_view_is_the_image_or_its_mirror() -> None:
    images = normalised(pictures(height=WIDTH))
    views = make(scale=(1, 1), jitter=0, grey=0)(images, 0)
    both = torch.stack([torch.cat([images, images]), torch.cat([images, images]).flip(3)])
    distance = (both - views).abs().amax((2, 3, 4))
    assert distance.amin(0).max() < 1e-4
    mirrored = (distance[1] < distance[0]).float()
    assert 0.3 < mirrored.mean() < 0.7
    assert 0.2 < (mirrored[:BATCH] != mirrored[BATCH:]).float().mean() < 0.8


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 0.5), (0.9, 1.0)])
@pytest.mark.parametrize(("height", "width"), [(224, 224), (224, 200)])
def test_crops_have_areas_and_ratios_as_drawn_and_fit(
    scale: tuple[float, float], height: int, width: int
) -> None:
    drawn = dict(zip(DRAWS, draw_views(0, 0, 4000).flatten(1), strict=True))
    top, left, rows, columns, flip = boxes(drawn, scale, height, width)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + rows <= height).all()
    assert (left + columns <= width).all()
    assert ((top + rows == height) & (rows < height)).any()
    area = rows * columns / (height * width)
    uniform = scale[0] + (scale[1] - scale[0]) * torch.linspace(0, 1, 8000)
    assert (area.sort().values - uniform).abs().max() < 0.02
    ratio = (columns / rows).log() / math.log(4 / 3)
    assert ratio.abs().max() < 1.1
    inner = ratio[area < 0.6]
    if len(inner):
        assert inner.mean().abs() < 0.03
        assert abs(inner.std() - 1 / math.sqrt(3)) < 0.03
    assert abs(flip.mean() - 0.5) < 0.03


def test_an_image_too_wide_for_any_ratio_is_cropped_inside() -> None:
    drawn = dict(zip(DRAWS, draw_views(0, 0, 500).flatten(1), strict=True))
    top, left, rows, columns, _ = boxes(drawn, (0.5, 1.0), 10, 40)
    assert (rows >= 1).all()
    assert (top + rows <= 10).all()
    assert (left + columns <= 40).all()


def test_views_are_a_function_of_seed_and_step() -> None:
    images = normalised(pictures())
    views = make()
    first = views(images, 0)
    views(images, 1)
    assert torch.equal(views(images, 0), first)
    assert torch.equal(make()(images, 0), first)
    others = [views(images, 1), make(seed=1)(images, 0), first.roll(BATCH, 0)]
    for other in others:
        # Image 0 is black, so it has few views.
        assert ((other - first).abs().amax((1, 2, 3)) > 0.1)[[1, 5, 20, 47]].all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("cut", [1, 24, 31])
def test_ranks_make_their_rows_of_the_whole(cut: int, channels: int) -> None:
    images = normalised(pictures(channels=channels))
    views = make(channels, blur=0.5)
    whole = views(images, 2)
    parts = [
        views(images[rows], 2, start=rows.start, total=BATCH) for rows in (slice(0, cut), slice(cut, BATCH))
    ]
    first, second = zip(*(part.chunk(2) for part in parts), strict=True)
    assert torch.equal(torch.cat([*first, *second]), whole)


def test_switching_a_part_off_moves_no_other() -> None:
    images = normalised(pictures())
    grey = make(jitter=0, grey=1)(images, 0)
    plain = make(jitter=0, grey=0)(images, 0)
    back = plain * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(grey, normalised(luma(back).expand_as(back)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_type_layout_and_input_are_kept(dtype: torch.dtype, channels: int) -> None:
    images = normalised(pictures(channels=channels)).to(dtype)
    before = images.clone()
    views = make(channels, blur=0.5)(images, 0)
    assert views.shape == (2 * BATCH, channels, HEIGHT, WIDTH)
    assert views.dtype == dtype
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    exact = make(channels, blur=0.5)(images.double(), 0)
    torch.testing.assert_close(views.double(), exact, atol=2e-2 if dtype == torch.bfloat16 else 2e-4, rtol=0)
    black, white = ((value - MEAN[0]) / STD[0] for value in (0, 1))
    assert black - 0.02 < views[:, 0].min()
    assert views[:, 0].max() < white + 0.02
