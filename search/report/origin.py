"""Where a report's numbers come from: versions, sums of files, and the options of every run in it."""

from collections.abc import Mapping
from pathlib import Path

from search.report.config import RankReportConfig, names
from search.report.supernets import Answers
from search.report.tables import Table, table_file
from search.report.words import reading
from supernet.network.storage import weights_file
from tools.files.provenance import provenance, sha256
from tools.options.config import to_toml
from tools.page.report import Lines, Part, Section, facts
from tools.run.folder import Run


def origin_section(origin: Mapping[str, str], options: Mapping[str, str]) -> Section:
    """The last of a report; options are folded, since there are many."""
    parts: list[Part] = [facts(origin)]
    parts += [Lines(text, title=f"options of {name}") for name, text in options.items()]
    return Section("Where this comes from", parts)


def options_of(config: RankReportConfig, answers: Mapping[str, Answers]) -> dict[str, str]:
    """All that can be set, of the report and of each run in it, as far as they are known."""
    options = {"this report": to_toml(config)}
    for name, each in answers.items():
        if each.config is not None:
            options[f"supernet {name}"] = to_toml(each.config)
    for option in ("search", "cuts", "trained"):
        for name, path in names(*getattr(config, option)).items():
            file = Run(path).config_path
            with reading(option, path):
                if file.exists():
                    options[f"{option} {name}"] = file.read_text(encoding="utf-8", errors="replace")
    return options


def origin_of(
    config: RankReportConfig, answers: Mapping[str, Answers], truth: Table | None
) -> dict[str, str]:
    """Provenance, in the order in which it is asked for."""
    origin = dict(provenance())
    if truth is not None:
        file = table_file(Path(config.truth), "--truth")
        note = f"; {config.truth_note}" if config.truth_note else ""
        origin["truth"] = f"{file}, column {truth.column}, SHA-256 {sha256(file)[:16]}{note}"
    for option in ("search", "cuts", "trained"):
        for name, path in names(*getattr(config, option)).items():
            file = path / "results.json" if (path / "results.json").exists() else path / "truth.jsonl"
            origin[f"{option} {name}"] = f"{path}, SHA-256 of {file.name} {sha256(file)[:16]}"
    for name, (option, path) in config.sources().items():
        if option != "supernet":
            file = table_file(path, f"--{option}")
            better = "lower" if option == "losses" else "higher"
            origin[f"scores {name}"] = f"{file}, {better} is better, SHA-256 {sha256(file)[:16]}"
            continue
        if name not in answers:
            continue
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
