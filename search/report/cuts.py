"""Trained decouplings of one network, best first, and what searches for cuts thought of them."""

import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from search.records import Relaxation, load_relaxation
from search.report.config import names
from search.report.statistics import holm
from search.report.words import SURE, comparisons, interval, p_value
from tools.chance import fewest
from tools.files.jsonl import read_lines
from tools.page.report import Part, Row, Table, Text
from tools.ranking import kendall_tau


class _Cut(NamedTuple):
    """One way to cut one network."""

    network: str
    places: tuple[int, ...]
    heads: tuple[str, ...]
    groups: str
    head_width: str
    stem: str


def truth_of_cuts(name: str, path: Path, searched: tuple[str, ...]) -> list[Part]:
    """Decouplings of one network by their accuracy, and what searches for cuts thought of them."""
    found: dict[_Cut, list[float]] = {}
    called: dict[_Cut, str] = {}
    for line in read_lines(path / "truth.jsonl"):
        if "cuts" not in line:
            raise ValueError(f"--trained: '{path}' is a truth of architectures; give it as --truth")
        key = _Cut(
            network=str(line["network"]),
            places=tuple(line["cuts"]),
            heads=tuple(line["heads"]),
            groups=str(line.get("groups", 1)),
            head_width=str(line.get("head_width", "paper")),
            stem=str(line.get("stem", "unit")),
        )
        found.setdefault(key, []).append(float(line["accuracy"]))
        called[key] = str(line.get("name", ""))
    if not found:
        raise ValueError("its truth.jsonl has no trainings")
    thoughts = {
        other: _thoughts(load_relaxation(where / "relaxation.json"), list(found))
        for other, where in names(*searched).items()
    }
    thoughts = {other: each for other, each in thoughts.items() if each}
    rows = []
    for key, values in sorted(found.items(), key=lambda pair: -statistics.fmean(pair[1])):
        spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
        cells = [called[key], key.network, str(len(key.places) + 1), ", ".join(map(str, key.places))]
        cells += [", ".join(key.heads), key.groups, f"{100 * statistics.fmean(values):.2f}{spread} %"]
        cells += [str(len(values)), *(f"{each[key]:.2f}" for each in thoughts.values())]
        rows.append(Row(cells))
    columns = ["", "network", "blocks", "cut after", "heads", "groups", "test top-1", "trainings"]
    columns += [f"log p by {other}" for other in thoughts]
    parts: list[Part] = [Table(columns, rows, f"{name}: which cut is better?")]
    taus = [
        (f"{other} orders the {len(same)} decouplings in {blocks} blocks", kendall_tau(thought, values))
        for other, each in thoughts.items()
        for blocks in sorted({len(key.places) + 1 for key in found})
        for same in [[key for key in found if len(key.places) + 1 == blocks]]
        for thought, values in [([each[key] for key in same], [statistics.fmean(found[key]) for key in same])]
        if len(same) >= 4 and np.ptp(values) and np.ptp(thought)
    ]
    adjusted = holm([tau.p_value for _, tau in taus])
    for (what, tau), p_holm in zip(taus, adjusted, strict=True):
        said = f"{what} with tau {interval(tau._asdict())}"
        if tau.n < fewest(SURE / len(taus)):
            parts.append(Text(f"{said}; {tau.n} are too few to tell that from chance."))
            continue
        told = "told" if p_holm < SURE else "not told"
        by = f"{p_value(p_holm)}, {comparisons(len(taus))}"
        parts.append(Text(f"{said}, {told} from chance ({by})."))
    return parts


def _thoughts(relaxation: Relaxation, keys: list[_Cut]) -> dict[_Cut, float]:
    """Nothing where the search was of another network or of other heads, or counted the stem otherwise."""
    layers = len(relaxation.alpha)
    for key in keys:
        strange = any(cut > layers for cut in key.places) or not set(key.heads) <= set(relaxation.head_kinds)
        if strange or (key.network, key.stem) != (relaxation.network, relaxation.facts.get("stem", "unit")):
            return {}
    return {key: _preference(relaxation, list(key.places), list(key.heads)) for key in keys}


def _preference(relaxation: Relaxation, cuts_: list[int], heads: list[str]) -> float:
    """The log probability of a structure by alpha and beta: cut here, not there, and with these heads."""
    total = 0.0
    chosen = dict(zip(cuts_, heads, strict=True))
    for layer, (alpha, beta) in enumerate(zip(relaxation.alpha, relaxation.beta, strict=True), start=1):
        total += float(log_softmax(alpha)[0 if layer in chosen else 1])
        if layer in chosen:
            total += float(log_softmax(beta)[relaxation.head_kinds.index(chosen[layer])])
    return total
