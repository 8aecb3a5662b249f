"""The report of a ranking: which tables and figures, in which order, under which words."""

from collections.abc import Mapping
from typing import Any

from search.architectures.evaluations import said_of_noise
from search.report.config import BASELINES
from search.report.figures import (
    colours,
    regret_figure,
    scatter_figure,
    tau_figure,
)
from search.report.modules import course_section, memory_section, shift_section, trained_by
from search.report.statistics import PARTS, Ranked
from search.report.supernets import Answers
from search.report.words import COUNTS, comparisons, interval, judged, needed, number
from tools.page.pictures import house_style
from tools.page.report import Drawings, Part, Row, Section, Table, Text, drawing
from tools.ranking import kendall_tau

SAID = {
    "spos": "a random network in each step",
    "fair": "in each step as many networks as a layer has operations, so that each learns once",
    "greedy": "layer by layer, each by a loss of its own behind it (LWSL, layer-wise supernet learning)",
    "nongreedy": "layer by layer, each by the loss behind it and the next one (LWSL, layer-wise "
    "supernet learning)",
}
"""What strategies of ours are, in few words."""


def ranking_sections(
    ranked: Ranked, found: Mapping[str, Any], answers: Mapping[str, Answers]
) -> list[Section]:
    """From the picture to remember to what is behind it."""
    sections = [_overview(ranked, found, answers), _tables(ranked, found, answers), _scatters(ranked, found)]
    if answers:
        sections += [shift_section(answers), memory_section(answers), course_section(ranked, answers)]
    return [section for section in sections if section.parts]


def _overview(ranked: Ranked, found: Mapping[str, Any], answers: Mapping[str, Answers]) -> Section:
    ceiling = "; dashed: one more training of each network; dotted: a perfect score" * (found["repeats"] > 1)
    cheap = max(_counts(found), key=lambda name: float(found["scores"][name]["tau"]["value"]), default="")
    grey = f" Grey: {cheap}, of the counts the one with the highest tau." if cheap else ""
    with house_style():
        taus = drawing(
            tau_figure(found, found["asked"]),
            "Agreement with the truth, with 95 % intervals. Discs: what was asked for; diamonds: "
            f"baselines that need no supernet (the additive fit needs truths of other networks). "
            f"Grey: chance{ceiling}.",
        )
        regret = drawing(
            regret_figure(ranked, cheap),
            "If the k best by score are trained and the best of them is kept: how far it is behind the best "
            f"network there is, in {_points(ranked)}.{grey}",
        )
    words = (
        "Each network has a score, such as its accuracy with a supernet's shared weights, and a truth, its "
        "accuracy when trained alone. Kendall's tau is 1 where scores order networks as the truth does, 0 by "
        "chance, and -1 the wrong way round. An architecture has one digit for each layer: which of the "
        "space's "
        "operations stands there, from 0."
    )
    strategies = [each.config.strategy for each in answers.values() if each.config]
    said = [f"{name}: {SAID[name]}" for name in dict.fromkeys(strategies) if name in SAID]
    if said:
        words += " A supernet trains all of them at once, with shared weights. " + "; ".join(said) + "."
    for name, each in answers.items():
        mean = sum(each.scores.values()) / len(each.scores)
        words += (
            f" A score by {name} of {100 * mean:.1f} %, the mean, is {said_of_noise(mean, each.scored_on)}."
        )
    return Section("At a glance", [Text(words), Drawings([taus, regret])])


def _counts(found: Mapping[str, Any]) -> list[str]:
    """The baselines that only count, as far as they tell networks apart."""
    return [name for name in COUNTS if name in found["scores"]]


def _points(ranked: Ranked) -> str:
    """The unit of the truth, as far as its size tells."""
    return "points of the truth" if ranked.truth.max() > 1 else "units of the truth"


