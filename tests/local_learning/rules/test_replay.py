"""Features Replay against backpropagation on the delayed batch."""

import copy

import torch
from torch import Tensor

from local_learning.decoupling import Decoupling
from local_learning.rules.engine import Engine, Part
from local_learning.rules.greedy import Greedy
from local_learning.rules.replay import Replay
from tests.local_learning.nets import batch, engine_of, equal_to, gradients_by_backprop, small_net

CUTS = Decoupling((2, 4, 6), ("linear",) * 3)


class Noting(Engine):
    """Keeps the gradients of each update instead of taking it."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.seen: dict[int, list[Tensor]] = {}

    def update(self, index: int) -> None:
        gradients = [parameter.grad for parameter in self.net.blocks[index].parameters()]
        self.seen[index] = [gradient for gradient in gradients if gradient is not None]
        self.optimizers[index].zero_grad()


def test_at_learning_rate_zero_gradients_are_those_of_backprop_on_the_delayed_batch() -> None:
    net = small_net(CUTS)
    net.drop_heads()
    engine = engine_of(net, kind=Noting)
    assert isinstance(engine, Noting)
    rule, top = Replay(engine), len(net.blocks) - 1
    for step in range(7):
        engine.seen = {}
        rule.step([batch(step)])
        for index in range(top + 1):
            delay = top - index
            if step < delay:
                assert index not in engine.seen
            else:
                assert equal_to(
                    engine.seen[index], gradients_by_backprop(net, batch(step - delay))[index], 1e-13
                )


def test_weights_used_in_a_replay_are_those_of_now() -> None:
    """With updates on, the whole algorithm again, written down with explicit tables."""
    net = small_net(Decoupling((2, 4), ("linear",) * 2), "vgg6a", width=0.0625)
    net.drop_heads()
    plain, lr = copy.deepcopy(net), 0.05
    rule = Replay(Engine(net, [torch.optim.SGD(block.parameters(), lr=lr) for block in net.blocks]))
    for step in range(6):
        rule.step([batch(step)])

    inputs: dict[tuple[int, int], Tensor] = {}
    signals: dict[tuple[int, int], Tensor] = {}
    for step in range(6):
        x = batch(step).images
        for index in range(3):
            inputs[index, step] = x
            with torch.no_grad():
                x = plain.blocks[index].layers(x)
        moves = []
        for index, block in enumerate(plain.blocks):
            which = step - (2 - index)
            if which < 0:
                continue
            below = inputs[index, which].clone().requires_grad_()
            features = block.layers(below)
            if index == 2:
                part = batch(which)
                objective = torch.nn.functional.cross_entropy(block.logits(features)[0], part.targets)
            else:
                objective = (features * signals.pop((index, which))).sum()
            gradients = torch.autograd.grad(objective, [below, *block.parameters()])
            if index:
                signals[index - 1, which] = gradients[0]
            moves.append((block, gradients[1:]))
        for block, gradients in moves:
            for parameter, gradient in zip(block.parameters(), gradients, strict=True):
                parameter.data -= lr * gradient
    assert equal_to(list(net.parameters()), list(plain.parameters()), 1e-12)


def test_one_block_is_backpropagation() -> None:
    net = small_net(CUTS).joined()
    greedy = copy.deepcopy(net)
    replay, other = Replay(engine_of(net)), Greedy(engine_of(greedy))
    for step in range(3):
        replay.step([batch(step)])
        other.step([batch(step)])
    assert equal_to(list(net.state_dict().values()), list(greedy.state_dict().values()))


def test_running_statistics_see_each_batch_once() -> None:
    net = small_net(CUTS)
    net.drop_heads()
    rule = Replay(engine_of(net, lr=0.0))
    for step in range(5):
        rule.step([batch(step)])
    counts = [buffer for name, buffer in net.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(count) for count in counts} == {5}
    plain = small_net(CUTS)
    plain.drop_heads()
    with torch.no_grad():
        for step in range(5):
            plain(batch(step).images)
    assert equal_to(list(net.buffers()), list(plain.buffers()), 1e-14)


def test_it_goes_on_from_its_state() -> None:
    net = small_net(CUTS)
    net.drop_heads()
    rule = Replay(engine_of(net))
    for step in range(3):
        rule.step([batch(step)])
    saved, again = copy.deepcopy(rule.state_dict()), copy.deepcopy(net)
    optimizers = copy.deepcopy([o.state_dict() for o in rule._engine.optimizers.values()])
    for step in range(3, 6):
        rule.step([batch(step)])
    engine = engine_of(again)
    for optimizer, state in zip(engine.optimizers.values(), optimizers, strict=True):
        optimizer.load_state_dict(state)
    resumed = Replay(engine)
    resumed.load_state_dict(saved)
    for step in range(3, 6):
        resumed.step([batch(step)])
    assert equal_to(list(again.state_dict().values()), list(net.state_dict().values()))


def test_parts_are_replayed_as_parts() -> None:
    net = small_net(Decoupling((1, 2), ("linear",) * 2), "timm/test_vit")
    net.drop_heads()
    split = copy.deepcopy(net)
    one, other = Replay(engine_of(net)), Replay(engine_of(split))
    for step in range(4):
        whole = batch(step, rows=4, size=64)
        one.step([whole])
        other.step([Part(*rows) for rows in zip(*(column.chunk(2) for column in whole[:3]), strict=True)])
    assert equal_to(list(split.parameters()), list(net.parameters()), 1e-10)
