"""A network that timm makes of its description is the network, bit for bit."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn

from local_learning.build import build_chain
from retrain.export.source import restore
from retrain.export.timm_folder import crop_part, read_timm, timm_model, write_timm
from supernet.layers import KINDS
from supernet.network.documents import space_from, space_to
from supernet.presets import preset
from supernet.space import Architecture, Space
from supernet.supernet import build_architecture
from tests.retrain.export.exporting import of_space, save, shapes_images, train_a_little
from tools.cost import count_macs, count_params
from tools.images.augment import Normalise
from tools.images.options import DataConfig
from tools.images.preparation import RESIZE_RATIO, Preparation
from tools.images.streaming import evaluation_transform


def exported(path: Path, folder: Path) -> nn.Module:
    restored = restore(path)
    write_timm(folder, restored, timm_model(restored))
    return read_timm(folder)


def own(ops: list[str], **changes: Any) -> Space:
    """A space of one candidate a layer."""
    layers: list[dict[str, Any]] = [{"ops": [op], "out_chs": 8, "stride": 1} for op in ops]
    description = {
        "stem": [{"op": "conv_k3", "out_chs": 8, "stride": 1}],
        "layers": layers,
        "num_classes": 10,
        "image_size": 16,
        **changes,
    }
    return space_from(description)


def first(space: Space) -> Architecture:
    return Architecture((0,) * len(space.layers))


def by_size(names: Iterable[str]) -> list[Any]:
    """The names, the papers' spaces as slow."""
    large = ("lwsl_fit", "lwsl_table1", "cream")
    return [pytest.param(name, marks=pytest.mark.slow) if name in large else name for name in names]


TEN = {"num_classes": 10}
SPACES = {
    "tiny": (preset("tiny", image_size=16, **TEN), "1323"),
    "macro, a projection in each stage": (preset("nas_bench_macro", image_size=32, **TEN), "00012000"),
    "macro, none": (preset("nas_bench_macro", image_size=32, **TEN), "12021012"),
    "lwsl_fit": (preset("lwsl_fit", image_size=32, **TEN), "06661234123401563606"),
    "lwsl_table1": (preset("lwsl_table1", image_size=64, **TEN), "016" * 5),
    "a layer of each kind": (
        own(["fused_k5_e3_se0.5", "ds_k5_se0.3", "conv_k5", "proj", "mbconv_k7_e1.5"]),
        "",
    ),
    "activations": (
        own(
            [f"mbconv_k3_e2_{act}" for act in ("gelu", "leaky_relu", "relu6", "hard_swish", "silu")]
            + ["conv_k3"],
            style={"act": "swish"},
            tail={"conv_chs": 12, "dropout": 0.1},
        ),
        "",
    ),
    "the stem's activation, where the tail has none": (
        own(["mbconv_k3_e2_se0.25"], stem=[{"op": "conv_k5_gelu", "out_chs": 8, "stride": 2}]),
        "",
    ),
    "squeezed to one": (own(["mbconv_k3_e2_se0.05", "ds_k3_se0.01"]), ""),
    "squeezed of the expanded": (
        own(
            ["mbconv_k3_e3_se0.3", "fused_k3_e5_se0.7", "ds_k3_se0.25"],
            style={"se_from": "expanded", "se_divisor": 4, "se_act": "gelu", "se_gate": "hard_sigmoid"},
        ),
        "",
    ),
    "many strides": (
        own(
            [],
            layers=[{"ops": ["mbconv_k3_e2"], "out_chs": 8, "stride": 2} for _ in range(6)],
            image_size=64,
        ),
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", by_size(SPACES))
def test_an_architecture_is_timms_network_bit_for_bit(tmp_path: Path, name: str) -> None:
    space, digits = SPACES[name]
    architecture = Architecture.parse(digits) if digits else first(space)
    path, net = of_space(tmp_path / "w.safetensors", space, architecture)
    theirs = exported(path, tmp_path / "timm")
    images = shapes_images(20, space.image_size)
    with torch.no_grad():
        for batch in (images[:1], images):
            assert torch.equal(theirs(batch), net(batch))
    shape = (3, space.image_size, space.image_size)
    assert (count_macs(theirs, shape), count_params(theirs)) == (
        space.macs(architecture),
        space.params(architecture),
    )
    assert isinstance(theirs.conv_stem, nn.Conv2d)
    names = safetensors.torch.load_file(tmp_path / "timm" / "model.safetensors").keys()
    assert names == theirs.state_dict().keys()


def test_weights_of_before_with_the_stem_apart_are_the_same_model(tmp_path: Path) -> None:
    space, digits = SPACES["tiny"]
    images, models = shapes_images(10, space.image_size), []
    for stem in ("unit", "fused"):
        path, net = of_space(tmp_path / f"{stem}.safetensors", space, Architecture.parse(digits), stem=stem)
        restored = restore(path)
        assert restored.trunk().state_dict().keys() == net.state_dict().keys()
        models.append(exported(path, tmp_path / stem))
        with torch.no_grad():
            assert torch.equal(models[-1](images), net(images))
    assert models[0].state_dict().keys() == models[1].state_dict().keys()


CREAM = preset("cream", image_size=64, **TEN)
HIDDEN = {
    "cream": (CREAM, Architecture.parse("16613662155544461230")),
    "without a convolution before": (own(["mbconv_k3_e2"], tail={"hidden_chs": 24}), Architecture((0,))),
}


@pytest.mark.parametrize("name", by_size(HIDDEN))
def test_with_a_hidden_layer_it_is_mobilenet_up_to_rounding(tmp_path: Path, name: str) -> None:
    space, architecture = HIDDEN[name]
    path, net = of_space(tmp_path / "w.safetensors", space, architecture)
    assert not timm_model(restore(path)).exact
    theirs = exported(path, tmp_path / "timm")
    images = shapes_images(20, space.image_size)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), net(images), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            theirs.double()(images.double()), net.double()(images.double()), rtol=1e-12, atol=1e-12
        )


