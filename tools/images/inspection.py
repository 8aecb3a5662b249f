"""A look at a tree of images before anything is trained on them: what can be read, and how large it is."""

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
"""So many broken files, or classes, are named; of more than that the number is said."""


class Seen(NamedTuple):
    """What a look at one file tells."""

    size: tuple[int, int] = (0, 0)
    """Width and height."""
    fault: str = ""
    """Why it cannot be decoded; empty where it can."""


@dataclass(frozen=True)
class Inspection:
    """The files of one part of a data set, in their order."""

    images: FolderImages
    seen: Sequence[Seen]

    @property
    def broken(self) -> list[tuple[Path, str]]:
        """The files that cannot be decoded, each with the reason."""
        return [(self.images.path(index), each.fault) for index, each in enumerate(self.seen) if each.fault]

    @property
    def sound(self) -> FolderImages:
        """The others."""
        return self.images.subset(torch.tensor([not each.fault for each in self.seen]).nonzero().flatten())

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Of the others."""
        return [each.size for each in self.seen if not each.fault]


def inspect(images: FolderImages) -> Inspection:
    """Look at all files."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # what is broken is told in our words
        return Inspection(images, list(pool.map(lambda index: look(images.path(index)), range(len(images)))))


def look(path: Path) -> Seen:
    """Look at one file; at no more of it than tells whether it is whole.

    A PNG has sums of its parts. All data of a JPEG are read, but for a small grey image, which takes less
    time than the whole one. Anything else is decoded.
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
    """The sound files of each part; broken ones are all named at once, unless the options leave them out."""
    if not config.skip_broken and (broken := [each for part in parts.values() for each in part.broken]):
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
    """What is read from a tree, what is not, and at what size, for the user."""
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
            f"Files that are no images by their endings are passed over: {kinds}; images have "
            f"{', '.join(IMG_EXTENSIONS)}."
        )
    if broken := [each for part in parts.values() for each in part.broken]:
        are = "1 file is" if len(broken) == 1 else f"{len(broken):,} files are"
        lines.append(f"{are} left out as broken ({flag('data.skip_broken')}): {_named(broken, root)}.")
    return lines


def _named(broken: Sequence[tuple[Path, str]], root: Path) -> str:
    named = ", ".join(f"{path.relative_to(root)} ({fault})" for path, fault in broken[:NAMED])
    return named + (f" and {len(broken) - NAMED:,} more" if len(broken) > NAMED else "")
