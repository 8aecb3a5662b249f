"""What a report says of searches for architectures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from search.report.searches import read_search, search_section, sentence
from search.report.tables import NetworkTable
from supernet.presets import preset
from supernet.space import Architecture
from tools.mistake import Mistake
from tools.page.report import Drawings, Table
from tools.run.folder import Run

SPACE = preset("tiny", num_classes=10, image_size=16)
NETWORKS = [Architecture((0, 1, 2, 3)), Architecture((1, 3, 0, 2)), Architecture((2, 2, 2, 2))]


def searched(folder: Path, **results: Any) -> Path:
    """A finished search that scored three networks."""
    folder.mkdir()
    scores = {NETWORKS[0]: 0.25, NETWORKS[1]: 0.5, NETWORKS[2]: 0.375}
    lines = [
        {"choices": list(who.choices), "score": score, "macs": SPACE.macs(who)}
        for who, score in scores.items()
    ]
    (folder / "evaluations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    best = [
        {**line, "architecture": str(who), "params": SPACE.params(who)}
        for who, line in zip(scores, lines, strict=True)
    ]
    best = [best[place] for place in (1, 2, 0)]
    usual = {"space": "tiny", "method": "evolution", "evaluations": 3, "front": best, "best": best}
    Run(folder).write_results({**usual, **results})
    return folder


def truth(values: Mapping[Architecture, tuple[float, ...]], *, lower: bool = False) -> NetworkTable:
    return NetworkTable(space=SPACE, values=values, rows=len(values), column="accuracy", lower=lower)


def test_the_best_is_told_with_what_limits_and_images_it_was_found(tmp_path: Path) -> None:
    search = read_search("mine", searched(tmp_path / "run", limits={"macs": 1e6}, validation_images=16))
    macs = f"{SPACE.macs(NETWORKS[1]) / 1e6:,.2f} million MACs"
    assert sentence(search, None) == (
        "The search 'mine' (evolution) scored 3 networks of at most 1,000,000 MACs; its best is 1302, score "
        f"0.5000 (uncertain by 12.5 points, over 16 validation images), {macs}."
    )
    nothing = truth({NETWORKS[0]: (0.5,), NETWORKS[2]: (0.25,)})
    assert sentence(search, nothing).endswith(f"{macs}, of which the truth knows nothing.")


@pytest.mark.parametrize(("lower", "rank", "best"), [(False, 2, "60.00 %"), (True, 2, "0.2")])
def test_the_truth_says_where_the_best_stands(tmp_path: Path, lower: bool, rank: int, best: str) -> None:
    search = read_search("mine", searched(tmp_path / "run"))
    values = {NETWORKS[0]: (0.2,), NETWORKS[1]: (0.4,), NETWORKS[2]: (0.6,)}
    text = sentence(search, truth(values, lower=lower))
    assert f"rank {rank} of the 3 networks that the truth has, of which the best has {best} and" in text
    assert "uncertain" not in text  # nobody knows, with one training of each


def test_all_that_is_listed_is_of_the_search(tmp_path: Path) -> None:
    other = searched(tmp_path / "other", space="another")
    values = {NETWORKS[0]: (0.2,), NETWORKS[1]: (0.4,), NETWORKS[2]: (0.6,)}
    section, lines = search_section([str(searched(tmp_path / "mine")), str(other)], truth(values))
    assert len(lines) == 2
    assert section is not None
    (table,) = (part for part in section.parts if isinstance(part, Table))
    columns = ("search", "architecture", "score", "truth", "true rank")
    rows = [[row.cells[table.columns.index(column)] for column in columns] for row in table.rows]
    assert rows == [
        ["mine", "1302", "0.5000", "40.00 %", "2 of 3"],
        ["mine", "2222", "0.3750", "60.00 %", "1 of 3"],
        ["mine", "0123", "0.2500", "20.00 %", "3 of 3"],
        ["other", "1302", "0.5000", "-", "-"],
        ["other", "2222", "0.3750", "-", "-"],
        ["other", "0123", "0.2500", "-", "-"],
    ]
    (drawings,) = (part for part in section.parts if isinstance(part, Drawings))
    assert len(drawings.figures) == 2
    assert search_section([], None) == (None, [])


def test_a_search_without_scores_is_refused(tmp_path: Path) -> None:
    path = searched(tmp_path / "run")
    (path / "evaluations.jsonl").write_text("")
    with pytest.raises(Mistake, match=f"search: '{path}' is not whole, or was changed: it has no scores"):
        search_section([str(path)], None)
