"""All search methods propose architectures by `ask`, and take their scores by `tell`.

The caller does the scoring, logging and stopping. Proposals depend on nothing but the options and the
scores. So a search is restored by giving it all scores again.
"""

import functools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from search.limits import Limit, Limits
from supernet.additive import Additive, counted
from supernet.sampling import stream
from supernet.space import Architecture, Space
from tools.options.config import check_range

TRIES_PER_CHILD = 10


class Scored(NamedTuple):
    """This is an architecture with its score; higher is better."""

    architecture: Architecture
    """The architecture."""
    score: float
    """Its score."""


def cost_as_json(cost: Additive) -> list[Any]:
    """Return all of a cost, ready for JSON."""
    return [cost.name, cost.fixed, [list(row) for row in cost.table]]


@dataclass(eq=False)
class Method(ABC):
    """A method searches among the networks of a space that keep all limits; it proposes none twice."""

    space: Space
    """The space in which is searched."""
    _: KW_ONLY
    seed: int
    """The seed of all that is random."""
    max_macs: float | None = None
    """The most multiply-accumulates (FLOPs in the papers' sense)."""
    max_params: float | None = None
    """The most parameters."""
    limits: Sequence[Limit] = ()
    """Limits on any other cost that adds up."""
    canonical: bool = True
    """Whether networks that differ only in where equal layers skip count as one."""
    population: int = 50
    """How many networks are proposed at once."""
    generations: int = 20
    """How often that is repeated after the first time."""

    name: ClassVar[str]
    """The name of the method."""
    within: Limits = field(init=False, repr=False)
    """The networks among which is searched."""
    history: list[list[Scored]] = field(init=False, repr=False, default_factory=list)
    """All networks with their scores, by generation."""

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0)
        check_range("population", self.population, 1)
        check_range("generations", self.generations, 0)
        limits = [*self.limits]
        for name, high in (("params", self.max_params), ("macs", self.max_macs)):
            if high is not None:
                check_range(f"max_{name}", high, 0)
                limits.insert(0, Limit(counted(self.space, name), math.floor(high)))
        self.within = Limits(self.space, limits, canonical=self.canonical)
        self.within.require(self._needed)
        self._asked: list[Architecture] | None = None
        self._known: set[Architecture] = set()

    def ask(self) -> list[Architecture]:
        """Return what to score next; it is the same until scores come, and empty when nothing new is left."""
        if self._asked is None:
            generation = len(self.history)
            self._asked = []
            if self._goes_on(generation):
                self._asked = self._propose(stream(self.seed, f"search/{self.name}", generation))
        return list(self._asked)

    def tell(self, scores: Sequence[float]) -> None:
        """Take the scores of the architectures that `ask` returned last, in their order."""
        if not self._asked:
            raise ValueError("tell: nothing was asked for; call ask first")
        if len(scores) != len(self._asked):
            raise ValueError(f"tell: {len(self._asked)} architectures were asked for, not {len(scores)}")
        pairs = zip(self._asked, scores, strict=True)
        generation = [Scored(architecture, float(score)) for architecture, score in pairs]
        for network in generation:
            if math.isnan(network.score):
                raise ValueError(f"tell: the score of {network.architecture} is not a number")
        self._known |= set(self._asked)
        self.history.append(generation)
        self._asked = None
        self._learn(generation)

    def best(self, count: int = 1) -> list[Scored]:
        """Return the `count` best networks so far, the earlier first among equals."""
        every = [network for generation in self.history for network in generation]
        return sorted(every, key=lambda network: -network.score)[:count]

    @property
    def traded(self) -> Sequence[Additive]:
        """The costs that the search trades for score, if it does."""
        return ()

    @functools.cached_property
    def planned(self) -> int:
        """How many networks will be proposed at most."""
        most = self.population * (self.generations + 1)
        return sum(1 for _ in islice(self.within.networks(), most))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is not in the space, ready for JSON."""
        history = [
            [[list(network.architecture.choices), network.score] for network in generation]
            for generation in self.history
        ]
        return {"options": self._options(), "told": history, "asked": self._asked is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring a new search to the state of another one with equal options."""
        if self.history:
            raise ValueError("load_state_dict: this search was told scores already; make a new one")
        for name, value in self._options().items():
            if state["options"].get(name) != value:
                raise ValueError(
                    f"load_state_dict: the state is of another search: {name} was "
                    f"{state['options'].get(name)!r}, is {value!r}"
                )
        for generation in state["told"]:
            proposed = [list(architecture.choices) for architecture in self.ask()]
            if proposed != [choices for choices, _ in generation]:
                raise ValueError("load_state_dict: the state is of another version of this search")
            self.tell([score for _, score in generation])
        if state["asked"]:
            self.ask()

    # ---- for the ways to search ------------------------------------------------------------------------

    @property
    def _needed(self) -> int:
        """How many networks there must be within the limits."""
        return self.population

    def _goes_on(self, generation: int) -> bool:
        return generation <= self.generations

    @abstractmethod
    def _propose(self, rng: random.Random) -> list[Architecture]:
        """Return the next generation."""

    def _learn(self, scored: list[Scored]) -> None:  # noqa: B027 - not all do
        """Take what the search needs to remember of a generation."""

    def _random(
        self, count: int, rng: random.Random, taken: Sequence[Architecture] = ()
    ) -> list[Architecture]:
        """Draw `count` new random networks, none known or taken; there are fewer where no more exist."""
        drawn = self._bred(lambda: self.within.draw(rng), count, taken)
        if len(drawn) < count:  # nearly all are known: look which are not
            used = {*taken, *drawn}.union(self._known)
            left = (network for network in self.within.networks() if network not in used)
            some = list(islice(left, 20 * count))
            drawn += rng.sample(some, min(count - len(drawn), len(some)))
        return drawn

    def _bred(
        self, breed: Callable[[], Architecture], count: int, taken: Sequence[Architecture] = ()
    ) -> list[Architecture]:
        """Breed up to `count` new networks that keep the limits, in a bounded number of tries."""
        bred: dict[Architecture, None] = {}
        used = self._known.union(taken)
        for _ in range(TRIES_PER_CHILD * count):
            if len(bred) == count:
                break
            made = breed()
            if made not in used:
                bred[made] = None
        return list(bred)

    def _options(self) -> dict[str, Any]:
        """Return what the search depends on besides scores."""
        given = {option.name: getattr(self, option.name) for option in fields(self) if option.init}
        space: Space = given.pop("space")
        for name in ("max_macs", "max_params", "limits"):
            del given[name]  # the limits of `within` include them
        limits = [[*cost_as_json(limit.cost), limit.high] for limit in self.within.limits]
        sizes = [len(layer) for layer in space.layers]
        return {**given, "method": self.name, "space": space.name, "candidates": sizes, "limits": limits}
