"""This module keeps the images of the embedded data set, which take a second to draw, for the next start."""

import contextlib
import hashlib
import io
from pathlib import Path

import numpy as np

from tools.files.atomic import write_bytes
from tools.files.cache import cache_folder
from tools.images import shapes
from tools.images.shapes import Bytes

FEWEST = 2_000
"""Fewer images than this are drawn anew; that takes no longer than to read them."""


def drawn(num_images: int, *, num_classes: int, image_size: int, seed: int, split: str) -> Bytes:
    """Return the images that `shapes.generate` draws, from the cache if they are there.

    Files in the cache belong to the present way to draw: another one has other files.
    """
    path = _path(num_images, num_classes, image_size, seed, split) if num_images >= FEWEST else None
    shape = (num_images, image_size, image_size, 3)
    if path is not None and (kept := _read(path)) is not None and kept.shape == shape:
        return kept
    images, _ = shapes.generate(
        num_images, num_classes=num_classes, image_size=image_size, seed=seed, split=split
    )
    if path is not None:
        content = io.BytesIO()
        np.save(content, images, allow_pickle=False)
        with contextlib.suppress(OSError):  # the next start will draw again
            write_bytes(path, content.getvalue())
    return images


def _read(path: Path) -> Bytes | None:
    """Return what a file holds, or None if it is missing or damaged."""
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.dtype == np.uint8 else None


def _path(*wanted: object) -> Path | None:
    """Return the file for some images, or None if there can be none."""
    try:
        way = Path(shapes.__file__).read_bytes()
        key = hashlib.sha256(way + repr((wanted, np.__version__)).encode()).hexdigest()
        return cache_folder() / f"shapes-{key[:20]}.npy"
    except OSError:
        return None
