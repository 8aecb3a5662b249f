"""Step time, images per second and activations kept, of all strategies in one interleaved run.

python -m benchmarks.supernet [--space lwsl_table1] [--batch-size 16] [--rounds 5] [--device cuda] [--compile]

The honest alternative to fair is the same m paths as m steps of spos. Paths of spos itself may skip layers
where the space allows it; so its mean step is cheaper than one of those paths.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from supernet.options import STRATEGIES
from supernet.paths import SinglePath, StrictFairness
from supernet.presets import preset
from supernet.space import Architecture, Space
from supernet.strategies import make_strategy
from supernet.strategy import Strategy
from supernet.supernet import Supernet
from supernet.train.run import compile_parts
from tools.cost import saved_activation_bytes
from tools.layout import use_channels_last
from tools.optim import start_momentum
from tools.run.launch import launch

DEFAULTS = {"lwsl_table1": (224, 1000), "lwsl_fit": (224, 1000), "cream": (224, 1000)}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--space", default="lwsl_table1")
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--memory-steps", type=int, default=100)
    options.add_argument("--device", default="cpu")
    options.add_argument("--compile", action="store_true")
    options.add_argument("--warm-up", type=int, default=50, help="steps before timing what is compiled")
    asked = options.parse_args()

    image_size, num_classes = DEFAULTS.get(asked.space, (32, 10))
    space = preset(asked.space, num_classes=num_classes, image_size=image_size)
    # As the scripts do it, threads and memory allocator included.
    device = launch(device=asked.device, precision="fp32", threads=0, trackers=(), folder=Path()).device
    shape = (asked.batch_size, 3, image_size, image_size)
    images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(num_classes, (asked.batch_size,), device=device)

    strategies: dict[str, Strategy] = {name: make(name, space, device) for name in STRATEGIES}
    fair = strategies["fair"]
    assert isinstance(fair, StrictFairness)
    strategies["the paths of fair, one by one"] = alone = make("spos", space, device)
    assert isinstance(alone, SinglePath)
    each = len(fair.paths(0))
    follow(alone, fair, each)

    saved = {
        name: kept(strategy, images, targets, asked.memory_steps) for name, strategy in strategies.items()
    }
    if asked.compile:
        for name in STRATEGIES:
            strategies[f"{name}, compiled"] = compiled = make(name, space, device)
            compile_parts(compiled.net, "default")
            for step in range(asked.warm_up):  # until every candidate has been seen, also as a partner
                compiled.step(images, targets, -1 - step)
    times: dict[str, list[float]] = {name: [] for name in strategies}
    for turn in range(asked.rounds + 1):
        for name, strategy in strategies.items():
            steps = each if isinstance(strategy, SinglePath) else 1
            seconds = timed(strategy, images, targets, turn * steps, steps)
            if turn:
                times[name].append(seconds)

    single = statistics.median(times["spos"]) / each
    for name, strategy in strategies.items():
        steps = each if isinstance(strategy, SinglePath) else 1
        seconds = statistics.median(times[name]) / steps
        print(
            json.dumps(
                {
                    "space": asked.space,
                    "strategy": name,
                    "batch": asked.batch_size,
                    "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                    "threads": torch.get_num_threads(),
                    "step_ms": round(1e3 * seconds, 1),
                    "spread_ms": [
                        round(1e3 * value / steps, 1) for value in (min(times[name]), max(times[name]))
                    ],
                    "images_per_s": round(asked.batch_size / seconds, 1),
                    "step_over_spos": round(seconds / single, 3),
                    **kept_shares(name, saved),
                }
            ),
            flush=True,
        )
    ratios = [
        one / other for one, other in zip(times["fair"], times["the paths of fair, one by one"], strict=True)
    ]
    print(json.dumps({"fair over its paths one by one": round(statistics.median(ratios), 3)}))
    ratios = [one / other for one, other in zip(times["nongreedy"], times["fair"], strict=True)]
    print(json.dumps({"nongreedy over fair": round(statistics.median(ratios), 3)}))


def kept_shares(name: str, saved: dict[str, float]) -> dict[str, float]:
    """Activations kept, and their shares of a path's."""
    if name not in saved:
        return {}
    return {
        "saved_mib_per_image": round(saved[name] / 2**20, 2),
        "saved_over_spos": round(saved[name] / saved["spos"], 4),
        "saved_over_paths_without_skip": round(saved[name] / saved["the paths of fair, one by one"], 4),
    }


def make(name: str, space: Space, device: torch.device) -> Strategy:
    """A strategy on a supernet of its own, all alike."""
    torch.manual_seed(0)
    net = Supernet(space).to(device)
    use_channels_last(net)

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=4e-5, fused=True)
        start_momentum(made)
        return made

    return make_strategy(name, net, optimizer=optimizer, seed=0)


def follow(alone: SinglePath, fair: StrictFairness, each: int) -> None:
    """Let single paths be those of fair, in turn."""

    def path(step: int) -> Architecture:
        return fair.paths(step // each)[step % each]

    alone.path = path  # type: ignore[method-assign]


def kept(strategy: Strategy, images: Tensor, targets: Tensor, steps: int) -> float:
    """The mean over steps of the most bytes that autograd held, for one image.

    Single paths differ; one step of the others is nearly like another.
    """
    few = images[:2].clone()
    count = steps if isinstance(strategy, SinglePath) else max(1, steps // 10)
    found = [
        saved_activation_bytes(
            lambda step=step: strategy.step(few, targets[:2], step),  # type: ignore[misc]
            leaves=True,
        )
        for step in range(count)
    ]
    return statistics.fmean(found) / len(few)


def timed(strategy: Strategy, images: Tensor, targets: Tensor, first: int, count: int) -> float:
    """Seconds of some steps."""
    if images.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for step in range(first, first + count):
        strategy.step(images, targets, step)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
