"""Scores of networks against their truth, as numbers: what report.json says of a ranking."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from supernet.layers import Projection, Skip
from supernet.space import Architecture, Space
from tools.chance import edge_of_chance, null_deviation
from tools.ranking import (
    Numbers,
    additive_scores,
    best_rank_at,
    noise_ceiling,
    partial_tau,
    precision_at,
    rank_all,
    regret_at,
    repeat_tau,
    spearman,
    tau_b,
    tau_within,
    weighted_tau,
)
from tools.seeding import numpy_stream

PARTS = {"tenth": 0.1, "quarter": 0.25, "half": 0.5}
FEWEST = 5
"""Networks that a part must have for a tau in it."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Networks with their truth and all that is said of them, by name."""

    networks: Sequence[Architecture]
    truth: Numbers
    """A row for each repeat; higher is better."""
    macs: Numbers
    scores: Mapping[str, Numbers]
    """Those asked for, then the baselines; higher is better."""
    asked: Sequence[str]
    negated: frozenset[str] = frozenset()
    """Those asked for, and "truth", of which lower is better where they come from."""

    @property
    def mean(self) -> Numbers:
        """The truth."""
        mean: Numbers = self.truth.mean(axis=0)
        return mean


def gather(
    space: Space,
    networks: Sequence[Architecture],
    truth: Numbers,
    asked: Mapping[str, Numbers],
    *,
    seed: int,
    negated: Iterable[str] = (),
) -> Ranked:
    """With the baselines."""
    macs = np.array([space.macs(each) for each in networks], float)
    choices = np.array([each.choices for each in networks])
    baselines = {
        "MACs": macs,
        "params": np.array([space.params(each) for each in networks], float),
        "depth": np.array([_depth(space, each) for each in networks], float),
        "additive fit": additive_scores(choices, truth.mean(axis=0), seed=seed),
        "chance": numpy_stream(seed, "chance").permutation(len(networks)).astype(float),
    }
    return Ranked(
        networks=networks,
        truth=truth,
        macs=macs,
        scores={**asked, **baselines},
        asked=list(asked),
        negated=frozenset(negated),
    )


def statistics(ranked: Ranked, *, resamples: int, seed: int) -> dict[str, Any]:
    """All that is reported of the ranking."""
    n = len(ranked.networks)
    telling = {name: each for name, each in ranked.scores.items() if np.ptp(each) > 0}
    names = list(telling)
    wanted = [
        (one, other)
        for one, other in itertools.combinations(range(len(names)), 2)
        if _is_asked(names[one], names[other], ranked.asked)
    ]
    taus, differences = rank_all(
        list(telling.values()), ranked.truth, resamples=resamples, seed=seed, pairs=wanted
    )
    pairs = [
        {"one": names[one], "other": names[other], **found._asdict(), "comparisons": len(wanted)}
        for (one, other), found in differences.items()
    ]
    for pair, adjusted in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_holm"] = adjusted
    asked = [number for number, name in enumerate(names) if name in ranked.asked]
    against_chance = holm([taus[number].p_value for number in asked])
    sizes = sorted({k for k in (1, 10, round(n / 10), round(n / 4)) if 0 < k < n})
    scores = {
        name: {
            "tau": tau._asdict(),
            "tau_by_repeat": [tau_b(telling[name], row) for row in ranked.truth],
            **_others(telling[name], ranked, sizes),
        }
        for name, tau in zip(names, taus, strict=True)
    }
    for number, adjusted in zip(asked, against_chance, strict=True):
        scores[names[number]]["tau_p_holm"] = adjusted
    again, ceiling = repeat_tau(ranked.truth), noise_ceiling(ranked.truth, seed=seed)
    return {
        "networks": n,
        "asked": list(ranked.asked),
        "repeats": len(ranked.truth),
        "null_deviation": null_deviation(n),
        "edge_of_chance": edge_of_chance(n),
        "repeat_tau": _plain(again),
        "noise_ceiling": _plain(ceiling),
        "lower_is_better": sorted(ranked.negated),
        "sizes": sizes,
        "scores": scores,
        "orders_nothing": [name for name in ranked.scores if name not in telling],
        "differences": pairs,
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for being the smallest of several, by Holm's steps."""
    count, highest = len(p_values), 0.0
    adjusted = [0.0] * count
    for rank, index in enumerate(sorted(range(count), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _others(scores: Numbers, ranked: Ranked, sizes: Sequence[int]) -> dict[str, Any]:
    true = ranked.mean
    found = {
        "spearman": spearman(scores, true),
        "weighted_tau": weighted_tau(scores, true),
        "partial_tau_given_macs": partial_tau(scores, true, ranked.macs),
        "tau_in_true_best": {name: _within(scores, true, part, "truth") for name, part in PARTS.items()},
        "tau_in_predicted_best": {
            name: _within(scores, true, part, "scores") for name, part in PARTS.items()
        },
        "precision_at": {str(k): precision_at(scores, true, k) for k in sizes},
        "best_rank_at": {str(k): best_rank_at(scores, true, k) for k in sizes},
        "regret_at": {str(k): regret_at(scores, true, k) for k in sizes},
    }
    return {name: _plain(value) for name, value in found.items()}


def _within(scores: Numbers, true: Numbers, part: float, of: str) -> float:
    return tau_within(scores, true, part, of=of) if part * len(true) >= FEWEST else math.nan


def _plain(value: Any) -> Any:
    """JSON knows no NaN: null stands for it."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _is_asked(one: str, other: str, asked: Sequence[str]) -> bool:
    """Whether a pair is worth a test: two that are asked for, or one of them and a baseline."""
    return (one in asked or other in asked) and "chance" not in (one, other)


def _depth(space: Space, architecture: Architecture) -> int:
    chosen = zip(space.layers, architecture.choices, strict=True)
    return sum(not isinstance(layer[choice], Skip | Projection) for layer, choice in chosen)
