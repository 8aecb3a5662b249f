"""The recipes that come with the project can be read."""

from pathlib import Path

import pytest

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
    config = parse(kind, ["--config", str(path), "--data.root", "DIR"], prog="x", description="")
    assert config.data.root == "DIR"
