"""This module reads tables of architectures and numbers: the truth, or scores from elsewhere."""

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2

from supernet.space import Architecture, Fidelity, Space
from tools.chance import Numbers
from tools.files.jsonl import read_lines
from tools.mistake import Mistake

FILES = ("truth.jsonl", "evaluations.jsonl")
"""These files hold the numbers in a run's folder."""
VALUES = ("test_acc", "accuracies", "accuracy", "mean_acc", "acc", "score")
"""These are the known names of a column of numbers; the first that fits is taken."""
WHO = ("choices", "architecture", "arch")
"""These are the known names of the column of architectures."""


@dataclass(frozen=True, kw_only=True)
class NetworkTable:
    """A `NetworkTable` holds numbers of different networks, by canonical architecture."""

    space: Space
    """The space of the networks."""
    values: Mapping[Architecture, tuple[float, ...]]
    """The numbers of each network; there are several if it was measured several times."""
    rows: int
    """The number of architectures in the file."""
    column: str
    """The name that the numbers have in the file."""
    lower: bool = False
    """Whether a lower number is better."""
    fidelity: Fidelity | None = None
    """The size at which the numbers were measured, where that is not the full size."""

    @property
    def merged(self) -> int:
        """Return how many architectures are the same network as an earlier one."""
        return self.rows - len(self.values)

    def repeats(self, networks: Iterable[Architecture]) -> Numbers:
        """Return a row for each repeat that all these networks have."""
        rows = [self.values[network] for network in networks]
        least = min(map(len, rows))
        return np.array([row[:least] for row in rows]).T

    def most_repeats(self, networks: Iterable[Architecture]) -> int:
        """Return the largest number of repeats that one of these networks has."""
        return max(len(self.values[network]) for network in networks)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A `Standing` says where a network stands among others in a table."""

    value: float
    rank: int
    among: int
    """The number of networks that are ranked."""
    best: float
    mean: float
    error: float
    """The standard error of such a value between trainings of one network; NaN if each has one training."""


def read_table(path: Path, space: Space, *, option: str, lower: bool = False) -> NetworkTable:
    """Read a file, or the table in a run's folder; torn lines of .jsonl are skipped.

    Architectures that are the same network count once, and different numbers of theirs count as repeats.
    Where lower is better, the column may also be called "loss".

    Raises:
        Mistake: about `option`, which names the path, if no table can be read there.
    """
    file = table_file(path, option)
    try:
        entries = list(_entries(file))
        column = _column(entries, (*VALUES, "loss") if lower else VALUES)
        fidelity = _fidelity([entry for _, entry in entries])
        rows: dict[Architecture, list[float]] = {}
        for who, entry in entries:
            architecture = _architecture(who, space)
            rows.setdefault(architecture, []).extend(_numbers(entry, column, who))
    except OSError as error:
        raise Mistake(option, f"cannot read '{file}': {error.strerror}") from None
    except (ValueError, RecursionError, csv.Error) as error:
        raise Mistake(option, f"'{file}': {error}") from None
    by_network: dict[Architecture, list[tuple[float, ...]]] = {}
    for architecture, numbers in rows.items():
        repeats = by_network.setdefault(space.canonical(architecture), [])
        if tuple(numbers) not in repeats:
            repeats.append(tuple(numbers))
    values = {who: tuple(number for row in repeats for number in row) for who, repeats in by_network.items()}
    return NetworkTable(
        space=space, values=values, rows=len(rows), column=column, lower=lower, fidelity=fidelity
    )


def table_file(path: Path, option: str) -> Path:
    """Return the file with the numbers: the named file, or the table in a run's folder."""
    if path.is_dir():
        for name in FILES:
            if (path / name).exists():
                return path / name
        raise Mistake(option, f"folder '{path}' holds neither {' nor '.join(FILES)}")
    if not path.is_file():
        raise Mistake(option, f"there is no file '{path}'")
    return path


