"""What a report tells of networks that were trained alone, whole or in blocks."""

import math
import statistics
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax

from search.ranking_config import names
from search.ranking_figures import courses_figure
from search.ranking_words import finished, interval, number, percent, reading
from search.records import Relaxation, load_relaxation
from supernet.space import Architecture
from tools.config import flag
from tools.files import read_document
from tools.jsonl import read_lines
from tools.meters import read_metrics
from tools.pictures import house_style
from tools.ranking import kendall_tau
from tools.report import Drawing, Drawings, Part, Row, Section, Table, Text, drawing

CUTTING = (
    "decoupling rule groups uneven_groups balance block_rates alignment parallel pipeline plan local gluing"
)
PLACES = "run device threads trackers plugins architecture compile compile_mode cluster"
RECORDS = (
    "data.root data.workers data.download recipe.log_every recipe.evaluate_every recipe.checkpoint_every"
)
APART = frozenset(f"{CUTTING} {PLACES} {RECORDS}".split())
"""Options in which a training in blocks may differ from one in one piece and still be compared with it."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A finished run of retrain_model.py."""

    name: str
    path: Path
    network: str
    options: Mapping[str, Any]
    """By dotted name."""
    results: Mapping[str, Any]

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
    for name, path in names(*asked).items():
        with reading("trained", path):
            if (path / "truth.jsonl").exists():
                parts += _truth_of_cuts(name, path, searched)
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
            run = Training(name=name, path=path, network=network, options=flat, results=results)
            _ = _row(run), _course(run)  # what is missing there is found now, and told of this run
            runs.append(run)
    lines = _compared(runs)
    if runs:
        parts[:0] = [*map(Text, lines), _table(runs), Drawings(_drawn(runs))]
    return (Section("Trained here, in one piece and in blocks", parts) if parts else None), lines


def preference(relaxation: Relaxation, cuts_: list[int], heads: list[str]) -> float:
    """The log probability of a structure by alpha and beta: cut here, not there, and with these heads."""
    total = 0.0
    chosen = dict(zip(cuts_, heads, strict=True))
    for layer, (alpha, beta) in enumerate(zip(relaxation.alpha, relaxation.beta, strict=True), start=1):
        total += float(log_softmax(alpha)[0 if layer in chosen else 1])
        if layer in chosen:
            total += float(log_softmax(beta)[relaxation.head_kinds.index(chosen[layer])])
    return total


def _compared(runs: list[Training]) -> list[str]:
    """What cutting cost or gained: each run in blocks beside one of the same network in one piece."""
    lines = []
    for cut in runs:
        whole = [run for run in runs if not run.cuts and run.network == cut.network]
        if not cut.cuts or not whole:
            continue
        differing = {run.name: _differing(cut, run) for run in whole}
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


def _differing(one: Training, other: Training) -> list[str]:
    """The options, beside those of cutting and of the machine, in which two trainings differ."""
    names = sorted(one.options.keys() | other.options.keys())
    return [
        name
        for name in names
        if name.split(".")[0] not in APART
        and name not in APART
        and one.options.get(name) != other.options.get(name)
    ]


def _against(cut: Training, whole: Training) -> str:
    lost = 100 * (whole.accuracy - cut.accuracy)
    places = ", ".join(map(str, cut.cuts))
    head = (
        f"Cut into {len(cut.cuts) + 1} blocks (after layer {places}), {cut.network} gets "
        f"{percent(cut.accuracy)} of the test images right, {_apart(lost)} in one piece "
        f"({percent(whole.accuracy)})"
    )
    edge = 196 * math.hypot(cut.error, whole.error)
    if math.isfinite(edge):
        word = "more than" if abs(lost) > edge else "within"
        images = min(each.results["test_images"] for each in (cut, whole))
        head += (
            f": {word} the {edge:.1f} points within which at least 95 of 100 such differences stay if "
            f"both are "
            f"equally good and only the {images:,} test images are chance"
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
    return f"{told}. One training each; what another seed would give is not known."


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
    if not found:
        raise ValueError("its truth.jsonl has no trainings")
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


def _network(path: Path, options: Mapping[str, Any]) -> str:
    file = path / "architecture.json"
    if not options.get("architecture") or not file.exists():
        return str(options.get("network", ""))
    document = read_document(file, "architecture", 1)
    space = document["space"] if isinstance(document["space"], str) else document["space"].get("name", "own")
    return f"{space}/{Architecture(tuple(document['choices']))}"
