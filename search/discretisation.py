"""Learned preferences become a decoupling (Section 3.4 of SEDONA). Free of torch.

alpha (L-1, 2) and beta (L-1, M) are the values before softmax: nested sequences, tensors or arrays. Their
first row is layer 1's; the last layer, which has the classifier, has none. softmax(alpha)_1 is the share
of the local signal. It is compared as float32, the precision of SEDONA's values. So layers that were equal
there are equal here, and the lower comes first. Smaller differences are rounding.
"""

import math
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from numbers import Integral
from operator import itemgetter
from statistics import stdev

from local_learning.cuts.balance import balanced_cuts
from local_learning.decoupling import Decoupling
from local_learning.later.request import head_at, kinds_at
from search.records import Rows, Values, checked

TIED = 1e-6
"""Shares that differ by less are called tied in words; they are ordered all the same."""

CERTAIN, NOT_CERTAIN = "clear of chance", "another seed may choose otherwise"
"""The two verdicts on a margin that has a standard error."""

INDIFFERENT = 0.01
"""Layers whose local share is this close to one half prefer neither signal."""


@dataclass(frozen=True)
class PartCosts:
    """These are the costs of a block's parts, in any unit: seconds, multiply-accumulates, bytes."""

    layers: tuple[float, ...]
    """The cost of each layer."""

    heads: tuple[tuple[float, ...], ...]
    """The cost of each kind of head on each layer but the last."""

    classifier: float
    """The cost of the classifier."""

    def __post_init__(self) -> None:
        if len(self.heads) != len(self.layers) - 1:
            raise ValueError(
                f"costs: of {len(self.layers)} layers all but the last need heads, not {len(self.heads)}"
            )
        for cost in (*self.layers, *(cost for row in self.heads for cost in row), self.classifier):
            if not (math.isfinite(cost) and cost >= 0):
                raise ValueError(f"costs: {cost} is no cost; it must be finite and at least 0")

    def of_heads(self, head_kinds: Sequence[str], heads: Sequence[str]) -> list[float]:
        """Return the cost of one given kind of head on each layer, from the first on."""
        for layer, row in enumerate(self.heads, 1):
            if len(row) != len(head_kinds):
                raise ValueError(
                    f"costs: layer {layer} has {len(row)} heads, not one per kind ({len(head_kinds)})"
                )
        return [row[head_kinds.index(head)] for row, head in zip(self.heads, heads, strict=True)]


def discretise(alpha: Rows, beta: Rows, head_kinds: Sequence[str], num_blocks: int) -> Decoupling:
    """Cut after the K-1 layers of largest softmax(alpha)_1, each with its head of largest beta.

    Among equal layers the lowest are taken, and among equal heads the first.
    """
    alpha, beta = checked(alpha, beta, head_kinds)
    return _with_heads(_learned_cuts(alpha, num_blocks), _winners(beta, head_kinds))


def discretise_within(
    alpha: Rows, beta: Rows, head_kinds: Sequence[str], num_blocks: int, costs: PartCosts, slack: float
) -> Decoupling:
    """Return the cuts of largest summed softmax(alpha)_1 among those whose blocks cost about the same.

    A block costs its layers and the head at its end, which is the layer's head of largest beta. No block
    may cost more than `slack` times the largest block of the most even cuts. Among equal sums, the lowest
    cuts are taken.
    """
    alpha, beta = checked(alpha, beta, head_kinds)
    num_layers = len(alpha) + 1
    _check_num_blocks(num_blocks, num_layers)
    if len(costs.layers) != num_layers:
        raise ValueError(f"costs: a network of {num_layers} layers, not of {len(costs.layers)}, is needed")
    if not (math.isfinite(slack) and slack >= 1):
        raise ValueError(f"slack is {slack}; it must be finite and at least 1")
    winners = _winners(beta, head_kinds)
    heads = costs.of_heads(head_kinds, winners)
    # The last block counts as cut after the last layer, with the classifier for a head.
    ends = [*heads, costs.classifier]

    def cost(start: int, cut: int) -> float:
        return math.fsum((*costs.layers[start:cut], ends[cut - 1]))

    even = balanced_cuts(costs.layers, heads, costs.classifier, [0.0] * num_layers, num_blocks)
    limit = slack * max(cost(*block) for block in pairwise((0, *even, num_layers)))
    allowed = [
        [cut for cut in range(start + 1, num_layers + 1) if cost(start, cut) <= limit]
        for start in range(num_layers)
    ]
    # All float32 numbers are whole multiples of 2^-149, so these sums are exact and ties are ties.
    values = [int(math.ldexp(share, 149)) for share in _local_shares(alpha)]
    return _with_heads(_most_valuable(values, allowed, num_blocks), winners)


