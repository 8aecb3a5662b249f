"""Runs a script and writes which of its options nobody read: reads.py OUT SCRIPT OPTIONS.

Options are looked at in many other ways: they are checked, compared, and written down. That does not count.
"""

import dataclasses
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, get_type_hints

from tests.scripts import config_of, options

read: set[tuple[type[Any], str]] = set()


def is_use(frame: FrameType | None) -> bool:
    """Whether an option is read for what it says, and not to check or to copy it."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__post_init__" or code.co_filename.endswith(
            ("dataclasses.py", "tools/options/config.py")
        ):
            return False
        if code.co_name.startswith("check_") and code.co_filename.endswith("config.py"):
            return False
        frame = frame.f_back
    return True


def watch(cls: type[Any]) -> None:
    """Note from now on which fields of a dataclass are read."""
    names = {field.name for field in dataclasses.fields(cls)}
    usual: Any = cls.__getattribute__

    def get(self: Any, name: str) -> Any:
        if name in names and is_use(sys._getframe(1)):
            read.add((cls, name))
        return usual(self, name)

    setattr(cls, "__getattribute__", get)  # noqa: B010


def classes_of(config: type[Any], prefix: str = "") -> Iterator[tuple[str, type[Any]]]:
    """A config's class and those of its groups, with the dotted names of these."""
    yield prefix, config
    for name, kind in get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from classes_of(kind, f"{prefix}{name}.")


out, script, *words = sys.argv[1:]
classes = dict(classes_of(config_of(script)))
known = [option.name for option in options(config_of(script))]
for each in {*classes.values()}:
    watch(each)
sys.argv = [script, *words]
runpy.run_path(script, run_name="__main__")
places = {name: (name.rpartition(".")[0], name.rpartition(".")[2]) for name in known}
unread = [
    name
    for name, (group, last) in places.items()
    if (classes[f"{group}." if group else ""], last) not in read
]
Path(out).write_text(json.dumps(unread))
