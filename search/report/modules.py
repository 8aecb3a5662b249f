"""This module describes the supernets of a report: the similarity of their modules, their memory and their
course."""

from collections.abc import Mapping, Sequence
from typing import Any

from search.report.figures import colours, courses_figure, layers_figure, matrices_figure, matrix_figure
from search.report.statistics import ScoredNetworks
from search.report.supernets import SupernetAnswers
from search.report.words import number
from supernet.options import STRATEGIES
from supernet.space import Architecture
from supernet.train.records import shift_line
from supernet.train.shift import Shift
from tools.page.pictures import house_style
from tools.page.report import Drawing, Drawings, Section, SectionPart, Table, TableRow, Text, drawing, picture
from tools.ranking import tau_b
from tools.similarity import off_diagonal_mean

LIKENESS = {
    "cosine": (
        "outputs",
        "mean cosine",
        "of the modules' outputs; a shortcut that all share makes them alike",
    ),
    "without shortcut": ("branches", "mean cosine", "of what the modules add to their shortcut"),
    "CKA": ("cka", "mean linear CKA", "of the outputs, which no rotation or scale changes"),
}
"""These are the measures of similarity: the field of a shift, the name of its mean, and what it compares."""

Course = Sequence[tuple[int, float]]
"""A course is a number at several steps of a training."""


def trained_by(answers: SupernetAnswers) -> str:
    """Return how and how long a supernet was trained."""
    config = answers.config
    if config is None:
        return "unknown"
    steps = config.recipe.steps if answers.steps is None else answers.steps
    size = f" on {answers.space.fidelity}" if answers.space.fidelity else ""
    return f"{config.strategy} by {config.objective}, {steps:,} steps of {config.recipe.batch_size}{size}"


def budget(answers: SupernetAnswers) -> str:
    """Return how and how long a supernet was trained, with its seconds and its seed."""
    seconds = answers.training_seconds
    seed = f", seed {answers.config.seed}" if answers.config else ""
    return trained_by(answers) + (f" in {seconds:,.0f} s" if seconds else "") + seed


def shift_section(supernets: Mapping[str, SupernetAnswers]) -> Section:
    """Show how differently the modules of one layer see the same images (LWSL, Figs. 2, 4 and 5)."""
    shifts = {name: answers.shift for name, answers in supernets.items() if answers.shift is not None}
    if not shifts:
        return Section("Representation shift", [])
    matrices, all_layers = [], []
    with house_style():
        lines = _likeness_by_layer(shifts, colours(list(supernets)))
        for name, shift in shifts.items():
            first, layers = _matrices(name, shift, supernets[name])
            matrices += first
            all_layers += layers
    parts: list[SectionPart] = [
        Text(
            "How alike the modules of one layer are on the same input, the mean of the outputs below: the "
            "more, the less it matters to the layers above which one is chosen."
        ),
        Drawings(lines),
        Drawings(matrices),
        Drawings(all_layers),
        Drawings([_maps(name, supernets[name]) for name in shifts if supernets[name].maps]),
    ]
    return Section("Representation shift", parts)


def _likeness_by_layer(shifts: Mapping[str, Shift], paint: Mapping[str, str]) -> list[Drawing]:
    """Return a drawing for each measure of similarity."""
    drawings = []
    for title, (kind, label, meaning) in LIKENESS.items():
        values = {
            name: [float(off_diagonal_mean(matrix)) for matrix in getattr(shift, kind)]
            for name, shift in shifts.items()
        }
        figure = layers_figure(values, label, paint)
        drawings.append(drawing(figure, f"{title}: {label} {meaning}, by layer."))
    return drawings


def _matrices(name: str, shift: Shift, answers: SupernetAnswers) -> tuple[list[Drawing], list[Drawing]]:
    """Draw the similarity of each pair of modules: the first layer with numbers, and all layers in small."""
    layer = answers.space.layers[0]
    modules = [str(layer[choice]) for choice in layer.weighted]
    first, layers = [], []
    for title, matrices in (("cosine", shift.outputs), ("CKA", shift.cka)):
        mean = number(float(off_diagonal_mean(matrices[0])))
        figure = matrix_figure(matrices[0].cpu().numpy(), modules)
        first.append(drawing(figure, f"{name}, {title} of the first layer's modules; mean {mean}."))
        figure = matrices_figure([matrix.cpu().numpy() for matrix in matrices])
        layers.append(drawing(figure, f"{name}, {title} in each layer, and its mean."))
    return first, layers


def _maps(name: str, answers: SupernetAnswers) -> Drawing:
    """Draw the outputs of the first layer's modules for one image."""
    layer = answers.space.layers[0]
    low = min(float(shades.min()) for shades in answers.maps)
    high = max(float(shades.max()) for shades in answers.maps)
    strip = [
        (str(layer[choice]), picture(shades.numpy(), low=low, high=high))
        for choice, shades in zip(layer.weighted, answers.maps, strict=True)
    ]
    return Drawing(
        f"{name}: the first layer's modules on one validation image, mean over channels.", strip=strip
    )


