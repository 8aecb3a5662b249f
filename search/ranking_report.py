"""The report of a ranking: which tables and figures, in which order, under which words."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from search.ranking_figures import (
    colours,
    courses_figure,
    layers_figure,
    matrices_figure,
    matrix_figure,
    regret_figure,
    scatter_figure,
    tau_figure,
)
from search.ranking_statistics import BASELINES, PARTS, Ranked
from search.ranking_supernets import Answers
from search.ranking_words import chance, interval, judged, number
from tools.pictures import house_style
from tools.ranking import kendall_tau, tau_b
from tools.report import Drawing, Drawings, Part, Row, Section, Table, Text, drawing, picture
from tools.similarity import off_diagonal_mean


def ranking_sections(
    ranked: Ranked, found: Mapping[str, Any], answers: Mapping[str, Answers]
) -> list[Section]:
    """From the picture to remember to what is behind it."""
    sections = [_overview(ranked, found), _tables(ranked, found, answers), _scatters(ranked, found)]
    if answers:
        sections += [_shift(answers), _memory(answers), _training(ranked, answers)]
    return [section for section in sections if section.parts]


def _overview(ranked: Ranked, found: Mapping[str, Any]) -> Section:
    ceiling = "" if found["noise_ceiling"] is None else "; dashed: what repeating the training gives"
    with house_style():
        taus = drawing(
            tau_figure(found, found["asked"]),
            "Agreement with the truth, with 95 % intervals. Discs: what was asked for; diamonds: "
            f"baselines that need no supernet (the additive fit needs truths of other networks). "
            f"Grey: chance{ceiling}.",
        )
        regret = drawing(
            regret_figure(ranked),
            "If the k best by score are trained and the best of them is kept: how far it is behind the best "
            f"network there is, in {_points(ranked)}.",
        )
    return Section("At a glance", [Drawings([taus, regret])])


def _points(ranked: Ranked) -> str:
    """The unit of the truth, as far as its size tells."""
    return "points of the truth" if ranked.truth.max() > 1 else "units of the truth"


def _tables(ranked: Ranked, found: Mapping[str, Any], answers: Mapping[str, Answers]) -> Section:
    columns = ["score", "tau [95 %]", "Spearman", "weighted tau", "tau given MACs"]
    columns += [f"tau in true best {name}" for name in PARTS]
    columns += [f"tau in predicted best {name}" for name in PARTS]
    rows = []
    for name, each in found["scores"].items():
        cells = [name, interval(each["tau"])]
        cells += [number(each[key]) for key in ("spearman", "weighted_tau", "partial_tau_given_macs")]
        for key in ("tau_in_true_best", "tau_in_predicted_best"):
            cells += [number(each[key][part]) for part in PARTS]
        rows.append(Row(cells, _style(name, found)))
    parts: list[Part] = [
        Table(columns, rows, "Kendall's tau-b; higher scores are better everywhere. Grey: baselines.")
    ]
    sizes = [str(size) for size in found["sizes"]]
    columns = [
        "score",
        *(f"P@{k}" for k in sizes),
        *(f"BR@{k}" for k in sizes),
        *(f"regret@{k}" for k in sizes),
    ]
    rows = [
        Row(
            [
                name,
                *(number(each["precision_at"][k]) for k in sizes),
                *(f"{each['best_rank_at'][k]:,}" for k in sizes),
                *(f"{each['regret_at'][k]:.4g}" for k in sizes),
            ],
            _style(name, found),
        )
        for name, each in found["scores"].items()
    ]
    caption = (
        "P@k: which part of the k best by score is among the k best in truth. BR@k: the true rank of the "
        "best of the k best by score. regret@k: how far that one is behind the best there is."
    )
    parts.append(Table(columns, rows, caption))
    rows = [
        Row([f"{pair['one']} less {pair['other']}", interval(pair), chance(pair), _word(pair)])
        for pair in found["differences"]
    ]
    if rows:
        parts.append(
            Table(
                ["difference of taus", "value [95 %]", "p (Holm)", ""],
                rows,
                "Paired: both scores on the same resampled networks.",
            )
        )
    parts += _recalibrated(ranked, answers)
    parts += _seeds(found, answers)
    parts.append(Text("Baselines: " + "; ".join(f"{name}: {what}" for name, what in BASELINES.items()) + "."))
    return Section("The numbers", parts)


def _word(pair: Mapping[str, Any]) -> str:
    return {"above": "higher", "below": "lower", "not told from": "not told apart"}[judged(pair)]


def _style(name: str, found: Mapping[str, Any]) -> str:
    return "" if name in found["asked"] else "light"


def _recalibrated(ranked: Ranked, answers: Mapping[str, Answers]) -> list[Table]:
    """With statistics of each network's own, and with those that training left."""
    rows, known = [], dict(zip(ranked.networks, ranked.mean, strict=True))
    for name, each in answers.items():
        if each.uncalibrated:
            few = list(each.uncalibrated)
            truth = [known[who] for who in few]
            cells = [name, str(len(few))]
            for scores in (each.scores, each.uncalibrated):
                values = [scores[who] for who in few]
                told = len(set(values)) > 1 and len(set(truth)) > 1
                cells.append(interval(kendall_tau(values, truth)._asdict()) if told else "-")
                cells.append(f"{100 * sum(values) / len(values):.1f} %")
            rows.append(Row(cells))
    if not rows:
        return []
    columns = [
        "supernet",
        "networks",
        "tau, recalibrated",
        "mean score",
        "tau, statistics of training",
        "mean score",
    ]
    return [Table(columns, rows, "What BatchNorm statistics of each network's own do.")]


