"""This module compares networks that were trained alone, in one piece or in blocks."""

import math
from collections.abc import Sequence

from search.report.cut_searches import read_cut_search
from search.report.cuts import cut_truth_parts
from search.report.figures import courses_figure
from search.report.runs import faults_of, labelled
from search.report.trained import (
    WHOLE_OR_CUT,
    FinishedTraining,
    differ_in_cuts_alone,
    differing,
    read_training,
)
from search.report.words import percent
from tools.options.config import flag
from tools.page.pictures import house_style
from tools.page.report import Drawing, Drawings, Section, SectionPart, Table, TableRow, Text, drawing

OF_CHANCE = "points of chance"
ONE_SEED = "one seed each, not tested"


def trained_section(words: Sequence[str], searched: Sequence[str]) -> tuple[Section | None, list[str]]:
    """Return the section on networks that were trained alone, and sentences on what cutting cost or
    gained."""
    trainings, parts = list[FinishedTraining](), list[SectionPart]()
    searches = [read_cut_search(name, path) for name, path in labelled(searched, "cuts").items()]
    for name, path in labelled(words, "trained").items():
        with faults_of("trained", path):
            if (path / "truth.jsonl").exists():
                parts += cut_truth_parts(name, path, searches)
            else:
                trainings.append(read_training(name, path, searches))
    lines = [*cost_of_cutting(trainings), *searched_beside_others(trainings)]
    if any(OF_CHANCE in line for line in lines):
        lines.append(
            "Points of chance: by the choice of the test images alone two equally good networks differ by no "
            "more, in at least 95 of 100 cases. What another seed would give is another question, which one "
            "of each does not answer."
        )
    if trainings:
        parts[:0] = [*map(Text, lines), _table(trainings), Drawings(_drawings(trainings))]
    return (Section("Trained here, in one piece and in blocks", parts) if parts else None), lines


def cost_of_cutting(trainings: Sequence[FinishedTraining]) -> list[str]:
    """Compare each training in blocks with a training of the same network in one piece, in a sentence
    each."""
    lines = []
    for cut in trainings:
        whole = [training for training in trainings if not training.cuts and training.network == cut.network]
        if not cut.cuts or not whole:
            continue
        differences = {training.name: differing(cut, training, WHOLE_OR_CUT) for training in whole}
        alike = [training for training in whole if not differences[training.name]]
        if alike:
            lines.append(_beside_whole(cut, alike[0]))
        else:
            other = min(whole, key=lambda training: len(differences[training.name])).name
            options = ", ".join(map(flag, differences[other]))
            lines.append(
                f"What cutting does to {cut.network} cannot be told from {cut.name} and {other}: they also "
                f"differ in {options}."
            )
    return lines


def searched_beside_others(trainings: Sequence[FinishedTraining]) -> list[str]:
    """Compare cuts that a search chose with other cuts into as many blocks, where all else is alike."""
    return [
        f"Cut {_places(mine)}, as {_by(mine.found_by)} found, {mine.network} gets {percent(mine.accuracy)} "
        f"of the test images right, {_less_or_more(mine, other)} in the run '{other.name}', "
        f"{_other_choice(mine, other)} ({percent(other.accuracy)}){_by_chance(mine, other)}."
        for mine in trainings
        for other in trainings
        if mine.found_by and not other.found_by and differ_in_cuts_alone(mine, other)
    ]


def _other_choice(mine: FinishedTraining, other: FinishedTraining) -> str:
    """Say what the other training has in place of the cuts and heads of a search."""
    if mine.cuts == other.cuts:
        return f"with other heads there, {', '.join(other.heads)}"
    if other.balanced_by:
        have = "have" if len(other.balanced_by) > 1 else "has"
        return f"cut {_places(other)}, as {_by(other.balanced_by)} {have} it for blocks of like length"
    return f"cut {_places(other)} without a search"


def _by(searches: Sequence[str]) -> str:
    names = [f"'{name}'" for name in searches]
    return f"the search{'es' * (len(names) > 1)} {' and '.join(names)}"


