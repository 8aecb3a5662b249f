"""This module sets the look of every figure and saves figures as files."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tools.files.atomic import write_bytes

# The colours of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#775500", "#56B4E9")
PLAIN, INK = "#C8C8C8", "#303030"


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the style of all our figures inside this context, whatever the user's own settings are.

    Text stays text, and the same data gives the same file.
    """
    ours: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "cleave", "text.parse_math": False}
    ours |= {"axes.spines.right": False, "axes.spines.top": False, "axes.linewidth": 0.6, "font.size": 7}
    ours |= {"figure.constrained_layout.h_pad": 0.06}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(ours)
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as an .svg or .png file, either completely or not at all."""
    kind = path.suffix.lower()
    if kind not in (".svg", ".png"):
        raise ValueError(f"{path}: a figure is .svg or .png")
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == ".svg" else {"Software": None}
    figure.savefig(buffer, format=kind[1:], dpi=200, metadata=metadata)
    write_bytes(path, buffer.getvalue())
