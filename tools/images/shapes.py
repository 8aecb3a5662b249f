"""This module draws the embedded data set: silhouettes with a texture and a colour, in front of clutter.

A class is one combination of the three. Each value of each is shared with other classes, so neither colour
nor silhouette nor texture alone is enough. Images are a pure function of (seed, split, chunk of 256), so a
larger set begins with the smaller one. Each pixel is computed only with operations that IEEE 754 rounds
exactly (no sine, no exponential). So the bytes do not depend on the processor or on the number of threads.

Shape suffixes: B images of a chunk, S side of an image in pixels.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.mistake import Mistake
from tools.seeding import numpy_stream

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]

CHUNK = 256
"""This many images are drawn together; images depend on this number, so it must never change."""

CLUTTER = 3
"""This many shapes of other classes' parts lie behind the shape that counts."""


def generate(
    num_images: int, *, num_classes: int, image_size: int, seed: int, split: str
) -> tuple[Bytes, Integers]:
    """Draw images (num_images, S, S, 3) and their labels; image i has class i modulo num_classes."""
    factors = class_factors(num_classes)
    labels = np.arange(num_images, dtype=np.int64) % num_classes
    images = np.empty((num_images, image_size, image_size, 3), np.uint8)

    def fill(chunk: int) -> None:
        part = slice(chunk * CHUNK, min((chunk + 1) * CHUNK, num_images))
        wanted = factors[np.arange(chunk * CHUNK, (chunk + 1) * CHUNK) % num_classes]
        rng = numpy_stream(seed, f"shapes/{split}", chunk)
        images[part] = _draw(wanted, image_size, rng)[: part.stop - part.start]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(-(-num_images // CHUNK))))
    return images, labels


def class_factors(num_classes: int) -> Integers:
    """Return one row (silhouette, texture, colour) per class, all different, with values in common."""
    if not 2 <= num_classes <= MAX_CLASSES:
        raise Mistake("data.num_classes", f"shapes has 2 to {MAX_CLASSES} classes, not {num_classes}")
    # Take the smallest grid of which the classes fill at most a third: values repeat, combinations do not.
    levels = 2
    while (levels + 1) * levels**2 < 3 * num_classes and levels < len(SILHOUETTES):
        levels += 1
    grid = min(levels + 1, len(SILHOUETTES)), min(levels, len(TEXTURES)), min(levels, len(HUES))
    size = grid[0] * grid[1] * grid[2]
    stride = next(step for step in range(7, size + 8) if np.gcd(step, size) == 1)
    cells = np.arange(num_classes) * stride % size
    return np.stack(np.unravel_index(cells, grid), axis=1).astype(np.int64)


def class_names(num_classes: int) -> list[str]:
    """Return what each class shows, in words."""
    return [
        f"{HUES[colour]} {TEXTURES[texture].__name__[1:]} {SILHOUETTES[silhouette].__name__[1:]}"
        for silhouette, texture, colour in class_factors(num_classes).tolist()
    ]


@dataclass(frozen=True)
class _Placed:
    """One shape per image of the chunk: what it is and where; lengths are in units of half the image."""

    silhouette: Integers
    texture: Integers
    hue: Floats
    x: Floats
    y: Floats
    radius: Floats
    angle: Floats


def _draw(factors: Integers, size: int, rng: np.random.Generator) -> Bytes:
    """Draw one chunk: background, clutter, the shape of the class, light and noise."""
    count = len(factors)
    canvas = _background(count, size, rng)
    for _ in range(CLUTTER):
        _paint(canvas, _place(_random_factors(count, rng), rng, radius=(0.2, 0.38), spread=0.9), rng)
    _paint(canvas, _place(factors, rng, radius=(0.38, 0.62), spread=0.45), rng)
    _light(canvas, rng)
    noise_level = rng.uniform(0.05, 0.2, (count, 1, 1, 1)).astype(np.float32)
    # The sum of two uniform bytes has a triangular distribution, close to a bell curve and far cheaper.
    grains = rng.integers(0, 256, (2, count, size, size, 3), np.uint8)
    grain = (grains[0].astype(np.uint16) + grains[1]).astype(np.float32)
    noise = noise_level * (grain * np.float32(1 / 104) - np.float32(255 / 104))
    images: Floats = np.moveaxis(canvas, 0, -1) + noise
    return (np.clip(images, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _random_factors(count: int, rng: np.random.Generator) -> Integers:
    return np.stack([rng.integers(0, n, count) for n in (len(SILHOUETTES), len(TEXTURES), len(HUES))], axis=1)


def _place(
    factors: Integers, rng: np.random.Generator, *, radius: tuple[float, float], spread: float
) -> _Placed:
    def uniform(low: float, high: float) -> Floats:
        return rng.uniform(low, high, len(factors)).astype(np.float32)

    return _Placed(
        silhouette=factors[:, 0],
        texture=factors[:, 1],
        hue=(factors[:, 2] / np.float32(len(HUES)) + uniform(-0.09, 0.09)).astype(np.float32) % 1,
        x=uniform(-spread, spread),
        y=uniform(-spread, spread),
        radius=uniform(*radius),
        angle=uniform(0, 2 * np.pi),
    )


def _background(count: int, size: int, rng: np.random.Generator) -> Floats:
    """Draw weak random waves over a random dull colour."""
    base, tint = (rng.uniform(low, high, (count, 1, 1, 3)) for low, high in ((0.1, 0.8), (-0.25, 0.25)))
    u, v = _turned(count, size, *(rng.uniform(-1, 1, count).astype(np.float32) for _ in range(2)), rng=rng)
    frequency = rng.uniform(1, 5, (2, count, 1, 1)).astype(np.float32)
    waves = _wave(u * frequency[0]) * _wave(v * frequency[1])
    low, high = (_channels(colours.astype(np.float32)) for colours in (base, tint))
    return low + waves * high


def _channels(colours: Floats) -> Floats:
    """Put the channels of colours (B, 1, 1, 3) first, as the canvas (3, B, S, S) has them.

    numpy is several times faster with planes than with three values for each pixel.
    """
    return np.moveaxis(colours, -1, 0)


def _turned(
    count: int, size: int, x: Floats, y: Floats, *, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    angle = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
    return _local(size, x, y, np.ones(count, np.float32), angle)


def _local(size: int, x: Floats, y: Floats, radius: Floats, angle: Floats) -> tuple[Floats, Floats]:
    """Return the coordinates (B, S, S) of the pixels in each shape's own frame, where its radius is 1."""
    axis = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    # First in float64: libraries differ in the last bit of a cosine, which rounding to float32 hides.
    wide, scale = angle.astype(np.float64), radius[:, None, None]
    cosine = np.cos(wide).astype(np.float32)[:, None, None] / scale
    sine = np.sin(wide).astype(np.float32)[:, None, None] / scale
    across, down = axis[None, None, :] - x[:, None, None], axis[None, :, None] - y[:, None, None]
    return across * cosine + down * sine, down * cosine - across * sine


def _paint(canvas: Floats, shape: _Placed, rng: np.random.Generator) -> None:
    """Paint a shape over the canvas, with edges one pixel soft."""
    size = canvas.shape[-1]
    u, v = _local(size, shape.x, shape.y, shape.radius, shape.angle)
    # Half a pixel is 1 / size in units of half the image.
    softness = (shape.radius * np.float32(size / 2))[:, None, None]
    cover = np.clip(0.5 - _by_kind(SILHOUETTES, shape.silhouette, u, v) * softness, 0, 1)
    pattern = _by_kind(TEXTURES, shape.texture, u, v)
    light, dark = _colours(shape.hue, rng)
    for plane, bright, dim in zip(canvas, _channels(light), _channels(dark), strict=True):
        plane += cover * (dim + pattern * (bright - dim) - plane)


def _by_kind(kinds: "tuple[_Field, ...]", kind: Integers, u: Floats, v: Floats) -> Floats:
    """Evaluate, for every image, the function of its kind."""
    result = np.empty_like(u)
    for number, function in enumerate(kinds):
        rows = np.flatnonzero(kind == number)
        if len(rows):
            result[rows] = function(u[rows], v[rows])
    return result


def _colours(hue: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return the light and the dark colour (B, 1, 1, 3) of a hue; both vary, as lamps and paints do."""
    saturation, value, depth = (
        rng.uniform(low, high, (len(hue), 1)).astype(np.float32)
        for low, high in ((0.2, 0.9), (0.5, 1.0), (0.2, 0.65))
    )
    # HSV to RGB: each channel is a trapezoid over the hue circle.
    offsets = np.array([5, 3, 1], np.float32)
    sector = (offsets + hue[:, None] * 6) % 6
    light = value * (1 - saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1))
    return light[:, None, None], (light * depth)[:, None, None]


def _light(canvas: Floats, rng: np.random.Generator) -> None:
    """Apply a gradient of brightness across the image, and a colour cast."""
    count, size = canvas.shape[1:3]
    slope = rng.uniform(-0.3, 0.3, (2, count, 1, 1)).astype(np.float32)
    cast = rng.uniform(0.85, 1.15, (count, 1, 1, 3)).astype(np.float32)
    axis = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    brightness = 1 + slope[0] * axis[None, None, :] + slope[1] * axis[None, :, None]
    for plane, factor in zip(canvas, _channels(cast), strict=True):
        plane *= brightness * factor


def _wave(x: Floats) -> Floats:
    """Return a triangle wave of period 1 between -1 and 1."""
    value: Floats = 4 * np.abs(x - np.floor(x + np.float32(0.5))) - 1
    return value


def _norm(u: Floats, v: Floats) -> Floats:
    value: Floats = np.sqrt(u * u + v * v)
    return value


_Field = Callable[[Floats, Floats], Floats]


# Signed distances, or what is close to them near the edge: negative inside, radius about 1. Every
# silhouette is its own mirror image up to a turn, so that flipping an image keeps its class.
def _disc(u: Floats, v: Floats) -> Floats:
    value: Floats = _norm(u, v) - np.float32(0.85)
    return value


def _square(u: Floats, v: Floats) -> Floats:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.75)


def _triangle(u: Floats, v: Floats) -> Floats:
    return np.maximum(np.abs(u) * np.float32(0.866) + v * np.float32(0.5), -v) - np.float32(0.5)


def _cross(u: Floats, v: Floats) -> Floats:
    across, down = np.abs(u), np.abs(v)
    value: Floats = np.maximum(np.maximum(across, down) - 1, np.minimum(across, down) - np.float32(0.3))
    return value


def _ring(u: Floats, v: Floats) -> Floats:
    value: Floats = np.abs(_norm(u, v) - np.float32(0.7)) - np.float32(0.25)
    return value


def _star(u: Floats, v: Floats) -> Floats:
    """Draw a pentagram: the points inside all but at most one of five half planes."""
    turns = 2 * np.pi * np.arange(5) / 5
    most, second = np.full_like(u, -np.inf), np.full_like(u, -np.inf)
    for cosine, sine in zip(np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32), strict=True):
        side = u * cosine + v * sine
        second = np.maximum(second, np.minimum(most, side))
        most = np.maximum(most, side)
    value: Floats = second - np.float32(0.34)
    return value


def _crescent(u: Floats, v: Floats) -> Floats:
    value: Floats = np.maximum(
        _norm(u, v) - np.float32(0.95), np.float32(0.75) - _norm(u - np.float32(0.45), v)
    )
    return value


def _hourglass(u: Floats, v: Floats) -> Floats:
    waist = np.abs(u) - np.abs(v) * np.float32(0.8) - np.float32(0.1)
    value: Floats = np.maximum(np.abs(v) - np.float32(0.85), waist)
    return value


# Textures: 1 where the light colour is, 0 where the dark one is.
def _plain(u: Floats, v: Floats) -> Floats:
    return np.ones_like(u)


def _stripes(u: Floats, v: Floats) -> Floats:
    return _sharpened(_wave(u * np.float32(1.6)))


def _checks(u: Floats, v: Floats) -> Floats:
    return _sharpened(_wave(u * np.float32(1.2)) * _wave(v * np.float32(1.2)) * 2)


def _rings(u: Floats, v: Floats) -> Floats:
    return _sharpened(_wave(_norm(u, v) * np.float32(1.8)))


def _halves(u: Floats, v: Floats) -> Floats:
    return _sharpened(v * 3)


def _spot(u: Floats, v: Floats) -> Floats:
    return _sharpened(4 * _norm(u, v) - 2)


def _sharpened(x: Floats) -> Floats:
    value: Floats = np.clip(x * np.float32(1.5) + np.float32(0.5), 0, 1)
    return value


SILHOUETTES: tuple[_Field, ...] = (_disc, _square, _triangle, _star, _cross, _ring, _crescent, _hourglass)
TEXTURES: tuple[_Field, ...] = (_plain, _stripes, _checks, _rings, _halves, _spot)
HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")
MAX_CLASSES = len(SILHOUETTES) * len(TEXTURES) * len(HUES)
