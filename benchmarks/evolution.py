"""How few evaluations each way to search needs, with NAS-Bench-Macro's truth as the score.

python -m benchmarks.evolution --truth nas-bench-macro_cifar10.json [--seeds 10] [--max-macs 50e6]

For each method the regret (points of accuracy below the best network within the limit) after so many distinct
evaluations, median and worst over seeds, and how many each seed needed to find that best network; and how
much of the true front's hypervolume NSGA-II and random search find without a limit.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from search.baselines import RandomSearch, RegularisedEvolution
from search.evolution import Evolution
from search.fronts import Nsga2, front
from search.method import Method, Scored
from supernet.additive import Additive, counted
from supernet.presets import preset
from supernet.space import Architecture

METHODS: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "evolution": (Evolution, {}),
    "evolution, one-point crossover": (Evolution, {"crossover": "one_point"}),
    "regularised evolution": (RegularisedEvolution, {}),
    "nsga2": (Nsga2, {}),
    "nsga2, what is over the limit breeds": (Nsga2, {"over_limit": "dominate"}),
    "random": (RandomSearch, {}),
}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--truth", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--max-macs", type=float, default=50e6)
    options.add_argument("--evaluations", type=int, nargs="+", default=[100, 150, 200, 300, 450, 600])
    asked = options.parse_args()
    space = preset("nas_bench_macro", num_classes=10, image_size=32)
    table = json.loads(asked.truth.read_text())
    truth = {Architecture.parse(name): float(entry["mean_acc"]) for name, entry in table.items()}
    macs = counted(space, "macs")
    best = max(value for each, value in truth.items() if macs.of(each) <= asked.max_macs)
    for name, (kind, given) in METHODS.items():
        courses = [
            scores(kind(space, max_macs=asked.max_macs, seed=seed, **given), truth, max(asked.evaluations))
            for seed in range(asked.seeds)
        ]
        line: dict[str, Any] = {"method": name, "limit_macs": asked.max_macs, "best": round(best, 3)}
        for count in asked.evaluations:
            regrets = [best - max(each.score for each in course[:count]) for course in courses]
            line[f"regret_{count}"] = [round(x, 3) for x in (statistics.median(regrets), max(regrets))]
        line["evaluations_to_best"] = [
            next((number for number, each in enumerate(course, 1) if best - each.score < 1e-9), None)
            for course in courses
        ]
        print(json.dumps(line), flush=True)
    worst = min(truth.values()), max(macs.of(each) for each in truth)
    everything = area([Scored(each, value) for each, value in truth.items()], worst, macs)
    for name in ("nsga2", "random"):
        kind, given = METHODS[name]
        shares = [
            area(scores(kind(space, seed=seed, **given), truth, 1000), worst, macs) / everything
            for seed in range(asked.seeds)
        ]
        found = {"median": round(statistics.median(shares), 5), "least": round(min(shares), 5)}
        print(json.dumps({"method": name, "hypervolume_of_true_front_1000": found}), flush=True)


def scores(method: Method, truth: dict[Architecture, float], count: int) -> list[Scored]:
    """The first evaluations of a search."""
    while len(found := [each for batch in method.history for each in batch]) < count:
        asked = method.ask()
        if not asked:
            break
        method.tell([truth[each] for each in asked])
    return found[:count]


def area(scored: list[Scored], worst: tuple[float, int], macs: Additive) -> float:
    """What a front dominates, in front of the worst score and the dearest network."""
    total, lowest = 0.0, worst[0]
    for each in front(scored, [macs]):  # from the cheapest to the dearest, each better than the one before
        total += (each.score - lowest) * (worst[1] - macs.of(each.architecture))
        lowest = each.score
    return total


if __name__ == "__main__":
    main()
