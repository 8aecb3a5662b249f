"""Finished supernet runs side by side: what each cost, how its probes do, how alike its modules are.

python -m benchmarks.strategies runs/spos runs/fair runs/greedy runs/nongreedy \
    [--picture curves.png]

How well they rank networks, rank_report.py says.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from supernet.train.config import SupernetConfig
from tools.options.config import of_run
from tools.run.meters import read_metrics


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("runs", nargs="+", type=Path)
    options.add_argument("--picture", type=Path)
    asked = options.parse_args()
    if asked.picture:
        draw(asked.runs, asked.picture)
    for run in asked.runs:
        print(json.dumps(told(run)), flush=True)


def told(run: Path) -> dict[str, Any]:
    """What the run itself recorded."""
    results = json.loads((run / "results.json").read_text())
    config = _config(run)
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "validation_top1" in line]
    return {
        "strategy": config.strategy,
        "steps": results["steps"],
        "batch": config.recipe.batch_size,
        "seconds": results["training_seconds"],
        "updates_of_an_op": [min(map(min, results["updates"])), max(map(max, results["updates"]))],
        "objective": config.objective,
        "saved_mib": round((results["saved_bytes_per_step"] or 0) / 2**20, 1),
        "probes_top1": [round(100 * line["validation_top1"], 1) for line in lines],
        "best_probe": round(
            100 * max(value for name, value in lines[-1].items() if name.startswith("validation_top1/")), 1
        ),
        "similarity": [round(line["similarity"], 3) for line in lines if "similarity" in line],
        "similarity_of_layer_1": [round(line["similarity/1"], 3) for line in lines if "similarity" in line],
    }


def draw(runs: list[Path], picture: Path) -> None:
    """Courses of the runs over the share of their length: loss, probes, and likeness of modules."""
    figure, (losses, accuracies, likeness) = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for run in runs:
        lines = read_metrics(run / "metrics.jsonl")
        config, length = _config(run), lines[-1]["step"]
        name = f"{config.strategy}, {config.objective.replace('_', '-')}"
        trained = [line for line in lines if "loss" in line]
        judged = [line for line in lines if "validation_top1" in line]
        losses.plot(
            [line["step"] / length for line in trained], [line["loss"] for line in trained], label=name
        )
        where = [line["step"] / length for line in judged]
        accuracies.plot(where, [100 * line["validation_top1"] for line in judged], marker="o", label=name)
        likeness.plot(where, [line.get("similarity") for line in judged], marker="o", label=name)
    losses.set(title="training loss at the tail", xlabel="share of the training", ylim=(1, 3))
    accuracies.set(title="mean top-1 of the probes, %", xlabel="share of the training")
    likeness.set(title="mean cosine between modules", xlabel="share of the training")
    likeness.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=100)
    plt.close(figure)


def _config(run: Path) -> SupernetConfig:
    return of_run(SupernetConfig, (run / "config.toml").read_text(), source=str(run))


if __name__ == "__main__":
    main()
