"""This module reads the data set that the options name and splits it into labelled images.

The splits are a pure function of the seed and the labels. The official test split is the test set; imagenet
publishes no labels for its own, so its official validation split is the test set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from tools.images.images import ArrayImages, FolderImages, Images, decode_all
from tools.images.options import DataConfig
from tools.images.sources import Source, read_source
from tools.mistake import Mistake
from tools.options.config import flag
from tools.seeding import torch_stream

TEST_PART = 0.1
"""This part of the images becomes the test set where a tree of folders has none of its own."""


@dataclass(frozen=True)
class Data:
    """A `Data` is a data set, split and ready for training."""

    train: Images
    validation: Images
    test: Images
    num_classes: int
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """These sentences tell the user what was chosen when the images were read and split."""


def load_data(config: DataConfig, seed: int) -> Data:
    """Read and split the data set that the options name; equal options and seeds give equal splits."""
    source = read_source(config)
    train, validation, test, classes = source.train, source.validation, source.test, source.class_names
    if test is None:
        count = max(_num_classes(train.labels), round(TEST_PART * len(train)))
        test, train = _divide(train, count, seed, "test", classes)
    train = _cut_down(train, config.train_size, seed, "train")
    test = _cut_down(test, config.test_size, seed, "test")
    if validation is None:
        count = round(config.validation * len(train))
        if config.validation:
            count = max(count, _num_classes(train.labels))
        validation, train = _divide(train, count, seed, "validation", classes)
    sizes = len(train), len(validation), len(test)
    return Data(
        train=_in_memory(train, config),
        validation=_in_memory(validation, config),
        test=_in_memory(test, config),
        num_classes=len(classes),
        image_size=config.size,
        channels=len(config.known.mean),
        mean=config.known.mean,
        std=config.known.std,
        class_names=classes,
        notes=(*source.notes, *_notes_on_splits(source, config, sizes)) if source.notes else (),
    )


def stratified(labels: Tensor, count: int, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Choose `count` indices with each class in proportion, and return (chosen, rest), both sorted.

    Every class is on both sides where `count` and the size of the class allow it.
    """
    members = [torch.nonzero(labels == label).flatten() for label in range(int(labels.max()) + 1)]
    sizes = torch.tensor([len(of_class) for of_class in members], dtype=torch.float64)
    quotas = _quotas(sizes, count)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, (of_class, quota) in enumerate(zip(members, quotas.tolist(), strict=True)):
        shuffled = torch.randperm(len(of_class), generator=torch_stream(seed, f"split/{purpose}", label))
        chosen[of_class[shuffled[: int(quota)]]] = True
    return torch.nonzero(chosen).flatten(), torch.nonzero(~chosen).flatten()


def fixed_part(images: Images, count: int, seed: int, purpose: str) -> Tensor:
    """Return the places of `count` images (0: all), with all classes in proportion, in shuffled order.

    It serves batches that should each hold all classes.
    """
    chosen = torch.arange(len(images))
    if 0 < count < len(images):
        chosen, _ = stratified(images.labels, count, seed, purpose)
    return chosen[torch.randperm(len(chosen), generator=torch_stream(seed, purpose))]


def whole_batches(images: Images, count: int, batch: int) -> tuple[int, int]:
    """Return how many images fill whole batches, at least one batch, and the size of a batch."""
    batch = min(batch, len(images))
    return max(batch, min(count, len(images)) // batch * batch), batch


def _notes_on_splits(source: Source, config: DataConfig, sizes: tuple[int, int, int]) -> list[str]:
    """Return sentences that say how many images each split has, and where they come from."""
    train, validation, test = (f"{size:,}" for size in sizes)
    lines = []
    if source.test is None:
        lines.append(
            f"{test} images became the test set: {TEST_PART:.0%} of all, but one or more of each class. A "
            "folder test beside a folder train would be taken instead."
        )
    else:
        lines.append(f"The test set has {test} images of a folder of its own.")
    if source.validation is None:
        lines.append(
            f"{validation} others became the validation set "
            f"({flag('data.validation')} {config.validation:g})."
        )
    else:
        lines.append(f"The validation set has {validation} images of a folder of its own.")
    drawn = source.test is None or source.validation is None
    which = f"; {flag('seed')} decides which" if drawn else ""
    return [*lines, f"That leaves {train} for training{which}."]


def _quotas(sizes: Tensor, count: int) -> Tensor:
    """Return how many images of each class make `count`: in proportion, but not none or all if possible."""
    assert 0 <= count <= sizes.sum()
    shares = sizes * count / sizes.sum()
    least = ((sizes > 1) & (count >= int((sizes > 1).sum()))).double()
    most = torch.where((sizes > 1) & (count <= (sizes - 1).clamp(min=0).sum()), sizes - 1, sizes)
    quotas = shares.floor().clamp(least, most)
    # What is missing goes to the largest fractions, the first class first among equals. A surplus is taken
    # from the classes that got most beyond their share.
    while (missing := count - int(quotas.sum())) > 0:
        order = torch.argsort(shares - quotas, descending=True, stable=True)
        room = order[(quotas < most)[order]]
        quotas[room[:missing]] += 1
    while (surplus := int(quotas.sum()) - count) > 0:
        order = torch.argsort(quotas - shares, descending=True, stable=True)
        spare = order[(quotas > least)[order]]
        quotas[spare[:surplus]] -= 1
    return quotas


def _divide(
    images: Images, count: int, seed: int, purpose: str, names: Sequence[str]
) -> tuple[Images, Images]:
    """Take `count` images out, with every class on both sides."""
    sizes = torch.bincount(images.labels, minlength=len(names))
    scarce = [name for name, size in zip(names, sizes.tolist(), strict=True) if size == 1]
    if count and (scarce or count > len(images) - _num_classes(images.labels)):
        which = f"class '{scarce[0]}' has" if scarce else "the classes have"
        folder = "test" if purpose == "test" else "val"
        none = "" if purpose == "test" else ", or give `data.validation` 0"
        raise Mistake(
            "data.root",
            f"{which} too few images to set some apart as {purpose} images",
            f"add images, or a folder {folder} beside a folder train{none}",
        )
    chosen, rest = stratified(images.labels, count, seed, purpose)
    return images.subset(chosen), images.subset(rest)


def _cut_down(images: Images, size: int, seed: int, part: str) -> Images:
    if not size or size == len(images):
        return images
    num_classes = _num_classes(images.labels)
    if not num_classes <= size <= len(images):
        raise Mistake(
            f"data.{part}_size",
            f"{size} images cannot be taken; there are {len(images)}, of {num_classes} classes that each "
            "need one",
        )
    chosen, _ = stratified(images.labels, size, seed, f"{part}-size")
    return images.subset(chosen)


def _num_classes(labels: Tensor) -> int:
    return int(torch.count_nonzero(torch.bincount(labels)))


def _in_memory(images: Images, config: DataConfig) -> Images:
    """Return images in the form that their loader expects, small ones at their final size."""
    if isinstance(images, FolderImages):
        return images if config.streamed else ArrayImages(decode_all(images, config.size), images.labels)
    if images.images.shape[1] == config.size:
        return images
    resized = [
        transforms.resize(part.permute(0, 3, 1, 2), [config.size, config.size], antialias=True)
        for part in torch.split(images.images, 1024)
    ]
    return ArrayImages(torch.cat(resized).permute(0, 2, 3, 1).contiguous(), images.labels)
