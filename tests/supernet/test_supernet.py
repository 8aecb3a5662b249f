import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from local_learning.chain import Chain
from supernet.layers import Conv, MBConv, Shuffle, Skip, Style
from supernet.presets import PRESETS, preset
from supernet.sampling import sample
from supernet.space import Architecture, Fixed, Space, stage
from supernet.supernet import Supernet, build_architecture
from supernet.tail import Tail

SIZE = 16
DISTINCT = [name for name in PRESETS if name != "lwsl_table1"]  # lwsl_fit has all of its layers, and more


def supernet(name: str) -> Supernet:
    torch.manual_seed(0)
    return Supernet(preset(name, num_classes=10, image_size=SIZE))


def own_space() -> Space:
    layers = stage(
        (Conv(3), Skip(), MBConv(3, 2, 0.25), Shuffle(3)),
        depth=3,
        out_chs=8,
        stride=2,
        first=(Conv(3), Conv(5)),
    )
    return Space((Fixed(Conv(3), 4),), tuple(layers), Tail(conv_chs=12, hidden_chs=6, dropout=0.5))


def labelled() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, SIZE, SIZE), torch.randint(10, (4,))


def backward(logits: Tensor, targets: Tensor) -> None:
    loss: Any = F.cross_entropy(logits, targets)
    loss.backward()


def parts(net: Supernet, architecture: Architecture) -> list[nn.Module]:
    """The supernet's modules that the architecture runs, in order, but for skips."""
    chosen = [net.candidate(layer, choice) for layer, choice in enumerate(architecture.choices)]
    return [*net.stem, *(each for each in chosen if not isinstance(each, nn.Identity)), net.tail]


def pieces(chain: Chain) -> list[nn.Module]:
    """The same of a chain whose stem is part of the first layer."""
    first = chain.layers[0]
    assert isinstance(first, nn.Sequential)
    stem, *block = first
    assert isinstance(stem, nn.Sequential)
    return [*stem, *block, *chain.layers[1:], chain.classifier]


def assert_equal_inside(net: Supernet, architecture: Architecture, chain: Chain, *, gradients: bool) -> None:
    """Parameters or their gradients, and buffers, bit for bit and name by name."""
    for theirs, ours in zip(parts(net, architecture), pieces(chain), strict=True):
        parameters = dict(ours.named_parameters())
        for name, parameter in theirs.named_parameters():
            if gradients:
                grad = parameters[name].grad
                assert parameter.grad is not None
                assert grad is not None
                assert torch.equal(grad, parameter.grad)
            else:
                assert torch.equal(parameters[name], parameter)
        buffers = dict(ours.named_buffers())
        for name, buffer in theirs.named_buffers():
            assert torch.equal(buffers[name], buffer)
        assert len(parameters) == len(list(theirs.parameters()))
        assert len(buffers) == len(list(theirs.buffers()))


# ---- extraction ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_an_extracted_network_is_the_path_bit_for_bit(name: str) -> None:
    net = supernet(name)
    layers, rng = net.space.layers, random.Random(2)
    if name in ("lwsl_table1", "lwsl_fit"):  # their blocks are cream's in another style
        drawn = [sample(net.space, rng) for _ in range(2)]
    else:  # every candidate of every layer
        choices = range(max(map(len, layers)))
        drawn = [Architecture(tuple(min(choice, len(layer) - 1) for layer in layers)) for choice in choices]
        drawn.append(sample(net.space, rng))
    for index, architecture in enumerate(drawn):
        net.train(index % 2 == 0)
        chain = net.extract(architecture)
        assert all(module.training == net.training for module in chain.modules())
        assert_equal_inside(net, architecture, chain, gradients=False)
        images, targets = labelled()
        logits, path_logits = chain(images), net(images, architecture)
        assert torch.equal(logits, path_logits)
        backward(logits, targets)
        net.zero_grad()
        backward(path_logits, targets)
        assert_equal_inside(net, architecture, chain, gradients=True)
        with torch.no_grad():
            assert torch.equal(chain.eval()(images), net.eval()(images, architecture))


@pytest.mark.parametrize("name", ["nas_bench_macro", "tiny"])
def test_training_a_path_is_training_the_extracted_network(name: str) -> None:
    net = supernet(name)
    architecture = sample(net.space, random.Random(0))
    chain = net.extract(architecture)
    optimizers = [torch.optim.SGD(each.parameters(), 0.1, 0.9, weight_decay=0.01) for each in (net, chain)]
    for _ in range(5):
        images, targets = labelled()
        for logits, optimizer in zip((net(images, architecture), chain(images)), optimizers, strict=True):
            optimizer.zero_grad()
            backward(logits, targets)
            optimizer.step()
    assert_equal_inside(net, architecture, chain, gradients=False)


