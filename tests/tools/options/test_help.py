"""The help names the parts of a catalogue, those too that a user adds."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from tools.options.catalogue import Catalogue, Row
from tools.options.help import options_of, short_help

ROWS = [Row(name="plain", says="does nothing"), Row(name="silent")]
DANCES = Catalogue("dance", Row, ROWS)


@dataclass(frozen=True, kw_only=True)
class Steps:
    NAMES: ClassVar[dict[str, Iterable[str]]] = {"dances": DANCES, "feet": ("left", "right")}

    dance: str = "plain"
    """Dance one of {dances}. {dances.says}"""
    foot: str = "left"
    """Begin with {feet}, {or not}."""


@dataclass(frozen=True, kw_only=True)
class More(Steps):
    USUAL: ClassVar[tuple[str, ...]] = ("dance",)

    other: str = ""
    """Leave {dances} as they stand here."""


def test_a_text_has_the_names_of_parts_and_what_they_are() -> None:
    DANCES.add(Row(name="jump", says="leaves the floor"))
    assert [(option.default, option.text) for option in options_of(More())] == [
        (More.dance, "Dance one of plain, silent, jump. plain: does nothing; jump: leaves the floor."),
        (More.foot, "Begin with left, right, {or not}."),
        (More.other, "Leave {dances} as they stand here."),
    ]


def test_a_page_has_the_names_alone() -> None:
    page = short_help(More(), prog="dance.py", description="Dance.", spell=str, columns=100)
    assert re.search(r"dance STR +Dance one of plain, silent(, jump)?\. \(default: plain\)", page)
