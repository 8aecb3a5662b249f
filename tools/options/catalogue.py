"""This module keeps the parts that options can name, ours and a user's own, each as a row of facts.

Nobody compares names: code that needs to know something about a part asks the part's row. Free of torch.
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
    """A `Row` describes one part that options can name."""

    name: str
    says: str = ""
    """A clause says what the part is, for help and reports."""
    make: Callable[..., Any] | str = ""
    """This makes the part. A text is the maker's place, module:name, which is imported at its first use."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """These arguments are passed to `make` for this part, where one maker makes several parts."""
    reads: tuple[str, ...] | None = None
    """These are the options that the part looks at, among those that only some of our parts look at.

    They are dotted names or whole groups. None means that it is not known what the part looks at."""
    family: str = ""
    """All names of this form, a regular expression, mean this part too; `make` gets the name as `kind`."""

    @property
    def maker(self) -> Callable[..., Any]:
        """Return the function or class that makes the part."""
        maker = import_part(self.make) if isinstance(self.make, str) else self.make
        return partial(maker, **self.given) if self.given else maker

    def looks_at(self, option: str) -> bool:
        """Return whether the part looks at an option, or may look at it."""
        return self.reads is None or option in self.reads or option.rpartition(".")[0] in self.reads


def import_part(place: str) -> Callable[..., Any]:
    """Import and return what stands at a place, written as module:name."""
    module, _, name = place.partition(":")
    part: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return part


AnyRow = TypeVar("AnyRow", bound=Row)
Registered = TypeVar("Registered")


def by_name(part: Registered) -> Registered:
    """Mark a part that no module imports, because a row names it."""
    return part


class Catalogue(Generic[AnyRow]):
    """A `Catalogue` holds all parts of one kind; ours are added in the same way as a user's own."""

    def __init__(
        self, what: str, kind: type[AnyRow], rows: Iterable[AnyRow] = (), *, form: str = r"[A-Za-z]\w*"
    ) -> None:
        self.what, self._kind, self._form = what, kind, form
        self._rows: dict[str, AnyRow] = {}
        for row in rows:
            self.add(row)
        self.ours: tuple[str, ...] = tuple(self._rows)
        """These names of parts come with this project."""

    def add(self, row: AnyRow) -> None:
        """Add a part."""
        if not re.fullmatch(self._form, row.name):
            letters = "letters, digits" + (" and _" if r"\w" in self._form else "")
            raise Refused(f"{self.what} '{row.name}': a name is {letters}, a letter first")
        if row.name in self._rows:
            raise Refused(f"{self.what} '{row.name}' is registered already; take another name")
        self._rows[row.name] = row

    def register(self, name: str, **facts: Any) -> Callable[[Registered], Registered]:
        """Return a decorator by which a function or class becomes the part of this name.

        `facts` are fields of the row; each has a default that is safe where the fact is not known.
        """
        self.add(self._kind(name=name, **facts))  # a bad name is thus refused where it is written

        def keep(part: Registered) -> Registered:
            self._rows[name] = dataclasses.replace(self._rows[name], make=part)  # type: ignore[arg-type]
            return part

        return keep

    def is_own(self, name: str) -> bool:
        """Return whether a part is a user's own."""
        return name in self._rows and name not in self.ours

    def check(self, option: str, name: str, among: Collection[str] = ()) -> None:
        """Refuse a name that is neither a user's own nor one of ours, or of `among` where that is given."""
        if not self.is_own(name) and self._listed(name) not in (among or self.ours):
            raise Mistake(option, f"unknown value '{name}'{self.hint(name, among)}")

    def hint(self, name: str, among: Collection[str] = ()) -> str:
        """Return clauses that point to the nearest known name, and to where other names come from."""
        own = [part for part in self._rows if self.is_own(part)]
        near = suggest(name, [*(among or self.ours), *own])
        return f"{near}{' ' if near.endswith('?') else '; '}{ORIGIN}"

    def check_idle(self, option: str, name: str, config: Any, by: str = "") -> None:
        """Refuse options that only some of our parts look at and this one does not.

        What a user's own part looks at does not count, because other parts may look at it without saying so.
        `by` says which part does not look at them, where the part's name alone does not say it.
        """
        row = self._rows[name]
        for read in dict.fromkeys(read for other in self.ours for read in self[other].reads or ()):
            for dotted, value, default in _values(config, read):
                if value != default and not row.looks_at(dotted):
                    raise Mistake(dotted, f"{by or f'`{option}` {name}'} does not look at it", "leave it out")

    def __getitem__(self, name: str) -> AnyRow:
        row = self._rows[self._listed(name)]
        if name == row.name:
            return row
        return dataclasses.replace(row, name=name, given={**row.given, "kind": name}, family="")

    def get(self, name: str) -> AnyRow | None:
        """Return the row of a name, or None if there is none."""
        try:
            return self[name]
        except KeyError:
            return None

    def __contains__(self, name: object) -> bool:
        return self._listed(name) in self._rows

    def _listed(self, name: object) -> Any:
        """Return the name under which a part is listed, for one of a family."""
        if name in self._rows or not isinstance(name, str):
            return name
        families = (row for row in self._rows.values() if row.family)
        return next((row.name for row in families if re.fullmatch(row.family, name)), name)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)


def _values(config: Any, option: str) -> Iterator[tuple[str, Any, Any]]:
    """Return the options of a dotted name, or of a whole group, with their values and defaults."""
    *groups, last = option.split(".")
    for group in groups:
        config = getattr(config, group)
    value = getattr(config, last)
    if dataclasses.is_dataclass(value):
        for option_field in dataclasses.fields(value):
            yield f"{option}.{option_field.name}", getattr(value, option_field.name), _default(option_field)
    else:
        (one,) = (option_field for option_field in dataclasses.fields(config) if option_field.name == last)
        yield option, value, _default(one)


def _default(option: Any) -> Any:
    made = option.default_factory is not dataclasses.MISSING
    return option.default_factory() if made else option.default
