"""A head such as aug2@0.5/pool names later layers of the network, and how to copy them. Free of torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tools.mistake import Mistake

ALL = 0
FORM = (
    "aug2, aug2@0.5 (narrower), aug2/pool (on a smaller map), aug2=copy (the layers' own weights) or "
    "aug2+man (beside an average of them); aug6~.5 with uniform:K (a pyramid)"
)
_HEAD = re.compile(r"aug(\d+|:all)(.*)")
_REST = re.compile(r"(?:~(\d*\.?\d+))?(?:@(\d*\.?\d+))?(/pool)?(=copy)?(\+man)?")


@dataclass(frozen=True)
class Later:
    """This is what a head of later layers is made of."""

    depth: int = ALL
    """How many of the later layers the head has; `ALL` are all of them."""
    slope: float = 0.0
    """The part of its depth that a head loses from the first cut to the last (AugLocal's pyramid)."""
    width: float = 1.0
    """A factor on the channels of the layers."""
    pooled: bool = False
    """Whether the layers work on a map of half the side."""
    copied: bool = False
    """Whether the head starts with the layers' own weights, not with new ones."""
    averaged: bool = False
    """Whether a second copy of each layer, which is not trained but follows the layer itself, adds what it
    gives (MAN)."""

    def __str__(self) -> str:
        slope = f"~{self.slope:g}" if self.slope else ""
        width = f"@{self.width:g}" if self.width != 1 else ""
        ends = f"{'/pool' * self.pooled}{'=copy' * self.copied}{'+man' * self.averaged}"
        return f"aug{self.depth or ':all'}{slope}{width}{ends}"

    def layers(self, cut: int, num_layers: int) -> tuple[int, ...]:
        """Return the layers that a head at a cut has, counted from 1.

        They lie at equal distances, and the last is the network's last, as in AugLocal.

        Raises:
            ValueError: if fewer layers lie above the cut.
        """
        above = num_layers - cut
        if self.depth > above:
            raise ValueError(
                f"head '{self}' asks for {self.depth} layers above the cut after layer {cut}, and there "
                f"{'is' if above == 1 else 'are'} {above}; take {replace(self, depth=above)}"
            )
        depth = self.depth or above
        # AugLocal counts layers from 0, which decides where a half is rounded to.
        return tuple(1 + round(cut - 1 + above / depth * step) for step in range(1, depth + 1))

    def fitted(self, cut: int, num_layers: int) -> "Later":
        """Return the head with no more layers than there are above a cut."""
        return replace(self, slope=0.0, depth=min(self.depth, num_layers - cut))

    def on_slope(self, index: int, count: int) -> "Later":
        """Return the head of block `index` of `count` blocks with a head: lower blocks have deeper ones."""
        fall = self.slope * index / (count - 1) if count > 1 else 0.0
        return replace(self, slope=0.0, depth=max(1, round(self.depth * (1 - fall) + fall)))


def parse_later(kind: str) -> Later | None:
    """Return what a kind of head asks for, or None if it is not one of later layers.

    Raises:
        ValueError: if it begins as one, and goes on otherwise.
    """
    head = _HEAD.fullmatch(kind)
    if head is None:
        return None
    rest = _REST.fullmatch(head[2])
    if rest is None:
        raise Mistake("", f"head '{kind}' cannot be read", f"write {FORM}, in this order")
    depth = ALL if head[1] == ":all" else int(head[1])
    later = Later(depth, float(rest[1] or 0), float(rest[2] or 1), *map(bool, rest.groups()[2:]))
    if head[1] != ":all" and not depth:
        raise Mistake("", f"head '{kind}' has no layers", "aug1 has one, and linear has none")
    if not 0 < later.width <= 1:
        raise Mistake("", f"head '{kind}': the width is {later.width:g}", "it must be above 0 and at most 1")
    if not 0 <= later.slope <= 1 or (later.slope and depth == ALL):
        raise Mistake("", f"head '{kind}' has no such slope", "write aug3~0.5, with a number up to 1")
    return later


def head_at(kind: str, cut: int, num_layers: int) -> str:
    """Return the kind of head that a cut gets where all cuts are to have this one.

    A head of later layers has no more of them than there are.
    """
    later = parse_later(kind)
    return str(later.fitted(cut, num_layers)) if later else kind


def heads_at(kind: str, cuts: Sequence[int], num_layers: int) -> tuple[str, ...]:
    """Return the kinds of head at these cuts where all are to have this one, on its slope if it has one.

    Raises:
        ValueError: if no cut has as many layers above it as the head asks for.
    """
    later = parse_later(kind)
    if later is None:
        return (kind,) * len(cuts)
    if cuts and later.depth > num_layers - cuts[0]:
        later.layers(cuts[0], num_layers)  # which raises an error
    sloping = (later.on_slope(index, len(cuts)) if later.slope else later for index in range(len(cuts)))
    return tuple(str(each.fitted(cut, num_layers)) for each, cut in zip(sloping, cuts, strict=True))


def kinds_at(kinds: Sequence[str], cut: int, num_layers: int) -> list[str]:
    """Return the kinds of head that a cut gets in the place of these."""
    return [head_at(kind, cut, num_layers) for kind in kinds]
