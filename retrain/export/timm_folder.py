"""This module writes a network as a timm model: its description in timm's words, its weights by timm's names.

The operations here consist of what timm's blocks can be, except ShuffleNet's block and a user's own
operations. A network that timm cannot express is refused with the layer that is to blame.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from local_learning.networks.traced import timm_names
from retrain.export import entry as export_entry
from retrain.export.source import Restored
from supernet.layers import Conv, DepthwiseSeparable, FusedMBConv, MBConv, Op, Place, Projection, Skip
from supernet.space import Architecture, Space
from supernet.stem import UNIT, renamed
from tools.files.atomic import write_bytes
from tools.images.preparation import FILTER, Preparation
from tools.mistake import Mistake, quoted
from tools.run.weights import write_tensors

ENTRY = "cleave_network"
_TIMM_ACTIVATIONS = {
    "relu": "nre",
    "relu6": "nr6",
    "silu": "nsw",
    "swish": "nsw",
    "hard_swish": "nhs",
    "gelu": "nge",
    "leaky_relu": "nlr",
}
OTHERS = "take state, onnx or torch_export"


@dataclass(frozen=True)
class TimmModel:
    """A `TimmModel` says how timm makes a network, and how timm names its tensors."""

    name: str
    """The model has this name in timm's register."""
    arguments: Mapping[str, Any]
    """timm makes the model with these arguments."""
    names: Mapping[str, str]
    """timm's name of each tensor is given by our name of it."""
    first_conv: str | list[str] | None = None
    """timm changes these layers for other images or classes."""
    classifier: str | list[str] | None = None
    exact: bool = True
    """Whether timm does the same operations in the same order, so that no bit may differ."""

    @property
    def is_ours(self) -> bool:
        """Return whether `export_entry` makes the model, and not timm alone."""
        return self.name == ENTRY


def timm_model(restored: Restored) -> TimmModel:
    """Return how timm expresses the network.

    Raises:
        ValueError: timm cannot express it; the message says which layer is to blame.
    """
    decoupling = restored.net.decoupling
    groups = decoupling.groups
    if groups != 1:
        count = groups if isinstance(groups, int) else ", ".join(map(str, groups))
        raise _refusal(restored, f"its blocks are split into {count} neuron groups, which timm does not know")
    if restored.space and restored.architecture:
        try:
            model = _described(restored.space, restored.architecture)
        except ValueError as error:
            raise _refusal(restored, quoted(error)) from None
        ours = restored.trunk().state_dict()
        counted = renamed(ours, len(restored.space.stem), UNIT)
        return replace(model, names=dict(zip(ours, _full_names(model.names, counted), strict=True)))
    if restored.name.startswith("timm/"):
        return _timms_own(restored)
    raise _refusal(restored, "timm's strings have no blocks of its kind")


def write_timm(folder: Path, restored: Restored, model: TimmModel) -> list[str]:
    """Write the folder that timm.create_model loads, and return the names of its files."""
    folder.mkdir()
    tensors = restored.trunk().state_dict()
    named = {model.names[name]: _fitted(model, name, tensor) for name, tensor in tensors.items()}
    write_tensors(folder / "model.safetensors", named, {"format": "pt"})
    config = json.dumps(_config(restored, model), indent=1) + "\n"
    write_bytes(folder / "config.json", config.encode())
    if not model.is_ours:
        return ["model.safetensors", "config.json"]
    write_bytes(folder / f"{ENTRY}.py", Path(export_entry.__file__).read_bytes())
    return ["model.safetensors", "config.json", f"{ENTRY}.py"]


def read_timm(folder: Path) -> nn.Module:
    """Load the model of a folder, as timm makes it."""
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()


def _refusal(restored: Restored, why: str) -> Mistake:
    return Mistake("`formats` timm", f"{restored.name} is no model of timm: {why}", OTHERS)


def _config(restored: Restored, model: TimmModel) -> dict[str, Any]:
    fed = restored.config.data.preparation
    return {
        "architecture": model.name,
        "num_classes": len(restored.classes),
        "label_names": list(restored.classes),
        "model_args": dict(model.arguments),
        "pretrained_cfg": {
            "input_size": list(restored.image_shape),
            "fixed_input_size": "img_size" in model.arguments,
            "interpolation": FILTER,
            "crop_pct": crop_part(fed),
            "crop_mode": "center",
            "mean": list(fed.mean),
            "std": list(fed.std),
            "num_classes": len(restored.classes),
            "first_conv": model.first_conv,
            "classifier": model.classifier,
        },
    }


def crop_part(fed: Preparation) -> float:
    """Return the crop's part of the scaled side; timm divides the crop by it and rounds down."""
    part = fed.crop / fed.resize
    return part if math.floor(fed.crop / part) == fed.resize else math.nextafter(part, 0)


def _fitted(model: TimmModel, name: str, tensor: Tensor) -> Tensor:
    """Return a tensor in timm's shape, in which the hidden layer is a convolution of one pixel."""
    if model.is_ours and name == "classifier.hidden.weight":
        tensor = tensor[:, :, None, None]
    return tensor.clone()


# ---- timm's own models ---------------------------------------------------------------------------------


def _timms_own(restored: Restored) -> TimmModel:
    channels, size, _ = restored.image_shape
    name = restored.name.removeprefix("timm/").split(".")[0]
    arguments: dict[str, Any] = {"in_chans": channels}
    try:
        timm.create_model(name, img_size=size)
        arguments["img_size"] = size
    except TypeError:
        pass  # a model that takes images of any size
    known: Any = timm.get_pretrained_cfg(name)
    first_conv, classifier = (known.first_conv, known.classifier) if known else (None, None)
    return TimmModel(name, arguments, timm_names(restored.trunk()), first_conv, classifier)


