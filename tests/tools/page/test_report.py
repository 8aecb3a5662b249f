"""A report is one file that needs nothing else, and says what it was given."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.browser import opened
from tools.page.pictures import INK, house_style
from tools.page.report import (
    Drawing,
    Drawings,
    Lines,
    Report,
    Section,
    SectionPart,
    Table,
    TableRow,
    Text,
    drawing,
    facts,
    picture,
    write_report,
)


class Page(HTMLParser):
    """What a browser would make of a page, as far as it matters here."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.refers: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "xlink:href", "src"):
                self.refers.append(str(value))
            if value and "url(" in value:
                self.refers += re.findall(r"url\((.*?)\)", value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def figure() -> Figure:
    made = Figure(figsize=(2, 1))
    axes = made.subplots()
    axes.plot([0, 1], [0, 1], color=INK)
    axes.set_title("a <b> & c")
    return made


@pytest.fixture
def page(tmp_path: Path) -> Page:
    with house_style():
        drawn = [drawing(figure(), 'says "so" & <so>'), drawing(figure(), "again")]
    strip = Drawing("a strip", strip=[("one", picture(np.eye(4), low=0, high=1))])
    parts: list[SectionPart] = [
        Text("5 < 6 & <script>alert(1)</script>"),
        Lines("a = 1\n  b = 2"),
        Lines("c = <3>", title="more & <more>"),
        Table(["name", "value"], [TableRow(["<i>x</i>", "1"], "light")], "a caption"),
        facts({"date": "today"}),
        Drawings([*drawn, strip]),
    ]
    report = Report("a & b", "under", ["The point.", "and more"], [Section("first", parts)])
    write_report(tmp_path / "report.html", report)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_text_is_text(page: Page) -> None:
    for words in ("5 < 6 & <script>alert(1)</script>", "<i>x</i>", "a = 1\n  b = 2", "The point.", "a & b"):
        assert words in page.text
    assert "more & <more>c = <3>" in page.text


def test_nothing_is_fetched_and_all_that_is_referred_to_is_there(page: Page) -> None:
    assert page.refers
    for each in page.refers:
        assert each.startswith("data:image/png;base64,") or each.removeprefix("#") in page.ids, each
    assert len(set(page.ids)) == len(page.ids)


def test_drawings_take_the_ink_of_the_page(tmp_path: Path) -> None:
    with house_style():
        svg = drawing(figure(), "said").svg
    assert "currentColor" in svg
    assert INK.lower() not in svg.lower()
    assert "#ffffff" not in svg.lower()  # no ground of its own
    assert 'aria-label="said"' in svg


def test_a_picture_is_its_numbers() -> None:
    values = np.array([[0.0, 0.5], [1.0, 2.0]])
    data = picture(values, low=0, high=1)
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))))
    assert read.tolist() == [[0, 127], [255, 255]]


def test_a_report_is_the_same_for_the_same_content(tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        with house_style():
            drawn = drawing(figure(), "said")
        write_report(tmp_path / name, Report("t", "s", ["v"], [Section("x", [Drawings([drawn])])]))
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]


def test_nothing_in_a_drawing_can_run_or_be_fetched(tmp_path: Path) -> None:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>throw new Error("ran")</script>'
    )
    svg += '<image href="nowhere.png" onerror="throw new Error(\'handled\')"/></svg>'
    drawn = Drawings([Drawing("a stranger's", svg=svg)])
    write_report(tmp_path / "report.html", Report("t", "s", ["v"], [Section("x", [drawn])]))
    errors = opened(tmp_path / "report.html", 800)["errors"]
    assert not [each for each in errors if "ran" in each or "handled" in each]
