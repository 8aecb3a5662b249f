"""This module draws a ranking: taus side by side, scores against truth, and the worth of the best by
score."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from search.report.statistics import Ranking, ScoredNetworks
from search.report.words import number
from tools.chance import Numbers
from tools.page.pictures import COLOURS, INK
from tools.ranking import Tau

WIDTH = 3.3
GREY = "#8A8A8A"
COUNTED = {
    "MACs": (1e6, "million MACs"),
    "params": (1e6, "million parameters"),
    "depth": (1, "layers"),
    "ReLU units": (1e3, "thousand ReLU units"),
    "roots of units": (1, "roots of ReLU units"),
}
"""These scores are counts; each comes with the unit in which it is drawn."""
MOST_POINTS = 400
"""More points than this are drawn as a picture inside the drawing."""


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each name, the same in all figures."""
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}


def tau_figure(ranking: Ranking) -> Figure:
    """Draw the taus with their intervals, the range of chance, and the noise ceiling."""
    taus = {name: score.tau for name, score in ranking.scores.items() if name != "chance"}
    names = sorted(taus, key=lambda name: taus[name].value)
    figure = Figure(figsize=(WIDTH, 0.75 + 0.19 * len(names)), layout="constrained")
    axes, paint = figure.subplots(), colours(ranking.subjects)
    chance = ranking.edge_of_chance
    axes.axvspan(-chance, chance, color=GREY, alpha=0.25, lw=0)
    axes.axvline(0, color=GREY, lw=0.6)
    for value, line in ((ranking.repeat_tau, "dashed"), (ranking.noise_ceiling, "dotted")):
        if value is not None:
            axes.axvline(value, color=INK, lw=0.8, ls=line)
    for place, name in enumerate(names):
        tau, colour = taus[name], paint.get(name, GREY)
        axes.plot([tau.low, tau.high], [place, place], color=colour, lw=2, solid_capstyle="butt")
        mark = "o" if name in ranking.subjects else "D"
        axes.plot(tau.value, place, mark, ms=4.5, color=colour, clip_on=False)
        # In a column of their own: beside an interval they would stand on a name or on another row's line.
        where = axes.get_yaxis_transform()
        axes.text(1.02, place, number(tau.value), va="center", color=INK, transform=where)
    axes.set_yticks(range(len(names)), list(map(short, names)))
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name in ranking.subjects else "normal")
    low = min(-0.05, -chance, *(tau.low for tau in taus.values()))
    axes.set(xlim=(low - 0.03, 1.02), ylim=(-0.6, len(names) - 0.4), xlabel="Kendall's tau to the truth")
    axes.tick_params(axis="y", length=0)
    return figure


def scatter_figure(scored: ScoredNetworks, name: str, colour: str, tau: Tau) -> Figure:
    """Draw the truth over a score, and ring the networks that no cheaper network beats."""
    figure = Figure(figsize=(WIDTH * 0.75, WIDTH * 0.66), layout="constrained")
    sign = "negated " if name in scored.negated else ""
    unit, label = COUNTED.get(name, (1, f"{sign}score by {short(name)}"))
    axes, scores = figure.subplots(), scored.scores[name] / unit
    few = min(5.0, max(1.6, 55 / len(scores) ** 0.5))
    style = {"ms": few, "alpha": 0.55 if few < 3 else 0.85, "rasterized": len(scores) > MOST_POINTS}
    axes.plot(scores, scored.mean, ".", color=colour, mew=0, **style)
    best = true_front(scored.mean, scored.macs)
    axes.plot(scores[best], scored.mean[best], "o", ms=4, mfc="none", mec=INK, mew=0.8)
    low = np.quantile(scored.mean, 0.01)
    if scored.mean.max() - low < 0.5 * np.ptp(scored.mean):  # a few hopeless ones would press the rest flat
        axes.set_ylim(low - 0.05 * (scored.mean.max() - low), None)
    truth = "truth, negated" if "truth" in scored.negated else "truth"
    axes.set(xlabel=label, ylabel=truth, title=f"{short(name)}, tau {number(tau.value)}")
    return figure


def true_front(truth: Numbers, macs: Numbers) -> list[int]:
    """Return the networks that are better than all others of the same cost or less, cheapest first."""
    best, front = -np.inf, []
    for index in np.lexsort((-truth, macs)):
        if truth[index] > best:
            best = truth[index]
            front.append(int(index))
    return front


def regret_figure(scored: ScoredNetworks, baseline: str) -> Figure:
    """Draw what is lost if only the k best by score are trained and the best of them is kept."""
    figure = Figure(figsize=(WIDTH, 2.0), layout="constrained")
    axes, paint, n = figure.subplots(), colours(scored.subjects), len(scored.networks)
    true = scored.mean
    for name in [*scored.subjects, *filter(None, [baseline])]:
        scores = scored.scores[name]
        if np.ptp(scores) == 0:
            continue
        order = np.argsort(-scores, kind="stable")
        regret = true.max() - np.maximum.accumulate(true[order])
        style: dict[str, Any] = {"lw": 1.5} if name in paint else {"lw": 1.2, "ls": "dashed"}
        style |= {"color": paint.get(name, GREY), "label": short(name)}
        axes.step(range(1, n + 1), regret, where="post", **style)
    axes.plot(range(1, n + 1), expected_regret(true), color=INK, lw=0.8, ls="dotted", label="drawn by chance")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.set(xlim=(1, max(2, n / 2)), ylim=(0, None), xlabel="networks trained, the best by score first")
    axes.set_ylabel("behind the best there is")
    _legend(figure, axes)
    return figure


