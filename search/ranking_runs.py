"""What other runs have to say in a report: searches, searches for cuts, trained networks."""

import statistics
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax

from search.evaluations import best_so_far
from search.ranking_config import names
from search.ranking_figures import courses_figure
from search.ranking_words import interval, number
from search.records import Relaxation, load_relaxation
from search.tables import Table as Truth
from supernet.space import Architecture, Space
from tools.files import read_document
from tools.jsonl import read_lines
from tools.pictures import house_style
from tools.ranking import kendall_tau
from tools.report import Drawing, Drawings, Lines, Part, Row, Section, Table, Text, drawing, inline

SHOWN = 5
"""Networks of each search that are listed."""


def searches(
    asked: tuple[str, ...], space: Space | None, truth: Truth | None, *, lower: bool
) -> Section | None:
    """The best of searches for architectures, with their truth where it is known, and their courses."""
    rows, courses = [], {}
    means = {who: float(np.mean(values)) for who, values in truth.values.items()} if truth else {}
    for name, path in names(*asked).items():
        results = _results(path, "search", "search_architecture.py", "front")
        for entry in results["best"][:SHOWN]:
            found = Architecture(tuple(entry["choices"]))
            known, rank = None, 0
            if space is not None and results["space"] == space.name:
                known = means.get(space.canonical(found))
            if known is not None:
                rank = 1 + sum(each < known if lower else each > known for each in means.values())
            cells = [name, entry["architecture"], f"{entry['score']:.4f}", f"{entry['macs'] / 1e6:,.1f}"]
            cells += [
                f"{entry['params'] / 1e6:,.2f}",
                f"{known:.4g}" if lower and known is not None else percent(known),
                f"{rank:,} of {len(means):,}" if rank else "-",
            ]
            rows.append(Row(cells))
        scores = [float(line["score"]) for line in read_lines(path / "evaluations.jsonl") if "score" in line]
        best = best_so_far(scores)
        steps = [at for at in range(len(best)) if at in (0, len(best) - 1) or best[at] > best[at - 1]]
        courses[name] = [(at + 1, best[at]) for at in steps]
    if not rows:
        return None
    columns = ["search", "architecture", "score", "million MACs", "million params", "truth", "true rank"]
    with house_style():
        figure = courses_figure(courses, "networks scored", "best score so far", {})
        course = drawing(figure, "The best score found after so many networks were scored.")
    return Section("What searches found", [Table(columns, rows), Drawings([course])])


def cuts(asked: tuple[str, ...]) -> Section | None:
    """What searches for cuts learned: shares, cuts by number of blocks, figures."""
    parts: list[Part] = []
    for name, path in names(*asked).items():
        results = _results(path, "cuts", "search_decoupling.py", "decouplings")
        relaxation = load_relaxation(path / "relaxation.json")
        about = f"{name}: {relaxation.network}, {len(relaxation.alpha) + 1} layers, heads "
        parts.append(Text(about + ", ".join(relaxation.head_kinds) + "."))
        rows = [
            Row([blocks, ", ".join(map(str, each["cuts"])), ", ".join(each["heads"])])
            for blocks, each in list(results["decouplings"].items())[:8]
        ]
        parts.append(
            Table(["blocks", "cut after layers", "heads"], rows, f"{name}: where to cut", words=True)
        )
        if results.get("words"):
            parts.append(Lines("\n".join(results["words"])))
        figures = [path / "preferences.svg", *sorted(path.glob("structure-*.svg"))]
        drawn = [
            Drawing(f"{name}: {file.stem}", svg=inline(file.read_text(encoding="utf-8"), file.stem))
            for file in figures
            if file.exists()
        ]
        if drawn:
            parts.append(Drawings(drawn, long=True))
    return Section("Where gradients should stop", parts) if parts else None


def trained(asked: tuple[str, ...], searched: tuple[str, ...]) -> Section | None:
    """What networks reach alone, whole or in blocks, and accuracy by the number of blocks."""
    rows, by_blocks, parts = [], dict[str, list[tuple[float, float]]](), list[Part]()
    for name, path in names(*asked).items():
        if (path / "truth.jsonl").exists():
            parts += _truth_of_cuts(name, path, searched)
            continue
        results = _results(path, "trained", "retrain_model.py", "test")
        options = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
        blocks = len(results.get("cuts", ())) + 1
        last = results["test"]["last"]
        rows.append(
            Row(
                [
                    name,
                    _network(path, options),
                    str(blocks),
                    ", ".join(map(str, results.get("cuts", ()))) or "-",
                    percent(last["top1"]),
                    percent(last.get("last_two_top1")),
                    f"{results['macs'] / 1e6:,.1f}" if results["macs"] else "-",
                    f"{results['params'] / 1e6:,.2f}",
                    f"{results['steps']:,}",
                    f"{results['training_seconds']:,.0f}",
                ]
            )
        )
        by_blocks.setdefault(_network(path, options), []).append((blocks, 100 * last["top1"]))
    if rows:
        columns = ["run", "network", "blocks", "cut after", "test top-1", "last two heads", "million MACs"]
        columns += ["million params", "steps", "seconds"]
        parts.insert(0, Table(columns, rows, "After the last step; the test set was looked at once."))
        courses = {who: sorted(points) for who, points in by_blocks.items() if len(points) > 1}
        if courses:
            with house_style():
                figure = courses_figure(courses, "blocks", "test top-1, %", {})
                parts.insert(1, Drawings([drawing(figure, "Accuracy by the number of blocks.")]))
    return Section("Trained alone", parts) if parts else None


