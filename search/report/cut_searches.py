"""This module describes searches for cuts in a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.records import Relaxation, load_relaxation
from search.report.runs import faults_of, finished_results, labelled
from tools.page.report import Drawing, Drawings, Lines, Section, SectionPart, Table, TableRow, Text, inline

MOST_SHOWN = 8
"""The table on a search lists the cuts for at most this many numbers of blocks."""
MOST_TOLD = 3
"""The sentence on a search lists the cuts for at most this many numbers of blocks."""


@dataclass(frozen=True, kw_only=True)
class ChosenCuts:
    """These are the cuts that a search chose for one number of blocks."""

    blocks: str
    """The number of blocks, as results.json writes it."""
    cuts: tuple[int, ...]
    heads: tuple[str, ...]
    groups: int
    head_width: str


@dataclass(frozen=True, kw_only=True)
class CutSearch:
    """A `CutSearch` is a finished run of search_decoupling.py."""

    name: str
    path: Path
    relaxation: Relaxation
    decouplings: Sequence[ChosenCuts]
    """The chosen cuts, one entry for each number of blocks."""
    balanced: Sequence[ChosenCuts]
    """The cuts that the search chose for blocks of similar length."""
    words: Sequence[str]
    """The lines in which the search itself says how sure it is."""

    @property
    def network(self) -> str:
        return self.relaxation.network

    @property
    def stem(self) -> str:
        """Return how the stem of an architecture is counted where the network is cut."""
        return str(self.relaxation.facts.get("stem", "unit"))


def read_cut_search(name: str, path: Path) -> CutSearch:
    """Read a finished run of search_decoupling.py."""
    with faults_of("cuts", path):
        results = finished_results(path, option="cuts", script="search_decoupling.py", key="decouplings")
        return CutSearch(
            name=name,
            path=path,
            relaxation=load_relaxation(path / "relaxation.json"),
            decouplings=_chosen(results["decouplings"]),
            balanced=_chosen(results.get("balanced", {})),
            words=results.get("words") or (),
        )


def cut_search_section(words: Sequence[str]) -> tuple[Section | None, list[str]]:
    """Return the section on searches for cuts, and a sentence on each search.

    The section has the shares, the cuts by number of blocks, and figures.
    """
    parts, lines = list[SectionPart](), list[str]()
    for name, path in labelled(words, "cuts").items():
        with faults_of("cuts", path):
            search = read_cut_search(name, path)
            lines.append(_sentence(search))
            parts += [Text(lines[-1]), *_parts(search)]
    return (Section("Where gradients should stop", parts) if parts else None), lines


def _chosen(decouplings: Mapping[str, Mapping[str, Any]]) -> list[ChosenCuts]:
    return [
        ChosenCuts(
            blocks=blocks,
            cuts=tuple(choice["cuts"]),
            heads=tuple(choice["heads"]),
            groups=choice.get("groups", 1),
            head_width=choice.get("head_width", "paper"),
        )
        for blocks, choice in decouplings.items()
    ]


def _sentence(search: CutSearch) -> str:
    """Say where a search cuts, for the smallest numbers of blocks."""
    places = "; ".join(
        f"in {chosen.blocks} blocks after "
        + ", ".join(f"{cut} ({head})" for cut, head in zip(chosen.cuts, chosen.heads, strict=True))
        for chosen in search.decouplings[:MOST_TOLD]
    )
    return (
        f"The search {search.name!r} cuts {search.network}, of {len(search.relaxation.alpha) + 1} layers, "
        f"{places} (in brackets the head at a cut)."
    )


def _parts(search: CutSearch) -> list[SectionPart]:
    """Return what a search learned, at length."""
    heads = ", ".join(search.relaxation.head_kinds)
    meaning = (
        "A cut after a layer lets no gradient pass: the layers up to it are a block, which learns from a "
        f"head of its own, one of {heads}. For each layer the search learns a share for a cut (alpha) and "
        "for each head (beta), by what lowers the validation loss some steps later; K blocks take the K - 1 "
        "largest shares. A share over .5 wants a cut. Whether other cuts are better only trainings can tell."
    )
    rows = [
        TableRow([chosen.blocks, ", ".join(map(str, chosen.cuts)), ", ".join(chosen.heads)])
        for chosen in search.decouplings[:MOST_SHOWN]
    ]
    columns = ["blocks", "cut after layers", "heads"]
    parts: list[SectionPart] = [
        Text(meaning),
        Table(columns, rows, f"{search.name}: where to cut", words=True),
    ]
    if drawings := _drawings(search):
        parts.append(Drawings(drawings, long=True))
    if search.words:
        parts.append(Text("How sure the search is, in its own words:"))
        parts.append(Lines("\n".join(search.words)))
    return parts


def _drawings(search: CutSearch) -> list[Drawing]:
    """Return the figures that the search itself drew."""
    figures = [search.path / "preferences.svg", *sorted(search.path.glob("structure-*.svg"))]
    return [
        Drawing(
            f"{search.name}: {_meaning(figure)}", svg=inline(figure.read_text(encoding="utf-8"), figure.stem)
        )
        for figure in figures
        if figure.exists()
    ]


def _meaning(figure: Path) -> str:
    """Return what a figure of a search for cuts shows."""
    if figure.stem == "preferences":
        return "shares of cuts and heads by layer, and their course"
    return f"the network in {figure.stem.rpartition('-')[2]} blocks"
