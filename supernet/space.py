"""A search space is data: the candidates of every searchable layer, what stands around them, and costs.

Layers are counted from 1 in messages, as everywhere; `space.layers[0]` is layer 1.
"""

import itertools
import math
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import NamedTuple

import torch
from timm.layers.helpers import make_divisible

from supernet.layers import Op, Place, Skip, Style
from supernet.tail import Tail, build_tail
from tools.cost import count_macs, count_params, count_units
from tools.mistake import Mistake, quoted


@dataclass(frozen=True)
class Architecture:
    """An architecture is one candidate of every searchable layer."""

    choices: tuple[int, ...]
    """The index of the chosen candidate in each layer."""

    def __str__(self) -> str:
        """Write one digit a layer, or numbers with dashes where there are more than ten candidates."""
        if max(self.choices, default=0) < 10:
            return "".join(map(str, self.choices))
        return "-".join(map(str, self.choices)) + "-" * (len(self.choices) == 1)

    @staticmethod
    def parse(text: str) -> "Architecture":
        """Read what `str` wrote."""
        alone = re.fullmatch(r"\d\d+-", text)
        words = [text[:-1]] if alone else text.split("-") if "-" in text else list(text)
        if not text or not all(word.isascii() and word.isdigit() for word in words):
            raise ValueError(f"'{text}' is no architecture; such are 22212220 and 10-2-0-11")
        return Architecture(tuple(map(int, words)))


@dataclass(frozen=True)
class Fixed:
    """This is a layer that is not searched."""

    op: Op
    """The operation of the layer."""
    out_chs: int
    """The channels that it gives."""
    stride: int = 1
    """The stride of the layer."""


@dataclass(frozen=True)
class Layer:
    """This is a searchable layer."""

    ops: tuple[Op, ...]
    """The candidate operations."""
    out_chs: int
    """The channels that every candidate gives."""
    stride: int = 1
    """The stride of every candidate."""

    def __len__(self) -> int:
        return len(self.ops)

    def __getitem__(self, index: int) -> Op:
        return self.ops[index]

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    @property
    def weighted(self) -> tuple[int, ...]:
        """The indices of the candidates that are more than a skip."""
        return tuple(index for index, op in enumerate(self.ops) if not isinstance(op, Skip))


class Fidelity(NamedTuple):
    """This is the size at which copies of networks are trained to compare these, below their full size."""

    width: float
    """The part of the channels that the copy has."""
    image_size: int
    """The side of its images, in pixels."""

    def __str__(self) -> str:
        """Say it in words, as in "scores of a half-width copy at 16 px"."""
        named = {1.0: "a copy at", 0.5: "a half-width copy at", 0.25: "a quarter-width copy at"}
        at = named.get(self.width, f"a copy at {self.width:g} of the width and")
        return f"{at} {self.image_size} px"


class Cost(NamedTuple):
    """This is what a module costs for one image."""

    macs: int
    """The multiply-accumulates of one forward pass."""
    params: int
    """The number of parameters."""