def percent(value: float | None) -> str:
    """An accuracy, whether it is a fraction or in percent already."""
    if value is None:
        return "-"
    return f"{100 * value if 0 <= value <= 1 else value:.2f} %"


def preference(relaxation: Relaxation, cuts_: list[int], heads: list[str]) -> float:
    """The log probability of a structure by alpha and beta: cut here, not there, and with these heads."""
    total = 0.0
    chosen = dict(zip(cuts_, heads, strict=True))
    for layer, (alpha, beta) in enumerate(zip(relaxation.alpha, relaxation.beta, strict=True), start=1):
        total += float(log_softmax(alpha)[0 if layer in chosen else 1])
        if layer in chosen:
            total += float(log_softmax(beta)[relaxation.head_kinds.index(chosen[layer])])
    return total


class _Cut(NamedTuple):
    """One way to cut one network."""

    network: str
    places: tuple[int, ...]
    heads: tuple[str, ...]
    groups: str


def _truth_of_cuts(name: str, path: Path, searched: tuple[str, ...]) -> list[Part]:
    """Decouplings of one network by their accuracy, and what searches for cuts thought of them."""
    found: dict[_Cut, list[float]] = {}
    called: dict[_Cut, str] = {}
    for line in read_lines(path / "truth.jsonl"):
        if "cuts" not in line:
            raise ValueError(f"--trained: '{path}' is a truth of architectures; give it as --truth")
        key = _Cut(
            str(line["network"]), tuple(line["cuts"]), tuple(line["heads"]), str(line.get("groups", 1))
        )
        found.setdefault(key, []).append(float(line["accuracy"]))
        called[key] = str(line.get("name", ""))
    thoughts = {
        other: _thoughts(load_relaxation(where / "relaxation.json"), list(found))
        for other, where in names(*searched).items()
    }
    thoughts = {other: each for other, each in thoughts.items() if each}
    rows = []
    for key, values in sorted(found.items(), key=lambda pair: -statistics.fmean(pair[1])):
        spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
        cells = [called[key], key.network, str(len(key.places) + 1), ", ".join(map(str, key.places))]
        cells += [", ".join(key.heads), key.groups, f"{100 * statistics.fmean(values):.2f}{spread} %"]
        cells += [str(len(values)), *(f"{each[key]:.2f}" for each in thoughts.values())]
        rows.append(Row(cells))
    columns = ["", "network", "blocks", "cut after", "heads", "groups", "test top-1", "trainings"]
    columns += [f"log p by {other}" for other in thoughts]
    parts: list[Part] = [Table(columns, rows, f"{name}: which cut is better?")]
    for other, each in thoughts.items():
        for blocks in sorted({len(key.places) + 1 for key in found}):
            same = [key for key in found if len(key.places) + 1 == blocks]
            values = [statistics.fmean(found[key]) for key in same]
            if len(same) >= 4 and np.ptp(values) and np.ptp([each[key] for key in same]):
                tau = kendall_tau([each[key] for key in same], values)
                parts.append(
                    Text(
                        f"{other} orders the {len(same)} decouplings in {blocks} blocks with tau "
                        f"{interval(tau._asdict())} (p = {number(tau.p_value, 3)})."
                    )
                )
    return parts


def _thoughts(relaxation: Relaxation, keys: list[_Cut]) -> dict[_Cut, float]:
    """Nothing where the search was of another network or of other heads."""
    layers = len(relaxation.alpha)
    for key in keys:
        strange = any(cut > layers for cut in key.places) or not set(key.heads) <= set(relaxation.head_kinds)
        if strange or key.network != relaxation.network:
            return {}
    return {key: preference(relaxation, list(key.places), list(key.heads)) for key in keys}


def _results(path: Path, option: str, script: str, key: str) -> Mapping[str, Any]:
    """What a finished run found."""
    file = path / "results.json"
    if not file.exists():
        raise ValueError(f"--{option}: '{path}' is no finished run of {script}: it has no results.json")
    results = read_document(file, "results", 1)
    if key not in results:
        raise ValueError(f"--{option}: '{path}' is not a run of {script}")
    return results


def _network(path: Path, options: Mapping[str, Any]) -> str:
    file = path / "architecture.json"
    if not options.get("architecture") or not file.exists():
        return str(options.get("network", ""))
    document = read_document(file, "architecture", 1)
    space = document["space"] if isinstance(document["space"], str) else document["space"].get("name", "own")
    return f"{space}/{Architecture(tuple(document['choices']))}"