def _seeds(found: Mapping[str, Any], answers: Mapping[str, Answers]) -> list[Table]:
    """Several supernets of one strategy: how much a tau varies between seeds."""
    groups: dict[str, list[float]] = {}
    for name, each in answers.items():
        if name in found["scores"]:
            groups.setdefault(_how(each), []).append(found["scores"][name]["tau"]["value"])
    rows = []
    for how, taus in groups.items():
        if len(taus) > 1:
            mean = sum(taus) / len(taus)
            spread = (sum((tau - mean) ** 2 for tau in taus) / (len(taus) - 1)) ** 0.5
            rows.append(Row([how, str(len(taus)), number(mean, 3), number(spread, 3)]))
    columns = ["trained by", "supernets", "mean tau", "standard deviation"]
    return [Table(columns, rows, "Between supernets of one strategy and length.")] if rows else []


def _how(answers: Answers) -> str:
    config = answers.config
    if config is None:
        return "unknown"
    steps = answers.results.get("steps", config.recipe.steps)
    return f"{config.strategy} by {config.objective}, {steps:,} steps of {config.recipe.batch_size}"


def _scatters(ranked: Ranked, found: Mapping[str, Any]) -> Section:
    paint = colours(ranked.asked)
    with house_style():
        drawn = [
            drawing(
                scatter_figure(ranked, name, paint.get(name, "#8A8A8A"), found["scores"][name]["tau"]),
                f"{name}: each network's truth over its score; ringed: those that no cheaper one beats.",
            )
            for name in [*ranked.asked, "MACs", "depth"]
            if name in found["scores"]
        ]
    return Section("Score against truth", [Drawings(drawn)])


def _shift(answers: Mapping[str, Answers]) -> Section:
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


def _memory(answers: Mapping[str, Answers]) -> Section:
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
        Row([name, _how(each), f"{each.results['saved_bytes_per_step'] / 2**20:,.0f}"])
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


def _training(ranked: Ranked, answers: Mapping[str, Answers]) -> Section:
    """How likeness and ranking came about."""
    paint = colours(list(answers))
    likeness = {
        name: [(line["step"], _likeness(line["outputs"])) for line in each.shift_course]
        for name, each in answers.items()
        if each.shift_course
    }
    truth = dict(zip(ranked.networks, ranked.mean, strict=True))
    taus = {}
    for name, each in answers.items():
        points = [
            (step, tau_b(list(scores.values()), [truth[who] for who in scores]))
            for step, scores in each.course
            if len(set(scores.values())) > 1
        ]
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


def _likeness(matrices: Sequence[Sequence[Sequence[float]]]) -> float:
    values = []
    for matrix in matrices:
        count = len(matrix)
        total = sum(map(sum, matrix)) - sum(matrix[number][number] for number in range(count))
        values.append(total / (count * (count - 1)) if count > 1 else 1.0)
    return sum(values) / len(values)
