"""Blocks that are trained as one network for some steps, and layers that are to move features little."""

import copy

import torch

from local_learning.decoupling import Decoupling
from local_learning.options import LocalLosses
from local_learning.rules.whole import Whole
from tests.local_learning.nets import batch, engine_of, equal_to, gradients_by_backprop, small_net

CUTS = Decoupling((2, 4), ("aux1", "aug1"))


def test_the_layers_get_the_gradients_of_backpropagation_and_the_heads_their_own() -> None:
    net = small_net(CUTS)
    before, part = copy.deepcopy(net), batch()
    Whole(engine_of(net, lr=1.0)).step([part])
    expected = gradients_by_backprop(before, part)
    for index, block in enumerate(net.blocks):
        old = before.blocks[index]
        trained = zip(block.layers.parameters(), old.layers.parameters(), strict=True)
        moved = [(was - now).detach() for now, was in trained]
        assert equal_to(moved, expected[index][: len(moved)], 1e-9)
        if index < 2:
            local = before.losses(part.images, part.targets)[index]
            assert old.head is not None
            assert block.head is not None
            own = torch.autograd.grad(local, list(old.head.parameters()))
            heads = zip(block.head.parameters(), old.head.parameters(), strict=True)
            assert equal_to([(was - now).detach() for now, was in heads], own, 1e-9)


def test_parts_of_a_batch_add_up() -> None:
    """But for BatchNorm, whose statistics are those of each part."""
    one, two = small_net(CUTS).eval(), small_net(CUTS).eval()
    part = batch()
    halves = [
        part._replace(**{name: getattr(part, name)[rows] for name in ("images", "targets", "indices")})
        for rows in (slice(0, 3), slice(3, 6))
    ]
    reports = [Whole(engine_of(net)).step(parts) for net, parts in ((one, [part]), (two, halves))]
    assert equal_to(list(one.parameters()), list(two.parameters()), 1e-9)
    for name, value in reports[0].losses.items():
        torch.testing.assert_close(value, reports[1].losses[name])


def test_movement_is_what_layers_of_one_shape_change() -> None:
    plain, moving = small_net(CUTS), small_net(CUTS, options=LocalLosses(movement=0.5))
    part = batch()
    losses = [net.losses(part.images, part.targets) for net in (plain, moving)]
    features, moved = part.images, [0.0, 0.0, 0.0]
    for index, block in enumerate(plain.blocks):
        for layer in block.layers:
            outputs = layer(features)
            if outputs.shape == features.shape:
                moved[index] += float((outputs - features).detach().square().mean())
            features = outputs.detach()
    assert moved[0] > 0
    for index, (one, other) in enumerate(zip(*losses, strict=True)):
        extra = 0.5 * moved[index] if index < 2 else 0.0
        torch.testing.assert_close(float((other - one).detach()), extra, rtol=1e-5, atol=1e-7)
