"""This module reads and appends files of one JSON object a line; a killed process spoils one line at most."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.failures import RunFailed


class JsonLines:
    """A `JsonLines` is a file to which JSON objects are appended, one a line."""

    def __init__(self, path: Path) -> None:
        try:
            # Unbuffered: nothing is left over for close() to fail on.
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise RunFailed(f"cannot write {path}: {error.strerror}") from error
        self._file.seek(0, 2)
        if self._file.tell():
            self._file.seek(-1, 2)
            if self._file.read(1) != b"\n":  # torn by a kill: end it, so that the next stands alone
                self._file.write(b"\n")

    def write(self, *objects: Mapping[str, Any]) -> None:
        """Append objects as lines, and hand them to the system at once."""
        lines = b"".join(json.dumps(entry).encode() + b"\n" for entry in objects)
        try:
            self._file.write(lines)
        except OSError as error:
            raise RunFailed(
                f"cannot write {self._file.name}: {error.strerror}; the run goes on from what was saved "
                "when there is room and the same command is given again"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the objects of a file in order, passing over torn lines."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry
