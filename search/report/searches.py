"""What searches have to say in a report: those for architectures, and those for cuts."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import chi2

from search.architectures.evaluations import best_so_far, said_of_noise, score_error
from search.records import load_relaxation
from search.report.config import names
from search.report.figures import costs_figure, courses_figure
from search.report.tables import Table as Truth
from search.report.words import finished, percent, percent_points, reading
from supernet.space import Architecture, Space
from tools.files.jsonl import read_lines
from tools.page.pictures import house_style
from tools.page.report import Drawing, Drawings, Lines, Part, Row, Section, Table, Text, drawing, inline

UNITS = {
    "macs": "{:,.0f} MACs",
    "params": "{:,.0f} params",
    "latency_ms": "{:g} ms",
    "activations_mib": "{:g} MiB",
}
"""How limits are written."""
SHOWN = 5
"""Networks of each search that are listed."""


class _Known(NamedTuple):
    """What the truth says of a network."""

    value: float
    rank: int
    among: int
    """The networks that are ranked."""
    best: float
    mean: float
    error: float
    """By which such a value is uncertain, as trainings of one network differ; nan with one training of "
    "each."""


def searches(
    asked: tuple[str, ...], space: Space | None, truth: Truth | None, *, lower: bool
) -> tuple[Section | None, list[str]]:
    """The best of searches for architectures, with what the truth says of them; a line on each."""
    rows, courses, lines = [], {}, []
    points: dict[str, list[tuple[float, float]]] = {}
    for name, path in names(*asked).items():
        with reading("search", path):
            results = finished(path, "search", "search_architecture.py", "front")
            ours = space if space is not None and results["space"] == space.name else None
            images = results.get("validation_images", 0)
            for number, entry in enumerate(results["best"][:SHOWN]):
                found = Architecture(tuple(entry["choices"]))
                known = _known(found, ours, truth, lower=lower)
                error = f" ± {score_error(entry['score'], images):.4f}" if images else ""
                cells = [name, entry["architecture"], f"{entry['score']:.4f}{error}"]
                cells += [f"{entry['macs'] / 1e6:,.2f}", f"{entry['params'] / 1e6:,.3f}"]
                cells += (
                    [_worth(known.value, lower), f"{known.rank:,} of {known.among:,}"]
                    if known
                    else ["-", "-"]
                )
                rows.append(Row(cells))
                if number == 0:
                    limits = results.get("limits", {})
                    within = _known(found, ours, truth, lower=lower, limits=limits)
                    lines.append(_said(name, results, entry, limits, within, truth is not None, lower))
            scored = [line for line in read_lines(path / "evaluations.jsonl") if "score" in line]
            points[name] = [(line["macs"] / 1e6, line["score"]) for line in scored if "macs" in line]
            if not scored or not results["best"]:
                raise ValueError("it has no scores")
            best = best_so_far([float(line["score"]) for line in scored])
            steps = [at for at in range(len(best)) if at in (0, len(best) - 1) or best[at] > best[at - 1]]
            courses[name] = [(at + 1, best[at]) for at in steps]
    if not rows:
        return None, []
    columns = ["search", "architecture", "score", "million MACs", "million params", "truth", "true rank"]
    with house_style():
        drawn = [
            drawing(
                costs_figure({name: each for name, each in points.items() if each}, "million MACs", "score"),
                "Every network that was scored, by what it costs; ringed: the best of each search.",
            ),
            drawing(
                courses_figure(courses, "networks scored", "best score so far", {}, steps=True),
                "The best score found after so many networks were scored.",
            ),
        ]
    caption = (
        "Scores are with the supernet's weights, ± their standard error by the choice of the validation "
        "images; the highest of many are likely too high. The truth is of the same networks trained alone."
    )
    parts: list[Part] = [*map(Text, lines), Table(columns, rows, caption), Drawings(drawn)]
    return Section("What searches found", parts), lines


