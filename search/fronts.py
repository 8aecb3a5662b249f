"""Fronts hold the best networks where one wants several things; NSGA-II searches for a whole front."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from deap import base, tools

from search.method import Method, Scored, cost_as_json
from search.variation import CROSSOVERS, crossed, mutated
from supernet.additive import Additive, counted
from supernet.sampling import sample
from supernet.space import Architecture
from tools.options.config import check_choice, check_range

ROUNDS = 50
"""How often a pool breeds for one generation before random networks fill it up."""


class Fitness(base.Fitness):  # type: ignore[misc]
    """A fitness is a score to raise and costs to lower.

    Whoever is less over the limits dominates whoever is more. DEAP's own fitness for constraints leaves
    two that are over the limits without an order.
    """

    weights: tuple[float, ...] = ()

    def __init__(self, score: float, costs: Sequence[float], excess: float = 0.0) -> None:
        self.weights = (1.0, *[-1.0] * len(costs))
        self.excess = excess
        self.crowding_dist = 0.0
        super().__init__((score, *costs))

    def dominates(self, other: "Fitness", obj: slice = slice(None)) -> bool:
        """Return whether this fitness is better than another, or less over the limits."""
        if self.excess or other.excess:
            return self.excess < other.excess
        return bool(super().dominates(other, obj))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fitness) and (self.wvalues, self.excess) == (other.wvalues, other.excess)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.wvalues, self.excess))


@dataclass(frozen=True, eq=False)
class Member:
    """A member is an architecture in the form that DEAP's selections need."""

    architecture: Architecture
    """The architecture."""
    fitness: Fitness
    """The fitness of the architecture."""


def front(scored: Iterable[Scored], costs: Sequence[Additive]) -> list[Scored]:
    """Return the networks that no other beats in score and all costs, sorted by their first cost.

    Among equal networks the first is taken.
    """
    members = [(network, _fitness(network, costs)) for network in scored]
    members.sort(key=lambda pair: (pair[1].values[1:], -pair[0].score))  # nobody dominates an earlier one
    best: list[tuple[Scored, Fitness]] = []
    for network, fitness in members:
        if not any(other.dominates(fitness) or other == fitness for _, other in best):
            best.append((network, fitness))
    return [network for network, _ in best]


@dataclass(eq=False)
class Nsga2(Method):
    """This search finds the whole front of score and costs: NSGA-II (Deb et al. 2002)."""

    costs: Sequence[Additive] = field(default=(), kw_only=True)
    """The costs that are to be low while the score is high. If none is given, they are the MACs."""
    mutation: float = field(default=0.1, kw_only=True)
    """The probability that a child's choice is drawn anew."""
    crossover: str = field(default="uniform", kw_only=True)
    """How children are made: uniform or one_point."""
    over_limit: str = field(default="repair", kw_only=True)
    """What happens to a network over a limit. It is repaired (repair), or it breeds as it is, unscored and
    dominated by all networks that are less over it (dominate, the constrained domination of the paper)."""

    name: ClassVar[str] = "nsga2"

    def __post_init__(self) -> None:
        check_range("mutation", self.mutation, 0, 1, open_low=True)
        check_choice("crossover", self.crossover, CROSSOVERS)
        check_choice("over_limit", self.over_limit, ("repair", "dominate"))
        super().__post_init__()
        self.costs = tuple(self.costs) or (counted(self.space, "macs"),)
        self._pool: list[Member] = []
        self._over: dict[Architecture, Member] = {}

    @property
    def traded(self) -> Sequence[Additive]:
        """The costs that the search trades for score."""
        return self.costs

    def _propose(self, rng: random.Random) -> list[Architecture]:
        if self.over_limit == "dominate":
            return self._unrepaired(rng)
        if not self._pool:
            return self._random(self.population, rng)
        children = self._bred(lambda: self.within.repaired(self._child(rng), rng), self.population)
        return children + self._random(self.population - len(children), rng, children)

    def _learn(self, scored: list[Scored]) -> None:
        self._select([Member(network.architecture, _fitness(network, self.costs)) for network in scored])

    def _unrepaired(self, rng: random.Random) -> list[Architecture]:
        """Breed children within the limits; those over them only join the pool, which needs no scores."""
        within: dict[Architecture, None] = {}
        for _ in range(ROUNDS):
            over: list[Member] = []
            for _ in range(self.population):
                made = self.within.form(self._child(rng) if self._pool else sample(self.space, rng))
                if self.within.allow(made):
                    if made not in self._known:
                        within[made] = None
                elif made not in self._over:
                    costs = [cost.of(made) for cost in self.costs]
                    self._over[made] = Member(made, Fitness(0.0, costs, self.within.excess(made)))
                    over.append(self._over[made])
            self._select(over)
            if len(within) >= self.population:
                break
        some = list(within)[: self.population]
        return some + self._random(self.population - len(some), rng, some)

    def _child(self, rng: random.Random) -> Architecture:
        one, other = (self._winner(rng).architecture for _ in range(2))
        return mutated(crossed(one, other, self.crossover, rng), self.space, self.mutation, rng)

    def _winner(self, rng: random.Random) -> Member:
        """Return the better of two by domination, or else the one with more room around it."""
        one, other = rng.choice(self._pool), rng.choice(self._pool)
        if other.fitness.dominates(one.fitness):
            return other
        if one.fitness.dominates(other.fitness) or one.fitness.crowding_dist >= other.fitness.crowding_dist:
            return one
        return other

    def _select(self, new: list[Member]) -> None:
        self._pool = tools.selNSGA2(self._pool + new, self.population)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"costs": [cost_as_json(cost) for cost in self.costs]}


def _fitness(scored: Scored, costs: Sequence[Additive]) -> Fitness:
    return Fitness(scored.score, [cost.of(scored.architecture) for cost in costs])
