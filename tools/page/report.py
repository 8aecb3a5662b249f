"""A report as one HTML file that needs nothing else: words, tables, drawings and small pictures.

The page's policy lets no script run and nothing be fetched, whatever is in the drawings of a run's folder.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from tools.files.atomic import write_bytes
from tools.page.pictures import INK

DOTS_PER_INCH = 112
"""Of the page's pixels, so that the small type of a figure can be read."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Lines:
    """Text whose lines stay as they are; under a title it is folded until somebody wants to read it."""

    text: str
    title: str = ""
    kind: str = "lines"


@dataclass(frozen=True)
class Row:
    """Cells, in the table's own style or "light"."""

    cells: Sequence[str]
    style: str = ""


@dataclass(frozen=True)
class Table:
    """Columns with names; the first is what a row is about."""

    columns: Sequence[str]
    rows: Sequence[Row]
    caption: str = ""
    words: bool = False
    """Cells are text, and may be broken into lines."""
    kind: str = "table"


@dataclass(frozen=True)
class Drawing:
    """A drawing or a strip of pictures, and what it says."""

    caption: str
    svg: str = ""
    strip: Sequence[tuple[str, str]] = ()
    """Names, and pictures as `data:` addresses."""


@dataclass(frozen=True)
class Drawings:
    """Some beside each other where there is room."""

    figures: Sequence[Drawing]
    long: bool = False
    """Each as wide as the page, where a narrow page can be moved sideways."""
    kind: str = "figures"


Part = Text | Lines | Table | Drawings


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Report:
    """What a reader sees, from the top."""

    title: str
    subtitle: str
    verdict: Sequence[str]
    """The first sentence is the one to remember."""
    sections: Sequence[Section] = field(default_factory=list)


def write_report(path: Path, report: Report) -> None:
    """Write the file, whole or not at all."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    text = template.render(report=report)
    drawn = 0

    def apart(match: re.Match[str]) -> str:
        nonlocal drawn
        drawn += 1
        return _named_apart(match[0], f"d{drawn}-")

    write_bytes(path, re.sub(r"<svg\b.*?</svg>", apart, text, flags=re.DOTALL).encode())


def drawing(figure: Figure, caption: str) -> Drawing:
    """A figure as it stands in a page: its ink is the page's, and it lies on the page's ground."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Drawing(caption, svg=inline(buffer.getvalue(), caption))


def inline(svg: str, label: str = "") -> str:
    """The drawing in an SVG file, in the page's ink and in its own size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour in (INK, "#000000", "#000", "black"):
        svg = re.sub(rf"{colour}\b", "currentColor", svg, flags=re.IGNORECASE)
    head = svg[: svg.index(">")]
    sizes = {
        name: float(value) / 72 * DOTS_PER_INCH
        for name, value in re.findall(r'\b(width|height)="([\d.]+)pt"', head)
    }
    for name, pixels in sizes.items():
        head = re.sub(rf'\b{name}="[\d.]+pt"', f'{name}="{pixels:.0f}"' * (name == "width"), head)
    said = label.replace("&", "and").replace('"', "'").replace("<", "less than ")
    return f'{head} role="img" aria-label="{said}"' + svg[svg.index(">") :]


def picture(values: ArrayLike, *, low: float, high: float) -> str:
    """A matrix in shades of grey, as a `data:` address."""
    shades = np.clip((np.asarray(values, float) - low) / max(high - low, 1e-12), 0, 1)
    buffer = io.BytesIO()
    Image.fromarray((255 * shades).astype(np.uint8)).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def facts(rows: Mapping[str, str], caption: str = "") -> Table:
    """A table of names and what they are."""
    return Table(("", ""), [Row((name, value)) for name, value in rows.items()], caption, words=True)


def as_data(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """The tables of sections, with what they stand under."""
    return [
        {"section": section.title, "caption": part.caption, "columns": list(part.columns), "rows": rows}
        for section in sections
        for part in section.parts
        if isinstance(part, Table)
        for rows in [[list(row.cells) for row in part.rows]]
    ]


def _named_apart(svg: str, prefix: str) -> str:
    """With names that no other drawing of the page has."""
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    return re.sub(r"url\(#", f"url(#{prefix}", svg)
