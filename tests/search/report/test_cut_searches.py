"""What a report says of searches for cuts."""

from pathlib import Path
from typing import Any

import pytest

from search.records import Relaxation, save_relaxation
from search.report.cut_searches import cut_search_section, read_cut_search
from tools.mistake import Mistake
from tools.page.report import Lines, Table, Text
from tools.run.folder import Run


def searched(folder: Path, **results: Any) -> Path:
    """A finished search for cuts of a network of four layers."""
    folder.mkdir()
    alpha, beta = ((0.1, 0.9), (0.8, 0.2), (0.3, 0.4)), ((0.5, 0.1), (0.2, 0.3), (0.0, 0.0))
    save_relaxation(
        folder / "relaxation.json", Relaxation("four", ("a", "b"), alpha, beta, {"stem": "fused"})
    )
    choices = {
        "2": {"cuts": [2], "heads": ["a"], "groups": 1},
        "3": {"cuts": [1, 2], "heads": ["b", "a"], "groups": 2, "head_width": "map"},
    }
    Run(folder).write_results({"decouplings": choices, **results})
    return folder


def test_a_search_is_read(tmp_path: Path) -> None:
    balanced = {"2": {"cuts": [3], "heads": ["b"]}}
    search = read_cut_search("mine", searched(tmp_path / "run", balanced=balanced))
    assert (search.name, search.network, search.stem) == ("mine", "four", "fused")
    assert [(chosen.blocks, chosen.cuts, chosen.heads) for chosen in search.decouplings] == [
        ("2", (2,), ("a",)),
        ("3", (1, 2), ("b", "a")),
    ]
    assert [(chosen.groups, chosen.head_width) for chosen in search.decouplings] == [(1, "paper"), (2, "map")]
    assert [(chosen.cuts, chosen.groups) for chosen in search.balanced] == [((3,), 1)]


def test_it_is_told_where_gradients_should_stop(tmp_path: Path) -> None:
    path = searched(tmp_path / "run", words=["  2 blocks: sure"])
    section, lines = cut_search_section([f"mine={path}"])
    assert lines == [
        "The search 'mine' cuts four, of 4 layers, in 2 blocks after 2 (a); in 3 blocks after 1 (b), 2 (a) "
        "(in brackets the head at a cut)."
    ]
    assert section is not None
    first, meaning, table, sure, words = section.parts
    assert first == Text(lines[0])
    assert isinstance(meaning, Text)
    assert "a head of its own, one of a, b. " in meaning.text
    assert isinstance(table, Table)
    assert [list(row.cells) for row in table.rows] == [["2", "2", "a"], ["3", "1, 2", "b, a"]]
    assert sure == Text("How sure the search is, in its own words:")
    assert words == Lines("  2 blocks: sure")
    assert cut_search_section([]) == (None, [])


def test_the_figures_of_the_search_are_shown(tmp_path: Path) -> None:
    path = searched(tmp_path / "run")
    for name in ("structure-3", "structure-2", "preferences"):
        (path / f"{name}.svg").write_text(f'<svg width="9pt" height="9pt" id="{name}"></svg>')
    section, _ = cut_search_section([str(path)])
    assert section is not None
    captions = [drawing.caption for part in section.parts for drawing in getattr(part, "figures", ())]
    assert captions == [
        "run: shares of cuts and heads by layer, and their course",
        "run: the network in 2 blocks",
        "run: the network in 3 blocks",
    ]


def test_cuts_without_their_heads_are_refused(tmp_path: Path) -> None:
    path = searched(tmp_path / "run", decouplings={"2": {"cuts": [2], "heads": []}})
    with pytest.raises(Mistake, match=f"cuts: '{path}' is not whole, or was changed: "):
        cut_search_section([str(path)])
