"""From options to a way to search."""

from collections.abc import Mapping
from typing import Any

from search.architectures.config import USED, ArchitectureSearchConfig
from search.baselines import Exhaustive, RandomSearch, RegularisedEvolution
from search.evolution import Evolution
from search.fronts import Nsga2
from search.limits import UNITS, Infeasible, Limit, TooMany
from search.method import Method
from supernet.additive import Additive
from supernet.space import Space

LIMITS = {"macs": 1.0, "params": 1.0, "latency": UNITS["latency"][0], "activations": UNITS["activations"][0]}
"""Costs that may be limited, and what one of an option's units is."""


METHODS: dict[str, type[Method]] = {
    each.name: each for each in (Evolution, Nsga2, RegularisedEvolution, RandomSearch, Exhaustive)
}


def make_method(config: ArchitectureSearchConfig, space: Space, costs: Mapping[str, Additive]) -> Method:
    """The way that the options name; what cannot be kept is refused by the option's name."""
    options: dict[str, Any] = {name: getattr(config.breeding, name) for name in USED[config.method]}
    if "objectives" in options:
        names = options.pop("objectives")
        options["costs"] = [_cost(name, costs, "--breeding.objectives") for name in names]
    try:
        return METHODS[config.method](
            space,
            seed=config.seed,
            limits=asked_limits(config, costs),
            canonical=config.canonical,
            population=config.population,
            generations=config.generations,
            **options,
        )
    except TooMany as error:
        raise TooMany(f"--population: {error}") from None
    except Infeasible as error:
        given = [f"--max-{name}" for name in LIMITS if getattr(config, f"max_{name}")]
        raise Infeasible(f"{' and '.join(given)}: {error}") from None


def asked_limits(config: ArchitectureSearchConfig, costs: Mapping[str, Additive]) -> list[Limit]:
    """The limits that the options set."""
    found = []
    for name, unit in LIMITS.items():
        high = getattr(config, f"max_{name}")
        if high:
            found.append(Limit(_cost(name, costs, f"--max-{name}"), round(high * unit)))
    return found


def _cost(name: str, costs: Mapping[str, Additive], option: str) -> Additive:
    if name not in costs:
        raise ValueError(
            f"{option}: {name} needs a table of measured costs; train_supernet.py writes costs.json at its "
            "end, or name one by --costs"
        )
    return costs[name]
