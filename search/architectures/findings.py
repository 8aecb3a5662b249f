"""A search among architectures leaves files and words behind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search.architectures.config import ArchitectureSearchConfig
from search.architectures.evaluations import NAMES, described, in_units, said_of_noise
from search.fronts import front
from search.limits import UNITS
from search.method import Method, Scored
from search.methods import METHODS
from search.trie import Work, work
from supernet.additive import Additive
from supernet.network.documents import save_architecture
from supernet.space import Fidelity, Space
from supernet.train.measure import Measured
from tools.run.folder import Run


def write_architecture_findings(
    run: Run,
    config: ArchitectureSearchConfig,
    method: Method,
    costs: Mapping[str, Additive],
    measured: Measured | None,
    others: Mapping[str, Sequence[Scored]],
    trained: Space,
) -> None:
    """Write the best network, the first few, the front and the figures.

    Networks of other searches count where they are within this search's limits. All networks are of full
    size, even where `trained`, the supernet's space, is a copy.
    """
    from search.architectures.figures import (  # matplotlib waits until there is something to draw
        course_figure,
        front_figure,
        operations_figure,
    )

    scored = [network for generation in method.history for network in generation]
    best = method.best(config.top)

    def write(path: Path, network: Scored) -> None:
        notes = {"score": network.score, **trained.fidelity_note, **described(network.architecture, costs)}
        save_architecture(path, network.architecture, method.space, **notes)

    write(run.path / "best.json", best[0])
    of_front = front(scored, _objectives(method, costs))
    for folder, members in (("top", best), ("front", of_front)):
        (run.path / folder).mkdir(exist_ok=True)
        for old in (run.path / folder).glob("[0-9]*.json"):
            old.unlink()
        for number, network in enumerate(members, start=1):
            write(run.path / folder / f"{number:02d}.json", network)
    runs = {config.method: scored}
    runs |= {
        name: [network for network in theirs if method.within.allow(network.architecture)]
        for name, theirs in others.items()
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


def architecture_results(
    method: Method,
    costs: Mapping[str, Additive],
    trained: Space,
    *,
    measured: Measured | None,
    seconds: float,
    images: int,
) -> dict[str, Any]:
    """Return the facts of a finished search, for results.json.

    `trained` is the supernet's space, and `images` the number of validation images that the scores are over.
    """
    limits = {NAMES[limit.cost.name]: in_units(limit.cost.name, limit.high) for limit in method.within.limits}
    scored = [network for generation in method.history for network in generation]
    works = [work([network.architecture for network in generation], trained) for generation in method.history]
    results = {
        "space": method.space.name,
        **trained.fidelity_note,
        "method": method.name,
        "limits": limits,
        "evaluations": len(scored),
        "validation_images": images,
        "seconds": round(seconds, 1),
        "macs_saved_by_sharing": round(Work(*map(sum, zip(*works, strict=True))).saving, 3),
        "best": [_entry(network, costs) for network in method.best(10)],
        "front": [_entry(network, costs) for network in front(scored, _objectives(method, costs))],
    }
    if measured:
        results["latency_of"] = {
            "device": measured.device,
            "threads": measured.threads,
            "batch_size": measured.batch_size,
            "date": measured.date,
        }
    return results


def architecture_summary(run: Run, results: dict[str, Any]) -> str:
    """Return the results in words."""
    best = results["best"][0]
    known = {name: best[key] for name, key in NAMES.items() if key in best}
    numbers = [f"{value:,}" if type(value) is int else f"{value:.4g}" for value in known.values()]
    costs = [f"{number}{UNITS[name][1]}" for number, name in zip(numbers, known, strict=True)]
    lines = [
        f"scored {results['evaluations']:,} networks of {results['space']} in "
        f"{results['seconds']:,.0f} s; one by one they would take {results['macs_saved_by_sharing']:.2f} "
        "times the MACs",
        f"best: {best['architecture']}, score {best['score']:.4f}, {', '.join(costs)}",
    ]
    if "validation_images" in results:
        noise = said_of_noise(best["score"], results["validation_images"])
        size = f"that of {Fidelity(**results['fidelity'])}, " if "fidelity" in results else ""
        lines.append(
            f"its score is {size}{noise} (standard error); as the highest of {results['evaluations']:,} it "
            "is likely too high"
        )
    lines.append(
        f"the best network is in {run.path / 'best.json'}, the next ones in {run.path / 'top'}, and the "
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
