"""A look at a tree of images before anything is trained on them: what can be read."""

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from tools.data import DataConfig
from tools.images import FAULTS, FolderImages, read_rgb, reason_of

NAMED = 12
"""So many broken files are named; of more than that the number is said."""


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


def inspect(images: FolderImages) -> Inspection:
    """Look at all files."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # what is broken is told in our words
        return Inspection(images, list(pool.map(lambda index: look(images.path(index)), range(len(images)))))


def look(path: Path) -> Seen:
    """Look at one file; at no more of it than tells whether it is whole.

    A PNG has sums of its parts, and a JPEG a mark at its end. Anything else is decoded, and so is a JPEG
    without its mark, for some programs write on behind it.
    """
    try:
        with Image.open(path) as image:
            size, kind = image.size, image.format
            image.verify()
        if kind != "PNG" and not (kind == "JPEG" and _has_end_of_jpeg(path)):
            read_rgb(path)
    except FAULTS as error:
        return Seen(fault=reason_of(error, path))
    return Seen(size)


def without_broken(
    parts: Mapping[str, Inspection], root: Path, config: DataConfig
) -> dict[str, FolderImages]:
    """The sound files of each part; broken ones are all named at once, unless the options leave them out."""
    if not config.skip_broken and (broken := [each for part in parts.values() for each in part.broken]):
        count = "1 file" if len(broken) == 1 else f"{len(broken):,} files"
        raise ValueError(
            f"--data.root: {count} below {root} cannot be decoded as images: {_named(broken, root)}; replace "
            "or remove them, or leave them out by --data.skip-broken"
        )
    for part in parts.values():
        if gone := set(part.images.labels.tolist()) - set(part.sound.labels.tolist()):
            members = (part.images.labels == min(gone)).nonzero().flatten()
            folder = part.images.path(int(members[0])).parent
            raise ValueError(f"--data.root: no image of the class folder {folder} can be decoded")
    return {name: part.sound for name, part in parts.items()}


def _named(broken: Sequence[tuple[Path, str]], root: Path) -> str:
    named = ", ".join(f"{path.relative_to(root)} ({fault})" for path, fault in broken[:NAMED])
    return named + (f" and {len(broken) - NAMED:,} more" if len(broken) > NAMED else "")


def _has_end_of_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"
