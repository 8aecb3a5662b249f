"""What all ways to search have in common: they ask for architectures, and are told their scores.

The caller owns scoring, logging and stopping. What is asked for depends on nothing but the options and on
what was told, so a search is restored by telling it all again.
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
    """An architecture and what it scored; higher is better."""

    architecture: Architecture
    score: float


def facts(cost: Additive) -> list[Any]:
    """All of a cost, as JSON has it."""
    return [cost.name, cost.fixed, [list(row) for row in cost.table]]


@dataclass(eq=False)
class Method(ABC):
    """A search among the networks of a space that keep all limits; none is asked for twice."""

    space: Space
    _: KW_ONLY
    seed: int
    max_macs: float | None = None
    """The most multiply-accumulates (FLOPs in the papers' sense)."""
    max_params: float | None = None
    """The most parameters."""
    limits: Sequence[Limit] = ()
    """Limits on any other cost that adds up."""
    canonical: bool = True
    """Take networks that differ only in where equal layers skip for one."""
    population: int = 50
    """How many are asked for at once."""
    generations: int = 20
    """How often that is, after the first time."""

    name: ClassVar[str]
    within: Limits = field(init=False, repr=False)
    """The networks among which is searched."""
    history: list[list[Scored]] = field(init=False, repr=False, default_factory=list)
    """What was told, by generation."""

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0)
        check_range("population", self.population, 1)
        check_range("generations", self.generations, 0)
        asked = [*self.limits]
        for name, high in (("params", self.max_params), ("macs", self.max_macs)):
            if high is not None:
                check_range(f"max_{name}", high, 0)
                asked.insert(0, Limit(counted(self.space, name), math.floor(high)))
        self.within = Limits(self.space, asked, canonical=self.canonical)
        self.within.require(self._needed)
        self._asked: list[Architecture] | None = None
        self._known: set[Architecture] = set()

    def ask(self) -> list[Architecture]:
        """What to score next; the same until scores are told, and empty when there is nothing new."""
        if self._asked is None:
            generation = len(self.history)
            self._asked = []
            if self._goes_on(generation):
                self._asked = self._propose(stream(self.seed, f"search/{self.name}", generation))
        return list(self._asked)

    def tell(self, scores: Sequence[float]) -> None:
        """The scores of what was asked for last, in its order."""
        if not self._asked:
            raise ValueError("tell: nothing was asked for; call ask first")
        if len(scores) != len(self._asked):
            raise ValueError(f"tell: {len(self._asked)} architectures were asked for, not {len(scores)}")
        told = [Scored(each, float(score)) for each, score in zip(self._asked, scores, strict=True)]
        for each in told:
            if math.isnan(each.score):
                raise ValueError(f"tell: the score of {each.architecture} is not a number")
        self._known |= set(self._asked)
        self.history.append(told)
        self._asked = None
        self._learn(told)

    def best(self, count: int = 1) -> list[Scored]:
        """The best that were told, the earlier first among equals."""
        every = [each for generation in self.history for each in generation]
        return sorted(every, key=lambda each: -each.score)[:count]

    @property
    def traded(self) -> Sequence[Additive]:
        """Costs that the search trades for score, if it does."""
        return ()

    @functools.cached_property
    def planned(self) -> int:
        """How many scores will be asked for at most."""
        most = self.population * (self.generations + 1)
        return sum(1 for _ in islice(self.within.networks(), most))

    def state_dict(self) -> dict[str, Any]:
        """Everything that is not in the space, ready for JSON."""
        told = [[[list(each.architecture.choices), each.score] for each in batch] for batch in self.history]
        return {"options": self._options(), "told": told, "asked": self._asked is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make a search that was told nothing yet what another with equal options was."""
        if self.history:
            raise ValueError("load_state_dict: this search was told scores already; make a new one")
        for name, value in self._options().items():
            if state["options"].get(name) != value:
                raise ValueError(
                    f"load_state_dict: the state is of another search: {name} was "
                    f"{state['options'].get(name)!r}, is {value!r}"
                )
        for told in state["told"]:
            if [list(each.choices) for each in self.ask()] != [choices for choices, _ in told]:
                raise ValueError("load_state_dict: the state is of another version of this search")
            self.tell([score for _, score in told])
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
        """The next generation."""

    def _learn(self, told: list[Scored]) -> None:  # noqa: B027 - not all do
        """What to keep of a generation."""

    def _random(
        self, count: int, rng: random.Random, taken: Sequence[Architecture] = ()
    ) -> list[Architecture]:
        """So many random ones, none known or taken; fewer where there are no more."""
        found = self._bred(lambda: self.within.draw(rng), count, taken)
        if len(found) < count:  # nearly all are known: look which are not
            used = {*taken, *found}
            left = (each for each in self.within.networks() if each not in self._known and each not in used)
            some = list(islice(left, 20 * count))
            found += rng.sample(some, min(count - len(found), len(some)))
        return found

    def _bred(
        self, breed: Callable[[], Architecture], count: int, taken: Sequence[Architecture] = ()
    ) -> list[Architecture]:
        """Up to so many new ones that keep the limits, in a bounded number of tries."""
        found: dict[Architecture, None] = {}
        used = self._known.union(taken)
        for _ in range(TRIES_PER_CHILD * count):
            if len(found) == count:
                break
            made = breed()
            if made not in used:
                found[made] = None
        return list(found)

    def _options(self) -> dict[str, Any]:
        """What the search depends on besides what it is told."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        space: Space = given.pop("space")
        for name in ("max_macs", "max_params", "limits"):
            del given[name]  # they are in those of `within`
        limits = [[*facts(each.cost), each.high] for each in self.within.limits]
        sizes = [len(layer) for layer in space.layers]
        return {**given, "method": self.name, "space": space.name, "candidates": sizes, "limits": limits}
