"""This module reads the images of each data set.

Images are in colour, except for the sets that are grey throughout (mnist, fashion_mnist). Files are unpickled
only if their checksum is known, or by a reader that accepts nothing but arrays.
"""

import fcntl
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from tools.images import shapes
from tools.images.drawn import drawn
from tools.images.images import ArrayImages, FolderImages, Images, from_names, list_classes, list_images
from tools.images.inspection import inspect, sentences, without_broken
from tools.images.options import DataConfig
from tools.mistake import Mistake

SHAPES_SEED = 0
"""shapes is one fixed data set, as CIFAR-10 is: the run's seed splits it, but never draws other images."""


@dataclass(frozen=True)
class Source:
    """A `Source` is what the files of a data set hold, before it is split."""

    train: Images
    test: Images | None
    class_names: tuple[str, ...]
    validation: Images | None = None
    notes: tuple[str, ...] = ()
    """These sentences tell the user what was read."""


def read_source(config: DataConfig) -> Source:
    """Read the data set that the options name; a ValueError says what is missing and what to do."""
    if config.name == "shapes":
        return _read_shapes(config)
    config.check_root()
    root = Path(config.root)
    if config.known.torchvision:
        return _read_torchvision(config, root)
    readers = {
        "tiny-imagenet": _read_tiny_imagenet,
        "imagenet32": _read_imagenet32,
        "imagenet": _read_imagenet,
        "folder": _read_folder,
    }
    return readers[config.name](config, root)


def _read_shapes(config: DataConfig) -> Source:
    num_classes = config.num_classes or config.known.num_classes

    def split(name: str, count: int) -> ArrayImages:
        if count < num_classes:
            raise Mistake(f"data.{name}_size", f"{count} images are too few for {num_classes} classes")
        images = drawn(count, num_classes=num_classes, image_size=config.size, seed=SHAPES_SEED, split=name)
        return ArrayImages(torch.from_numpy(images), torch.arange(count) % num_classes)

    names = tuple(shapes.class_names(num_classes))
    return Source(
        split("train", config.train_size or 10_000), split("test", config.test_size or 2_000), names
    )


def _read_torchvision(config: DataConfig, root: Path) -> Source:
    """Read a set through torchvision, which checks the sums of CIFAR's files before it unpickles them."""
    make = getattr(torchvision.datasets, config.known.torchvision)
    with _alone(root, config.download), warnings.catch_warnings():
        # NumPy warns of how the official CIFAR pickles spell a dtype.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align", category=Warning)
        try:
            train, test = (make(root, train=part, download=config.download) for part in (True, False))
        except (RuntimeError, OSError, ValueError, EOFError) as error:
            raise Mistake(
                "data.root",
                f"{config.name} cannot be read from {root}: a file is missing or is not the "
                f"official one ({str(error).split('.')[0]})",
                config.cure,
            ) from None
    names = tuple(str(name) for name in train.classes)
    return Source(_from_array(train.data, train.targets), _from_array(test.data, test.targets), names)


