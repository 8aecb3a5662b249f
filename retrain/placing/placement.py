"""This module finds the placement of blocks on processes whose slowest stage is fastest. Free of torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate as running_sums
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.files.atomic import read_document, write_document
from tools.mistake import Mistake

Seconds = Callable[[range, int], float]
"""This function returns the time of a step of a stage with these blocks on so many processes."""


@dataclass(frozen=True, kw_only=True)
class PipelineStage:
    """A `PipelineStage` is a row of blocks on the same processes.

    These share the batch's rows or neuron groups.
    """

    blocks: range
    """These blocks are counted from 0."""
    ranks: range
    groups: int = 1
    """The first block has this many neuron groups, each on its own process; other blocks are with group 1."""

    @property
    def copies(self) -> int:
        """Return how many processes share the rows of a batch."""
        return len(self.ranks) // self.groups

    def ranks_of(self, block: int) -> range:
        """Return the processes that train one of the stage's blocks."""
        together = self.groups == 1 or block == self.blocks.start
        return self.ranks if together else self.ranks[:1]


@dataclass(frozen=True)
class Placement:
    """A `Placement` is a list of stages in order; every block and every rank is in one of them."""

    stages: tuple[PipelineStage, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise ValueError("stages: there must be one at least")
        blocks = ranks = 0
        for number, stage in enumerate(self.stages, start=1):
            for name, part, start in (("blocks", stage.blocks, blocks), ("ranks", stage.ranks, ranks)):
                if part.start != start or part.step != 1 or not part:
                    raise ValueError(
                        f"stage {number}: its {name} must begin with {start} and be one or more, "
                        f"without gaps, not {part}"
                    )
            if stage.groups > 1 and stage.groups != len(stage.ranks):
                raise ValueError(
                    f"stage {number}: its {stage.groups} neuron groups must be on {stage.groups} ranks, "
                    f"not {len(stage.ranks)}"
                )
            blocks, ranks = stage.blocks.stop, stage.ranks.stop

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], groups: Sequence[int] = ()) -> "Placement":
        """Make a placement from each stage's numbers of blocks, processes and separate neuron groups."""
        blocks = pairwise(running_sums((size[0] for size in sizes), initial=0))
        ranks = pairwise(running_sums((size[1] for size in sizes), initial=0))
        apart = groups or [1] * len(sizes)
        return cls(
            tuple(
                PipelineStage(blocks=range(*b), ranks=range(*r), groups=count)
                for b, r, count in zip(blocks, ranks, apart, strict=True)
            )
        )

    @property
    def num_blocks(self) -> int:
        """Return the number of blocks of all stages."""
        return self.stages[-1].blocks.stop

    @property
    def world_size(self) -> int:
        """Return the number of processes of all stages."""
        return self.stages[-1].ranks.stop

    def stage_of(self, rank: int) -> int:
        """Return the index of the stage to which a rank belongs."""
        for index, stage in enumerate(self.stages):
            if rank in stage.ranks:
                return index
        raise ValueError(f"there is no rank {rank}; this placement has {self.world_size}")


def place(
    times: Sequence[float], world_size: int, *, batch_size: int, accumulate: int = 1, apart: bool = False
) -> Placement:
    """Return the fastest placement of blocks whose times are known and shrink with the number of rows.

    Such times make data parallelism look perfect: if the number of processes divides the batch, nothing is
    faster than all blocks on all processes. `apart` asks for parallel blocks nevertheless.
    """
    until = [0.0, *running_sums(times)]
    return place_by(
        lambda blocks, copies: (until[blocks.stop] - until[blocks.start]) / copies,
        len(times),
        world_size,
        batch_size=batch_size,
        accumulate=accumulate,
        apart=apart,
    )


def place_by(
    seconds: Seconds,
    num_blocks: int,
    world_size: int,
    *,
    batch_size: int,
    accumulate: int = 1,
    apart: bool = False,
) -> Placement:
    """Return the placement on exactly `world_size` processes whose slowest stage is fastest.

    The processes of a stage take equal parts of the batch, so their number divides it. If a batch comes in
    several parts (`accumulate`), every stage has the same number of processes; otherwise a part would have
    other rows in each. `apart` shares as little as possible: several blocks are on one process only if there
    are fewer processes than blocks, and then no block is on several.

    Among equally fast placements, the one with most stages is taken. Among these, it is the one whose stages
    take the least time together, then the one with the fewest blocks and processes in the first stages.

    Raises:
        ValueError: No placement uses all processes; the message gives numbers of processes that would do.
    """
    assert num_blocks > 0
    assert world_size > 0
    most_blocks = 1 if apart and world_size >= num_blocks else num_blocks
    best: tuple[tuple[float, int, float], list[tuple[int, int]]] | None = None
    for choices in _choices(batch_size, accumulate, world_size, single=apart and world_size < num_blocks):
        placed = _fastest(seconds, num_blocks, world_size, choices, most_blocks)
        if placed is not None and (best is None or placed[0] < best[0]):
            best = placed
    if best is None:
        raise _unusable(num_blocks, world_size, batch_size, accumulate, apart)
    return Placement.of(best[1])


def place_groups(groups: Sequence[int], world_size: int, *, top_is_bare: bool) -> Placement | None:
    """Return the placement with every neuron group on its own process, if there are as many processes.

    Arguments:
        groups: The number of neuron groups of each block; a block without groups has a process, too.
        world_size: The number of processes.
        top_is_bare: Whether the last block has no layers; it then goes with the first group of the block
            below.
    """
    if max(groups) == 1:
        return None
    apart = list(groups[:-1] if top_is_bare else groups)
    if sum(apart) != world_size:
        return None
    sizes = [(1, count) for count in apart]
    if top_is_bare:
        sizes[-1] = (2, apart[-1])
    return Placement.of(sizes, apart)


