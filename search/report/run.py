"""This module turns a config into a report: it reads the truth, scores networks, ranks them, and writes."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from search.report.comparisons import trained_section
from search.report.config import RankReportConfig, ScoreSource
from search.report.cut_searches import cut_search_section
from search.report.modules import budget, supernet_data
from search.report.origin import options_of_runs, origin_of, origin_section
from search.report.report import ranking_sections
from search.report.searches import search_section
from search.report.statistics import Ranking, ScoredNetworks, rank, with_baselines
from search.report.supernets import SupernetAnswers, ask_supernet
from search.report.tables import NetworkTable, read_table
from search.report.words import verdict
from supernet.network.documents import find_space
from supernet.network.storage import supernet_space
from supernet.sampling import stream
from supernet.space import Architecture, Space
from tools.files.atomic import write_bytes, write_document
from tools.mistake import Mistake, quoted
from tools.options.config import flag, flatten
from tools.page.report import Report, Section, as_data, write_report
from tools.run.folder import Run
from tools.run.launch import on_main
from tools.run.stage import Stage


@dataclass(frozen=True, kw_only=True)
class RankingInputs:
    """These are the inputs of a ranking, before anything is scored."""

    truth: NetworkTable
    sources: Mapping[str, ScoreSource]
    """The sources of scores, by name."""
    tables: Mapping[str, NetworkTable]
    """The scores that come from files, by name."""


def rank_report(config: RankReportConfig) -> None:
    """Score the networks that have no score yet, and write the report; every start writes it anew."""
    config.check_sources()
    with Stage(config, free=flatten(config), smaller=f"lower {flag('scoring.batch')}") as stage:
        _report(stage.config, stage.run, stage.accelerator)


def _report(config: RankReportConfig, run: Run, accelerator: Accelerator) -> None:
    inputs = _inputs(config) if config.truth else None
    # What can be wrong is looked at before the scoring, which takes long.
    others = on_main(accelerator, lambda: _others(config, inputs)) or ([], [])
    supernets: dict[str, SupernetAnswers] = {}
    networks: list[Architecture] = []
    if inputs is not None and inputs.sources:
        networks = _networks(config, inputs)
        supernets = {
            name: ask_supernet(name, source.path, networks, config, run, accelerator)
            for name, source in inputs.sources.items()
            if source.is_supernet
        }

    def write() -> None:
        scored = None
        if inputs is not None and inputs.sources:
            scored = _scored(inputs, networks, supernets, seed=config.seed)
        _write(config, run, inputs, scored, supernets, others)

    on_main(accelerator, write)


def _inputs(config: RankReportConfig) -> RankingInputs:
    """Read the truth, and the scores that come from files."""
    space, sources = _space(config), config.sources()
    return RankingInputs(
        truth=read_table(Path(config.truth), space, option="truth", lower=config.truth_is_loss),
        sources=sources,
        tables={
            name: read_table(source.path, space, option=source.option, lower=source.lower_is_better)
            for name, source in sources.items()
            if not source.is_supernet
        },
    )


def _others(config: RankReportConfig, inputs: RankingInputs | None) -> tuple[list[Section], list[str]]:
    """Return the sections on other runs, and a sentence on each run."""
    parts = [
        search_section(config.search, inputs.truth if inputs is not None else None),
        cut_search_section(config.cuts),
        trained_section(config.trained, config.cuts),
    ]
    return [section for section, _ in parts if section], [line for _, lines in parts for line in lines]


def _space(config: RankReportConfig) -> Space:
    """Return the space that all ranked networks share; that of a copy is the one of full size."""
    if not config.supernet:
        try:
            return find_space(config.space, num_classes=10, image_size=config.space_size).full
        except ValueError as error:
            raise Mistake("space", quoted(error)) from None
    spaces = {
        name: supernet_space(source.path).full
        for name, source in config.sources().items()
        if source.is_supernet
    }
    one, first = next(iter(spaces.items()))
    for name, space in spaces.items():
        if space != first:
            raise Mistake(
                "supernet",
                f"'{name}' is of space {space.name} at {space.image_size} pixels, '{one}' of {first.name} at "
                f"{first.image_size}; one report compares supernets of one space",
            )
    return first


def _networks(config: RankReportConfig, inputs: RankingInputs) -> list[Architecture]:
    """Return the truth's networks that all tables have, or a random few of them."""
    shared = set(inputs.truth.values).intersection(*(table.values for table in inputs.tables.values()))
    known = sorted(shared, key=lambda network: network.choices)
    if len(known) < max(2, config.networks):
        rest = " with scores in all files" if inputs.tables else ""
        raise Mistake(
            "networks",
            f"{config.networks or 'two or more'} are needed, and '{config.truth}' has {len(known)} different "
            f"ones{rest}",
        )
    networks = stream(config.seed, "networks").sample(known, config.networks or len(known))
    if np.ptp(inputs.truth.repeats(networks).mean(axis=0)) == 0:
        raise Mistake("truth", f"'{config.truth}' says the same of all networks: it orders nothing")
    return networks