@contextmanager
def _alone(root: Path, download: bool) -> Iterator[None]:
    """Let the first of several processes on one machine download; the others wait and then find the files."""
    if not download:
        yield
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".download.lock").open("w")
    except OSError as error:
        raise Mistake("data.root", f"cannot write in {root}: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _from_array(images: "NDArray[np.uint8] | Tensor", labels: "Tensor | list[int]") -> ArrayImages:
    pixels = torch.as_tensor(images)
    if pixels.dim() == 3:
        pixels = pixels[..., None]
    return ArrayImages(pixels.contiguous(), torch.as_tensor(labels, dtype=torch.int64))


def _read_tiny_imagenet(config: DataConfig, root: Path) -> Source:
    train = _subfolder(config, root, "train")
    classes = list_classes(train)
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise Mistake("data.root", f"{annotations} is missing", config.cure)
    rows = [line.split("\t") for line in annotations.read_text().splitlines() if line.strip()]
    numbers = {name: label for label, name in enumerate(classes)}
    if any(len(row) < 2 or row[1] not in numbers for row in rows):
        raise Mistake("data.root", f"{annotations} names classes that {train} does not have")
    test = from_names(root / "val" / "images", [row[0] for row in rows], [numbers[row[1]] for row in rows])
    return Source(list_images(train, classes, "images"), test, tuple(classes))


def _read_imagenet(config: DataConfig, root: Path) -> Source:
    train, val = _subfolder(config, root, "train"), _subfolder(config, root, "val")
    classes = list_classes(train)
    parts = {"train": list_images(train, classes), "val": list_images(val, classes)}
    notes: tuple[str, ...] = ()
    if config.skip_broken:  # a look at a million files takes minutes, and the official ones are whole
        parts, notes = _readable_parts(parts, root, classes, config)
    return Source(parts["train"], parts["val"], tuple(classes), notes=notes)


def _read_folder(config: DataConfig, root: Path) -> Source:
    train = root / "train" if (root / "train").is_dir() else root
    classes = list_classes(train)
    parts = {"train": list_images(train, classes)}
    for name in ("valid", "validation"):
        if train != root and (root / name).is_dir():
            raise Mistake("data.root", f"{root / name} would be overlooked", f"call it {root / 'val'}")
    for name in ("val", "test"):
        part = root / name
        if train != root and part.is_dir():
            if (own := list_classes(part)) != classes:
                odd = sorted(set(own) ^ set(classes))[0]
                raise Mistake("data.root", f"{part} and {train} differ in their classes, such as {odd}")
            parts[name] = list_images(part, classes)
    parts, notes = _readable_parts(parts, root, classes, config)
    return Source(parts["train"], parts.get("test"), tuple(classes), parts.get("val"), notes)


def _readable_parts(
    parts: dict[str, FolderImages], root: Path, classes: list[str], config: DataConfig
) -> tuple[dict[str, FolderImages], tuple[str, ...]]:
    """Return the parts without files that cannot be decoded, and sentences on what was found."""
    inspected = {name: inspect(images) for name, images in parts.items()}
    sound = without_broken(inspected, root, config)
    return sound, tuple(sentences(inspected, root, classes, config))


def _subfolder(config: DataConfig, root: Path, name: str) -> Path:
    if not (root / name).is_dir():
        raise Mistake("data.root", f"{root} has no folder {name}", config.cure)
    return root / name


def _read_imagenet32(config: DataConfig, root: Path) -> Source:
    train = [_read_batch(config, root, f"train_data_batch_{number}") for number in range(1, 11)]
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    test = ArrayImages(*_read_batch(config, root, "val_data"))
    # The distribution numbers its classes and does not name them.
    names = tuple(str(number) for number in range(1, config.known.num_classes + 1))
    return Source(ArrayImages(images, labels), test, names)


def _read_batch(config: DataConfig, root: Path, name: str) -> tuple[Tensor, Tensor]:
    """Read one file of the downsampled ImageNet: rows of 3 x 32 x 32 bytes, labels from 1."""
    path = root / f"{name}.npz"
    path = path if path.is_file() else root / name
    if not path.is_file():
        raise Mistake("data.root", f"{path} is missing", config.cure)
    try:
        with path.open("rb") as file:
            content: Mapping[str, Any] = (
                np.load(file, allow_pickle=False) if path.suffix == ".npz" else ArraysOnly(file).load()
            )
            rows, labels = np.asarray(content["data"]), np.asarray(content["labels"], dtype=np.int64)
        pixels = torch.from_numpy(rows.reshape(-1, 3, 32, 32))
    except Exception as error:
        raise ValueError(f"{path}: is not a file of the downsampled ImageNet ({error})") from None
    return pixels.permute(0, 2, 3, 1).contiguous(), torch.from_numpy(labels) - 1


class ArraysOnly(pickle.Unpickler):
    """An unpickler of arrays and plain values; anything else in the file is refused before it can run."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