def imbalance(decoupling: Decoupling, head_kinds: Sequence[str], costs: PartCosts) -> float:
    """Return the largest block's cost divided by the mean cost: 1 where all blocks cost the same."""
    blocks = decoupling.blocks(len(costs.layers))
    if not blocks[-1]:
        raise ValueError(f"cuts: there is no cost of a head on the last layer, {len(costs.layers)}")
    ends = []
    for cut, head in zip(decoupling.cuts, decoupling.heads, strict=True):
        kinds = kinds_at(head_kinds, cut, len(costs.layers))
        if head not in kinds:
            raise ValueError(f"heads: '{head}' is none of the kinds with a cost: {', '.join(kinds)}")
        ends.append(costs.heads[cut - 1][kinds.index(head)])
    ends.append(costs.classifier)
    sums = [
        sum(costs.layers[block.start : block.stop]) + end for block, end in zip(blocks, ends, strict=True)
    ]
    return max(sums) * len(sums) / sum(sums) if any(sums) else 1.0


def random_cuts(
    alpha: Rows, beta: Rows, head_kinds: Sequence[str], num_blocks: int, rng: random.Random
) -> Decoupling:
    """Draw cuts at random, all sets of them alike, with the learned heads ("random alpha" of Table 4)."""
    alpha, beta = checked(alpha, beta, head_kinds)
    num_layers = len(alpha) + 1
    _check_num_blocks(num_blocks, num_layers)
    return _with_heads(rng.sample(range(1, num_layers), num_blocks - 1), _winners(beta, head_kinds))


def random_heads(
    alpha: Rows, beta: Rows, head_kinds: Sequence[str], num_blocks: int, rng: random.Random
) -> Decoupling:
    """Return the learned cuts, each with a random head ("random beta" of Table 4)."""
    alpha, beta = checked(alpha, beta, head_kinds)
    cuts = _learned_cuts(alpha, num_blocks)
    drawn = {cut: rng.choice(head_kinds) for cut in cuts}
    return Decoupling(tuple(cuts), tuple(head_at(kind, cut, len(alpha) + 1) for cut, kind in drawn.items()))


@dataclass(frozen=True)
class SearchSpread:
    """A spread says how far apart searches end that differ by chance alone."""

    ends: Sequence[tuple[Rows, Rows]]
    """The alpha and beta of each search."""

    errors: float = 2.0
    """How many standard errors a margin must have to count."""

    of_mean: bool = False
    """Whether the result is the mean of these ends, and not one more such end."""

    source: str = "searches that differ by chance alone"
    """Which searches these are, in words."""

    def error(self, margins: Sequence[float]) -> float:
        """Return the standard error of the result's margin, given the margin of each end."""
        return stdev(margins) / (math.sqrt(len(margins)) if self.of_mean else 1.0)


def confidence(
    alpha: Rows, beta: Rows, head_kinds: Sequence[str], num_blocks: int, spread: SearchSpread | None = None
) -> list[str]:
    """Say in words how sure the cuts and heads of `num_blocks` blocks are.

    A choice is undetermined where its margin is below 1e-6. It is not certain where its margin is below
    `spread.errors` standard errors. Without a spread of two ends or more, nothing is said about certainty.
    """
    alpha, beta = checked(alpha, beta, head_kinds)
    ends = [checked(*end, head_kinds) for end in spread.ends] if spread else []
    for end in ends:
        if len(end[0]) != len(alpha):
            raise ValueError(f"spread: alpha has {len(end[0])} rows in it, and {len(alpha)} now")
    cuts, local = _learned_cuts(alpha, num_blocks), _local_shares(alpha)
    lines = [_about_cuts(local, num_blocks, spread, [_local_shares(end) for end, _ in ends])]
    if cuts and max(local) < 0.5:
        most = _ranked(local)[0]
        below = [0.5 - _local_shares(end)[most - 1] for end, _ in ends]
        lines.append(
            f"no cut is preferred: the largest local share is {max(local):.4g}, after layer {most}, and one "
            f"half is {_verdict(0.5 - max(local), below, spread, f'layer {most} and no cut')}"
        )
    indifferent = [layer for layer, share in enumerate(local, 1) if abs(share - 0.5) <= INDIFFERENT]
    if indifferent:
        lines.append(
            "indifferent, preferring neither the local nor the backpropagated signal "
            f"(softmax(alpha)_1 within {INDIFFERENT} of 0.5): {_named(indifferent)}"
        )
    for cut in cuts:
        about = _about_head(beta[cut - 1], head_kinds, spread, [rows[cut - 1] for _, rows in ends])
        lines.append(f"head after layer {cut}: {about}")
    return lines


def shares(row: Sequence[float]) -> list[float]:
    """Return the softmax of a row."""
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def _local_shares(alpha: Values) -> list[float]:
    """Return softmax(alpha)_1 of each layer, to float32."""
    return array("f", [shares(row)[0] for row in alpha]).tolist()


def _ranked(local: Sequence[float]) -> list[int]:
    """Return the layers by descending share, the lower first where equal."""
    return sorted(range(1, len(local) + 1), key=lambda layer: -local[layer - 1])


