"""The loader that augments whole batches on the device, against torchvision with a DataLoader.

    python benchmarks/loader.py --root DIR        DIR holds cifar-10-batches-py; without it, random images

Both crop with padding 4, flip and normalise the same 50,000 images of 32x32 into batches of 256. The runs
alternate, A B A B; of the DataLoader's settings the better one counts. One JSON line per case.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from tools.images.datasets import Data
from tools.images.images import ArrayImages
from tools.images.loaders import make_train_loader
from tools.images.options import KNOWN_SETS, DataConfig

BATCH = 256
KNOWN = KNOWN_SETS["cifar10"]


class RandomImages(Dataset[tuple[Tensor, int]]):
    """What torchvision's CIFAR10 does with its arrays, over random ones."""

    def __init__(self, data: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", transform: object) -> None:
        assert callable(transform)
        self.data, self.targets, self.transform = data, np.arange(len(data)) % 10, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), int(self.targets[index])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", default="")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=60, help="batches of the DataLoader per run")
    arguments = parser.parse_args()
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(KNOWN.mean, KNOWN.std),
        ]
    )
    if arguments.root:
        dataset = datasets.CIFAR10(arguments.root, train=True, transform=transform)
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
        dataset = RandomImages(pixels, transform)
    images = ArrayImages(torch.from_numpy(dataset.data).contiguous(), torch.as_tensor(dataset.targets))
    cases: dict[str, list[float]] = {"on_device": [], "dataloader_workers_0": [], "dataloader_workers_2": []}
    for _ in range(arguments.repeats):
        # Ours is so much quicker that it takes more batches to time.
        cases["on_device"].append(speed(our_batches(images, 10 * arguments.batches)))
        for workers in (0, 2):
            loader = DataLoader(dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers)
            cases[f"dataloader_workers_{workers}"].append(speed(first(loader, arguments.batches)))
    medians = {case: statistics.median(speeds) for case, speeds in cases.items()}
    best = max(value for case, value in medians.items() if case != "on_device")
    for case, speeds in cases.items():
        line = {
            "benchmark": "loader",
            "case": case,
            "images_per_second": round(medians[case]),
            "lowest": round(min(speeds)),
            "highest": round(max(speeds)),
            "ratio_to_best_dataloader": round(medians[case] / best, 2),
            "data": "cifar10" if arguments.root else "random",
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(line), flush=True)


def our_batches(images: ArrayImages, count: int) -> Iterable[Tensor]:
    data = Data(images, images, images, 10, 32, 3, KNOWN.mean, KNOWN.std, ())
    config = DataConfig(name="cifar10", root="given")
    loader = make_train_loader(images, data, config, batch_size=BATCH, seed=0, device="cpu")
    return (batch.images for batch in loader.batches(0, count))


def first(loader: "DataLoader[tuple[Tensor, int]]", count: int) -> Iterator[Tensor]:
    for _, (images, _) in zip(range(count), loader, strict=False):
        yield images


def speed(batches: Iterable[Tensor]) -> float:
    """Images per second, from the second batch on: starting workers is not counted against anyone."""
    iterator = iter(batches)
    next(iterator)
    start, seen = time.perf_counter(), 0
    for images in iterator:
        seen += len(images)
    return seen / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
