from pathlib import Path

import pytest
import torch
from torch import Tensor

from search.cuts.memory import PLACES, SnapshotMemory


def state(value: float) -> dict[str, Tensor]:
    return {"weight": torch.full((2, 3), value), "momentum/weight": torch.full((2, 3), -value)}


def values(memory: SnapshotMemory) -> list[float]:
    return [float(memory.read(one)["weight"][0, 0]) for one in memory.snapshots]


@pytest.mark.parametrize("place", PLACES)
def test_the_best_are_kept_with_all_their_tensors(tmp_path: Path, place: str) -> None:
    memory = SnapshotMemory(tmp_path / "snapshots", 3, place=place)
    for step, score in enumerate([0.5, 0.1, 0.4, 0.3, 0.2, 0.4]):
        memory.keep_best(state(step), step, score)
    assert values(memory) == [0, 2, 5]
    assert [one.score for one in memory.snapshots] == [0.5, 0.4, 0.4]
    assert torch.equal(memory.read(memory.snapshots[1])["momentum/weight"], torch.full((2, 3), -2.0))


def test_of_equals_the_older_goes(tmp_path: Path) -> None:
    memory = SnapshotMemory(tmp_path, 2)
    for step in range(4):
        memory.keep_best(state(step), step, 0.5)
    assert values(memory) == [2, 3]


def test_the_oldest_goes_or_the_drawn_one(tmp_path: Path) -> None:
    memory = SnapshotMemory(tmp_path, 3)
    for step in range(5):
        memory.keep_latest(state(step), step, 0.0)
    assert values(memory) == [2, 3, 4]
    memory.replace(memory.snapshots[1], state(9), 9)
    assert values(memory) == [2, 4, 9]


def ancestors(memory: SnapshotMemory, draws: int, *, replace: bool) -> list[int]:
    """Of how many snapshots those drawn descend, in each hundred draws."""
    generator, found = torch.Generator().manual_seed(0), []
    for step in range(draws):
        drawn = memory.draw(generator)
        found.append(drawn.origin)
        if replace:
            memory.replace(drawn, state(step), drawn.step + 1)
        else:
            memory.keep_latest(state(step), drawn.step + 1, drawn.score, drawn.origin)
    return [len(set(found[start : start + 100])) for start in range(0, draws, 100)]


@pytest.mark.parametrize("replace", [True, False])
def test_lineages_live_on_where_the_drawn_one_is_replaced(tmp_path: Path, replace: bool) -> None:
    memory = SnapshotMemory(tmp_path, 50)
    for step in range(50):
        memory.keep_latest(state(step), step, 0.0)
    assert [one.origin for one in memory.snapshots] == list(range(50))
    found = ancestors(memory, 2000, replace=replace)
    if replace:
        # Of 50 equally likely ones, 100 draws meet 50 (1 - .98^100) = 43.4 in the mean.
        assert min(found) >= 36
        assert sum(found) / len(found) == pytest.approx(43.4, abs=1.5)
        assert sorted(one.origin for one in memory.snapshots) == list(range(50))
    else:  # the paper's letter: all but one die out
        assert found[-1] <= 2
    again = SnapshotMemory(tmp_path, 50)
    again.load_state_dict(memory.state_dict())
    assert again.snapshots == memory.snapshots


def test_a_state_of_before_has_lineages_that_begin_with_it(tmp_path: Path) -> None:
    memory = SnapshotMemory(tmp_path, 2)
    memory.load_state_dict({"entries": [["a.safetensors", 7, 0.5]], "born": 1})
    assert [one.origin for one in memory.snapshots] == [7]


def test_a_snapshot_does_not_change_with_the_weights_it_was_made_of(tmp_path: Path) -> None:
    memory, live = SnapshotMemory(tmp_path, 2), state(1)
    memory.keep_latest(live, 0, 0.0)
    live["weight"].zero_()
    assert values(memory) == [1]


def test_every_snapshot_is_drawn_about_as_often(tmp_path: Path) -> None:
    memory = SnapshotMemory(tmp_path, 4)
    for step in range(4):
        memory.keep_latest(state(step), step, 0.0)
    generator = torch.Generator().manual_seed(0)
    drawn = [memory.draw(generator).step for _ in range(4000)]
    assert all(900 < drawn.count(step) < 1100 for step in range(4))


@pytest.mark.parametrize("place", PLACES)
def test_both_kept_checkpoints_can_be_gone_back_to(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "snapshots"
    memory = SnapshotMemory(folder, 2, place=place)
    saved = []
    for step in range(8):
        memory.keep_latest(state(step), step, 0.0)
        if step % 2:
            memory.state_dict()  # as where a state is looked at and not saved
            saved.append(memory.state_dict())
    for kept, expected in zip(saved[-2:], ([4, 5], [6, 7]), strict=True):
        again = SnapshotMemory(folder, 2, place=place)
        again.load_state_dict(kept)
        assert values(again) == expected
    assert len(list(folder.iterdir())) <= 6, "what no checkpoint names is removed"


def test_what_is_made_again_after_a_kill_takes_the_place_of_what_was_left(tmp_path: Path) -> None:
    memory = SnapshotMemory(tmp_path, 2)
    memory.keep_latest(state(1), 1, 0.0)
    saved = memory.state_dict()
    memory.keep_latest(state(2), 2, 0.0)
    memory.state_dict()  # its checkpoint was not written any more
    again = SnapshotMemory(tmp_path, 2)
    again.load_state_dict(saved)
    again.keep_latest(state(3), 2, 0.0)
    final = SnapshotMemory(tmp_path, 2)
    final.load_state_dict(again.state_dict())
    assert values(final) == [1, 3]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    memory = SnapshotMemory(tmp_path, 2, place="disk")
    memory.keep_latest(state(1), 1, 0.0)
    memory.snapshots[0].path.unlink()
    with pytest.raises(ValueError, match=r"cannot read the snapshot .*start in a new folder"):
        memory.read(memory.snapshots[0])
