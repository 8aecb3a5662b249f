import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_learning.catalogue import HEADS
from local_learning.decoupling import (
    Decoupling,
    DecouplingFile,
    load_decoupling,
    read_decoupling,
    save_decoupling,
)

# Cuts, heads, further arguments, what the message says.
WRONG: list[tuple[Any, Any, dict[str, Any], str]] = [
    ([0, 4], ["aux1"] * 2, {}, "cuts: there is no layer 0; layers count from 1"),
    ([-3], ["aux1"], {}, "cuts: there is no layer -3"),
    ([8, 4], ["aux1"] * 2, {}, "cuts: 8 and 4 are out of order"),
    ([4, 4], ["aux1"] * 2, {}, "cuts: 4 is there twice"),
    ([4, 8, 4], ["aux1"] * 3, {}, "cuts: 4 is there twice"),
    ([4, 8, 12], ["aux1"] * 2, {}, "3 cuts need 3 heads, not 2"),
    ([4], [], {}, "1 cut needs 1 head, not 0"),
    ([], ["aux1"], {}, "0 cuts need 0 heads, not 1"),
    ([4.0], ["aux1"], {}, "cuts: 4.0 is not a whole number"),
    ([True], ["aux1"], {}, "cuts: True is not a whole number"),
    (["4"], ["aux1"], {}, "cuts: '4' is not a whole number"),
    (4, ["aux1"], {}, "cuts is 4; it must be a list"),
    ("48", ["aux1"] * 2, {}, "cuts is '48'; it must be a list"),
    ([4], "aux1", {}, "heads is 'aux1'; it must be a list"),
    ([4], [""], {}, "heads: '' is not the name of a head"),
    ([4], [1], {}, "heads: 1 is not the name of a head"),
    ([4], ["aux1"], {"groups": 0}, "groups is 0; it must be at least 1"),
    ([4], ["aux1"], {"groups": 2.0}, "groups: 2.0 is not a whole number"),
    ([4], ["aux1"], {"groups": True}, "groups: True is not a whole number"),
    ([4], ["aux1"], {"groups": "2"}, "groups is '2'; it must be a list"),
    ([4], ["aux1"], {"groups": [0, 1]}, "groups is 0; it must be at least 1"),
    ([4, 8], ["aux1"] * 2, {"groups": [2, 1]}, "groups: 3 blocks need 3 numbers, not 2"),
    (
        [4],
        ["aux1"],
        {"groups": [2, 2]},
        "groups: the last block has the network's classifier and is one group",
    ),
    ([4], ["aux1"], {"uneven": 1}, "uneven is 1; it must be true or false"),
]


def test_lists_and_numpy_integers_are_taken() -> None:
    plain = Decoupling((4, 8), ("aux1", "mine"), (2, 3, 1), True)
    cuts: Any = np.array([4, 8])
    heads: Any = ["aux1", "mine"]
    groups: Any = [np.int32(2), 3, np.int64(1)]
    same = Decoupling(cuts, heads, groups, True)
    assert same == plain
    assert hash(same) == hash(plain)
    assert [type(number) for number in (*same.cuts, *same.groups_of(9))] == [int] * 5
    assert plain.num_blocks == 3
    assert Decoupling((), ()).num_blocks == 1
    assert Decoupling((4,), ("aux1",)) != Decoupling((4,), ("aux1",), 2)


@pytest.mark.parametrize(("cuts", "heads", "more", "message"), WRONG)
def test_mistakes_are_named(cuts: Any, heads: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Decoupling(cuts, heads, **more)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cuts", "num_layers", "sizes"),
    [
        ((), 5, [5]),
        ((1,), 2, [1, 1]),
        ((3, 7, 8), 16, [3, 4, 1, 8]),
        ((1,), 1, [1, 0]),
        ((2, 4), 4, [2, 2, 0]),
    ],
)
def test_blocks_share_the_layers(cuts: tuple[int, ...], num_layers: int, sizes: list[int]) -> None:
    blocks = Decoupling(cuts, ("aux1",) * len(cuts)).blocks(num_layers)
    assert [len(block) for block in blocks] == sizes
    assert list(itertools.chain(*blocks)) == list(range(num_layers))


