"""A stem in a chain is part of the first chosen layer, as SEDONA counts, or makes layers of its own.

What was made with one count can be read with the other: tensors by their names, and cuts by their numbers.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from local_learning.decoupling import DecouplingFile
from tools.mistake import Mistake

FUSED, UNIT = "fused", "unit"


def layers_with_stem(stem: Sequence[nn.Module], chosen: Sequence[nn.Module], how: str) -> list[nn.Module]:
    """Return the layers of a chain that begins with the stem; nothing but a stem makes one layer.

    Raises:
        ValueError: if `how` is neither fused nor unit.
    """
    if how not in (FUSED, UNIT):
        raise ValueError(f"stem is {how!r}; it must be fused or unit")
    if how == UNIT or not stem:
        return [*stem, *chosen]
    first = OrderedDict[str, nn.Module](stem=nn.Sequential(*stem))
    if chosen:
        first["block"] = chosen[0]
    return [nn.Sequential(first), *chosen[1:]]


def renamed(tensors: Mapping[str, Tensor], num_stem: int, how: str) -> dict[str, Tensor]:
    """Return a chain's tensors, named by either count of its stem, with the names that `how` gives them.

    `num_stem` is the number of layers in the stem.
    """
    fused = any(name.startswith(("layers.0.stem.", "layers.0.block.")) for name in tensors)
    if not num_stem or fused == (how == FUSED):
        return dict(tensors)
    rename = _fused_name if how == FUSED else _unit_name
    return {rename(name, num_stem): tensor for name, tensor in tensors.items()}


def recounted(file: DecouplingFile, num_stem: int, how: str) -> DecouplingFile:
    """Return a decoupling of an architecture as one of a chain whose stem is `how`.

    A file may name an architecture and not say how it counts. It is then from a time when all files
    counted the stem's layers. A file that names no network was written by hand, for the chain as it is.

    Raises:
        ValueError: if a cut lies in the stem, or right behind it; only a stem that is unit has such cuts.
    """
    of_architecture = "/" in file.network and not file.network.startswith("timm/")
    theirs = file.stem or (UNIT if of_architecture else how)
    if theirs == how or not num_stem:
        return file
    shift = num_stem if how == UNIT else -num_stem
    cuts = tuple(cut + shift for cut in file.decoupling.cuts)
    if cuts and cuts[0] < 1:
        raise Mistake(
            "",
            f"its cut after {file.decoupling.cuts[0]} counts the stem as layers of its own, and leaves no "
            "chosen layer in the first block",
            "give `stem` unit too",
        )
    num_layers = file.num_layers and file.num_layers + shift
    moved = replace(file.decoupling, cuts=cuts)
    return replace(file, decoupling=moved, num_layers=num_layers, stem=how)


def _fused_name(name: str, num_stem: int) -> str:
    if not (match := re.fullmatch(r"layers\.(\d+)\.(.*)", name)):
        return name
    index, rest = int(match[1]), match[2]
    if index < num_stem:
        return f"layers.0.stem.{index}.{rest}"
    return f"layers.0.block.{rest}" if index == num_stem else f"layers.{index - num_stem}.{rest}"


def _unit_name(name: str, num_stem: int) -> str:
    if match := re.fullmatch(r"layers\.0\.stem\.(\d+)\.(.*)", name):
        return f"layers.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"layers\.0\.block\.(.*)", name):
        return f"layers.{num_stem}.{match[1]}"
    if match := re.fullmatch(r"layers\.(\d+)\.(.*)", name):
        return f"layers.{int(match[1]) + num_stem}.{match[2]}"
    return name
