import copy
import functools
import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from local_learning.build import build_chain
from local_learning.chain import Chain
from local_learning.networks.traced import split, timm_names
from tools.cost import count_macs, count_params

slow = pytest.mark.slow

# Model, image size, layers: the blocks of its paper, then what stands between stages or behind the last.
FAMILIES = [
    ("resnet18", 64, 8),
    ("resnet14t", 64, 4),  # of bottlenecks
    ("convnext_atto", 64, 12 + 3),
    ("mobilenetv3_small_050", 64, 11 + 1),
    ("efficientnet_b0", 64, 16 + 1),
    ("regnety_002", 64, 1 + 1 + 4 + 7),
    ("vit_tiny_patch16_224", 64, 12),
    ("mixer_s32_224", 64, 8),
    ("poolformer_s12", 64, 12 + 3),
    pytest.param("ghostnet_050", 64, 16 + 1, marks=slow),
    ("pvt_v2_b0", 64, 8 + 3),
    ("edgenext_xx_small", 64, 12 + 3),
    pytest.param("repvgg_a0", 64, 21, marks=slow),
    ("nf_resnet26", 64, 8),
    pytest.param("densenet121", 64, 4 + 3, marks=slow),
    pytest.param("swin_tiny_patch4_window7_224", 56, 12 + 3, marks=slow),
    pytest.param("fastvit_t8", 64, 2 + 2 + 4 + 2 + 4, marks=slow),
    pytest.param("xcit_nano_12_p16_224", 64, 12 + 2, marks=slow),
]


def make(name: str, size: int, *, dropout: float = 0.0, drop_path: float = 0.0) -> tuple[Chain, nn.Module]:
    """A chain of a timm model, and the model itself with the same weights."""
    chain = build_chain(f"timm/{name}", num_classes=10, image_size=size, dropout=dropout, drop_path=drop_path)
    options: dict[str, Any] = {"drop_rate": dropout}
    if re.match("(test_)?vit|swin|mixer|xcit", name):
        options["img_size"] = size
    if drop_path or name.startswith("swin"):  # its own default is not 0
        options["drop_path_rate"] = drop_path
    model = timm.create_model(name, num_classes=10, **options)
    weights = model.state_dict()
    chain.load_state_dict({key: weights[name] for key, name in timm_names(chain).items()})
    return chain, model


@functools.cache
def made(name: str) -> tuple[Chain, nn.Module]:
    """What `make` gives, for those who only look at it."""
    return make(name, 64)


@pytest.mark.parametrize(("name", "size", "layers"), FAMILIES)
def test_a_chain_is_the_timm_model(name: str, size: int, layers: int) -> None:
    torch.manual_seed(0)
    chain, model = make(name, size)
    assert chain.num_layers == layers
    images = torch.randn(3, 3, size, size)

    chain.eval(), model.eval()
    assert (chain(images) - model(images)).abs().max() <= 1e-6

    chain.train(), model.train()
    results = [chain(images), model(images)]
    assert torch.equal(*results)
    for result in results:
        result.square().sum().backward()
    theirs = dict(model.named_parameters())
    names = timm_names(chain)
    ours = {names[key]: parameter for key, parameter in chain.named_parameters()}
    assert ours.keys() == {key for key, parameter in theirs.items() if parameter.grad is not None}
    for key, parameter in ours.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, theirs[key].grad, rtol=1e-4, atol=1e-5)

    # BatchNorm's statistics moved alike, and evaluation follows.
    found, expected = ours_state(chain), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    chain.eval(), model.eval()
    assert torch.equal(chain(images), model(images))


@pytest.mark.parametrize(
    ("name", "size", "dropout", "drop_path"),
    [
        ("test_efficientnet", 64, 0.4, 0.3),  # functional dropout in the model's own forward
        ("test_vit", 64, 0.4, 0.3),
        ("test_convnext", 64, 0.4, 0.3),
    ],
)
def test_modes_follow_the_chain(name: str, size: int, dropout: float, drop_path: float) -> None:
    chain, model = make(name, size, dropout=dropout, drop_path=drop_path)
    images = torch.randn(4, 3, size, size)

    def run(net: nn.Module, seed: int) -> Tensor:
        torch.manual_seed(seed)
        result: Tensor = net(images)
        return result

    for net in (chain, model):
        net.eval()
    assert torch.equal(run(chain, 0), run(chain, 1))
    for net in (chain, model):
        net.train()
    assert torch.equal(run(chain, 0), run(model, 0))
    assert not torch.equal(run(chain, 0), run(chain, 1))
    weights = model.state_dict()
    chain.load_state_dict({key: weights[name] for key, name in timm_names(chain).items()})
    for net in (chain, model):
        net.eval()
    assert torch.equal(run(chain, 0), run(model, 1))


def ours_state(chain: Chain) -> dict[str, Tensor]:
    names = timm_names(chain)
    return {names[key]: value for key, value in chain.state_dict().items()}


