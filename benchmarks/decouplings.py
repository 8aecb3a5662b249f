"""Which decoupling trains better? Each is trained over several seeds by retrain_model.py, and tested.

    python -m benchmarks.decouplings --decoupling dgl=uniform:4:mlp_sr searched=runs/sedona/decoupling-4.json
        --out runs/decouplings --network resnet34 --width 0.125 --data.name cifar10 --data.root DIR

A name without a decoupling ("backprop=") is backpropagation; of several files under one name, "random=a,b,c",
each seed takes its own. Options that are not of this script go to retrain_model.py. Runs that are finished
are not made again, and none is begun twice, so that several of these may work side by side. One JSON line
per name, and a table at the end.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    options, rest = parse()
    for seed in options.seeds:
        for name, decoupling in options.decoupling:
            train(options.out / f"{name}-{seed}", seed, chosen(decoupling, options.seeds.index(seed)), rest)
    rows = [row(name, options) for name, _ in options.decoupling]
    for each in rows:
        print(json.dumps(each))
    print("| decoupling | test top-1 % | spread | each seed | last two together % | busiest module, MACs |")
    print("|---|---|---|---|---|---|")
    for each in rows:
        seeds = ", ".join(f"{value:.2f}" for value in each["top1"])
        print(
            f"| {each['name']} | {each['mean']:.2f} | {each['spread']:.2f} | {seeds} | {each['last_two']} "
            f"| {each['busiest']:,} |"
        )


def chosen(decoupling: str, index: int) -> str:
    several = decoupling.split(",")
    return several[index % len(several)]


def train(folder: Path, seed: int, decoupling: str, rest: list[str]) -> None:
    """One run, unless it is there already or another process is at it."""
    if (folder / "results.json").exists():
        return
    if folder.exists():
        print(f"{folder} is begun and left alone", flush=True)
        return
    line = [sys.executable, "retrain_model.py", "--run", str(folder), "--seed", str(seed), *rest]
    if decoupling:
        line += ["--decoupling", decoupling]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stderr}")
    print(f"{folder}: {results(folder)['test']['last']['top1']:.2%}", flush=True)


def row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the runs of a name found; the network of the last step counts."""
    found = [results(folder) for seed in options.seeds if (folder := options.out / f"{name}-{seed}").exists()]
    top1 = [100 * each["test"]["last"]["top1"] for each in found]
    pairs = [100 * each["test"]["last"].get("last_two_top1", float("nan")) for each in found]
    busiest = max(each.get("busiest_module_macs") or each["macs"] for each in found)
    return {
        "name": name,
        "mean": statistics.mean(top1),
        "spread": statistics.stdev(top1) if len(top1) > 1 else 0.0,
        "top1": top1,
        "last_two": "" if pairs[0] != pairs[0] else f"{statistics.mean(pairs):.2f}",
        "busiest": busiest,
        "cuts": [each.get("cuts", []) for each in found],
        "heads": [each.get("heads", []) for each in found],
    }


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decoupling", nargs="+", required=True, help="NAME=WHAT, as for retrain_model.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    options, rest = parser.parse_known_args()
    options.decoupling = [tuple(each.split("=", 1)) for each in options.decoupling]
    options.out.mkdir(parents=True, exist_ok=True)
    return options, rest


if __name__ == "__main__":
    main()
