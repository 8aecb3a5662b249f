"""Sentences of a report on trainings beside each other."""

import math
from dataclasses import replace

import pytest

from search.report.comparisons import cost_of_cutting, searched_beside_others
from search.report.trained import FinishedTraining


def training(name: str, accuracy: float, cuts: tuple[int, ...] = (), **options: object) -> FinishedTraining:
    return FinishedTraining(
        name=name,
        network="net",
        options=options,
        accuracy=accuracy,
        test_images=2000,
        cuts=cuts,
        kept_bytes=[3000, 1000] if cuts else [4000],
        seconds=10.0,
    )


def test_only_trainings_that_are_alike_are_compared() -> None:
    blocks = training("blocks", 0.60, (3,), rule="", decoupling="uniform:2:aux1", seed=0, width=1.0)
    whole = training("whole", 0.63, rule="", decoupling="", seed=0, width=1.0)
    wide = training("wide", 0.90, rule="", decoupling="", seed=0, width=2.0)
    (line,) = cost_of_cutting([wide, blocks, whole])
    edge = 196 * math.sqrt(0.6 * 0.4 / 2000 + 0.63 * 0.37 / 2000)
    noise = f"within the {edge:.1f} points of chance; one seed each, not tested. Its largest block"
    assert f"3.00 points less than in one piece (63.00 %): {noise}" in line
    assert "keeps 0.75 times the activations" in line
    (line,) = cost_of_cutting([wide, blocks])
    assert line == (
        "What cutting does to net cannot be told from blocks and wide: they also differ in --width."
    )
    assert cost_of_cutting([whole, wide]) == []
    (line,) = cost_of_cutting([blocks, training("same", 0.60, rule="", seed=0, width=1.0)])
    assert "as many as in one piece" in line


def cut(name: str, accuracy: float, *cuts: int, found: bool = False, **options: object) -> FinishedTraining:
    made = training(name, accuracy, cuts, **{"rule": "greedy", **options})
    return replace(made, named_heads=("linear",) * len(cuts), found_by=("cuts",) * found)


def test_searched_cuts_are_compared_with_others_of_as_many_blocks() -> None:
    mine = cut("mine", 0.50, 1, found=True, parallel="blocks")
    middle = cut("middle", 0.57, 2, parallel="none")
    (line,) = searched_beside_others([mine, middle])
    edge = 196 * math.sqrt(0.5 * 0.5 / 2000 + 0.57 * 0.43 / 2000)
    start = (
        "Cut after layer 1 (linear), as the search 'cuts' found, net gets 50.00 % of the test images right, "
    )
    end = f" (57.00 %): more than the {edge:.1f} points of chance; one seed each, not tested."
    assert line == (
        f"{start}7.00 points less than in the run 'middle', cut after layer 2 (linear) without a search{end}"
    )
    (line,) = searched_beside_others([mine, replace(middle, balanced_by=("cuts", "more"))])
    assert "cut after layer 2 (linear), as the searches 'cuts' and 'more' have it for blocks of like" in line
    there = cut("there", 0.57, 1, found=False)
    (line,) = searched_beside_others([mine, replace(there, named_heads=("aux1",))])
    assert line == f"{start}7.00 points less than in the run 'there', with other heads there, aux1{end}"


@pytest.mark.parametrize(
    "other",
    [
        cut("three", 0.57, 2, 3),
        cut("found too", 0.57, 2, found=True),
        cut("the same", 0.57, 1),
        cut("another rule", 0.57, 2, rule="replay"),
        cut("longer", 0.57, 2, steps=900),
        cut("uneven", 0.57, 2, uneven_groups=True),
        replace(cut("another network", 0.57, 2), network="other"),
        replace(cut("groups", 0.57, 2), groups=2),
        replace(cut("no heads known", 0.57, 2), named_heads=()),
    ],
    ids=lambda other: other.name,
)
def test_a_training_that_differs_in_more_than_cuts_is_not_compared(other: FinishedTraining) -> None:
    assert searched_beside_others([cut("mine", 0.50, 1, found=True), other]) == []
