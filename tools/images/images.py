"""This module holds labelled images, in memory or in files, lists image files and decodes them."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as transforms

from tools.failures import RunFailed
from tools.mistake import Mistake

FAULTS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""Pillow's decoders raise these errors for broken files."""


class BadImage(RunFailed):
    """A `BadImage` names a file that should be an image and is not."""


@dataclass(frozen=True)
class ArrayImages:
    """An `ArrayImages` holds images in memory: uint8 (N, H, W, C), which is channels_last once permuted.

    C is 3, or 1 for grey images.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8
        assert self.images.dim() == 4, self.images.shape
        assert self.images.shape[3] in (1, 3), self.images.shape
        assert self.labels.shape == self.images.shape[:1]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "ArrayImages":
        """Return the images at these places."""
        return ArrayImages(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class FolderImages:
    """A `FolderImages` holds images that stay in their files until they are needed."""

    root: Path
    names: NDArray[np.bytes_]
    """These are paths below the root, as bytes in one array.

    A list of a million strings would be copied into every worker process, because reading a string changes
    its reference count."""
    labels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Return the path of one image."""
        return self.root / os.fsdecode(bytes(self.names[index]))

    def subset(self, indices: Tensor) -> "FolderImages":
        """Return the images at these places."""
        return FolderImages(self.root, self.names[indices.numpy()], self.labels[indices])


Images = ArrayImages | FolderImages


def list_classes(folder: Path) -> list[str]:
    """Return the names of the class folders, sorted."""
    names = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
    )
    if len(names) < 2:
        raise Mistake("data.root", f"{folder} must hold two or more class folders, found {len(names)}")
    return names


def images_below(folder: Path) -> list[Path]:
    """Return all images in a folder and the folders inside, sorted; hidden files are passed over."""
    return sorted(map(Path, filter(is_image, files_below(folder))))


def list_images(folder: Path, classes: Sequence[str], inner: str = "") -> FolderImages:
    """Return all images of <folder>/<class>/<inner>, sorted; folders inside are searched too."""
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        paths = sorted(filter(is_image, files_below(folder / name / inner)))
        if not paths:
            raise Mistake(
                "data.root",
                f"the class folder {folder / name / inner} holds no image ({', '.join(IMG_EXTENSIONS)})",
            )
        names += [os.path.relpath(path, folder) for path in paths]
        labels += [label] * len(paths)
    return from_names(folder, names, labels)


def from_names(root: Path, names: Sequence[str], labels: Sequence[int]) -> FolderImages:
    """Return images by their file names under a folder, without opening any."""
    return FolderImages(root, np.array([os.fsencode(name) for name in names]), torch.tensor(labels))


def decode(path: Path) -> Image.Image:
    """Return a file's image in RGB, or raise a BadImage that names a file that cannot be decoded."""
    try:
        return read_rgb(path)
    except FAULTS as error:
        reason = reason_of(error)
        raise BadImage(f"{path}: cannot be decoded as an image ({reason}); replace or remove it") from None


def read_rgb(path: Path) -> Image.Image:
    """Return a file's image in RGB, or raise Pillow's error, which is one of FAULTS."""
    with Image.open(path) as image:
        if image.mode.startswith("I;16"):  # Pillow would cut off what does not fit into 8 bits
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        # Going through RGBA drops a palette's transparency without a warning.
        return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def reason_of(error: Exception) -> str:
    """Return what Pillow or the system says of a file, in words that do not name the file."""
    if isinstance(error, UnidentifiedImageError):
        return "its content is no image"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def fit(image: Image.Image, *, resize: int, crop: int) -> Image.Image:
    """Scale an image's shorter side and return the square in the middle; an image that fits is unchanged."""
    if image.size == (crop, crop) == (resize, resize):
        return image
    fitted: Image.Image = transforms.center_crop(transforms.resize(image, [resize]), [crop])
    return fitted


def decode_all(images: FolderImages, size: int) -> Tensor:
    """Decode all images into one uint8 array (N, size, size, 3): the shorter side scaled, the middle kept."""

    def load(index: int) -> NDArray[np.uint8]:
        return np.asarray(fit(decode(images.path(index)), resize=size, crop=size))

    result = torch.empty(len(images), size, size, 3, dtype=torch.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding the interpreter's lock
        for index, image in enumerate(pool.map(load, range(len(images)))):
            result[index] = torch.tensor(image)
    return result


def files_below(folder: str | Path) -> Iterator[str]:
    """Return all files in a folder and in the folders inside, except hidden ones."""
    for where, _, files in os.walk(folder, followlinks=True):
        yield from (os.path.join(where, name) for name in files if not name.startswith("."))


def is_image(name: str) -> bool:
    """Return whether a file is an image, judged by its ending."""
    return name.lower().endswith(IMG_EXTENSIONS)