def _tables(ranked: Ranked, found: Mapping[str, Any], answers: Mapping[str, Answers]) -> Section:
    columns = ["score", "tau [95 %]", "Spearman", "weighted tau", "tau given MACs"]
    columns += [f"tau in true best {name}" for name in PARTS]
    columns += [f"tau in predicted best {name}" for name in PARTS]
    rows = []
    for name, each in found["scores"].items():
        cells = [name, interval(each["tau"])]
        cells += [number(each[key]) for key in ("spearman", "weighted_tau", "partial_tau_given_macs")]
        for key in ("tau_in_true_best", "tau_in_predicted_best"):
            cells += [number(each[key][part]) for part in PARTS]
        if name != "chance":
            rows.append(Row(cells, _style(name, found)))
    told = ", ".join(found["lower_is_better"])
    negated = f" (negated, since lower was better: {told})" if told else ""
    parts: list[Part] = [
        Table(columns, rows, f"Kendall's tau-b; higher is better everywhere{negated}. Grey: baselines.")
    ]
    sizes = [str(size) for size in found["sizes"]]
    columns = [
        "score",
        *(f"P@{k}" for k in sizes),
        *(f"BR@{k}" for k in sizes),
        *(f"regret@{k}" for k in sizes),
    ]
    rows = [
        Row(
            [
                name,
                *(number(each["precision_at"][k]) for k in sizes),
                *(f"{each['best_rank_at'][k]:,}" for k in sizes),
                *(f"{each['regret_at'][k]:.4g}" for k in sizes),
            ],
            _style(name, found),
        )
        for name, each in found["scores"].items()
        if name != "chance"  # one order drawn by chance may be lucky
    ]
    caption = (
        "P@k: which part of the k best by score is among the k best in truth. BR@k: the true rank of the "
        "best of the k best by score. regret@k: how far that one is behind the best there is. Of the "
        "latter two "
        "lower is better."
    )
    parts.append(Table(columns, rows, caption))
    if found["differences"]:
        parts.append(_differences(found))
    parts += _recalibrated(ranked, answers)
    parts += _seeds(found, answers)
    parts.append(Text("Baselines: " + "; ".join(f"{name}: {what}" for name, what in BASELINES.items()) + "."))
    return Section("The numbers", parts)


def _differences(found: Mapping[str, Any]) -> Table:
    """What is told apart, by p values of each difference alone and adjusted for all."""
    pairs = found["differences"]
    enough = found["networks"] >= needed(found)
    words = {"above": "higher", "below": "lower", "not told from": "not told apart"}
    rows = [
        Row(
            [
                f"{pair['one']} less {pair['other']}",
                interval(pair),
                number(pair["p_value"], 3),
                number(pair["p_holm"], 3),
                words[judged(pair)] if enough else "too few networks",
            ]
        )
        for pair in pairs
    ]
    return Table(
        ["difference of taus", "value [95 %]", "p", f"p, Holm of {len(pairs)}", ""],
        rows,
        "Paired: both scores of the same networks. The interval and the first p value are of one difference "
        "alone: it leaves 0 out where that is below .05. Told apart is what is below .05 after Holm's "
        f"adjustment for {comparisons(len(pairs))}, so an interval without 0 may go with 'not told apart'.",
    )


def _style(name: str, found: Mapping[str, Any]) -> str:
    return "" if name in found["asked"] else "light"


def _recalibrated(ranked: Ranked, answers: Mapping[str, Answers]) -> list[Table]:
    """With statistics of each network's own, and with those that training left."""
    rows, known = [], dict(zip(ranked.networks, ranked.mean, strict=True))
    for name, each in answers.items():
        if each.uncalibrated:
            few = list(each.uncalibrated)
            truth = [known[who] for who in few]
            cells = [name, str(len(few))]
            for scores in (each.scores, each.uncalibrated):
                values = [scores[who] for who in few]
                told = len(set(values)) > 1 and len(set(truth)) > 1
                cells.append(interval(kendall_tau(values, truth)._asdict()) if told else "-")
                cells.append(f"{100 * sum(values) / len(values):.1f} %")
            rows.append(Row(cells))
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


def _seeds(found: Mapping[str, Any], answers: Mapping[str, Answers]) -> list[Table]:
    """Several supernets of one strategy: how much a tau varies between seeds."""
    groups: dict[str, list[float]] = {}
    for name, each in answers.items():
        if name in found["scores"]:
            groups.setdefault(trained_by(each), []).append(found["scores"][name]["tau"]["value"])
    rows = []
    for how, taus in groups.items():
        if len(taus) > 1:
            mean = sum(taus) / len(taus)
            spread = (sum((tau - mean) ** 2 for tau in taus) / (len(taus) - 1)) ** 0.5
            rows.append(Row([how, str(len(taus)), number(mean, 3), number(spread, 3)]))
    columns = ["trained by", "supernets", "mean tau", "standard deviation"]
    return [Table(columns, rows, "Between supernets of one strategy and length.")] if rows else []


def _scatters(ranked: Ranked, found: Mapping[str, Any]) -> Section:
    paint = colours(ranked.asked)
    with house_style():
        drawn = [
            drawing(
                scatter_figure(ranked, name, paint.get(name, "#8A8A8A"), found["scores"][name]["tau"]),
                f"{name}: each network's truth over its score; ringed: no network with fewer MACs has a "
                f"higher truth.",
            )
            for name in [*ranked.asked, *_counts(found)]
            if name in found["scores"]
        ]
    return Section("Score against truth", [Drawings(drawn)])
