"""Tables of architectures and numbers, as users write them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from search.report.tables import NetworkTable, read_table, standing
from supernet.presets import preset
from supernet.space import Architecture
from tests.search.spaces import TABLE, macro

TINY = preset("tiny", num_classes=10, image_size=16)
ONE, OTHER = Architecture((0, 1, 2, 3)), Architecture((1, 3, 0, 2))


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "choices,accuracy\n0123,0.5\n1302,0.25\n"),
        ("a.csv", "arch,accuracy 1,accuracy 2\n0-1-2-3,0.25,0.75\n1302,0.25,0.25\n"),
        ("a.csv", '\ufeffarchitecture, mean_acc, note\n"[0, 1, 2, 3]", 0.5, x\n"(1,3,0,2)", 0.25,\n'),
        ("a.csv", "choices,seed,accuracy\n0123,0,0.4\n1302,0,0.25\n0123,1,0.6\n1302,1,0.25\n"),
        (
            "a.jsonl",
            '{"choices": [0, 1, 2, 3], "score": 0.5}\n{"choices": [1, 3, 0, 2], "score": 0.25}\n{"cho',
        ),
        (
            "a.jsonl",
            '{"choices": "0123", "accuracies": [0.4, 0.6]}\n{"choices": "1302", "accuracies": [0.2, 0.3]}',
        ),
        ("a.json", '{"0123": 0.5, "1302": 0.25}'),
        ("a.json", '{"0123": {"test_acc": [0.5], "flops": 7}, "1302": {"test_acc": [0.25], "flops": 3}}'),
    ],
)
def test_what_users_write_is_read(name: str, text: str, tmp_path: Path) -> None:
    table = read_table(written(tmp_path, name, text), TINY, option="truth")
    assert table.values.keys() == {ONE, OTHER}
    assert table.repeats([OTHER, ONE]).mean(axis=0) == pytest.approx([0.25, 0.5])
    assert (table.rows, table.merged) == (2, 0)


def test_the_most_telling_numbers_are_taken(tmp_path: Path) -> None:
    lines = [
        {"choices": list(who.choices), "score": 9, "accuracy": value, "accuracies": [value, value + 0.1]}
        for who, value in ((ONE, 0.5), (OTHER, 0.3))
    ]
    path = written(tmp_path, "truth.jsonl", "\n".join(map(json.dumps, lines)))
    for given in (path, tmp_path):  # a file, or the run that holds it
        table = read_table(given, TINY, option="truth")
        assert table.column == "accuracies"
        assert np.allclose(table.repeats([ONE, OTHER]), [[0.5, 0.3], [0.6, 0.4]])


def test_one_network_counts_once(tmp_path: Path) -> None:
    # Digits 4 and 5, and 7 and 8, may change places where one is an identity; digits 2 and 3 may not.
    rows = ["22202222,1,2", "22220222,1,2", "22222202,5,6", "22222220,5,7", "22022222,3,3"]
    text = "\n".join(["choices,accuracy 1,accuracy 2", *rows])
    table = read_table(written(tmp_path, "a.csv", text), macro(), option="truth")
    assert (table.rows, table.merged) == (5, 2)
    assert table.values == {
        Architecture.parse("22220222"): (1, 2),
        Architecture.parse("22222220"): (5, 6, 5, 7),  # trainings that differ count as further repeats
        Architecture.parse("22022222"): (3, 3),
    }
    assert table.repeats(table.values).tolist() == [[1, 5, 3], [2, 6, 3]]  # as many as all have
    assert table.most_repeats(table.values) == 4


def test_the_benchmark_has_3969_networks_with_three_trainings_each() -> None:
    if not TABLE.exists():
        pytest.skip(f"the benchmark's table is not at {TABLE}")
    table = read_table(TABLE, macro(), option="truth")
    assert (table.rows, len(table.values), table.merged) == (6561, 3969, 2592)
    assert table.repeats(table.values).shape == (3, 3969)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "choices,accuracy\n0123,0.5\n", "needs two"),
        (
            "a.csv",
            "choices,accuracy\n0123,high\n1302,0.2\n",
            "accuracy of 0123 is 'high'; it must be a finite",
        ),
        ("a.csv", "choices,accuracy\n0123,nan\n1302,0.2\n", "must be a finite number"),
        ("a.csv", "choices,accuracy\n0123,\n1302,0.2\n", "what is said of 0123 must have one of"),
        ("a.csv", "network,accuracy\n0123,1\n1302,0.2\n", "a line must have choices or architecture or arch"),
        ("a.csv", "choices,acc1,acc5\n0123,1,2\n1302,0.2,3\n", "must have one of test_acc, accuracies"),
        ("a.csv", "choices,loss\n0123,1\n1302,0.2\n", "must have one of test_acc, accuracies"),
        ("a.csv", "choices,wrong\n0123,1\n1302,0.2\n", "must have one of test_acc, accuracies"),
        ("a.csv", "choices,accuracy\n012,1\n1302,0.2\n", "architecture 012 has 3 choices"),
        (
            "a.csv",
            "choices,accuracy\n0129,1\n1302,0.2\n",
            "layer 4 of space tiny has candidates 0 to 3, not 9",
        ),
        (
            "a.jsonl",
            '{"choices": [0, 1.5, 2, 3], "score": 1}\n{"choices": "1302", "score": 2}',
            "whole numbers",
        ),
        (
            "a.jsonl",
            '{"choices": "1302", "score": true}\n{"choices": "1303", "score": 2}',
            "must be a finite",
        ),
        ("a.json", "[1, 2]", "expected a table"),
        ("a.json", '{"format": "cleave/results", "version": 1}', "expected a table"),
        ("a.json", "{", "a.json'"),
        ("a.txt", "0123 1", "a .json, .jsonl or .csv file"),
    ],
)
def test_mistakes_are_told(name: str, text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^truth: ") as refused:
        read_table(written(tmp_path, name, text), TINY, option="truth")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_losses_may_be_called_so(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "choices,loss\n0123,1\n1302,0.2\n")
    assert read_table(path, TINY, option="losses", lower=True).values == {ONE: (1,), OTHER: (0.2,)}


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="truth: there is no file"):
        read_table(tmp_path / "a.csv", TINY, option="truth")
    with pytest.raises(ValueError, match=r"truth: folder .* holds neither truth.jsonl nor evaluations.jsonl"):
        read_table(tmp_path, TINY, option="truth")


def test_a_truth_is_as_uncertain_as_most_of_its_trainings() -> None:
    rng, space = np.random.default_rng(0), macro()
    networks = [space.canonical(who) for who in list(space.architectures())[::5]]
    values = {who: tuple(90 + 0.21 * rng.normal(size=3)) for who in networks}
    for who in networks[::20]:  # a few hardly train
        values[who] = tuple(60 + 20 * rng.normal(size=3))
    truth = NetworkTable(space=space, values=values, rows=len(values), column="accuracy")
    known = standing(truth, networks[1])
    assert known is not None
    assert known.error == pytest.approx(0.21 / math.sqrt(3), rel=0.1)
    assert known.among == len(values)
    once = {who: repeats[:1] for who, repeats in values.items()}
    alone = standing(NetworkTable(space=space, values=once, rows=len(once), column="accuracy"), networks[1])
    assert alone is not None
    assert math.isnan(alone.error)


@pytest.mark.parametrize("lower", [False, True])
def test_a_network_stands_among_those_within_limits(lower: bool) -> None:
    space, order = macro(), -1 if lower else 1
    networks = list({space.canonical(who): None for who in list(space.architectures())[::331]})
    rng = np.random.default_rng(0)
    values = {who: tuple(rng.normal(size=2)) for who in networks}
    truth = NetworkTable(space=space, values=values, rows=len(values), column="accuracy", lower=lower)
    most = sorted(map(space.params, networks))[len(networks) // 2]
    inside = [who for who in networks if space.params(who) <= most]
    means = {who: order * np.mean(values[who]) for who in inside}
    best_first = sorted(inside, key=lambda who: -means[who])
    for rank, who in enumerate(best_first, start=1):
        known = standing(truth, who, {"params": most, "latency_ms": 1.0})  # the truth knows no latencies
        assert known is not None
        assert (known.rank, known.among) == (rank, len(inside))
        assert known.value == pytest.approx(order * means[who])
        assert known.best == pytest.approx(order * means[best_first[0]])
        assert known.mean == pytest.approx(order * np.mean(list(means.values())))
    unknown = next(who for who in space.architectures() if space.canonical(who) not in values)
    assert standing(truth, unknown) is None
