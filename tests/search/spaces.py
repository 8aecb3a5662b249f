"""Small spaces with costs of all sorts, what is within limits by trying everything, and truths to search."""

import functools
import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import strategies as st

from search.limits import Limit
from search.method import Method
from supernet.additive import Additive, counted
from supernet.layers import Conv, MBConv, Op, Skip
from supernet.presets import preset
from supernet.space import Architecture, Fixed, Layer, Space
from supernet.tail import Tail

TABLE = Path(__file__).parents[2] / "data/nas-bench-macro_cifar10.json"
OPS = (Conv(1), Conv(3), MBConv(3, 2), MBConv(5, 1))
SKIPPED: tuple[Op, ...] = (Conv(3), Skip(), MBConv(5, 1))

Truth = Callable[[Architecture], float]
M = TypeVar("M", bound=Method)


def space_of(rows: Sequence[Sequence[Op]]) -> Space:
    """Layers that all keep the shape, so that those with equal candidates, a skip among them, are runs."""
    layers = tuple(Layer(tuple(row), 4) for row in rows)
    return Space((Fixed(Conv(1), 4),), layers, Tail(), name="small", image_size=4)


SMALL = space_of([SKIPPED, SKIPPED, SKIPPED, (Conv(1), Conv(3)), (*OPS, Skip())])
WIDE = space_of([OPS] * 20)


def made_up(name: str, table: Sequence[Sequence[int]], fixed: int = 0) -> Additive:
    return Additive(name, fixed, tuple(map(tuple, table)))


def total(cost: Additive, architecture: Architecture) -> int:
    """A cost by its definition."""
    return cost.fixed + sum(cost.table[layer][choice] for layer, choice in enumerate(architecture.choices))


def keeps(architecture: Architecture, limits: Sequence[Limit]) -> bool:
    return all(total(limit.cost, architecture) <= limit.high for limit in limits)


def network(space: Space, architecture: Architecture) -> tuple[tuple[str, ...], ...]:
    """What tells networks apart whose layers all keep the shape: operations, without the skips of a run."""
    ops = [(layer, layer[choice]) for layer, choice in zip(space.layers, architecture.choices, strict=True)]
    found: list[tuple[str, ...]] = []
    for layer, members in itertools.groupby(ops, key=lambda pair: pair[0]):
        names = [str(op) for _, op in members]
        if any(isinstance(op, Skip) for op in layer):
            found.append(tuple(name for name in names if name != "skip"))
        else:
            found.append(tuple(names))
    return tuple(found)


@st.composite
def cases(draw: st.DrawFn, most: int = 700) -> tuple[Space, list[Limit]]:
    """A space, and up to four limits on its costs of which one may be impossible."""
    rows: list[tuple[Op, ...]] = []
    while len(rows) < 2:
        ops: tuple[Op, ...] = tuple(draw(st.lists(st.sampled_from(OPS), min_size=1, max_size=3, unique=True)))
        if draw(st.booleans()):
            at = draw(st.integers(0, len(ops)))
            ops = (*ops[:at], Skip(), *ops[at:])
        rows += [ops] * draw(st.integers(1, 3))
        if len(rows) < 5 and draw(st.booleans()):
            rows += [(Conv(1), Conv(3))]
    while len(rows) > 2 and space_of(rows).size > most:
        rows = rows[:-1]
    space = space_of(rows[:6])
    every = list(space.architectures())
    limits = []
    for name in draw(st.lists(st.sampled_from(["macs", "params", "latency", "activations"]), unique=True)):
        cost = counted(space, name) if name in ("macs", "params") else draw(tables(space, name))
        totals = sorted({total(cost, each) for each in every})
        part = draw(st.floats(0, 1))
        high = totals[int(part * (len(totals) - 1))] + draw(st.sampled_from([0, 0, 0, 1, -1]))
        limits.append(Limit(cost, high))
    return space, limits


