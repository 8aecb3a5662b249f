"""A network of inverted residuals as a model of timm, built from a description in words.

It needs timm alone. Importing this file lets timm.create_model know "cleave_network", of which a folder
written by Cleave's export_model.py holds the description and the weights:

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
"""Activations of single blocks for which timm's strings have no word, and at which its decoder passes by."""


def _as_it_is(chs: int) -> int:
    return chs


def _squeezed_chs(chs: float, divisor: int) -> int:
    return max(1, round(chs)) if divisor == 1 else int(make_divisible(chs, divisor))  # type: ignore[no-untyped-call]


def _blocks(arch_def: list[list[str]], se_from: str) -> list[list[dict[str, Any]]]:
    """What timm makes of the strings, with what they cannot say."""
    stages: list[list[dict[str, Any]]] = decode_arch_def(arch_def)  # type: ignore[no-untyped-call]
    for strings, stage in zip(arch_def, stages, strict=True):
        for string, block in zip(strings, stage, strict=True):
            for word in string.split("_"):
                block["act_layer"] = MORE_ACTIVATIONS.get(word, block["act_layer"])
            if se_from == "expanded" and "se_ratio" in block:
                block["se_ratio"] *= block.get("exp_ratio", 1.0)  # by which timm's builder divides
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
    """The network that the description has.

    Arguments: timm's strings, each of one block; the stem's convolution; the activation of the stem, the tail
    and the blocks that name none; channels of the 1x1 convolution before the mean over the map (0: none) and
    units of the layer behind it (0: none); of which channels squeeze-and-excitation keeps its part, its
    activation (none: the block's), its gate and what its channels are rounded to a multiple of.
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
        # No stride is to become a dilation, however many there are.
        model = EfficientNet(blocks, num_features=head_chs, output_stride=1 << 30, **common, **options)
    if (stem_kernel, stem_stride) != (3, 2):
        stem = create_conv2d(in_chans, stem_size, stem_kernel, stride=stem_stride)  # type: ignore[no-untyped-call]
        model.conv_stem = stem
        for feature in model.feature_info:
            feature["reduction"] = feature["reduction"] * stem_stride // 2
    return model


@register_model
def cleave_network(pretrained: bool = False, **description: Any) -> nn.Module:
    """The network that `description` has (see `_make`), as timm's other models are made."""
    return build_model_with_cfg(
        _make, "cleave_network", pretrained, feature_cfg={"feature_cls": "getter"}, **description
    )
