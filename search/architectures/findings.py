"""What is written of a search among architectures, and said of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search.architectures.config import ArchitectureSearchConfig
from search.architectures.evaluations import NAMES, described, in_units, said_of_noise
from search.architectures.figures import course_figure, front_figure, operations_figure
from search.fronts import front
from search.limits import UNITS
from search.method import Method, Scored
from search.methods import METHODS
from search.trie import Work, work
from supernet.additive import Additive
from supernet.network.documents import save_architecture
from supernet.train.measure import Measured
from tools.run.folder import Run


def write_findings(
    run: Run,
    config: ArchitectureSearchConfig,
    method: Method,
    costs: Mapping[str, Additive],
    measured: Measured | None,
    others: Mapping[str, Sequence[Scored]],
) -> None:
    """Write the best, the first few, the front and the figures; others count within this search's limits."""
    scored = [each for generation in method.history for each in generation]
    best = method.best(config.top)

    def write(path: Path, found: Scored) -> None:
        notes = {"score": found.score, **described(found.architecture, costs)}
        save_architecture(path, found.architecture, method.space, **notes)

    write(run.path / "best.json", best[0])
    of_front = front(scored, _objectives(method, costs))
    for folder, members in (("top", best), ("front", of_front)):
        (run.path / folder).mkdir(exist_ok=True)
        for old in (run.path / folder).glob("[0-9]*.json"):
            old.unlink()
        for number, each in enumerate(members, start=1):
            write(run.path / folder / f"{number:02d}.json", each)
    runs = {config.method: scored}
    runs |= {
        name: [each for each in found if method.within.allow(each.architecture)]
        for name, found in others.items()
    }
    course_figure(run.path / "course.png", runs)
    if METHODS[config.method].learns:
        runs[f"its first {len(method.history[0])}, random"] = method.history[0]
    for cost in _objectives(method, costs):
        of = (
            f" ({measured.device}, {measured.threads} threads)" if measured and cost.name == "latency" else ""
        )
        front_figure(run.path / f"front-{cost.name}.png", runs, cost, method.within.limits, of=of)
    operations_figure(run.path / "operations.png", method.space, scored, best)


def results_of(
    method: Method, costs: Mapping[str, Additive], *, measured: Measured | None, seconds: float, images: int
) -> dict[str, Any]:
    """The facts of a finished search, for results.json; its scores are over so many validation images."""
    limits = {NAMES[each.cost.name]: in_units(each.cost.name, each.high) for each in method.within.limits}
    scored = [each for generation in method.history for each in generation]
    works = [work([each.architecture for each in batch], method.space) for batch in method.history]
    found = {
        "space": method.space.name,
        "method": method.name,
        "limits": limits,
        "evaluations": len(scored),
        "validation_images": images,
        "seconds": round(seconds, 1),
        "macs_saved_by_sharing": round(Work(*map(sum, zip(*works, strict=True))).saving, 3),
        "best": [_entry(each, costs) for each in method.best(10)],
        "front": [_entry(each, costs) for each in front(scored, _objectives(method, costs))],
    }
    if measured:
        found["latency_of"] = {
            "device": measured.device,
            "threads": measured.threads,
            "batch_size": measured.batch_size,
            "date": measured.date,
        }
    return found


def summary(run: Run, results: dict[str, Any]) -> str:
    """The result in words."""
    best = results["best"][0]
    known = {name: best[key] for name, key in NAMES.items() if key in best}
    told = [f"{value:,}" if type(value) is int else f"{value:.4g}" for value in known.values()]
    told = [f"{number}{UNITS[name][1]}" for number, name in zip(told, known, strict=True)]
    lines = [
        f"scored {results['evaluations']:,} networks of {results['space']} in "
        f"{results['seconds']:,.0f} s; one by one they take {results['macs_saved_by_sharing']:.2f} times "
        "the MACs",
        f"best: {best['architecture']}, score {best['score']:.4f}, {', '.join(told)}",
    ]
    if "validation_images" in results:
        noise = said_of_noise(best["score"], results["validation_images"])
        lines.append(
            f"its score is {noise} (standard error); as the highest of {results['evaluations']:,} it is "
            "likely too high"
        )
    lines.append(
        f"architecture {run.path / 'best.json'}, the next ones in {run.path / 'top'}, "
        f"{len(results['front'])} networks of the front in {run.path / 'front'}"
    )
    return "\n".join(lines)


def _objectives(method: Method, costs: Mapping[str, Additive]) -> Sequence[Additive]:
    return method.traded or [costs["macs"]]


def _entry(scored: Scored, costs: Mapping[str, Additive]) -> dict[str, Any]:
    architecture = scored.architecture
    return {
        "architecture": str(architecture),
        "choices": list(architecture.choices),
        "score": scored.score,
        **described(architecture, costs),
    }
