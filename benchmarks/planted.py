"""A search whose answer is known, by ours and by the objective of SEDONA's released code.

    python -m benchmarks.planted

All training labels are wrong, each class called by the next one's name; validation labels are right. Of six
layers the first three are trained, all above is frozen, heads too. A head of the first kind is what stands
above its layer, copied: it passes on what backpropagation would, the way to the wrong labels. So is one of
the second kind, but for the one on layer 3, which undoes the labels' error: its signal is exactly the
gradient of the loss by right labels. Hence, to first order in the step, of all signals for the layers up to
the third

- the local one at layer 3 with the second head reduces the validation loss most: <g, g> > <g, g'> for the
  gradients g and g' by right and wrong labels, which are of the same size and differ;
- at layers 1 and 2 a local signal is the wrong one, in the place of one that can be right;
- above layer 3 local and backpropagated signal are the same, and alpha has no effect at all.

The answer for two blocks is a cut after layer 3 with the second head. An objective that looks at training
labels only must prefer the opposite. One JSON line per seed and objective.
"""

import argparse
import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from local_learning.chain import Chain
from local_learning.decoupling import Decoupling
from search.cuts.config import SEDONA_2021, DecouplingSearchConfig, SearchOptions
from search.cuts.memory import SnapshotMemory
from search.cuts.sedona import Episode, Inner, Search
from search.discretisation import discretise
from search.relaxation import RelaxedNet
from tools.images.batches import Batch
from tools.options.recipes import Recipe

CUT, KINDS = 3, ("linear", "conv1c2f")
"""Where the answer is, and names for the two kinds of head."""

ANSWER = Decoupling((CUT,), (KINDS[1],))
DIMENSIONS, CLASSES, BATCH = 12, 4, 64


class Relabelled(nn.Module):
    """What classifies, with every class called by the next one's name."""

    def __init__(self, upper: nn.Module) -> None:
        super().__init__()
        self.upper = upper

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.upper(features)
        return logits.roll(1, dims=1)


def planted_net(logit_scaling: bool = False) -> RelaxedNet:
    """The chain with its heads, initialised from torch's generator."""
    layers: list[nn.Module] = [nn.Sequential(nn.Flatten(), nn.Linear(DIMENSIONS, CLASSES), nn.Tanh())]
    layers += [nn.Sequential(rotation(), nn.Tanh()) for _ in range(5)]
    chain = Chain(layers, rotation())
    net = RelaxedNet(chain, KINDS, CLASSES, 1, image_chs=DIMENSIONS, logit_scaling=logit_scaling)
    for index, heads in enumerate(net.heads, start=1):
        assert isinstance(heads, nn.ModuleList)
        upper = copy.deepcopy(nn.Sequential(nn.Flatten(), *net.layers[index:], net.classifier))
        heads[0] = upper
        heads[1] = Relabelled(upper) if index == CUT else upper
    for module in (*net.heads, *net.layers[CUT:], net.classifier):
        module.requires_grad_(False)
    return net


def rotation() -> nn.Linear:
    """A linear layer that turns and stretches."""
    layer = nn.Linear(CLASSES, CLASSES, bias=False)
    nn.init.orthogonal_(layer.weight, gain=1.5)
    return layer


def batches(seed: int, *, right: bool) -> Iterator[Batch]:
    """Endless images, whose first two dimensions say the class."""
    source = torch.Generator().manual_seed(seed)
    while True:
        images = torch.randn(BATCH, DIMENSIONS, 1, 1, generator=source)
        signs = (images[:, :2, 0, 0] > 0).long()
        classes = signs[:, 0] + 2 * signs[:, 1]
        yield Batch(images, classes if right else (classes + 1) % CLASSES, torch.arange(BATCH))


def search(seed: int, compat: str = "", *, steps: int = 150) -> RelaxedNet:
    """The net after a search."""
    torch.manual_seed(seed)
    options = SearchOptions(steps=steps, lr=0.05, snapshots=5, compat=compat)
    config = DecouplingSearchConfig(heads=KINDS, seed=seed, search=options, recipe=Recipe(steps=1000, lr=0.1))
    net = planted_net(bool(compat))
    inner = Inner(net, config, config.recipe.steps)
    train, validation = batches(2 * seed, right=False), batches(2 * seed + 1, right=True)
    with tempfile.TemporaryDirectory() as folder:
        memory = SnapshotMemory(Path(folder), options.snapshots)
        for step in range(20):
            inner.update(next(train), step)
            memory.keep_latest(inner.state(), step + 1, 0.0)
        job = Search(inner, config, Accelerator(cpu=True), memory)
        for step in range(steps):
            own = [next(train) for _ in range(options.inner_steps + 1)]
            job.step(Episode(own[:-1], own[-1], next(validation)), step)
    return net


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for compat in ("", SEDONA_2021):
        for seed in range(options.seeds):
            net = search(seed, compat, steps=options.steps)
            found = discretise(net.alpha, net.beta, KINDS, 2)
            line = {
                "objective": compat or "validation loss",
                "seed": seed,
                "cut": found.cuts[0],
                "head": found.heads[0],
                "found": found == ANSWER,
                "signals": [round(value, 3) for value in net.alpha.softmax(1)[:, 0].tolist()],
                "second_head": round(net.beta.softmax(1)[CUT - 1, 1].item(), 3),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
