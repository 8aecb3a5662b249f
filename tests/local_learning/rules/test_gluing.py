"""BlockProp against what the paper and its algebra say."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from local_learning.blocks import DecoupledNet, decouple
from local_learning.build import build_chain
from local_learning.decoupling import Decoupling
from local_learning.options import GluingOptions
from local_learning.rules.engine import Engine
from local_learning.rules.gluing import Gluing
from tests.local_learning.nets import batch, engine_of, equal_to, gradients_by_backprop, small_net
from tests.local_learning.rules.test_replay import Noting

CUTS = Decoupling((2, 4, 6), ("linear",) * 3)


def gradients_by_gluing(net: DecoupledNet, **options: Any) -> dict[int, list[Tensor]]:
    engine = engine_of(net, kind=Noting)
    assert isinstance(engine, Noting)
    Gluing(engine, GluingOptions(**options)).step([batch()])
    return engine.seen


@pytest.mark.parametrize("gamma", [5e-2, 1e-2])
def test_one_h_step_gives_the_first_block_a_multiple_of_backprop(gamma: float) -> None:
    net = small_net(CUTS)
    net.drop_heads()
    penalties = (0.7, 1.3, 2.1)
    found = gradients_by_gluing(net, penalty=penalties, step=(gamma,), h_steps=1)
    expected = gradients_by_backprop(net, batch())
    blocks = len(net.blocks)
    # h_k - h_k* = step (2 step)^(K-k) prod_{j>=k} penalty_j dl/dh_k, so block k's gradient is
    # 2 penalty_k step (2 step)^(K-k-1) prod_{j>k} penalty_j times backprop's; for block 1 exactly.
    for index in range(blocks - 1):
        multiple = 2 * gamma * penalties[index] * (2 * gamma) ** (blocks - 2 - index)
        multiple *= math.prod(penalties[index + 1 :])
        scaled = [gradient / multiple for gradient in found[index]]
        tolerance = 1e-8 if index == 0 else 300 * gamma
        assert equal_to(scaled, expected[index], tolerance), index


def test_other_blocks_approach_backprop_in_proportion_to_the_step() -> None:
    net = small_net(CUTS)
    net.drop_heads()
    expected = torch.cat([g.flatten() for g in gradients_by_backprop(net, batch())[3]])
    errors = []
    for gamma in (1e-3, 1e-4, 1e-5):
        found = torch.cat([g.flatten() for g in gradients_by_gluing(net, step=(gamma,), h_steps=1)[3]])
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.3)


def test_no_h_step_leaves_nothing_below_the_last_block() -> None:
    net = small_net(CUTS)
    net.drop_heads()
    found = gradients_by_gluing(net, h_steps=0)
    for index in range(3):
        assert all(not gradient.any() for gradient in found[index])
    assert equal_to(found[3], gradients_by_backprop(net, batch())[3])


def test_one_block_is_backpropagation() -> None:
    net = small_net(CUTS).joined()
    found = gradients_by_gluing(net, h_steps=3)
    assert equal_to(found[0], gradients_by_backprop(net, batch())[0])


def test_many_h_steps_against_a_plain_loop() -> None:
    net = small_net(Decoupling((1, 3), ("linear",) * 2), "vgg6a", width=0.0625)
    net.drop_heads()
    penalties, gammas = (0.4, 0.9), (0.03, 0.05)
    found = gradients_by_gluing(net, penalty=penalties, step=gammas, h_steps=3)
    part, blocks = batch(), list(net.blocks)
    with torch.no_grad():
        h1 = part.images
        h2 = blocks[0].layers(h1)
        h3 = blocks[1].layers(h2)
    start2, start3 = h2.clone(), h3.clone()
    sums = nn.CrossEntropyLoss(reduction="sum")
    for _ in range(3):
        h3 = h3.detach().requires_grad_()
        energy = sums(blocks[2].logits(blocks[2].layers(h3))[0], part.targets)
        energy = energy + penalties[1] * (h3 - start3).square().sum()
        h3 = h3 - gammas[1] * torch.autograd.grad(energy, h3)[0]
    h3 = h3.detach()
    for _ in range(3):
        h2 = h2.detach().requires_grad_()
        energy = penalties[1] * (h3 - blocks[1].layers(h2)).square().sum()
        energy = energy + penalties[0] * (h2 - start2).square().sum()
        h2 = h2 - gammas[0] * torch.autograd.grad(energy, h2)[0]
    h2 = h2.detach()
    terms = [
        penalties[0] * (h2 - blocks[0].layers(h1)).square().sum(),
        penalties[1] * (h3 - blocks[1].layers(h2)).square().sum(),
        sums(blocks[2].logits(blocks[2].layers(h3))[0], part.targets),
    ]
    for index, (block, term) in enumerate(zip(blocks, terms, strict=True)):
        expected = torch.autograd.grad(term / len(part.images), list(block.parameters()))
        assert equal_to(found[index], list(expected), 1e-10)


@pytest.mark.parametrize("penalty", [10.0, 100.0, 1000.0])
def test_theorem_5_1_equilibrium_propagation(penalty: float) -> None:
    """At the exact minimiser, with penalty 1/beta, the gradient of J tends to backprop's as 1/penalty."""
    torch.manual_seed(0)
    net = _linear_net()
    found = gradients_by_exact_gluing(net, penalty)
    expected = gradients_by_backprop(net, batch())
    errors = [
        float(torch.cat([(a - b).flatten() for a, b in zip(one, other, strict=True)]).norm())
        / float(torch.cat([b.flatten() for b in other]).norm())
        for one, other in ((found[0], expected[0]), (found[1], expected[1]))
    ]
    assert all(1e-3 < error * penalty < 1e1 for error in errors), errors
    # The next power of ten is ten times as close.
    closer = gradients_by_exact_gluing(net, 10 * penalty)
    ratio = _distance(found[0], expected[0]) / _distance(closer[0], expected[0])
    assert ratio == pytest.approx(10, rel=0.35)