def memory_section(supernets: Mapping[str, SupernetAnswers]) -> Section:
    """Show the activations that training keeps while each layer learns (LWSL, Fig. 6)."""
    values: dict[str, list[float]] = {}
    for name, answers in supernets.items():
        if answers.measured is not None and answers.config is not None:
            values[name] = kept_by_layer(answers.measured.saved_bytes, answers.config.strategy)
    if not values:
        return Section("Memory", [])
    with house_style():
        figure = layers_figure(values, "MiB per image", colours(list(supernets)))
        kept = drawing(
            figure,
            "Activations that are kept for the backward pass while a layer learns, for one image, "
            "without stem and tail, by the table of each run, measured at full size. End-to-end "
            "strategies keep all layers at once.",
        )
    rows = [
        TableRow([name, trained_by(answers), f"{answers.saved_bytes_per_step / 2**20:,.0f}"])
        for name, answers in supernets.items()
        if answers.saved_bytes_per_step
    ]
    parts: list[SectionPart] = [Drawings([kept])]
    if rows:
        columns = ["supernet", "trained by", "MiB kept at the peak of a step"]
        parts.append(Table(columns, rows, "As measured during the training, whole batches."))
    return Section("Memory by layer", parts)


def kept_by_layer(saved_bytes: Sequence[Sequence[float]], strategy: str) -> list[float]:
    """Return the MiB that are kept for one image while each layer learns, for the most demanding module."""
    row = STRATEGIES.get(strategy)
    layers = len(saved_bytes)
    if row is None or not row.layers_at_once:
        return [sum(sum(modules) / len(modules) for modules in saved_bytes) / 2**20] * layers
    most = [max(modules) / 2**20 for modules in saved_bytes]
    return [sum(most[first : first + row.layers_at_once]) for first in range(layers)]


def course_section(scored: ScoredNetworks, supernets: Mapping[str, SupernetAnswers]) -> Section:
    """Show how similarity and ranking changed during the training."""
    paint = colours(list(supernets))
    likeness = {
        name: answers.likeness_course
        for name, answers in supernets.items()
        if len(answers.likeness_course) > 1
    }
    truth = dict(zip(scored.networks, scored.mean, strict=True))
    taus = {name: course for name, answers in supernets.items() if (course := _tau_course(answers, truth))}
    drawings: list[Drawing] = []
    with house_style():
        if likeness:
            figure = courses_figure(likeness, "step", "mean cosine", paint)
            caption = "Mean cosine between different modules of a layer, over layers, during the training."
            drawings.append(drawing(figure, caption))
        if taus:
            few = len(supernets[next(iter(taus))].course[0][1])
            figure = courses_figure(taus, "step", "tau", paint)
            caption = f"Tau of {few} networks by the supernet as it was at that step."
            drawings.append(drawing(figure, caption))
        if both := _tau_over_likeness(taus, likeness):
            figure = courses_figure(both, "mean cosine", "tau", paint)
            drawings.append(drawing(figure, "Tau over likeness, step by step."))
    return Section("How it came about", [Drawings(drawings)] if drawings else [])


def supernet_data(answers: SupernetAnswers, scored: ScoredNetworks | None) -> dict[str, Any]:
    """Return the numbers behind the figures, for report.json."""
    truth = dict(zip(scored.networks, scored.mean, strict=True)) if scored is not None else {}
    data: dict[str, Any] = {"trained_by": trained_by(answers)}
    if answers.shift is not None:
        data["shift"] = shift_line(answers.shift)
    if answers.measured is not None and answers.config is not None:
        data["kept_mib_by_layer"] = kept_by_layer(answers.measured.saved_bytes, answers.config.strategy)
    data["similarity_course"] = [[step, likeness] for step, likeness in answers.likeness_course]
    data["tau_course"] = [[step, tau] for step, tau in _tau_course(answers, truth)]
    return data


def _tau_course(answers: SupernetAnswers, truth: Mapping[Architecture, float]) -> Course:
    """Return the tau of a few networks at each step where their scores differ."""
    return [
        (step, tau_b(list(scores.values()), [truth[who] for who in scores]))
        for step, scores in answers.course
        if len(set(scores.values())) > 1 and len({truth[who] for who in scores}) > 1
    ]


def _tau_over_likeness(
    taus: Mapping[str, Course], likeness: Mapping[str, Course]
) -> dict[str, list[tuple[float, float]]]:
    """Return similarity and tau at each step that has both, for each supernet."""
    both = {}
    for name, course in taus.items():
        known = dict(likeness.get(name, ()))
        points = [(known[step], tau) for step, tau in course if step in known]
        if points:
            both[name] = points
    return both
