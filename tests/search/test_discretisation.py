import itertools
import json
import math
import random
import statistics
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from local_learning.decoupling import Decoupling
from local_learning.published import PUBLISHED, is_tied, published
from search.discretisation import (
    PartCosts,
    SearchSpread,
    confidence,
    discretise,
    discretise_within,
    imbalance,
    random_cuts,
    random_heads,
)

AUX = ("aux1", "aux2", "aux3", "aux4")
PREFERENCES = st.integers(-12, 12).map(lambda quarters: quarters / 4)
COSTS = st.integers(0, 12).map(lambda eighths: eighths / 8)


@st.composite
def relaxations(
    draw: st.DrawFn, most: int = 8
) -> tuple[list[list[float]], list[list[float]], list[str], int]:
    """alpha, beta, kinds and a number of blocks; ties are frequent."""
    num_layers = draw(st.integers(1, most))
    kinds = list(AUX[: draw(st.integers(1, 4))])

    def rows(columns: int) -> st.SearchStrategy[list[list[float]]]:
        row = st.lists(PREFERENCES, min_size=columns, max_size=columns)
        return st.lists(row, min_size=num_layers - 1, max_size=num_layers - 1)

    return draw(rows(2)), draw(rows(len(kinds))), kinds, draw(st.integers(1, num_layers))


def costs_for(data: st.DataObject, num_layers: int, kinds: int) -> PartCosts:
    rows = [tuple(data.draw(st.lists(COSTS, min_size=kinds, max_size=kinds))) for _ in range(num_layers - 1)]
    layers = data.draw(st.lists(COSTS, min_size=num_layers, max_size=num_layers))
    return PartCosts(tuple(layers), tuple(rows), data.draw(COSTS))


@settings(deadline=None, max_examples=150)
@given(relaxations())
def test_the_layers_of_largest_share_with_their_largest_heads(relaxation: Any) -> None:
    alpha, beta, kinds, num_blocks = relaxation
    # Softmax of two grows with their difference, which is exact for these values.
    order = np.argsort(np.array([row[1] - row[0] for row in alpha]), kind="stable")
    cuts = tuple(sorted((order[: num_blocks - 1] + 1).tolist()))
    heads = tuple(kinds[int(np.argmax(beta[cut - 1]))] for cut in cuts)
    assert discretise(alpha, beta, kinds, num_blocks) == Decoupling(cuts, heads)


