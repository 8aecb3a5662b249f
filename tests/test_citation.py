"""CITATION.cff is what CFF 1.2.0 asks for, and of the version that the project has."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[1]


def citation() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return found


def test_it_has_what_the_format_requires() -> None:
    found = citation()
    assert found["cff-version"] == "1.2.0"
    assert found["message"]
    assert found["type"] == "software"
    assert found["authors"] == [{"name": "The Cleave contributors"}]


def test_references_are_whole() -> None:
    for reference in citation()["references"]:
        assert reference.keys() <= {"type", "title", "authors", "collection-title", "year", "notes"}
        assert reference["type"] in ("conference-paper", "generic")
        assert reference["title"]
        assert reference["authors"]
        for author in reference["authors"]:
            assert author.keys() <= {"given-names", "family-names"}
            assert author["family-names"]


def test_it_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = citation()
    assert str(found["version"]) == project["version"]
    assert found["license"] == project["license"]
    assert found["keywords"] == project["keywords"]
    # A date once the changelog has one for this version, and the same.
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.search(
        rf"^## \[?{re.escape(project['version'])}\]?\D+(\d{{4}}-\d\d-\d\d)", changes, re.MULTILINE
    )
    assert str(found.get("date-released", "")) == (dated[1] if dated else "")
