"""This module arranges the report of a ranking: which tables and figures it has, and how they are
introduced."""

from collections.abc import Callable, Mapping

from search.architectures.evaluations import said_of_noise
from search.report.config import BASELINES
from search.report.figures import GREY, colours, regret_figure, scatter_figure, tau_figure
from search.report.modules import course_section, memory_section, shift_section, trained_by
from search.report.statistics import PARTS, Ranking, Score, ScoredNetworks
from search.report.supernets import Scores, SupernetAnswers
from search.report.words import COUNTS, comparisons, interval, number
from supernet.options import STRATEGIES
from supernet.space import Architecture
from tools.page.pictures import house_style
from tools.page.report import Drawings, Section, SectionPart, Table, TableRow, Text, drawing
from tools.ranking import kendall_tau


def ranking_sections(
    scored: ScoredNetworks, ranking: Ranking, supernets: Mapping[str, SupernetAnswers]
) -> list[Section]:
    """Return the sections of a ranking, from an overview to the details."""
    sections = [
        _overview(scored, ranking, supernets),
        _numbers(scored, ranking, supernets),
        _scatters(scored, ranking),
    ]
    if supernets:
        sections += [shift_section(supernets), memory_section(supernets), course_section(scored, supernets)]
    return [section for section in sections if section.parts]


def _overview(scored: ScoredNetworks, ranking: Ranking, supernets: Mapping[str, SupernetAnswers]) -> Section:
    ceiling = "; dashed: one more training of each network; dotted: a perfect score" * (ranking.repeats > 1)
    cheap = max(_counts(ranking), key=lambda name: ranking.scores[name].tau.value, default="")
    grey = f" Grey: {cheap}, of the counts the one with the highest tau." if cheap else ""
    with house_style():
        taus = drawing(
            tau_figure(ranking),
            "Agreement with the truth, with 95 % intervals. Discs: what was asked for; diamonds: "
            f"baselines that need no supernet (the additive fit needs truths of other networks). "
            f"Grey: chance{ceiling}.",
        )
        regret = drawing(
            regret_figure(scored, cheap),
            "If the k best by score are trained and the best of them is kept: how far it is behind the best "
            f"network there is, in {_unit(scored)}.{grey}",
        )
    return Section("At a glance", [Text(_introduction(supernets)), Drawings([taus, regret])])


def _introduction(supernets: Mapping[str, SupernetAnswers]) -> str:
    """Explain the terms of the report, and where the scores come from."""
    words = (
        "Each network has a score, such as its accuracy with a supernet's shared weights, and a truth, its "
        "accuracy when trained alone. Kendall's tau is 1 where scores order networks as the truth does, 0 by "
        "chance, and -1 the wrong way round. An architecture has one digit for each layer: which of the "
        "space's operations stands there, from 0."
    )
    strategies = [answers.config.strategy for answers in supernets.values() if answers.config]
    rows = [row for row in map(STRATEGIES.get, dict.fromkeys(strategies)) if row and row.says]
    known = [f"{row.name}: {row.says}" for row in rows]
    if known:
        words += " A supernet trains all of them at once, with shared weights. " + "; ".join(known) + "."
    for name, answers in supernets.items():
        mean = sum(answers.scores.values()) / len(answers.scores)
        noise = said_of_noise(mean, answers.scored_on)
        if answers.space.fidelity:
            words += f" Scores by {name} are scores of {answers.space.fidelity}."
        words += f" A score by {name} of {100 * mean:.1f} %, the mean, is {noise}."
    return words


def _counts(ranking: Ranking) -> list[str]:
    """Return the baselines that only count, as far as they tell networks apart."""
    return [name for name in COUNTS if name in ranking.scores]


def _unit(scored: ScoredNetworks) -> str:
    """Return the unit of the truth, as far as its size shows it."""
    return "points of the truth" if scored.truth.max() > 1 else "units of the truth"


def _numbers(scored: ScoredNetworks, ranking: Ranking, supernets: Mapping[str, SupernetAnswers]) -> Section:
    parts: list[SectionPart] = [_tau_table(ranking), _choice_table(ranking)]
    if ranking.comparisons:
        parts.append(_comparison_table(ranking))
    parts += _recalibrated(scored, supernets)
    parts += _seeds(ranking, supernets)
    baselines = "; ".join(f"{name}: {meaning}" for name, meaning in BASELINES.items())
    parts.append(Text(f"Baselines: {baselines}."))
    return Section("The numbers", parts)


def _score_rows(ranking: Ranking, cells: Callable[[Score], list[str]]) -> list[TableRow]:
    """Return a row for each score; the rows of baselines are light."""
    return [
        TableRow([name, *cells(score)], "" if name in ranking.subjects else "light")
        for name, score in ranking.scores.items()
        if name != "chance"  # one order drawn by chance may be lucky
    ]


