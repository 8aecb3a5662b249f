"""Figures for papers of what a search found: the preferences (SEDONA's Fig. 4), the cut network (Fig. 5)."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, RegularPolygon
from matplotlib.ticker import MaxNLocator

from local_learning.decoupling import Decoupling
from tools.page.pictures import INK, PLAIN, house_style, save_figure

# Okabe and Ito's colours differ for the colour-blind too; in grey, numbers and shapes differ.
STOP = "#D55E00"
CHOSEN = ("#D55E00", "#0072B2", "#009E73", "#AA4499", "#775500", INK)
BLOCKS = (("#21618C", "white"), ("#F5D9A0", INK))
"""The fill and the text of alternating blocks: dark and light."""
SIGNAL, SHARES = "softmax(α)₁", "softmax(β)"  # noqa: RUF001

UNIT = 0.295
"""The inches per unit of the structure figure, in which a layer and the space after it take one unit."""
WIDEST, GAP, BOX, CLASSIFIER, STACKED, LINE = 23.2, 0.7, 0.86, 2.3, 0.36, 0.38

_Table = Sequence[Sequence[float]]
History = Sequence[tuple[int, Sequence[float]]]


def preference_figure(
    path: Path,
    signals: Sequence[float],
    decouplings: Mapping[int, Decoupling],
    *,
    title: str = "",
    errors: Sequence[float] = (),
    history: History = (),
    mixture: _Table = (),
    head_kinds: Sequence[str] = (),
) -> None:
    """Draw softmax(alpha)_1 after each layer but the last, with the cuts for each number of blocks above.

    Arguments:
        errors: The standard errors of the signals, drawn to both sides.
        history: Pairs of (step, signals), for a panel of how the signals developed.
        mixture: softmax(beta) after each layer, for a map of the shares of `head_kinds`.
    """
    chosen = {cut for decoupling in decouplings.values() for cut in decoupling.cuts}
    last = max(len(signals), *chosen, 1)
    panels = [(1.7, partial(_draw_signals, signals=signals, errors=errors, decouplings=decouplings))]
    if decouplings:
        panels.insert(0, (0.19 * len(decouplings), partial(_draw_cuts, decouplings=decouplings, last=last)))
    if mixture:
        panels.append((0.19 * len(head_kinds), partial(_draw_mixture, mixture=mixture, kinds=head_kinds)))
    by_layer = len(panels)
    if history:
        panels.append((1.8, partial(_draw_history, history=history, chosen=chosen)))
    heights = [height for height, _ in panels]
    heading = textwrap.wrap(title, 90)
    size = max(7.2, 1.2 + 0.12 * last), sum(heights) + 0.35 * len(panels) + 0.16 * len(heading) + 0.3
    every = next(every for every in (1, 5, 10, 50, 100, last) if last <= 40 * every)
    with house_style():
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle("\n".join(heading), fontsize=9)
        grid = figure.subplots(len(panels), height_ratios=heights, squeeze=False)[:, 0]
        for row, (axes, (_, draw)) in enumerate(zip(grid, panels, strict=True)):
            draw(axes)
            if row < by_layer:
                axes.set_xlim(0.4, last + 0.6)
                axes.set_xticks([layer for layer in range(1, last + 1) if layer % every == 0 or layer == 1])
                axes.tick_params(labelbottom=row == by_layer - 1, bottom=row == by_layer - 1)
        grid[by_layer - 1].set_xlabel("layer")
        save_figure(figure, path)


def structure_figure(
    path: Path, num_layers: int, decoupling: Decoupling, *, network: str = "", signals: Sequence[float] = ()
) -> None:
    """Draw a decoupled network: layers, blocks by colour, a stop sign and a head at each cut, the classifier.

    With `signals`, softmax(alpha)_1 after each layer but the last, a bar under each layer shows its own
    signal.
    """
    cuts, blocks = decoupling.cuts, decoupling.blocks(num_layers)
    places, groups = _places(num_layers, cuts), decoupling.groups_of(num_layers)
    turn = max(x for _, x in places[:-1]) + 2.05  # where the way goes down to the next row
    width = 1.5 + max(8.0, turn, places[-1][1] + CLASSIFIER)
    heading = f"{network}: " * bool(network) + f"{num_layers} layers in {len(blocks)} block"
    heading += "s" * (len(blocks) > 1) + f", of {' '.join(map(str, groups))} groups" * (max(groups) > 1)
    key = "stop sign: no gradient flows back;  stack: the head there, auxm is m high" if cuts else ""
    key += f"{';  ' * bool(key)}bar: the layer's {SIGNAL}, the dotted line .5" if signals else ""
    titles = textwrap.wrap(heading, int(width * UNIT * 72 / 5.4))
    keys = textwrap.wrap(key, int(width * UNIT * 72 / 3.4))
    below = 2.2 if signals else 1.2
    top, bottoms = -0.5 - 0.52 * len(titles), []  # bottoms: of the layers' boxes, by row
    for row in range(places[-1][0] + 1):
        here = [head for cut, head in zip(cuts, decoupling.heads, strict=True) if places[cut - 1][0] == row]
        above = [0.4 + _levels(head) * STACKED + LINE * len(_folded(head)) for head in here]
        bottoms.append(top - max(above, default=0.0) - BOX)
        top = bottoms[-1] - below
    bottom = top - LINE * len(keys) - 0.15 * bool(keys)
    with house_style():
        figure = Figure(figsize=(width * UNIT, -bottom * UNIT))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(-1.0, width - 1.0), ylim=(bottom, 0.0))
        axes.set_axis_off()
        axes.text(-0.6, -0.25, "\n".join(titles), fontsize=9, va="top")
        axes.text(-0.6, bottom + 0.2, "\n".join(keys), fontsize=6, color="#505050", va="bottom")
        _draw_flow(axes, turn, bottoms, below, places[-1][1])
        corners = [(x, bottoms[row]) for row, x in places]
        for index, block in enumerate(blocks):
            own = corners[block.start : block.stop + (index == len(cuts))]  # the last has the classifier
            _draw_block(axes, index, block.start, own, num_layers, below)
        for index, (cut, head) in enumerate(zip(cuts, decoupling.heads, strict=True)):
            _draw_head(axes, *corners[cut - 1], head, BLOCKS[index % 2][0], cut)
            _draw_stop(axes, *corners[cut - 1], cut)
        for (x, y), signal in zip(corners, signals, strict=False):
            axes.add_patch(Rectangle((x, y - 1.1), BOX, 0.9 * signal, fc="#8C8C8C"))
            axes.plot([x, x + BOX], [y - 1.1] * 2, color=INK, lw=0.5)
            axes.plot([x, x + BOX], [y - 0.65] * 2, color=INK, lw=0.5, ls=(0, (1.5, 1.5)))
        save_figure(figure, path)


def _draw_cuts(axes: Axes, decouplings: Mapping[int, Decoupling], last: int) -> None:
    """Draw a row per number of blocks, the fewest at the bottom, with the number of each layer cut after."""
    width = min(0.92, 0.06 * last)
    for row, (blocks, decoupling) in enumerate(sorted(decouplings.items())):
        axes.axhline(row, color=PLAIN, lw=0.6, zorder=0)
        for cut in decoupling.cuts:
            fill, gid = CHOSEN[row % len(CHOSEN)], f"blocks-{blocks}-cut-{cut}"
            _box(axes, cut - width / 2, row - 0.42, width, 0.84, fill, gid, lw=0)
            _text(axes, cut, row, str(cut), "white")
    axes.set_ylim(-0.55, len(decouplings) - 0.45)
    axes.set_yticks(range(len(decouplings)), [f"K = {blocks}" for blocks in sorted(decouplings)])
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)


def _draw_signals(
    axes: Axes, signals: Sequence[float], errors: Sequence[float], decouplings: Mapping[int, Decoupling]
) -> None:
    """Draw a bar per layer with its error, in the colour of the fewest blocks that are cut after it."""
    fill: dict[int, str] = {}
    for row, (_, decoupling) in enumerate(sorted(decouplings.items())):
        for cut in decoupling.cuts:
            fill.setdefault(cut, CHOSEN[row % len(CHOSEN)])
    width = min(0.75, 0.06 * len(signals))
    for layer, signal in enumerate(signals, 1):
        _box(axes, layer - width / 2, 0, width, signal, fill.get(layer, PLAIN), f"signal-{layer}", lw=0.4)
    for layer, (signal, error) in enumerate(zip(signals, errors, strict=False), 1):
        ends = [max(0.0, signal - error), min(1.0, signal + error)]
        axes.plot([layer, layer], ends, color=INK, lw=1.0, zorder=4, gid=f"error-{layer}")
    axes.axhline(0.5, color=INK, lw=0.7, ls="--", zorder=3)
    axes.set_ylim(0, 1)
    axes.set_ylabel(SIGNAL)


def _draw_mixture(axes: Axes, mixture: _Table, kinds: Sequence[str]) -> None:
    """Draw the shares of the heads, with a dot on the largest of each layer."""
    most = max(map(max, mixture))
    edges = [layer + 0.5 for layer in range(len(mixture) + 1)]
    shares = list(zip(*mixture, strict=True))
    style: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": most, "ec": "white", "lw": 0.4}
    image = axes.pcolormesh(edges, range(len(kinds) + 1), shares, **style)
    for layer, row in enumerate(mixture, 1):
        best = row.index(max(row))
        colour, gid = "white" if max(row) > 0.55 * most else INK, f"winner-{layer}-{kinds[best]}"
        axes.plot([layer], [best + 0.5], ".", ms=3.5, color=colour, gid=gid)
    axes.set_yticks([head + 0.5 for head in range(len(kinds))], list(kinds))
    axes.tick_params(left=False)
    axes.figure.colorbar(image, cax=axes.inset_axes((1.015, 0, 0.015, 1)), label=SHARES)


def _draw_history(axes: Axes, history: History, chosen: set[int]) -> None:
    """Draw each layer's course, dark at the bottom of the network and light at its top.

    The course of a layer that is cut after is thick.
    """
    steps, count = [step for step, _ in history], len(history[0][1])
    shades = ListedColormap(matplotlib.colormaps["viridis"]([0.9 * i / 255 for i in range(256)]))
    for layer in range(1, count + 1):
        course = [signals[layer - 1] for _, signals in history]
        colour, width = shades((layer - 0.5) / count), 1.6 if layer in chosen else 0.6
        axes.plot(steps, course, "." * (len(steps) == 1), color=colour, lw=width, gid=f"course-{layer}")
    axes.axhline(0.5, color=INK, lw=0.7, ls="--", zorder=0)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("update" + "   (thick: the layers cut after)" * bool(chosen))
    axes.set_ylabel(SIGNAL)
    ticks = sorted({round(1 + k * (count - 1) / 4) for k in range(5)})
    scale = ScalarMappable(Normalize(0.5, count + 0.5), shades)
    axes.figure.colorbar(scale, cax=axes.inset_axes((1.015, 0, 0.015, 1)), label="layer", ticks=ticks)


def _places(num_layers: int, cuts: Sequence[int]) -> list[tuple[int, float]]:
    """Return the row and left edge of each layer and of the classifier, in rows of about the same width."""
    total = num_layers + GAP * len(cuts) + CLASSIFIER
    rows = math.ceil(total / WIDEST)
    places: list[tuple[int, float]] = []
    at = start = 0.0
    for layer in range(num_layers + 1):
        row = min(rows - 1, int((at + 0.5) * rows / total))
        start = at if places and row > places[-1][0] else start
        places.append((row, at - start))
        at += 1 + GAP * (layer + 1 in cuts)
    return places


def _levels(head: str) -> int:
    """Return the height of a head's stack: Aux m is m high; other heads have no place on that scale."""
    return {"linear": 1, "aux1": 1, "aux3": 3, "aux4": 4}.get(head, 2)


