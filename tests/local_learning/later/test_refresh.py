"""Heads of later layers are brought to what the layers were one refresh before."""

import copy

import pytest
import torch
from torch import Tensor

from local_learning.blocks import DecoupledNet
from local_learning.decoupling import Decoupling
from local_learning.later.refresh import Refresh, bytes_down, ways_down
from local_learning.later.renewed import resized
from local_learning.rules.greedy import Greedy
from tests.local_learning.nets import batch, engine_of, small_net

CUTS = Decoupling((2, 5), ("aug:all", "aug2@0.5"))


def refresh_of(net: DecoupledNet, every: int, momentum: float = 0.0) -> Refresh:
    return Refresh(net, ways_down(net), range(3), every=every, momentum=momentum)


def pairs(net: DecoupledNet) -> dict[str, str]:
    """The file names of the first head's tensors, and those of what they are copies of."""
    with_names = net.with_names().state_dict()
    found = {}
    for name, tensor in with_names.items():
        part, _, rest = name.removeprefix("heads.1.").partition(".")
        if name.startswith("heads.1.") and tensor.is_floating_point():
            layer = "classifier" if part == "classifier" else f"layers.{int(part.removeprefix('layer')) - 1}"
            found[name] = f"{layer}.{rest}"
    return found


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_a_head_gets_what_the_layers_were_one_refresh_before(momentum: float) -> None:
    net = small_net(CUTS)
    rule, refresh = Greedy(engine_of(net)), refresh_of(net, 3, momentum)
    history: list[dict[str, Tensor]] = []
    links = pairs(net)
    assert len(links) > 60
    for step in range(9):
        rule.step([batch(step)])
        before = copy.deepcopy(net.with_names().state_dict())
        refresh.after(step)
        after = net.with_names().state_dict()
        history.append(before)
        if step in (5, 8):
            for name, source in links.items():
                wanted = before[name].lerp(history[step - 3][source], 1 - momentum)
                assert torch.equal(after[name], wanted), name
        else:
            assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_narrow_head_gets_the_first_of_the_weights() -> None:
    net = small_net(CUTS)
    refresh = refresh_of(net, 1)
    refresh.after(0)
    theirs = net.chain().layers[7].get_parameter("conv2.weight").detach().clone()
    refresh.after(1)
    head = net.blocks[1].head
    assert head is not None
    ours = head.get_parameter("layer8.conv2.weight")
    assert torch.equal(ours, resized(theirs, ours.shape))
    assert torch.allclose(ours, theirs[:32, :32] * 2**0.5)


def test_what_is_under_way_is_kept() -> None:
    """A run that is continued between two refreshes gets the same values."""
    net = small_net(CUTS)
    rule, refresh = Greedy(engine_of(net)), refresh_of(net, 2)
    for step in range(3):
        rule.step([batch(step)])
        refresh.after(step)
    other = copy.deepcopy(net)
    again = refresh_of(other, 2)
    again.load_state_dict(copy.deepcopy(refresh.state_dict()))
    refresh.after(3)
    again.after(3)
    assert all(torch.equal(one, two) for one, two in zip(net.parameters(), other.parameters(), strict=True))
    head = net.blocks[0].head
    assert head is not None
    assert not torch.equal(
        head.get_parameter("layer8.conv2.weight"), net.chain().layers[7].get_parameter("conv2.weight")
    )


def test_bytes_that_come_down() -> None:
    net = small_net(CUTS)
    chain = net.chain()
    moving = [
        sum(t.numel() for t in part.state_dict().values() if t.is_floating_point())
        for part in (*chain.layers, chain.classifier)
    ]
    assert bytes_down(ways_down(net), 4) == 4 * (sum(moving[2:]) + moving[6] + moving[7] + moving[8])


def test_other_heads_get_nothing() -> None:
    assert ways_down(small_net(Decoupling((2, 5), ("aux1", "linear")))) == {}