def test_its_stages_can_be_read_one_by_one(tmp_path: Path) -> None:
    space = preset("nas_bench_macro", image_size=32, **TEN)
    path, _ = of_space(tmp_path / "w.safetensors", space, Architecture.parse("00012000"))
    exported(path, tmp_path / "timm")
    net: Any = timm.create_model(
        f"local-dir:{tmp_path / 'timm'}", pretrained=True, features_only=True, out_indices=(0, 1, 2)
    )
    maps = net(torch.zeros(1, 3, 32, 32))
    assert net.feature_info.reduction() == [32 // features.shape[-1] for features in maps] == [1, 2, 4]


@pytest.mark.slow
def test_other_classes_and_channels_are_timms_business(tmp_path: Path) -> None:
    path, _ = of_space(tmp_path / "w.safetensors", *HIDDEN["cream"])
    exported(path, tmp_path / "timm")
    net = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, num_classes=3, in_chans=1)
    assert net(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


def test_the_config_says_what_the_network_expects(tmp_path: Path) -> None:
    path, _ = of_space(
        tmp_path / "w.safetensors", *(preset("tiny", image_size=16, **TEN), Architecture.parse("0123"))
    )
    exported(path, tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["model_args"]["arch_def"] == [
        ["ir_r1_k3_e2_s2_c16", "ir_r1_k5_e2_s1_c16"], ["ir_r1_k3_e4_s2_c24_se0.25"],
    ]  # fmt: skip
    net = read_timm(tmp_path / "timm")
    wanted = resolve_data_config({}, model=net)  # type: ignore[no-untyped-call]
    known = DataConfig().known
    assert (wanted["input_size"], tuple(wanted["mean"]), tuple(wanted["std"])) == (
        (3, 16, 16),
        known.mean,
        known.std,
    )
    assert (wanted["crop_pct"], wanted["interpolation"]) == (1.0, "bilinear")
    assert config["label_names"] == [f"class {index}" for index in range(10)]


@pytest.mark.parametrize("loader", ["stream", "device"])
def test_timms_transforms_prepare_images_as_evaluation_does(tmp_path: Path, loader: str) -> None:
    size = 32  # of which eight sevenths are 36.57: scaled to 37, where timm would round down
    space = preset("tiny", image_size=size, **TEN)
    data = DataConfig(name="folder", root="photos", image_size=size, loader=loader)
    net = build_architecture(space, Architecture.parse("0123"))
    notes = {"space": space_to(space), "choices": [0, 1, 2, 3]}
    exported(
        save(tmp_path / "w.safetensors", net, "tiny/0123", data=data, architecture=notes), tmp_path / "timm"
    )
    theirs = create_transform(**resolve_data_config({}, model=read_timm(tmp_path / "timm")))  # type: ignore[no-untyped-call]
    fed = data.preparation
    ours = Normalise(size, mean=fed.mean, std=fed.std, device=torch.device("cpu"))
    for width, height in ((40, 25), (25, 41), (33, 33), (37, 37), (9, 30)):
        image = Image.effect_noise((width, height), 80).convert("RGB")
        found = ours(evaluation_transform(fed)(image)[None])
        torch.testing.assert_close(theirs(image)[None], found, rtol=0, atol=1e-6)


def test_timm_scales_to_the_very_pixel_at_every_size() -> None:
    for crop in range(1, 2000):
        for resize in (crop, round(crop * RESIZE_RATIO)):
            fed = Preparation(resize=resize, crop=crop, mean=(0.5,), std=(0.5,))
            assert math.floor(crop / crop_part(fed)) == resize


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t", "vit_tiny_patch16_224"])
def test_a_model_of_timm_keeps_its_name(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    net = build_chain(f"timm/{name}", num_classes=10, image_size=32)
    train_a_little(net, shapes_images(30, 32))
    path = save(tmp_path / "w.safetensors", net, f"timm/{name}", data=DataConfig(image_size=32))
    theirs = exported(path, tmp_path / "timm")
    assert type(theirs) is type(timm.create_model(name))
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["architecture"] == name
    assert {file.name for file in (tmp_path / "timm").iterdir()} == {"config.json", "model.safetensors"}
    images = shapes_images(20, 32)
    with torch.no_grad():
        assert torch.equal(theirs(images), net.eval()(images))


REFUSED = {
    "layer 2 is shuffle_k3, for which timm's strings have no block": own(["mbconv_k3_e2", "shuffle_k3"]),
    "stem 1 is no convolution, with which timm begins": own(
        ["mbconv_k3_e2"], stem=[{"op": "ds_k3", "out_chs": 8, "stride": 1}]
    ),
    "its stem is no convolution, with which timm begins": own(["mbconv_k3_e2"], stem=[]),
    "stem 1 has the activation gelu, the tail relu; timm has one for both": own(
        ["mbconv_k3_e2"], stem=[{"op": "conv_k3_gelu", "out_chs": 8, "stride": 1}], tail={"conv_chs": 8}
    ),
    "layer 5 has stride 2, but with a hidden layer timm reduces by 32 at most, counting its stem as 2": own(
        [],
        layers=[{"ops": ["mbconv_k3_e2"], "out_chs": 8, "stride": 2} for _ in range(5)],
        tail={"hidden_chs": 8},
    ),
    "it has no layer but the stem, and timm needs one": own(
        [], layers=[{"ops": ["skip", "mbconv_k3_e2"], "out_chs": 8, "stride": 1}]
    ),
}  # fmt: skip


@pytest.mark.parametrize("says", REFUSED)
def test_what_timm_cannot_express_is_refused(tmp_path: Path, says: str) -> None:
    space = REFUSED[says]
    path, _ = of_space(tmp_path / "w.safetensors", space, first(space))
    line = f"formats timm: own/{first(space)} is no model of timm: {says}; take state, onnx or torch_export"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        timm_model(restore(path))


def test_the_operations_are_those_that_the_documentation_lists() -> None:
    assert set(KINDS) == {"skip", "proj", "conv", "ds", "mbconv", "fused", "shuffle", "shufflex"}
