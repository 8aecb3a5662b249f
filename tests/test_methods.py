"""The maps from papers to code: what they name exists, and what the code refers to is in them."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tools", "local_learning", "supernet", "search", "retrain", "benchmarks")
HEADER = ["number", "what it says", "code", "test", "deviation"]
PAGES = sorted(path for path in (ROOT / "docs/methods").glob("*.md") if path.name != "README.md")

PAPERS = {
    "SEDONA": "sedona",
    "LWSL": "lwsl",
    "GN-DGL": "gn-dgl",
    "BlockProp": "blockprop",
    "Features Replay": "features-replay",
    "Single Path One-Shot": "single-paths",
    "FairNAS": "single-paths",
    "SimCLR": "single-paths",
}
"""How code calls a paper, and its page."""


class Entry(NamedTuple):
    """A row of a map."""

    page: str
    number: str
    code: str
    test: str
    deviation: str


def entries(page: Path) -> list[Entry]:
    """The rows of a page's map."""
    found: list[Entry] = []
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells == HEADER:
            inside = True
        elif not cells:
            inside = False
        elif inside and not set(cells[0]) <= {"-"}:
            number, _, code, test, deviation = cells
            found.append(Entry(page.stem, number, code, test, deviation))
    return found


ENTRIES = [entry for page in PAGES for entry in entries(page)]


@cache
def names(path: Path) -> frozenset[str]:
    """What a file defines: functions, classes and values, and those in classes behind a dot."""
    return frozenset(_defined(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def _defined(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        match node:
            case ast.FunctionDef(name=name):
                yield prefix + name
            case ast.ClassDef(name=name, body=inner):
                yield prefix + name
                yield from _defined(inner, f"{prefix}{name}.")
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield prefix + name


def is_code(symbol: str) -> bool:
    """Whether package.module.symbol is there."""
    parts = symbol.split(".")
    for length in range(len(parts) - 1, 0, -1):
        path = ROOT.joinpath(*parts[:length]).with_suffix(".py")
        if path.is_file():
            return parts[0] in PACKAGES and ".".join(parts[length:]) in names(path)
    return False


def is_test(name: str) -> bool:
    """Whether file::test is there."""
    path, _, test = name.partition("::")
    found = names(ROOT / path) if (ROOT / path).is_file() else frozenset()
    return test.startswith("test_") and any(each == test or each.endswith(f".{test}") for each in found)


def code_of(entry: Entry) -> list[str]:
    return re.findall(r"`([\w.]+)`", entry.code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_has_a_map(page: Path) -> None:
    found = entries(page)
    assert found
    assert len({entry.number for entry in found}) == len(found)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.page}: {entry.number}")
def test_what_a_row_names_exists(entry: Entry) -> None:
    symbols, tests = code_of(entry), re.findall(r"`(tests/[^`]+)`", entry.test)
    assert symbols
    assert [symbol for symbol in symbols if not is_code(symbol)] == []
    assert tests or entry.test.startswith("none: ")
    assert [name for name in tests if not is_test(name)] == []
    assert entry.deviation


# ---- the other way: from the code to the maps ----------------------------------------------------------

KINDS = {"eq": "eq", "alg": "algorithm", "table": "table", "fig": "fig", "theorem": "theorem"}
KINDS |= {"sec": "section", "app": "appendix"}
NUMBER = r"(?:[A-Z]\.\d+|[IVX]+(?:-[A-Z])?|\d+(?:\.\d+)?|[A-Z](?=\W|$))"
REFERENCE = re.compile(
    r"\b(Eqs?\.|Algorithms?|Alg\.|Tables?|Figs?\.|Figures?|Theorem|Section|Sec\.|Appendix|App\.)\s+"
    rf"({NUMBER}(?:(?:\s*(?:-|\u2013|,|and|to)\s*){NUMBER})*)"
)


def references(text: str) -> set[tuple[str, str]]:
    """The numbered things that a text names: ("eq", "4"), ("table", "II") and so on; ranges taken apart."""
    found = set()
    for word, numbers in REFERENCE.findall(text):
        (kind,) = {value for key, value in KINDS.items() if word.lower().startswith(key)}
        for part in re.split(r"\s*(?:,|and)\s*", numbers):
            ends = re.split(r"\s*(?:-|\u2013|to)\s*", part)
            if len(ends) == 2 and all(end.isdigit() for end in ends):
                found |= {(kind, str(each)) for each in range(int(ends[0]), int(ends[1]) + 1)}
            else:
                found.add((kind, part))
    return found


def remarks(path: Path) -> list[str]:
    """Docstrings, and the comments of a file."""
    source = path.read_text(encoding="utf-8")
    texts = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return texts + [token.string for token in tokens if token.type == tokenize.COMMENT]


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def pages_for(text: str, module: str) -> set[str]:
    """The pages a remark can mean: those of the papers it names, or else whose maps have its module."""
    named = {page for paper, page in PAPERS.items() if paper in text}
    return named or {
        entry.page for entry in ENTRIES for symbol in code_of(entry) if symbol.startswith(f"{module}.")
    }


def test_what_the_code_refers_to_is_in_the_maps() -> None:
    mapped: dict[str, set[tuple[str, str]]] = {}
    for entry in ENTRIES:
        mapped.setdefault(entry.page, set()).update(references(entry.number))
    missing, count = [], 0
    for path in sources():
        for text in remarks(path):
            for reference in references(text):
                count += 1
                if not any(reference in mapped[page] for page in pages_for(text, module_of(path))):
                    missing.append(f"{module_of(path)}: {' '.join(reference)}")
    assert missing == []
    assert count > 20


def test_references_are_read() -> None:
    assert references("Eq. 4-6 and 8 of x") == {("eq", each) for each in "4568"}
    assert references("(Tables 10\u201311, App. E.2)") == {
        ("table", "10"),
        ("table", "11"),
        ("appendix", "E.2"),
    }
    assert references("LWSL, Figs. 2 and 5; Table II") == {("fig", "2"), ("fig", "5"), ("table", "II")}
    assert references("Line 7 to 16 of Algorithm 1: from the top") == {("algorithm", "1")}
    assert references("a Table of Figures, Section headings") == set()


def test_symbols_and_tests_are_looked_up() -> None:
    assert is_code("local_learning.rules.gluing.Gluing._h_step")
    assert not is_code("local_learning.rules.gluing.Gluing.no_such")
    assert not is_code("local_learning.no_such.thing")
    assert is_test("tests/test_methods.py::test_references_are_read")
    assert not is_test("tests/test_methods.py::references")
    assert not is_test("tests/no_such.py::test_x")