def standing(
    table: NetworkTable, architecture: Architecture, limits: Mapping[str, float] | None = None
) -> Standing | None:
    """Return where a network stands in a table, among those within limits on `macs` and `params`.

    The result is None if the table does not have the network.
    """
    space, means = table.space, {who: float(np.mean(values)) for who, values in table.values.items()}
    who = space.canonical(architecture)
    if who not in means:
        return None
    costs = {"macs": space.macs, "params": space.params}
    kept = {name: most for name, most in (limits or {}).items() if name in costs}
    others = [
        mean
        for other, mean in means.items()
        if all(costs[name](other) <= most for name, most in kept.items())
    ]
    value = means[who]
    return Standing(
        value=value,
        rank=1 + sum(other < value if table.lower else other > value for other in others),
        among=len(others),
        best=min(others) if table.lower else max(others),
        mean=float(np.mean(others)),
        error=_error_of_mean(table, len(table.values[who])),
    )


def _error_of_mean(table: NetworkTable, repeats: int) -> float:
    """Return the standard error of the mean of `repeats` trainings; NaN if no network has two."""
    trainings = [values for values in table.values.values() if len(values) > 1]
    if not trainings:
        return math.nan
    # The median, as a few networks that hardly train vary a hundred times as much as all others.
    within = [np.var(values, ddof=1) / _median_share(len(values) - 1) for values in trainings]
    return math.sqrt(float(np.median(within)) / repeats)


def _median_share(degrees: int) -> float:
    """Return the median of a variance's estimates, in units of the variance."""
    return float(chi2.median(degrees)) / degrees


def _entries(file: Path) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Return the architecture of each entry of a file, and the entry."""
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
    """Return the column of the numbers: the first known name that all entries have, perhaps with a number."""
    if len(entries) < 2:
        raise ValueError("a ranking needs two architectures or more")
    for name in values:
        if all(_keys(entry, name) for _, entry in entries):
            return name
    who, entry = next(
        (pair for pair in entries if not any(_keys(pair[1], name) for name in values)), entries[0]
    )
    raise ValueError(f"what is said of {who} must have one of {', '.join(values)}, not {', '.join(entry)}")


def _fidelity(entries: list[Mapping[str, Any]]) -> Fidelity | None:
    """Return the size at which the numbers were measured; all lines must say the same."""
    noted = entries[0].get("fidelity")
    if any(entry.get("fidelity") != noted for entry in entries):
        raise ValueError("its lines are of several sizes (fidelity); compare those of one size at a time")
    try:
        return Fidelity(**noted) if noted else None
    except TypeError:
        raise ValueError(f"fidelity must have width and image_size, not {noted!r}") from None


def _keys(entry: Mapping[str, Any], name: str) -> list[str]:
    return [
        key
        for key in entry
        if key is not None and re.fullmatch(rf"{name}([_ ]\d+)?", key) and entry[key] not in (None, "", [])
    ]


def _numbers(entry: Mapping[str, Any], column: str, who: object) -> list[float]:
    numbers: list[float] = []
    for key in _keys(entry, column):
        value = entry[key]
        for item in value if isinstance(value, list) else [value]:
            try:
                number = float(item)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number) or isinstance(item, bool):
                raise ValueError(f"{key} of {who} is {item!r}; it must be a finite number")
            numbers.append(number)
    return numbers


def _architecture(who: object, space: Space) -> Architecture:
    if isinstance(who, str) and re.fullmatch(r"[\[(].*[\])]", who.strip()):
        who = [word.strip() for word in who.strip()[1:-1].split(",") if word.strip()]
    if isinstance(who, list):
        if not all(type(item) is int or (isinstance(item, str) and item.isdecimal()) for item in who):
            raise ValueError(f"choices must be whole numbers, not {who}")
        architecture = Architecture(tuple(map(int, who)))
    else:
        architecture = Architecture.parse(str(who).strip())
    space.validate(architecture)
    return architecture