def test_a_cut_beyond_the_network() -> None:
    decoupling = Decoupling((4, 17), ("aux1",) * 2)
    for use in (decoupling.blocks, decoupling.groups_of, lambda layers: decoupling.closed(layers, "aux1")):
        with pytest.raises(ValueError, match="no layer 17 to cut after; the network has 16"):
            use(16)


def test_groups_of_each_block() -> None:
    heads = ("aux1",) * 2
    assert Decoupling((4, 8), heads).groups_of(16) == (1, 1, 1)
    assert Decoupling((4, 8), heads, 3).groups_of(16) == (3, 3, 1)
    assert Decoupling((4, 8), heads, 3).groups_of(8) == (3, 3, 1)
    assert Decoupling((4, 8), heads, (2, 5, 1)).groups_of(16) == (2, 5, 1)
    assert Decoupling((), (), 4).groups_of(16) == (1,)


def test_closing_leaves_the_classifier_alone() -> None:
    closed = Decoupling((4,), ("aux1",), 2, uneven=True).closed(8, "aux2")
    assert closed == Decoupling((4, 8), ("aux1", "aux2"), 2, uneven=True)
    assert closed.closed(8, "aux3") is closed
    by_block = Decoupling((2, 4), ("aux1",) * 2, (2, 4, 1)).closed(6, "aux1")
    assert by_block == Decoupling((2, 4, 6), ("aux1",) * 3, (2, 4, 1, 1))


@pytest.mark.parametrize(
    ("split", "num_layers", "cuts"),
    [
        ("floor", 16, (4, 8, 12)),
        ("floor", 33, (8, 16, 24)),
        ("floor", 50, (12, 25, 37)),
        ("ceil_units", 16, (4, 9, 14)),
        ("ceil_units", 33, (8, 17, 26)),
        ("ceil_units", 50, (12, 25, 38)),
    ],
)
def test_uniform_cuts_are_the_papers(split: str, num_layers: int, cuts: tuple[int, ...]) -> None:
    decoupling = Decoupling.uniform(num_layers, 4, "aux3", split=split)
    assert decoupling == Decoupling(cuts, ("aux3",) * 3)


