"""How wide the hidden layers of heads are: as in papers, as fits the map, or by a factor. Free of torch."""

import math

from local_learning.catalogue import HEADS
from tools.mistake import Mistake

PAPER, MAP = "paper", "map"

MULTIPLE = 8
"""Hidden channels for each channel of the map: as many as behind the first stage of the papers' ResNets."""


def parse_head_width(value: object) -> str | float:
    """paper, map, or a factor on the papers' numbers, from an option's text or a file.

    Raises:
        ValueError: for anything else.
    """
    if value in (PAPER, MAP):
        return str(value)
    try:
        factor = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        factor = math.nan
    if isinstance(value, bool) or not 0 < factor < math.inf:
        raise ValueError(f"unknown value {value!r}; it must be paper, map, or a number above 0")
    return factor


def check_head_width(text: str) -> None:
    """Refuse what `head_width` cannot be."""
    try:
        parse_head_width(text)
    except ValueError as error:
        raise Mistake("head_width", str(error)) from None


def scale_of(asked: str | float, kind: str, in_chs: int, num_classes: int, width: float) -> float:
    """The factor on the papers' hidden channels, for a head on a map of `in_chs` channels.

    `paper` takes `width`, the network's. `map` takes `MULTIPLE` channels for each of the map, and no more
    than the papers; and no more for each class than SEDONA has on CIFAR-10, 512 for 10 classes. By this
    quotient goes the curvature of the last layer, and with it the largest rate at which it learns.
    """
    row = HEADS.get(kind)
    hidden = row.hidden if row else 0
    if asked == PAPER or (asked == MAP and not hidden):
        return width
    if not isinstance(asked, str):
        return asked
    return min(hidden, MULTIPLE * in_chs, max(1, 512 * num_classes // 10)) / hidden
