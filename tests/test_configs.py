"""The recipes that come with the project can be read."""

import tomllib
from pathlib import Path

import pytest

from search.report.config import RankReportConfig
from tests.scripts import HOUSE, SCRIPTS, config_of
from tools.options.config import parse

CONFIGS = [
    path
    for path in sorted(HOUSE.glob("configs/**/*.toml"))
    if "chapters" not in path.name and path.name != "mini.toml"  # of which there are other tests
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_and_is_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HOUSE)  # a file of cuts is named from there
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert f"--config {path.relative_to(HOUSE)}" in first
    kind = config_of(next(script for script in SCRIPTS if f" {script} " in first))
    generated = tomllib.loads(path.read_text(encoding="utf-8")).get("data", {}).get("name") == "shapes"
    where = [] if generated else ["--data.root", "DIR"]
    where += ["--supernet", "DIR"] if kind is RankReportConfig else []  # without one it looks at no images
    config = parse(kind, ["--config", str(path), *where], prog="x", description="")
    assert config.data.root == ("" if generated else "DIR")
