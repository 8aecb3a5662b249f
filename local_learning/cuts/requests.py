"""The option `decoupling` names a file, or a way to choose the cuts. Free of torch."""

import difflib
import os
import re
from dataclasses import dataclass
from typing import Literal

from local_learning.catalogue import HEADS
from local_learning.later.request import parse_later
from tools.mistake import Mistake

_OPTION = "decoupling"

FORMS = {"uniform": "uniform:K:HEAD", "balanced": "balanced:K:HEAD", "published": "published:K"}
"""How to write each way of choosing the cuts into K blocks. Any other text names a file."""


@dataclass(frozen=True)
class Request:
    """A request is one way to obtain a decoupling."""

    kind: Literal["file", "uniform", "balanced", "published"]
    """The way, as it is written in front of the first colon, or file."""

    path: str = ""
    """The path of the file."""

    num_blocks: int = 0
    """The number of blocks, unless the request is for a file."""

    head: str = ""
    """The head at every cut, for uniform and balanced cuts."""


def parse_request(text: str) -> Request:
    """Read the value of the option `decoupling`.

    Raises:
        ValueError: in one line that says what would be right.
    """
    kind, *parts = text.split(":")
    if (head := ":".join(parts[1:])) in HEADS:
        parts[1:] = [head]  # its name may have a colon
    match kind:
        case "uniform" | "balanced":
            _check_parts(text, kind, parts, 2)
            _check_head(parts[1], sloped=kind == "uniform")
            return Request(kind, num_blocks=_num_blocks(text, parts[0]), head=parts[1])
        case "published":
            _check_parts(text, kind, parts, 1)
            return Request(kind, num_blocks=_num_blocks(text, parts[0]))
        case _:
            _check_file(text, kind if parts else "")
            return Request("file", path=text)


def _check_parts(text: str, kind: str, parts: list[str], wanted: int) -> None:
    if len(parts) == wanted and all(parts):
        return
    form = FORMS[kind]
    if wanted == 2 and parts and parts[0].isdecimal() and not any(parts[1:]):
        raise Mistake(_OPTION, f"'{text}' names no head", f"write {form}, HEAD being {_heads()}")
    if wanted == 1 and len(parts) == 2:
        raise Mistake(_OPTION, f"'{text}' names a head, but the published ones have theirs", f"write {form}")
    raise Mistake(_OPTION, f"'{text}' is not of the form {form}, such as {_example(kind)}")


def _num_blocks(text: str, number: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", number):
        raise Mistake(
            _OPTION,
            f"'{number}' in '{text}' is not a number of blocks",
            "it must be a whole number from 1 on",
        )
    return int(number)


def _check_head(head: str, *, sloped: bool) -> None:
    if head not in HEADS:
        raise Mistake(_OPTION, f"head '{head}' is unknown{HEADS.hint(head)}")
    try:
        later = parse_later(head)
    except Mistake as mistake:
        raise mistake.about(_OPTION) from None
    if later and later.slope and not sloped:
        raise Mistake(_OPTION, f"head '{head}' has a slope", f"which goes with {FORMS['uniform']} alone")


def _check_file(text: str, prefix: str) -> None:
    if not text:
        raise Mistake(_OPTION, f"takes {_forms()}")
    if os.path.isfile(text):
        return
    if os.path.isdir(text):
        raise Mistake(_OPTION, f"'{text}' is a folder", f"it takes {_forms()}")
    near = difflib.get_close_matches(prefix, FORMS, n=1)
    hint = f"; did you mean '{near[0]}{text[len(prefix) :]}'?" if near else f"; it takes {_forms()}"
    raise Mistake(_OPTION, f"there is no file '{text}'{hint}")


def _forms() -> str:
    return f"a decoupling.json, {', '.join(FORMS.values())}"


def _heads() -> str:
    return f"one of {', '.join(HEADS)}"


def _example(kind: str) -> str:
    return FORMS[kind].replace("K", "4").replace("HEAD", "aux2")
