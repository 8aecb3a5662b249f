"""What is done to an image before a network sees it, where nothing is varied; free of torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

RESIZE_RATIO = 256 / 224
"""Evaluation scales the shorter side to this much more than the crop, as is the custom on ImageNet."""
FILTER = "bilinear"
"""Pillow's, which takes the mean over what a pixel covers where it makes an image smaller."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """From any image to the numbers that a network was tested on."""

    resize: int
    """Pixels to which the shorter side is scaled; the longer one in proportion, rounded down."""
    crop: int
    """Side of the square that is then kept, in the middle."""
    mean: tuple[float, ...]
    """Of each channel, subtracted from numbers in [0, 1]."""
    std: tuple[float, ...]
    """Of each channel, by which they are then divided."""

    @property
    def mode(self) -> str:
        """Pillow's name of the kind of image: in colour, or grey."""
        return "RGB" if len(self.mean) == 3 else "L"

    def describe(self) -> dict[str, Any]:
        """All of it by name, as `export.json` has it."""
        said = {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }
        return {"mode": self.mode, "interpolation": FILTER, "range": [0, 1], **said}

    @classmethod
    def described(cls, said: Mapping[str, Any]) -> "Preparation":
        """What `describe` described; a KeyError or TypeError where it is not whole."""
        mean, std = tuple(said["mean"]), tuple(said["std"])
        for value in (said["resize"], said["crop"], *mean, *std):
            if not isinstance(value, int | float):
                raise TypeError(f"{value!r} is no number")
        return cls(resize=said["resize"], crop=said["crop"], mean=mean, std=std)

    def __str__(self) -> str:
        colours = "in red, green and blue" if self.mode == "RGB" else "in grey"
        return (
            f"{colours}, the shorter side scaled to {self.resize} pixels by Pillow's {FILTER} filter, "
            f"{self.crop} x {self.crop} cut out of the middle, as numbers in [0, 1], "
            f"minus {list(self.mean)}, divided by {list(self.std)}"
        )