def _folded(head: str) -> list[str]:
    """Return a head's name in lines that fit between two cuts."""
    return [line.replace("_ ", "_") for line in textwrap.wrap(head.replace("_", "_ "), 9)]


def _draw_flow(axes: Axes, turn: float, bottoms: list[float], below: float, end: float) -> None:
    """Draw the way forward, behind the boxes, from the end of a row to the start of the next."""
    for row, bottom in enumerate(bottoms):
        xs, ys = [-0.6, end], [bottom + BOX / 2] * 2
        if row + 1 < len(bottoms):
            lane = bottom - below + 0.35
            xs, ys = [-0.6, turn, turn, -0.6, -0.6], [*ys, lane, lane, bottoms[row + 1] + BOX / 2]
        axes.plot(xs, ys, color="#808080", lw=1, zorder=0)
        axes.plot([-0.28], ys[:1], ">", ms=4, color="#808080", mec="none")


def _draw_block(
    axes: Axes, index: int, first: int, corners: list[tuple[float, float]], num_layers: int, below: float
) -> None:
    """Draw the boxes of a block, and its name under each of its rows."""
    fill, ink = BLOCKS[index % 2]
    ends: dict[float, list[float]] = {}  # by row
    for layer, (x, y) in enumerate(corners, first + 1):
        ending = layer > num_layers
        width, name = (CLASSIFIER, "classifier") if ending else (BOX, str(layer))
        _box(axes, x, y, width, BOX, fill, name if ending else f"layer-{name}")
        _text(axes, x + width / 2, y + BOX / 2, name, ink)
        ends.setdefault(y, []).extend([x, x + width])
    for y, xs in ends.items():
        _text(axes, (min(xs) + max(xs)) / 2, y - below + 0.8, f"block {index + 1}")


