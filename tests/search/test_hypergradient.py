"""The adjoint against autograd through the unrolled steps, which is written here in another way."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from local_learning.build import build_chain
from local_learning.catalogue import HEADS
from local_learning.chain import Chain
from local_learning.features import as_map, layout_of
from search.hypergradient import hypergradient
from search.relaxation import RelaxedNet

Named = dict[str, Tensor]

CLASSES = 5
RATES: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-3}


def relaxed(name: str, kinds: tuple[str, ...] = ("aux1", "aux2"), **options: Any) -> RelaxedNet:
    torch.manual_seed(0)
    size = SIZES.get(name, 16)
    if name in DEPTHS:
        net = RelaxedNet(deep_chain(DEPTHS[name]), kinds, CLASSES, 4, **options)
    else:
        scaled = {} if name.startswith("timm/") else {"width": 0.125}
        chain = build_chain(name, num_classes=CLASSES, image_size=size, **scaled)  # type: ignore[arg-type]
        if name.startswith("timm/"):  # its layers are alike
            chain = Chain(list(chain.layers)[:3], chain.classifier)
        net = RelaxedNet(chain.double(), kinds, CLASSES, size, **options)
    with torch.no_grad():
        net.alpha.normal_(0, 0.7)
        net.beta.normal_(0, 0.7)
    return net.double()


DEPTHS = {"deep": 24, "shallow": 6}
SIZES = {"vgg19": 32, "deep": 4, "shallow": 4, "timm/vit_tiny_patch16_224": 32}


def deep_chain(depth: int) -> Chain:
    """Layers without normalisation, through which a signal keeps its size."""
    layers: list[nn.Module] = [nn.Sequential(nn.Flatten(), nn.Linear(48, 12))]
    layers += [Residual() for _ in range(depth - 1)]
    return Chain(layers, nn.Linear(12, CLASSES)).double()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.tanh(self.fc(x))


def batch(step: int, size: int, rows: int = 6) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(100 + step)
    images = torch.randn(rows, 3, size, size, dtype=torch.float64, generator=source)
    return images, torch.randint(CLASSES, (rows,), generator=source)


def batches(net_name: str, count: int) -> list[tuple[Tensor, Tensor]]:
    return [batch(step, SIZES.get(net_name, 16)) for step in range(count)]


def momenta(net: RelaxedNet) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(7)
    return {
        name: 0.1 * torch.randn(p.shape, dtype=torch.float64, generator=source)
        for name, p in net.weights().items()
    }


def gradients_of_nested_loss(net: RelaxedNet, named: Named, images: Tensor, targets: Tensor) -> Named:
    """Eq. 4-6 in another way: the gradient of one weighted sum of losses, divided by the losses' factors."""
    signals, mixture = named["alpha"].softmax(1), named["beta"].softmax(1)
    features, product = images, torch.ones((), dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    factors: Named = {}
    for index, layer in enumerate(net.layers):
        features = called(layer, named, f"layers.{index}.", features)
        factors |= {name: product for name in named if name.startswith(f"layers.{index}.")}
        if index < len(net.heads):
            maps = as_map(features, layout_of(features.shape))
            heads: Any = net.heads[index]
            seen = [maps if HEADS[kind].takes_map else features for kind in net.head_kinds]
            own = [called(head, named, f"heads.{index}.{m}.", seen[m]) for m, head in enumerate(heads)]
            logits = torch.stack(own, dim=-1) @ mixture[index]
            total = total + signals[index, 0] * product * F.cross_entropy(
                logits, targets, label_smoothing=0.1
            )
            weight = signals[index, 0] * product
            factors |= {name: weight for name in named if name.startswith(f"heads.{index}.")}
            product = product * signals[index, 1]
    logits = called(net.classifier, named, "classifier.", features)
    total = total + product * F.cross_entropy(logits, targets, label_smoothing=0.1)
    factors |= {name: product for name in named if name.startswith("classifier.")}
    sources = [named[name] for name in factors]
    found = torch.autograd.grad(total, sources, create_graph=True, materialize_grads=True)
    return {name: each / factors[name] for name, each in zip(factors, found, strict=True)}


def called(module: nn.Module, named: Named, prefix: str, inputs: Tensor) -> Tensor:
    own = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    outputs: Tensor = functional_call(module, own, (inputs,))
    return outputs


def unrolled(
    net: RelaxedNet,
    inner: list[tuple[Tensor, Tensor]],
    validation: tuple[Tensor, Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    momentum_buffers: dict[str, Tensor] | None = None,
    statistics: str = "running",
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """(d alpha, d beta, loss, weights) by autograd through all steps at once."""
    net = copy.deepcopy(net).train()
    meta = {"alpha": net.alpha.detach().requires_grad_(), "beta": net.beta.detach().requires_grad_()}
    weights: dict[str, Tensor] = {name: p.detach().requires_grad_() for name, p in net.weights().items()}
    moved = momentum_buffers or {name: torch.zeros_like(w) for name, w in weights.items()}
    for images, targets in inner:
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            found = gradients_of_nested_loss(net, {**weights, **meta}, images, targets)
        moved = {name: momentum * moved[name] + found[name] + weight_decay * w for name, w in weights.items()}
        weights = {name: w - lr * moved[name] for name, w in weights.items()}
    net.eval()
    for module in net.modules():
        if statistics == "batch" and isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.train()
    logits = functional_call(net, {**weights, **meta}, (validation[0],))
    loss = F.cross_entropy(logits, validation[1], label_smoothing=0.1)
    alpha, beta = torch.autograd.grad(loss, [meta["alpha"], meta["beta"]])
    return alpha, beta, loss.detach(), {name: w.detach() for name, w in weights.items()}


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


CASES = [
    ("resnet18", ("aux1", "aux3"), 2),
    ("vgg19", ("linear", "aux1"), 2),
    ("vgg6a", ("aux1", "aux2", "aux4"), 1),
    ("vgg6a", ("mlp_sr", "conv1c2f"), 5),
    ("shallow", ("linear", "conv1c2f"), 1),
    ("deep", ("linear", "conv1c2f"), 3),
    ("resnet18", ("linear", "aug2@0.5/pool"), 2),
    pytest.param("timm/vit_tiny_patch16_224", ("aug1", "linear"), 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "kinds", "steps"), CASES)
def test_equals_autograd_through_the_unrolled_steps(name: str, kinds: tuple[str, ...], steps: int) -> None:
    net = relaxed(name, kinds)
    inner, validation, start = batches(name, steps), batch(99, SIZES.get(name, 16)), momenta(net)
    # Untrained and with six images, VGG-19 loses digits over five larger steps, in either way.
    rates = RATES | {"lr": 0.005} if name == "vgg19" else RATES
    expected = unrolled(net, inner, validation, **rates, momentum_buffers=start)
    found = hypergradient(net, inner, validation, **rates, momentum_buffers=start)
    assert error(found.alpha, expected[0]) < 1e-9
    assert error(found.beta, expected[1]) < 1e-9
    assert torch.allclose(found.loss, expected[2], rtol=1e-12)
    for weight, value in expected[3].items():
        assert torch.allclose(found.parameters[weight], value, rtol=1e-9, atol=1e-11), weight


@pytest.mark.parametrize("name", ["vgg6a", "shallow"])
def test_equals_finite_differences(name: str) -> None:
    net = relaxed(name, ("linear", "conv1c2f"))
    inner, validation = batches(name, 2), batch(99, SIZES.get(name, 16))
    # Running statistics are not differentiated; these depend on alpha and beta all the same.
    through: dict[str, Any] = {"statistics": "batch"}
    found = hypergradient(net, inner, validation, **RATES, **through)
    source = torch.Generator().manual_seed(5)
    for meta, gradient in ((net.alpha, found.alpha), (net.beta, found.beta)):
        direction = torch.randn(meta.shape, dtype=torch.float64, generator=source)
        losses = []
        for sign in (1, -1):
            moved = copy.deepcopy(net)
            with torch.no_grad():
                (moved.alpha if meta is net.alpha else moved.beta).add_(direction, alpha=sign * 1e-5)
            losses.append(hypergradient(moved, inner, validation, **RATES, **through).loss)
        slope = (losses[0] - losses[1]) / 2e-5
        assert float(abs(slope - (gradient * direction).sum()) / abs(slope)) < 1e-5


def test_kept_graphs_change_nothing() -> None:
    net = relaxed("vgg6a")
    inner, validation = batches("vgg6a", 3), batch(99, 16)
    expected = hypergradient(net, inner, validation, **RATES)
    for kept in (1, 3):
        found = hypergradient(net, inner, validation, **RATES, keep_graphs=kept)
        assert error(found.alpha, expected.alpha) < 1e-12
        assert error(found.beta, expected.beta) < 1e-12


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_a_larger_validation_batch(statistics: str) -> None:
    net = relaxed("vgg6a")
    inner, validation = batches("vgg6a", 2), batch(99, 16, rows=16)
    expected = unrolled(net, inner, validation, **RATES, statistics=statistics)
    found = hypergradient(net, inner, validation, **RATES, statistics=statistics)
    assert error(found.alpha, expected[0]) < 1e-9
    assert torch.allclose(found.loss, expected[2], rtol=1e-12)


def test_validation_with_the_batchs_own_statistics() -> None:
    net = relaxed("vgg6a")
    inner, validation = batches("vgg6a", 2), batch(99, 16)
    expected = unrolled(net, inner, validation, **RATES, statistics="batch")
    found = hypergradient(net, inner, validation, **RATES, statistics="batch")
    assert error(found.alpha, expected[0]) < 1e-9
    running = hypergradient(net, inner, validation, **RATES)
    assert error(running.alpha, expected[0]) > 1e-3


def test_dropout_is_the_same_when_a_step_is_made_again() -> None:
    torch.manual_seed(0)
    chain = build_chain("vgg6a", num_classes=CLASSES, image_size=16, width=0.125, dropout=0.5)
    net = RelaxedNet(chain.double(), ("linear", "aux1"), CLASSES, 16).double()
    inner, validation = batches("vgg6a", 3), batch(99, 16)
    torch.manual_seed(3)
    expected = unrolled(net, inner, validation, **RATES)
    torch.manual_seed(3)
    found = hypergradient(net, inner, validation, **RATES)
    after = torch.rand(1)
    assert error(found.alpha, expected[0]) < 1e-9
    torch.manual_seed(3)
    other = hypergradient(net, inner, validation, **RATES, keep_graphs=3)
    assert error(other.alpha, expected[0]) < 1e-9
    assert torch.equal(torch.rand(1), after), "the generator must not depend on what is made again"


def test_the_net_is_left_as_it_was() -> None:
    net = relaxed("vgg6a").eval()
    net.layers[0].train()
    state = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    inner, validation = batches("vgg6a", 2), batch(99, 16)
    found = hypergradient(net, inner, validation, **RATES)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert modes == [module.training for module in net.modules()]
    assert all(parameter.grad is None for parameter in net.parameters())
    assert found.parameters.keys() == found.momentum_buffers.keys() == net.weights().keys()


def test_it_does_not_decay_with_depth() -> None:
    """The released code's falls by half with every layer further down."""
    net = relaxed("deep", ("linear",))
    with torch.no_grad():
        net.alpha.zero_()
    inner, validation = batches("deep", 3), batch(99, 4)
    exact = hypergradient(net, inner, validation, **RATES).alpha[:, 0].abs()
    released = hypergradient(net, inner, validation, **RATES, objective="training").alpha[:, 0].abs()
    lower, upper = slice(0, 8), slice(15, 23)
    assert float(exact[upper].median() / exact[lower].median()) > 0.02
    assert float(released[upper].median() / released[lower].median()) < 1e-3


@pytest.mark.parametrize("size", [9.0, 40.0])
def test_decided_signals_neither_overflow_nor_lose_digits(size: float) -> None:
    net = relaxed("deep", ("linear", "conv1c2f"))
    with torch.no_grad():
        net.alpha[:, 0] = size * (1 - 2 * (torch.arange(23) % 2))
        net.alpha[:, 1] = 0
    inner, validation = batches("deep", 2), batch(99, 4)
    found = hypergradient(net, inner, validation, **RATES)
    assert bool(found.alpha.isfinite().all())
    if size < 10:  # beyond, the products that the other way divides by are next to nothing
        expected = unrolled(net, inner, validation, **RATES)
        assert error(found.alpha, expected[0]) < 1e-6
    single = copy.deepcopy(net).float()
    inner32 = [(images.float(), targets) for images, targets in inner]
    small = hypergradient(single, inner32, (validation[0].float(), validation[1]), **RATES)
    assert error(small.alpha.double(), found.alpha) < 1e-3


def test_what_must_be_zero_is_zero() -> None:
    net = relaxed("vgg6a")
    inner, validation = batches("vgg6a", 1), batch(99, 16)
    found = hypergradient(net, inner, validation, **RATES)
    assert float(found.alpha.sum(1).abs().max()) < 1e-14 * float(found.alpha.abs().max()) + 1e-16
    assert float(found.beta.sum(1).abs().max()) < 1e-13 * float(found.beta.abs().max()) + 1e-16
    with torch.no_grad():
        net.alpha.copy_(torch.tensor([-40.0, 40.0]))  # backpropagation: heads teach nobody
    none = hypergradient(net, inner, validation, **RATES)
    assert float(none.beta.abs().max()) < 1e-15


def test_the_released_objective_is_the_last_training_loss() -> None:
    net = relaxed("vgg6a", logit_scaling=True)
    inner = batches("vgg6a", 3)
    found = hypergradient(net, inner, batch(99, 16), **RATES, objective="training")
    losses = []
    for sign in (1, -1):
        moved = copy.deepcopy(net).train()
        with torch.no_grad():
            moved.alpha[2, 0] += sign * 1e-5
        after = hypergradient(moved, inner[:2], batch(99, 16), **RATES).parameters
        moved.load_state_dict({**moved.state_dict(), **after})
        losses.append(moved.nested_loss(*inner[2]).detach())
    slope = (losses[0] - losses[1]) / 2e-5
    assert abs(float(slope - found.alpha[2, 0])) < 1e-5 * abs(float(slope))
    assert torch.allclose(found.loss, losses[0], rtol=1e-4)


def test_frozen_lower_layers() -> None:
    net = relaxed("vgg6a")
    net.layers[0].requires_grad_(False)
    inner, validation = batches("vgg6a", 2), batch(99, 16)
    expected = unrolled(net, inner, validation, **RATES)
    found = hypergradient(net, inner, validation, **RATES)
    assert error(found.alpha, expected[0]) < 1e-9


def test_without_batches_there_is_nothing_to_differentiate() -> None:
    with pytest.raises(ValueError, match="at least one inner step"):
        hypergradient(relaxed("vgg6a"), [], batch(99, 16), **RATES)
