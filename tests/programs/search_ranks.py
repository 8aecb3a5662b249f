"""One rank of two: it searches by the mean of both ranks' hypergradients, each from its own snapshot."""

import tempfile
from pathlib import Path

import torch
import torch.distributed
from accelerate import Accelerator

from local_learning.build import build_chain
from search.cuts.config import DecouplingSearchConfig, SearchOptions
from search.cuts.memory import SnapshotMemory
from search.cuts.sedona import Episode, Inner, Search
from search.hypergradient import hypergradient
from search.relaxation import RelaxedNet
from tools.images.batches import Batch
from tools.options.recipes import Recipe

RATES = {"momentum": 0.9, "weight_decay": 1e-3}


def batch(seed: int) -> Batch:
    source = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64, generator=source)
    return Batch(images, torch.randint(5, (6,), generator=source), torch.arange(6))


def episode(rank: int) -> Episode:
    return Episode([batch(10 * rank + t) for t in range(2)], batch(10 * rank + 8), batch(10 * rank + 9))


def inner_of(config: DecouplingSearchConfig, updates: int) -> Inner:
    """Weights after some updates, which are the two snapshots."""
    torch.manual_seed(0)
    chain = build_chain("vgg6a", num_classes=5, image_size=16, width=0.125)
    net = RelaxedNet(chain.double(), config.heads, 5, 16).double()
    inner = Inner(net, config, 100)
    for step in range(updates):
        inner.update(batch(100 + step), step)
    return inner


def main() -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    assert accelerator.num_processes == 2
    config = DecouplingSearchConfig(
        heads=("aux1", "linear"),
        search=SearchOptions(inner_steps=2),
        recipe=Recipe(steps=100, weight_decay=1e-3),
    )
    with tempfile.TemporaryDirectory() as folder:
        inner = inner_of(config, 2 + rank)
        memory = SnapshotMemory(Path(folder), 1, rank=rank)
        memory.keep_latest(inner.state(), 2 + rank, 0.0)
        inner.load(inner_of(config, 0).state())  # which must not matter: search begins with the snapshot
        job = Search(inner, config, accelerator, memory)
        job.step(episode(rank), 0)

        expected, rates = [], []
        for other in range(2):
            alone = inner_of(config, 2 + other)
            inner_batches = [(each.images, each.targets) for each in episode(other).inner]
            last = episode(other).validation
            rates.append(alone.rate(2 + other))
            expected.append(
                hypergradient(
                    alone.net,
                    inner_batches,
                    (last.images, last.targets),
                    lr=alone.rate(2 + other),
                    momentum=0.9,
                    weight_decay=1e-3,
                    momentum_buffers=alone.momentum_buffers(),
                    keep_graphs=1,
                )
            )
        assert not torch.equal(expected[0].alpha, expected[1].alpha)
        for name in ("alpha", "beta"):
            # Each by its own inner rate, so that all snapshots count alike.
            own = [getattr(each, name) * (1 / rate) for each, rate in zip(expected, rates, strict=True)]
            mean = (own[0] + own[1]) / 2
            found = getattr(job._net, name).grad
            assert torch.equal(found, mean), f"{name}: {(found - mean).abs().max()}"
            values = [torch.empty_like(found) for _ in range(2)]
            torch.distributed.all_gather(values, getattr(job._net, name).detach())
            assert torch.equal(*values), "the ranks' alpha and beta went apart"
    print("equal")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
