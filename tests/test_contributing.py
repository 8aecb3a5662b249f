"""The rows that CONTRIBUTING shows are rows: each can be added as it stands, by the door that ours take."""

import re
from pathlib import Path

import pytest

from local_learning.catalogue import HEADS, HeadRow
from local_learning.networks import catalogue as networks
from local_learning.rules.catalogue import RULES, RuleRow
from search.methods import METHODS, MethodRow
from supernet.options import OBJECTIVES, STRATEGIES, ObjectiveRow, StrategyRow
from tests.scripts import SCRIPTS, config_of, options
from tools.options.catalogue import Catalogue, Row

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text("utf-8")
DIFFS = re.findall(r"```diff\n--- (\S+)\n(.*?)```", TEXT, re.DOTALL)
KINDS = {row.__name__: row for row in (HeadRow, RuleRow, MethodRow, ObjectiveRow, StrategyRow)}
CATALOGUES: dict[type[Row], Catalogue[Row]] = {
    HeadRow: HEADS,  # type: ignore[dict-item]
    RuleRow: RULES,  # type: ignore[dict-item]
    MethodRow: METHODS,  # type: ignore[dict-item]
    ObjectiveRow: OBJECTIVES,  # type: ignore[dict-item]
    StrategyRow: STRATEGIES,  # type: ignore[dict-item]
    networks.NetworkRow: networks.NETWORKS,  # type: ignore[dict-item]
}


@pytest.mark.parametrize(("file", "diff"), DIFFS, ids=[file for file, _ in DIFFS])
def test_a_row_can_be_added_as_it_stands(file: str, diff: str) -> None:
    lines = [line.removeprefix("+") for line in diff.splitlines()]
    text = "\n".join(lines).strip().removesuffix(",")
    # The text is this repository's own page, and nothing that a user gives.
    row: Row = eval(text, {**KINDS, "resnet_row": networks.resnet_row})
    catalogue = CATALOGUES[type(row)]
    source = Path(__file__).resolve().parents[1] / file
    assert f'Catalogue(\n    "{catalogue.what}"' in source.read_text("utf-8")
    assert row.name not in catalogue
    added: Catalogue[Row] = Catalogue(catalogue.what, Row, [catalogue[name] for name in catalogue])
    added.add(row)
    assert list(added)[-1] == row.name
    known = {option.name for script in SCRIPTS for option in options(config_of(script))}
    groups = {name.rpartition(".")[0] for name in known}
    assert set(row.reads or ()) <= known | groups


def test_there_is_one_for_each_kind() -> None:
    assert [file for file, _ in DIFFS] == [
        "local_learning/rules/catalogue.py",
        "local_learning/catalogue.py",
        "supernet/options.py",
        "supernet/options.py",
        "search/methods.py",
        "local_learning/networks/catalogue.py",
    ]