def cuts(asked: tuple[str, ...]) -> tuple[Section | None, list[str]]:
    """What searches for cuts learned: shares, cuts by number of blocks, figures, and a sentence on each."""
    parts: list[Part] = []
    lines = []
    for name, path in names(*asked).items():
        with reading("cuts", path):
            results = finished(path, "cuts", "search_decoupling.py", "decouplings")
            relaxation = load_relaxation(path / "relaxation.json")
            layers = len(relaxation.alpha) + 1
            lines.append(_where(name, relaxation.network, layers, results["decouplings"]))
            parts.append(Text(lines[-1]))
            parts.append(
                Text(
                    "A cut after a layer lets no gradient pass: the layers up to it are a block, which "
                    f"learns from a head of its own, one of {', '.join(relaxation.head_kinds)}. For each "
                    "layer the search learns a share for a cut (alpha) and for each head (beta), by what "
                    "lowers the validation loss some steps later; K blocks take the K - 1 largest shares. "
                    "A share over .5 wants a cut. Whether other cuts are better only trainings can tell."
                )
            )
            rows = [
                Row([blocks, ", ".join(map(str, each["cuts"])), ", ".join(each["heads"])])
                for blocks, each in list(results["decouplings"].items())[:8]
            ]
            parts.append(
                Table(["blocks", "cut after layers", "heads"], rows, f"{name}: where to cut", words=True)
            )
            figures = [path / "preferences.svg", *sorted(path.glob("structure-*.svg"))]
            drawn = [
                Drawing(f"{name}: {_figure(file)}", svg=inline(file.read_text(encoding="utf-8"), file.stem))
                for file in figures
                if file.exists()
            ]
            if drawn:
                parts.append(Drawings(drawn, long=True))
            if results.get("words"):
                parts.append(Text("How sure the search is, in its own words:"))
                parts.append(Lines("\n".join(results["words"])))
    return (Section("Where gradients should stop", parts) if parts else None), lines


def _known(
    who: Architecture,
    space: Space | None,
    truth: Truth | None,
    *,
    lower: bool,
    limits: Mapping[str, float] | None = None,
) -> _Known | None:
    """What the truth says of a network, ranked among those within limits on MACs and params."""
    if truth is None or space is None:
        return None
    means = {each: float(np.mean(values)) for each, values in truth.values.items()}
    value = means.get(space.canonical(who))
    if value is None:
        return None
    count = {"macs": space.macs, "params": space.params}
    kept = {name: most for name, most in (limits or {}).items() if name in count}
    others = [mean for each, mean in means.items() if all(count[name](each) <= kept[name] for name in kept)]
    better = sum(other < value if lower else other > value for other in others)
    best = min(others) if lower else max(others)
    trainings = [values for values in truth.values.values() if len(values) > 1]
    error = math.nan
    if trainings:
        # The median, as a few networks that hardly train vary a hundred times as much as all others.
        within = [np.var(values, ddof=1) / _median_share(len(values) - 1) for values in trainings]
        error = math.sqrt(float(np.median(within)) / len(truth.values[space.canonical(who)]))
    return _Known(value, 1 + better, len(others), best, float(np.mean(others)), error)


def _median_share(degrees: int) -> float:
    """What the median of a variance's estimates is, in units of the variance."""
    return float(chi2.median(degrees)) / degrees


def _worth(value: float, lower: bool) -> str:
    return f"{value:.4g}" if lower else percent(value)


def _said(
    name: str,
    results: Mapping[str, Any],
    entry: Mapping[str, Any],
    limits: Mapping[str, float],
    known: _Known | None,
    has_truth: bool,
    lower: bool,
) -> str:
    told = [UNITS[limit].format(most) for limit, most in limits.items() if limit in UNITS]
    limit = f" of at most {' and '.join(told)}" if told else ""
    images = results.get("validation_images", 0)
    of_score = f" ({said_of_noise(entry['score'], images)})" if images else ""
    said = (
        f"The search {name!r} ({results['method']}) scored {results['evaluations']:,} networks{limit}; "
        f"its best is {entry['architecture']}, score {entry['score']:.4f}{of_score}, "
        f"{entry['macs'] / 1e6:,.2f} million MACs"
    )
    if known:
        among = f"the {known.among:,} networks that the truth has"
        if {"macs", "params"} & limits.keys():
            among += " within limits on " + " and ".join(
                key for key in ("MACs", "params") if key.lower() in limits
            )
        noise = ""
        if not math.isnan(known.error):
            points = f"{known.error:.2g}" if lower else percent_points(known.error, known.value)
            noise = f" (uncertain by {points}, as trainings differ)"
        return (
            f"{said}. In the truth it has {_worth(known.value, lower)}{noise}: rank {known.rank:,} of "
            f"{among}, "
            f"of which the best has {_worth(known.best, lower)} and the mean is {_worth(known.mean, lower)}."
        )
    return said + (", of which the truth knows nothing." if has_truth else ".")


def _where(name: str, network: str, layers: int, decouplings: Mapping[str, Any]) -> str:
    """The cuts into few blocks, in words."""
    told = [
        f"in {blocks} blocks after {', '.join(f'{cut} ({head})' for cut, head in pairs)}"
        for blocks, each in list(decouplings.items())[:3]
        for pairs in [list(zip(each["cuts"], each["heads"], strict=True))]
    ]
    places = "; ".join(told)
    return (
        f"The search {name!r} cuts {network}, of {layers} layers, {places} (in brackets the head at a cut)."
    )


def _figure(file: Path) -> str:
    """What a figure of a search for cuts shows."""
    if file.stem == "preferences":
        return "shares of cuts and heads by layer, and their course"
    return f"the network in {file.stem.rpartition('-')[2]} blocks"
