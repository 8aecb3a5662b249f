"""The file relaxation.json holds what a search learned. Free of torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from tools.files.atomic import read_document, write_document
from tools.mistake import Mistake, quoted


class Array(Protocol):
    """An array is a tensor, or an array of numpy."""

    def tolist(self) -> Any:
        """Return the values as nested lists."""


Rows = Sequence[Sequence[float]] | Array
Values = tuple[tuple[float, ...], ...]

_KEYS = ("network", "head_kinds", "alpha", "beta")


@dataclass(frozen=True)
class Relaxation:
    """A relaxation is alpha and beta of one network, before softmax, with other facts of their search."""

    network: str
    """The network that was searched."""

    head_kinds: tuple[str, ...]
    """The kinds of head of beta's columns, in their order."""

    alpha: Values
    """The values of each layer but the last: one for the local signal, and one for the backpropagated
    signal."""

    beta: Values
    """The values of each layer but the last, one per kind of head."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Anything else that JSON can hold, such as the width or the step."""

    def __post_init__(self) -> None:
        if not isinstance(self.network, str):
            raise ValueError(f"'network' must be a text, not {self.network!r}")
        alpha, beta = checked(self.alpha, self.beta, self.head_kinds)
        for key in self.facts:
            if key in (*_KEYS, "format", "version"):
                raise ValueError(f"facts: '{key}' is a key of the file itself; choose another name")
        object.__setattr__(self, "head_kinds", tuple(self.head_kinds))
        object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "beta", beta)


def save_relaxation(path: str | Path, relaxation: Relaxation) -> None:
    """Write what a search learned."""
    content = {key: getattr(relaxation, key) for key in _KEYS}
    write_document(Path(path), "relaxation", 1, content | relaxation.facts)


def load_relaxation(path: str | Path) -> Relaxation:
    """Read what a search learned; keys that the format does not have become facts.

    Raises:
        ValueError: in one line that names the file.
    """
    path = Path(path)
    document = read_document(path, "relaxation", 1)
    try:
        for key in _KEYS:
            if key not in document:
                raise ValueError(f"the key '{key}' is missing")
        content = {key: document[key] for key in _KEYS}
        facts = {key: document[key] for key in document if key not in (*_KEYS, "format", "version")}
        return Relaxation(**content, facts=facts)
    except ValueError as error:
        raise Mistake("", quoted(error), source=str(path)) from None


def checked(alpha: Rows, beta: Rows, head_kinds: Sequence[str]) -> tuple[Values, Values]:
    """Return alpha and beta as plain numbers, if they are finite and fit each other and the kinds of head."""
    kinds = _items("head_kinds", head_kinds)
    for kind in kinds:
        if not isinstance(kind, str) or not kind.strip():
            raise ValueError(f"head_kinds: {kind!r} is not the name of a head")
    if not kinds:
        raise ValueError("head_kinds: name at least one kind of head")
    signals = _rows("alpha", alpha, 2, "local and backpropagated")
    heads = _rows("beta", beta, len(kinds), "one per kind of head")
    if len(signals) != len(heads):
        raise ValueError(
            f"alpha has {len(signals)} rows and beta {len(heads)}; both need one per layer but the last"
        )
    return signals, heads


def _rows(name: str, value: object, columns: int, meaning: str) -> Values:
    rows = []
    for layer, items in enumerate(_items(name, value), 1):
        where = f"{name}, layer {layer}"
        row = tuple(_number(where, item) for item in _items(where, items))
        if len(row) != columns:
            raise ValueError(f"{where}: {len(row)} values, not {columns} ({meaning})")
        rows.append(row)
    return tuple(rows)


def _items(where: str, value: object) -> Sequence[object]:
    items = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise ValueError(f"{where}: {items!r} is not a list")
    return items


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{where}: {value!r} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where}: {number} is not finite")
    return number
