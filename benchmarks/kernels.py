"""Training with the project's kernels beside training with torch's functions, interleaved in one process.

    OMP_WAIT_POLICY=passive python -m benchmarks.kernels [--threads 1] [--rounds 7] [--cases macro-32-64]

Each round times some steps of both, one after the other; a line has the median of the rounds' ratios and
their range, images per second, and the memory that a new process needs for a few steps with one of them.
`--operations` times single functions in place of trainings, and gives their errors against float64.
`--sweep N` compares N blocks and layers of random shapes with float64, each in a process of its own, so that
one that dies or hangs is one line; torch's own error stands beside ours.
"""

import argparse
import copy
import functools
import json
import math
import multiprocessing
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.convolutions import in_a_process
from benchmarks.supernet import make
from local_learning.build import build_chain
from supernet.presets import preset
from tools.kernels.maps import SMALLEST
from tools.kernels.modules import use_kernels
from tools.layout import use_channels_last
from tools.run.launch import launch

Step = Callable[[int], Any]
Making = Callable[[str], Step]
"""It makes a step with these kernels."""
SUPERNETS = {"macro": "nas_bench_macro", "mini": "configs/path/mini.toml"}
STRATEGIES = ("spos", "fair", "greedy", "nongreedy")
NETWORKS = ("resnet18", "timm/mobilenetv2_100", "timm/efficientnet_b0")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--cases", nargs="+", default=["macro-32-64", "macro-32-128", "macro-16-128"])
    options.add_argument("--strategies", nargs="+", default=STRATEGIES)
    options.add_argument("--networks", nargs="*", default=NETWORKS)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--steps", type=int, default=4, help="in each round")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--kernels", default="native", choices=("native", "bf16"), help="beside torch's")
    options.add_argument("--operations", action="store_true")
    options.add_argument("--sweep", type=int, default=0)
    asked = options.parse_args()
    launch(device="cpu", precision="fp32", threads=asked.threads, trackers=(), folder=Path())
    if asked.sweep:
        sweep(asked.sweep)
        return
    if asked.operations:
        for line in operations():
            print(json.dumps(line), flush=True)
        return
    for case in asked.cases:
        space, size, batch = case.split("-")
        for strategy in asked.strategies:
            making = functools.partial(stepping, space, int(size), int(batch), strategy)
            print(
                json.dumps(
                    {"case": case, "strategy": strategy, "kernels": asked.kernels}
                    | compared(making, int(batch), asked)
                ),
                flush=True,
            )
    for name in asked.networks:
        making = functools.partial(training, name, 32, 64)
        print(
            json.dumps({"network": name, "image_size": 32, "batch": 64} | compared(making, 64, asked)),
            flush=True,
        )


def stepping(space: str, size: int, batch: int, strategy: str, kernels: str) -> Step:
    """Return a step of a supernet's training."""
    made = make(strategy, preset(SUPERNETS[space], num_classes=10, image_size=size), torch.device("cpu"))
    use_kernels(made.net, kernels)
    images, labels = data(batch, size)
    return lambda step: made.step(images, labels, step)


def training(name: str, size: int, batch: int, kernels: str) -> Step:
    """Return a step of a single network's training by backpropagation."""
    torch.manual_seed(0)
    chain = build_chain(name, num_classes=10, image_size=size)
    use_channels_last(chain)
    use_kernels(chain, kernels)
    optimizer = torch.optim.SGD(chain.parameters(), lr=0.01, momentum=0.9, fused=True)
    images, labels = data(batch, size)

    def step(number: int) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(chain(images), labels))
        optimizer.step()

    return step


def data(batch: int, size: int) -> tuple[Tensor, Tensor]:
    """Return images and labels without a meaning."""
    source = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=source)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(batch) % 10


def compared(making: Making, batch: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Return how two ways to take a step compare, over interleaved rounds."""
    ways = "torch", asked.kernels
    steps = [making(way) for way in ways]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(asked.rounds + 1):
        for each, step in zip(times, steps, strict=True):
            start = time.perf_counter()
            for number in range(asked.steps):
                step(turn * asked.steps + number)
            if turn:
                each.append((time.perf_counter() - start) / asked.steps)
    ratios = [torchs / ours for torchs, ours in zip(*times, strict=True)]
    return {
        "threads": torch.get_num_threads(),
        "images_per_s": [round(batch / statistics.median(each), 1) for each in times],
        "ratio": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
        "peak_mib": [peak(making, way) for way in ways],
    }


def peak(making: Making, kernels: str) -> int:
    """Return how much memory a few steps in a new process need at most, beyond the network's, in MiB."""
    # Not a forked one, which would inherit this process's peak and its freed memory.
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_report_peak, args=(making, kernels, writer))
    process.start()
    writer.close()
    grown = int(reader.recv())
    process.join()
    return grown


def _report_peak(making: Making, kernels: str, writer: Any) -> None:
    launch(device="cpu", precision="fp32", threads=1, trackers=(), folder=Path())
    step = making(kernels)
    before = _kib("VmRSS")
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # or the peak would be that of the process that began this one
    for number in range(8):
        step(number)
    writer.send((_kib("VmHWM") - before) >> 10)


