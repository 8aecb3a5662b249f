"""This module loads a user's own parts from the Python files that --plugins names. It is free of torch.

Such a file is imported before the options are checked, so that its names are valid wherever ours are. Only
files that the user's own command line names are imported. Nothing is imported because a run or a file
mentions it.
"""

import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from tools.files.provenance import sha256
from tools.mistake import Mistake

_OPTION = "plugins"
ORIGIN = f"`{_OPTION}` FILE.py brings one of your own"
"""A mistake about an unknown name says with this clause where other names come from."""

_Part = TypeVar("_Part")


class Refused(ValueError):
    """A `Refused` reports a name that cannot be registered."""


def call(part: Callable[..., _Part], *values: Any, **options: Any) -> _Part:
    """Call a user's part with those of the options that it accepts."""
    return part(*values, **{name: value for name, value in options.items() if takes(part, name)})


def takes(part: Callable[..., Any], option: str) -> bool:
    """Return whether a function has an argument of this name."""
    arguments = inspect.signature(part).parameters
    return option in arguments or any(
        argument.kind is argument.VAR_KEYWORD for argument in arguments.values()
    )


_loaded: dict[Path, str] = {}


def load(names: Sequence[str]) -> None:
    """Import some files, each once in a process.

    Raises:
        ValueError: A file is missing, or importing it fails; the message is one line.
    """
    for name in names:
        path = Path(name).resolve()
        if path in _loaded:
            continue
        try:
            source = path.read_bytes()
        except OSError as error:
            raise Mistake(_OPTION, f"cannot read '{name}': {error.strerror}") from None
        digest = hashlib.sha256(source).hexdigest()
        # A name that no other module has, and the same in every process.
        module = ModuleType(f"{path.stem}_{digest[:12]}")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module
        try:
            exec(compile(source, str(path), "exec"), vars(module))
        except (Exception, SystemExit) as error:
            del sys.modules[module.__name__]
            raise Mistake(_OPTION, f"'{name}'{_where(error, path)}: {_what(error)}") from error
        _loaded[path] = digest


def load_asked(flags: Sequence[str] | None, in_config: Sequence[str]) -> None:
    """Import the files that the command line names, and refuse those that only a `--config` file names.

    A file of options may come from anybody, and must not make anybody's code run.
    """
    if flags is None and in_config:
        listed = " ".join(in_config)
        raise Mistake(
            _OPTION,
            f"the `config` names {listed}, which is code, and not run for that",
            f"if you trust it, also give `{_OPTION}` {listed}",
        )
    load(flags or ())


def check_noted(noted: dict[str, str], label: str, path: Path) -> None:
    """Refuse weights whose notes name plugin files other than the ones that are loaded."""
    changed = [name for name, digest in noted.items() if digest not in _loaded.values()]
    if changed and _loaded:
        raise Mistake(
            label,
            f"'{path}' was made with {', '.join(changed)} as it was then; it has changed since, or is "
            f"missing among `{_OPTION}`",
        )


def loaded() -> dict[str, str]:
    """Return the SHA-256 digest of every file that was imported, by name."""
    return {path.name: digest for path, digest in _loaded.items()}


def is_plugin(path: Path) -> bool:
    """Return whether a file was imported as a plugin."""
    return path in _loaded


def digests(names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 digest of each of these files, as it was when the file was imported."""
    paths = {name: Path(name).resolve() for name in names}
    return {name: _loaded.get(path) or sha256(path) for name, path in paths.items()}


def _where(error: BaseException, path: Path) -> str:
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f", line {lines[-1]}" if lines else ""


def _what(error: BaseException) -> str:
    message = next(iter(str(error).splitlines()), "")
    return message if isinstance(error, Refused) else f"{type(error).__name__}: {message}".removesuffix(": ")
