"""Steady-state images/s of retrain_model.py against a plain PyTorch loop, interleaved.

    python benchmarks/training.py --root data/cifar10 --rounds 3
    python benchmarks/training.py --root data/cifar10 --device cuda --precision bf16 --compile --rounds 3

The plain loop is what a good first script looks like: torchvision's dataset and transforms through a
DataLoader with workers, model, SGD, eager fp32. Ours is the script itself, in a process of its own, read
from its metrics.jsonl. One JSON line per round, and the ratio of the medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import CIFAR10

from local_learning.build import build_chain


def main() -> None:
    options = parse()
    ours, plain = [], []
    for round_ in range(options.rounds):
        plain.append(run_plain(options))
        ours.append(run_ours(options))
        say(round=round_, plain=plain[-1], ours=ours[-1])
    middle = statistics.median(ours), statistics.median(plain)
    say(
        case=f"{options.network} {options.width}x, batch {options.batch_size}, {options.device}",
        ours_images_per_second=middle[0],
        plain_images_per_second=middle[1],
        ratio=middle[0] / middle[1],
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of CIFAR-10")
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of the plain loop")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", help="ours only")
    parser.add_argument("--compile", action="store_true", help="ours only")
    parser.add_argument("--compile-mode", default="default", help="ours only")
    return parser.parse_args()


def run_ours(options: argparse.Namespace) -> float:
    """Images per second of the script, between two lines of its metrics."""
    data = ["--data.name", "cifar10", "--data.root", options.root]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "retrain_model.py", "--run", folder, "--device", options.device]
        command += ["--network", options.network, "--width", str(options.width), *data]
        command += ["--precision", options.precision, "--recipe.batch-size", str(options.batch_size)]
        command += ["--recipe.steps", str(options.warm_up + options.steps), "--data.test-size", "100"]
        command += ["--recipe.log-every", str(options.warm_up), "--data.validation", "0"]
        if options.compile:
            command += ["--compile", "--compile-mode", options.compile_mode]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    timed = [line["images_per_second"] for line in lines if line["step"] > options.warm_up]
    return float(statistics.harmonic_mean(timed))


def run_plain(options: argparse.Namespace) -> float:
    """Images per second of the plain loop."""
    device = torch.device(options.device)
    loader = DataLoader(
        plain_images(options.root),
        options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        drop_last=True,
    )
    model = build_chain(options.network, num_classes=10, image_size=32, width=options.width).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    step, began = 0, 0.0
    while True:
        for images, targets in loader:
            if step == options.warm_up:
                synchronise(device)
                began = time.perf_counter()
            if step == options.warm_up + options.steps:
                synchronise(device)
                return float(options.steps * options.batch_size / (time.perf_counter() - began))
            optimizer.zero_grad()
            loss = criterion(model(images.to(device)), targets.to(device))
            loss.backward()
            optimizer.step()
            step += 1


def plain_images(root: str) -> Dataset[tuple[torch.Tensor, int]]:
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        ]
    )
    images: Dataset[tuple[torch.Tensor, int]] = CIFAR10(root, train=True, transform=transform)
    return images


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