def _linear_net() -> DecoupledNet:
    chain = build_chain("mlp", num_classes=5, image_size=16, width=0.02).double()
    return decouple(chain, Decoupling((1,), ("linear",)), 5, 16)


def gradients_by_exact_gluing(net: DecoupledNet, penalty: float) -> dict[int, list[Tensor]]:
    # Steps of 1 / (2 penalty) halve nothing but the curvature of the penalty: 200 of them are the minimiser.
    copied = copy.deepcopy(net)
    copied.drop_heads()
    return gradients_by_gluing(copied, penalty=(penalty,), step=(0.4 / penalty,), h_steps=200)


def _distance(one: list[Tensor], other: list[Tensor]) -> float:
    return float(torch.cat([(a - b).flatten() for a, b in zip(one, other, strict=True)]).norm())


def _trained(options: GluingOptions, steps: int = 6, rows: int = 6) -> list[Tensor]:
    net = small_net(Decoupling((2, 4), ("linear",) * 2))
    net.drop_heads()
    rule = Gluing(engine_of(net), options, num_images=2 * rows)
    for step in range(steps):
        part = batch(step % 2, rows)
        rule.step([part._replace(indices=torch.arange(rows) + rows * (step % 2))])
    return list(net.state_dict().values())


def test_a_cache_refreshed_at_every_visit_is_no_cache() -> None:
    plain = _trained(GluingOptions(h_steps=2))
    assert equal_to(_trained(GluingOptions(h_steps=2, cache=True, refresh=1)), plain)
    assert not equal_to(_trained(GluingOptions(h_steps=2, cache=True)), plain, 1e-6)


def test_the_cache_starts_from_what_was_found_before() -> None:
    """Two visits with frozen weights and one h-step each are one visit with two h-steps."""
    net = small_net(Decoupling((3,), ("linear",)))
    net.drop_heads()
    engine = engine_of(net, kind=Noting)
    assert isinstance(engine, Noting)
    cached = Gluing(engine, GluingOptions(cache=True, h_steps=1), num_images=6)
    cached.step([batch()])
    cached.step([batch()])
    twice = dict(engine.seen)
    Gluing(engine, GluingOptions(h_steps=2)).step([batch()])
    for index in (0, 1):
        assert equal_to(twice[index], engine.seen[index], 1e-9)


def test_between_h_steps_the_stored_variables_are_used_as_they_are() -> None:
    class Counting(Engine):
        passes = 0

        def features(self, index: int, inputs: Tensor) -> Tensor:
            self.passes += 1
            return super().features(index, inputs)

    net = small_net(Decoupling((2, 4), ("linear",) * 2))
    net.drop_heads()
    engine = engine_of(net, kind=Counting)
    assert isinstance(engine, Counting)
    rule = Gluing(engine, GluingOptions(cache=True, h_every=3), num_images=6)
    passes = []
    for _ in range(6):
        before = engine.passes
        rule.step([batch()])
        passes.append(engine.passes - before)
    assert passes[0] > 0
    assert passes[1] == passes[2] == passes[4] == passes[5] == 0
    assert passes[3] > 0


def test_new_and_known_images_in_one_batch() -> None:
    """Rows are their own problems: what one image's variables become does not depend on its neighbours."""
    net = small_net(Decoupling((1, 2), ("linear",) * 2), "vgg6a", width=0.0625)
    net.eval()  # BatchNorm would couple the rows
    net.drop_heads()
    part = batch(rows=6)
    rule = Gluing(engine_of(net, lr=0.0), GluingOptions(cache=True), num_images=6)
    half = type(part)(*(column[:3] for column in part[:3]))
    rule.step([half])
    rule.step([part])
    once = Gluing(engine_of(net, lr=0.0), GluingOptions(cache=True), num_images=6)
    once.step([part])
    found, expected = rule.state_dict()["cache"], once.state_dict()["cache"]
    assert found.keys() == expected.keys() == {1, 2}
    for block, other in expected.items():
        assert torch.allclose(found[block][3:], other[3:], rtol=0, atol=1e-14)
        assert not torch.allclose(found[block][:3], other[:3], rtol=0, atol=1e-14)


def test_values_per_boundary() -> None:
    net = small_net(CUTS)
    with pytest.raises(ValueError, match=r"gluing\.penalty: 2 values for 3 boundaries"):
        Gluing(engine_of(net), GluingOptions(penalty=(1.0, 2.0)))


def test_running_statistics_move_in_the_w_step_only() -> None:
    net = small_net(CUTS)
    net.drop_heads()
    Gluing(engine_of(net), GluingOptions(h_steps=3)).step([batch()])
    counts = [buffer for name, buffer in net.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(count) for count in counts} == {1}
