"""One update of Algorithm 1 against its steps written one by one."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from local_learning.build import build_chain
from search.config import SEDONA_2021, DecouplingSearchConfig, SearchOptions
from search.hypergradient import hypergradient
from search.memory import SnapshotMemory
from search.relaxation import RelaxedNet
from search.sedona import MOMENTUM, Episode, Inner, Search
from tools.batches import Batch
from tools.recipes import Recipe


def batch(seed: int) -> Batch:
    source = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64, generator=source)
    return Batch(images, torch.randint(5, (6,), generator=source), torch.arange(6))


@pytest.mark.parametrize("compat", ["", SEDONA_2021])
def test_one_update(compat: str, tmp_path: Path) -> None:
    options = SearchOptions(inner_steps=2, snapshots=3, compat=compat, lr=0.3)
    recipe = Recipe(steps=10, weight_decay=1e-2)
    config = DecouplingSearchConfig(heads=("aux1", "linear"), search=options, recipe=recipe)
    torch.manual_seed(0)
    chain = build_chain("resnet18", num_classes=5, image_size=16, width=0.0625)
    net = RelaxedNet(chain.double(), config.heads, 5, 16, logit_scaling=bool(compat)).double()
    inner = Inner(net, config, 10)
    memory = SnapshotMemory(tmp_path, 3)
    for step in range(3):
        inner.update(batch(step), step)
        memory.keep_latest(inner.state(), step + 1, 0.1 * step)
    before = list(memory.snapshots)
    kept = {one.path: memory.read(one) for one in before}

    episode = Episode([batch(10), batch(11)], batch(12), batch(13))
    Search(inner, config, Accelerator(cpu=True), memory).step(episode, 0)
    added = memory.snapshots[-1]
    (gone,) = set(before) - set(memory.snapshots)
    drawn = gone if compat else next(one for one in before if one.step == added.step - 1)
    if not compat:
        assert gone == before[0], "the oldest goes, whichever was drawn"
    assert (added.step, added.score) == (drawn.step + 1, drawn.score)

    # The same by hand: hypergradient from the drawn snapshot, Adam, one SGD step from there on another batch.
    start = kept[drawn.path]
    momenta = {name.removeprefix(MOMENTUM): v for name, v in start.items() if name.startswith(MOMENTUM)}
    learned_alpha = net.alpha.detach().clone()
    with torch.no_grad():
        net.alpha.zero_()
        net.beta.zero_()
    net.load_state_dict({**net.state_dict(), **{k: v for k, v in start.items() if k in net.state_dict()}})
    rate = inner.rate(drawn.step)
    found = hypergradient(
        net,
        [(each.images, each.targets) for each in episode.inner],
        (episode.validation.images, episode.validation.targets),
        lr=rate,
        momentum=0.9,
        weight_decay=1e-2,
        momentum_buffers=momenta,
        objective="training" if compat else "validation",
    )
    # Adam's first step is its rate in the direction of the gradient's sign, but for eps.
    expected_alpha = -0.3 * found.alpha / (found.alpha.abs() + 1e-8)
    assert torch.allclose(learned_alpha, expected_alpha, rtol=1e-6, atol=1e-9)
    net.load_state_dict({**net.state_dict(), "alpha": learned_alpha})
    expected_beta = -0.3 * found.beta / (found.beta.abs() + 1e-8)
    net.load_state_dict({**net.state_dict(), "beta": expected_beta})
    gradients = net.train().mixed_gradients(episode.ordinary.images, episode.ordinary.targets).of
    state = memory.read(added)
    for name, gradient in gradients.items():
        moved = 0.9 * momenta[name] + gradient + 1e-2 * start[name]
        assert torch.allclose(state[MOMENTUM + name], moved, rtol=1e-5, atol=1e-8), name
        assert torch.allclose(state[name], start[name] - rate * moved, rtol=1e-5, atol=1e-8), name
