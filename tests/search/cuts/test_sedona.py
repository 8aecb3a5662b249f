"""One update of Algorithm 1 against its steps written one by one."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from local_learning.build import build_chain
from search.cuts.config import OLDEST, REPLACE, SEDONA_2021, DecouplingSearchConfig, SearchOptions
from search.cuts.memory import SnapshotMemory
from search.cuts.sedona import MOMENTUM, Episode, Inner, Search
from search.hypergradient import hypergradient
from search.relaxation import RelaxedNet
from tools.images.batches import Batch
from tools.options.config import of_run, to_toml, with_earlier
from tools.options.recipes import Recipe


def batch(seed: int) -> Batch:
    source = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64, generator=source)
    return Batch(images, torch.randint(5, (6,), generator=source), torch.arange(6))


@pytest.mark.parametrize(
    ("memory", "compat", "inner_lr"),
    [(REPLACE, "", 0.0), (REPLACE, "", 0.02), (OLDEST, "", 0.0), (REPLACE, SEDONA_2021, 0.0)],
)
def test_one_update(memory: str, compat: str, inner_lr: float, tmp_path: Path) -> None:
    options = SearchOptions(
        inner_steps=2, snapshots=3, memory=memory, compat=compat, inner_lr=inner_lr, lr=0.3
    )
    recipe = Recipe(steps=10, weight_decay=1e-2)
    config = DecouplingSearchConfig(heads=("aux1", "linear"), search=options, recipe=recipe)
    torch.manual_seed(0)
    chain = build_chain("resnet18", num_classes=5, image_size=16, width=0.0625)
    net = RelaxedNet(chain.double(), config.heads, 5, 16, logit_scaling=bool(compat)).double()
    inner = Inner(net, config, 10)
    snapshots = SnapshotMemory(tmp_path, 3)
    for step in range(3):
        inner.update(batch(step), step)
        snapshots.keep_latest(inner.state(), step + 1, 0.1 * step)
    before = list(snapshots.snapshots)
    kept = {one.path: snapshots.read(one) for one in before}

    episode = Episode([batch(10), batch(11)], batch(12), batch(13))
    search = Search(inner, config, Accelerator(cpu=True), snapshots)
    search.step(episode, 0)
    added = snapshots.snapshots[-1]
    (gone,) = set(before) - set(snapshots.snapshots)
    drawn = gone if memory == REPLACE else next(one for one in before if one.step == added.step - 1)
    if memory == OLDEST:
        assert gone == before[0], "the oldest goes, whichever was drawn"
    assert (added.step, added.score, added.origin) == (drawn.step + 1, drawn.score, drawn.origin)

    # The same by hand: hypergradient from the drawn snapshot, Adam, one SGD step from there on another batch.
    start = kept[drawn.path]
    momenta = {name.removeprefix(MOMENTUM): v for name, v in start.items() if name.startswith(MOMENTUM)}
    learned_alpha = net.alpha.detach().clone()
    with torch.no_grad():
        net.alpha.zero_()
        net.beta.zero_()
    net.load_state_dict({**net.state_dict(), **{k: v for k, v in start.items() if k in net.state_dict()}})
    rate = inner_lr or inner.rate(drawn.step)
    assert search.updates.drawn == [[(drawn.origin, rate)]]
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
    # On record are derivatives by shares, which at alpha = beta = 0 are 1/2 each: 1/4 and 1/2 of them remain.
    scale = 1 / rate if memory == REPLACE and not compat else 1.0
    (effect,) = search.updates.effects
    assert torch.allclose(effect[:, 0], 4 * scale * found.alpha[:, 0], rtol=1e-9)
    assert torch.allclose(effect[:, 1:], 2 * scale * found.beta, rtol=1e-9)
    # Adam's first step is its rate in the direction of the gradient's sign, but for eps.
    expected_alpha = -0.3 * found.alpha / (found.alpha.abs() + 1e-8 / scale)
    assert torch.allclose(learned_alpha, expected_alpha, rtol=1e-6, atol=1e-9)
    net.load_state_dict({**net.state_dict(), "alpha": learned_alpha})
    expected_beta = -0.3 * found.beta / (found.beta.abs() + 1e-8 / scale)
    net.load_state_dict({**net.state_dict(), "beta": expected_beta})
    gradients = net.train().mixed_gradients(episode.ordinary.images, episode.ordinary.targets).of
    state = snapshots.read(added)
    for name, gradient in gradients.items():
        moved = 0.9 * momenta[name] + gradient + 1e-2 * start[name]
        assert torch.allclose(state[MOMENTUM + name], moved, rtol=1e-5, atol=1e-8), name
        assert torch.allclose(state[name], start[name] - rate * moved, rtol=1e-5, atol=1e-8), name


def test_a_search_that_goes_on_with_more_processes_has_weights_on_each(tmp_path: Path) -> None:
    config = DecouplingSearchConfig(heads=("linear",), search=SearchOptions(snapshots=2))
    chain = build_chain("vgg6a", num_classes=5, image_size=16, width=0.0625)
    inner = Inner(RelaxedNet(chain, config.heads, 5, 16), config, 10)
    memory = SnapshotMemory(tmp_path / "one", 2)
    for step in range(2):
        memory.keep_latest(inner.state(), step, 0.1)
    search = Search(inner, config, Accelerator(cpu=True), memory)
    state = search.state_dict()
    for rank in range(4):
        own = SnapshotMemory(tmp_path / "one", 2, rank=rank)
        Search(inner, config, Ranked(4, rank), own).load_state_dict(state)
        assert len(own) >= 1


class Ranked:
    """One of several processes, as far as going back to a state asks for it."""

    def __init__(self, num_processes: int, process_index: int) -> None:
        self.num_processes, self.process_index = num_processes, process_index


@pytest.mark.parametrize(("compat", "memory"), [("", OLDEST), (SEDONA_2021, REPLACE)])
def test_a_search_of_before_goes_on_with_the_memory_that_it_had(compat: str, memory: str) -> None:
    new = DecouplingSearchConfig(search=SearchOptions(compat=compat))
    said = to_toml(new)
    old = "".join(
        line for line in said.splitlines(keepends=True) if not line.startswith(("memory =", "snapshots ="))
    )
    config = with_earlier(new, old, "old")
    assert (config.search.memory, config.search.snapshots) == (memory, 50)
    again = of_run(DecouplingSearchConfig, to_toml(config), source="again")
    assert again == config
    assert with_earlier(new, to_toml(config), "again") == config
