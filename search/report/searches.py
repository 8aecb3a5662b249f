"""This module describes searches for architectures in a report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search.architectures.evaluations import best_so_far, said_of_noise, score_error
from search.report.figures import costs_figure, courses_figure
from search.report.runs import faults_of, finished_results, labelled
from search.report.tables import NetworkTable, Standing, standing
from search.report.words import percent, percent_points
from supernet.space import Architecture, Fidelity
from tools.files.jsonl import read_lines
from tools.page.pictures import house_style
from tools.page.report import Drawings, Section, SectionPart, Table, TableRow, Text, drawing

LIMIT_WORDS = {
    "macs": "{:,.0f} MACs",
    "params": "{:,.0f} params",
    "latency_ms": "{:g} ms",
    "activations_mib": "{:g} MiB",
}
"""Limits are written in these forms."""
SHOWN = 5
"""The report lists at most this many networks of each search."""


@dataclass(frozen=True, kw_only=True)
class BestNetwork:
    """A `BestNetwork` is one of the networks that a search found best."""

    architecture: Architecture
    name: str
    """The architecture, as the search writes it."""
    score: float
    macs: float
    params: float


@dataclass(frozen=True, kw_only=True)
class ArchitectureSearch:
    """An `ArchitectureSearch` is a finished run of search_architecture.py."""

    name: str
    method: str
    space: str
    limits: Mapping[str, float]
    evaluations: int
    validation_images: int
    """The number of images on which each network was scored; 0 if it is not known."""
    fidelity: Fidelity | None
    """The size of the supernet that gave the scores, where that is not the full size."""
    best: Sequence[BestNetwork]
    """The best networks, best first."""
    scores: Sequence[float]
    """All scores, in the order in which the search gave them."""
    costs_and_scores: Sequence[tuple[float, float]]
    """Million MACs and score of each network whose MACs are known."""


def search_section(words: Sequence[str], truth: NetworkTable | None) -> tuple[Section | None, list[str]]:
    """Return the section on the best networks of searches, and a sentence on each search.

    The section gives the truth of each network that the truth has.
    """
    searches, rows, lines = list[ArchitectureSearch](), list[TableRow](), list[str]()
    for name, path in labelled(words, "search").items():
        with faults_of("search", path):
            search = read_search(name, path)
            rows += [_row(search, network, truth) for network in search.best]
            lines.append(sentence(search, truth))
            searches.append(search)
    if not searches:
        return None, []
    columns = ["search", "architecture", "score", "million MACs", "million params", "truth", "true rank"]
    caption = (
        "Scores are with the supernet's weights, ± their standard error by the choice of the validation "
        "images; the highest of many are likely too high. The truth is of the same networks trained alone."
    )
    parts: list[SectionPart] = [*map(Text, lines), Table(columns, rows, caption), _drawings(searches)]
    return Section("What searches found", parts), lines


def read_search(name: str, path: Path) -> ArchitectureSearch:
    """Read a finished run of search_architecture.py."""
    results = finished_results(path, option="search", script="search_architecture.py", key="front")
    best = [
        BestNetwork(
            architecture=Architecture(tuple(entry["choices"])),
            name=entry["architecture"],
            score=entry["score"],
            macs=entry["macs"],
            params=entry["params"],
        )
        for entry in results["best"][:SHOWN]
    ]
    lines = [line for line in read_lines(path / "evaluations.jsonl") if "score" in line]
    if not lines or not best:
        raise ValueError("it has no scores")
    return ArchitectureSearch(
        name=name,
        method=results["method"],
        space=results["space"],
        limits=results.get("limits", {}),
        evaluations=results["evaluations"],
        validation_images=results.get("validation_images", 0),
        fidelity=Fidelity(**results["fidelity"]) if "fidelity" in results else None,
        best=best,
        scores=[float(line["score"]) for line in lines],
        costs_and_scores=[(line["macs"] / 1e6, line["score"]) for line in lines if "macs" in line],
    )


def sentence(search: ArchitectureSearch, truth: NetworkTable | None) -> str:
    """Say what a search found, and how its best network ranks in the truth within the search's limits."""
    limits = [LIMIT_WORDS[name].format(most) for name, most in search.limits.items() if name in LIMIT_WORDS]
    limit = f" of at most {' and '.join(limits)}" if limits else ""
    size = f" of {search.fidelity}" if search.fidelity else ""
    best, images = search.best[0], search.validation_images
    noise = f" ({said_of_noise(best.score, images)})" if images else ""
    text = (
        f"The search {search.name!r} ({search.method}) scored {search.evaluations:,} networks{limit}; "
        f"its best is {best.name}, score {best.score:.4f}{size}{noise}, {best.macs / 1e6:,.2f} million MACs"
    )
    if truth is None:
        return f"{text}."
    within = _standing(search, best, truth, search.limits)
    if within is None:
        return f"{text}, of which the truth knows nothing."
    return f"{text}. {_in_truth(within, search.limits, truth)}"


