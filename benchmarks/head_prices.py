"""What each kind of head costs in accuracy and in work, at each cut of a network: trainings of make_truth.py.

    python -m benchmarks.head_prices --run runs/head-prices --repeats 5 --jobs 2
    python -m benchmarks.head_prices --run runs/more --cuts 2 --heads aug1 aug2@0.5 -- --recipe.lr 0.05

Every cut is trained with every kind of head that fits it, and the network as a whole, all once before any of
them is trained again. Options behind -- go to make_truth.py. A run that is cut off goes on. One JSON line for
each head at each cut says how many points it loses to the whole network, with a 95 % interval over the
seeds, which pairs trainings of one seed; what the head itself reaches; and its work and memory. --picture
draws the points lost over the work.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
from scipy.stats import t as student

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from local_learning.decoupling import Decoupling, save_decoupling
from local_learning.later.request import parse_later

HEADS = (
    *("linear", "linear4", "aux1", "aux2", "aux3", "aux4", "mlp_sr", "aug1", "aug2", "aug3", "aug:all"),
    *("aug1@0.5", "aug:all@0.5", "aug:all/pool", "aug:all@0.5/pool"),
)
WHOLE = "whole"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--run", type=Path, required=True)
    options.add_argument("--config", default="configs/demo/retrain.toml")
    options.add_argument("--space", default="configs/demo/mini.toml")
    options.add_argument("--choices", type=int, nargs="+", default=[1, 2, 1, 1, 1])
    options.add_argument("--layers", type=int, default=4, help="of that architecture")
    options.add_argument("--cuts", type=int, nargs="+", default=[1, 2, 3])
    options.add_argument("--heads", nargs="+", default=HEADS)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--jobs", type=int, default=1)
    options.add_argument("--picture", type=Path, help="PNG to write")
    options.add_argument("others", nargs="*", help="options of make_truth.py")
    asked = options.parse_args()
    asked.run.mkdir(parents=True, exist_ok=True)
    named = write_cuts(asked)
    architecture = asked.run / "architecture.json"
    architecture.write_text(
        json.dumps(
            {"format": "cleave/architecture", "version": 1, "space": asked.space, "choices": asked.choices}
        )
    )
    subprocess.run(
        [
            *(sys.executable, "make_truth.py", "--config", asked.config, "--architecture", str(architecture)),
            *("--decouplings", *named, "--repeats", str(asked.repeats), "--jobs", str(asked.jobs)),
            *("--run", str(asked.run / "truth"), *asked.others),
        ],
        check=True,
    )
    lines = prices(asked.run / "truth", named)
    for line in lines:
        print(json.dumps(line))
    if asked.picture:
        draw(lines, asked.picture)


def write_cuts(asked: argparse.Namespace) -> dict[str, tuple[int, str]]:
    """Write a file for each head at each cut that it fits, and return what each of them is."""
    named: dict[str, tuple[int, str]] = {}
    whole = asked.run / f"{WHOLE}.json"
    save_decoupling(whole, Decoupling((), ()))
    named[str(whole)] = (0, WHOLE)
    for cut in asked.cuts:
        for head in asked.heads:
            later = parse_later(head)
            if later is not None and later.depth > 1 and later.depth >= asked.layers - cut:
                continue  # as aug:all there, or too deep
            path = asked.run / f"after-{cut}-{head.replace('/', '_').replace(':', '_')}.json"
            save_decoupling(path, Decoupling((cut,), (head,)))
            named[str(path)] = (cut, head)
    return named


def prices(truth: Path, named: dict[str, tuple[int, str]]) -> list[dict[str, Any]]:
    """Return a line for each head at each cut, and one for the whole network."""
    results: dict[tuple[int, str], dict[int, dict[str, Any]]] = {}
    for number, place in enumerate(named.values(), start=1):
        for path in sorted((truth / "trainings").glob(f"{number:04d}-*/results.json")):
            seed = int(path.parent.name.rpartition("-")[2])
            results.setdefault(place, {})[seed] = json.loads(path.read_text())
    whole = {seed: 100 * each["test"]["last"]["top1"] for seed, each in results[0, WHOLE].items()}
    lines: list[dict[str, Any]] = [{"head": WHOLE, "accuracy": round(statistics.fmean(whole.values()), 2)}]
    for (cut, head), by_seed in results.items():
        if head == WHOLE:
            continue
        tested = {seed: each["test"]["last"] for seed, each in by_seed.items()}
        lost = [whole[seed] - 100 * each["top1"] for seed, each in tested.items()]
        cost = next(iter(by_seed.values()))["head_costs"][0]
        lines.append(
            {
                **{"cut": cut, "head": head, "lost": round(statistics.fmean(lost), 2), "half": half(lost)},
                "own": round(statistics.fmean(100 * each["heads_top1/1"] for each in tested.values()), 2),
                **{name: cost[name] for name in ("macs", "params", "kept_bytes")},
                **{name: round(cost[name], 3) for name in ("of_above", "of_block")},
                "seeds": len(lost),
            }
        )
    return lines


def draw(lines: list[dict[str, Any]], picture: Path) -> None:
    """Draw the points lost over the heads' work, a panel for each cut."""
    cuts = sorted({line["cut"] for line in lines if "cut" in line})
    figure, panels = plt.subplots(
        1, len(cuts), figsize=(4 * len(cuts), 3.6), sharey=True, layout="constrained", squeeze=False
    )
    for cut, axes in zip(cuts, panels[0], strict=True):
        for line in (line for line in lines if line.get("cut") == cut):
            place = line["of_above"], line["lost"]
            axes.errorbar(*place, yerr=line["half"], fmt="o", color="tab:blue", ecolor="lightgrey", capsize=2)
            top = line["of_above"], line["lost"] + (line["half"] or 0)
            axes.annotate(
                line["head"],
                top,
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=8,
                rotation=60,
                annotation_clip=True,
            )
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set(title=f"cut after layer {cut}", xlabel="MACs of the head / MACs above the cut")
        axes.set(xlim=(-0.05, 1.2), ylim=(-10, 50))
    panels[0][0].set_ylabel("points lost to the whole network")
    figure.savefig(picture, dpi=110)


def half(values: list[float]) -> float | None:
    """Return half the width of the mean's 95 % interval."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return round(float(student.ppf(0.975, len(values) - 1)) * error, 2)


if __name__ == "__main__":
    main()
