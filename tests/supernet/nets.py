"""Small spaces, supernets in double precision, batches for them, and optimisers that keep what they see."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from supernet.engine import SupernetEngine
from supernet.layers import Conv, DepthwiseSeparable, MBConv, Op, Skip, Style
from supernet.objectives import InfoNCE, Objective
from supernet.options import STRATEGIES, ContrastOptions, LayerwiseOptions, PathOptions
from supernet.space import Architecture, Fixed, Layer, Space, stage
from supernet.strategies import make_strategy
from supernet.strategy import Strategy
from supernet.supernet import Supernet
from supernet.tail import Tail
from tools.images.views import Views
from tools.optim import MakeOptimizer

SIZE, CLASSES = 8, 5
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
THREE = (MBConv(3, 2), MBConv(5, 2, 0.25), MBConv(3, 3, 0.5))
SIX = tuple(MBConv(kernel, exp, 0.25) for kernel in (3, 5, 7) for exp in (4, 6))
LOCAL = ("greedy", "nongreedy")


def small_space(image_size: int = SIZE, tail: Tail | None = None) -> Space:
    """Three layers of three modules: one with a stride, one that may be skipped, one with a stride again."""
    return Space(
        (Fixed(Conv(3), 4), Fixed(DepthwiseSeparable(3), 4)),
        (Layer(THREE, 6, 2), Layer((*THREE, Skip()), 6), Layer(THREE, 8, 2)),
        tail or Tail(conv_chs=8),
        name="small",
        style=Style(act="silu"),
        num_classes=CLASSES,
        image_size=image_size,
    )


def skipping_space(ops: Iterable[Op] = (*THREE, Skip())) -> Space:
    """Five layers in two stages, of which all but the first of each may be skipped."""
    ops = tuple(ops)
    layers = [*stage(ops, depth=3, out_chs=6, stride=2), *stage(ops, depth=2, out_chs=8, stride=2)]
    return Space(
        (Fixed(Conv(3), 4),),
        tuple(layers),
        Tail(conv_chs=8),
        name="skipping",
        num_classes=CLASSES,
        image_size=SIZE,
    )


def deep_space() -> Space:
    """LWSL's shape at a fraction of its size: memory lies in the first layers, as there."""
    layers = [
        *stage(SIX, depth=2, out_chs=10, stride=2),
        *stage(SIX, depth=2, out_chs=20, stride=2),
        *stage(SIX, depth=2, out_chs=24, stride=1),
    ]
    return Space(
        (Fixed(Conv(3), 4, 2), Fixed(DepthwiseSeparable(3), 6, 2)),
        tuple(layers),
        Tail(conv_chs=48),
        name="deep",
        style=Style(act="silu"),
        num_classes=CLASSES,
        image_size=64,
    )


def small_net(space: Space | None = None, seed: int = 0) -> Supernet:
    """A supernet in double precision, in training mode."""
    torch.manual_seed(seed)
    return Supernet(space or small_space()).double().train()


def batch(step: int = 0, rows: int = 6, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """The batch of a step: normalised pictures of noise, with labels."""
    source = torch.Generator().manual_seed(1000 + step)
    pixels = torch.rand(rows, 3, size, size, dtype=torch.float64, generator=source)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std, torch.randint(CLASSES, (rows,), generator=source)


def views(**options: Any) -> Views:
    return Views(mean=MEAN, std=STD, seed=7, **options)


def info_nce(**options: Any) -> InfoNCE:
    return InfoNCE(ContrastOptions(projection=6, temperature=0.4), views(**options))


def make(
    name: str,
    net: Supernet | None = None,
    *,
    optimizer: MakeOptimizer | None = None,
    seed: int = 3,
    objective: Objective | None = None,
    engine: SupernetEngine | None = None,
    paths: PathOptions | None = None,
    layerwise: LayerwiseOptions | None = None,
) -> Strategy:
    """A strategy on a small net; without an optimiser it trains nothing but keeps the gradients."""
    assert name in STRATEGIES
    net = net or small_net()
    torch.manual_seed(11)  # for the decoders' weights
    return make_strategy(
        name,
        net,
        optimizer=optimizer or Keeping,
        seed=seed,
        objective=objective,
        engine=engine,
        paths=paths,
        layerwise=layerwise,
    )


def layerwise(**options: Any) -> LayerwiseOptions:
    return LayerwiseOptions(**options)


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-2)


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, weight_decay=4e-5)


