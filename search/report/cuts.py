"""This module compares trained decouplings of one network, and says how well searches for cuts order them."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import log_softmax, logsumexp

from local_learning.later.request import kinds_at
from search.records import Relaxation
from search.report.cut_searches import CutSearch
from search.report.statistics import SURE, holm
from search.report.words import comparisons, interval, p_value, percent
from tools.chance import fewest
from tools.files.jsonl import read_lines
from tools.mistake import Mistake
from tools.page.report import SectionPart, Table, TableRow, Text
from tools.ranking import Tau, kendall_tau

FEWEST_CUTS = 4
"""Decouplings are ordered only if at least this many have the same number of blocks."""


@dataclass(frozen=True, kw_only=True)
class CutNetwork:
    """A `CutNetwork` is a network with its cuts and heads."""

    network: str
    places: tuple[int, ...]
    heads: tuple[str, ...]
    groups: str
    head_width: str
    stem: str

    @property
    def blocks(self) -> int:
        return len(self.places) + 1


@dataclass(frozen=True, kw_only=True)
class CutTruth:
    """A `CutTruth` holds the accuracies that decouplings of a network reach when each is trained."""

    accuracies: Mapping[CutNetwork, Sequence[float]]
    """The accuracies of each decoupling, one for each training."""
    heads_alone: Mapping[CutNetwork, Sequence[tuple[float, ...]]]
    """What each head of a decoupling gets right by itself, for each training; older truths do not say it."""
    names: Mapping[CutNetwork, str]
    """The names of the decouplings in the run of make_truth.py."""

    def mean(self, cut: CutNetwork) -> float:
        """Return the mean accuracy of a decoupling."""
        return statistics.fmean(self.accuracies[cut])


def read_cut_truth(path: Path) -> CutTruth:
    """Read a run of make_truth.py with --decouplings."""
    accuracies: dict[CutNetwork, list[float]] = {}
    heads_alone: dict[CutNetwork, list[tuple[float, ...]]] = {}
    names: dict[CutNetwork, str] = {}
    for line in read_lines(path / "truth.jsonl"):
        if "cuts" not in line:
            raise Mistake("trained", f"'{path}' is a truth of architectures; give it as `truth`")
        cut = CutNetwork(
            network=str(line["network"]),
            places=tuple(line["cuts"]),
            heads=tuple(line["heads"]),
            groups=str(line.get("groups", 1)),
            head_width=str(line.get("head_width", "paper")),
            stem=str(line.get("stem", "unit")),
        )
        accuracies.setdefault(cut, []).append(float(line["accuracy"]))
        heads_alone.setdefault(cut, []).append(tuple(line.get("heads_accuracy", ())))
        names[cut] = str(line.get("name", ""))
    if not accuracies:
        raise ValueError("its truth.jsonl has no trainings")
    return CutTruth(accuracies=accuracies, heads_alone=heads_alone, names=names)


def cut_truth_parts(name: str, path: Path, searches: Sequence[CutSearch]) -> list[SectionPart]:
    """Return a table of decouplings, most accurate first, and sentences on how well searches order them."""
    truth = read_cut_truth(path)
    thoughts = {search.name: _thoughts(search, list(truth.accuracies)) for search in searches}
    thoughts = {searcher: by_cut for searcher, by_cut in thoughts.items() if by_cut}
    return [_table(name, truth, thoughts), *map(Text, _sentences(truth, thoughts))]


def _table(name: str, truth: CutTruth, thoughts: Mapping[str, Mapping[CutNetwork, float]]) -> Table:
    rows = []
    for cut in sorted(truth.accuracies, key=lambda cut: -truth.mean(cut)):
        values, alone = truth.accuracies[cut], truth.heads_alone[cut]
        spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
        cells = [truth.names[cut], cut.network, str(cut.blocks), ", ".join(map(str, cut.places))]
        cells += [", ".join(cut.heads), cut.groups, f"{100 * truth.mean(cut):.2f}{spread} %"]
        cells += [", ".join(percent(statistics.fmean(each)) for each in zip(*alone, strict=True)) or "-"]
        cells += [str(len(values)), *(f"{by_cut[cut]:.2f}" for by_cut in thoughts.values())]
        rows.append(TableRow(cells))
    columns = ["", "network", "blocks", "cut after", "heads", "groups", "test top-1"]
    columns += ["heads alone", "trainings"]
    columns += [f"log p by {searcher}" for searcher in thoughts]
    return Table(columns, rows, f"{name}: which cut is better?")


def _sentences(truth: CutTruth, thoughts: Mapping[str, Mapping[CutNetwork, float]]) -> Iterator[str]:
    """Say how well searches order decouplings, for each number of blocks separately."""
    taus = {
        f"{searcher} orders the {tau.n} decouplings in {blocks} blocks": tau
        for searcher, by_cut in thoughts.items()
        for blocks, tau in _taus(truth, by_cut)
    }
    p_holm = holm([tau.p_value for tau in taus.values()])
    for (orders, tau), adjusted in zip(taus.items(), p_holm, strict=True):
        text = f"{orders} with tau {interval(tau)}"
        if tau.n < fewest(SURE / len(taus)):
            yield f"{text}; {tau.n} are too few to tell that from chance."
        else:
            verdict = "told" if adjusted < SURE else "not told"
            yield f"{text}, {verdict} from chance ({p_value(adjusted)}, {comparisons(len(taus))})."


def _taus(truth: CutTruth, thoughts: Mapping[CutNetwork, float]) -> Iterator[tuple[int, Tau]]:
    """Return the tau of a search's log probabilities for each number of blocks that has enough
    decouplings."""
    for blocks in sorted({cut.blocks for cut in truth.accuracies}):
        cuts = [cut for cut in truth.accuracies if cut.blocks == blocks]
        scores, accuracies = [thoughts[cut] for cut in cuts], [truth.mean(cut) for cut in cuts]
        if len(cuts) >= FEWEST_CUTS and np.ptp(accuracies) and np.ptp(scores):
            yield blocks, kendall_tau(scores, accuracies)


def _thoughts(search: CutSearch, cuts: Sequence[CutNetwork]) -> dict[CutNetwork, float]:
    """Return a search's log probability of each decoupling.

    The result is empty if the search had another network or other heads, or counted the stem otherwise.
    """
    relaxation = search.relaxation
    layers = len(relaxation.alpha)
    for cut in cuts:
        pairs = zip(cut.heads, cut.places, strict=True)
        strange = any(place > layers for place in cut.places) or any(
            head not in kinds_at(relaxation.head_kinds, place, layers + 1) for head, place in pairs
        )
        if strange or (cut.network, cut.stem) != (search.network, search.stem):
            return {}
    return {cut: _preference(relaxation, cut) for cut in cuts}


def _preference(relaxation: Relaxation, cut: CutNetwork) -> float:
    """Return the log probability of a decoupling by alpha and beta: its cuts, its layers without a cut, and
    its heads."""
    total = 0.0
    heads = dict(zip(cut.places, cut.heads, strict=True))
    for layer, (alpha, beta) in enumerate(zip(relaxation.alpha, relaxation.beta, strict=True), start=1):
        total += float(log_softmax(alpha)[0 if layer in heads else 1])
        if layer in heads:
            kinds = kinds_at(relaxation.head_kinds, layer, len(relaxation.alpha) + 1)
            same = [m for m, kind in enumerate(kinds) if kind == heads[layer]]  # at late cuts, several are
            total += float(logsumexp(log_softmax(beta)[same]))
    return total