@st.composite
def tables(draw: st.DrawFn, space: Space, name: str) -> Additive:
    """Any whole numbers, but equal ones for equal layers in a row, whether or not a skip costs most."""
    table: list[tuple[int, ...]] = []
    for index, layer in enumerate(space.layers):
        if index and layer == space.layers[index - 1]:
            table.append(table[-1])
        else:
            table.append(tuple(draw(st.lists(st.integers(0, 9), min_size=len(layer), max_size=len(layer)))))
    return Additive(name, draw(st.integers(0, 20)), tuple(table))


# ---- truths --------------------------------------------------------------------------------------------


@functools.cache
def macro() -> Space:
    return preset("nas_bench_macro", num_classes=10, image_size=32)


def landscape(space: Space, seed: int = 0, interaction: float = 0.4) -> Truth:
    """What layers add, and what each two of them add together."""
    source = np.random.default_rng(seed)
    alone = [source.normal(size=len(layer)) for layer in space.layers]
    together = {
        (one, other): interaction * source.normal(size=(len(space.layers[one]), len(space.layers[other])))
        for one, other in itertools.combinations(range(len(space.layers)), 2)
    }

    def truth(architecture: Architecture) -> float:
        choices = architecture.choices
        singles = sum(float(values[choice]) for values, choice in zip(alone, choices, strict=True))
        pairs = sum(float(each[choices[one], choices[two]]) for (one, two), each in together.items())
        return singles + pairs

    return truth


def benchmark() -> Truth:
    """The accuracy in percent that NAS-Bench-Macro gives a network."""
    if not TABLE.exists():
        pytest.skip(f"the benchmark's table is not at {TABLE}")
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    scores = {digits: float(entry["mean_acc"]) for digits, entry in table.items()}
    return lambda architecture: scores[str(architecture)]


def finish(search: M, truth: Truth) -> list[list[Architecture]]:
    """Everything that a search asks for until it has no more."""
    asked = []
    while batch := search.ask():
        asked.append(batch)
        search.tell([truth(each) for each in batch])
        assert len(asked) <= 10_000
    return asked


def chosen(asked: Sequence[Sequence[Architecture]]) -> list[Architecture]:
    return [each for batch in asked for each in batch]


def assert_same(one: Method, other: Method) -> None:
    assert one.history == other.history
    assert one.best(10**6) == other.best(10**6)
    assert one.ask() == other.ask()


def assert_asks_properly(make: Callable[[int], Method], truth: Truth) -> list[list[Architecture]]:
    """What holds of every method: the same for a seed, within limits, in their form, nothing twice."""
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    search = make(0)
    asked = finish(search, truth)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index] # noqa: NPY002
    every = chosen(asked)
    assert len(set(every)) == len(every) <= search.planned
    assert all(len(batch) == len(told) for batch, told in zip(asked, search.history, strict=True))
    for each in every:
        search.space.validate(each)
        assert keeps(each, search.within.limits)
        assert not search.canonical or search.space.canonical(each) == each
    assert finish(make(0), truth) == asked
    scores = {each: truth(each) for each in every}
    ranked = [each.score for each in search.best(len(every))]
    assert ranked == sorted(scores.values(), reverse=True)
    assert search.best() == [(max(every, key=truth), max(scores.values()))]  # max takes the first of equals
    assert search.ask() == []
    with pytest.raises(ValueError, match="nothing was asked for"):
        search.tell([])
    return asked


def assert_resumes_anywhere(make: Callable[[], Method], truth: Truth) -> None:
    """A search that goes on from JSON before each ask, before each tell, and at the end, is as it was."""

    def from_json(search: Method) -> Method:
        text = json.dumps(search.state_dict())
        again = make()
        again.load_state_dict(json.loads(text))
        assert json.dumps(again.state_dict()) == text
        return again

    whole, search = make(), make()
    for batch in [*finish(whole, truth), []]:
        search = from_json(search)
        assert search.ask() == batch
        search = from_json(search)
        if batch:  # without asking anew
            search.tell([truth(each) for each in batch])
    assert_same(search, whole)
