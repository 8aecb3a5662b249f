"""Scores as a file: evaluations.jsonl, a line for each architecture that was ever scored."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search.limits import UNITS
from search.method import Scored
from supernet.additive import Additive
from supernet.network.documents import listed
from supernet.space import Architecture, Space
from tools.files.jsonl import JsonLines, read_lines

NAMES = {"macs": "macs", "params": "params", "latency": "latency_ms", "activations": "activations_mib"}
"""What costs are called in files."""


def in_units(name: str, value: int) -> float:
    """A cost as it stands in files."""
    divisor = UNITS[name][0]
    return value if divisor == 1 else round(value / divisor, 9)


def described(architecture: Architecture, costs: Mapping[str, Additive]) -> dict[str, Any]:
    """What an architecture costs, for files."""
    return {NAMES[name]: in_units(name, cost.of(architecture)) for name, cost in costs.items()}


def append_evaluations(path: Path, scored: Sequence[Scored], costs: Mapping[str, Additive]) -> None:
    """Add lines."""
    lines = JsonLines(path)
    try:
        lines.write(
            *(
                {
                    "choices": list(each.architecture.choices),
                    "score": each.score,
                    **described(each.architecture, costs),
                }
                for each in scored
            )
        )
    finally:
        lines.close()


def read_evaluations(path: Path, space: Space) -> list[Scored]:
    """What was scored, in its order; torn lines are passed over, of equal architectures the first counts."""
    found: dict[Architecture, Scored] = {}
    for entry in read_lines(path) if path.is_file() else ():
        score = entry.get("score")
        if "choices" not in entry or not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(f"{path}: a line must have choices and a score, not {entry}")
        architecture = listed(path, entry["choices"], space)
        found.setdefault(architecture, Scored(architecture, float(score)))
    return list(found.values())


def score_error(score: float, images: int) -> float:
    """By which the choice of so many images alone makes a score uncertain: its binomial standard error.

    All or none right is taken for half an image less or more, which is not certain either.
    """
    share = min(max(score, 0.5 / images), 1 - 0.5 / images)
    return math.sqrt(share * (1 - share) / images)


def said_of_noise(score: float, images: int) -> str:
    """The same in words."""
    return f"uncertain by {100 * score_error(score, images):.1f} points, over {images:,} validation images"


def best_so_far(scores: Iterable[float]) -> list[float]:
    """The highest up to each."""
    found: list[float] = []
    for score in scores:
        found.append(max(score, found[-1]) if found else score)
    return found
