"""From a config to a report: truth, scores, statistics, and what is written of them."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from search.report.config import RankReportConfig
from search.report.modules import budget, told_of
from search.report.origin import options_of, origin_of, origin_section
from search.report.report import ranking_sections
from search.report.searches import cuts, searches
from search.report.statistics import Ranked, gather, statistics
from search.report.supernets import Answers, ask
from search.report.tables import Table, read_table
from search.report.trained import trained
from search.report.words import verdict
from supernet.network.documents import find_space
from supernet.network.storage import supernet_space
from supernet.sampling import stream
from supernet.space import Architecture, Space
from tools.files.atomic import write_bytes, write_document
from tools.options.config import flatten
from tools.page.report import Report, Section, as_data, write_report
from tools.ranking import Numbers
from tools.run.folder import Run
from tools.run.launch import on_main
from tools.run.stage import Stage


def rank_report(config: RankReportConfig) -> None:
    """Score what is not scored yet, and write the report; every start writes it anew."""
    config.check_sources()
    with Stage(config, free=flatten(config), smaller="lower --scoring.batch") as stage:
        _report(stage.config, stage.run, stage.accelerator)


def _report(config: RankReportConfig, run: Run, accelerator: Accelerator) -> None:
    sources = config.sources()
    space = _space(config) if config.truth else None
    truth, tables = _tables(config, space) if space is not None else (None, {})
    # What can be wrong is looked at before the scoring, which takes long.
    others = on_main(accelerator, lambda: _others(config, space, truth))
    answers: dict[str, Answers] = {}
    networks: list[Architecture] = []
    if truth is not None and sources:
        networks = _networks(config, truth, tables)
        answers = {
            name: ask(name, path, networks, config, run, accelerator)
            for name, (option, path) in sources.items()
            if option == "supernet"
        }

    def write() -> None:
        ranked = None
        if truth is not None and space is not None and sources:
            scores = _scores(sources, networks, answers, tables)
            negated = [name for name, (option, _) in sources.items() if option == "losses"]
            negated += ["truth"] * config.truth_is_loss
            sign = -1 if config.truth_is_loss else 1
            repeats = sign * truth.repeats(networks)
            ranked = gather(space, networks, repeats, scores, seed=config.seed, negated=negated)
        _write(config, run, ranked, answers, truth, space, others or ([], []))

    on_main(accelerator, write)


def _tables(config: RankReportConfig, space: Space) -> tuple[Table, dict[str, Table]]:
    """The truth, and the scores that come from files."""
    truth = read_table(Path(config.truth), space, option="--truth", lower=config.truth_is_loss)
    tables = {
        name: read_table(path, space, option=f"--{option}", lower=option == "losses")
        for name, (option, path) in config.sources().items()
        if option != "supernet"
    }
    return truth, tables


def _others(
    config: RankReportConfig, space: Space | None, truth: Table | None
) -> tuple[list[Section], list[str]]:
    """What other runs have to say, at length and in a sentence each."""
    told = [
        searches(config.search, space, truth, lower=config.truth_is_loss),
        cuts(config.cuts),
        trained(config.trained, config.cuts),
    ]
    return [section for section, _ in told if section], [line for _, lines in told for line in lines]


def _space(config: RankReportConfig) -> Space:
    """The one of all that is ranked."""
    if not config.supernet:
        try:
            return find_space(config.space, num_classes=10, image_size=config.space_size)
        except ValueError as error:
            raise ValueError(f"--space: {error}") from None
    supernets = {name: path for name, (option, path) in config.sources().items() if option == "supernet"}
    spaces = {name: supernet_space(path) for name, path in supernets.items()}
    one, first = next(iter(spaces.items()))
    for name, space in spaces.items():
        if space != first:
            raise ValueError(
                f"--supernet: '{name}' is of space {space.name} at {space.image_size} pixels, '{one}' of "
                f"{first.name} at {first.image_size}; one report compares supernets of one space"
            )
    return first


def _networks(config: RankReportConfig, truth: Table, tables: Mapping[str, Table]) -> list[Architecture]:
    """Networks of the truth that all tables know, in an order of chance, of which the first are taken."""
    shared = set(truth.values).intersection(*(table.values for table in tables.values()))
    known = sorted(shared, key=lambda each: each.choices)
    if len(known) < max(2, config.networks):
        rest = " with scores in all files" if tables else ""
        raise ValueError(
            f"--networks: {config.networks or 'two or more'} are needed, and '{config.truth}' has "
            f"{len(known)} different ones{rest}"
        )
    networks = stream(config.seed, "networks").sample(known, config.networks or len(known))
    if np.ptp(truth.repeats(networks).mean(axis=0)) == 0:
        raise ValueError(f"--truth: '{config.truth}' says the same of all networks: it orders nothing")
    return networks


def _scores(
    sources: Mapping[str, tuple[str, Path]],
    networks: list[Architecture],
    answers: Mapping[str, Answers],
    tables: Mapping[str, Table],
) -> dict[str, Numbers]:
    """By name, in the order in which they were asked for; higher is better."""
    scores = {}
    for name, (option, _) in sources.items():
        if option == "supernet":
            scores[name] = _row(answers[name].scores, networks)
        else:
            mean = tables[name].repeats(networks).mean(axis=0)
            scores[name] = -mean if option == "losses" else mean
    return scores


def _row(scores: Mapping[Architecture, float], networks: list[Architecture]) -> Numbers:
    return np.array([scores[each] for each in networks])


def _write(
    config: RankReportConfig,
    run: Run,
    ranked: Ranked | None,
    answers: Mapping[str, Answers],
    truth: Table | None,
    space: Space | None,
    others: tuple[list[Section], list[str]],
) -> None:
    """The report, and the same numbers as JSON and CSV."""
    sections: list[Section] = []
    said = others[1]
    found: dict[str, Any] = {}
    if ranked is not None:
        found = statistics(ranked, resamples=config.resamples, seed=config.seed)
        strategies = {name: each.config.strategy for name, each in answers.items() if each.config}
        budgets = [f"{name}: {budget(each)}" for name, each in answers.items() if each.config]
        told = ["How the supernets were trained: " + "; ".join(budgets) + "."] if budgets else []
        said = verdict(found, strategies, [*told, *others[1]])
        sections += ranking_sections(ranked, found, answers)
    sections += others[0]
    origin = origin_of(config, answers, truth)
    sections.append(origin_section(origin, options_of(config, answers)))
    title = config.title or (
        f"How well is {space.name} ranked?"
        if ranked is not None and space is not None
        else "Searches and trainings, side by side"
    )
    report = Report(title, _subtitle(ranked, truth, space, config.truth_note), said, sections)
    write_report(run.path / "report.html", report)
    content = {"verdict": said, "ranking": found or None, "supernets": {}, "tables": as_data(sections)}
    content["supernets"] = {name: told_of(each, ranked) for name, each in answers.items()}
    write_document(run.path / "report.json", "report", 1, content | {"origin": origin})
    if ranked is not None:
        write_bytes(run.path / "ranking.csv", _ranking_csv(found))
        write_bytes(run.path / "networks.csv", _networks_csv(ranked))
    print("\n".join([*said, f"report {run.path / 'report.html'}"]), flush=True)


def _subtitle(ranked: Ranked | None, truth: Table | None, space: Space | None, note: str) -> str:
    if ranked is None or truth is None or space is None:
        return ""
    note = f"The truth: {note}." if note else ""
    merged = f", of which {truth.merged:,} were networks that others were already" if truth.merged else ""
    repeats = len(ranked.truth)
    times = f"; the truth has {repeats} trainings of each" if repeats > 1 else ""
    if truth.most_repeats(ranked.networks) > repeats:
        times += f" that all have ({truth.most_repeats(ranked.networks)} of some)"
    return (
        f"{len(ranked.networks):,} different networks of {space.name}; the table has {truth.rows:,} "
        f"architectures{merged}{times}.{' ' * bool(note)}{note}"
    )


def _ranking_csv(found: Mapping[str, Any]) -> bytes:
    """A line for each score."""
    lines = [
        {"score": name, "asked_for": name in found["asked"], **_flat(each)}
        for name, each in found["scores"].items()
    ]
    return _csv(lines)


def _networks_csv(ranked: Ranked) -> bytes:
    """A line for each network; losses as they are in their files."""
    lines = []
    signs = {name: -1 if name in ranked.negated else 1 for name in ("truth", *ranked.scores)}
    for number, who in enumerate(ranked.networks):
        line = {"architecture": str(who), "truth": signs["truth"] * ranked.mean[number]}
        line["macs"] = int(ranked.macs[number])
        line |= {f"score {name}": signs[name] * each[number] for name, each in ranked.scores.items()}
        lines.append(line)
    return _csv(lines)


def _csv(lines: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