@dataclass(frozen=True)
class Space:
    """A space is a family of networks that differ in the candidate chosen at every searchable layer.

    The stem's layers come first, then the searchable ones, then the tail, which ends in the logits.
    """

    stem: tuple[Fixed, ...]
    """The layers before the searchable ones."""
    layers: tuple[Layer, ...]
    """The searchable layers."""
    tail: Tail
    """What stands behind the searchable layers."""
    name: str = "own"
    """The name of the space."""
    style: Style = field(default_factory=Style)
    """What all blocks have in common."""
    num_classes: int = 10
    """The number of classes."""
    image_size: int = 32
    """The side of the square images, in pixels."""
    in_chs: int = 3
    """The channels of the images."""
    copy_of: "Space | None" = None
    """The space of full size, where this is a copy of it with fewer channels or for smaller images."""
    width: float = 1.0
    """The part of its channels that a copy has."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError(f"space {self.name}: there are no layers to search")
        for kind, places in (("stem", self.stem_places), ("layer", self.places)):
            for number, place in enumerate(places, start=1):
                if place.stride not in (1, 2):
                    # timm's padding gives maps of other sizes than a larger stride alone would.
                    raise ValueError(
                        f"space {self.name}: {kind} {number} has stride {place.stride}; it must be 1 or 2"
                    )
        for number, (layer, place) in enumerate(zip(self.layers, self.places, strict=True), start=1):
            if not layer.weighted:
                raise ValueError(f"space {self.name}: layer {number} has no candidate but skip")
            if len(set(map(str, layer.ops))) < len(layer):
                raise ValueError(f"space {self.name}: layer {number} has one candidate twice")
            if len(layer.weighted) < len(layer) and not place.keeps_shape:
                raise ValueError(
                    f"space {self.name}: layer {number} changes the shape, which skip cannot; "
                    "take it out, or take proj"
                )
        if self.sizes[-1] < 1:
            raise ValueError(f"space {self.name}: images of {self.image_size} pixels are too small for it")

    # ---- sizes -----------------------------------------------------------------------------------------

    @property
    def full(self) -> "Space":
        """The space of full size, to which all limits and reported costs refer."""
        return self.copy_of or self

    @property
    def fidelity(self) -> Fidelity | None:
        """The size of a copy, or None for a space of full size."""
        return Fidelity(self.width, self.image_size) if self.copy_of else None

    @property
    def fidelity_note(self) -> dict[str, dict[str, float]]:
        """What files say about the size of a copy; it is empty for a space of full size."""
        return {"fidelity": self.fidelity._asdict()} if self.fidelity else {}

    def reduced(self, *, width: float = 1.0, image_size: int = 0) -> "Space":
        """Return a copy with `width` times the channels, for images of `image_size` pixels.

        Its candidates are the same, so every string of choices names the same network in both. Channels are
        rounded to multiples of 4. With 0 images are as large as here.

        Raises:
            ValueError: if the space is a copy already, or `width` leaves too few channels.
        """
        if not 0 < width <= 1:
            raise ValueError(f"space {self.name}: width is {width:g}; it must be over 0 and at most 1")
        image_size = image_size or self.image_size
        if width == 1 and image_size == self.image_size:
            return self
        if self.copy_of:
            raise ValueError(f"space {self.name} is {self.fidelity} already; take that of full size")

        def scaled(chs: int) -> int:
            if width == 1 or not chs:
                return chs
            if chs * width < 1:
                raise ValueError(f"space {self.name}: width {width:g} leaves none of {chs} channels")
            return min(chs, int(make_divisible(chs * width, 4)))  # type: ignore[no-untyped-call]

        copy = replace(
            self,
            stem=tuple(replace(fixed, out_chs=scaled(fixed.out_chs)) for fixed in self.stem),
            layers=tuple(replace(layer, out_chs=scaled(layer.out_chs)) for layer in self.layers),
            tail=replace(
                self.tail, conv_chs=scaled(self.tail.conv_chs), hidden_chs=scaled(self.tail.hidden_chs)
            ),
            image_size=image_size,
            copy_of=self,
            width=width,
        )
        for number, (mine, full) in enumerate(zip(copy.places, self.places, strict=True), start=1):
            if (
                mine.keeps_shape != full.keeps_shape
            ):  # blocks would have a shortcut that they lack at full size
                raise ValueError(
                    f"space {self.name}: width {width:g} leaves layer {number} as many channels as come in"
                )
        return copy

    # ---- places ----------------------------------------------------------------------------------------

    @property
    def stem_places(self) -> list[Place]:
        """Where the layers of the stem stand."""
        return _places(self.in_chs, self.stem)

    @property
    def places(self) -> list[Place]:
        """Where the searchable layers stand."""
        return _places(self.stem[-1].out_chs if self.stem else self.in_chs, self.layers)

    @property
    def stem_sizes(self) -> list[int]:
        """The side of the maps that go into each layer of the stem."""
        return _sizes(self.image_size, self.stem)[:-1]

    @property
    def sizes(self) -> list[int]:
        """The side of the maps that go into each searchable layer, and of those that the last one gives."""
        return _sizes(_sizes(self.image_size, self.stem)[-1], self.layers)

    # ---- architectures ---------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The number of architectures."""
        return math.prod(len(layer) for layer in self.layers)

    @property
    def num_networks(self) -> int:
        """The number of different networks; skips among equal layers may stand anywhere."""
        return math.prod(sum(self.networks_by_depth(run).values()) for run in self.runs)

    def networks_by_depth(self, run: range) -> dict[int, int]:
        """Return how many different networks a run of layers can be.

        They are given by the number of layers that are not skipped.
        """
        layer = self.layers[run.start]
        ways = len(layer.weighted)
        least = 0 if ways < len(layer) else len(run)
        return {depth: ways**depth for depth in range(least, len(run) + 1)}

    def validate(self, architecture: Architecture) -> None:
        """Refuse anything that is no architecture of this space, naming the layer."""
        choices = architecture.choices
        if len(choices) != len(self.layers):
            raise ValueError(
                f"architecture {architecture} has {len(choices)} choices; space {self.name} has "
                f"{len(self.layers)} searchable layers"
            )
        for number, (choice, layer) in enumerate(zip(choices, self.layers, strict=True), start=1):
            if not 0 <= choice < len(layer):
                raise ValueError(
                    f"architecture {architecture}: layer {number} of space {self.name} has candidates 0 to "
                    f"{len(layer) - 1}, not {choice}"
                )

    def canonical(self, architecture: Architecture) -> Architecture:
        """Return the same network with skips moved to the end among equal layers."""
        choices = list(architecture.choices)
        for run in self.runs:
            weighted = self.layers[run.start].weighted
            part = [choices[index] for index in run]
            choices[run.start : run.stop] = sorted(part, key=lambda choice: choice not in weighted)
        return Architecture(tuple(choices))

    def architectures(self) -> Iterator[Architecture]:
        """Yield all architectures, the last layer's choice changing fastest."""
        for choices in itertools.product(*(range(len(layer)) for layer in self.layers)):
            yield Architecture(choices)

    def describe(self, architecture: Architecture) -> list[str]:
        """Return the names of an architecture's operations."""
        return [str(layer[choice]) for layer, choice in zip(self.layers, architecture.choices, strict=True)]

    # ---- costs -----------------------------------------------------------------------------------------

    def macs(self, architecture: Architecture) -> int:
        """Return the exact multiply-accumulates of a network for one image; those of its parts add up."""
        return self.fixed_cost.macs + sum(cost.macs for cost in self._chosen(architecture))

    def params(self, architecture: Architecture) -> int:
        """Return the exact number of a network's parameters."""
        return self.fixed_cost.params + sum(cost.params for cost in self._chosen(architecture))

    @property
    def fixed_cost(self) -> Cost:
        """What stem and tail cost together."""
        stem, tail = self.stem_cost, self.tail_cost
        return Cost(stem.macs + tail.macs, stem.params + tail.params)

    @cached_property
    def costs(self) -> tuple[tuple[Cost, ...], ...]:
        """What every candidate of every searchable layer costs."""
        of_layers = enumerate(zip(self.layers, self.places, self.sizes, strict=False), start=1)
        return tuple(
            tuple(_cost_of(op, place, self.style, size, f"space {self.name}: layer {number}") for op in layer)
            for number, (layer, place, size) in of_layers
        )

    @cached_property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """How many numbers the activations of every candidate of every layer give for one image."""
        of_layers = zip(self.layers, self.places, self.sizes, strict=False)
        return tuple(
            tuple(_units_of(op, place, self.style, size) for op in layer) for layer, place, size in of_layers
        )

    @cached_property
    def stem_cost(self) -> Cost:
        """What the stem costs."""
        macs = params = 0
        stem = zip(self.stem, self.stem_places, self.stem_sizes, strict=True)
        for number, (fixed, place, size) in enumerate(stem, start=1):
            cost = _cost_of(fixed.op, place, self.style, size, f"space {self.name}: stem {number}")
            macs, params = macs + cost.macs, params + cost.params
        return Cost(macs, params)

    @cached_property
    def tail_cost(self) -> Cost:
        """What the tail costs."""
        return _counted_tail(self.tail, self.layers[-1].out_chs, self.num_classes, self.style, self.sizes[-1])

    def _chosen(self, architecture: Architecture) -> Iterator[Cost]:
        self.validate(architecture)
        return (row[choice] for row, choice in zip(self.costs, architecture.choices, strict=True))

    @cached_property
    def runs(self) -> tuple[range, ...]:
        """Runs of equal layers among which operations may change places."""
        runs: list[range] = []
        for index, (layer, place) in enumerate(zip(self.layers, self.places, strict=True)):
            last = runs[-1].start if runs else 0
            same = (
                runs
                and place.keeps_shape
                and self.places[last].keeps_shape
                and layer == self.layers[last]
                and len(layer.weighted) < len(layer)
            )
            if same:
                runs[-1] = range(last, index + 1)
            else:
                runs.append(range(index, index + 1))
        return tuple(runs)


