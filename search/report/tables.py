"""Tables of architectures and numbers: the truth, or scores that something else gave."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from supernet.space import Architecture, Space
from tools.files.jsonl import read_lines
from tools.ranking import Numbers

FILES = ("truth.jsonl", "evaluations.jsonl")
"""What holds the numbers in a run's folder."""
VALUES = ("test_acc", "accuracies", "accuracy", "mean_acc", "acc", "score")
"""What numbers are called, the most telling first."""
WHO = ("choices", "architecture", "arch")


class Table(NamedTuple):
    """Numbers of different networks, by canonical architecture."""

    values: dict[Architecture, tuple[float, ...]]
    """What is said of each, more than once where it was measured more than once."""
    rows: int
    """Architectures in the file."""
    column: str
    """What the numbers are called there."""

    @property
    def merged(self) -> int:
        """How many architectures were networks that others were already."""
        return self.rows - len(self.values)

    def repeats(self, networks: Iterable[Architecture]) -> Numbers:
        """A row for each repeat, as many as all networks have."""
        rows = [self.values[each] for each in networks]
        least = min(map(len, rows))
        return np.array([row[:least] for row in rows]).T

    def most_repeats(self, networks: Iterable[Architecture]) -> int:
        """How many repeats some network has."""
        return max(len(self.values[each]) for each in networks)


def read_table(path: Path, space: Space, *, option: str, lower: bool = False) -> Table:
    """Read a file, or that of a run's folder; torn lines of .jsonl are passed over.

    Architectures that are one network count once; what differs between them counts as another repeat. Where
    lower is better, numbers may also be called "loss".
    """
    file = table_file(path, option)
    try:
        entries = list(_entries(file))
        column = _column(entries, (*VALUES, "loss") if lower else VALUES)
        rows: dict[Architecture, list[float]] = {}
        for who, entry in entries:
            architecture = _architecture(who, space)
            rows.setdefault(architecture, []).extend(_numbers(entry, column, who))
    except OSError as error:
        raise ValueError(f"{option}: cannot read '{file}': {error.strerror}") from None
    except (ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"{option}: '{file}': {error}") from None
    found: dict[Architecture, list[tuple[float, ...]]] = {}
    for architecture, numbers in rows.items():
        said = found.setdefault(space.canonical(architecture), [])
        if tuple(numbers) not in said:
            said.append(tuple(numbers))
    values = {who: tuple(number for row in said for number in row) for who, said in found.items()}
    return Table(values, len(rows), column)


def table_file(path: Path, option: str) -> Path:
    """The file itself, or that of a run's folder."""
    if path.is_dir():
        for name in FILES:
            if (path / name).exists():
                return path / name
        raise ValueError(f"{option}: folder '{path}' holds neither {' nor '.join(FILES)}")
    if not path.is_file():
        raise ValueError(f"{option}: there is no file '{path}'")
    return path


def _entries(file: Path) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Whom each entry of a file is about, and what it says."""
    if file.suffix == ".json":
        document = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or "format" in document:
            raise ValueError("expected a table of accuracies by architecture, as that of NAS-Bench-Macro")
        for who, entry in document.items():
            yield who, entry if isinstance(entry, dict) else {"accuracy": entry}
        return
    if file.suffix == ".csv":
        with file.open(encoding="utf-8-sig", newline="") as opened:
            lines: Iterable[Mapping[str, Any]] = list(csv.DictReader(opened, skipinitialspace=True))
    elif file.suffix == ".jsonl":
        lines = read_lines(file)
    else:
        raise ValueError("a table is a .json, .jsonl or .csv file")
    for line in lines:
        who = next((line[name] for name in WHO if line.get(name) not in (None, "")), None)
        if who is None:
            raise ValueError(f"a line must have {' or '.join(WHO)}, not {dict(line)}")
        yield who, line


def _column(entries: list[tuple[Any, Mapping[str, Any]]], values: tuple[str, ...]) -> str:
    """What the numbers are called: the first known name that all entries have, perhaps with numbers."""
    if len(entries) < 2:
        raise ValueError("a ranking needs two architectures or more")
    for name in values:
        if all(_keys(entry, name) for _, entry in entries):
            return name
    who, entry = next(
        (pair for pair in entries if not any(_keys(pair[1], name) for name in values)), entries[0]
    )
    raise ValueError(f"what is said of {who} must have one of {', '.join(values)}, not {', '.join(entry)}")


def _keys(entry: Mapping[str, Any], name: str) -> list[str]:
    return [
        key
        for key in entry
        if key is not None and re.fullmatch(rf"{name}([_ ]\d+)?", key) and entry[key] not in (None, "", [])
    ]


def _numbers(entry: Mapping[str, Any], column: str, who: object) -> list[float]:
    found: list[float] = []
    for key in _keys(entry, column):
        value = entry[key]
        for each in value if isinstance(value, list) else [value]:
            try:
                number = float(each)
            except (TypeError, ValueError):
                number = float("nan")
            if not np.isfinite(number) or isinstance(each, bool):
                raise ValueError(f"{key} of {who} is {each!r}; it must be a finite number")
            found.append(number)
    return found


def _architecture(who: object, space: Space) -> Architecture:
    if isinstance(who, str) and re.fullmatch(r"[\[(].*[\])]", who.strip()):
        who = [word.strip() for word in who.strip()[1:-1].split(",") if word.strip()]
    if isinstance(who, list):
        if not all(type(each) is int or (isinstance(each, str) and each.isdecimal()) for each in who):
            raise ValueError(f"choices must be whole numbers, not {who}")
        found = Architecture(tuple(map(int, who)))
    else:
        found = Architecture.parse(str(who).strip())
    space.validate(found)
    return found