def test_uniform_blocks_are_never_empty_and_of_two_sizes() -> None:
    for num_layers in range(1, 60):
        for num_blocks in range(1, num_layers + 1):
            blocks = Decoupling.uniform(num_layers, num_blocks, "linear").blocks(num_layers)
            sizes = {len(block) for block in blocks}
            assert len(blocks) == num_blocks
            assert sizes <= {num_layers // num_blocks, -(-num_layers // num_blocks)}
    # Where float32 gives 7.
    assert Decoupling.uniform(16, 14, "aux1").cuts[6] == 8


def test_one_group_everywhere_is_no_groups() -> None:
    assert Decoupling((1, 3), ("linear", "linear"), (1, 1, 1)) == Decoupling((1, 3), ("linear", "linear"))


def test_uniform_groups_close_the_last_layer() -> None:
    decoupling = Decoupling.uniform(15, 3, "conv1c2f", groups=4)
    assert decoupling == Decoupling((5, 10, 15), ("conv1c2f",) * 3, 4)
    assert decoupling.groups_of(15) == (4, 4, 4, 1)
    assert Decoupling.uniform(15, 1, "aux1", groups=2).cuts == (15,)
    assert Decoupling.uniform(15, 1, "aux1") == Decoupling((), ())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((16, 20, "aux1"), {}, "num_blocks is 20; a network of 16 layers has at most 16 blocks"),
        ((1, 2, "aux1"), {}, "a network of 1 layer has at most 1 block"),
        ((16, 0, "aux1"), {}, "num_blocks is 0; it must be at least 1"),
        ((16, 2.0, "aux1"), {}, "num_blocks: 2.0 is not a whole number"),
        ((0, 1, "aux1"), {}, "num_layers is 0; it must be at least 1"),
        ((16, 8, "aux1"), {"split": "ceil_units"}, "num_blocks is 8; split ceil_units fills only 6 blocks"),
        ((16, 4, "aux1"), {"split": "time"}, "split is 'time'; it must be floor or ceil_units"),
        ((16, 4, "aux1"), {"groups": 0}, "groups is 0; it must be at least 1"),
        ((16, 4, ""), {}, "heads: '' is not the name of a head"),
    ],
)
def test_mistakes_in_uniform(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoupling.uniform(*arguments, **options)


COSTS = st.integers(0, 12).map(lambda eighths: eighths / 8)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_balanced_is_the_best_of_all_cuts(data: st.DataObject) -> None:
    num_layers = data.draw(st.integers(1, 8))
    num_blocks = data.draw(st.integers(1, num_layers))
    layers = data.draw(st.lists(COSTS, min_size=num_layers, max_size=num_layers))
    heads = data.draw(st.lists(COSTS, min_size=num_layers, max_size=num_layers))
    classifier = data.draw(COSTS)
    entries = data.draw(st.lists(COSTS, min_size=num_layers, max_size=num_layers))
    grouped = data.draw(st.booleans())

    def rank(cuts: tuple[int, ...]) -> tuple[float, float]:
        ends = (0, *cuts, num_layers)
        local = [*(heads[cut - 1] for cut in cuts), heads[-1] if grouped else classifier]
        sums = [sum(layers[low:high]) for low, high in itertools.pairwise(ends)]
        starts = [entries[low] for low in ends[:-1]]
        largest = max(map(sum, zip(sums, local, starts, strict=True)))
        return largest, sum(heads[cut - 1] for cut in cuts)

    # Combinations come in lexicographic order, and min takes the first of equals.
    best = min(itertools.combinations(range(1, num_layers), num_blocks - 1), key=rank)
    found = Decoupling.balanced(
        layers,
        heads,
        classifier,
        num_blocks,
        "aux2",
        groups=3 if grouped else 1,
        entry_costs=entries,
    )
    cuts = (*best, num_layers) if grouped else best
    assert found == Decoupling(cuts, ("aux2",) * len(cuts), 3 if grouped else 1)


def test_balanced_weighs_heads_and_classifier() -> None:
    even = [1.0] * 8
    assert Decoupling.balanced(even, [0.0] * 8, 0.0, 4, "aux1").cuts == (2, 4, 6)
    assert Decoupling.balanced(even, [0.0] * 8, 4.0, 2, "aux1").cuts == (6,)
    assert Decoupling.balanced(even, [0, 0, 0, 9, 0, 0, 0, 0], 0.0, 2, "aux1").cuts == (3,)


@pytest.mark.parametrize(
    ("layers", "heads", "classifier", "num_blocks", "message"),
    [
        ([1, -1], [0, 0], 0, 1, "layer_costs: -1.0 is no cost; it must be finite and at least 0"),
        ([1, 1], [0, math.nan], 0, 1, "head_costs: nan is no cost"),
        ([1, 1], [0, 0], math.inf, 1, "classifier_cost: inf is no cost"),
        ([1, 1], [0], 0, 1, "head_costs: 2 layers need 2 numbers, not 1"),
        ([1, 1], [0, 0], 0, 3, "num_blocks is 3; a network of 2 layers has at most 2 blocks"),
        ([], [], 0, 1, "num_layers is 0"),
    ],
)
def test_mistakes_in_balanced(
    layers: list[float], heads: list[float], classifier: float, num_blocks: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Decoupling.balanced(layers, heads, classifier, num_blocks, "aux1")


@pytest.mark.parametrize(
    ("decoupling", "network", "num_layers"),
    [
        (Decoupling((7, 11, 12), ("aux4",) * 3), "resnet101", 33),
        (Decoupling((), ()), "", None),
        (Decoupling((4, 8), ("mine", "aux1"), (3, 2, 1), uneven=True), "timm/resnet18", 8),
        (Decoupling((4,), ("aux1",), 6), "", 8),
    ],
)
def test_files_give_back_what_was_saved(
    decoupling: Decoupling, network: str, num_layers: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "decoupling.json"
    save_decoupling(str(path), decoupling, network, num_layers)
    assert load_decoupling(str(path)) == decoupling
    assert read_decoupling(path) == DecouplingFile(decoupling, network, num_layers)
    first = path.read_bytes()
    save_decoupling(path, load_decoupling(path), num_layers=num_layers, network=network)
    assert path.read_bytes() == first


def test_the_document_is_the_documented_one(tmp_path: Path) -> None:
    path = tmp_path / "decoupling.json"
    save_decoupling(path, Decoupling((7, 11, 12), ("aux4",) * 3), "resnet101", 33)
    document = {
        "format": "cleave/decoupling",
        "version": 1,
        "network": "resnet101",
        "num_layers": 33,
        "cuts": [7, 11, 12],
        "heads": ["aux4", "aux4", "aux4"],
        "groups": 1,
    }
    assert json.loads(path.read_text()) == document
    del document["network"], document["num_layers"], document["groups"]
    path.write_text(json.dumps(document))
    by_hand = Decoupling((7, 11, 12), ("aux4",) * 3)
    assert read_decoupling(path) == DecouplingFile(by_hand, "", None)


MISSING = object()
GOOD = {"format": "cleave/decoupling", "version": 1, "num_layers": 16, "cuts": [4], "heads": ["aux1"]}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cuts", MISSING, "the key 'cuts' is missing"),
        ("heads", MISSING, "the key 'heads' is missing"),
        ("head", [], "unknown key 'head'; did you mean 'heads'?"),
        ("qqq", 1, "unknown key 'qqq'; known: network, num_layers, stem, cuts, heads, groups, uneven"),
        ("cuts", 4, "'cuts' must be a list, not 4"),
        ("cuts", [4.0], "cuts: 4.0 is not a whole number"),
        ("cuts", [17], "cuts: there is no layer 17 to cut after; the network has 16"),
        ("cuts", [0], "cuts: there is no layer 0"),
        ("heads", {"4": "aux1"}, "'heads' must be a list, not {'4': 'aux1'}"),
        ("heads", ["aux1", "aux1"], "1 cut needs 1 head, not 2"),
        ("groups", "2", "'groups' must be a whole number or a list, not '2'"),
        ("groups", True, "'groups' must be a whole number or a list, not True"),
        ("groups", [1, 2], "the last block has the network's classifier"),
        ("uneven", 1, "'uneven' must be true or false, not 1"),
        ("network", 50, "'network' must be a text, not 50"),
        ("num_layers", "16", "'num_layers' must be a whole number, not '16'"),
        ("num_layers", 0, "num_layers is 0; it must be at least 1"),
        ("version", 2, "version 2 of cleave/decoupling is not known here, only 1"),
        ("format", "cleave/architecture", "expected a file of format 'cleave/decoupling'"),
    ],
)
def test_mistakes_in_a_file_name_it(key: str, value: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    document = {**GOOD, key: value}
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not MISSING}))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_decoupling(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_or_should_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*none\.json"):
        load_decoupling(tmp_path / "none.json")
    path = tmp_path / "decoupling.json"
    with pytest.raises(ValueError, match="no layer 4 to cut after; the network has 3"):
        save_decoupling(path, Decoupling((4,), ("aux1",)), num_layers=3)
    assert not path.exists()


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, local_learning.cuts.requests, local_learning.published\n"
        "assert 'local_learning.decoupling' in sys.modules\n"
        "sys.exit(str({'torch', 'torchvision', 'timm', 'accelerate'} & set(sys.modules) or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_heads_of_the_papers_are_there() -> None:
    assert len([kind for kind in HEADS.ours if HEADS[kind].takes_map]) == 11
