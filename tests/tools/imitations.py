"""Every data set in small: a few images, in the files that the real one has."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tools.images.datasets import Data, load_data
from tools.images.images import ArrayImages
from tools.images.options import DataConfig


def write_images(folder: Path, count: int, *, size: tuple[int, int] = (9, 7), mode: str = "RGB") -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new(mode, size, color=number + 1).save(folder / f"{number}.png")


def write_downsampled(root: Path, *, pickled: bool) -> None:
    """The downsampled ImageNet, four images a file."""
    for name in [*(f"train_data_batch_{number}" for number in range(1, 11)), "val_data"]:
        rows = np.zeros((4, 3 * 32 * 32), np.uint8)
        rows[:, 1] = 7  # second pixel of the first line, red
        batch = {"data": rows, "labels": [1, 2, 1, 2]}
        if pickled:
            (root / name).write_bytes(pickle.dumps(batch))
        else:
            np.savez(root / f"{name}.npz", **batch)  # type: ignore[arg-type]


def write_tiny_imagenet(root: Path) -> None:
    for name in ("n01", "n02"):
        write_images(root / "train" / name / "images", 10, size=(64, 64))
    write_images(root / "val" / "images", 2, size=(64, 64))
    (root / "val" / "val_annotations.txt").write_text("0.png\tn02\t0\t0\t1\t1\n1.png\tn01\t0\t0\t1\t1\n")


def write_digits(folder: Path) -> None:
    """MNIST's four files, twenty images each."""
    folder.mkdir(parents=True)
    labels = np.arange(20, dtype=np.uint8) % 10
    images = np.arange(20 * 28 * 28, dtype=np.uint8).reshape(20, 28, 28)
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = np.array([0x800 + values.ndim, *values.shape], dtype=">i4").tobytes()
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + values.tobytes())


def imitation(name: str, root: Path, **options: Any) -> tuple[DataConfig, Data]:
    """The options for a data set in small, and what is read by them."""
    usual: dict[str, Any] = {"root": str(root), "image_size": 16}
    if name == "shapes":
        usual = {"image_size": 16, "train_size": 40, "test_size": 20}
    elif name in ("mnist", "fashion_mnist"):
        write_digits(root / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name] / "raw")
    elif name == "tiny-imagenet":
        write_tiny_imagenet(root)
    elif name == "imagenet32":
        write_downsampled(root, pickled=True)
    elif name == "imagenet":
        for part in ("train", "val"):
            for label in ("n01", "n02"):
                write_images(root / part / label, 10, size=(20, 18))
    elif name == "folder":
        for label in ("cat", "dog", "owl"):
            write_images(root / label, 10, size=(20, 18))
    config = DataConfig(name=name, **usual | options)
    if not name.startswith("cifar"):
        return config, load_data(config, 0)
    # Their files must have the official sums; what is read from them is an array.
    images = ArrayImages(torch.randint(256, (20, 16, 16, 3), dtype=torch.uint8), torch.arange(20) % 10)
    known = config.known
    names = tuple(map(str, range(known.num_classes)))
    return config, Data(images, images, images, len(names), 16, 3, known.mean, known.std, names)
