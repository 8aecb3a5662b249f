"""What a report tells of networks that were trained alone, whole or in blocks."""

import math
import tomllib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from local_learning.options import GluingOptions, LocalLosses
from search.records import load_relaxation
from search.report.config import names
from search.report.cuts import truth_of_cuts
from search.report.figures import courses_figure
from search.report.words import finished, percent, reading
from supernet.network.choice import NetworkChoice
from supernet.network.documents import stem_of
from supernet.network.network import COPY
from supernet.space import Architecture
from tools.files.atomic import read_document
from tools.images.options import DataConfig
from tools.options.config import flag, to_toml, with_earlier
from tools.options.recipes import Recipe
from tools.options.shared import FREE, ExtendOptions, FastOptions, RunOptions
from tools.page.pictures import house_style
from tools.page.report import Drawing, Drawings, Part, Row, Section, Table, Text, drawing
from tools.run.meters import read_metrics

WHERE = "decoupling balance alignment alignment_every parallel pipeline plan"
"""To cut, and on how many processes to train what is cut."""
HOW = "rule groups uneven_groups block_rates local gluing head_width"
"""The pieces learn."""
PLACES = "plugins architecture compile compile_mode cluster"
RECORDS = "recipe.log_every recipe.evaluate_every recipe.checkpoint_every"
OTHER_CUTS = FREE | {*f"{WHERE} {PLACES} {RECORDS}".split()}
"""Options in which two trainings in blocks may differ and still say which cuts are better."""
WHOLE_OR_CUT = OTHER_CUTS | {*HOW.split(), "stem"}
"""The same for a training in blocks and one in one piece."""


@dataclass(frozen=True, kw_only=True)
class _Shared(ExtendOptions, FastOptions, NetworkChoice, RunOptions):
    """The options of a training that are not retrain_model.py's alone.

    What a run of before lacks of them, it did as their defaults say, or EARLIER.
    """

    local: LocalLosses = field(default_factory=LocalLosses)
    gluing: GluingOptions = field(default_factory=GluingOptions)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A finished run of retrain_model.py."""

    name: str
    path: Path
    network: str
    options: Mapping[str, Any]
    """By dotted name."""
    results: Mapping[str, Any]
    found_by: tuple[str, ...] = ()
    """The searches that chose its cuts and heads, of those that the report was given."""
    balanced_by: tuple[str, ...] = ()
    """Those that chose them when told to make blocks of like length."""

    @property
    def cuts(self) -> tuple[int, ...]:
        return tuple(self.results.get("cuts", ()))

    @property
    def stem(self) -> str:
        """How that of an architecture is counted where it is cut."""
        return str(self.options.get("stem", "unit")) if self.options.get("architecture") else "unit"

    @property
    def headless(self) -> bool:
        """Whether its rule trains no heads, whatever is named."""
        return self.options.get("rule") in ("replay", "gluing")

    @property
    def heads(self) -> tuple[str, ...]:
        """At its cuts, as far as they are trained and known."""
        return () if self.headless else tuple(self.results.get("heads", ()))

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
    searches = {name: _found(path) for name, path in names(*searched).items()}
    for name, path in names(*asked).items():
        with reading("trained", path):
            if (path / "truth.jsonl").exists():
                parts += truth_of_cuts(name, path, searched)
                continue
            results = finished(path, "trained", "retrain_model.py", "test")
            text = (path / "config.toml").read_text(encoding="utf-8")
            options, flat = tomllib.loads(text), _options(text)
            if flat.get("architecture") and (path / COPY).exists():
                flat["stem"] = stem_of(path / COPY)  # which the options of a run of before do not know
            flat["head_width"] = results.get("head_width", "paper" if "cuts" in results else "")
            if flat.get("decoupling") and not flat.get("rule"):
                flat["rule"] = "greedy"  # as the script has it
            run = Training(
                name=name, path=path, network=_network(path, options), options=flat, results=results
            )
            run = replace(
                run,
                found_by=tuple(name for name, each in searches.items() if each.chose(run)),
                balanced_by=tuple(name for name, each in searches.items() if each.balanced(run)),
            )
            _ = _row(run), _course(run)  # what is missing there is found now, and told of this run
            runs.append(run)
    lines = [*_compared(runs), *_searched_against_others(runs)]
    if any(OF_CHANCE in line for line in lines):
        lines.append(
            "Points of chance: by the choice of the test images alone two equally good networks differ by no "
            "more, in at least 95 of 100 cases. What another seed would give is another question, which one "
            "of each does not answer."
        )
    if runs:
        parts[:0] = [*map(Text, lines), _table(runs), Drawings(_drawn(runs))]
    return (Section("Trained here, in one piece and in blocks", parts) if parts else None), lines


def _options(text: str) -> dict[str, Any]:
    """Those of a run's config.toml by dotted name, with what a run of before does not say."""
    said = _flat(text)
    usual = with_earlier(_Shared(architecture=said.get("architecture", "")), text, "config.toml")
    return _flat(to_toml(usual)) | said