class Keeping(torch.optim.SGD):
    """Changes nothing; keeps the gradients that there were at the last update."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, lr=0.0)
        self.kept: dict[nn.Parameter, Tensor | None] = {}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.kept[parameter] = None if parameter.grad is None else parameter.grad.clone()


def whole(strategy: Strategy) -> nn.ModuleDict:
    """The supernet and the decoders, as one module that names all parameters."""
    return nn.ModuleDict({"net": strategy.net, "decoders": strategy.decoders})


def copied(strategy: Strategy) -> tuple[Supernet, list[nn.Module], nn.ModuleDict]:
    """A copy of the supernet and of the decoders, for an oracle, and both as one module."""
    both = copy.deepcopy(whole(strategy))
    net, decoders = both["net"], both["decoders"]
    assert isinstance(net, Supernet)
    assert isinstance(decoders, nn.ModuleList)
    return net, list(decoders), both


Gradients = dict[str, Tensor | None]


def step_gradients(strategy: Strategy, images: Tensor, targets: Tensor, step: int = 0) -> Gradients:
    """What a strategy's step makes of every parameter's gradient; None where the optimiser saw none."""
    strategy.step(images, targets, step)
    kept: dict[nn.Parameter, Tensor | None] = {}
    for optimizer in strategy.optimizers:
        assert isinstance(optimizer, Keeping)
        assert kept.keys().isdisjoint(optimizer.kept)
        kept |= optimizer.kept
    named = dict(whole(strategy).named_parameters())
    assert kept.keys() <= set(named.values())
    assert all(parameter.grad is None for parameter in named.values()), "a gradient is left over"
    return {name: kept.get(parameter) for name, parameter in named.items()}


def accumulated(both: nn.Module) -> Gradients:
    """The gradients that lie in a module."""
    return {name: parameter.grad for name, parameter in both.named_parameters()}


def assert_same_gradients(found: Mapping[str, Tensor | None], wanted: Mapping[str, Tensor | None]) -> None:
    """None where it is to be None, and else equal to 1e-10."""
    assert found.keys() == wanted.keys()
    for name, right in wanted.items():
        left = found[name]
        assert (left is None) == (right is None), f"{name}: {left} for {right}"
        if left is not None and right is not None:
            difference = float((left - right).abs().max())
            assert difference <= 1e-10, f"{name}: {difference}"


class HandMadeSGD:
    """Momentum and weight decay by their formulas; a parameter without gradient is left as it is."""

    def __init__(self, both: nn.Module, lr: float = 0.05, momentum: float = 0.9, decay: float = 1e-2) -> None:
        self._parameters = dict(both.named_parameters())
        self._lr, self._momentum, self._decay = lr, momentum, decay
        self._velocities: dict[str, Tensor] = {}

    def update(self, gradients: Mapping[str, Tensor | None]) -> None:
        for name, gradient in gradients.items():
            if gradient is None:
                continue
            parameter = self._parameters[name]
            with torch.no_grad():
                velocity = gradient + self._decay * parameter
                if name in self._velocities:
                    velocity = velocity + self._momentum * self._velocities[name]
                self._velocities[name] = velocity
                parameter.sub_(self._lr * velocity)


def labelled_loss(targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Cross-entropy by its formula."""

    def loss(logits: Tensor) -> Tensor:
        exponentials = logits.exp()
        chances = exponentials / exponentials.sum(1, keepdim=True)
        return -torch.stack([chances[row, int(label)].log() for row, label in enumerate(targets)]).mean()

    return loss


def nt_xent_by_loops(projections: Tensor, temperature: float) -> Tensor:
    """SimCLR's Eq. 1 over all ordered pairs of views: rows b and B + b."""
    rows = list(projections)
    count = len(rows) // 2

    def alike(a: int, b: int) -> Tensor:
        cosine: Tensor = rows[a] @ rows[b] / (rows[a].norm() * rows[b].norm())
        return cosine

    def pair(a: int, b: int) -> Tensor:
        others = [torch.exp(alike(a, k) / temperature) for k in range(len(rows)) if k != a]
        return -torch.log(torch.exp(alike(a, b) / temperature) / torch.stack(others).sum())

    terms = [pair(b, count + b) + pair(count + b, b) for b in range(count)]
    return torch.stack(terms).sum() / (2 * count)


def snapshot(strategy: Strategy) -> dict[str, Tensor]:
    """All weights and buffers."""
    return {name: values.clone() for name, values in whole(strategy).state_dict().items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """The names of what is not bit-identical."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def modules_of(space: Space, layer: int) -> list[int]:
    """The candidates of a layer that have weights, by their names."""
    return [choice for choice, op in enumerate(space.layers[layer]) if str(op) != "skip"]


def run_path(net: Supernet, path: Architecture, features: Tensor) -> Tensor:
    """The chosen candidates one after the other."""
    for layer, choice in enumerate(path.choices):
        features = net.layers[layer][choice](features)  # type: ignore[index]
    return features


def run_stem(net: Supernet, images: Tensor) -> Tensor:
    for layer in net.stem:
        images = layer(images)
    return images
