"""The options of a search become its method."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from search.architectures.config import ArchitectureSearchConfig
from search.limits import UNITS, Infeasible, Limit, TooMany
from search.method import Method
from search.methods import METHODS
from supernet.additive import Additive
from supernet.space import Space
from tools.mistake import Mistake
from tools.options.plugins import call

LIMITS = {"macs": 1.0, "params": 1.0, "latency": UNITS["latency"][0], "activations": UNITS["activations"][0]}
"""The costs that may be limited, and the unit in which their options are given."""


def make_method(config: ArchitectureSearchConfig, space: Space, costs: Mapping[str, Additive]) -> Method:
    """Make the method that the options name; a limit that cannot be kept is refused by its option."""
    row = METHODS[config.method]
    options: dict[str, Any] = {
        option.name: getattr(config.breeding, option.name) for option in fields(config.breeding)
    }
    names = options.pop("objectives")
    if row.looks_at("breeding.objectives"):
        options["costs"] = [_cost(name, costs, "breeding.objectives") for name in names]
    try:
        method: Method = call(
            row.maker,
            space,
            seed=config.seed,
            limits=asked_limits(config, costs),
            canonical=config.canonical,
            population=config.population,
            generations=config.generations,
            **options,
        )
    except TooMany as error:
        raise error.about("population") from None
    except Infeasible as error:
        given = [f"`max_{name}`" for name in LIMITS if getattr(config, f"max_{name}")]
        raise error.about(" and ".join(given)) from None
    return method


def asked_limits(config: ArchitectureSearchConfig, costs: Mapping[str, Additive]) -> list[Limit]:
    """Return the limits that the options set."""
    limits = []
    for name, unit in LIMITS.items():
        high = getattr(config, f"max_{name}")
        if high:
            limits.append(Limit(_cost(name, costs, f"max_{name}"), round(high * unit)))
    return limits


def _cost(name: str, costs: Mapping[str, Additive], option: str) -> Additive:
    if name not in costs:
        raise Mistake(
            option,
            f"{name} needs a table of measured costs",
            "train_supernet.py writes costs.json at its end, or name one by `costs`",
        )
    return costs[name]
