"""What the API reference names is there."""

import ast
import pydoc
import re
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1]
PACKAGES = ("tools", "local_learning", "supernet", "search", "retrain")
MODULES = sorted(path for package in PACKAGES for path in (HOUSE / package).rglob("*.py"))


def references(text: str) -> list[str]:
    """The dotted names of ours in backticks, which the reference links."""
    return re.findall(rf"`((?:{'|'.join(PACKAGES)})\.[\w.]+)(?:\(\))?`", text)


def docstrings(path: Path) -> str:
    """All texts of a module that stand alone: docstrings, and those under fields and constants."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    alone = (node.value for node in nodes if isinstance(node, ast.Expr))
    return "\n".join(str(text.value) for text in alone if isinstance(text, ast.Constant))


def test_the_first_page_names_what_is_there() -> None:
    named = references((HOUSE / "docs" / "api.md").read_text(encoding="utf-8"))
    assert len(named) == len(set(named)) > 20
    for name in named:
        thing = pydoc.locate(name)
        assert thing is not None, name
        assert thing.__doc__, name
        assert name.startswith(f"{thing.__module__}."), f"{name} is defined elsewhere"


REFERENCES = [(path, name) for path in MODULES for name in references(docstrings(path))]


@pytest.mark.parametrize(
    ("path", "name"), REFERENCES, ids=[f"{path.relative_to(HOUSE)}: {name}" for path, name in REFERENCES]
)
def test_a_docstring_refers_to_what_is_there(path: Path, name: str) -> None:
    assert pydoc.locate(name) is not None
