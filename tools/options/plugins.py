"""Parts of a user's own: the Python files that --plugins names. Free of torch.

Such a file is imported before the options are checked, so that its names are valid wherever ours are. Only
what the user's own command line names is ever imported, and nothing because a run or a file speaks of it.
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

OPTION = "plugins"
ORIGIN = f"`{OPTION}` FILE.py brings one of your own"
"""Where other names come from, for a Mistake to say."""

Part = TypeVar("Part")


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
            raise Mistake(OPTION, f"cannot read '{name}': {error.strerror}") from None
        digest = hashlib.sha256(source).hexdigest()
        # A name that no other module has, and the same in every process.
        module = ModuleType(f"{path.stem}_{digest[:12]}")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module
        try:
            exec(compile(source, str(path), "exec"), vars(module))
        except (Exception, SystemExit) as error:
            del sys.modules[module.__name__]
            raise Mistake(OPTION, f"'{name}'{_where(error, path)}: {_what(error)}") from error
        _loaded[path] = digest


def load_asked(flags: Sequence[str] | None, in_config: Sequence[str]) -> None:
    """Import what the command line names; what only a `--config` names is code that nobody asked to run."""
    if flags is None and in_config:
        listed = " ".join(in_config)
        raise Mistake(
            OPTION,
            f"the `config` names {listed}, which is code, and not run for that",
            f"if you trust it, also give `{OPTION}` {listed}",
        )
    load(flags or ())


def check_noted(noted: dict[str, str], label: str, path: Path) -> None:
    """Refuse weights whose notes name other files of a user's own parts than those that are loaded."""
    changed = [name for name, digest in noted.items() if digest not in _loaded.values()]
    if changed and _loaded:
        raise Mistake(
            label,
            f"'{path}' was made with {', '.join(changed)} as it was then; it has changed since, or is "
            f"missing among `{OPTION}`",
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