def _learned_cuts(alpha: Values, num_blocks: int) -> list[int]:
    _check_num_blocks(num_blocks, len(alpha) + 1)
    return sorted(_ranked(_local_shares(alpha))[: num_blocks - 1])


def _winners(beta: Values, head_kinds: Sequence[str]) -> list[str]:
    """Return each layer's head."""
    return [head_kinds[row.index(max(row))] for row in beta]


def _with_heads(cuts: Sequence[int], winners: Sequence[str]) -> Decoupling:
    ordered = sorted(cuts)
    num_layers = len(winners) + 1
    return Decoupling(tuple(ordered), tuple(head_at(winners[cut - 1], cut, num_layers) for cut in ordered))


def _most_valuable(values: Sequence[int], allowed: Sequence[Sequence[int]], num_blocks: int) -> list[int]:
    """Return the cuts of largest sum, the lowest where equal.

    This is a dynamic programme from the last block back. `allowed[i]` are the ends, ascending, of blocks
    that begin after i layers. Some cuts must be possible.
    """
    num_layers = len(allowed)
    best: dict[int, tuple[int, list[int]]] = {
        i: (0, []) for i in range(num_layers) if num_layers in allowed[i]
    }
    for _ in range(num_blocks - 1):
        better = {}
        for start, ends in enumerate(allowed):
            sums = [(values[cut - 1] + best[cut][0], cut) for cut in ends if cut in best]
            if sums:
                total, cut = max(sums, key=itemgetter(0))
                better[start] = (total, [cut, *best[cut][1]])
        best = better
    return best[0][1]


def _about_cuts(
    local: Sequence[float], num_blocks: int, spread: SearchSpread | None, ends: Sequence[Sequence[float]]
) -> str:
    ranked = _ranked(local)
    chosen, left = ranked[: num_blocks - 1], ranked[num_blocks - 1 :]
    if not chosen or not left:
        return "cuts: nothing was left out" if chosen else "cuts: one block has none"
    inner, outer = chosen[-1], left[0]
    tied = [layer for layer in chosen if local[layer - 1] - local[outer - 1] < TIED]
    tied += [layer for layer in left if local[inner - 1] - local[layer - 1] < TIED]
    margins = [end[inner - 1] - end[outer - 1] for end in ends]
    verdict = _verdict(local[inner - 1] - local[outer - 1], margins, spread, _named(tied))
    same = sum(set(_ranked(end)[: num_blocks - 1]) == set(chosen) for end in ends)
    agree = f"; {same} of {len(ends)} {spread.source} have these cuts" if spread and len(ends) > 1 else ""
    return (
        f"cuts: the last chosen is after layer {inner} (softmax(alpha)_1 {local[inner - 1]:.4g}), "
        f"the first left out after layer {outer} ({local[outer - 1]:.4g}); {verdict}{agree}"
    )


def _about_head(
    row: Sequence[float], kinds: Sequence[str], spread: SearchSpread | None, ends: Sequence[Sequence[float]]
) -> str:
    if len(kinds) == 1:
        return f"{kinds[0]}, the only kind"
    now, then = shares(row), [shares(end) for end in ends]
    first, second, *_ = sorted(range(len(kinds)), key=lambda m: -row[m])
    tied = [kind for kind, share in zip(kinds, now, strict=True) if now[first] - share < TIED]
    margins = [end[first] - end[second] for end in then]
    verdict = _verdict(now[first] - now[second], margins, spread, ", ".join(tied))
    return f"{kinds[first]} ({now[first]:.4g}), then {kinds[second]} ({now[second]:.4g}); {verdict}"


def _verdict(margin: float, margins: Sequence[float], spread: SearchSpread | None, tied: str) -> str:
    """Say what a margin is worth, given those of searches that differ by chance."""
    if margin < TIED:
        return f"undetermined: {tied} are tied"
    if spread is None or len(margins) < 2:
        return f"{margin:.2g} apart"
    error = spread.error(margins)
    if margin < spread.errors * error:
        return f"{margin:.2g} apart with a standard error of {error:.2g}: {NOT_CERTAIN}"
    return f"{margin:.2g} apart with a standard error of {error:.2g}: {CERTAIN}"


def _named(layers: Sequence[int]) -> str:
    """Name layers in words, such as "layers 3, 5 to 9"."""
    runs = []
    for _, run in groupby(enumerate(sorted(layers)), key=lambda pair: pair[1] - pair[0]):
        members = [layer for _, layer in run]
        runs += [f"{members[0]} to {members[-1]}"] if len(members) > 2 else [str(layer) for layer in members]
    return f"{'layer' if len(layers) == 1 else 'layers'} {', '.join(runs)}"


def _check_num_blocks(num_blocks: object, num_layers: int) -> None:
    if isinstance(num_blocks, bool) or not isinstance(num_blocks, Integral):
        raise ValueError(f"num_blocks: {num_blocks!r} is not a whole number")
    if not 1 <= int(num_blocks) <= num_layers:
        raise ValueError(f"num_blocks is {num_blocks}; {num_layers} layers make 1 to {num_layers} blocks")