# ---- architectures of a space --------------------------------------------------------------------------


def _described(space: Space, architecture: Architecture) -> TimmModel:
    """Return the arguments of `export_entry` for a network of a space, and where its tensors go."""
    style, tail = space.style, space.tail
    layers = [(f"stem {n}", fixed.op, p) for n, (fixed, p) in enumerate(_pairs(space), start=1)]
    if not layers or not isinstance(layers[0][1], Conv):
        raise ValueError(
            f"{layers[0][0] if layers else 'its stem'} is no convolution, with which timm begins"
        )
    searched = zip(space.layers, space.places, architecture.choices, strict=True)
    chosen = ((f"layer {n}", layer[c], p) for n, (layer, p, c) in enumerate(searched, start=1))
    layers += [layer for layer in chosen if not isinstance(layer[1], Skip)]
    (_, stem, stem_place), *rest = layers
    if not rest:
        raise ValueError("it has no layer but the stem, and timm needs one")
    assert isinstance(stem, Conv)
    act = stem.act or style.act
    if (tail.conv_chs or tail.hidden_chs) and _same(act) != _same(style.act):
        raise ValueError(f"stem 1 has the activation {act}, the tail {style.act}; timm has one for both")
    stages: list[list[str]] = []
    names = {"layers.0.conv.": "conv_stem.", "layers.0.bn1.": "bn1."}
    for index, (where, op, place) in enumerate(rest, start=1):
        if not stages or not place.keeps_shape:
            stages.append([])
        block = f"blocks.{len(stages) - 1}.{len(stages[-1])}."
        stages[-1].append(_block(where, op, place, style.act, act))
        if isinstance(op, Projection):
            names |= {f"layers.{index}.0.": f"{block}conv.", f"layers.{index}.1.": f"{block}bn1."}
        else:
            names[f"layers.{index}."] = block
    if tail.hidden_chs:
        _check_reduction(stem_place, rest)
    return TimmModel(
        ENTRY,
        {
            "arch_def": stages,
            "stem_size": stem_place.out_chs,
            "stem_kernel": stem.kernel,
            "stem_stride": stem_place.stride,
            "act": act,
            "head_chs": tail.conv_chs,
            "hidden_chs": tail.hidden_chs,
            "se_from": style.se_from,
            "se_act": style.se_act,
            "se_gate": style.se_gate,
            "se_divisor": style.se_divisor,
            "in_chans": space.in_chs,
            "drop_rate": tail.dropout,
        },
        names | _tail_names(space, len(stages)),
        "conv_stem",
        "classifier",
        exact=not tail.hidden_chs,
    )


def _pairs(space: Space) -> list[tuple[Any, Place]]:
    return list(zip(space.stem, space.stem_places, strict=True))


def _block(where: str, op: Op, place: Place, act: str, timms_act: str) -> str:
    """Return an operation in the words of timm's strings; `act` is its activation if it names none."""
    match op:
        case Conv():
            words = ["cn", "r1", f"k{op.kernel}"]
        case Projection():
            words = ["cn", "r1", "k1", "nid"]
        case DepthwiseSeparable():
            words = ["ds", "r1", f"k{op.kernel}"]
        case MBConv():
            words = ["ir", "r1", f"k{op.kernel}", f"e{_number(op.exp)}"]
        case FusedMBConv():
            words = ["er", "r1", f"k{op.kernel}", f"e{_number(op.exp)}"]
        case _:
            raise ValueError(f"{where} is {op}, for which timm's strings have no block")
    words += [f"s{place.stride}", f"c{place.out_chs}"]
    if isinstance(op, DepthwiseSeparable | MBConv | FusedMBConv) and op.se:
        words.append(f"se{_number(op.se)}")
    if not isinstance(op, Projection) and _same(op.act or act) != _same(timms_act):
        words.append(_TIMM_ACTIVATIONS[op.act or act])
    return "_".join(words)


def _tail_names(space: Space, stages: int) -> dict[str, str]:
    """Return where the tail's tensors go."""
    names = {"classifier.fc.": "classifier."}
    if space.tail.hidden_chs:
        before = f"blocks.{stages}.0."
        return names | {"classifier.hidden.": "conv_head.", "classifier.conv.": before}
    return names | {"classifier.conv.conv.": "conv_head.", "classifier.conv.bn1.": "bn2."}


def _check_reduction(stem: Place, rest: list[tuple[str, Op, Place]]) -> None:
    """Refuse strides that timm's MobileNetV3, which alone has a hidden layer, would turn into dilation."""
    reduction = 2  # timm counts its own stem's stride
    for where, _, place in rest:
        reduction *= place.stride
        if reduction > 32:
            has = "" if stem.stride == 2 else ", counting its stem as 2"
            raise ValueError(f"{where} has stride 2, but with a hidden layer timm reduces by 32 at most{has}")


def _full_names(prefixes: Mapping[str, str], ours: Iterable[str]) -> list[str]:
    """Return timm's names of our tensors, in their order; the stem's layers are counted as layers."""
    names = []
    for name in ours:
        (prefix,) = [start for start in prefixes if name.startswith(start)]
        names.append(prefixes[prefix] + name.removeprefix(prefix))
    return names


def _same(act: str) -> str:
    return _TIMM_ACTIVATIONS[act]


def _number(value: float) -> str:
    return str(value).removesuffix(".0")