def _flat(text: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tomllib.loads(text).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": each for name, each in value.items()}
        else:
            flat[key] = value
    return flat


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
    return [
        f"Cut {_places(mine)}, as {_by(mine.found_by)} found, {mine.network} gets {percent(mine.accuracy)} "
        f"of the test images right, {_apart(100 * (other.accuracy - mine.accuracy))} in the run "
        f"'{other.name}', {_other_choice(mine, other)} ({percent(other.accuracy)}){_by_chance(mine, other)}."
        for mine in runs
        for other in runs
        if mine.found_by and not other.found_by and _differ_in_cuts_alone(mine, other)
    ]


def _differ_in_cuts_alone(mine: Training, other: Training) -> bool:
    """In where they are cut and by which heads, and in nothing else that matters."""
    one, two = (
        (run.network, len(run.cuts), len(run.heads), run.results.get("groups", 1)) for run in (mine, other)
    )
    same = (mine.cuts, mine.heads) == (other.cuts, other.heads)
    return one == two and not same and not _differing(mine, other, OTHER_CUTS)


def _other_choice(mine: Training, other: Training) -> str:
    """What was chosen there in place of what a search found."""
    if mine.cuts == other.cuts:
        return f"with other heads there, {', '.join(other.heads)}"
    if other.balanced_by:
        have = "have" if len(other.balanced_by) > 1 else "has"
        return f"cut {_places(other)}, as {_by(other.balanced_by)} {have} it for blocks of like length"
    return f"cut {_places(other)} without a search"


def _by(searches: tuple[str, ...]) -> str:
    named = [f"'{name}'" for name in searches]
    return f"the search{'es' * (len(named) > 1)} {' and '.join(named)}"


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
    by = f", as {_by(cut.found_by)} found" if cut.found_by else ""
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


OF_CHANCE = "points of chance"
ONE_SEED = "one seed each, not tested"


def _by_chance(one: Training, other: Training) -> str:
    """Whether the choice of the test images alone could part them so; more than that is not tested."""
    edge = 196 * math.hypot(one.error, other.error)
    if not math.isfinite(edge):
        return f"; {ONE_SEED}"
    word = "more than" if 100 * abs(one.accuracy - other.accuracy) > edge else "within"
    return f": {word} the {edge:.1f} {OF_CHANCE}; {ONE_SEED}"


def _places(run: Training) -> str:
    """Where it is cut, with the heads there."""
    heads = run.heads or [""] * len(run.cuts)
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
    """What a search for cuts found, by number of blocks."""

    network: str
    stem: str
    """How that of an architecture is counted where it is cut."""
    decouplings: list[Mapping[str, Any]]
    in_balance: list[Mapping[str, Any]]

    def chose(self, run: Training) -> bool:
        """Whether these are the run's cuts and heads."""
        return self._has(run, self.decouplings)

    def balanced(self, run: Training) -> bool:
        """The same of its choice for blocks of like length."""
        return self._has(run, self.in_balance)

    def _has(self, run: Training, decouplings: list[Mapping[str, Any]]) -> bool:
        return (run.network, run.stem) == (self.network, self.stem) and any(
            run.cuts == tuple(each["cuts"])
            and (run.headless or run.heads == tuple(each["heads"]))
            and run.results.get("groups", 1) == each.get("groups", 1)
            and (run.headless or run.options.get("head_width", "paper") == each.get("head_width", "paper"))
            for each in decouplings
        )


def _found(path: Path) -> _Found:
    with reading("cuts", path):
        results = finished(path, "cuts", "search_decoupling.py", "decouplings")
        lists = [list(results.get(key, {}).values()) for key in ("decouplings", "balanced")]
        learned = load_relaxation(path / "relaxation.json")
        return _Found(learned.network, learned.facts.get("stem", "unit"), *lists)


def _network(path: Path, options: Mapping[str, Any]) -> str:
    file = path / COPY
    if not options.get("architecture") or not file.exists():
        return str(options.get("network", ""))
    document = read_document(file, "architecture", 1)
    space = document["space"] if isinstance(document["space"], str) else document["space"].get("name", "own")
    return f"{space}/{Architecture(tuple(document['choices']))}"