def _draw_head(axes: Axes, x: float, y: float, head: str, fill: str, cut: int) -> None:
    """Draw a stack on the last layer of a block, narrower than the layer, with its name on top."""
    middle, base = x + BOX / 2, y + BOX + 0.2
    axes.plot([middle, middle], [base - 0.2, base], color=INK, lw=0.8)
    for level in range(_levels(head)):
        gid = f"head-{cut}-{level + 1}"
        _box(axes, x + 0.1, base + level * STACKED, BOX - 0.2, 0.28, fill, gid, lw=0.6)
    _text(axes, middle, base + 0.08 + _levels(head) * STACKED, "\n".join(_folded(head)), va="bottom")


def _draw_stop(axes: Axes, x: float, y: float, cut: int) -> None:
    x, y = x + (1 + BOX + GAP) / 2, y + BOX / 2
    sign = RegularPolygon((x, y), 8, radius=0.32, orientation=math.pi / 8, fc=STOP, ec="white", lw=0.8)
    sign.set_gid(f"cut-{cut}")
    axes.add_patch(sign)
    axes.plot([x - 0.15, x + 0.15], [y, y], color="white", lw=1.5, solid_capstyle="butt")


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, fill: str, gid: str, lw: float = 0.7
) -> None:
    axes.add_patch(Rectangle((x, y), width, height, fc=fill, ec=INK, lw=lw, gid=gid))


def _text(axes: Axes, x: float, y: float, text: str, ink: str = INK, va: str = "center_baseline") -> None:
    axes.text(x, y, text, fontsize=6.2, color=ink, ha="center", va=va)
