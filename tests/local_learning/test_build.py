import math
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from local_learning.build import build_chain
from local_learning.networks.catalogue import NETWORKS
from tools.cost import count_macs, count_params

# Name, width, image size, classes, layers, parameters, multiply-accumulates to the digits given.
PINS = [
    ("resnet50", 1.0, 224, 1000, 16, 25_557_032, "4.089G"),
    ("resnet101", 1.0, 224, 1000, 33, 44_549_160, "7.801G"),
    ("resnet152", 1.0, 224, 1000, 50, 60_192_808, "11.514G"),
    ("resnet50", 0.25, 32, 10, 16, 1_484_186, "81.45M"),
    ("resnet101", 0.25, 32, 10, 33, 2_680_986, "157.21M"),
    ("resnet152", 0.25, 32, 10, 50, 3_667_354, "232.97M"),
    ("vgg19", 0.25, 32, 10, 16, 2_446_202, "26.40M"),
    ("resnet32", 1.0, 32, 10, 15, 466_906, "69.12M"),
    ("resnet32", 2.0, 32, 10, 15, 1_860_522, "275.61M"),
]


@pytest.mark.parametrize(("name", "width", "size", "classes", "layers", "params", "macs"), PINS)
def test_the_papers_networks(
    name: str, width: float, size: int, classes: int, layers: int, params: int, macs: str
) -> None:
    chain = build_chain(name, num_classes=classes, image_size=size, width=width)
    assert chain.num_layers == layers
    assert count_params(chain) == params
    digits = len(macs[:-1].split(".")[1])
    unit = {"M": 1e6, "G": 1e9}[macs[-1]]
    assert f"{count_macs(chain, (3, size, size)) / unit:.{digits}f}{macs[-1]}" == macs
    assert chain.width == width


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 8), ("resnet34", 16), ("resnet110", 54)])
def test_layers_of_the_other_resnets(name: str, layers: int) -> None:
    assert build_chain(name, num_classes=10, image_size=32).num_layers == layers


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_is_torchvisions_with_its_weights(name: str) -> None:
    chain = build_chain(name, num_classes=20, image_size=112)
    theirs = torchvision.models.get_model(name, num_classes=20)
    assert count_params(chain) == count_params(theirs)
    # Both list their parameters and buffers from the image to the logits.
    state = dict(zip(chain.state_dict(), theirs.state_dict().values(), strict=True))
    chain.load_state_dict(state)
    images = torch.randn(2, 3, 112, 112)
    for mode in (False, True):
        chain.train(mode)
        theirs.train(mode)
        assert torch.equal(chain(images), theirs(images))


def test_the_stem_follows_the_image_size() -> None:
    def first_map(size: int) -> int:
        chain = build_chain("resnet18", num_classes=10, image_size=size, width=0.125)
        return int(chain.layers[0](torch.zeros(2, 3, size, size)).shape[-1])

    assert [first_map(size) for size in (32, 64, 224)] == [32, 32, 56]


