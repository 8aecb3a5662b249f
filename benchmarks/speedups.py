"""How much faster blocks on devices of their own can be at best, from measured times of layers and heads.

    python -m benchmarks.speedups --threads 1
    python -m benchmarks.speedups --device cuda --batch-size 64

In a steady state the slowest block sets the pace: the speed-up over backpropagation on one device is the time
of all layers and the classifier over that of the slowest block with its head. Sending activations, filling
and draining are not in it. Each layer and head is timed alone, forward and backward, as the best of several.
"""

import argparse
import json
from collections.abc import Iterator
from functools import cache

import torch

from local_learning.build import build_chain
from local_learning.cuts.profile import Costs, measure_costs
from local_learning.decoupling import Decoupling
from local_learning.published import is_tied, published

REPORTED = {
    ("resnet101", "sedona"): {2: 1.67, 4: 2.01},
    ("resnet152", "sedona"): {2: 1.61, 4: 2.02},
    ("resnet101", "uniform"): {2: 1.42, 4: 1.92},
    ("resnet152", "uniform"): {2: 1.51, 4: 2.23},
}
"""SEDONA's Table 3, measured on that many GPUs; uniform cuts are DGL's."""
DGL_HEAD = "mlp_sr"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--networks", nargs="+", default=["resnet101", "resnet152"])
    options.add_argument("--width", type=float, default=1.0)
    options.add_argument("--image-size", type=int, default=224)
    options.add_argument("--classes", type=int, default=1000)
    options.add_argument("--batch-size", type=int, default=4)
    options.add_argument("--blocks", type=int, nargs="+", default=[2, 4, 8, 16])
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=1)
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    for name in asked.networks:
        for line in of_network(name, asked):
            print(json.dumps(line), flush=True)


def of_network(name: str, asked: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Lines of all cuts and numbers of blocks."""
    chain = build_chain(name, num_classes=asked.classes, image_size=asked.image_size, width=asked.width)
    chain = chain.to(asked.device)

    @cache
    def costs(head: str) -> Costs:
        size, batch = asked.image_size, asked.batch_size
        return measure_costs(chain, head, asked.classes, size, by="time", batch_size=batch)

    trunk = costs("aux1")
    whole = sum(trunk.layers) + trunk.classifier
    for count in asked.blocks:
        found = {
            "sedona": published(name, count),
            "uniform": Decoupling.uniform(chain.num_layers, count, DGL_HEAD),
        }
        for head in ("aux1", DGL_HEAD):
            of = costs(head)
            found[f"balanced, {head}"] = Decoupling.balanced(
                trunk.layers, of.heads, trunk.classifier, count, head
            )
        for label, decoupling in found.items():
            ends = [*decoupling.cuts, chain.num_layers]
            starts = [0, *decoupling.cuts]
            behind = [costs(head).heads[cut - 1] for cut, head in zip(ends, decoupling.heads, strict=False)]
            behind.append(trunk.classifier)
            layers = [sum(trunk.layers[start:end]) for start, end in zip(starts, ends, strict=True)]
            blocks = [own + head for own, head in zip(layers, behind, strict=True)]
            yield {
                "network": name,
                "blocks": count,
                "cuts": label,
                "at": list(decoupling.cuts),
                "tied": label == "sedona" and is_tied(name, count),
                "speedup": round(whole / max(blocks), 2),
                "without_heads": round(whole / max([*layers[:-1], blocks[-1]]), 2),
                "reported": REPORTED.get((name, label), {}).get(count),
                "share_of_heads": round(sum(behind[:-1]) / sum(blocks), 3),
            }


if __name__ == "__main__":
    main()
