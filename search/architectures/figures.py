"""Figures of a search among architectures: its course, score against cost, and the best operations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from search.architectures.evaluations import best_so_far
from search.fronts import front
from search.limits import UNITS, Limit
from search.method import Scored
from supernet.additive import Additive
from supernet.space import Space
from tools.page.pictures import COLOURS, INK, PLAIN, house_style, save_figure

SCALES = {
    "macs": (1e6, "million MACs"),
    "params": (1e6, "million parameters"),
    "latency": (UNITS["latency"][0], "latency of a batch in ms"),
    "activations": (UNITS["activations"][0], "MiB of activations per image"),
}
"""The unit of each cost on an axis, and the axis's label."""

Runs = Mapping[str, Sequence[Scored]]
"""What was scored in each of several searches, in its order. The figure is about the first search."""


def course_figure(path: Path, runs: Runs) -> None:
    """Draw each score, and the best so far, over the number of evaluations."""
    with house_style():
        figure = Figure(figsize=(4.6, 2.8), layout="constrained")
        axes = figure.subplots()
        for number, (name, scored) in enumerate(runs.items()):
            scores = [network.score for network in scored]
            if number == 0:
                axes.plot(range(1, len(scores) + 1), scores, ".", ms=2, color=PLAIN, label="each network")
            axes.step(
                range(1, len(scores) + 1),
                best_so_far(scores),
                where="post",
                lw=1.4,
                color=_colour(number),
                label=f"best of {name}",
            )
        axes.set(xlabel="evaluations", ylabel="score")
        figure.legend(frameon=False, loc="outside upper center", ncols=2)
        save_figure(figure, path)


def front_figure(
    path: Path, runs: Runs, cost: Additive, limits: Sequence[Limit] = (), *, of: str = ""
) -> None:
    """Draw score against cost, with the networks of each search that no other network of it beats in both."""
    divisor, label = SCALES[cost.name]
    with house_style():
        figure = Figure(figsize=(4.6, 2.8), layout="constrained")
        axes = figure.subplots()
        for number, (name, scored) in reversed(list(enumerate(runs.items()))):
            places = [cost.of(network.architecture) / divisor for network in scored]
            colour = _colour(number)
            axes.plot(places, [network.score for network in scored], ".", ms=2, color=colour, alpha=0.3)
            best = front(scored, [cost])
            axes.step(
                [cost.of(network.architecture) / divisor for network in best],
                [network.score for network in best],
                "o-",
                where="post",
                ms=3,
                lw=1.2,
                color=colour,
                label=f"front of {name}",
            )
        for limit in limits:
            if limit.cost.name == cost.name:
                axes.axvline(limit.high / divisor, color=INK, lw=0.8, ls=":", label="limit")
        axes.set(xlabel=label + of, ylabel="score")
        figure.legend(frameon=False, loc="outside upper center", ncols=2)
        save_figure(figure, path)


def operations_figure(path: Path, space: Space, scored: Sequence[Scored], best: Sequence[Scored]) -> None:
    """Draw how often each layer of the best networks has each operation, beside all that were scored."""
    shades = matplotlib.colormaps["Blues"].with_extremes(bad="#E0E0E0")  # bad: the layer does not offer it
    names = list(dict.fromkeys(str(op) for layer in space.layers for op in layer))
    with house_style():
        size = 2 * (0.9 + 0.22 * len(space.layers)), 0.9 + 0.2 * len(names)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        titles = f"all {len(scored)} scored", f"the best {len(best)}"
        for axes, members, title in zip(panels, (scored, best), titles, strict=True):
            shares = np.full((len(names), len(space.layers)), np.nan)
            for number, layer in enumerate(space.layers):
                for choice, op in enumerate(layer):
                    chosen = [network.architecture.choices[number] == choice for network in members]
                    shares[names.index(str(op)), number] = np.mean(chosen)
            image = axes.imshow(shares, cmap=shades, vmin=0, vmax=1, aspect="auto")
            axes.set_title(title, fontsize=7)
            axes.set(xlabel="layer", xticks=range(len(space.layers)))
            axes.set_xticklabels([str(layer + 1) for layer in range(len(space.layers))])
            axes.set_yticks(range(len(names)), names)
        figure.colorbar(image, ax=list(panels), label="share", shrink=0.9)
        save_figure(figure, path)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
