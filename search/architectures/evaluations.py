"""The file evaluations.jsonl has a line for each architecture that was ever scored."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search.limits import UNITS
from search.method import Scored
from supernet.additive import Additive
from supernet.network.documents import listed_architecture
from supernet.space import Architecture, Space
from tools.files.jsonl import JsonLines, read_lines

NAMES = {"macs": "macs", "params": "params", "latency": "latency_ms", "activations": "activations_mib"}
"""The names of costs in files."""


def in_units(name: str, value: int) -> float:
    """Return a cost in the unit that it has in files."""
    divisor = UNITS[name][0]
    return value if divisor == 1 else round(value / divisor, 9)


def described(architecture: Architecture, costs: Mapping[str, Additive]) -> dict[str, Any]:
    """Return what an architecture costs, for files."""
    return {NAMES[name]: in_units(name, cost.of(architecture)) for name, cost in costs.items()}


def append_evaluations(
    path: Path, scored: Sequence[Scored], costs: Mapping[str, Additive], space: Space
) -> None:
    """Add a line for each scored architecture. A copy of a space gives scores of its own size."""
    lines = JsonLines(path)
    try:
        lines.write(
            *(
                {
                    "choices": list(network.architecture.choices),
                    "score": network.score,
                    **space.fidelity_note,
                    **described(network.architecture, costs),
                }
                for network in scored
            )
        )
    finally:
        lines.close()


def read_evaluations(path: Path, space: Space) -> list[Scored]:
    """Read what was scored, in its order.

    Torn lines are skipped. Of equal architectures the first counts.
    """
    scored: dict[Architecture, Scored] = {}
    for entry in read_lines(path) if path.is_file() else ():
        score = entry.get("score")
        if "choices" not in entry or not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(f"{path}: a line must have choices and a score, not {entry}")
        architecture = listed_architecture(path, entry["choices"], space)
        scored.setdefault(architecture, Scored(architecture, float(score)))
    return list(scored.values())


def score_error(score: float, images: int) -> float:
    """Return a score's binomial standard error, the uncertainty from the choice of images alone.

    Where all or no images are right, half an image less or more is taken, because such a score is
    uncertain too.
    """
    share = min(max(score, 0.5 / images), 1 - 0.5 / images)
    return math.sqrt(share * (1 - share) / images)


def said_of_noise(score: float, images: int) -> str:
    """Return the standard error of a score in words."""
    return f"uncertain by {100 * score_error(score, images):.1f} points, over {images:,} validation images"


def best_so_far(scores: Iterable[float]) -> list[float]:
    """Return, for each score, the highest up to it."""
    highest: list[float] = []
    for score in scores:
        highest.append(max(score, highest[-1]) if highest else score)
    return highest