def _tau_table(ranking: Ranking) -> Table:
    """Return the table of tau and related statistics, with a row for each score."""

    def cells(score: Score) -> list[str]:
        whole = [number(score.spearman), number(score.weighted_tau), number(score.partial_tau_given_macs)]
        parts = [number(taus[name]) for taus in best(score) for name in PARTS]
        return [interval(score.tau), *whole, *parts]

    def best(score: Score) -> tuple[Mapping[str, float | None], ...]:
        return score.tau_in_true_best, score.tau_in_predicted_best

    columns = ["score", "tau [95 %]", "Spearman", "weighted tau", "tau given MACs"]
    columns += [f"tau in {of} best {name}" for of in ("true", "predicted") for name in PARTS]
    losses = ", ".join(ranking.lower_is_better)
    negated = f" (negated, since lower was better: {losses})" if losses else ""
    caption = f"Kendall's tau-b; higher is better everywhere{negated}. Grey: baselines."
    return Table(columns, _score_rows(ranking, cells), caption)


def _choice_table(ranking: Ranking) -> Table:
    """Return the table of what choosing the k best by score gives."""
    sizes = ranking.sizes

    def cells(score: Score) -> list[str]:
        return [
            *(number(score.precision_at[k]) for k in sizes),
            *(f"{score.best_rank_at[k]:,}" for k in sizes),
            *(f"{score.regret_at[k]:.4g}" for k in sizes),
        ]

    columns = ["score", *(f"{name}@{k}" for name in ("P", "BR", "regret") for k in sizes)]
    caption = (
        "P@k: which part of the k best by score is among the k best in truth. BR@k: the true rank of the "
        "best of the k best by score. regret@k: how far that one is behind the best there is. Of the latter "
        "two lower is better."
    )
    return Table(columns, _score_rows(ranking, cells), caption)


def _comparison_table(ranking: Ranking) -> Table:
    """Return the table of differences between scores, with p values before and after adjustment."""
    enough = ranking.networks >= ranking.needed
    words = {"above": "higher", "below": "lower", "not told from": "not told apart"}
    rows = [
        TableRow(
            [
                f"{comparison.one} less {comparison.other}",
                interval(comparison.difference),
                number(comparison.difference.p_value, 3),
                number(comparison.p_holm, 3),
                words[comparison.verdict] if enough else "too few networks",
            ]
        )
        for comparison in ranking.comparisons
    ]
    count = len(ranking.comparisons)
    return Table(
        ["difference of taus", "value [95 %]", "p", f"p, Holm of {count}", ""],
        rows,
        "Paired: both scores of the same networks. The interval and the first p value are of one difference "
        "alone: it leaves 0 out where that is below .05. Told apart is what is below .05 after Holm's "
        f"adjustment for {comparisons(count)}, so an interval without 0 may go with 'not told apart'.",
    )


def _recalibrated(scored: ScoredNetworks, supernets: Mapping[str, SupernetAnswers]) -> list[Table]:
    """Compare scores with recalibrated statistics and scores with the statistics that training left."""
    truth = dict(zip(scored.networks, scored.mean, strict=True))
    rows = [
        TableRow(
            [
                name,
                str(len(answers.uncalibrated)),
                *_tau_and_mean(answers.scores, list(answers.uncalibrated), truth),
                *_tau_and_mean(answers.uncalibrated, list(answers.uncalibrated), truth),
            ]
        )
        for name, answers in supernets.items()
        if answers.uncalibrated
    ]
    if not rows:
        return []
    columns = [
        "supernet",
        "networks",
        "tau, recalibrated",
        "mean score",
        "tau, statistics of training",
        "mean score",
    ]
    return [Table(columns, rows, "What BatchNorm statistics of each network's own do.")]


def _tau_and_mean(scores: Scores, few: list[Architecture], truth: Mapping[Architecture, float]) -> list[str]:
    """Return the tau of some networks, where there is one, and their mean score."""
    values, true = [scores[who] for who in few], [truth[who] for who in few]
    tells = len(set(values)) > 1 and len(set(true)) > 1
    tau = interval(kendall_tau(values, true)) if tells else "-"
    return [tau, f"{100 * sum(values) / len(values):.1f} %"]


def _seeds(ranking: Ranking, supernets: Mapping[str, SupernetAnswers]) -> list[Table]:
    """Say how much tau varies between seeds, where several supernets have the same strategy."""
    groups: dict[str, list[float]] = {}
    for name, answers in supernets.items():
        if name in ranking.scores:
            groups.setdefault(trained_by(answers), []).append(ranking.scores[name].tau.value)
    rows = []
    for how, taus in groups.items():
        if len(taus) > 1:
            mean = sum(taus) / len(taus)
            spread = (sum((tau - mean) ** 2 for tau in taus) / (len(taus) - 1)) ** 0.5
            rows.append(TableRow([how, str(len(taus)), number(mean, 3), number(spread, 3)]))
    columns = ["trained by", "supernets", "mean tau", "standard deviation"]
    return [Table(columns, rows, "Between supernets of one strategy and length.")] if rows else []


def _scatters(scored: ScoredNetworks, ranking: Ranking) -> Section:
    paint = colours(scored.subjects)
    with house_style():
        drawings = [
            drawing(
                scatter_figure(scored, name, paint.get(name, GREY), ranking.scores[name].tau),
                f"{name}: each network's truth over its score; ringed: no network with fewer MACs has a "
                f"higher truth.",
            )
            for name in [*scored.subjects, *_counts(ranking)]
            if name in ranking.scores
        ]
    return Section("Score against truth", [Drawings(drawings)])
