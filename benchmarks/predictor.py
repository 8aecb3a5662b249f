"""How well all networks are ranked from a few trainings, by a predictor of their accuracies.

    python -m benchmarks.predictor --truth nas-bench-macro_cifar10.json --half b
    python -m benchmarks.predictor --truth configs/demo/truth.jsonl --space configs/demo/mini.toml
        --sizes 20 30 50

Each draw takes networks at random, or by --design the most telling ones of a random half, and one training
of each. The networks not taken are ranked. The truth is the mean of their trainings. Settings of the
predictor were chosen on half a of the networks, by a hash of their strings.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from search.predictor.design import first_networks
from search.predictor.model import Predictor
from search.report.tables import NetworkTable, read_table
from supernet.additive import units
from supernet.network.documents import find_space
from supernet.space import Architecture
from tools.ranking import precision_at, regret_at, tau_b
from tools.seeding import numpy_stream


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--space", default="nas_bench_macro")
    parser.add_argument("--half", choices=("a", "b", "both"), default="both")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 30, 50, 100])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--design", action="store_true")
    options = parser.parse_args()
    space = find_space(options.space, num_classes=10, image_size=32)
    table = read_table(options.truth, space, option="truth")
    networks = [each for each in table.values if options.half in ("both", half(each))]
    relus = units(space)
    truth = [np.mean(table.values[each]) for each in networks]
    tau = tau_b([relus.of(each) for each in networks], truth)
    print(json.dumps({"networks": len(networks), "tau_of_units": round(tau, 3)}), flush=True)
    predictor = Predictor(space)
    for size in options.sizes:
        began = time.perf_counter()
        found = [
            one_draw(predictor, table, networks, size, seed, options.design) for seed in range(options.draws)
        ]
        means = {name: round(float(np.mean([each[name] for each in found])), 3) for name in found[0]}
        spread = round(float(np.std([each["tau"] for each in found], ddof=1)), 3)
        seconds = round((time.perf_counter() - began) / options.draws, 2)
        print(json.dumps({"trained": size, **means, "tau_sd": spread, "seconds": seconds}), flush=True)


def half(network: Architecture) -> str:
    """The half of the networks that this one is in."""
    return "ab"[hashlib.sha256(str(network).encode()).digest()[0] % 2]


def one_draw(
    predictor: Predictor,
    table: NetworkTable,
    networks: Sequence[Architecture],
    size: int,
    seed: int,
    design: bool,
) -> dict[str, float]:
    """What one choice of networks gives."""
    rng = numpy_stream(seed, "draw", size)
    order = [networks[index] for index in rng.permutation(len(networks))]
    if design:
        taken = first_networks(predictor.encoding, order[: len(order) // 2], size, seed=seed)
    else:
        taken = order[:size]
    rest = [each for each in order if each not in set(taken)]
    once = {each: table.values[each][rng.integers(len(table.values[each]))] for each in order}
    predictor.fit(taken, [once[each] for each in taken])
    means, _ = predictor.predict(rest)
    lows, highs = predictor.intervals(rest)
    truth = np.array([np.mean(table.values[each]) for each in rest])
    left_out, tau = predictor.leave_one_out().value, tau_b(means, truth)
    in_points = 1 if truth.max() > 1 else 100
    return {
        "tau": tau,
        "leave_one_out": left_out,
        "once": tau_b(means, [once[each] for each in rest]),
        "covered": float(
            np.mean([low <= once[each] <= high for low, each, high in zip(lows, rest, highs, strict=True)])
        ),
        "regret_at_10": in_points * regret_at(means, truth, 10),
        "precision_at_40": precision_at(means, truth, 40) if len(rest) >= 40 else float("nan"),
    }


if __name__ == "__main__":
    main()