def test_vgg19_pools_in_front_of_the_next_convolution() -> None:
    chain = build_chain("vgg19", num_classes=10, image_size=32, width=0.125)
    maps, x = [], torch.zeros(2, 3, 32, 32)
    for layer in chain.layers:
        x = layer(x)
        maps.append(x.shape[-1])
    assert maps == [32] * 2 + [16] * 2 + [8] * 4 + [4] * 4 + [2] * 4
    assert chain(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    large = build_chain("vgg19", num_classes=3, image_size=224, width=0.03125)
    assert large.classifier(torch.zeros(2, 16, 14, 14)).shape == (2, 3)


def test_vgg6a_and_the_mlp() -> None:
    vgg = build_chain("vgg6a", num_classes=10, image_size=32)
    assert vgg.num_layers == 5
    convs = [(3, 128), (128, 256), (256, 512), (512, 512)]
    hidden = 8192 * 1024 + 1024
    assert count_params(vgg) == sum(9 * a * b + 3 * b for a, b in convs) + hidden + 10_250
    assert vgg.layers[4](torch.zeros(2, 512, 4, 4)).shape == (2, 1024)

    mlp = build_chain("mlp", num_classes=10, image_size=28, in_chs=1, width=0.5)
    assert mlp.num_layers == 1
    assert count_params(mlp) == 784 * 250 + 250 + 2510
    assert mlp(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize("init", ["fan_in", "fan_out"])
def test_initial_weights(init: Any) -> None:
    torch.manual_seed(0)
    chain = build_chain("vgg6a", num_classes=10, image_size=32, init=init)
    convs = [m for m in chain.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        fan = 9 * (conv.in_channels if init == "fan_in" else conv.out_channels)
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.1)
        assert conv.bias is not None
        assert conv.bias.abs().max() == 0
    fc = chain.layers[4].fc
    assert isinstance(fc, nn.Linear)
    fan = fc.in_features if init == "fan_in" else fc.out_features
    assert fc.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.02)
    resnet = build_chain("resnet18", num_classes=10, image_size=32, init=init)
    norms = [m for m in resnet.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


def test_the_callers_seed_decides() -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(build_chain("resnet32", num_classes=10, image_size=32).state_dict())
    same = [all(torch.equal(weights[0][k], other[k]) for k in other) for other in weights[1:]]
    assert same == [True, False]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_logits_and_gradients(name: str) -> None:
    chain = build_chain(name, num_classes=7, image_size=32, width=0.125)
    chain(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in chain.parameters())


def test_dropout_reaches_the_networks_that_have_one() -> None:
    for name, count in (("vgg19", 2), ("vgg6a", 5), ("mlp", 1)):
        chain = build_chain(name, num_classes=10, image_size=32, width=0.125, dropout=0.5)
        assert [m.p for m in chain.modules() if isinstance(m, nn.Dropout)] == [0.5] * count


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet51", {}, "network 'resnet51' is unknown; did you mean 'resnet50'"),
        ("timm/resnet50x", {}, "network 'timm/resnet50x' is unknown; did you mean 'timm/resnet50"),
        ("timm/qqqq", {}, "network 'timm/qqqq' is unknown; the networks are "),
        ("qqqqqq", {}, "the networks are resnet18, .*mlp and timm/<model name>"),
        ("resnet50", {"width": 0.0}, "width is 0.0; it must be"),
        ("resnet50", {"width": math.nan}, "width is nan; it must be"),
        ("resnet50", {"num_classes": 0}, "num_classes is 0; it must be at least 1"),
        ("resnet50", {"in_chs": 0}, "in_chs is 0; it must be at least 1"),
        ("resnet50", {"image_size": 4}, "image_size is 4; resnet50 needs at least 8"),
        ("vgg19", {"image_size": 28}, "image_size is 28; vgg19 needs at least 32"),
        ("resnet50", {"dropout": 0.1}, "dropout: resnet50 has none"),
        ("vgg19", {"dropout": 1.0}, "dropout is 1.0; it must be"),
        ("vgg19", {"drop_path": 0.1}, "drop_path: vgg19 has none"),
        ("vgg19", {"init": "xavier"}, "init is 'xavier'; it must be fan_in or fan_out"),
        ("resnet50", {"pretrained": True}, "pretrained: there are no weights for resnet50"),
        ("timm/resnet18", {"width": 0.5}, "width: timm/resnet18 cannot be scaled"),
        ("timm/resnet18", {"init": "fan_out"}, "init: timm/resnet18 is initialised as timm does it"),
        ("timm/vgg11", {"drop_path": 0.1}, "drop_path: timm/vgg11 has no such option"),
        ("timm/convnext_atto_rms", {"pretrained": True}, "pretrained: no weights .*; weights FILE"),
    ],
)
def test_mistakes_are_named_in_one_line(name: str, options: dict[str, Any], message: str) -> None:
    arguments = {"num_classes": 10, "image_size": 32} | options
    with pytest.raises(ValueError, match=message) as caught:
        build_chain(name, **arguments)
    assert "\n" not in str(caught.value)


def test_a_stem_of_its_own_is_one_layer_more_and_the_same_network() -> None:
    torch.manual_seed(0)
    fused = build_chain("resnet32", num_classes=10, image_size=32, width=0.25)
    torch.manual_seed(0)
    unit = build_chain("resnet32", num_classes=10, image_size=32, width=0.25, stem="unit")
    assert (fused.num_layers, unit.num_layers) == (15, 16)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(fused(images), unit(images))
    assert unit.layers[0](images).shape == (2, 4, 32, 32)
    with pytest.raises(ValueError, match="stem: only the ResNets"):
        build_chain("vgg19", num_classes=10, image_size=32, stem="unit")
    with pytest.raises(ValueError, match="stem is 'flat'"):
        build_chain("resnet32", num_classes=10, image_size=32, stem="flat")
