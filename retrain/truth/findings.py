"""This module reports a truth: a line for each training, and how the networks differ."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from local_learning.ensemble import accuracies_of_heads
from retrain.truth.plan import Trial, TruthPlan, folder_of
from supernet.space import Architecture
from tools.files.atomic import write_bytes
from tools.run.folder import Run


def read_results(run: Run, trials: Sequence[Trial]) -> dict[Trial, Mapping[str, Any]]:
    """Return the results of the finished trainings, in their order."""
    results_by_trial = ((trial, folder_of(run, trial).results) for trial in trials)
    return {trial: results for trial, results in results_by_trial if results is not None}


def line_of(trial: Trial, seed: int, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what truth.jsonl says of a training; nothing in it depends on time."""
    last = results["test"]["last"]
    line = {**trial.facts, "seed": seed + trial.repeat}
    measured = {"accuracy": "top1", "top5": "top5", "loss": "loss"}
    line |= {name: last[key] for name, key in measured.items() if key in last}
    if heads := accuracies_of_heads(last):
        line["heads_accuracy"] = list(heads.values())
    if results["validation"]:
        line["validation"] = results["validation"]["last"]["validation_top1"]
    # The plan has the costs of the full size where a copy was trained.
    return line | {name: trial.facts.get(name, results[name]) for name in ("macs", "params")}


def write_truth(run: Run, seed: int, finished: Mapping[Trial, Mapping[str, Any]]) -> None:
    """Write truth.jsonl anew with the finished trainings, in the plan's order."""
    lines = (line_of(trial, seed, results) for trial, results in finished.items())
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_bytes(run.path / "truth.jsonl", text.encode())


def truth_results(plan: TruthPlan, finished: Mapping[Trial, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of the run's results.json."""
    accuracies: dict[int, list[float]] = {}
    for trial, results in finished.items():
        accuracies.setdefault(trial.number, []).append(results["test"]["last"]["top1"])
    means = {number: statistics.fmean(several) for number, several in accuracies.items()}
    best = max(means, key=lambda number: means[number])
    facts: dict[str, Any] = {
        "trained": str(plan),
        "networks": len(plan.networks),
        "repeats": plan.repeats,
        "training_seconds": round(math.fsum(results["training_seconds"] for results in finished.values()), 1),
        "mean_accuracy": statistics.fmean(means.values()),
        "min_accuracy": min(means.values()),
        "max_accuracy": max(means.values()),
        "best": {**plan.networks[best - 1], "number": best, "accuracies": accuracies[best]},
    }
    if len(means) > 1:
        facts["std_between_networks"] = statistics.stdev(means.values())
    if plan.repeats > 1:
        within = statistics.fmean(statistics.variance(several) for several in accuracies.values())
        facts["std_between_repeats"] = math.sqrt(within)
        if len(means) > 1 and (between := statistics.variance(means.values())):
            # Chance adds this part to the variance of means; the rest would be there in another truth too.
            facts["reliability"] = max(0.0, 1 - within / plan.repeats / between)
    return facts


def truth_summary(run: Run, results: Mapping[str, Any]) -> str:
    """Return a summary of the results, in words."""
    lines = [
        f"trained {results['trained']}, in {results['training_seconds']:,.0f} s of training",
        f"test top-1 of the last step's weights: mean {results['mean_accuracy']:.2%}, "
        f"from {results['min_accuracy']:.2%} to {results['max_accuracy']:.2%}",
    ]
    if "std_between_networks" in results:
        lines.append(f"standard deviation between networks {results['std_between_networks']:.2%}")
        if "std_between_repeats" in results:
            lines[-1] += f", between trainings of one network {results['std_between_repeats']:.2%}"
        if "reliability" in results:
            lines[-1] += f": {results['reliability']:.0%} of the variance is not chance"
    best = results["best"]
    name = best.get("name") or Architecture(tuple(best["choices"]))
    lines.append(f"best: {name}, {statistics.fmean(best['accuracies']):.2%}")
    lines.append(f"truth {run.path / 'truth.jsonl'}, results {run.results_path}")
    return "\n".join(lines)
