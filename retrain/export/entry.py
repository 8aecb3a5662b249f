"""This module makes a network of inverted residuals as a timm model, from a description in words.

It needs only timm. Importing this file registers "cleave_network" with timm.create_model. A folder that
Cleave's export_model.py wrote holds the network's description and weights:

    import cleave_network, timm
    model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
"""

from functools import partial
from typing import Any

from timm.layers.create_act import get_act_layer
from timm.layers.create_conv2d import create_conv2d
from timm.layers.helpers import make_divisible
from timm.models import register_model
from timm.models._builder import build_model_with_cfg
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

MORE_ACTIVATIONS = {"nid": nn.Identity, "nge": get_act_layer("gelu"), "nlr": get_act_layer("leaky_relu")}
"""timm's strings have no word for these activations of single blocks, so they are set after decoding."""


def _as_it_is(chs: int) -> int:
    return chs


def _squeezed_chs(chs: float, divisor: int) -> int:
    return max(1, round(chs)) if divisor == 1 else int(make_divisible(chs, divisor))  # type: ignore[no-untyped-call]


def _blocks(arch_def: list[list[str]], se_from: str) -> list[list[dict[str, Any]]]:
    """Return the blocks that timm decodes from the strings, with what the strings cannot say."""
    stages: list[list[dict[str, Any]]] = decode_arch_def(arch_def)  # type: ignore[no-untyped-call]
    for strings, stage in zip(arch_def, stages, strict=True):
        for string, block in zip(strings, stage, strict=True):
            for word in string.split("_"):
                block["act_layer"] = MORE_ACTIVATIONS.get(word, block["act_layer"])
            if se_from == "expanded" and "se_ratio" in block:
                block["se_ratio"] *= block.get("exp_ratio", 1.0)  # timm's builder divides by it
    return stages


def _make(
    *,
    arch_def: list[list[str]],
    stem_size: int,
    stem_kernel: int,
    stem_stride: int,
    act: str,
    head_chs: int,
    hidden_chs: int,
    se_from: str,
    se_act: str,
    se_gate: str,
    se_divisor: int,
    in_chans: int = 3,
    **options: Any,
) -> nn.Module:
    """Make the network of a description.

    Arguments:
        arch_def: timm's strings, each of one block, by stage.
        stem_size: The channels of the stem's convolution.
        stem_kernel: The kernel size of the stem's convolution.
        stem_stride: The stride of the stem's convolution.
        act: The activation of the stem, the tail and the blocks that name none.
        head_chs: The channels of the 1x1 convolution before the mean over the map (0: none).
        hidden_chs: The units of the layer after that mean (0: none).
        se_from: The channels of which squeeze-and-excitation keeps a part.
        se_act: The activation in squeeze-and-excitation (empty: the block's).
        se_gate: The gate of squeeze-and-excitation.
        se_divisor: The channels of squeeze-and-excitation are rounded to a multiple of this number.
        in_chans: The channels of the images.
        options: More arguments of timm's model.
    """
    model: EfficientNet | MobileNetV3
    common = dict(
        stem_size=stem_size,
        fix_stem=True,
        in_chans=in_chans,
        act_layer=get_act_layer(act),
        round_chs_fn=_as_it_is,
        se_layer=partial(
            SqueezeExcite,
            gate_layer=se_gate,
            force_act_layer=get_act_layer(se_act) if se_act else None,
            rd_round_fn=partial(_squeezed_chs, divisor=se_divisor),
        ),
    )
    if hidden_chs:
        # The convolution before the mean is one more stage, as in MobileNetV3.
        stages = [*arch_def, [f"cn_r1_k1_s1_c{head_chs}"]] if head_chs else arch_def
        blocks = _blocks(stages, se_from)
        model = MobileNetV3(blocks, num_features=hidden_chs, se_from_exp=False, **common, **options)
    else:
        blocks = _blocks(arch_def, se_from)
        # No stride becomes a dilation, however many strides there are.
        model = EfficientNet(blocks, num_features=head_chs, output_stride=1 << 30, **common, **options)
    if (stem_kernel, stem_stride) != (3, 2):
        stem = create_conv2d(in_chans, stem_size, stem_kernel, stride=stem_stride)  # type: ignore[no-untyped-call]
        model.conv_stem = stem
        for feature in model.feature_info:
            feature["reduction"] = feature["reduction"] * stem_stride // 2
    return model


@register_model
def cleave_network(pretrained: bool = False, **description: Any) -> nn.Module:
    """Make the network of `description` (see `_make`) in the way of timm's other models."""
    return build_model_with_cfg(
        _make, "cleave_network", pretrained, feature_cfg={"feature_cls": "getter"}, **description
    )
