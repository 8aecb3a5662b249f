"""What a report tells of networks that were trained alone, whole or in blocks."""

import math
import tomllib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from search.ranking_config import names
from search.ranking_cuts import truth_of_cuts
from search.ranking_figures import courses_figure
from search.ranking_words import finished, percent, reading
from search.records import load_relaxation
from supernet.space import Architecture
from tools.config import flag
from tools.files import read_document
from tools.meters import read_metrics
from tools.pictures import house_style
from tools.report import Drawing, Drawings, Part, Row, Section, Table, Text, drawing

WHERE = "decoupling balance uneven_groups alignment parallel pipeline plan"
"""To cut, and on how many processes to train what is cut."""
HOW = "rule groups block_rates local gluing"
"""The pieces learn."""
PLACES = "run device threads trackers plugins architecture compile compile_mode cluster"
RECORDS = (
    "data.root data.workers data.download recipe.log_every recipe.evaluate_every recipe.checkpoint_every"
)
OTHER_CUTS = frozenset(f"{WHERE} {PLACES} {RECORDS}".split())
"""Options in which two trainings in blocks may differ and still say which cuts are better."""
WHOLE_OR_CUT = OTHER_CUTS | set(HOW.split())
"""The same for a training in blocks and one in one piece."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A finished run of retrain_model.py."""

    name: str
    path: Path
    network: str
    options: Mapping[str, Any]
    """By dotted name."""
    results: Mapping[str, Any]
    found_by: str = ""
    """The search that chose its cuts and heads, of those that the report was given."""

    @property
    def cuts(self) -> tuple[int, ...]:
        return tuple(self.results.get("cuts", ()))

    @property
    def accuracy(self) -> float:
        """Of the last step's weights on the test images."""
        return float(self.results["test"]["last"]["top1"])

    @property
    def error(self) -> float:
        """By the choice of the test images; nan where their number is not known."""
        images = self.results.get("test_images", math.nan)
        return math.sqrt(self.accuracy * (1 - self.accuracy) / images)

    @property
    def kept_mib(self) -> float:
        """What is kept at once for going backward, of one image, on the process that keeps most."""
        return float(max(self.results.get("kept_bytes", [math.nan]))) / 2**20


def trained(asked: tuple[str, ...], searched: tuple[str, ...]) -> tuple[Section | None, list[str]]:
    """What networks reach alone, whole or in blocks, and a line on what cutting cost or gained."""
    runs, parts = list[Training](), list[Part]()
    found = [each for name, path in names(*searched).items() for each in _found(name, path)]
    for name, path in names(*asked).items():
        with reading("trained", path):
            if (path / "truth.jsonl").exists():
                parts += truth_of_cuts(name, path, searched)
                continue
            results = finished(path, "trained", "retrain_model.py", "test")
            options = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
            flat = {
                f"{group}.{key}": value
                for group, values in options.items()
                if isinstance(values, dict)
                for key, value in values.items()
            }
            flat |= {key: value for key, value in options.items() if not isinstance(value, dict)}
            network = _network(path, options)
            mine = _Found(network, results.get("cuts"), results.get("heads"), results.get("groups"))
            by = next((search for search, theirs in found if theirs == mine), "")
            run = Training(name=name, path=path, network=network, options=flat, results=results, found_by=by)
            _ = _row(run), _course(run)  # what is missing there is found now, and told of this run
            runs.append(run)
    lines = [*_compared(runs), *_searched_against_others(runs)]
    if lines:
        lines[-1] += " One training each; what another seed would give is not known."
    if runs:
        parts[:0] = [*map(Text, lines), _table(runs), Drawings(_drawn(runs))]
    return (Section("Trained here, in one piece and in blocks", parts) if parts else None), lines


def _compared(runs: list[Training]) -> list[str]:
    """What cutting cost or gained: each run in blocks beside one of the same network in one piece."""
    lines = []
    for cut in runs:
        whole = [run for run in runs if not run.cuts and run.network == cut.network]
        if not cut.cuts or not whole:
            continue
        differing = {run.name: _differing(cut, run, WHOLE_OR_CUT) for run in whole}
        alike = [run for run in whole if not differing[run.name]]
        if alike:
            lines.append(_against(cut, alike[0]))
        else:
            other = min(whole, key=lambda run: len(differing[run.name])).name
            listed = ", ".join(map(flag, differing[other]))
            lines.append(
                f"What cutting does to {cut.network} cannot be told from {cut.name} and {other}: they "
                f"also differ "
                f"in {listed}."
            )
    return lines


def _searched_against_others(runs: list[Training]) -> list[str]:
    """Cuts that a search found beside others of as many blocks, where all else is alike."""
    lines = []
    for mine in (run for run in runs if run.found_by):
        for other in runs:
            if (
                other.network == mine.network
                and len(other.cuts) == len(mine.cuts)
                and not other.found_by
                and not _differing(mine, other, OTHER_CUTS)
            ):
                lead = 100 * (mine.accuracy - other.accuracy)
                lines.append(
                    f"Cut {_places(mine)}, as the search {mine.found_by} found, {mine.network} gets "
                    f"{percent(mine.accuracy)}, {_apart(-lead)} by the cuts of {other.name}, "
                    f"{_places(other)}, which no search here found "
                    f"({percent(other.accuracy)}){_by_chance(mine, other)}."
                )
    return lines


def _differing(one: Training, other: Training, apart: Set[str]) -> list[str]:
    """The options, beside those `apart`, in which two trainings differ."""
    names = sorted(one.options.keys() | other.options.keys())
    return [
        name
        for name in names
        if name.split(".")[0] not in apart
        and name not in apart
        and one.options.get(name) != other.options.get(name)
    ]


