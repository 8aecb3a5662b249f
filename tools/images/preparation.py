"""This module says how an image is prepared for a network when nothing is varied; it is free of torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

RESIZE_RATIO = 256 / 224
"""Evaluation scales the shorter side to this multiple of the crop, as is usual on ImageNet."""
FILTER = "bilinear"
"""This filter of Pillow averages over the pixels that merge into one when an image is made smaller."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A `Preparation` turns any image into the numbers that a network was tested on."""

    resize: int
    """The shorter side is scaled to this many pixels; the longer one in proportion, rounded down."""
    crop: int
    """A square with this side is then cut out of the middle."""
    mean: tuple[float, ...]
    """Each channel's mean is subtracted from numbers in [0, 1]."""
    std: tuple[float, ...]
    """The result is divided by each channel's standard deviation."""

    @property
    def mode(self) -> str:
        """Return Pillow's name of the image mode, in colour or grey."""
        return "RGB" if len(self.mean) == 3 else "L"

    def describe(self) -> dict[str, Any]:
        """Return all values by name, as `export.json` has them."""
        fields = {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }
        return {"mode": self.mode, "interpolation": FILTER, "range": [0, 1], **fields}

    @classmethod
    def described(cls, values: Mapping[str, Any]) -> "Preparation":
        """Return the preparation that `describe` described; raise a KeyError or TypeError if one is
        missing."""
        mean, std = tuple(values["mean"]), tuple(values["std"])
        for value in (values["resize"], values["crop"], *mean, *std):
            if not isinstance(value, int | float):
                raise TypeError(f"{value!r} is no number")
        return cls(resize=values["resize"], crop=values["crop"], mean=mean, std=std)

    def __str__(self) -> str:
        colours = "in red, green and blue" if self.mode == "RGB" else "in grey"
        return (
            f"{colours}, the shorter side scaled to {self.resize} pixels by Pillow's {FILTER} filter, "
            f"{self.crop} x {self.crop} cut out of the middle, as numbers in [0, 1], "
            f"minus {list(self.mean)}, divided by {list(self.std)}"
        )
