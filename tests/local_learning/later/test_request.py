"""Which later layers a head asks for, and how it is written."""

import pytest

from local_learning.catalogue import HEADS
from local_learning.decoupling import Decoupling
from local_learning.later.request import Later, head_at, heads_at, kinds_at, parse_later

WRITTEN = {
    "aug1": Later(1),
    "aug:all": Later(),
    "aug2@0.5": Later(2, width=0.5),
    "aug12/pool": Later(12, pooled=True),
    "aug:all=copy": Later(copied=True),
    "aug3~0.5": Later(3, slope=0.5),
    "aug1+man": Later(1, averaged=True),
    "aug:all@0.25/pool=copy+man": Later(width=0.25, pooled=True, copied=True, averaged=True),
}


@pytest.mark.parametrize(("kind", "later"), WRITTEN.items())
def test_a_head_is_read_and_written(kind: str, later: Later) -> None:
    assert parse_later(kind) == later
    assert str(later) == kind
    assert kind in HEADS
    assert HEADS[kind].given == {"kind": kind}


def test_heads_that_are_written_otherwise_are_no_later_layers() -> None:
    others = ("aux1", "linear", "augment", "aug", "aug_2", "augg")
    assert [parse_later(kind) for kind in others] == [None] * 6
    assert [kind in HEADS for kind in others] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("aug0", "head 'aug0' has no layers"),
        ("aug2@1.5", "the width is 1.5; it must be above 0 and at most 1"),
        ("aug2@0", "the width is 0"),
        ("aug2/pool@0.5", "cannot be read; write aug2, aug2@0.5"),
        ("aug2@half", "cannot be read"),
        ("aug3~1.5", "has no such slope"),
        ("aug:all~0.5", "has no such slope"),
    ],
)
def test_a_head_that_cannot_be_read_is_a_mistake(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_later(kind)


@pytest.mark.parametrize("num_layers", [5, 16, 55])
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_layers_are_sampled_as_auglocal_samples_them(num_layers: int, depth: int) -> None:
    """With layers counted from 0: round(l + (n - 1 - l) / d * i) for i = 1 .. d, all if d is too large."""
    for cut in range(1, num_layers):
        index, last = cut - 1, num_layers - 1
        if depth >= last - index:
            expected = list(range(index + 1, num_layers))
        else:
            expected = [round(index + (last - index) / depth * i) for i in range(1, depth + 1)]
        found = Later(depth).fitted(cut, num_layers).layers(cut, num_layers)
        assert [number - 1 for number in found] == expected
        assert found[-1] == num_layers


def test_a_head_deeper_than_what_remains_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"'aug9' asks for 9 layers .* layer 5, and there are 3; take aug3"):
        Later(9).layers(5, 8)
    with pytest.raises(ValueError, match="there is 1; take aug1"):
        Decoupling.uniform(2, 2, "aug2")
    assert Decoupling.uniform(8, 4, "aug4").heads == ("aug4", "aug4", "aug2")
    assert Decoupling.uniform(8, 4, "linear").heads == ("linear",) * 3


def test_the_pyramid_is_that_of_auglocal() -> None:
    num_blocks, depth, slope = 8, 6, 0.5
    cuts = tuple(range(1, num_blocks))
    expected = [
        max(1, round(depth * (1 - slope * k / (num_blocks - 2)) + slope * k / (num_blocks - 2)))
        for k in range(num_blocks - 1)
    ]
    heads = heads_at("aug6~.5@0.5", cuts, 100)
    assert heads == tuple(f"aug{d}@0.5" for d in expected)
    assert len(set(heads)) > 2
    assert heads_at("aug6~.5", (3,), 100) == ("aug6",)


def test_where_no_layer_remains_the_classifier_is_copied() -> None:
    assert head_at("aug2@0.5", 5, 5) == "aug:all@0.5"
    assert kinds_at(("aug3", "aux1", "aug1"), 3, 5) == ["aug2", "aux1", "aug1"]
