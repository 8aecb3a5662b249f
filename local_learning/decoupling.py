"""A decoupling says where a network is cut, and which head gives the loss at each cut. Free of torch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

from local_learning.cuts.balance import balanced_cuts
from local_learning.cuts.head_width import PAPER, parse_head_width
from local_learning.later.request import head_at, heads_at
from tools.files.atomic import read_document, write_document
from tools.mistake import Mistake, quoted
from tools.options.config import suggest


@dataclass(frozen=True)
class Decoupling:
    """A decoupling holds the cuts, one head per cut, and the number of neuron groups in each block."""

    cuts: tuple[int, ...]
    """The cuts in ascending order, counted from 1: a cut at l stops the gradient after layer l."""

    heads: tuple[str, ...]
    """The kind of head at each cut. The last block has the network's own classifier."""

    groups: int | tuple[int, ...] = 1
    """The number of neuron groups, which are trained apart: one number for every block with a cut, or one
    per block."""

    uneven: bool = False
    """Whether groups may differ by one channel where their number does not divide the channels."""

    head_width: str | float = PAPER
    """How many hidden channels heads have: paper (as in the papers, scaled like the network), map (as fits
    the map), or this factor on the papers' numbers."""

    def __post_init__(self) -> None:
        cuts = _integers("cuts", self.cuts)
        heads = _heads(self.heads)
        _check_cuts(cuts)
        if len(heads) != len(cuts):
            raise ValueError(f"{_needs(len(cuts), 'cut', 'head')}, not {len(heads)}")
        groups = _groups(self.groups, len(cuts) + 1)
        if isinstance(groups, tuple) and set(groups) == {1}:
            groups = 1
        if not isinstance(self.uneven, bool):
            raise ValueError(f"uneven is {self.uneven!r}; it must be true or false")
        try:
            head_width = parse_head_width(self.head_width)
        except ValueError as error:
            raise ValueError(f"head_width: {error}") from None
        object.__setattr__(self, "head_width", head_width)
        object.__setattr__(self, "cuts", cuts)
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "groups", groups)

    @property
    def num_blocks(self) -> int:
        """The number of blocks, one more than there are cuts."""
        return len(self.cuts) + 1

    def blocks(self, num_layers: int) -> list[range]:
        """Return each block's layers, counted from 0. A cut at the last layer leaves the last block empty."""
        if self.cuts and self.cuts[-1] > num_layers:
            raise ValueError(
                f"cuts: there is no layer {self.cuts[-1]} to cut after; the network has {num_layers}"
            )
        return [range(*ends) for ends in pairwise((0, *self.cuts, num_layers))]

    def groups_of(self, num_layers: int) -> tuple[int, ...]:
        """Return each block's number of neuron groups; the last block always has one."""
        blocks = self.blocks(num_layers)
        if isinstance(self.groups, tuple):
            return self.groups
        return (self.groups,) * (len(blocks) - 1) + (1,)

    def closed(self, num_layers: int, head: str) -> "Decoupling":
        """Return this decoupling with a cut after the last layer.

        The classifier then stands alone, as in GN-DGL.
        """
        if not self.blocks(num_layers)[-1]:
            return self
        groups = (*self.groups, 1) if isinstance(self.groups, tuple) else self.groups
        heads = (*self.heads, head_at(head, num_layers, num_layers))
        return replace(self, cuts=(*self.cuts, num_layers), heads=heads, groups=groups)

    @classmethod
    def uniform(
        cls, num_layers: int, num_blocks: int, head: str, *, groups: int = 1, split: str = "floor"
    ) -> "Decoupling":
        """Return blocks of about equally many layers, all with the same head.

        `split` is floor, as in SEDONA, or ceil_units, as in DGL, where the stem counts as one more layer.
        With several groups, `num_blocks` blocks are split into groups, and the classifier alone is one
        more block.
        """
        _check_num_blocks(num_layers, num_blocks)
        if split == "floor":
            cuts = [k * num_layers // num_blocks for k in range(1, num_blocks)]
        elif split == "ceil_units":
            cuts = _cuts_in_units(num_layers, num_blocks)
        else:
            raise ValueError(f"split is {split!r}; it must be floor or ceil_units")
        return cls._of(num_layers, cuts, head, groups)

    @classmethod
    def balanced(
        cls,
        layer_costs: Sequence[float],
        head_costs: Sequence[float],
        classifier_cost: float,
        num_blocks: int,
        head: str,
        *,
        groups: int = 1,
        entry_costs: Sequence[float] = (),
    ) -> "Decoupling":
        """Return the cuts that make the most expensive block cheapest.

        Among cuts that are equally good, those with the cheapest heads are chosen. A block costs its
        layers and its head. With several groups the last layer is cut as well, and the classifier's cost
        plays no part.

        Arguments:
            layer_costs: The cost of each layer.
            head_costs: The cost of a head after each layer.
            classifier_cost: The cost of the classifier.
            entry_costs: What else it costs a block to begin with each layer, if anything.
        """
        layers, heads = _costs("layer_costs", layer_costs), _costs("head_costs", head_costs)
        (classifier,) = _costs("classifier_cost", [classifier_cost])
        if len(heads) != len(layers):
            raise ValueError(f"head_costs: {_needs(len(layers), 'layer', 'number')}, not {len(heads)}")
        entries = _costs("entry_costs", entry_costs) or [0.0] * len(layers)
        if len(entries) != len(layers):
            raise ValueError(f"entry_costs: {_needs(len(layers), 'layer', 'number')}, not {len(entries)}")
        _check_num_blocks(len(layers), num_blocks)
        grouped = _positive("groups", groups) > 1
        cuts = balanced_cuts(layers, heads, heads[-1] if grouped else classifier, entries, num_blocks)
        return cls._of(len(layers), cuts, head, groups)

    @classmethod
    def _of(cls, num_layers: int, cuts: list[int], head: str, groups: int) -> "Decoupling":
        groups = _positive("groups", groups)
        decoupling = cls(tuple(cuts), heads_at(head, cuts, num_layers), groups)
        return decoupling.closed(num_layers, head) if groups > 1 else decoupling


@dataclass(frozen=True)
class DecouplingFile:
    """This is what a decoupling.json says."""

    decoupling: Decoupling
    """The decoupling itself."""

    network: str
    """The network for which the decoupling was made, or nothing."""

    num_layers: int | None
    """The number of layers of that network, if the file gives it."""

    stem: str = ""
    """How the layers of an architecture are counted: with the stem as part of layer 1 (fused), or apart
    (unit)."""


def load_decoupling(path: str | Path) -> Decoupling:
    """Read the decoupling in a file."""
    return read_decoupling(path).decoupling


def read_decoupling(path: str | Path) -> DecouplingFile:
    """Read a decoupling, and what its file says about the network.

    Raises:
        ValueError: in one line that names the file.
    """
    path = Path(path)
    document = read_document(path, "decoupling", 1)
    try:
        content = _checked_content(document)
        network, num_layers = content.pop("network", ""), content.pop("num_layers", None)
        stem = content.pop("stem", "")
        if stem not in ("", "fused", "unit"):
            raise ValueError(f"stem is {stem!r}; it must be fused or unit")
        decoupling = Decoupling(**content)
        if num_layers is not None:
            decoupling.blocks(_positive("num_layers", num_layers))
    except ValueError as error:
        raise Mistake("", quoted(error), source=str(path)) from None
    return DecouplingFile(decoupling, network, num_layers, stem)


def save_decoupling(
    path: str | Path,
    decoupling: Decoupling,
    network: str = "",
    num_layers: int | None = None,
    *,
    stem: str = "",
) -> None:
    """Write a decoupling to a file, with the network for which it was made, if that is known.

    `stem` says how the layers of an architecture are counted, as in `DecouplingFile`.
    """
    content: dict[str, Any] = {"network": network} if network else {}
    if num_layers is not None:
        decoupling.blocks(_positive("num_layers", num_layers))
        content["num_layers"] = int(num_layers)
    if stem:
        content["stem"] = stem
    content |= {"cuts": decoupling.cuts, "heads": decoupling.heads, "groups": decoupling.groups}
    if decoupling.uneven:
        content["uneven"] = True
    if decoupling.head_width != PAPER:
        content["head_width"] = decoupling.head_width
    write_document(Path(path), "decoupling", 1, content)


_CONTENT: dict[str, tuple[tuple[type, ...], str]] = {
    "network": ((str,), "a text"),
    "num_layers": ((int, type(None)), "a whole number"),
    "stem": ((str,), "a text"),
    "cuts": ((list,), "a list"),
    "heads": ((list,), "a list"),
    "groups": ((int, list), "a whole number or a list"),
    "uneven": ((bool,), "true or false"),
    "head_width": ((str, int, float), "paper, map, or a number"),
}


def _checked_content(document: dict[str, Any]) -> dict[str, Any]:
    content = {key: value for key, value in document.items() if key not in ("format", "version")}
    for key, value in content.items():
        if key not in _CONTENT:
            raise ValueError(f"unknown key '{key}'{suggest(key, list(_CONTENT))}")
        kinds, words = _CONTENT[key]
        if type(value) not in kinds:
            raise ValueError(f"'{key}' must be {words}, not {value!r}")
    for key in ("cuts", "heads"):
        if key not in content:
            raise ValueError(f"the key '{key}' is missing")
    return content


def _cuts_in_units(num_layers: int, num_blocks: int) -> list[int]:
    size = math.ceil((num_layers + 1) / num_blocks)
    cuts = [k * size - 1 for k in range(1, num_blocks)]
    filled = 1 + sum(cut < num_layers for cut in cuts)
    if filled < num_blocks:
        raise ValueError(
            f"num_blocks is {num_blocks}; split ceil_units fills only {filled} blocks with {num_layers} "
            "layers. Choose another number, or split floor"
        )
    return cuts


def _check_cuts(cuts: tuple[int, ...]) -> None:
    for cut in cuts:
        if cut < 1:
            raise ValueError(f"cuts: there is no layer {cut}; layers count from 1")
        if cuts.count(cut) > 1:
            raise ValueError(f"cuts: {cut} is there twice")
    for low, high in pairwise(cuts):
        if low > high:
            raise ValueError(f"cuts: {low} and {high} are out of order; cuts ascend")


def _check_num_blocks(num_layers: int, num_blocks: int) -> None:
    _positive("num_layers", num_layers)
    if _positive("num_blocks", num_blocks) > num_layers:
        raise ValueError(
            f"num_blocks is {num_blocks}; a network of {_count(num_layers, 'layer')} has at most "
            f"{_count(num_layers, 'block')}"
        )


def _heads(value: object) -> tuple[str, ...]:
    heads = []
    for head in _items("heads", value):
        if not isinstance(head, str) or not head.strip():
            raise ValueError(f"heads: {head!r} is not the name of a head")
        heads.append(str(head))
    return tuple(heads)


def _groups(value: object, num_blocks: int) -> int | tuple[int, ...]:
    if not isinstance(value, Iterable):
        return _positive("groups", value)
    groups = tuple(_positive("groups", number) for number in _items("groups", value))
    if len(groups) != num_blocks:
        raise ValueError(f"groups: {_needs(num_blocks, 'block', 'number')}, not {len(groups)}")
    if groups[-1] != 1:
        raise ValueError(
            f"groups: the last block has the network's classifier and is one group, not {groups[-1]}"
        )
    return groups


def _costs(name: str, values: Sequence[float]) -> list[float]:
    costs = [float(value) for value in values]
    for cost in costs:
        if not (math.isfinite(cost) and cost >= 0):
            raise ValueError(f"{name}: {cost} is no cost; it must be finite and at least 0")
    return costs


def _items(name: str, value: object) -> tuple[object, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} is {value!r}; it must be a list")
    return tuple(value)


def _integers(name: str, value: object) -> tuple[int, ...]:
    return tuple(_integer(name, item) for item in _items(name, value))


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name}: {value!r} is not a whole number")
    return int(value)


def _positive(name: str, value: object) -> int:
    number = _integer(name, value)
    if number < 1:
        raise ValueError(f"{name} is {number}; it must be at least 1")
    return number


def _needs(number: int, owner: str, noun: str) -> str:
    return f"{_count(number, owner)} {'needs' if number == 1 else 'need'} {_count(number, noun)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