def test_one_block_has_no_cut() -> None:
    assert discretise([[0, 0]] * 3, [[0]] * 3, ["aux2"], 1) == Decoupling((), ())
    assert discretise([], [], AUX, 1) == Decoupling((), ())


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, np.float32])
def test_tensors_and_arrays_are_taken(kind: Any) -> None:
    torch.manual_seed(0)
    alpha, beta = torch.randn(9, 2, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    ranks = alpha.softmax(1)[:, 0].argsort(descending=True)
    cuts = tuple(sorted((ranks[:4] + 1).tolist()))
    expected = Decoupling(cuts, tuple(AUX[int(beta[cut - 1].argmax())] for cut in cuts))
    if isinstance(kind, torch.dtype):
        leaf = torch.nn.Parameter(alpha.to(kind))
        assert discretise(leaf, beta.to(kind), AUX, 5) == expected
        assert discretise(list(leaf), list(beta.to(kind)), AUX, 5) == expected
    else:
        assert discretise(alpha.numpy().astype(kind), beta.numpy().astype(kind), AUX, 5) == expected


def test_layers_equal_in_float32_are_taken_from_the_lowest_on() -> None:
    # Layers 19 and 29 of SEDONA's ResNet-101: equal in float32, though not in float64.
    rows = [
        [1.0159710228663243e-07, -1.3620970662486798e-07],
        [7.137948188074006e-08, -7.137187196804007e-08],
    ]
    for alpha in (rows, rows[::-1]):
        assert len(set(torch.tensor(alpha).softmax(1)[:, 0].tolist())) == 1
        assert len(set(torch.tensor(alpha, dtype=torch.float64).softmax(1)[:, 0].tolist())) == 2
        assert discretise(alpha, [[0.0]] * 2, ["aux1"], 2).cuts == (1,)


def test_far_values_do_not_overflow() -> None:
    alpha = [[-1e308, 1e308], [0.0, 0.0], [5e3, -5e3]]
    assert discretise(alpha, [[1e308, -1e308]] * 3, AUX[:2], 3) == Decoupling((2, 3), ("aux1", "aux1"))


VALUES = Path("data/sedona_alpha_beta.json")
SEARCHED = pytest.mark.skipif(not VALUES.exists(), reason="the values of SEDONA's authors are not here")

# Layers that float32 cannot tell apart; among them the tables' order is arbitrary.
TIES = {"resnet152": [{28, 29}, set(range(31, 50))], "resnet101": [{19, 29}], "resnet50": [], "vgg19": []}

# Tied numbers of blocks, for which the lower layers differ from the tables'. ResNet-152 with K = 10 is as
# tied as these, but its table has the lower layer too.
OTHERWISE = {("resnet101", 9), *(("resnet152", num_blocks) for num_blocks in range(12, 18))}


@SEARCHED
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_authors_values_give_the_published_decouplings(name: str) -> None:
    values = json.loads(VALUES.read_text())[name]
    for num_blocks in itertools.count(1):
        try:
            paper = published(name, num_blocks)
        except ValueError:
            break
        found = discretise(values["alpha"], values["beta"], AUX, num_blocks)
        if (name, num_blocks) not in OTHERWISE:
            assert found == paper
            continue
        assert is_tied(name, num_blocks)
        assert found != paper
        swapped = set(found.cuts) ^ set(paper.cuts)
        assert any(swapped <= tie for tie in TIES[name])
        assert found.cuts < paper.cuts
        both = set(found.cuts) & set(paper.cuts)
        # From layer 35 of ResNet-152 on, softmax(beta) is a tie as well.
        certain = [cut for cut in both if name != "resnet152" or cut < 35]
        for decoupling in (found, paper):
            heads = dict(zip(decoupling.cuts, decoupling.heads, strict=True))
            assert [heads[cut] for cut in certain] == [
                AUX[int(np.argmax(values["beta"][cut - 1]))] for cut in certain
            ]
    assert num_blocks > 16


@SEARCHED
def test_what_is_said_of_the_authors_values() -> None:
    values = json.loads(VALUES.read_text())["resnet152"]
    cuts, indifferent, *heads = confidence(values["alpha"], values["beta"], AUX, 13)
    shares = torch.tensor(values["alpha"], dtype=torch.float64).softmax(1)[:, 0]
    near_tied = ((shares - 0.5).abs() < 1e-6).nonzero().flatten() + 1
    assert near_tied.tolist() == list(range(24, 50))
    assert cuts.endswith("undetermined: layers 24 to 49 are tied")
    near_half = ((shares - 0.5).abs() < 0.01).nonzero().flatten() + 1
    assert near_half.tolist() == list(range(16, 50))
    assert indifferent.endswith(": layers 16 to 49")
    assert len(heads) == 12
    assert heads[0].startswith("head after layer 11: aux4 (0.")
    assert heads[-1].endswith("undetermined: aux1, aux2, aux3, aux4 are tied")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_within_is_the_best_of_all_cuts(data: st.DataObject) -> None:
    alpha, beta, kinds, num_blocks = data.draw(relaxations())
    num_layers = len(alpha) + 1
    costs = costs_for(data, num_layers, len(kinds))
    slack = data.draw(st.sampled_from([1.0, 1.125, 1.25, 1.5, 2.0, 4.0]))
    winners = [int(np.argmax(row)) for row in beta]
    exact = torch.tensor(alpha, dtype=torch.float64).reshape(-1, 2).softmax(1)[:, 0].float().tolist()

    def largest(cuts: tuple[int, ...]) -> float:
        ends = (0, *cuts, num_layers)
        local = [*(costs.heads[cut - 1][winners[cut - 1]] for cut in cuts), costs.classifier]
        sums = [sum(costs.layers[low:high]) for low, high in itertools.pairwise(ends)]
        return max(map(sum, zip(sums, local, strict=True)))

    def preferred(cuts: tuple[int, ...]) -> Fraction:
        return sum((Fraction(exact[cut - 1]) for cut in cuts), Fraction())

    every = list(itertools.combinations(range(1, num_layers), num_blocks - 1))
    smallest = min(map(largest, every))
    # Combinations come in lexicographic order, and max takes the first of equals.
    best = max((cuts for cuts in every if largest(cuts) <= slack * smallest), key=preferred)
    found = discretise_within(alpha, beta, kinds, num_blocks, costs, slack)
    assert found == Decoupling(best, tuple(kinds[winners[cut - 1]] for cut in best))


@settings(deadline=None, max_examples=100)
@given(relaxations(12))
def test_with_much_slack_costs_play_no_part(relaxation: Any) -> None:
    alpha, beta, kinds, num_blocks = relaxation
    heads = tuple((1.0,) * len(kinds) for _ in alpha)
    costs = PartCosts(tuple(range(len(alpha) + 1)), heads, 1.0)
    found = discretise_within(alpha, beta, kinds, num_blocks, costs, 1e9)
    assert found == discretise(alpha, beta, kinds, num_blocks)


def test_slack_trades_preference_for_balance() -> None:
    alpha, beta = [[9, 0], [8, 0], [0, 0], [0, 1], [0, 0]], [[1, 0]] * 5
    costs = PartCosts((1,) * 6, ((0, 5),) * 5, 0)
    found = [discretise_within(alpha, beta, AUX[:2], 3, costs, slack) for slack in (1, 1.5, 2)]
    assert [decoupling.cuts for decoupling in found] == [(2, 4), (1, 3), (1, 2)]
    assert [imbalance(decoupling, AUX[:2], costs) for decoupling in found] == [1, 1.5, 2]


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_imbalance_is_the_largest_by_the_mean(data: st.DataObject) -> None:
    alpha, beta, kinds, num_blocks = data.draw(relaxations())
    costs = costs_for(data, len(alpha) + 1, len(kinds))
    decoupling = random_heads(alpha, beta, kinds, num_blocks, random.Random(0))
    totals = [costs.classifier]
    for layer in range(len(alpha) + 1, 0, -1):
        if layer in decoupling.cuts:
            head = decoupling.heads[decoupling.cuts.index(layer)]
            totals.append(costs.heads[layer - 1][kinds.index(head)])
        totals[-1] += costs.layers[layer - 1]
    expected = max(totals) / statistics.mean(totals) if any(totals) else 1.0
    assert imbalance(decoupling, kinds, costs) == pytest.approx(expected, rel=1e-12)


def test_controls_change_one_thing_and_are_reproducible() -> None:
    alpha = [[3, 0], [0, 0], [2, 0], [0, 3]]
    beta = [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]
    learned = ["aux2", "aux1", "aux3", "aux2"]
    drawn = Counter(random_cuts(alpha, beta, AUX[:3], 3, random.Random(seed)) for seed in range(1200))
    assert {each.cuts for each in drawn} == set(itertools.combinations(range(1, 5), 2))
    for each in drawn:
        assert each.heads == tuple(learned[cut - 1] for cut in each.cuts)
    heads = Counter(random_heads(alpha, beta, AUX[:3], 3, random.Random(seed)) for seed in range(1200))
    assert {each.heads for each in heads} == set(itertools.product(AUX[:3], repeat=2))
    assert {each.cuts for each in heads} == {(1, 3)}
    # Five standard deviations of a fair draw.
    for counts in (drawn, heads):
        fair = 1200 / len(counts)
        assert all(abs(count - fair) < 5 * math.sqrt(fair) for count in counts.values())
    for draw in (random_cuts, random_heads):
        first, again = (draw(alpha, beta, AUX[:3], 4, random.Random(7)) for _ in range(2))
        assert first == again
        assert draw(alpha, beta, AUX[:3], 1, random.Random(7)) == Decoupling((), ())
        with pytest.raises(ValueError, match="num_blocks is 6; 5 layers make 1 to 5 blocks"):
            draw(alpha, beta, AUX[:3], 6, random.Random(7))


def logits(*shares: float) -> list[float]:
    return [math.log(share) for share in shares]


def test_a_tie_is_called_undetermined() -> None:
    alpha = [logits(0.9, 0.1), logits(0.6, 0.4), logits(0.3, 0.7), logits(0.6 - 4e-7, 0.4 + 4e-7)]
    beta = [logits(0.7, 0.2, 0.1), logits(0.4, 0.2, 0.4), logits(0.2, 0.7, 0.1), [0.0] * 3]
    assert confidence(alpha, beta, AUX[:3], 3) == [
        "cuts: the last chosen is after layer 2 (softmax(alpha)_1 0.6), "
        "the first left out after layer 4 (0.6); undetermined: layers 2, 4 are tied",
        "head after layer 1: aux1 (0.7), then aux2 (0.2); 0.5 apart",
        "head after layer 2: aux1 (0.4), then aux3 (0.4); undetermined: aux1, aux3 are tied",
    ]
    assert confidence(alpha, beta, AUX[:3], 2)[0].endswith("layer 2 (0.6); 0.3 apart")
    assert confidence(alpha, beta, AUX[:3], 5)[0] == "cuts: nothing was left out"
    assert confidence(alpha, beta, AUX[:3], 1) == ["cuts: one block has none"]


@pytest.mark.parametrize(
    ("swing", "words"), [(0.01, "clear of chance"), (0.04, "another seed may choose otherwise")]
)
@pytest.mark.parametrize("of_mean", [False, True])
def test_a_margin_of_less_than_two_standard_errors_is_not_certain(
    swing: float, words: str, of_mean: bool
) -> None:
    def end(by: float, second: float = 0.65) -> tuple[list[list[float]], list[list[float]]]:
        signals = (0.7 + by, second, 0.6 + by)
        beta = [logits(0.5 + by, 0.45, 0.05 - by)] * 3
        return [logits(signal, 1 - signal) for signal in signals], beta

    swings = (-swing, 0, swing, 0)
    error = statistics.stdev(swings) / (2 if of_mean else 1)
    words = words if error > 0.025 or not of_mean else "clear of chance"
    spread = SearchSpread([end(by) for by in swings], of_mean=of_mean, source="other searches")
    lines = confidence(*end(0), AUX[:3], 2, spread)
    assert len(lines) == 2
    said = f"; 0.05 apart with a standard error of {error:.2g}: {words}"
    assert lines[0].endswith(f"{said}; 4 of 4 other searches have these cuts")
    assert lines[1].endswith(said)
    # What moves together has no spread between it: layers 1 and 3.
    cuts, _ = confidence(*end(0, 0.1), AUX[:3], 2, SearchSpread([end(by, 0.1) for by in swings]))
    assert "after layer 3 (0.6); 0.1 apart with a standard error of" in cuts
    assert "clear of chance" in cuts
    # One end has no spread.
    assert confidence(*end(0), AUX[:3], 2, SearchSpread([end(0)])) == confidence(*end(0), AUX[:3], 2)


def test_a_search_that_would_rather_not_cut_says_so() -> None:
    alpha = [logits(share, 1 - share) for share in (0.3, 0.48, 0.2)]
    lines = confidence(alpha, [[0.0]] * 3, ["aux4"], 2)
    assert lines[1].startswith("no cut is preferred: ")
    assert lines[1].endswith("the largest local share is 0.48, after layer 2, and one half is 0.02 apart")
    for swing, words in ((0.001, "clear of chance"), (0.05, "another seed may choose otherwise")):
        ends = [[alpha[0], logits(0.48 + by, 0.52 - by), alpha[2]] for by in (-swing, 0, swing)]
        spread = SearchSpread([(end, [[0.0]] * 3) for end in ends])
        assert confidence(alpha, [[0.0]] * 3, ["aux4"], 2, spread)[1].endswith(words)
    alpha[1] = logits(0.52, 0.48)
    assert not any("no cut" in line for line in confidence(alpha, [[0.0]] * 3, ["aux4"], 2))


def test_layers_near_one_half_are_called_indifferent() -> None:
    shares = [0.9, 0.509, 0.491, 0.5, 0.511, 0.502, 0.489]
    alpha = [logits(share, 1 - share) for share in shares]
    lines = confidence(alpha, [[0.0]] * 7, ["aux4"], 3)
    assert lines[1] == (
        "indifferent, preferring neither the local nor the backpropagated signal "
        "(softmax(alpha)_1 within 0.01 of 0.5): layers 2 to 4, 6"
    )
    assert lines[2:] == [f"head after layer {cut}: aux4, the only kind" for cut in (1, 5)]
    assert len(confidence(alpha[:1], [[0.0]], ["aux4"], 2)) == 2


ALPHA, BETA = [[0.0, 1.0]] * 3, [[0.0, 1.0]] * 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_blocks": 0}, "num_blocks is 0; 4 layers make 1 to 4 blocks"),
        ({"num_blocks": 5}, "num_blocks is 5; 4 layers make 1 to 4 blocks"),
        ({"num_blocks": 2.0}, "num_blocks: 2.0 is not a whole number"),
        ({"num_blocks": True}, "num_blocks: True is not a whole number"),
        ({"alpha": ALPHA[:2]}, "alpha has 2 rows and beta 3; both need one per layer but the last"),
        ({"alpha": [[0.0, 1.0], [0.0], [0.0, 1.0]]}, "alpha, layer 2: 1 values, not 2 (local and back"),
        ({"alpha": [[0.0, 1.0], [0.0, math.nan], [0.0, 1.0]]}, "alpha, layer 2: nan is not finite"),
        ({"alpha": [0.0, 1.0]}, "alpha, layer 1: 0.0 is not a list"),
        ({"alpha": torch.tensor(1.0)}, "alpha: 1.0 is not a list"),
        ({"alpha": [["0", 1.0]] * 3}, "alpha, layer 1: '0' is not a number"),
        ({"beta": [[0.0, math.inf]] * 3}, "beta, layer 1: inf is not finite"),
        ({"beta": [[0.0, -(10**400)]] * 3}, "beta, layer 1: inf is not finite"),
        ({"head_kinds": AUX}, "beta, layer 1: 2 values, not 4 (one per kind of head)"),
        ({"head_kinds": ()}, "head_kinds: name at least one kind of head"),
        ({"head_kinds": "ab"}, "head_kinds: 'ab' is not a list"),
        ({"head_kinds": ("aux1", " ")}, "head_kinds: ' ' is not the name of a head"),
    ],
)
def test_mistakes(changed: dict[str, Any], message: str) -> None:
    arguments = {"alpha": ALPHA, "beta": BETA, "head_kinds": AUX[:2], "num_blocks": 2, **changed}
    costs = PartCosts((1.0,) * 4, ((1.0,) * 2,) * 3, 1.0)
    calls: list[Any] = [
        discretise,
        confidence,
        lambda **given: discretise_within(**given, costs=costs, slack=1.0),
        lambda **given: random_cuts(**given, rng=random.Random(0)),
        lambda **given: random_heads(**given, rng=random.Random(0)),
    ]
    for call in calls:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call(**arguments)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "heads", "classifier", "slack", "message"),
    [
        ((1,) * 3, ((1, 1),) * 2, 1, 1, "costs: a network of 4 layers, not of 3, is needed"),
        ((1,) * 4, ((1, 1),) * 2, 1, 1, "costs: of 4 layers all but the last need heads, not 2"),
        ((1,) * 4, ((1,),) * 3, 1, 1, "costs: layer 1 has 1 heads, not one per kind (2)"),
        ((1, 1, 1, -1.0), ((1, 1),) * 3, 1, 1, "costs: -1.0 is no cost"),
        ((1,) * 4, ((1, math.nan),) * 3, 1, 1, "costs: nan is no cost; it must be finite and at least 0"),
        ((1,) * 4, ((1, 1),) * 3, math.inf, 1, "costs: inf is no cost"),
        ((1,) * 4, ((1, 1),) * 3, 1, 0.99, "slack is 0.99; it must be finite and at least 1"),
        ((1,) * 4, ((1, 1),) * 3, 1, math.nan, "slack is nan"),
        ((1,) * 4, ((1, 1),) * 3, 1, math.inf, "slack is inf"),
    ],
)
def test_mistakes_in_costs(layers: Any, heads: Any, classifier: float, slack: float, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        discretise_within(ALPHA, BETA, AUX[:2], 2, PartCosts(layers, heads, classifier), slack)
    assert str(caught.value).startswith(message)


def test_what_has_no_imbalance() -> None:
    costs = PartCosts((1.0,) * 4, ((1.0,) * 2,) * 3, 1.0)
    with pytest.raises(ValueError, match="'aux3' is none of the kinds with a cost: aux1, aux2"):
        imbalance(Decoupling((2,), ("aux3",)), AUX[:2], costs)
    with pytest.raises(ValueError, match="no cost of a head on the last layer, 4"):
        imbalance(Decoupling((4,), ("aux1",)), AUX[:2], costs)
    with pytest.raises(ValueError, match="no layer 5 to cut after; the network has 4"):
        imbalance(Decoupling((5,), ("aux1",)), AUX[:2], costs)
    with pytest.raises(ValueError, match="spread: alpha has 2 rows in it, and 3 now"):
        confidence(ALPHA, BETA, AUX[:2], 2, SearchSpread([(ALPHA[:2], BETA[:2])]))


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, search.discretisation, search.records\n"
        "sys.exit(str({'torch', 'torchvision', 'timm', 'accelerate', 'numpy'} & set(sys.modules) or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_head_of_later_layers_has_no_more_of_them_than_there_are() -> None:
    """A search may prefer aug2 where fewer layers remain; its costs are those of what was searched."""
    alpha, beta = [[0.0, 1.0], [1.0, 0.0], [0.0, 0.5]], [[0.0, 1.0]] * 3
    kinds = ("linear", "aug2")
    found = discretise(alpha, beta, kinds, 3)
    assert (found.cuts, found.heads) == ((2, 3), ("aug2", "aug1"))
    costs = PartCosts(layers=(1.0, 1.0, 1.0, 1.0), heads=((0.0, 2.0), (0.0, 1.0), (0.0, 0.5)), classifier=0.0)
    assert imbalance(found, kinds, costs) == pytest.approx(3.0 * 3 / (3.0 + 1.5 + 1.0))
    assert random_heads(alpha, [[0.0]] * 3, ("aug2",), 3, random.Random(0)) == found
