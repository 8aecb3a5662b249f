"""What a report says of trained decouplings, and of searches that could have foretold them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from scipy.special import softmax

from search.records import Relaxation
from search.report.cut_searches import CutSearch
from search.report.cuts import cut_truth_parts
from search.report.words import interval
from tools.mistake import Mistake
from tools.options.config import flag
from tools.page.report import Table, Text
from tools.ranking import kendall_tau

ALPHA, BETA = ((0.1, 0.9), (0.8, 0.2), (0.3, 0.4)), ((0.5, 0.1), (0.2, 0.3), (0.0, 0.0))
TRIALS = {(2,): 0.9, (1,): 0.7, (3,): 0.8, (1, 2): 0.5}


def search(
    name: str, network: str = "four", stem: str = "unit", heads: tuple[str, ...] = ("a", "b")
) -> CutSearch:
    relaxation = Relaxation(network, heads, ALPHA, BETA, {"stem": stem})
    return CutSearch(name=name, path=Path(name), relaxation=relaxation, decouplings=(), balanced=(), words=())


def written(folder: Path, trials: Mapping[tuple[int, ...], float], heads: str = "a") -> Path:
    lines = [
        {"network": "four", "cuts": cuts, "heads": [heads] * len(cuts), "name": "x", "accuracy": value + seed}
        for cuts, value in trials.items()
        for seed in (0, 0.02)
    ]
    (folder / "truth.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def log_p(*cuts: int) -> float:
    """The log of the chance that layers are cut so, each with head a, if each is drawn for itself."""
    chances = [
        math.log(softmax(alpha)[0] * softmax(beta)[0]) if layer in cuts else math.log(softmax(alpha)[1])
        for layer, (alpha, beta) in enumerate(zip(ALPHA, BETA, strict=True), start=1)
    ]
    return sum(chances)


def test_the_best_comes_first_with_what_searches_thought_of_it(tmp_path: Path) -> None:
    strangers = [
        search("another", network="five"),
        search("fused", stem="fused"),
        search("b", heads=("b", "c")),
    ]
    (table,) = cut_truth_parts("truth", written(tmp_path, TRIALS), [search("mine"), *strangers])
    assert isinstance(table, Table)
    assert table.columns[-2:] == ["trainings", "log p by mine"]
    assert [row.cells[3] for row in table.rows] == ["2", "3", "1", "1, 2"]
    assert [row.cells[6] for row in table.rows] == [f"{mean}.00 ± 1.41 %" for mean in (91, 81, 71, 51)]
    assert [row.cells[-1] for row in table.rows] == [
        f"{log_p(*cuts):.2f}" for cuts in ((2,), (3,), (1,), (1, 2))
    ]


@pytest.mark.parametrize("layers", [3, 4, 6])
def test_an_order_of_enough_decouplings_is_tested(layers: int, tmp_path: Path) -> None:
    shares = tuple((0.3 * layer, 0.0) for layer in range(layers))
    relaxation = Relaxation("four", ("a",), shares, ((0.0,),) * layers)
    searcher = CutSearch(
        name="mine", path=tmp_path, relaxation=relaxation, decouplings=(), balanced=(), words=()
    )
    accuracies = [(0.1 * layer) % 0.4 for layer in range(1, layers + 1)]
    trials: dict[tuple[int, ...], float] = {
        (layer,): accuracy for layer, accuracy in enumerate(accuracies, start=1)
    }
    _, *texts = cut_truth_parts("truth", written(tmp_path, trials), [searcher])
    if layers < 4:
        assert texts == []
        return
    # The later a layer, the larger its share: the order of log p is that of the layers.
    tau = interval(kendall_tau(range(layers), accuracies))
    end = "; 4 are too few to tell that from chance." if layers == 4 else ", not told from chance (p = "
    (text,) = texts
    assert isinstance(text, Text)
    assert text.text.startswith(f"mine orders the {layers} decouplings in 2 blocks with tau {tau}{end}")


def test_a_truth_of_architectures_is_for_another_option(tmp_path: Path) -> None:
    (tmp_path / "truth.jsonl").write_text('{"choices": [0, 1], "accuracy": 0.5}')
    with pytest.raises(Mistake) as refused:
        cut_truth_parts("truth", tmp_path, [])
    assert refused.value.worded(flag) == (
        f"--trained: '{tmp_path}' is a truth of architectures; give it as --truth"
    )
    (tmp_path / "truth.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"its truth\.jsonl has no trainings"):
        cut_truth_parts("truth", tmp_path, [])
