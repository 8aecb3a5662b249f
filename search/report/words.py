"""This module puts a ranking's numbers into words."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from search.report.statistics import SURE, Comparison, Ranking
from supernet.options import STRATEGIES
from tools.chance import FEW, fewest
from tools.options.config import flag

COUNTS = {
    "MACs": "Counting MACs",
    "params": "Counting parameters",
    "depth": "Counting layers",
    "ReLU units": "Counting ReLU units",
    "roots of units": "Adding up the roots of each layer's ReLU units",
}
"""These baselines need neither training nor truth."""


class Estimate(Protocol):
    """An `Estimate` is a number with its interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def number(value: float | None, digits: int = 2) -> str:
    """Return a statistic as papers write it, without the zero before the point."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return f"{0:.{digits}f}"[1:]
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def interval(estimate: Estimate, digits: int = 2) -> str:
    """Return a value with its interval, in words."""
    low, high = number(estimate.low, digits), number(estimate.high, digits)
    return f"{number(estimate.value, digits)} [{low}, {high}]"


def chance(comparison: Comparison) -> str:
    """Return the p value of a comparison, adjusted for the number of comparisons, in words."""
    return f"{p_value(comparison.p_holm)}, {comparisons(comparison.comparisons)}"


def p_value(value: float) -> str:
    """Return a p value in words."""
    return "p < .001" if value < 0.0005 else f"p = {number(value, 3)}"


def comparisons(count: int) -> str:
    """Return the number of comparisons in words."""
    return f"{count} comparison{'s' * (count > 1)}"


def percent(value: float | None) -> str:
    """Return an accuracy in percent; a number from 0 to 1 is taken for a fraction."""
    if value is None:
        return "-"
    return f"{100 * value if 0 <= value <= 1 else value:.2f} %"


def percent_points(value: float, accuracy: float) -> str:
    """Return a difference in points; `accuracy` shows whether it is a fraction or in percent already."""
    return f"{100 * value if 0 <= accuracy <= 1 else value:.2f} points"


def verdict(ranking: Ranking, strategies: Mapping[str, str], others: Sequence[str] = ()) -> list[str]:
    """Return the main sentence on a ranking, followed by the sentences that belong to it.

    `strategies` gives the strategy of each supernet. The sentences of `others`, on other runs, come before
    the remarks that hold for all numbers.
    """
    flat = [
        f"{name} gives all networks the same score: it orders nothing."
        for name in ranking.orders_nothing
        if name in ranking.subjects
    ]
    subjects = ranking.telling_subjects
    if not subjects:
        return [*flat, *others]
    subjects.sort(key=lambda name: -ranking.scores[name].tau.value)
    if ranking.networks < ranking.needed:
        compared = _no_comparison(ranking)
    else:
        compared = [*_among(ranking, subjects), *_beside(ranking, subjects), *_claims(ranking, strategies)]
    return [_first(ranking, subjects), *compared, *flat, *others, *_context(ranking)]


def _first(ranking: Ranking, subjects: list[str]) -> str:
    """Return the sentence on the subject with the highest tau, and on the best count that needs no
    training."""
    best, n, many = subjects[0], ranking.networks, len(subjects) > 1
    score = ranking.scores[best]
    p_holm = score.tau_p_holm
    assert p_holm is not None, "a subject's p value is adjusted"
    whom = f"{best}, of the {len(subjects)} asked for the one with the highest tau," if many else best
    tau = f"tau {interval(score.tau)} over {n:,} networks"
    by = f"{p_value(p_holm)}{f', {comparisons(len(subjects))}' * many}"
    if n < (least := fewest(SURE / len(subjects))):
        few = "networks are too few to tell a ranking from chance"
        return f"{n} {few}: {whom} has {tau}. Take {least} at least."
    if p_holm >= SURE:
        return f"Not told from chance: {whom} has {tau} ({by})."
    if score.tau.value < 0:
        loss = f"is it a loss? Such scores are given as {flag('losses')}."
        return f"{whom} ranks the wrong way round, {tau} ({by}): {loss}"
    ranks = f"has the highest tau of the {len(subjects)} asked for" if many else "ranks networks"
    simple = [name for name in COUNTS if name in ranking.scores]
    if not simple or n < ranking.needed:
        return f"{best} {ranks}: {tau} ({by})."
    strongest = max(simple, key=lambda name: ranking.scores[name].tau.value)
    return _against_count(ranking.comparison(best, strongest), ranking, whom=whom, ranks=ranks, tau=tau)


def _against_count(comparison: Comparison, ranking: Ranking, *, whom: str, ranks: str, tau: str) -> str:
    """Return the sentence that compares a score with a baseline that only counts."""
    count, theirs = COUNTS[comparison.other], interval(ranking.scores[comparison.other].tau)
    by = f"difference {interval(comparison.difference)}, {chance(comparison)}"
    match comparison.verdict:
        case "above":
            return f"{comparison.one} {ranks}: {tau}. {count} alone gives {theirs}, which is beaten ({by})."
        case "below":
            return f"{count} alone ranks networks better (tau {theirs}) than {whom} does: {tau} ({by})."
    count = count[0].lower() + count[1:]
    return f"{comparison.one} {ranks}, {tau}, but is not told from {count}, tau {theirs} ({by})."


def _no_comparison(ranking: Ranking) -> list[str]:
    """Say that nothing is compared, and what a comparison would need."""
    if not ranking.comparisons:
        return []
    return [
        f"{ranking.networks} networks are too few to tell two scores apart in "
        f"{comparisons(len(ranking.comparisons))}: whatever they were, no p value could be below "
        f"{number(SURE)}. Take {ranking.needed} at least, better more than {FEW}."
    ]


def _among(ranking: Ranking, subjects: list[str]) -> list[str]:
    """Say which subjects are below the one with the highest tau, and which are not told from it."""
    best = subjects[0]
    names: dict[str, list[str]] = {"below": [], "not told from": []}
    for name in subjects[1:]:
        tau, comparison = interval(ranking.scores[name].tau), ranking.comparison(best, name)
        word = "below" if comparison.verdict == "above" else "not told from"
        less = number(comparison.difference.value)
        names[word].append(f"{name} (tau {tau}, {less} less, {chance(comparison)})")
    lines = []
    if names["below"]:
        lines.append(f"{best} ranks better than {', '.join(names['below'])}.")
    if names["not told from"]:
        lines.append(f"{best} is not told from {', '.join(names['not told from'])}.")
    return lines


def _beside(ranking: Ranking, subjects: list[str]) -> list[str]:
    """Compare all subjects with what needs no supernet."""
    clauses = []
    for name in subjects:
        names: dict[str, list[str]] = {"above": [], "not told from": [], "below": []}
        for other in ranking.scores:
            if other not in subjects and other != "chance":
                names[ranking.comparison(name, other).verdict].append(other)
        words = [f"{word} {' and '.join(others)}" for word, others in names.items() if others]
        clauses.append(f"{name} is {', '.join(words)}")
    start = f"Beside what needs no supernet, in {comparisons(len(ranking.comparisons))}: "
    return [start + "; ".join(clauses) + "."] if clauses else []


def _claims(ranking: Ranking, strategies: Mapping[str, str]) -> list[str]:
    """Test what papers claim of one strategy over others, for each pair of supernets."""
    lines = []
    for row in (STRATEGIES[name] for name in STRATEGIES if STRATEGIES[name].claim):
        pairs = [
            ranking.comparison(one, other)
            for one in ranking.telling_subjects
            for other in ranking.telling_subjects
            if strategies.get(one) == row.name and strategies.get(other) in row.outranks
        ]
        if pairs:
            lines.append(f"{row.claim} {_pairs_told(pairs)}.")
    return lines


def _pairs_told(pairs: Sequence[Comparison]) -> str:
    """Return all differences, and how many point each way."""
    clauses = [f"{pair.one} less {pair.other} {interval(pair.difference)}, {chance(pair)}" for pair in pairs]
    verdicts = [pair.verdict for pair in pairs]
    names = {"above": "better", "below": "worse", "not told from": "not told apart"}
    counts = ", ".join(
        f"{verdicts.count(verdict)} of {len(verdicts)} {name}" if len(verdicts) > 1 else f"here {name}"
        for verdict, name in names.items()
        if verdict in verdicts
    )
    return f"{'; '.join(clauses)}: {counts}"


def _context(ranking: Ranking) -> list[str]:
    """Say how noisy the truth is, and what the numbers mean."""
    lines = list[str]()
    if ranking.repeat_tau is not None and ranking.repeat_tau > ranking.edge_of_chance:
        lines.append(
            "The truth itself is noisy: one training of each network orders them as the mean of its others "
            f"does by tau {number(ranking.repeat_tau)}. By that a perfect score would reach about "
            f"{number(ranking.noise_ceiling)} against the mean of all."
        )
    elif ranking.repeat_tau is not None and ranking.networks >= fewest(SURE):
        lines.append(
            f"That the truth agrees with itself is not told from chance: its repeats do by tau "
            f"{number(ranking.repeat_tau)}. It needs longer trainings, or more of them."
        )
    if ranking.networks >= ranking.needed:
        lines.append(
            f"Chance alone stays within ±{number(ranking.edge_of_chance)} in 95 of 100 rankings of as many "
            "networks. Intervals are of 95 %, each of its number alone; p values are adjusted for the number "
            "of comparisons (Holm). Both say nothing of what another seed of a supernet would give."
        )
    return lines
