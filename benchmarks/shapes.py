"""The embedded data set: how fast it is generated, and whether it tells networks apart.

    python benchmarks/shapes.py

One JSON line each for the generation, a linear classifier, a multi-layer perceptron and ResNet-18 at 0.25x
width, all trained on the same 9,000 of the default 10,000 images.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn

from local_learning.build import build_chain
from tools.images.datasets import Data, load_data
from tools.images.loaders import eval_batches, make_train_loader
from tools.images.options import DataConfig
from tools.images.shapes import generate

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=700)
    arguments = parser.parse_args()
    time_generation()
    config = DataConfig(name="shapes")
    data = load_data(config, SEED)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * data.image_size**2, data.num_classes))
    train("linear", linear, data, config, lr=0.002, steps=arguments.steps)
    for name, width in (("mlp", 1.0), ("resnet18", 0.25)):
        torch.manual_seed(SEED)
        chain = build_chain(name, num_classes=data.num_classes, image_size=data.image_size, width=width)
        train(f"{name} {width}x", chain, data, config, lr=0.1, steps=arguments.steps)


def time_generation(num_images: int = 20_000) -> None:
    start = time.perf_counter()
    generate(num_images, num_classes=10, image_size=32, seed=SEED, split="train")
    seconds = time.perf_counter() - start
    tell("generation", images_per_second=round(num_images / seconds), image_size=32)


def train(case: str, net: nn.Module, data: Data, config: DataConfig, *, lr: float, steps: int) -> None:
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = make_train_loader(data.train, data, config, batch_size=128, seed=SEED, device="cpu")
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    start = time.perf_counter()
    for batch in loader.batches(0, steps):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(batch.images), batch.targets))
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    net.eval()
    with torch.inference_mode():
        correct = sum(
            int((net(batch.images).argmax(1) == batch.targets).sum())
            for batch in eval_batches(data.test, data, config, batch_size=500, device="cpu")
        )
    tell(case, test_accuracy=correct / len(data.test), seconds=round(seconds, 1), steps=steps)


def tell(case: str, **values: float) -> None:
    print(json.dumps({"benchmark": "shapes", "case": case, **values}), flush=True)


if __name__ == "__main__":
    main()
