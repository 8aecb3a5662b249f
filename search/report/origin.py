"""This module says where a report's numbers come from: versions, checksums of files, and the options of every
run."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from search.report.config import RankReportConfig
from search.report.runs import faults_of, labelled
from search.report.supernets import SupernetAnswers
from search.report.tables import NetworkTable, table_file
from supernet.network.storage import weights_file
from tools.files.provenance import provenance, sha256
from tools.options.config import to_toml
from tools.page.report import Lines, Section, SectionPart, facts
from tools.run.folder import Run


def origin_section(origin: Mapping[str, str], options: Mapping[str, str]) -> Section:
    """Return the last section of a report. The options of each run are folded, because there are many."""
    parts: list[SectionPart] = [facts(origin)]
    parts += [Lines(text, title=f"options of {name}") for name, text in options.items()]
    return Section("Where this comes from", parts)


def options_of_runs(config: RankReportConfig, supernets: Mapping[str, SupernetAnswers]) -> dict[str, str]:
    """Return the options of the report and of each run in it, as far as they are known."""
    options = {"this report": to_toml(config)}
    for name, answers in supernets.items():
        if answers.config is not None:
            options[f"supernet {name}"] = to_toml(answers.config)
    for option, name, path in _other_runs(config):
        file = Run(path).config_path
        with faults_of(option, path):
            if file.exists():
                options[f"{option} {name}"] = file.read_text(encoding="utf-8", errors="replace")
    return options


def origin_of(
    config: RankReportConfig, supernets: Mapping[str, SupernetAnswers], truth: NetworkTable | None
) -> dict[str, str]:
    """Return the provenance of a report, in the order of the options that name its sources."""
    origin = dict(provenance())
    if truth is not None:
        file = table_file(Path(config.truth), "truth")
        note = f"; {config.truth_note}" if config.truth_note else ""
        size = f", of {truth.fidelity}" if truth.fidelity else ""
        origin["truth"] = f"{file}, column {truth.column}{size}, SHA-256 {sha256(file)[:16]}{note}"
    for option, name, path in _other_runs(config):
        file = path / "results.json" if (path / "results.json").exists() else path / "truth.jsonl"
        origin[f"{option} {name}"] = f"{path}, SHA-256 of {file.name} {sha256(file)[:16]}"
    for name, source in config.sources().items():
        if not source.is_supernet:
            file = table_file(source.path, source.option)
            better = "lower" if source.lower_is_better else "higher"
            origin[f"scores {name}"] = f"{file}, {better} is better, SHA-256 {sha256(file)[:16]}"
        elif name in supernets:
            origin[f"supernet {name}"] = _of_supernet(supernets[name], source.path, config)
    return origin


def _other_runs(config: RankReportConfig) -> Iterator[tuple[str, str, Path]]:
    """Return the option, the name and the place of each run that the report describes."""
    for option in ("search", "cuts", "trained"):
        for name, path in labelled(getattr(config, option), option).items():
            yield option, name, path


def _of_supernet(answers: SupernetAnswers, path: Path, config: RankReportConfig) -> str:
    """Say how a supernet was trained, and on which images its networks were scored."""
    how, trained = "no word of how it was trained", answers.config
    if trained is not None:
        steps = "?" if answers.steps is None else answers.steps
        how = (
            f"{trained.strategy} by {trained.objective}, {steps} steps of {trained.recipe.batch_size}, seed "
            f"{trained.seed}, {trained.data.name}"
        )
    apart = "" if answers.apart else ", perhaps among those of its training"
    size = f" of {answers.space.fidelity}" if answers.space.fidelity else ""
    return (
        f"{how}; scores{size} on {answers.scored_on:,} validation images{apart}, BatchNorm "
        f"{config.scoring.statistics}; SHA-256 {sha256(weights_file(path))[:16]}"
    )