def test_a_chain_costs_what_the_model_costs() -> None:
    for name in ("vit_tiny_patch16_224", "test_efficientnet"):
        chain, model = made(name)
        assert count_params(chain) == count_params(model)
        assert count_macs(chain, (3, 64, 64)) == count_macs(model, (3, 64, 64))


def test_layers_run_alone_and_copies_are_independent() -> None:
    chain, _ = made("vit_tiny_patch16_224")
    images = torch.randn(2, 3, 64, 64)
    twin = copy.deepcopy(chain)
    x = images
    for layer in twin.layers:
        x = layer(x.detach())
    assert torch.equal(Chain([], twin.classifier)(x), chain(images))
    with torch.no_grad():
        dict(twin.named_parameters())["layers.0.cls_token"].zero_()
    assert not torch.equal(twin(images), chain(images))


def test_names_and_registration_of_free_parameters() -> None:
    chain, _ = made("vit_tiny_patch16_224")
    names = timm_names(chain)
    assert names["layers.0.cls_token"] == "cls_token"
    assert names["layers.11.blocks.11.attn.qkv.weight"] == "blocks.11.attn.qkv.weight"
    assert names["classifier.head.weight"] == "head.weight"
    assert dict(chain.named_parameters())["layers.0.pos_embed"].requires_grad


def test_single_channel_images() -> None:
    chain = build_chain("timm/resnet18", num_classes=4, image_size=32, in_chs=1)
    assert chain(torch.randn(2, 1, 32, 32)).shape == (2, 4)


# ---- models that cannot be split -----------------------------------------------------------------------


class Toy(nn.Module):
    """A model with timm's two halves and three convolutions in `blocks`."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
        self.fc = nn.Linear(3, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.blocks(x)
        return features

    def forward_head(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class Shared(Toy):
    def forward_features(self, x: Tensor) -> Tensor:
        for index in (0, 1, 0, 2):
            x = self.blocks[index](x).relu()
        return x


class Residual(Toy):
    def forward_features(self, x: Tensor) -> Tensor:
        return torch.cat([self.blocks(x), x], 1)[:, :3]


class DataDependent(Toy):
    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(x if x.sum() > 0 else -x)


class TwoTensors(Toy):
    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.blocks(x), x

    def forward_head(self, x: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward_head(x[0])


class OtherInTraining(Toy):
    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(x * 2 if self.training else x)


class FlagInTraining(Toy):
    def forward_head(self, x: Tensor) -> Tensor:
        return super().forward_head(nn.functional.dropout(x, 0.5, training=self.training))


class Batches(Toy):
    """Reads shapes and branches on them; the batch size crosses a cut."""

    def forward_features(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        x = self.blocks[0](x)
        if height != width or height % 2:
            raise ValueError("never")
        x = self.blocks[1](x)
        tokens = self.blocks[2](x).reshape(batch, 3, height * width).transpose(1, 2)
        features: Tensor = tokens.transpose(1, 2).reshape(batch, 3, height, width)
        return features


def test_a_plain_sequence_has_a_layer_per_convolution() -> None:
    assert split(Toy(), "toy", (3, 8, 8)).num_layers == 3


def test_modules_used_twice_stay_in_one_layer() -> None:
    torch.manual_seed(0)
    model = Shared()
    chain = split(model, "toy", (3, 8, 8))
    assert chain.num_layers == 2
    places = {name: key.removesuffix(name) for key, name in timm_names(chain).items()}
    assert [places[f"blocks.{index}.weight"] for index in range(3)] == ["layers.0.", "layers.0.", "layers.1."]


def test_shapes_are_numbers_and_the_batch_stays_free() -> None:
    model = Batches()
    chain = split(model, "toy", (3, 8, 8))
    assert chain.num_layers == 3
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 8, 8)
        assert torch.equal(chain(images), model(images))


def test_a_flag_of_the_models_own_forward_follows_the_mode() -> None:
    model = FlagInTraining()
    chain = split(model, "toy", (3, 8, 8))
    images = torch.randn(2, 3, 8, 8)
    for mode in (True, False):
        chain.train(mode), model.train(mode)
        results = []
        for net in (chain, model):
            torch.manual_seed(0)
            results.append(net(images))
        assert torch.equal(*results)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Residual, "no tensor between its blocks carries everything"),
        (DataDependent, "control flow"),
        (TwoTensors, "its features are not one tensor"),
        (OtherInTraining, "other operations in training"),
    ],
)
def test_a_model_that_cannot_be_split_says_why(model: type[Toy], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^toy cannot be split into layers: .*{reason}") as caught:
        split(model(), "toy", (3, 8, 8))
    assert "\n" not in str(caught.value)


def test_a_real_model_that_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"timm/crossvit_tiny_240 cannot be split into layers: its features"):
        build_chain("timm/crossvit_tiny_240", num_classes=10, image_size=240)
