"""A stem in a chain: part of the first chosen layer, as SEDONA counts, or layers of its own.

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
    """The layers of a chain that begins with the stem; a network of nothing but a stem is one layer.

    Raises:
        ValueError: where `how` is neither fused nor unit.
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
    """Tensors of a chain with `num_stem` layers in its stem, named by either count, as `how` names them."""
    fused = any(name.startswith(("layers.0.stem.", "layers.0.block.")) for name in tensors)
    if not num_stem or fused == (how == FUSED):
        return dict(tensors)
    rename = _fused_name if how == FUSED else _unit_name
    return {rename(name, num_stem): tensor for name, tensor in tensors.items()}


def recounted(file: DecouplingFile, num_stem: int, how: str) -> DecouplingFile:
    """A decoupling of an architecture as one of a chain whose stem is `how`.

    A file that names an architecture and not how it counts is of a time when all counted the stem's layers.
    One that names no network was written by hand, for the chain as it is.

    Raises:
        ValueError: where a cut lies in the stem, or right behind it, which only the stem unit has.
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
    if not (found := re.fullmatch(r"layers\.(\d+)\.(.*)", name)):
        return name
    index, rest = int(found[1]), found[2]
    if index < num_stem:
        return f"layers.0.stem.{index}.{rest}"
    return f"layers.0.block.{rest}" if index == num_stem else f"layers.{index - num_stem}.{rest}"


def _unit_name(name: str, num_stem: int) -> str:
    if found := re.fullmatch(r"layers\.0\.stem\.(\d+)\.(.*)", name):
        return f"layers.{found[1]}.{found[2]}"
    if found := re.fullmatch(r"layers\.0\.block\.(.*)", name):
        return f"layers.{num_stem}.{found[1]}"
    if found := re.fullmatch(r"layers\.(\d+)\.(.*)", name):
        return f"layers.{int(found[1]) + num_stem}.{found[2]}"
    return name