def _against(cut: Training, whole: Training) -> str:
    lost = 100 * (whole.accuracy - cut.accuracy)
    by = f", as the search {cut.found_by} found" if cut.found_by else ""
    head = (
        f"Cut into {len(cut.cuts) + 1} blocks {_places(cut)}{by}, {cut.network} gets "
        f"{percent(cut.accuracy)} of the test images right, {_apart(lost)} in one piece "
        f"({percent(whole.accuracy)}){_by_chance(cut, whole)}"
    )
    costs = []
    if math.isfinite(cut.kept_mib) and math.isfinite(whole.kept_mib):
        costs.append(
            f"its largest block keeps {cut.kept_mib / whole.kept_mib:.2f} times the activations for backward"
        )
    seconds = [run.results["training_seconds"] for run in (cut, whole)]
    if all(seconds):
        on = [_processes(run) for run in (cut, whole)]
        costs.append(
            f"its training took {seconds[0]:,.0f} s{on[0]}, {seconds[0] / seconds[1]:.2f} times the "
            f"{seconds[1]:,.0f} s{on[1]} in one piece"
        )
    told = ". ".join([head, *(each[0].upper() + each[1:] for each in costs)])
    return f"{told}."


def _by_chance(one: Training, other: Training) -> str:
    """Whether the choice of the test images alone could part them so."""
    edge = 196 * math.hypot(one.error, other.error)
    if not math.isfinite(edge):
        return ""
    word = "more than" if 100 * abs(one.accuracy - other.accuracy) > edge else "within"
    images = min(each.results["test_images"] for each in (one, other))
    return (
        f": {word} the {edge:.1f} points that the choice of {images:,} test images explains in 95 of 100 "
        "cases"
    )


def _places(run: Training) -> str:
    """Where it is cut, with the heads there."""
    heads = run.results.get("heads") or [""] * len(run.cuts)
    each = [f"{cut} ({head})" if head else str(cut) for cut, head in zip(run.cuts, heads, strict=True)]
    return f"after layer {', '.join(each)}"


def _apart(lost: float) -> str:
    if round(lost, 2) == 0:
        return "as many as"
    return f"{abs(lost):.2f} points {'less' if lost > 0 else 'more'} than"


def _processes(run: Training) -> str:
    count = run.results.get("processes", 0)
    return f" on {count} process{'es' * (count > 1)}" if count else ""


def _table(runs: list[Training]) -> Table:
    columns = ["run", "network", "blocks", "cut after", "test top-1", "last two heads", "million MACs"]
    columns += ["million params", "MiB kept per image, fp32", "steps", "processes", "seconds"]
    caption = (
        "After the last step; the test set was looked at once. A block ends in its own head, which gives its "
        "loss; no gradient passes from one block to the one before. Kept: activations that the largest "
        "block needs for its backward pass. Recipe and length are these runs' own, so accuracies are not "
        "those of a truth."
    )
    return Table(columns, list(map(_row, runs)), caption)


def _row(run: Training) -> Row:
    found, last = run.results, run.results["test"]["last"]
    cells = [run.name, run.network, str(len(run.cuts) + 1), ", ".join(map(str, run.cuts)) or "-"]
    cells += [percent(last["top1"]), percent(last.get("last_two_top1"))]
    cells += [f"{found['macs'] / 1e6:,.2f}" if found["macs"] else "-", f"{found['params'] / 1e6:,.2f}"]
    cells += [f"{run.kept_mib:.3f}" if math.isfinite(run.kept_mib) else "-", f"{found['steps']:,}"]
    cells += [str(found.get("processes", "-")), f"{found['training_seconds']:,.0f}"]
    return Row(cells)


def _course(run: Training) -> list[tuple[float, float]]:
    """Accuracy in percent on the validation images, by step."""
    lines = read_metrics(run.path / "metrics.jsonl")
    return [(line["step"], 100 * line["validation_top1"]) for line in lines if "validation_top1" in line]


def _drawn(runs: list[Training]) -> list[Drawing]:
    """Accuracy by step."""
    courses = {run.name: points for run in runs if len(points := _course(run)) > 1}
    drawn = []
    with house_style():
        if courses:
            figure = courses_figure(courses, "step", "validation top-1, %", {})
            drawn.append(drawing(figure, "Accuracy on the validation images while training."))
    return drawn


class _Found(NamedTuple):
    """A decoupling of a network, as runs write it."""

    network: str
    cuts: list[int] | None
    heads: list[str] | None
    groups: int | None


def _found(name: str, path: Path) -> list[tuple[str, _Found]]:
    """What a search for cuts found, by its name."""
    with reading("cuts", path):
        results = finished(path, "cuts", "search_decoupling.py", "decouplings")
        network = load_relaxation(path / "relaxation.json").network
        lists = [(f"'{name}'", results["decouplings"]), (f"'{name}' (balanced)", results.get("balanced", {}))]
        return [
            (said, _Found(network, each["cuts"], each["heads"], each["groups"]))
            for said, decouplings in lists
            for each in decouplings.values()
        ]


def _network(path: Path, options: Mapping[str, Any]) -> str:
    file = path / "architecture.json"
    if not options.get("architecture") or not file.exists():
        return str(options.get("network", ""))
    document = read_document(file, "architecture", 1)
    space = document["space"] if isinstance(document["space"], str) else document["space"].get("name", "own")
    return f"{space}/{Architecture(tuple(document['choices']))}"
