"""What a report tells of supernets besides their ranking: their modules, memory, how it came about."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from search.report.figures import colours, courses_figure, layers_figure, matrices_figure, matrix_figure
from search.report.statistics import Ranked
from search.report.supernets import Answers
from search.report.words import number
from supernet.space import Architecture
from supernet.train.records import shift_line
from tools.page.pictures import house_style
from tools.page.report import Drawing, Drawings, Part, Row, Section, Table, Text, drawing, picture
from tools.ranking import tau_b
from tools.similarity import off_diagonal_mean


def trained_by(answers: Answers) -> str:
    """By what it was trained, and how long."""
    config = answers.config
    if config is None:
        return "unknown"
    steps = answers.results.get("steps", config.recipe.steps)
    return f"{config.strategy} by {config.objective}, {steps:,} steps of {config.recipe.batch_size}"


def budget(answers: Answers) -> str:
    """The same, with its seconds and its seed."""
    seconds = answers.results.get("training_seconds")
    seed = f", seed {answers.config.seed}" if answers.config else ""
    return trained_by(answers) + (f" in {seconds:,.0f} s" if seconds else "") + seed


def shift_section(answers: Mapping[str, Answers]) -> Section:
    """How differently modules of one layer see (LWSL, Figs. 2, 4 and 5)."""
    told = {name: each for name, each in answers.items() if each.shift is not None}
    paint = colours(list(answers))
    if not told:
        return Section("Representation shift", [])
    kinds = {
        "cosine": (
            "outputs",
            "mean cosine",
            "of the modules' outputs; a shortcut that all share makes them alike",
        ),
        "without shortcut": ("branches", "mean cosine", "of what the modules add to their shortcut"),
        "CKA": ("cka", "mean linear CKA", "of the outputs, which no rotation or scale changes"),
    }
    lines, matrices, all_layers = [], [], []
    with house_style():
        for title, (kind, label, what) in kinds.items():
            values = {
                name: [float(off_diagonal_mean(matrix)) for matrix in getattr(each.shift, kind)]
                for name, each in told.items()
            }
            lines.append(drawing(layers_figure(values, label, paint), f"{title}: {label} {what}, by layer."))
        for name, each in told.items():
            assert each.shift is not None
            layer = each.space.layers[0]
            names = [str(layer[choice]) for choice in layer.weighted]
            for title, found in (("cosine", each.shift.outputs), ("CKA", each.shift.cka)):
                mean = number(float(off_diagonal_mean(found[0])))
                figure = matrix_figure(found[0].cpu().numpy(), names)
                matrices.append(
                    drawing(figure, f"{name}, {title} of the first layer's modules; mean {mean}.")
                )
                figure = matrices_figure([matrix.cpu().numpy() for matrix in found])
                all_layers.append(drawing(figure, f"{name}, {title} in each layer, and its mean."))
    parts: list[Part] = [
        Text(
            "How alike the modules of one layer are on the same input, the mean of the outputs below: the "
            "more, the less it matters to the layers above which one is chosen."
        ),
        Drawings(lines),
        Drawings(matrices),
        Drawings(all_layers),
        Drawings([_maps(name, each) for name, each in told.items() if each.maps]),
    ]
    return Section("Representation shift", parts)


def _maps(name: str, answers: Answers) -> Drawing:
    """What the first layer's modules make of one image."""
    layer = answers.space.layers[0]
    low = min(float(each.min()) for each in answers.maps)
    high = max(float(each.max()) for each in answers.maps)
    strip = [
        (str(layer[choice]), picture(each.numpy(), low=low, high=high))
        for choice, each in zip(layer.weighted, answers.maps, strict=True)
    ]
    return Drawing(
        f"{name}: the first layer's modules on one validation image, mean over channels.", strip=strip
    )


