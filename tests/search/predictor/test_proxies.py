"""NASWOT of all networks in one walk: that of each alone, and that of hooks on its modules."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from timm.layers.activations import GELU
from torch import Tensor, nn
from torch.nn import functional as F

from search.predictor.proxies import nwot
from supernet.layers import Conv, MBConv, Op, Place, Skip, Style
from supernet.presets import preset
from supernet.space import Architecture, Fixed, Layer, Space
from supernet.supernet import Supernet
from supernet.tail import Tail
from tests.programs.evaluator_ranks import drawn, images_of, varied_net
from tests.supernet.nets import skipping_space, small_space
from tools.layout import use_channels_last
from tools.mistake import Mistake

MODULES = (nn.ReLU, nn.ReLU6, nn.SiLU, GELU, nn.Hardswish, nn.LeakyReLU)


def by_hooks(net: Supernet, images: Tensor, architecture: Architecture) -> float:
    """The score by its formula, from what goes into the activations of an extracted network."""
    chain = net.extract(architecture).train()
    codes: list[Tensor] = []
    for module in chain.modules():
        if isinstance(module, MODULES):
            module.register_forward_pre_hook(
                lambda _, given: codes.append((given[0] > 0).flatten(1).to(torch.float64))
            )
    with torch.no_grad():
        chain(images)
    code = torch.cat(codes, dim=1).numpy()
    kernel = [[(one == other).sum() for other in code] for one in code]
    return float(np.log(np.linalg.eigvalsh(kernel)).sum())


def of_acts() -> Space:
    """Networks with each of the activations, one of them in the tail, where there is no BatchNorm."""
    acts = ("relu", "relu6", "gelu", "hard_swish", "leaky_relu")
    ops = tuple(MBConv(3, 2, 0.25, act) for act in acts)
    layers = (Layer(ops, 6, 2), Layer((*ops, Skip()), 6))
    return Space((Fixed(Conv(3), 4),), layers, Tail(hidden_chs=8), style=Style(act="silu"), image_size=8)


SPACES: dict[str, Callable[[], Space]] = {"small": small_space, "skipping": skipping_space, "acts": of_acts}


@pytest.mark.parametrize("name", SPACES)
def test_scores_are_those_of_each_network_alone_and_those_of_hooks(name: str) -> None:
    space = SPACES[name]()
    net = varied_net(space, torch.float64).train()
    (images,) = images_of(space, 7, dtype=torch.float64)
    asked = drawn(space, 8)
    scores = nwot(net, images, iter([*asked, asked[0]]))
    assert len(set(scores)) > 4
    for architecture, score in zip([*asked, asked[0]], scores, strict=True):
        assert nwot(net, images, [architecture]) == [score]
        assert score == pytest.approx(by_hooks(net, images, architecture), rel=1e-9)
    assert nwot(net, images, []) == []


def test_in_single_precision_every_network_of_a_stage_has_its_score_alone() -> None:
    space = preset("tiny", num_classes=10, image_size=16)
    torch.manual_seed(0)
    net = Supernet(space)
    use_channels_last(net)
    images = images_of(space, 16)[0].contiguous(memory_format=torch.channels_last)
    asked = list(space.architectures())[::11]
    scores = nwot(net, images, asked)
    assert all(map(math.isfinite, scores))
    assert [nwot(net, images, [each])[0] for each in asked] == scores


def test_a_skip_adds_nothing_and_its_place_among_skips_does_not_matter() -> None:
    space = skipping_space()
    net = varied_net(space, torch.float64)
    net.layers[2] = copy.deepcopy(net.layers[1])
    (images,) = images_of(space, 6, dtype=torch.float64)
    skip = len(space.layers[1]) - 1
    before, after, both = (Architecture((0, *two, 1, 0)) for two in ((skip, 1), (1, skip), (1, 1)))
    scores = nwot(net, images, [before, after, both])
    assert scores[0] == scores[1] != scores[2]


def test_the_supernet_and_chance_stay_as_they_are() -> None:
    space = skipping_space()
    net = varied_net(space).train()
    net.layers[0].eval()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    (images,) = images_of(space, 6)
    state = {name: values.clone() for name, values in net.state_dict().items()}
    told = [(name, module.training, dict(vars(module))) for name, module in net.named_modules()]
    chance, given = torch.get_rng_state(), images.clone()
    nwot(net, images, drawn(space, 5))
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.equal(images, given)
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(values, state[name]) for name, values in net.state_dict().items())
    assert [(name, module.training, dict(vars(module))) for name, module in net.named_modules()] == told
    assert all(parameter.grad is not None and parameter.requires_grad for parameter in net.parameters())


def test_statistics_that_a_training_left_do_not_matter() -> None:
    space = small_space()
    net = varied_net(space).train()
    (images,) = images_of(space, 6)
    asked = drawn(space, 4)
    scores = nwot(net, images, asked)
    for architecture in asked:
        net(3 * images + 1, architecture)
    with torch.inference_mode():
        assert nwot(net.eval(), images.clone(), asked) == scores


def test_images_that_nothing_can_tell_apart_are_refused_or_have_no_score() -> None:
    space = small_space()
    net = varied_net(space)
    (images,) = images_of(space, 4)
    asked = drawn(space, 3)
    with pytest.raises(Mistake, match="images: 1 cannot be told apart; take two at least"):
        nwot(net, images[:1], asked)
    with pytest.raises(Mistake, match="images: two of them are the same"):
        nwot(net, images[[0, 1, 2, 1]], asked)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
            nn.init.ones_(module.bias)
    assert nwot(net, images, asked[:1]) == [-math.inf]


@dataclass(frozen=True)
class Functional:
    """An operation whose activation is no module; it may write into its input."""

    spoils: bool = False

    def build(self, place: Place, style: Style) -> nn.Module:
        return FunctionalLayer(place, self.spoils)

    def __str__(self) -> str:
        return "functional"


class FunctionalLayer(nn.Module):
    def __init__(self, place: Place, spoils: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(place.in_chs, place.out_chs, 3, padding=1)
        self.spoils = spoils

    def forward(self, features: Tensor) -> Tensor:
        features = F.relu(features - 0.1) if not self.spoils else features.sub_(0.1)
        outputs: Tensor = self.conv(features)
        return outputs


def of_one(op: Op) -> Space:
    return Space((Fixed(Conv(3), 4),), (Layer((op,), 4),), Tail(), image_size=4)


def test_an_activation_counts_wherever_it_is_and_what_spoils_its_input_is_refused() -> None:
    net = varied_net(of_one(Functional()), torch.float64)
    (images,) = images_of(net.space, 5, dtype=torch.float64)
    only = Architecture((0,))
    with torch.no_grad():
        inner = nn.Sequential(*net.stem).train()(images)
    code = torch.cat([(each > 0).flatten(1) for each in (inner, inner - 0.1)], dim=1).double()
    kernel = code @ code.T + (1 - code) @ (1 - code).T
    assert nwot(net, images, [only])[0] == pytest.approx(float(torch.logdet(kernel)), rel=1e-12)
    net = varied_net(of_one(Functional(spoils=True)), torch.float64)
    with pytest.raises(ValueError, match="layer 1 writes into its input"):
        nwot(net, images, [only])


def test_a_choice_that_the_space_does_not_have_is_refused() -> None:
    net = varied_net(small_space())
    with pytest.raises(ValueError, match="layer 2 of space small has candidates 0 to 3, not 4"):
        nwot(net, images_of(net.space, 4)[0], [Architecture((0, 4, 0))])
