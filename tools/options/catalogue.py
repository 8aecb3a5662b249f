"""Parts by name: a row for each, ours and a user's own, with the facts that others ask of it. Free of torch.

Nobody compares names. Whoever needs to know something of a part asks its row.
"""

import dataclasses
import importlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from tools.mistake import Mistake
from tools.options.config import suggest
from tools.options.plugins import ORIGIN, Refused


@dataclass(frozen=True, kw_only=True)
class Row:
    """One part that options can name."""

    name: str
    says: str = ""
    """What it is, as a clause for help and reports."""
    make: Callable[..., Any] | str = ""
    """What makes it. A text is where that is, as module:name, and is imported when somebody asks."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that `make` gets for this part, where several parts are made in one way."""
    reads: tuple[str, ...] | None = None
    """Options that it looks at, of those that only some parts of its kind do: dotted names, or whole groups.
    None is for a part of which nobody knows."""

    @property
    def maker(self) -> Callable[..., Any]:
        """What makes it."""
        maker = found(self.make) if isinstance(self.make, str) else self.make
        return partial(maker, **self.given) if self.given else maker

    def looks_at(self, option: str) -> bool:
        """Whether it looks at an option, or may."""
        return self.reads is None or option in self.reads or option.rpartition(".")[0] in self.reads


def found(place: str) -> Callable[..., Any]:
    """What stands at a place, written as module:name."""
    module, _, name = place.partition(":")
    part: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return part


AnyRow = TypeVar("AnyRow", bound=Row)
Registered = TypeVar("Registered")


def by_name(part: Registered) -> Registered:
    """Mark what no module imports, because a row names it."""
    return part


class Catalogue(Generic[AnyRow]):
    """All parts of one kind. Ours come in by the same door as a user's own."""

    def __init__(
        self, what: str, kind: type[AnyRow], rows: Iterable[AnyRow] = (), *, form: str = r"[A-Za-z]\w*"
    ) -> None:
        self.what, self._kind, self._form = what, kind, form
        self._rows: dict[str, AnyRow] = {}
        for row in rows:
            self.add(row)
        self.ours: tuple[str, ...] = tuple(self._rows)
        """The names that come with the house."""

    def add(self, row: AnyRow) -> None:
        """Take in a part."""
        if not re.fullmatch(self._form, row.name):
            letters = "letters, digits" + (" and _" if r"\w" in self._form else "")
            raise Refused(f"{self.what} '{row.name}': a name is {letters}, a letter first")
        if row.name in self._rows:
            raise Refused(f"{self.what} '{row.name}' is registered already; take another name")
        self._rows[row.name] = row

    def register(self, name: str, **facts: Any) -> Callable[[Registered], Registered]:
        """A decorator by which a function or class becomes the part of this name.

        `facts` are fields of the row; each has a default that does no harm where it is not known.
        """
        self.add(self._kind(name=name, **facts))  # so that a bad name is refused where it is written

        def keep(part: Registered) -> Registered:
            self._rows[name] = dataclasses.replace(self._rows[name], make=part)  # type: ignore[arg-type]
            return part

        return keep

    def is_own(self, name: str) -> bool:
        """Whether a part is a user's own."""
        return name in self._rows and name not in self.ours

    def check(self, option: str, name: str, among: Collection[str] = ()) -> None:
        """Refuse what is neither a user's own nor one of ours, or of those of ours that an option takes."""
        if not self.is_own(name) and name not in (among or self.ours):
            raise Mistake(option, f"unknown value '{name}'{self.hint(name, among)}")

    def hint(self, name: str, among: Collection[str] = ()) -> str:
        """Clauses that point to the nearest known name, and to where others come from."""
        own = [each for each in self._rows if self.is_own(each)]
        near = suggest(name, [*(among or self.ours), *own])
        return f"{near}{' ' if near.endswith('?') else '; '}{ORIGIN}"

    def check_idle(self, option: str, name: str, config: Any, by: str = "") -> None:
        """Refuse options that other parts of this kind look at and this one does not.

        `by` says who does not look, where the name of the part does not say it all.
        """
        row = self._rows[name]
        for each in dict.fromkeys(each for other in self for each in self[other].reads or ()):
            for dotted, value, default in _values(config, each):
                if value != default and not row.looks_at(dotted):
                    raise Mistake(dotted, f"{by or f'`{option}` {name}'} does not look at it", "leave it out")

    def __getitem__(self, name: str) -> AnyRow:
        return self._rows[name]

    def get(self, name: str) -> AnyRow | None:
        """The row of a name, if there is one."""
        return self._rows.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)


def _values(config: Any, option: str) -> Iterator[tuple[str, Any, Any]]:
    """A config's options of a dotted name, or of a group, with their values and defaults."""
    *groups, last = option.split(".")
    for group in groups:
        config = getattr(config, group)
    value = getattr(config, last)
    if dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield f"{option}.{each.name}", getattr(value, each.name), _default(each)
    else:
        (one,) = (each for each in dataclasses.fields(config) if each.name == last)
        yield option, value, _default(one)


def _default(option: Any) -> Any:
    made = option.default_factory is not dataclasses.MISSING
    return option.default_factory() if made else option.default