def memory_section(answers: Mapping[str, Answers]) -> Section:
    """What training keeps while each layer learns (LWSL, Fig. 6)."""
    values: dict[str, list[float]] = {}
    for name, each in answers.items():
        if each.measured is not None and each.config is not None:
            values[name] = kept_by_layer(each.measured.saved_bytes, each.config.strategy)
    if not values:
        return Section("Memory", [])
    with house_style():
        figure = layers_figure(values, "MiB per image", colours(list(answers)))
        drawn = drawing(
            figure,
            "Activations that are kept for the backward pass while a layer learns, for one image, "
            "without stem and tail, by the measured table of each run. End-to-end strategies "
            "keep all layers at once.",
        )
    rows = [
        Row([name, trained_by(each), f"{each.results['saved_bytes_per_step'] / 2**20:,.0f}"])
        for name, each in answers.items()
        if each.results.get("saved_bytes_per_step")
    ]
    parts: list[Part] = [Drawings([drawn])]
    if rows:
        columns = ["supernet", "trained by", "MiB kept at the peak of a step"]
        parts.append(Table(columns, rows, "As measured during the training, whole batches."))
    return Section("Memory by layer", parts)


def kept_by_layer(saved_bytes: Sequence[Sequence[float]], strategy: str) -> list[float]:
    """MiB for one image while each layer learns, for the most demanding module."""
    most = [max(row) / 2**20 for row in saved_bytes]
    if strategy == "greedy":
        return most
    if strategy == "nongreedy":
        return [own + above for own, above in zip(most, [*most[1:], 0.0], strict=True)]
    return [sum(sum(row) / len(row) for row in saved_bytes) / 2**20] * len(most)


def course_section(ranked: Ranked, answers: Mapping[str, Answers]) -> Section:
    """How likeness and ranking came about."""
    paint = colours(list(answers))
    likeness = {
        name: [(line["step"], _likeness(line["outputs"])) for line in each.shift_course]
        for name, each in answers.items()
        if len(each.shift_course) > 1
    }
    truth = dict(zip(ranked.networks, ranked.mean, strict=True))
    taus = {}
    for name, each in answers.items():
        points = _taus(each, truth)
        if points:
            taus[name] = points
    drawn: list[Drawing] = []

    def add(figure: Figure, caption: str) -> None:
        drawn.append(drawing(figure, caption))

    with house_style():
        if likeness:
            add(
                courses_figure(likeness, "step", "mean cosine", paint),
                "Mean cosine between different modules of a layer, over layers, during the training.",
            )
        if taus:
            few = len(next(iter(answers[next(iter(taus))].course))[1])
            add(
                courses_figure(taus, "step", "tau", paint),
                f"Tau of {few} networks by the supernet as it was at that step.",
            )
            both = {
                name: [
                    (dict(likeness[name])[step], tau) for step, tau in points if step in dict(likeness[name])
                ]
                for name, points in taus.items()
                if name in likeness
            }
            both = {name: points for name, points in both.items() if points}
            if both:
                add(courses_figure(both, "mean cosine", "tau", paint), "Tau over likeness, step by step.")
    return Section("How it came about", [Drawings(drawn)] if drawn else [])


def told_of(answers: Answers, ranked: Ranked | None) -> dict[str, Any]:
    """The numbers behind the figures, for files."""
    truth = dict(zip(ranked.networks, ranked.mean, strict=True)) if ranked is not None else {}
    told: dict[str, Any] = {"trained_by": trained_by(answers)}
    if answers.shift is not None:
        told["shift"] = shift_line(answers.shift)
    if answers.measured is not None and answers.config is not None:
        told["kept_mib_by_layer"] = kept_by_layer(answers.measured.saved_bytes, answers.config.strategy)
    told["similarity_course"] = [[line["step"], _likeness(line["outputs"])] for line in answers.shift_course]
    told["tau_course"] = [[step, tau] for step, tau in _taus(answers, truth)]
    return told


def _taus(answers: Answers, truth: Mapping[Architecture, float]) -> list[tuple[int, float]]:
    """Tau of a few networks by step, where their scores differ."""
    return [
        (step, tau_b(list(scores.values()), [truth[who] for who in scores]))
        for step, scores in answers.course
        if len(set(scores.values())) > 1 and len({truth[who] for who in scores}) > 1
    ]


def _likeness(matrices: Sequence[Sequence[Sequence[float]]]) -> float:
    """The mean over layers, of the matrices in a line of shift.jsonl."""
    layers = [float(off_diagonal_mean(torch.tensor(matrix, dtype=torch.float64))) for matrix in matrices]
    return sum(layers) / len(layers)