def _beside_whole(cut: FinishedTraining, whole: FinishedTraining) -> str:
    """Say what a training in blocks reaches and costs, beside one in one piece."""
    by = f", as {_by(cut.found_by)} found" if cut.found_by else ""
    sentences = [
        f"Cut into {len(cut.cuts) + 1} blocks {_places(cut)}{by}, {cut.network} gets "
        f"{percent(cut.accuracy)} of the test images right, {_less_or_more(cut, whole)} in one piece "
        f"({percent(whole.accuracy)}){_by_chance(cut, whole)}"
    ]
    if math.isfinite(cut.kept_mib) and math.isfinite(whole.kept_mib):
        times = f"{cut.kept_mib / whole.kept_mib:.2f}"
        sentences.append(f"Its largest block keeps {times} times the activations for backward")
    if cut.seconds and whole.seconds:
        sentences.append(
            f"Its training took {cut.seconds:,.0f} s{_processes(cut)}, {cut.seconds / whole.seconds:.2f} "
            f"times the {whole.seconds:,.0f} s{_processes(whole)} in one piece"
        )
    return f"{'. '.join(sentences)}."


def _by_chance(one: FinishedTraining, other: FinishedTraining) -> str:
    """Say whether the choice of the test images alone could explain a difference. Nothing else is tested."""
    edge = 196 * math.hypot(one.error, other.error)
    if not math.isfinite(edge):
        return f"; {ONE_SEED}"
    word = "more than" if 100 * abs(one.accuracy - other.accuracy) > edge else "within"
    return f": {word} the {edge:.1f} {OF_CHANCE}; {ONE_SEED}"


def _places(training: FinishedTraining) -> str:
    """Return the places of the cuts, with the heads there."""
    heads = training.heads or [""] * len(training.cuts)
    pairs = zip(training.cuts, heads, strict=True)
    return f"after layer {', '.join(f'{cut} ({head})' if head else str(cut) for cut, head in pairs)}"


def _less_or_more(one: FinishedTraining, other: FinishedTraining) -> str:
    """Say how much less accurate the first training is than the other."""
    lost = 100 * (other.accuracy - one.accuracy)
    if round(lost, 2) == 0:
        return "as many as"
    return f"{abs(lost):.2f} points {'less' if lost > 0 else 'more'} than"


def _processes(training: FinishedTraining) -> str:
    count = training.processes or 0
    return f" on {count} process{'es' * (count > 1)}" if count else ""


def _table(trainings: Sequence[FinishedTraining]) -> Table:
    columns = ["run", "network", "blocks", "cut after", "test top-1", "heads alone", "last two heads"]
    columns += ["million MACs", "million params", "MiB kept per image, fp32", "steps", "processes", "seconds"]
    caption = (
        "After the last step; the test set was looked at once. A block ends in its own head, which gives its "
        "loss; no gradient passes from one block to the one before. Kept: activations that the largest "
        "block needs for its backward pass. Recipe and length are these runs' own, so accuracies are not "
        "those of a truth."
    )
    return Table(columns, list(map(_row, trainings)), caption)


def _row(training: FinishedTraining) -> TableRow:
    cuts = ", ".join(map(str, training.cuts)) or "-"
    cells = [training.name, training.network, str(len(training.cuts) + 1), cuts]
    cells += [percent(training.accuracy), ", ".join(map(percent, training.head_accuracies)) or "-"]
    cells += [percent(training.last_two_accuracy)]
    cells += [f"{training.macs / 1e6:,.2f}" if training.macs else "-", f"{training.params / 1e6:,.2f}"]
    cells += [f"{training.kept_mib:.3f}" if math.isfinite(training.kept_mib) else "-"]
    processes = "-" if training.processes is None else str(training.processes)
    return TableRow([*cells, f"{training.steps:,}", processes, f"{training.seconds:,.0f}"])


def _drawings(trainings: Sequence[FinishedTraining]) -> list[Drawing]:
    """Draw the accuracy by step, where any training was evaluated more than once."""
    courses = {training.name: training.course for training in trainings if len(training.course) > 1}
    if not courses:
        return []
    with house_style():
        figure = courses_figure(courses, "step", "validation top-1, %", {})
        return [drawing(figure, "Accuracy on the validation images while training.")]
