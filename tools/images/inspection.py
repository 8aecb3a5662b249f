"""This module looks at a tree of images before training: which files can be decoded, and their sizes."""

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from tools.images.images import FAULTS, FolderImages, files_below, is_image, read_rgb, reason_of
from tools.images.options import DataConfig
from tools.mistake import Mistake
from tools.options.config import flag

NAMED = 12
"""At most this many broken files or classes are named; of the others only the number is given."""


class Seen(NamedTuple):
    """A `Seen` is the result of a look at one file."""

    size: tuple[int, int] = (0, 0)
    """The size is width and height in pixels."""
    fault: str = ""
    """The fault says why the file cannot be decoded; it is empty where it can be."""


@dataclass(frozen=True)
class Inspection:
    """An `Inspection` holds the files of one part of a data set, and the result of a look at each."""

    images: FolderImages
    seen: Sequence[Seen]

    @property
    def broken(self) -> list[tuple[Path, str]]:
        """Return the files that cannot be decoded, each with the reason."""
        return [(self.images.path(index), file.fault) for index, file in enumerate(self.seen) if file.fault]

    @property
    def sound(self) -> FolderImages:
        """Return the files that can be decoded."""
        return self.images.subset(torch.tensor([not file.fault for file in self.seen]).nonzero().flatten())

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Return the sizes of the files that can be decoded."""
        return [file.size for file in self.seen if not file.fault]


def inspect(images: FolderImages) -> Inspection:
    """Look at all files, several at a time."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # broken files are reported in our own words
        return Inspection(images, list(pool.map(lambda index: look(images.path(index)), range(len(images)))))


def look(path: Path) -> Seen:
    """Look at one file, and read no more of it than is needed to know whether it is whole.

    A PNG holds checksums of its parts. A JPEG is read in full but decoded to a small grey image, which takes
    less time than decoding it whole. Any other file is decoded.
    """
    try:
        with Image.open(path) as image:
            size, kind = image.size, image.format
            if kind == "JPEG":
                image.draft("L", (1, 1))
                image.load()
            else:
                image.verify()
        if kind not in ("JPEG", "PNG"):
            read_rgb(path)
    except FAULTS as error:
        return Seen(fault=reason_of(error))
    return Seen(size)


def without_broken(
    parts: Mapping[str, Inspection], root: Path, config: DataConfig
) -> dict[str, FolderImages]:
    """Return the sound files of each part, and name all broken ones at once unless the options drop them."""
    if not config.skip_broken and (broken := [file for part in parts.values() for file in part.broken]):
        count = "1 file" if len(broken) == 1 else f"{len(broken):,} files"
        raise Mistake(
            "data.root",
            f"{count} below {root} cannot be decoded as images: {_named(broken, root)}",
            "replace or remove them, or leave them out by `data.skip_broken`",
        )
    for part in parts.values():
        if gone := set(part.images.labels.tolist()) - set(part.sound.labels.tolist()):
            members = (part.images.labels == min(gone)).nonzero().flatten()
            folder = part.images.path(int(members[0])).parent
            raise Mistake("data.root", f"no image of the class folder {folder} can be decoded")
    return {name: part.sound for name, part in parts.items()}


def sentences(
    parts: Mapping[str, Inspection], root: Path, classes: Sequence[str], config: DataConfig
) -> list[str]:
    """Return sentences for the user: what is read from a tree, what is not, and at what size."""
    sizes = [size for part in parts.values() for size in part.sizes]
    names = ", ".join(classes[:NAMED]) + (", ..." if len(classes) > NAMED else "")
    lines = [f"{root} holds {len(sizes):,} images of {len(classes):,} classes: {names}."]
    at = f"The network sees {config.size} x {config.size} pixels ({flag('data.image_size')})"
    small = [size for size in sizes if min(size) < config.size]
    if small:
        width, height = min(small, key=min)
        lines.append(
            f"{at}; {len(small):,} of the images are smaller, down to {width} x {height}, and are scaled up."
        )
    else:
        lines.append(f"{at}; none of the images is smaller.")
    others = Counter(
        os.path.splitext(path)[1].lower() or "no ending"
        for part in parts.values()
        for name in classes
        for path in files_below(part.images.root / name)
        if not is_image(path)
    )
    if others:
        kinds = ", ".join(f"{count:,} with {ending}" for ending, count in others.most_common(NAMED))
        lines.append(
            f"Files whose ending is not one of an image are passed over: {kinds}; images have "
            f"{', '.join(IMG_EXTENSIONS)}."
        )
    if broken := [file for part in parts.values() for file in part.broken]:
        are = "1 file is" if len(broken) == 1 else f"{len(broken):,} files are"
        lines.append(f"{are} left out as broken ({flag('data.skip_broken')}): {_named(broken, root)}.")
    return lines


def _named(broken: Sequence[tuple[Path, str]], root: Path) -> str:
    named = ", ".join(f"{path.relative_to(root)} ({fault})" for path, fault in broken[:NAMED])
    return named + (f" and {len(broken) - NAMED:,} more" if len(broken) > NAMED else "")
