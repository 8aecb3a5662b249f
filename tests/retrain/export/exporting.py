"""Trained networks for the tests of exporting, without a run around them."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retrain.config import RetrainConfig
from supernet.network.documents import space_to
from supernet.space import Architecture, Space
from supernet.supernet import build_architecture
from tools.images.datasets import load_data
from tools.images.loaders import eval_batches
from tools.images.options import DataConfig
from tools.options.config import to_toml
from tools.run.weights import save_weights


@cache
def shapes_images(count: int, size: int) -> Tensor:
    """Test images as a run sees them."""
    config = DataConfig(image_size=size, train_size=10, test_size=count, validation=0)
    data = load_data(config, 0)
    (batch,) = eval_batches(data.test, data, config, batch_size=count, device="cpu")
    return batch.images


def train_a_little(net: nn.Module, images: Tensor) -> None:
    """A few steps, so that weights and BatchNorm statistics are not those of the beginning."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    targets = torch.arange(len(images)) % 10
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net.train()(images), targets))
        optimizer.step()


def save(path: Path, net: nn.Module, network: str, *, data: DataConfig, **notes: Any) -> Path:
    """Weights with the notes that retrain_model.py writes."""
    config = RetrainConfig(data=data)
    if "architecture" not in notes:
        config = RetrainConfig(data=data, network=network)
    names = [f"class {index}" for index in range(10)]
    save_weights(path, net, {"network": network, "classes": names, "config": to_toml(config), **notes})
    return path


def of_space(
    path: Path, space: Space, architecture: Architecture, *, stem: str = "fused"
) -> tuple[Path, nn.Module]:
    """The weights of an architecture after a few steps on generated images, and the network.

    With its stem as a unit the notes are those of a time when they did not say so.
    """
    torch.manual_seed(0)
    net = build_architecture(space, architecture, stem=stem)
    train_a_little(net, shapes_images(30, space.image_size))
    notes = {"space": space_to(space), "choices": list(architecture.choices)}
    notes |= {"stem": stem} if stem == "fused" else {}
    name = f"{space.name}/{architecture}"
    data = DataConfig(image_size=space.image_size)
    return save(path, net, name, data=data, architecture=notes), net.eval()
