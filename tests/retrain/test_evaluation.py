"""What is measured, against plain computation image by image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from local_learning.blocks import Block, DecoupledNet
from local_learning.decoupling import Decoupling
from local_learning.groups import GroupedHeads
from retrain.evaluation import evaluate, heads_at_chance
from retrain.run import retraining_summary
from tools.images.batches import Batch
from tools.run.folder import Run

IMAGES, SIDE, FEATURES = 149, 2, 6

Floats = NDArray[np.float64]


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(in_features: int, out_features: int, seed: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features).double()
    layer.weight.data = noise(out_features, in_features, seed=seed)
    layer.bias.data = noise(out_features, seed=seed + 1)
    return layer


def network(groups: Sequence[int], num_classes: int = 7) -> DecoupledNet:
    """Blocks with so many groups each, 0 where there is no head; dropout in each, which must not act."""
    blocks = []
    for k, count in enumerate(groups):
        layers = [nn.Flatten(), linear(SIDE**2 if k == 0 else FEATURES, FEATURES, 100 * k)]
        sizes = [FEATURES // count] * count if count else []
        heads = [linear(size, num_classes, 100 * k + 10 * g + 2) for g, size in enumerate(sizes)]
        head = GroupedHeads(heads, sizes, shared=False) if count > 1 else heads[0] if heads else None
        blocks.append(Block([nn.Sequential(*layers, nn.Tanh(), nn.Dropout(0.9))], head))
    cuts = tuple(range(1, len(groups)))
    return DecoupledNet(blocks, Decoupling(cuts, ("linear",) * len(cuts)))


def batches(num_classes: int = 7) -> list[Batch]:
    """The last of them smaller."""
    images = noise(IMAGES, 1, SIDE, SIDE, seed=1).float()
    targets = torch.randint(num_classes, (IMAGES,), generator=torch.Generator().manual_seed(2))
    whole = (images, targets, torch.arange(IMAGES))
    return [Batch(*rows) for rows in zip(*(torch.split(column, 32) for column in whole), strict=True)]


def probabilities(net: DecoupledNet, image: Tensor) -> list[Floats]:
    """Of each block with a head, the mean over its groups; for one image."""
    found, features = [], image.double().flatten().numpy()
    for block in net.blocks:
        features = np.tanh(apply(block.get_submodule("layers.0.1"), features))
        if block.head is None:
            continue
        heads = list(block.head.heads) if isinstance(block.head, GroupedHeads) else [block.head]
        slices = np.split(features, len(heads))
        logits = [apply(head, own) for head, own in zip(heads, slices, strict=True)]
        found.append(np.mean([np.exp(each) / np.exp(each).sum() for each in logits], axis=0))
    return found


def apply(layer: nn.Module, features: Floats) -> Floats:
    assert isinstance(layer, nn.Linear)
    outputs: Floats = layer.weight.detach().numpy() @ features + layer.bias.detach().numpy()
    return outputs


def expected(net: DecoupledNet) -> dict[str, float]:
    """The mean over images, one after the other."""
    sums: dict[str, float] = {}
    for batch in batches():
        for image, label in zip(batch.images, batch.targets.tolist(), strict=True):
            heads = probabilities(net, image)
            own = {
                "loss": -np.log(heads[-1][label]),
                "top1": heads[-1].argmax() == label,
                "top5": label in np.argsort(-heads[-1])[:5],
            }
            if len(heads) > 1:
                votes = [2**depth * each for depth, each in enumerate(heads)]
                ensembles = {"last_two": heads[-2] * heads[-1], "layerwise": np.sum(votes, axis=0)}
                for name, scores in ensembles.items():
                    own[f"{name}_top1"] = scores.argmax() == label
                    own[f"{name}_top5"] = label in np.argsort(-scores)[:5]
                own |= {f"heads_top1/{k}": each.argmax() == label for k, each in enumerate(heads[:-1], 1)}
            for name, value in own.items():
                sums[name] = sums.get(name, 0.0) + float(value)
    return {name: value / IMAGES for name, value in sums.items()}


@pytest.mark.parametrize("groups", [(1,), (0, 0, 1), (1, 1), (1, 1, 1, 1), (2, 3, 1), (3, 1, 2, 1)])
def test_every_measure_is_the_loop_over_images(groups: tuple[int, ...]) -> None:
    net = network(groups).train()
    found, wanted = dict(evaluate(net, batches(), Accelerator(cpu=True))), expected(net)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-12), name
    assert net.training
    assert all(module.training for module in net.modules())


def test_the_cases_tell_the_measures_apart() -> None:
    values = expected(network((2, 3, 1)))
    assert len(set(values.values())) == len(values)


def test_batches_do_not_matter() -> None:
    net = network((2, 1)).eval()
    whole = [Batch(*(torch.cat(column) for column in zip(*batches(), strict=True)))]
    found, again = (evaluate(net, each, Accelerator(cpu=True)) for each in (batches(), whole))
    assert found == pytest.approx(again, rel=1e-12)
    assert not net.training


@pytest.mark.parametrize("classes", [3, 5, 6])
def test_of_five_classes_and_fewer_nothing_is_said_of_the_top_five(classes: int) -> None:
    net, images = network((1, 1), num_classes=classes), batches(num_classes=classes)
    found = evaluate(net, images, Accelerator(cpu=True))
    assert any("top5" in name for name in found) == (classes > 5)
    results = {"steps": 1, "training_seconds": 1.0, "test": {"last": found}}
    assert ("top-5" in retraining_summary(Run(Path("run")), results)) == (classes > 5)
    assert max(found["top1"], found["last_two_top1"], found["layerwise_top1"]) < 1


@pytest.mark.parametrize(
    ("num_classes", "accuracy", "weak"),
    [
        (10, 0.149, True),
        (10, 0.151, False),
        (2, 0.54, True),
        (2, 0.56, False),
        (100, 0.014, True),
        (100, 0.016, False),
    ],
)
def test_heads_that_guess(num_classes: int, accuracy: float, weak: bool) -> None:
    accuracies = {"heads_top1/1": 0.9, "heads_top1/2": accuracy, "top1": 0.0}
    assert heads_at_chance(accuracies, num_classes) == ({2: accuracy} if weak else {})
    in_validation = {f"validation_{name}": value for name, value in accuracies.items()}
    assert heads_at_chance(in_validation, num_classes) == ({2: accuracy} if weak else {})