@pytest.mark.parametrize("name", DISTINCT)
def test_only_what_was_chosen_gets_gradients_and_statistics(name: str) -> None:
    net = supernet(name)
    before = {key: buffer.clone() for key, buffer in net.named_buffers()}
    architecture = sample(net.space, random.Random(1))
    images, targets = labelled()
    backward(net(images, architecture), targets)
    chosen = {id(each) for part in parts(net, architecture) for each in [*part.parameters(), *part.buffers()]}
    assert {id(each) for each in net.parameters() if each.grad is not None} == {
        id(each) for each in net.parameters() if id(each) in chosen
    }
    for key, buffer in net.named_buffers():
        assert torch.equal(buffer, before[key]) == (id(buffer) not in chosen)
    assert any(each.grad is None for each in net.parameters())


@pytest.mark.parametrize("fresh", [False, True])
def test_nothing_done_to_the_chain_reaches_the_supernet(fresh: bool) -> None:
    net = supernet("tiny")
    architecture = Architecture((1, 2, 0, 3))
    images, targets = labelled()
    backward(net(images, architecture), targets)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    grads = {key: None if p.grad is None else p.grad.clone() for key, p in net.named_parameters()}
    output = net.eval()(images, architecture)
    chain = net.extract(architecture, fresh=fresh)
    assert all(parameter.grad is None for parameter in chain.parameters())
    optimizer = torch.optim.SGD(chain.train().parameters(), 1.0)
    backward(chain(images), targets)
    optimizer.step()
    chain.layers[0] = nn.Identity()
    for value in chain.state_dict().values():
        value.zero_()
    chain.requires_grad_(False).double()
    assert torch.equal(net(images, architecture), output)
    assert not any(module.training for module in net.modules())
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key])
    for key, parameter in net.named_parameters():
        old = grads[key]
        assert parameter.requires_grad
        if old is None:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, old)


def test_nothing_done_to_the_supernet_reaches_the_chain() -> None:
    net = supernet("tiny")
    images, _ = labelled()
    chain = net.extract(Architecture((1, 2, 0, 3))).eval()
    output = chain(images)
    for value in net.state_dict().values():
        value.zero_()
    net.train()
    assert torch.equal(chain(images), output)
    assert not chain.training


@pytest.mark.parametrize(
    ("name", "fresh"),
    [
        ("lwsl_table1", True),
        ("lwsl_fit", False),
        ("cream", True),
        *(("nas_bench_macro", fresh) for fresh in (False, True)),
        *(("tiny", fresh) for fresh in (False, True)),
    ],
)
def test_the_stem_is_part_of_the_first_layer_that_is_chosen(name: str, fresh: bool) -> None:
    with torch.device("meta"):
        net = supernet(name)
    rng = random.Random(3)
    for _ in range(2):
        architecture = sample(net.space, rng)
        with torch.device("meta"):
            chain = net.extract(architecture, fresh=fresh)
            unit = net.extract(architecture, fresh=fresh, stem="unit")
        skips = net.space.describe(architecture).count("skip")
        assert chain.num_layers == max(1, len(net.space.layers) - skips)
        assert unit.num_layers == len(net.space.stem) + len(net.space.layers) - skips
        assert not any(isinstance(layer, nn.Identity) for layer in chain.layers)
        expected = [list(map(type, part.modules())) for part in parts(net, architecture)]
        assert [list(map(type, part.modules())) for part in pieces(chain)] == expected
        found = [list(map(type, part.modules())) for part in [*unit.layers, unit.classifier]]
        assert found == expected
        assert chain.width == 1.0


def test_what_is_no_architecture_is_refused() -> None:
    net = supernet("tiny")
    images, _ = labelled()
    wrong = Architecture((0, 4, 0, 0))
    for call in (
        lambda: net(images, wrong),
        lambda: net.extract(wrong),
        lambda: net.extract(wrong, fresh=True),
        lambda: build_architecture(net.space, wrong),
    ):
        with pytest.raises(ValueError, match="layer 2 of space tiny has candidates 0 to 3, not 4"):
            call()


def test_the_parts_of_a_supernet_are_its_forward_pass() -> None:
    torch.manual_seed(0)
    net = Supernet(own_space()).eval()
    assert [len(list(candidates.children())) for candidates in net.layers] == [2, 4, 4]
    images, _ = labelled()
    architecture = Architecture((1, 2, 3))
    features = images
    for part in parts(net, architecture):
        features = part(features)
    assert torch.equal(net(images, architecture), features)
    assert torch.equal(net.tail(net.middle(net.begin(images), architecture)), features)
    assert net.layers[1][2] is net.candidate(1, 2)  # type: ignore[index]
    skipped = net.middle(net.begin(images), Architecture((1, 1, 1)))
    assert torch.equal(skipped, net.candidate(0, 1)(net.begin(images)))


def test_dropout_draws_alike_in_path_and_chain() -> None:
    torch.manual_seed(0)
    net = Supernet(own_space())
    architecture = Architecture((0, 3, 2))
    chain = net.extract(architecture)
    images, _ = labelled()
    state = torch.get_rng_state()
    logits = chain(images)
    torch.set_rng_state(state)
    assert torch.equal(net(images, architecture), logits)
    assert not torch.equal(net(images, architecture), logits)


# ---- initial weights -----------------------------------------------------------------------------------


