"""A search must beat these under the same interface: chance, all there is, and regularised evolution."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

from search.method import Method, Scored
from search.variation import mutated
from supernet.space import Architecture
from tools.options.config import check_range

MOST_NETWORKS = 100_000
"""The most networks that an exhaustive search goes through."""


@dataclass(eq=False)
class RandomSearch(Method):
    """This search scores new random networks, `population` of them at a time."""

    name: ClassVar[str] = "random"

    @property
    def _needed(self) -> int:
        return 1

    def _propose(self, rng: random.Random) -> list[Architecture]:
        return self._random(self.population, rng)


@dataclass(eq=False)
class Exhaustive(Method):
    """This search scores all networks within the limits, neighbours together; generations do not count."""

    name: ClassVar[str] = "exhaustive"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.planned = sum(1 for _ in islice(self.within.networks(), MOST_NETWORKS + 1))
        if self.planned > MOST_NETWORKS:
            raise ValueError(
                f"exhaustive: more than {MOST_NETWORKS:,} networks of {self.space.name} keep the limits; "
                "take another method, or lower the limits"
            )
        self._rest: Iterator[Architecture] = self.within.networks()

    @property
    def _needed(self) -> int:
        return 1

    def _goes_on(self, generation: int) -> bool:
        return True

    def _propose(self, rng: random.Random) -> list[Architecture]:
        return list(islice(self._rest, self.population))


@dataclass(eq=False)
class RegularisedEvolution(Method):
    """The best of a random sample breeds a mutant, and the oldest die (Real et al. 2019).

    `population` networks are alive. As many random networks are scored first, and then `brood` mutants at
    once.
    """

    sample: int = field(default=10, kw_only=True)
    """How many networks are drawn; the best of them breeds."""
    brood: int = field(default=10, kw_only=True)
    """How many mutants are scored at once."""
    mutation: float = field(default=0.1, kw_only=True)
    """The probability that a mutant's choice is drawn anew."""

    name: ClassVar[str] = "regularised"

    def __post_init__(self) -> None:
        check_range("sample", self.sample, 1)
        check_range("brood", self.brood, 1)
        check_range("mutation", self.mutation, 0, 1, open_low=True)
        super().__post_init__()
        self._alive: deque[Scored] = deque(maxlen=self.population)

    def _goes_on(self, generation: int) -> bool:
        return sum(map(len, self.history)) < self.planned

    def _propose(self, rng: random.Random) -> list[Architecture]:
        if not self._alive:
            return self._random(self.population, rng)

        def mutant() -> Architecture:
            drawn = rng.sample(list(self._alive), min(self.sample, len(self._alive)))
            parent = max(drawn, key=lambda scored: scored.score).architecture
            return self.within.repaired(mutated(parent, self.space, self.mutation, rng), rng)

        count = min(self.brood, self.planned - sum(map(len, self.history)))
        mutants = self._bred(mutant, count)
        return mutants + self._random(count - len(mutants), rng, mutants)

    def _learn(self, scored: list[Scored]) -> None:
        self._alive.extend(scored)
