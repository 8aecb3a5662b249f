"""Find the cuts that make the most expensive block as cheap as possible, exactly. Free of torch."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate


def balanced_cuts(
    layers: Sequence[float],
    heads: Sequence[float],
    last_head: float,
    entries: Sequence[float],
    num_blocks: int,
) -> list[int]:
    """Return the K - 1 cuts whose most expensive block is cheapest.

    Among equally good cuts, those with the cheapest heads are chosen, and then the lowest ones. A block
    costs its layers, the head at its end, and something for where it begins.

    Arguments:
        layers: The cost of each layer.
        heads: The cost of the head for a cut after each layer.
        last_head: The cost of the last block's head.
        entries: The cost of beginning a block with each layer.
        num_blocks: The number of blocks, K.
    """
    trunk = [[0.0, *accumulate(layers[start:])] for start in range(len(layers))]

    def block(start: int, cut: int) -> float:
        return entries[start] + trunk[start][cut - start] + heads[cut - 1]

    def last(start: int) -> float:
        return entries[start] + trunk[start][-1] + last_head

    costs = _best(len(layers), num_blocks, last, lambda start, cut, rest: max(block(start, cut), rest))
    limit = costs[num_blocks][0]
    # All choices within the limit are equally good; they differ in how much work their heads add.
    extra = _best(
        len(layers),
        num_blocks,
        lambda start: 0.0 if last(start) <= limit else math.inf,
        lambda start, cut, rest: heads[cut - 1] + rest if block(start, cut) <= limit else math.inf,
    )
    cuts = [0]
    for n in range(num_blocks, 1, -1):
        start = cuts[-1]

        def total(cut: int, start: int = start, n: int = n) -> float:
            within = block(start, cut) <= limit
            return heads[cut - 1] + extra[n - 1][cut] if within else math.inf

        cuts.append(min(_possible(len(layers), n, start), key=total))
    return cuts[1:]


def _best(
    num_layers: int,
    num_blocks: int,
    last: Callable[[int], float],
    joined: Callable[[int, int, float], float],
) -> dict[int, dict[int, float]]:
    """Run a dynamic programme: best[n][i] is the value of n blocks that share the layers from i on.

    `joined` is the value of a block from `start` to `cut` in front of blocks whose value is known.
    """
    best = {1: {start: last(start) for start in range(num_layers)}}
    for n in range(2, num_blocks + 1):
        best[n] = {
            start: min(joined(start, cut, best[n - 1][cut]) for cut in _possible(num_layers, n, start))
            for start in range(num_layers - n + 1)
        }
    return best


def _possible(num_layers: int, n: int, start: int) -> range:
    """Return where the first of n blocks can end."""
    return range(start + 1, num_layers - n + 2)
