"""New architectures come from known ones by DEAP's operators on tuples, with a generator of our own."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

from deap import tools

from supernet.space import Architecture, Space

CROSSOVERS = ("uniform", "one_point")


def mutated(parent: Architecture, space: Space, probability: float, rng: random.Random) -> Architecture:
    """Draw each choice anew with a given probability, perhaps to what it was."""
    genes = list(parent.choices)
    with _drawing_from(rng):
        tools.mutUniformInt(genes, 0, [len(layer) - 1 for layer in space.layers], probability)
    return Architecture(tuple(genes))


def crossed(one: Architecture, other: Architecture, kind: str, rng: random.Random) -> Architecture:
    """Take each choice from either parent.

    With one_point the first choices are from one parent and the rest from the other.
    """
    if len(one.choices) == 1:
        return rng.choice((one, other))
    genes, rest = list(one.choices), list(other.choices)
    with _drawing_from(rng):
        if kind == "uniform":
            tools.cxUniform(genes, rest, 0.5)
        else:
            tools.cxOnePoint(genes, rest)
    return Architecture(tuple(genes))


@contextmanager
def _drawing_from(rng: random.Random) -> Iterator[None]:
    """Lend Python's global generator to DEAP, which draws from it, and put it back as it was."""
    before = random.getstate()
    random.seed(rng.getrandbits(63))
    try:
        yield
    finally:
        random.setstate(before)
