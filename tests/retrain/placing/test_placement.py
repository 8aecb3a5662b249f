"""Placements against all that there are."""

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrain.placing.placement import (
    PipelineStage,
    Placement,
    load_placement,
    place,
    place_by,
    place_groups,
    save_placement,
    usable,
)

Sizes = list[tuple[int, int]]


def compositions(total: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as a sum of positive ones, in order."""
    if total == 0:
        yield ()
    for first in range(1, total + 1):
        for rest in compositions(total - first):
            yield (first, *rest)


def all_placements(blocks: int, ranks: int, batch: int, parts: int, apart: bool) -> Iterator[Sizes]:
    """One by one, by the rules as they are written."""
    for groups, copies in itertools.product(compositions(blocks), compositions(ranks)):
        if len(groups) != len(copies) or any(batch % number for number in copies):
            continue
        if parts > 1 and (len(set(copies)) > 1 or batch % (copies[0] * parts)):
            continue
        if apart and ranks >= blocks and len(groups) < blocks:
            continue
        if apart and ranks < blocks and max(copies) > 1:
            continue
        yield list(zip(groups, copies, strict=True))


def times_of(sizes: Sizes, seconds: dict[tuple[int, int, int], float]) -> list[float]:
    found, start = [], 0
    for blocks, copies in sizes:
        found.append(seconds[start, start + blocks, copies])
        start += blocks
    return found


def sizes_of(placement: Placement) -> Sizes:
    return [(len(stage.blocks), stage.copies) for stage in placement.stages]


@settings(max_examples=150, deadline=None)
@given(
    blocks=st.integers(1, 4),
    ranks=st.integers(1, 7),
    batch=st.sampled_from([1, 2, 4, 6, 12, 35]),
    parts=st.sampled_from([1, 1, 2, 3]),
    apart=st.booleans(),
    coarse=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_no_placement_is_better(
    blocks: int, ranks: int, batch: int, parts: int, apart: bool, coarse: bool, seed: int
) -> None:
    """Among times of any kind, also such as rise with the number of copies; coarse ones tie."""
    chance = random.Random(seed)
    seconds = {
        (start, stop, copies): float(chance.randint(1, 3)) if coarse else chance.random()
        for start in range(blocks)
        for stop in range(start + 1, blocks + 1)
        for copies in range(1, ranks + 1)
    }
    possible = list(all_placements(blocks, ranks, batch, parts, apart))
    may_be_used = usable(blocks, ranks, batch_size=batch, accumulate=parts, apart=apart)
    assert may_be_used == [
        n for n in range(1, ranks + 1) if any(all_placements(blocks, n, batch, parts, apart))
    ]

    def find() -> Placement:
        return place_by(
            lambda blocks, copies: seconds[blocks.start, blocks.stop, copies],
            blocks,
            ranks,
            batch_size=batch,
            accumulate=parts,
            apart=apart,
        )

    if not possible:
        with pytest.raises(ValueError, match="cannot be shared evenly"):
            find()
        return
    found = find()
    assert sizes_of(found) in possible
    assert sizes_of(find()) == sizes_of(found)

    def worth(sizes: Sizes) -> tuple[float, int, float]:
        times = times_of(sizes, seconds)
        return max(times), -len(sizes), round(sum(times), 9)

    assert worth(sizes_of(found)) == min(worth(sizes) for sizes in possible)


@settings(max_examples=60, deadline=None)
@given(
    times=st.lists(st.floats(0.1, 10), min_size=1, max_size=4),
    ranks=st.integers(1, 7),
    batch=st.sampled_from([4, 12, 60]),
)
def test_plain_times_fall_with_the_rows(times: list[float], ranks: int, batch: int) -> None:
    def slowest(sizes: Sizes) -> float:
        found, start = [], 0
        for blocks, copies in sizes:
            found.append(sum(times[start : start + blocks]) / copies)
            start += blocks
        return max(found)

    possible = list(all_placements(len(times), ranks, batch, 1, False))
    if possible:
        found = place(times, ranks, batch_size=batch)
        assert slowest(sizes_of(found)) == pytest.approx(min(map(slowest, possible)), rel=1e-12)
        assert found.world_size == ranks
        assert found.num_blocks == len(times)


def test_many_blocks_on_many_processes() -> None:
    chance = random.Random(3)
    times = [chance.uniform(1, 2) for _ in range(32)]
    apart = place(times, 512, batch_size=5040, apart=True)
    assert [len(stage.blocks) for stage in apart.stages] == [1] * 32
    together = place(times, 512, batch_size=5040)
    assert max(
        sum(times[index] for index in stage.blocks) / stage.copies for stage in together.stages
    ) <= max(times[stage.blocks.start] / stage.copies for stage in apart.stages)


def test_blocks_stay_apart_where_sharing_rows_is_no_faster() -> None:
    assert sizes_of(place([1, 1], 2, batch_size=8)) == [(1, 1), (1, 1)]
    # Perfect data parallelism is faster than blocks that differ, unless it is not wanted.
    assert sizes_of(place([1, 3], 2, batch_size=8)) == [(2, 2)]
    assert sizes_of(place([1, 3], 2, batch_size=8, apart=True)) == [(1, 1), (1, 1)]
    assert sizes_of(place([1, 1, 2], 2, batch_size=8, apart=True)) == [(2, 1), (1, 1)]


SHARING = [
    (2, 37, {"batch_size": 32}, "32 images and 2 blocks .* among 37 processes; 36 or 40 would do"),
    (1, 6, {"batch_size": 4}, "4 images and 1 block .* among 6 processes; 4 would do"),
    (
        3,
        4,
        {"batch_size": 32, "accumulate": 2, "apart": True},
        "32 images in recipe.accumulate 2 parts each and 3 blocks .*; 3 or 6 would do",
    ),
]


@pytest.mark.parametrize(("blocks", "ranks", "options", "says"), SHARING)
def test_what_cannot_be_shared_is_said(blocks: int, ranks: int, options: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=f"^recipe.batch_size: {says}$"):
        place([1.0] * blocks, ranks, **options)  # type: ignore[arg-type]


def test_every_rank_has_its_stage(tmp_path: Path) -> None:
    placement = Placement.of([(2, 1), (1, 3), (3, 2)])
    assert (placement.num_blocks, placement.world_size) == (6, 6)
    assert [placement.stage_of(rank) for rank in range(6)] == [0, 1, 1, 1, 2, 2]
    assert placement.stages[1] == PipelineStage(blocks=range(2, 3), ranks=range(1, 4))
    with pytest.raises(ValueError, match="there is no rank 6; this placement has 6"):
        placement.stage_of(6)
    path = tmp_path / "placement.json"
    save_placement(path, placement)
    assert load_placement(path) == placement
    assert json.loads(path.read_text())["format"] == "cleave/placement"


GROUPED = [
    # groups of each block, whether the last one has no layers, and the stages as blocks, ranks, groups
    ((2, 2, 1), True, [(1, 2, 2), (2, 2, 2)]),
    ((6, 12, 6, 1, 1), False, [(1, 6, 6), (1, 12, 12), (1, 6, 6), (1, 1, 1), (1, 1, 1)]),
    ((1, 3, 1), True, [(1, 1, 1), (2, 3, 3)]),
    ((3, 1), False, [(1, 3, 3), (1, 1, 1)]),
    ((3, 1, 1), True, [(1, 3, 3), (2, 1, 1)]),
]


@pytest.mark.parametrize(("groups", "bare", "expected"), GROUPED)
def test_neuron_groups_have_processes_of_their_own(
    groups: tuple[int, ...], bare: bool, expected: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    count = sum(size[1] for size in expected)
    placement = place_groups(groups, count, top_is_bare=bare)
    assert placement is not None
    assert [(len(s.blocks), len(s.ranks), s.groups) for s in placement.stages] == expected
    assert all(stage.copies == 1 for stage in placement.stages)
    top, last = placement.num_blocks - 1, placement.stages[-1]
    assert last.ranks_of(top) == (last.ranks[:1] if bare else last.ranks)
    assert last.ranks_of(last.blocks.start) == last.ranks
    path = tmp_path / "placement.json"
    save_placement(path, placement)
    assert load_placement(path) == placement
    for other in (count - 1, count + 1):
        assert place_groups(groups, other, top_is_bare=bare) is None


def test_blocks_without_groups_are_not_placed_by_them() -> None:
    assert place_groups((1, 1, 1), 3, top_is_bare=False) is None


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [PipelineStage(blocks=range(0, 1), ranks=range(0, 4), groups=2)],
        [PipelineStage(blocks=range(0, 1), ranks=range(1, 2))],
        [PipelineStage(blocks=range(0, 0), ranks=range(0, 1))],
        [
            PipelineStage(blocks=range(0, 1), ranks=range(0, 1)),
            PipelineStage(blocks=range(2, 3), ranks=range(1, 2)),
        ],
        [
            PipelineStage(blocks=range(0, 1), ranks=range(0, 2)),
            PipelineStage(blocks=range(1, 2), ranks=range(1, 2)),
        ],
        [PipelineStage(blocks=range(0, 4, 2), ranks=range(0, 1))],
    ],
)
def test_stages_with_gaps_are_none(stages: list[PipelineStage]) -> None:
    with pytest.raises(ValueError, match="stage"):
        Placement(tuple(stages))


@pytest.mark.parametrize(
    "stages",
    [[], 3, [{"blocks": 1}], [{"blocks": 0, "processes": 1}], [{"blocks": True, "processes": 1}], [1]]
    + [[{"blocks": 1, "processes": 4, "groups": groups}] for groups in (2, 0, "2", None)],
)
def test_a_file_that_is_wrong(tmp_path: Path, stages: object) -> None:
    path = tmp_path / "placement.json"
    path.write_text(json.dumps({"format": "cleave/placement", "version": 1, "stages": stages}))
    with pytest.raises(ValueError, match=str(path)):
        load_placement(path)
