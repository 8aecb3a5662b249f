"""From a config to a report: truth, scores, statistics, and what is written of them."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from search.ranking_config import RankReportConfig, names
from search.ranking_report import ranking_sections
from search.ranking_runs import cuts, searches, trained
from search.ranking_statistics import Ranked, gather, statistics
from search.ranking_supernets import Answers, ask
from search.ranking_words import verdict
from search.tables import Table, read_table
from supernet.documents import find_space
from supernet.records import shift_line
from supernet.sampling import stream
from supernet.space import Architecture, Space
from supernet.storage import supernet_space, weights_file
from tools.config import flatten, to_toml
from tools.files import write_bytes, write_document
from tools.launch import on_main
from tools.provenance import provenance, sha256
from tools.ranking import Numbers
from tools.report import Lines, Report, Section, Text, facts, write_report
from tools.runs import Run
from tools.stage import in_run


def rank_report(config: RankReportConfig) -> None:
    """Score what is not scored yet, and write the report; every start writes it anew."""
    config.check_sources()
    in_run(config, _report, lambda run, results: "", free=flatten(config), smaller="lower --scoring.batch")


def _report(config: RankReportConfig, run: Run, accelerator: Accelerator) -> None:
    space = truth = None
    answers: dict[str, Answers] = {}
    tables: dict[str, Table] = {}
    networks: list[Architecture] = []
    if config.truth:
        space = _space(config)
        truth = read_table(Path(config.truth), space, option="--truth")
        for option in ("scores", "losses"):
            for name, path in names(*getattr(config, option)).items():
                tables[name] = read_table(path, space, option=f"--{option}")
        networks = _networks(config, truth, tables)
        answers = {
            name: ask(name, path, networks, config, run, accelerator)
            for name, path in names(*config.supernet).items()
        }

    def write() -> None:
        ranked = None
        if truth is not None and space is not None:
            asked = _scores(config, networks, answers, tables)
            sign = -1 if config.truth_is_loss else 1
            ranked = gather(space, networks, sign * truth.repeats(networks), asked, seed=config.seed)
        _write(config, run, ranked, answers, truth, space)

    on_main(accelerator, write)


def _space(config: RankReportConfig) -> Space:
    """The one of all that is ranked."""
    if not config.supernet:
        return find_space(config.space, num_classes=10, image_size=config.data.size)
    spaces = {name: supernet_space(path) for name, path in names(*config.supernet).items()}
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
    return stream(config.seed, "networks").sample(known, config.networks or len(known))


def _scores(
    config: RankReportConfig,
    networks: list[Architecture],
    answers: Mapping[str, Answers],
    tables: Mapping[str, Table],
) -> dict[str, Numbers]:
    """Those asked for, by name; higher is better."""
    scores = {name: _row(each.scores, networks) for name, each in answers.items()}
    losses = names(*config.losses)
    for name, table in tables.items():
        mean = table.repeats(networks).mean(axis=0)
        scores[name] = -mean if name in losses else mean
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
) -> None:
    """The report, and the same numbers as JSON and CSV."""
    sections: list[Section | None] = []
    said: list[str] = []
    found: dict[str, Any] = {}
    if ranked is not None and truth is not None and space is not None:
        found = statistics(ranked, resamples=config.resamples, seed=config.seed)
        strategies = {name: each.config.strategy for name, each in answers.items() if each.config}
        said = verdict(found, strategies)
        sections += ranking_sections(ranked, found, answers)
    sections.append(searches(config.search, space, truth))
    sections.append(cuts(config.cuts))
    sections.append(trained(config.trained, config.cuts))
    origin = _origin(config, answers, truth)
    sections.append(
        Section(
            "Where this comes from",
            [facts(origin), Text("The options, as in config.toml:"), Lines(to_toml(config))],
        )
    )
    title = config.title or (
        f"How well is {space.name} ranked?" if space is not None else "Searches and trainings, side by side"
    )
    subtitle = _subtitle(ranked, truth, space)
    report = Report(title, subtitle, said, [section for section in sections if section is not None])
    write_report(run.path / "report.html", report)
    if ranked is not None:
        shift = {name: shift_line(each.shift) for name, each in answers.items() if each.shift is not None}
        content = {"verdict": said, **found, "shift": shift, "origin": origin}
        write_document(run.path / "ranking.json", "ranking", 1, content)
        write_bytes(run.path / "ranking.csv", _ranking_csv(found))
        write_bytes(run.path / "networks.csv", _networks_csv(ranked))
    print("\n".join([*said, f"report {run.path / 'report.html'}"]), flush=True)


def _subtitle(ranked: Ranked | None, truth: Table | None, space: Space | None) -> str:
    if ranked is None or truth is None or space is None:
        return ""
    merged = f", of which {truth.merged:,} were networks that others were already" if truth.merged else ""
    repeats = len(ranked.truth)
    times = f"; the truth has {repeats} trainings of each" if repeats > 1 else ""
    return (
        f"{len(ranked.networks):,} different networks of {space.name}; the table has {truth.rows:,} "
        f"architectures{merged}{times}."
    )


def _origin(config: RankReportConfig, answers: Mapping[str, Answers], truth: Table | None) -> dict[str, str]:
    """Provenance, in the order in which it is asked for."""
    origin = dict(provenance())
    if truth is not None:
        file = Path(config.truth)
        digest = f", SHA-256 {sha256(file)[:16]}" if file.is_file() else ""
        origin["truth"] = f"{config.truth}, column {truth.column}{digest}"
    for name, path in names(*config.supernet).items():
        each = answers[name]
        how = "no word of how it was trained"
        if each.config is not None:
            how = (
                f"{each.config.strategy} by {each.config.objective}, {each.results.get('steps', '?')} steps "
                f"of {each.config.recipe.batch_size}, seed {each.config.seed}, {each.config.data.name}"
            )
        apart = "" if each.apart else ", perhaps among those of its training"
        origin[f"supernet {name}"] = (
            f"{how}; scores on {each.scored_on:,} validation images{apart}, BatchNorm "
            f"{config.scoring.statistics}; SHA-256 {sha256(weights_file(path))[:16]}"
        )
    return origin


def _ranking_csv(found: Mapping[str, Any]) -> bytes:
    """A line for each score."""
    lines = [
        {"score": name, "asked_for": name in found["asked"], **_flat(each)}
        for name, each in found["scores"].items()
    ]
    return _csv(lines)


def _networks_csv(ranked: Ranked) -> bytes:
    """A line for each network."""
    lines = []
    for number, who in enumerate(ranked.networks):
        line = {"architecture": str(who), "truth": ranked.mean[number], "macs": int(ranked.macs[number])}
        lines.append(line | {f"score {name}": each[number] for name, each in ranked.scores.items()})
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