def _scored(
    inputs: RankingInputs,
    networks: list[Architecture],
    supernets: Mapping[str, SupernetAnswers],
    *,
    seed: int,
) -> ScoredNetworks:
    """Return the networks with their truth and scores, turned so that higher is better everywhere."""
    scores = {}
    for name, source in inputs.sources.items():
        if source.is_supernet:
            scores[name] = np.array([supernets[name].scores[network] for network in networks])
        else:
            mean = inputs.tables[name].repeats(networks).mean(axis=0)
            scores[name] = -mean if source.lower_is_better else mean
    negated = [name for name, source in inputs.sources.items() if source.lower_is_better]
    negated += ["truth"] * inputs.truth.lower
    repeats = (-1 if inputs.truth.lower else 1) * inputs.truth.repeats(networks)
    return with_baselines(inputs.truth.space, networks, repeats, scores, seed=seed, negated=negated)


def _write(
    config: RankReportConfig,
    run: Run,
    inputs: RankingInputs | None,
    scored: ScoredNetworks | None,
    supernets: Mapping[str, SupernetAnswers],
    others: tuple[list[Section], list[str]],
) -> None:
    """Write the report, and the same numbers as JSON and CSV."""
    sections, sentences = others
    title, subtitle, ranking = "Searches and trainings, side by side", "", None
    if inputs is not None and scored is not None:
        ranking = rank(scored, resamples=config.resamples, seed=config.seed)
        strategies = {name: answers.config.strategy for name, answers in supernets.items() if answers.config}
        sentences = verdict(ranking, strategies, [*_budgets(supernets), *sentences])
        sections = [*ranking_sections(scored, ranking, supernets), *sections]
        title = f"How well is {inputs.truth.space.name} ranked?"
        subtitle = _subtitle(inputs, scored, config.truth_note)
    origin = origin_of(config, supernets, inputs.truth if inputs is not None else None)
    sections = [*sections, origin_section(origin, options_of_runs(config, supernets))]
    report = Report(config.title or title, subtitle, sentences, sections)
    write_report(run.path / "report.html", report)
    content = {
        "verdict": sentences,
        "ranking": ranking.as_data() if ranking else None,
        "supernets": {name: supernet_data(answers, scored) for name, answers in supernets.items()},
        "tables": as_data(sections),
        "origin": origin,
    }
    write_document(run.path / "report.json", "report", 1, content)
    if scored is not None and ranking is not None:
        write_bytes(run.path / "ranking.csv", _ranking_csv(ranking))
        write_bytes(run.path / "networks.csv", _networks_csv(scored))
    print("\n".join([*sentences, f"report {run.path / 'report.html'}"]), flush=True)


def _budgets(supernets: Mapping[str, SupernetAnswers]) -> list[str]:
    """Return a sentence on how the supernets were trained, as far as that is known."""
    budgets = [f"{name}: {budget(answers)}" for name, answers in supernets.items() if answers.config]
    return ["How the supernets were trained: " + "; ".join(budgets) + "."] if budgets else []


def _subtitle(inputs: RankingInputs, scored: ScoredNetworks, note: str) -> str:
    """Say how many networks are ranked, and what the truth is."""
    table, repeats = inputs.truth, len(scored.truth)
    note = f"The truth: {note}." if note else ""
    merged = f", of which {table.merged:,} were networks that others were already" if table.merged else ""
    times = f"; the truth has {repeats} trainings of each" if repeats > 1 else ""
    if table.most_repeats(scored.networks) > repeats:
        times += f" that all have ({table.most_repeats(scored.networks)} of some)"
    sizes = [f" The truth is of {table.fidelity}."] if table.fidelity else []
    sizes += [
        f" Scores by {name} are scores of {scores.fidelity}."
        for name, scores in inputs.tables.items()
        if scores.fidelity
    ]
    return (
        f"{len(scored.networks):,} different networks of {table.space.name}; the table has {table.rows:,} "
        f"architectures{merged}{times}.{''.join(sizes)}{' ' * bool(note)}{note}"
    )


def _ranking_csv(ranking: Ranking) -> bytes:
    """Return a table with a line for each score."""
    lines = [
        {"score": name, "asked_for": name in ranking.subjects, **_flat(score.as_data())}
        for name, score in ranking.scores.items()
    ]
    return _csv(lines)


def _networks_csv(scored: ScoredNetworks) -> bytes:
    """Return a table with a line for each network; losses keep the sign that they have in their files."""
    lines = []
    signs = {name: -1 if name in scored.negated else 1 for name in ("truth", *scored.scores)}
    for place, network in enumerate(scored.networks):
        line = {"architecture": str(network), "truth": signs["truth"] * scored.mean[place]}
        line["macs"] = int(scored.macs[place])
        line |= {f"score {name}": signs[name] * row[place] for name, row in scored.scores.items()}
        lines.append(line)
    return _csv(lines)


def _csv(lines: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
