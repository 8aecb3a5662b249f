"""The recipes that come with the project can be read."""

from pathlib import Path

import pytest

from retrain.config import RetrainConfig
from retrain.truth_config import TruthConfig
from search.architecture_config import ArchitectureSearchConfig
from search.config import DecouplingSearchConfig
from search.ranking_config import RankReportConfig
from supernet.config import SupernetConfig
from tools.config import parse

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.toml"))

Config = (
    RetrainConfig
    | DecouplingSearchConfig
    | SupernetConfig
    | ArchitectureSearchConfig
    | RankReportConfig
    | TruthConfig
)

SCRIPTS: dict[str, type[Config]] = {
    "make_truth.py": TruthConfig,
    "rank_report.py": RankReportConfig,
    "search_architecture.py": ArchitectureSearchConfig,
    "retrain_model.py": RetrainConfig,
    "search_decoupling.py": DecouplingSearchConfig,
    "train_supernet.py": SupernetConfig,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_and_is_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parents[1])  # a file of cuts is named from there
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert f"--config configs/{path.name}" in first
    kind = SCRIPTS[next(script for script in SCRIPTS if f" {script} " in first)]
    config = parse(kind, ["--config", str(path), "--data.root", "DIR"], prog="x", description="")
    assert config.data.root == "DIR"
