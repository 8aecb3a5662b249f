"""The hidden layers of heads are as wide as in papers, as fits the map, or scaled. Free of torch."""

import math

from local_learning.catalogue import HEADS
from tools.mistake import Mistake

PAPER, MAP = "paper", "map"

MULTIPLE = 8
"""The hidden channels for each channel of the map, as many as behind the first stage of the papers'
ResNets."""


def parse_head_width(value: object) -> str | float:
    """Return paper, map, or a factor on the papers' numbers, from an option's text or a file.

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
    """Refuse a text that the option `head_width` cannot take."""
    try:
        parse_head_width(text)
    except ValueError as error:
        raise Mistake("head_width", str(error)) from None


def scale_of(head_width: str | float, kind: str, in_chs: int, num_classes: int, width: float) -> float:
    """Return the factor on the papers' hidden channels, for a head on a map of `in_chs` channels.

    `paper` takes `width`, the network's own factor. `map` takes `MULTIPLE` hidden channels for each
    channel of the map, at most as many as the papers. It also takes at most as many for each class as
    SEDONA has on CIFAR-10, 512 for 10 classes. This quotient sets the curvature of the last layer, and so
    the largest rate at which it learns.
    """
    row = HEADS.get(kind)
    hidden = row.hidden if row else 0
    if head_width == PAPER or (head_width == MAP and not hidden):
        return width
    if not isinstance(head_width, str):
        return head_width
    return min(hidden, MULTIPLE * in_chs, max(1, 512 * num_classes // 10)) / hidden