def usable(
    num_blocks: int, most: int, *, batch_size: int, accumulate: int = 1, apart: bool = False
) -> list[int]:
    """Return the numbers of processes, up to `most`, that a placement can use completely."""
    numbers: set[int] = set()
    for choices in _choices(batch_size, accumulate, most):
        sums = {0}
        for stages in range(1, num_blocks + 1):
            sums = {total + copies for total in sums for copies in choices if total + copies <= most}
            if not apart or stages == num_blocks:
                numbers |= sums
    if apart and batch_size % accumulate == 0:
        numbers.update(range(1, min(num_blocks - 1, most) + 1))
    return sorted(numbers)


def save_placement(path: str | Path, placement: Placement) -> None:
    """Write a placement to a file."""
    stages = [
        {"blocks": len(stage.blocks), "processes": len(stage.ranks)}
        | ({"groups": stage.groups} if stage.groups > 1 else {})
        for stage in placement.stages
    ]
    write_document(Path(path), "placement", 1, {"stages": stages})


def load_placement(path: str | Path) -> Placement:
    """Read a placement from a file.

    Raises:
        ValueError: The file cannot be read as such; the message is one line that names it.
    """
    path = Path(path)
    stages = read_document(path, "placement", 1).get("stages")
    if not isinstance(stages, list) or not stages:
        raise ValueError(f"{path}: 'stages' must be a list of one stage or more")
    sizes = [(_count(path, stage, "blocks"), _count(path, stage, "processes")) for stage in stages]
    groups = [_count(path, stage, "groups", 1) for stage in stages]
    try:
        return Placement.of(sizes, groups)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _count(path: Path, stage: Any, key: str, default: int | None = None) -> int:
    value = stage.get(key, default) if isinstance(stage, dict) else None
    if type(value) is not int or value < 1:
        raise ValueError(f"{path}: each stage needs '{key}', a whole number of at least 1, not {value!r}")
    return value


def _choices(batch_size: int, accumulate: int, most: int, *, single: bool = False) -> list[list[int]]:
    """Return sets of numbers of copies; all stages of a placement take theirs from one set."""
    most = 1 if single else most
    divisors = [d for d in range(1, min(batch_size, most) + 1) if batch_size % d == 0]
    if accumulate == 1:
        return [divisors]
    return [[d] for d in divisors if batch_size % (d * accumulate) == 0]


def _fastest(
    seconds: Seconds, num_blocks: int, world_size: int, choices: Sequence[int], most_blocks: int
) -> tuple[tuple[float, int, float], list[tuple[int, int]]] | None:
    """Return the best placement with copies from `choices`, and the key by which placements are compared."""
    costs = {
        (start, stop, copies): float(seconds(range(start, stop), copies))
        for start in range(num_blocks)
        for stop in range(start + 1, min(start + most_blocks, num_blocks) + 1)
        for copies in choices
    }
    # slowest[i][n] is the best time of the slowest stage, with the blocks from i on n processes.
    slowest = [np.full(world_size + 1, math.inf) for _ in range(num_blocks + 1)]
    slowest[num_blocks][0] = -math.inf
    for (start, stop, copies), cost in reversed(costs.items()):
        own, rest = slowest[start][copies:], slowest[stop][: world_size + 1 - copies]
        np.minimum(own, np.maximum(rest, cost), out=own)
    limit = float(slowest[0][world_size])
    if not math.isfinite(limit):
        return None
    # Every placement within the limit is equally fast; total[i][s, n] is their least sum over s stages.
    within = {key: cost for key, cost in costs.items() if cost <= limit}
    shape = (num_blocks + 1, world_size + 1)
    total: list[NDArray[np.float64]] = [np.full(shape, math.inf) for _ in range(num_blocks + 1)]
    total[num_blocks][0, 0] = 0.0
    for (start, stop, copies), cost in reversed(within.items()):
        own, rest = total[start][1:, copies:], total[stop][:-1, : world_size + 1 - copies]
        np.minimum(own, rest + cost, out=own)
    stages = max(s for s in range(num_blocks + 1) if math.isfinite(total[0][s, world_size]))
    sizes, start, left = [], 0, world_size
    for s in range(stages, 0, -1):
        stop, copies = next(
            (stop, copies)
            for (first, stop, copies), cost in within.items()
            if first == start
            and copies <= left
            and total[stop][s - 1, left - copies] + cost == total[start][s, left]
        )
        sizes.append((stop - start, copies))
        start, left = stop, left - copies
    return (limit, -stages, float(total[0][stages, world_size])), sizes


def _unusable(num_blocks: int, world_size: int, batch_size: int, accumulate: int, apart: bool) -> Mistake:
    numbers = usable(num_blocks, 2 * world_size, batch_size=batch_size, accumulate=accumulate, apart=apart)
    near = [*[n for n in numbers if n < world_size][-1:], *[n for n in numbers if n > world_size][:1]]
    blocks = f"{num_blocks} block{'s' if num_blocks > 1 else ''}"
    parts = f" in `recipe.accumulate` {accumulate} parts each" if accumulate > 1 else ""
    return Mistake(
        "recipe.batch_size",
        f"{batch_size} images{parts} and {blocks} cannot be shared evenly among {world_size} processes",
        f"{' or '.join(map(str, near))} would do",
    )
