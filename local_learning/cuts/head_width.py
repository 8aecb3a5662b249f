"""How wide the hidden layers of heads are: as in papers, as fits the map, or by a factor. Free of torch."""

import math

PAPER, MAP = "paper", "map"

MULTIPLE = 8
"""Hidden channels for each channel of the map: as many as behind the first stage of the papers' ResNets."""

_PAPERS = {
    **dict.fromkeys(("aux1", "aux2", "aux3", "aux4", "predsim"), 2048),
    **dict.fromkeys(("conv1c2f", "infopro", "infopro_contrast"), 128),
}
"""What they are in a network of full width, where a paper gives a number."""


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
    """Refuse what --head-width cannot be."""
    try:
        parse_head_width(text)
    except ValueError as error:
        raise ValueError(f"--head-width: {error}") from None


def scale_of(asked: str | float, kind: str, in_chs: int, num_classes: int, width: float) -> float:
    """The factor on the papers' hidden channels, for a head on a map of `in_chs` channels.

    `paper` takes `width`, the network's. `map` takes `MULTIPLE` channels for each of the map, and no more
    than the papers; and no more for each class than SEDONA has on CIFAR-10, 512 for 10 classes. By this
    quotient goes the curvature of the last layer, and with it the largest rate at which it learns.
    """
    if asked == PAPER or (asked == MAP and kind not in _PAPERS):
        return width
    if not isinstance(asked, str):
        return asked
    full = _PAPERS[kind]
    return min(full, MULTIPLE * in_chs, max(1, 512 * num_classes // 10)) / full
