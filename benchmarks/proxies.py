"""Scores without training on NAS-Bench-Macro: what they cost, and how well they rank beside mere counts.

python -m benchmarks.proxies --truth nas-bench-macro_cifar10.json --data-root DIR [--networks 300]

Each seed draws the supernet's weights, the images, and the networks if not all are scored.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.predictor.proxies import nwot
from search.report.statistics import with_baselines
from search.report.tables import read_table
from supernet.presets import preset
from supernet.supernet import Supernet
from tools.chance import Numbers
from tools.images.augment import Normalise
from tools.images.datasets import Data, load_data
from tools.images.images import ArrayImages
from tools.images.options import DataConfig
from tools.layout import use_channels_last
from tools.ranking import compare, kendall_tau, partial_tau
from tools.seeding import numpy_stream

SPACE = preset("nas_bench_macro", num_classes=10, image_size=32)
COUNTS = ("ReLU units", "roots of units")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--truth", type=Path, required=True)
    options.add_argument("--data-root", required=True)
    options.add_argument("--networks", type=int, default=0, help="0 scores all")
    options.add_argument("--images", type=int, default=64)
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = options.parse_args()
    torch.set_num_threads(1)
    table = read_table(asked.truth, SPACE, option="truth")
    data = load_data(DataConfig(name="cifar10", root=asked.data_root), 0)
    every = sorted(table.values, key=lambda network: network.choices)
    for seed in asked.seeds:
        drawn = numpy_stream(seed, "networks").permutation(len(every))[: asked.networks or len(every)]
        networks = [every[index] for index in sorted(drawn)]
        torch.manual_seed(seed)
        net = Supernet(SPACE)
        use_channels_last(net)
        images = images_of(data, asked.images, seed)
        wall, start = time.perf_counter(), time.process_time()
        scores = nwot(net, images, networks)
        seconds = {"cpu": time.process_time() - start, "wall": time.perf_counter() - wall}
        repeats = table.repeats(networks)
        scored = with_baselines(SPACE, networks, repeats, {"NASWOT": np.array(scores)}, seed=seed)
        told = {"seed": seed, "networks": len(networks), "images": asked.images}
        print(json.dumps(told | {name: round(value, 1) for name, value in seconds.items()}), flush=True)
        counts = {name: scored.scores[name] for name in COUNTS}
        for name, values in scored.scores.items():
            line = {"seed": seed, "score": name} | worth(values, counts, scored.mean)
            print(json.dumps(line), flush=True)


def images_of(data: Data, count: int, seed: int) -> Tensor:
    """Images of the training part, normalised."""
    assert isinstance(data.train, ArrayImages)
    drawn = numpy_stream(seed, "images").permutation(len(data.train))[:count]
    normalise = Normalise(32, mean=data.mean, std=data.std, device=torch.device("cpu"))
    return normalise(data.train.images[torch.from_numpy(drawn)])


def worth(values: Numbers, counts: Mapping[str, Numbers], truth: Numbers) -> dict[str, Any]:
    """Tau, how far it is above that of counts, and what is left of it given them."""
    tau = kendall_tau(values, truth)
    told: dict[str, Any] = {"tau": rounded(tau.value, tau.low, tau.high)}
    for name, count in counts.items():
        above = compare(values, count, truth)
        told[f"above {name}"] = rounded(above.value, above.low, above.high)
        told[f"given {name}"] = rounded(partial_tau(values, truth, count))
    return told


def rounded(*values: float) -> list[float]:
    return [round(value, 3) for value in values]


if __name__ == "__main__":
    main()
