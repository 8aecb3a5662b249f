"""This module writes a report as one self-contained HTML file of text, tables, drawings and small pictures.

The page's security policy runs no script and fetches nothing, whatever the drawings in a run's folder
contain.
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
"""A figure is drawn at this many of the page's pixels per inch, so that its small type can be read."""


@dataclass(frozen=True)
class Text:
    """A `Text` is a paragraph of a report."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Lines:
    """A `Lines` is text whose line breaks are kept; with a title, it is folded until the reader opens it."""

    text: str
    title: str = ""
    kind: str = "lines"


@dataclass(frozen=True)
class TableRow:
    """A `TableRow` is a row of a table, in the table's own style or in the style "light"."""

    cells: Sequence[str]
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A `Table` has named columns; the first column says what a row is about."""

    columns: Sequence[str]
    rows: Sequence[TableRow]
    caption: str = ""
    words: bool = False
    """The cells are text, which may be broken into lines."""
    kind: str = "table"


@dataclass(frozen=True)
class Drawing:
    """A `Drawing` is a drawing or a strip of pictures, with a caption."""

    caption: str
    svg: str = ""
    strip: Sequence[tuple[str, str]] = ()
    """Each picture of the strip is a name and a `data:` address."""


@dataclass(frozen=True)
class Drawings:
    """A `Drawings` places several drawings side by side where there is room."""

    figures: Sequence[Drawing]
    long: bool = False
    """Each drawing is as wide as the page; on a narrow page the reader scrolls it sideways."""
    kind: str = "figures"


SectionPart = Text | Lines | Table | Drawings


@dataclass(frozen=True)
class Section:
    """A `Section` is a heading and the parts under it."""

    title: str
    parts: Sequence[SectionPart]


@dataclass(frozen=True)
class Report:
    """A `Report` is a whole page, from the title down."""

    title: str
    subtitle: str
    verdict: Sequence[str]
    """The verdict's first sentence is the one to remember."""
    sections: Sequence[Section] = field(default_factory=list)


def write_report(path: Path, report: Report) -> None:
    """Write a report as an HTML file, either completely or not at all."""
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
    """Return a figure as a drawing for a page: its lines take the page's text colour, its ground is clear."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Drawing(caption, svg=inline(buffer.getvalue(), caption))


def inline(svg: str, label: str = "") -> str:
    """Return the drawing in an SVG file, in the page's text colour and in its own size."""
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
    description = label.replace("&", "and").replace('"', "'").replace("<", "less than ")
    return f'{head} role="img" aria-label="{description}"' + svg[svg.index(">") :]


def picture(values: ArrayLike, *, low: float, high: float) -> str:
    """Return a matrix in shades of grey, as a `data:` address."""
    shades = np.clip((np.asarray(values, float) - low) / max(high - low, 1e-12), 0, 1)
    buffer = io.BytesIO()
    Image.fromarray((255 * shades).astype(np.uint8)).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def facts(rows: Mapping[str, str], caption: str = "") -> Table:
    """Return a table of names and their values."""
    return Table(("", ""), [TableRow((name, value)) for name, value in rows.items()], caption, words=True)


def as_data(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Return the tables of some sections as plain data, each with the section that it stands in."""
    return [
        {"section": section.title, "caption": part.caption, "columns": list(part.columns), "rows": rows}
        for section in sections
        for part in section.parts
        if isinstance(part, Table)
        for rows in [[list(row.cells) for row in part.rows]]
    ]


def _named_apart(svg: str, prefix: str) -> str:
    """Return a drawing with names that no other drawing of the page has."""
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    return re.sub(r"url\(#", f"url(#{prefix}", svg)