def _kib(name: str) -> int:
    """Return a number of this process's memory, as Linux has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def operations() -> Iterator[dict[str, Any]]:
    """Time single functions forward and backward, and compare their gradients with float64."""
    maps = (
        (64, 96, 32),
        (64, 384, 16),
        (64, 192, 16),
        (64, 768, 8),
        (64, 1536, 4),
        (32, 16, 16),
        (32, 48, 8),
    )
    for batch, chs, side in maps:
        for name, module in {
            "BatchNorm and ReLU": BatchNormAct2d(chs),
            "depthwise 3x3": nn.Conv2d(chs, chs, 3, padding=1, groups=chs, bias=False),
            "depthwise 5x5": nn.Conv2d(chs, chs, 5, padding=2, groups=chs, bias=False),
            "depthwise 5x5, stride 2": nn.Conv2d(chs, chs, 5, stride=2, padding=2, groups=chs, bias=False),
        }.items():
            use_channels_last(module)
            ours = copy.deepcopy(module)
            use_kernels(ours)
            images = torch.randn(batch, chs, side, side).contiguous(memory_format=torch.channels_last)
            exact = gradients(copy.deepcopy(module).double(), images.double().contiguous())
            micros: tuple[list[float], list[float]] = ([], [])
            for _ in range(20):
                for each, way in zip(micros, (module, ours), strict=True):
                    start = time.perf_counter()
                    gradients(way, images)
                    each.append(1e6 * (time.perf_counter() - start))
            found = [statistics.median(each[5:]) for each in micros]
            yield {
                "operation": name,
                "map": [batch, chs, side, side],
                "numbers": images.numel(),
                "torch_us": round(found[0]),
                "ours_us": round(found[1]),
                "ratio": round(found[0] / found[1], 2),
                "errors": [error(gradients(way, images), exact) for way in (module, ours)],
            }


def sweep(count: int) -> None:
    """Print a line for each random case that is wrong, dies or hangs, and one for all."""
    rng, outcomes = random.Random(0), Counter[str]()
    for number in range(count):
        case: dict[str, Any] = {
            "kind": rng.choice(("MBConv", "MBConv", "BatchNorm", "depthwise")),
            "images": rng.choice((2, 3, 8, 17)),
            "chs": rng.choice((1, 2, 3, 5, 8, 13, 16, 24, 33, 48, 96)),
            "side": rng.choice((3, 5, 7)),
            "stride": rng.choice((1, 2)),
            "height": rng.randint(4, 34),
            "width": rng.randint(4, 34),
            "threads": rng.choice((1, 2, 3)),
        }
        found = in_a_process(functools.partial(errors, number, **case), 60)
        if isinstance(found, str):
            outcome = found
        else:
            theirs, ours = found
            outcome = "right" if ours <= max(1e-4, 3 * theirs) else "wrong"
        outcomes[outcome] += 1
        if outcome != "right":
            print(json.dumps({"outcome": outcome, "errors": found} | case), flush=True)
    print(json.dumps({"cases": count} | outcomes), flush=True)


def errors(
    seed: int,
    *,
    kind: str,
    images: int,
    chs: int,
    side: int,
    stride: int,
    height: int,
    width: int,
    threads: int,
) -> tuple[float, float]:
    """Return the errors of torch's gradients and of ours, of the norm of all of them together."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    SMALLEST.update(norm=1, convolution=1)
    made: nn.Module
    if kind == "MBConv":
        made = InvertedResidual(chs, chs, side, stride=stride, exp_ratio=3.0)
    elif kind == "BatchNorm":
        made = BatchNormAct2d(chs)
    else:
        made = nn.Conv2d(chs, chs, side, stride, side // 2, groups=chs, bias=False)
    use_channels_last(made)
    ours, exact = copy.deepcopy(made), copy.deepcopy(made).double()
    use_kernels(ours)
    inputs = torch.randn(images, chs, height, width).contiguous(memory_format=torch.channels_last)
    right = gradients(exact, inputs.double().contiguous())
    size = sum(float(each.square().sum()) for each in right)
    found = []
    for way in (made, ours):
        pairs = zip(gradients(way, inputs), right, strict=True)
        wrong = sum(float((one.double() - two).square().sum()) for one, two in pairs)
        found.append((wrong / size) ** 0.5)
    return found[0], found[1]


def gradients(module: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the gradients of the inputs and the parameters."""
    images = images.detach().requires_grad_()
    outputs = module(images)
    along = data(len(outputs), 1)[1].to(images.dtype).view(-1, 1, 1, 1).expand_as(outputs)
    return list(
        torch.autograd.grad(outputs, [images, *module.parameters()], (outputs.detach().cos() + along))
    )


def error(found: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """Return the largest error, in relation to what is right."""
    pairs = zip(found, exact, strict=True)
    worst = max(float((one.double() - right).norm() / right.norm()) for one, right in pairs)
    return float(f"{worst:.2g}") if math.isfinite(worst) else worst


if __name__ == "__main__":
    main()
