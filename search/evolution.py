"""This is the evolutionary search of Single Path One-Shot, with `ask` and `tell`."""

import random
from dataclasses import dataclass, field
from typing import ClassVar

from search.limits import Infeasible
from search.method import Method, Scored
from search.variation import CROSSOVERS, crossed, mutated
from supernet.space import Architecture
from tools.options.config import check_choice, check_range

__all__ = ["Evolution", "Infeasible"]


@dataclass(eq=False)
class Evolution(Method):
    """Half of each generation are mutants of the best ever, and half are children of two of them.

    The numbers are those of the released code. Three things differ from it. The last generation counts,
    nothing is scored twice, and a network over a limit is repaired instead of thrown away. If a generation
    is not full, it is filled up at random.
    """

    parents: int = field(default=10, kw_only=True)
    """How many of the best ever breed."""
    mutation: float = field(default=0.1, kw_only=True)
    """The probability that a mutant's choice is drawn anew."""
    crossover: str = field(default="uniform", kw_only=True)
    """How children are made: uniform (each choice from either parent), or one_point (shares more of the
    scoring)."""

    name: ClassVar[str] = "evolution"

    def __post_init__(self) -> None:
        check_range("parents", self.parents, 1)
        check_range("mutation", self.mutation, 0, 1, open_low=True)
        check_choice("crossover", self.crossover, CROSSOVERS)
        super().__post_init__()
        self._parents: list[Scored] = []

    def _propose(self, rng: random.Random) -> list[Architecture]:
        if not self._parents:
            return self._random(self.population, rng)
        best = [parent.architecture for parent in self._parents]

        def mutant() -> Architecture:
            return self.within.repaired(mutated(rng.choice(best), self.space, self.mutation, rng), rng)

        def child() -> Architecture:
            made = crossed(rng.choice(best), rng.choice(best), self.crossover, rng)
            return self.within.repaired(made, rng)

        half = self.population // 2
        bred = self._bred(mutant, half)
        bred += self._bred(child, half, bred)
        return bred + self._random(self.population - len(bred), rng, bred)

    def _learn(self, scored: list[Scored]) -> None:
        best_first = sorted([*self._parents, *scored], key=lambda network: -network.score)
        self._parents = best_first[: self.parents]