def _places(in_chs: int, layers: Sequence[Fixed] | Sequence[Layer]) -> list[Place]:
    places = []
    for layer in layers:
        places.append(Place(in_chs, layer.out_chs, layer.stride))
        in_chs = layer.out_chs
    return places


def _sizes(size: int, layers: Sequence[Fixed] | Sequence[Layer]) -> list[int]:
    """Return the sides of the maps before the first of the layers, and behind each."""
    sizes = [size]
    for layer in layers:
        sizes.append(math.ceil(sizes[-1] / layer.stride))
    return sizes


def _cost_of(op: Op, place: Place, style: Style, size: int, where: str) -> Cost:
    try:
        if isinstance(op, Hashable):
            return _counted(op, place, style, size)
        return _counted.__wrapped__(op, place, style, size)  # a user's own may not be hashable
    except ValueError as error:
        raise Mistake("", f"{where}: {quoted(error)}") from None


def _units_of(op: Op, place: Place, style: Style, size: int) -> int:
    with torch.device("meta"):
        module = op.build(place, style)
    return count_units(module, (place.in_chs, size, size))


@cache
def _counted(op: Op, place: Place, style: Style, size: int) -> Cost:
    # Spaces have most of their candidates in common with each other, and are made several times in a run.
    with torch.device("meta"):
        module = op.build(place, style)
    return Cost(count_macs(module, (place.in_chs, size, size)), count_params(module))


@cache
def _counted_tail(tail: Tail, in_chs: int, num_classes: int, style: Style, size: int) -> Cost:
    with torch.device("meta"):
        module = build_tail(tail, in_chs, num_classes, style)
    return Cost(count_macs(module, (in_chs, size, size)), count_params(module))


def stage(
    ops: Iterable[Op], *, depth: int, out_chs: int, stride: int, first: Iterable[Op] = ()
) -> list[Layer]:
    """Return the layers of a stage; the first one has the stride.

    The first layer's candidates are those of `first`, or all of `ops` but skip.
    """
    ops = tuple(ops)
    opening = tuple(first) or tuple(op for op in ops if not isinstance(op, Skip))
    return [Layer(opening, out_chs, stride), *[Layer(ops, out_chs)] * (depth - 1)]