def assert_initial(net: nn.Module, classifier_init: str = "torch") -> None:
    """Every weight is drawn by its rule: five standard errors at most from what it says."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            spread = module.weight.std().item() / math.sqrt(2 / fan_out)
            assert abs(spread - 1) < 5 / math.sqrt(2 * module.weight.numel())
            assert abs(module.weight.mean().item()) < 5 * math.sqrt(2 / fan_out / module.weight.numel())
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            assert (module.weight == 1).all()
            assert not module.bias.any()
            assert not module.running_mean.any()
            assert (module.running_var == 1).all()
        elif isinstance(module, nn.Linear):
            by_torch = classifier_init == "torch" and name.endswith(".fc")
            bound = 1 / math.sqrt(module.in_features if by_torch else module.out_features)
            assert 0.95 * bound < module.weight.abs().max() <= bound
            assert abs(module.weight.std().item() / bound * math.sqrt(3) - 1) < 0.1
            assert bool(module.bias.any()) == by_torch
            assert module.bias.abs().max() <= bound


@pytest.mark.parametrize("name", ["cream", "nas_bench_macro", "tiny"])
def test_initial_weights_follow_the_reference(name: str) -> None:
    net = supernet(name)
    assert_initial(net)
    architecture = sample(net.space, random.Random(0))
    assert_initial(net.extract(architecture, fresh=True))
    assert_initial(Supernet(net.space, classifier_init="timm"), "timm")
    assert_initial(build_architecture(net.space, architecture, classifier_init="timm"), "timm")


@pytest.mark.parametrize(("classes", "seed"), [(10, 0), (100, 1), (1000, 2)])
def test_the_first_loss_is_that_of_a_guess(classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    space = preset("nas_bench_macro", num_classes=classes, image_size=16)
    path = sample(space, random.Random(seed))
    images, labels = torch.randn(64, 3, 16, 16), torch.randint(classes, (64,))
    for net in (build_architecture(space, path), Supernet(space).extract(path)):
        assert abs(F.cross_entropy(net(images), labels).item() - math.log(classes)) < 0.15


def test_the_range_of_timm_is_for_a_thousand_classes() -> None:
    space = preset("nas_bench_macro", num_classes=10, image_size=16)
    torch.manual_seed(0)
    net = build_architecture(space, Architecture((2,) * 8), classifier_init="timm")
    logits = net(torch.randn(64, 3, 16, 16))
    assert F.cross_entropy(logits, torch.randint(10, (64,))) > math.log(10) + 0.5


def test_the_classifiers_first_weights_change_no_others() -> None:
    space = own_space()
    drawn: dict[str, tuple[dict[str, Tensor], Tensor]] = {}
    for classifier_init in ("torch", "timm"):
        torch.manual_seed(5)
        net = Supernet(space, classifier_init=classifier_init)
        drawn[classifier_init] = net.state_dict(), torch.rand(4)
    (ours, after), (theirs, after_theirs) = drawn["torch"], drawn["timm"]
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == {
        "tail.fc.weight",
        "tail.fc.bias",
    }
    assert torch.equal(after, after_theirs)
    with pytest.raises(ValueError, match=r"classifier_init: unknown value 'keras'"):
        Supernet(space, classifier_init="keras")


def test_fresh_weights_are_others_of_the_same_shapes() -> None:
    net = supernet("nas_bench_macro").double()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.add_(1)
    architecture = Architecture((1, 2, 0, 1, 0, 2, 1, 2))
    inherited, fresh = net.extract(architecture), net.extract(architecture, fresh=True)
    other = net.extract(architecture, fresh=True)
    ours, theirs = inherited.state_dict(), fresh.state_dict()
    assert [(key, value.shape, value.dtype) for key, value in ours.items()] == [
        (key, value.shape, value.dtype) for key, value in theirs.items()
    ]
    assert not any(torch.equal(ours[key], theirs[key]) for key in ours)
    random_ones = [key for key, value in theirs.items() if value.ndim > 1]
    assert len(random_ones) > 10
    assert not any(torch.equal(theirs[key], other.state_dict()[key]) for key in random_ones)
    assert_initial(fresh)


def test_one_seed_gives_one_supernet() -> None:
    def first(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([each.flatten() for each in Supernet(own_space()).parameters()])

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


@pytest.mark.parametrize("act", ["relu", "gelu", "leaky_relu"])
def test_the_tails_hidden_layer_has_the_spaces_activation(act: str) -> None:
    torch.manual_seed(0)
    space = Space((), own_space().layers, Tail(hidden_chs=6), style=Style(act=act))
    tail = Supernet(space).tail.double()
    features = torch.randn(3, 8, 4, 4, dtype=torch.float64)
    hidden = features.mean((2, 3)) @ tail.get_parameter("hidden.weight").T
    slopes = {"relu": F.relu(hidden), "gelu": F.gelu(hidden), "leaky_relu": F.leaky_relu(hidden)}
    activated = slopes[act]
    logits = activated @ tail.get_parameter("fc.weight").T + tail.get_parameter("fc.bias")
    torch.testing.assert_close(tail(features), logits, rtol=1e-12, atol=1e-12)
