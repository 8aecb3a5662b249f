"""This module keeps the images of the embedded data set, which take a second to draw, for the next start."""

import contextlib
import hashlib
import math
import os
import tempfile
from pathlib import Path

import numpy as np

from tools import seeding
from tools.files.cache import cache_folder
from tools.images import shapes
from tools.images.shapes import Bytes

FEWEST, MOST_BYTES = 2_000, 200_000_000
"""Fewer images than this are drawn anew, which takes no longer than to read them, and so are larger sets."""


def drawn(num_images: int, *, num_classes: int, image_size: int, seed: int, split: str) -> Bytes:
    """Return the images that `shapes.generate` draws, from the cache if they are there.

    Files in the cache belong to the present way to draw: another one has other files.
    """
    shape = (num_images, image_size, image_size, 3)
    keeps = num_images >= FEWEST and math.prod(shape) <= MOST_BYTES
    path = _path(num_images, num_classes, image_size, seed, split) if keeps else None
    if path is not None and (kept := _read(path)) is not None and kept.shape == shape:
        return kept
    images, _ = shapes.generate(
        num_images, num_classes=num_classes, image_size=image_size, seed=seed, split=split
    )
    if path is not None:
        with contextlib.suppress(OSError):  # the next start will draw again
            _write(path, images)
    return images


def _write(path: Path, images: Bytes) -> None:
    """Write into a file beside `path` and rename it, since other processes may do the same now."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, images, allow_pickle=False)
        os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


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
        way = b"".join(Path(str(module.__file__)).read_bytes() for module in (shapes, seeding))
        key = hashlib.sha256(way + repr((wanted, np.__version__)).encode()).hexdigest()
        return cache_folder() / f"shapes-{key[:20]}.npy"
    except (OSError, RuntimeError):  # of these, the latter where a user has no home
        return None