def _in_truth(within: Standing, limits: Mapping[str, float], truth: NetworkTable) -> str:
    """Say where a network stands in the truth, among the networks within limits."""
    among = f"the {within.among:,} networks that the truth has"
    if counted := [name for name in ("MACs", "params") if name.lower() in limits]:
        among += f" within limits on {' and '.join(counted)}"
    noise = ""
    if not math.isnan(within.error):
        points = f"{within.error:.2g}" if truth.lower else percent_points(within.error, within.value)
        noise = f" (uncertain by {points}, as trainings differ)"
    value, best, mean = (_worth(number, truth) for number in (within.value, within.best, within.mean))
    return (
        f"In the truth it has {value}{noise}: rank {within.rank:,} of {among}, of which the best has {best} "
        f"and the mean is {mean}."
    )


def _standing(
    search: ArchitectureSearch,
    network: BestNetwork,
    truth: NetworkTable | None,
    limits: Mapping[str, float] | None = None,
) -> Standing | None:
    """Return where a network stands in the truth, if both have the same space."""
    if truth is None or search.space != truth.space.name:
        return None
    return standing(truth, network.architecture, limits)


def _row(search: ArchitectureSearch, network: BestNetwork, truth: NetworkTable | None) -> TableRow:
    images = search.validation_images
    error = f" ± {score_error(network.score, images):.4f}" if images else ""
    cells = [search.name, network.name, f"{network.score:.4f}{error}"]
    cells += [f"{network.macs / 1e6:,.2f}", f"{network.params / 1e6:,.3f}"]
    known = _standing(search, network, truth)
    if truth is None or known is None:
        return TableRow([*cells, "-", "-"])
    return TableRow([*cells, _worth(known.value, truth), f"{known.rank:,} of {known.among:,}"])


def _worth(value: float, truth: NetworkTable) -> str:
    """Return a number of the truth in words: a loss as it is, an accuracy in percent."""
    return f"{value:.4g}" if truth.lower else percent(value)


def _drawings(searches: Sequence[ArchitectureSearch]) -> Drawings:
    """Draw all scores over their costs, and the best score over the number of networks scored."""
    points = {search.name: search.costs_and_scores for search in searches if search.costs_and_scores}
    courses = {search.name: _course(search.scores) for search in searches}
    with house_style():
        return Drawings(
            [
                drawing(
                    costs_figure(points, "million MACs", "score"),
                    "Every network that was scored, by what it costs; ringed: the best of each search.",
                ),
                drawing(
                    courses_figure(courses, "networks scored", "best score so far", {}, steps=True),
                    "The best score found after so many networks were scored.",
                ),
            ]
        )


def _course(scores: Sequence[float]) -> list[tuple[float, float]]:
    """Return the points at which the best score so far rises, with the first and the last point."""
    best = best_so_far(scores)
    steps = [at for at in range(len(best)) if at in (0, len(best) - 1) or best[at] > best[at - 1]]
    return [(at + 1, best[at]) for at in steps]
