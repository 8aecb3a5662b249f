"""All ways to train in pieces on real data: same network, recipe, budget and seeds; accuracy, memory, MACs.

    python benchmarks/rules.py --root data/cifar10 --out runs/rules --at-once 2 --recipe.lr 0.01
    python benchmarks/rules.py --root data/cifar10 --out runs/64k --steps 64000 --device cuda --precision bf16

Every cell is a run of retrain_model.py in a folder of its own, so that the benchmark goes on where it was
stopped; finished ones are only read. Prints one JSON line per method.
"""

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from local_learning.rules.engine import Engine, Part, Rule
from retrain.config import RetrainConfig
from retrain.networks import choose_decoupling, make_net
from supernet.network.network import Network
from tools.cost import saved_activation_bytes
from tools.images.datasets import load_data
from tools.options.config import of_run
from tools.options.plugins import call

METHODS = {
    "backprop": [],
    "DGL": ["--decoupling", "uniform:4:mlp_sr"],
    "PredSim": ["--decoupling", "uniform:4:predsim", "--recipe.label-smoothing", "0"],
    "InfoPro": ["--decoupling", "uniform:4:infopro"],
    "SEDONA, published cuts": ["--decoupling", "published:4"],
    "Features Replay": ["--decoupling", "uniform:4:linear", "--rule", "replay"],
    # With one h-step, 2 * penalty * step is the multiple of backprop's gradient that block 1 gets: here 1.
    "BlockProp, K=2": [
        *("--decoupling", "uniform:2:linear", "--rule", "gluing"),
        *("--gluing.penalty", "50", "--gluing.step", "0.01"),
    ],
    "GN-DGL, G=4": ["--decoupling", "uniform:4:conv1c2f", "--groups", "4"],
}


def main() -> None:
    options = parse()
    chosen = {name: METHODS[name] for name in options.methods}
    cells = [(name, seed) for seed in options.seeds for name in chosen]
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda cell: train(cell[0], cell[1], options), cells))
    for name in chosen:
        report(name, options)


def train(name: str, seed: int, options: argparse.Namespace) -> None:
    """One run to its end."""
    length = (
        ["--recipe.steps", str(options.steps)] if options.steps else ["--recipe.epochs", str(options.epochs)]
    )
    subprocess.run(
        [
            *(sys.executable, "retrain_model.py", "--run", str(folder(name, seed, options))),
            *("--network", options.network, "--width", str(options.width), "--seed", str(seed)),
            *("--data.name", "cifar10", "--data.root", options.root, *length),
            *(
                "--device",
                options.device,
                "--precision",
                options.precision,
                "--threads",
                str(options.threads),
            ),
            *METHODS[name],
            *options.recipe,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def report(name: str, options: argparse.Namespace) -> None:
    """Mean and spread over the seeds, and what a step keeps in memory."""
    runs = [folder(name, seed, options) for seed in options.seeds]
    results: list[dict[str, Any]] = [json.loads((run / "results.json").read_text()) for run in runs]
    config = of_run(RetrainConfig, (runs[0] / "config.toml").read_text(), source=str(runs[0]))
    last = [result["test"]["last"] for result in results]
    line: dict[str, Any] = {"method": name, "seeds": len(runs)}
    for key in ("top1", "last_two_top1", "layerwise_top1"):
        if key in last[0]:
            line[key] = spread([100 * each[key] for each in last])
    line["heads_top1"] = [
        round(100 * statistics.mean(each[key] for each in last), 2)
        for key in last[0]
        if key.startswith("heads_")
    ]
    line["busiest_module_macs"] = results[0].get("busiest_module_macs", results[0]["macs"])
    line["macs"] = results[0]["macs"]
    line["seconds"] = round(statistics.mean(result["training_seconds"] for result in results))
    line |= memory(config)
    print(json.dumps(line), flush=True)


def memory(config: RetrainConfig) -> dict[str, float]:
    """MiB at the peak of a step: what autograd keeps, and what the rule keeps from step to step."""
    data = load_data(config.data, config.seed)
    network = Network.chosen(config)
    chain = network.chain(data.num_classes, data.image_size, data.channels)
    net = make_net(config, network, chain, choose_decoupling(config, network, chain, data), data).train()
    engine = Engine(net, [torch.optim.SGD(block.parameters(), lr=1e-3) for block in net.blocks])
    rule: Rule = call(config.rule_row.maker, engine, options=config.gluing)
    rows = config.recipe.batch_size
    part = Part(torch.randn(rows, 3, 32, 32), torch.randint(10, (rows,)), torch.arange(rows))
    for _ in range(len(net.blocks)):
        rule.step([part])
    saved = saved_activation_bytes(lambda: rule.step([part]))
    return {"saved_mib": round(saved / 2**20, 1), "rule_mib": round(held(rule.state_dict()) / 2**20, 1)}


def held(state: object) -> int:
    """Bytes of all tensors in nested lists and dicts."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return sum(held(value) for value in values)


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def folder(name: str, seed: int, options: argparse.Namespace) -> Path:
    plain = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return Path(options.out) / f"{plain}-{seed}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of CIFAR-10")
    parser.add_argument("--out", required=True, help="folder for the runs")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--network", default="vgg19", help="vgg19 or resnet50 have published cuts")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--steps", type=int, default=0, help="in place of epochs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    # Whatever else is on the command line goes to every run.
    options, rest = parser.parse_known_args()
    options.recipe = rest
    return options


if __name__ == "__main__":
    main()
