"""Parts of a user's own: Python files that --plugins names, and the names that they register. Free of torch.

Such a file is imported before the options are checked, so that its names are valid wherever ours are. Only
what the user's own command line names is ever imported, and nothing because a run or a file speaks of it.
"""

import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from tools.files.provenance import sha256
from tools.options.config import suggest

OPTION = "--plugins"
ORIGIN = f"{OPTION} FILE.py brings one of your own"

Part = TypeVar("Part")
Registered = TypeVar("Registered")


class Registry(Generic[Part]):
    """The names of one kind of part: ours, and a user's own with what they stand for."""

    def __init__(self, what: str, ours: Collection[str], *, form: str = r"[A-Za-z]\w*") -> None:
        self.what, self.ours, self._form = what, ours, form
        self.own: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """A decorator by which a function or class becomes the part of this name."""
        if not re.fullmatch(self._form, name):
            letters = "letters, digits" + (" and _" if r"\w" in self._form else "")
            raise Refused(f"{self.what} '{name}': a name is {letters}, a letter first")
        if name in self:
            raise Refused(f"{self.what} '{name}' is registered already; take another name")

        def keep(part: Registered) -> Registered:
            self.own[name] = part  # type: ignore[assignment]  # the decorated keeps its own type
            return part

        return keep

    def check(self, option: str, name: str, among: Collection[str] = ()) -> None:
        """Refuse what is neither a user's own nor one of ours, or of those of ours that an option takes."""
        if name not in self.own and name not in (among or self.ours):
            raise ValueError(f"{option}: unknown value '{name}'{self.hint(name, among)}")

    def hint(self, name: str, among: Collection[str] = ()) -> str:
        """Clauses that point to the nearest known name, and to where others come from."""
        near = suggest(name, [*(among or self.ours), *self.own])
        return f"{near}{' ' if near.endswith('?') else '; '}{ORIGIN}"

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self.ours

    def __len__(self) -> int:
        return len(self.ours) + len(self.own)

    def __iter__(self) -> Iterator[str]:
        yield from self.ours
        yield from self.own


class Refused(ValueError):
    """A name that cannot be registered."""


def call(part: Callable[..., Part], *values: Any, **options: Any) -> Part:
    """Call a user's part with those of the options that it takes."""
    return part(*values, **{name: value for name, value in options.items() if takes(part, name)})


def takes(part: Callable[..., Any], option: str) -> bool:
    """Whether a function has an argument of this name."""
    arguments = inspect.signature(part).parameters
    return option in arguments or any(each.kind is each.VAR_KEYWORD for each in arguments.values())


_loaded: dict[Path, str] = {}


def load(names: Sequence[str]) -> None:
    """Import these files, each once in a process.

    Raises:
        ValueError: in one line, if a file is not there, or if importing it fails.
    """
    for name in names:
        path = Path(name).resolve()
        if path in _loaded:
            continue
        try:
            source = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{OPTION}: cannot read '{name}': {error.strerror}") from None
        digest = hashlib.sha256(source).hexdigest()
        # A name that no other module has, and the same in every process.
        module = ModuleType(f"{path.stem}_{digest[:12]}")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module
        try:
            exec(compile(source, str(path), "exec"), vars(module))
        except (Exception, SystemExit) as error:
            del sys.modules[module.__name__]
            raise ValueError(f"{OPTION}: '{name}'{_where(error, path)}: {_what(error)}") from error
        _loaded[path] = digest


def load_asked(flags: Sequence[str] | None, in_config: Sequence[str]) -> None:
    """Import what the command line names; what only a `--config` names is code that nobody asked to run."""
    if flags is None and in_config:
        listed = " ".join(in_config)
        raise ValueError(
            f"{OPTION}: the --config names {listed}, which is code, and not run for that; "
            f"if you trust it, also give {OPTION} {listed}"
        )
    load(flags or ())


def check_noted(noted: dict[str, str], label: str, path: Path) -> None:
    """Refuse weights whose notes name other files of a user's own parts than those that are loaded."""
    changed = [name for name, digest in noted.items() if digest not in _loaded.values()]
    if changed and _loaded:
        raise ValueError(
            f"{label}: '{path}' was made with {', '.join(changed)} as it was then; it has changed since, "
            f"or is missing among {OPTION}"
        )


def loaded() -> dict[str, str]:
    """The SHA-256 of all files that were imported, by name."""
    return {path.name: digest for path, digest in _loaded.items()}


def is_plugin(path: Path) -> bool:
    """Whether a file was imported as a plug-in."""
    return path in _loaded


def digests(names: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of each of these files, as it was when it was imported."""
    paths = {name: Path(name).resolve() for name in names}
    return {name: _loaded.get(path) or sha256(path) for name, path in paths.items()}


def _where(error: BaseException, path: Path) -> str:
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f", line {lines[-1]}" if lines else ""


def _what(error: BaseException) -> str:
    said = next(iter(str(error).splitlines()), "")
    return said if isinstance(error, Refused) else f"{type(error).__name__}: {said}".removesuffix(": ")