def expected_regret(true: Numbers) -> Numbers:
    """Return the mean loss if k networks are drawn at random without replacement, for each k from 1."""
    n = len(true)
    ordered = np.sort(true)[::-1]
    left = np.ones(n)  # by k - 1: the chance that none of the better ones is among k
    total = np.zeros(n)
    k = np.arange(1, n + 1)
    for better in range(n):
        # The best of k is this one: no better one is drawn, and it is.
        hit = np.clip(k / (n - better), 0, 1) * left
        total += hit * ordered[better]
        left = left - hit
        if left.max() < 1e-9:
            break
    regret: Numbers = ordered[0] - total
    return regret


def matrix_figure(matrix: Numbers, names: Sequence[str]) -> Figure:
    """Draw the similarity of each pair of modules as a square with its number."""
    count = len(matrix)
    figure = Figure(figsize=(1.15 + 0.26 * count, 0.4 + 0.26 * count), layout="constrained")
    axes = figure.subplots()
    _draw_matrix(axes, matrix)
    for (row, column), value in np.ndenumerate(matrix):
        colour = "white" if value > 0.55 else "#303031"  # on a square of its own, whatever the page
        axes.text(
            column + 0.5, row + 0.5, number(float(value)), ha="center", va="center", color=colour, fontsize=5
        )
    axes.set_xticks(np.arange(count) + 0.5, [str(place) for place in range(count)])
    axes.set_yticks(np.arange(count) + 0.5, [f"{name}  {place}" for place, name in enumerate(names)])
    return figure


def matrices_figure(matrices: Sequence[Numbers]) -> Figure:
    """Draw the similarity of the modules of every layer; the title gives the mean over different modules."""
    columns = min(len(matrices), 5)
    rows = -(-len(matrices) // columns)
    figure = Figure(figsize=(0.62 * columns, 0.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(matrices) :]:
        axes.set_axis_off()
    for place, (axes, matrix) in enumerate(zip(panels, matrices, strict=False), start=1):
        _draw_matrix(axes, matrix)
        axes.set_xticks([])
        axes.set_yticks([])
        apart = matrix[~np.eye(len(matrix), dtype=bool)]
        mean = number(float(apart.mean())) if len(apart) else "-"
        axes.set_title(f"{place}: {mean}", fontsize=6)
    return figure


def _draw_matrix(axes: Axes, matrix: Numbers) -> None:
    shades = matplotlib.colormaps["Blues"]
    axes.pcolormesh(np.clip(matrix, 0, 1), cmap=shades, vmin=0, vmax=1, edgecolors="white", lw=0.3)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def layers_figure(values: Mapping[str, Sequence[float]], label: str, paint: Mapping[str, str]) -> Figure:
    """Draw one number for each layer, with a line for each supernet."""
    figure = Figure(figsize=(WIDTH, 2.0), layout="constrained")
    axes = figure.subplots()
    for name, row in values.items():
        axes.plot(range(1, len(row) + 1), row, "o-", ms=3, lw=1.2, color=paint[name], label=short(name))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.set(xlabel="layer", ylabel=label, ylim=(min(0, *(min(row) for row in values.values())), None))
    _legend(figure, axes)
    return figure


def courses_figure(
    courses: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    paint: Mapping[str, str],
    *,
    steps: bool = False,
) -> Figure:
    """Draw one number over another, with a line for each run; `steps` holds a value until the next point."""
    figure = Figure(figsize=(WIDTH, 2.0), layout="constrained")
    axes = figure.subplots()
    style: dict[str, Any] = {"ms": 2.5, "lw": 1.2, "drawstyle": "steps-post" if steps else "default"}
    for place, (name, points) in enumerate(courses.items()):
        colour = paint.get(name, COLOURS[place % len(COLOURS)])
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=short(name), **style)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, axes)
    return figure


def costs_figure(points: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str) -> Figure:
    """Draw scores over costs, with the points of each search in one colour and its best network ringed."""
    figure = Figure(figsize=(WIDTH, 2.0), layout="constrained")
    axes = figure.subplots()
    for place, (name, cloud) in enumerate(points.items()):
        colour = COLOURS[place % len(COLOURS)]
        crowded = len(cloud) > MOST_POINTS
        axes.plot(
            *zip(*cloud, strict=True), ".", ms=4, mew=0, color=colour, label=short(name), rasterized=crowded
        )
        axes.plot(*max(cloud, key=lambda point: point[1]), "o", ms=7, mfc="none", mec=INK, mew=0.9)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, axes)
    return figure


def short(name: str) -> str:
    """Return a name that is short enough for a figure."""
    return name if len(name) <= 18 else f"{name[:7]}...{name[-8:]}"


def _legend(figure: Figure, axes: Axes) -> None:
    """Put the legend above the axes, in as many columns as fit."""
    labels = axes.get_legend_handles_labels()[1]
    columns = max(1, min(4, int(46 / (max(map(len, labels)) + 5))))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.15 * (rows - 1))
    figure.legend(frameon=False, loc="outside upper center", ncols=columns, columnspacing=1)
