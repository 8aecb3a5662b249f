"""Accuracy over training, from the metrics of finished runs: a table and a picture.

python benchmarks/curve.py runs/cifar10-resnet18 --picture docs/images/cifar10-resnet18.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from tools.run.meters import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--picture", type=Path, required=True, help="PNG to write")
    options = parser.parse_args()
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for run in options.runs:
        lines = read_metrics(run / "metrics.jsonl")
        points = [(line["step"], line["validation_top1"]) for line in lines if "validation_top1" in line]
        speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
        results = json.loads((run / "results.json").read_text())
        print(f"{run}: {sum(speeds) / len(speeds):,.0f} images/s, {results['training_seconds']:,.0f} s")
        print(f"  test top-1 {results['test']['last']['top1']:.2%} after the last step")
        for step, top1 in points:
            print(f"  | {step} | {top1:.2%} |")
        axes.plot(*zip(*points, strict=True), marker=".", label=run.name)
    axes.set(xlabel="step", ylabel="validation top-1")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(options.picture, dpi=130)


if __name__ == "__main__":
    main()
