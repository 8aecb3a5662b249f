"""Finished supernet runs side by side: what each cost, how its probes do, how alike its modules are.

python -m benchmarks.strategies runs/spos runs/fair runs/greedy runs/nongreedy \
    [--picture curves.png --data-root DIR --truth nas-bench-macro_cifar10.json --networks 100]

With a truth table of NAS-Bench-Macro also Kendall's tau-b between it and the accuracies that the supernet
gives so many random networks, each with BatchNorm statistics of its own, on fixed validation images.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from scipy.stats import kendalltau

from supernet.calibrate import calibrate
from supernet.config import SupernetConfig
from supernet.sampling import sample, stream
from supernet.space import Architecture, Space
from supernet.storage import load_supernet
from tools.config import from_toml
from tools.datasets import load_data, stratified
from tools.loaders import eval_batches
from tools.meters import read_metrics


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("runs", nargs="+", type=Path)
    options.add_argument("--picture", type=Path)
    options.add_argument("--data-root", default="")
    options.add_argument("--truth", type=Path)
    options.add_argument("--networks", type=int, default=100)
    options.add_argument("--calibration-images", type=int, default=512)
    options.add_argument("--validation-images", type=int, default=1000)
    asked = options.parse_args()
    if asked.picture:
        draw(asked.runs, asked.picture)
    for run in asked.runs:
        line = told(run)
        if asked.truth:
            line |= ranked(run, asked)
        print(json.dumps(line), flush=True)


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


def ranked(run: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Kendall's tau-b of the supernet's scores, of MACs and of depth, on the same networks."""
    truth = json.loads(asked.truth.read_text())
    net = load_supernet(run)
    config = _config(run)
    data = load_data(replace(config.data, root=asked.data_root), config.seed)
    train, validation = (
        split.subset(stratified(split.labels, count, 0, "scores")[0])
        for split, count in (
            (data.train, asked.calibration_images),
            (data.validation, asked.validation_images),
        )
    )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    calibration = list(eval_batches(train.subset(order), data, config.data, batch_size=128, device="cpu"))
    held = list(eval_batches(validation, data, config.data, batch_size=250, device="cpu"))
    networks = _networks(net.space, asked.networks)
    scores = []
    for architecture in networks:
        chain = net.extract(architecture).eval()
        calibrate(chain, calibration)
        with torch.inference_mode():
            hits = sum(int((chain(batch.images).argmax(1) == batch.targets).sum()) for batch in held)
        scores.append(hits / len(validation))
    real = [truth[str(architecture)]["mean_acc"] for architecture in networks]
    by_name = {
        "tau": scores,
        "tau_of_macs": [net.space.macs(architecture) for architecture in networks],
        "tau_of_depth": [sum(choice != 0 for choice in each.choices) for each in networks],
    }
    taus = {name: round(float(kendalltau(values, real).statistic), 3) for name, values in by_name.items()}
    return taus | {"networks": len(networks), "scores": [min(scores), max(scores)]}


def _networks(space: Space, count: int) -> list[Architecture]:
    """So many different random networks."""
    rng, found = stream(0, "networks"), dict[Architecture, None]()
    while len(found) < min(count, space.num_networks):
        found[space.canonical(sample(space, rng))] = None
    return list(found)


def _config(run: Path) -> SupernetConfig:
    return from_toml(SupernetConfig, (run / "config.toml").read_text(), source=str(run))


if __name__ == "__main__":
    main()
