"""The learning rates of blocks and of their heads."""

from dataclasses import replace

import pytest
import torch

from local_learning.decoupling import Decoupling
from local_learning.options import LocalLosses
from retrain.config import RetrainConfig
from retrain.rates import Rates
from tests.local_learning.nets import small_net
from tools.mistake import Mistake
from tools.optim import make_schedule

STEPS = 20


def rates_of(config: RetrainConfig, step: int) -> list[dict[str, float]]:
    """The rate of each parameter of each block, as the schedule sets it."""
    net = small_net(Decoupling((2, 4), ("linear", "linear")))
    rates = Rates(config, 3, STEPS)
    found = []
    for index, block in enumerate(net.blocks):
        optimizer = rates.optimizer(index, block)
        schedule = make_schedule(config.recipe, optimizer, STEPS)
        rates.set(optimizer, index, step)
        schedule.step_update(step)
        names = {parameter: name for name, parameter in block.named_parameters()}
        found.append({names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]})
        assert len(found[-1]) == len(names)
    return found


@pytest.mark.parametrize("decay_all", [True, False])
def test_only_local_heads_have_a_rate_of_their_own(decay_all: bool) -> None:
    config = RetrainConfig(decoupling="uniform:3:linear", block_rates=(1, 0.5, 2))
    config = replace(config, recipe=replace(config.recipe, decay_all=decay_all))
    own = replace(config, local=LocalLosses(head_rate=0.25, head_warmup=0.5))
    for step in (0, 4, 15):
        rise = min(1.0, (step + 1) / 10)
        for index, (plain, other) in enumerate(zip(rates_of(config, step), rates_of(own, step), strict=True)):
            for name, rate in plain.items():
                factor = 0.25 * rise if name.startswith("head.") and index < 2 else 1.0
                assert other[name] == pytest.approx(rate * factor)


def test_as_many_factors_as_blocks() -> None:
    with pytest.raises(Mistake, match="2 factors for 3 blocks"):
        Rates(RetrainConfig(decoupling="uniform:3:linear", block_rates=(1, 0.5)), 3, STEPS)


def test_the_last_layer_of_a_head_may_begin_small() -> None:
    whole = small_net(Decoupling((2, 4), ("aux1", "aug1")))
    torch.manual_seed(0)
    nets = []
    for factor in (1.0, 0.1):
        nets.append(small_net(Decoupling((2, 4), ("aux1", "aug1")), options=LocalLosses(last_layer=factor)))
    changed = [
        name
        for (name, one), other in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True)
        if not torch.equal(one, other)
    ]
    assert changed == ["blocks.0.head.fc.weight"]
    plain, small = (net.get_parameter("blocks.0.head.fc.weight") for net in nets)
    assert torch.allclose(plain * 0.1, small)
    assert [name for name, _ in whole.named_parameters()] == [name for name, _ in nets[0].named_parameters()]
