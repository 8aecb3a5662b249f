"""This catalogue lists the search methods by name, with what others need to know of them. Free of torch."""

from dataclasses import dataclass

from tools.options.catalogue import Catalogue, Row


@dataclass(frozen=True, kw_only=True)
class MethodRow(Row):
    """A method is a way to search among architectures.

    `make` is called with the space, and with those of `seed`, `limits`, `canonical`, `population`,
    `generations`, `costs` and the options of breeding that it takes. It gives a `search.method.Method`.
    """

    learns: bool = True
    """Whether its proposals depend on scores. Its first generation is then a random search."""


METHODS: Catalogue[MethodRow] = Catalogue(
    "method",
    MethodRow,
    [
        MethodRow(
            name="evolution",
            says="breeds mutants and children of the best ever (Single Path One-Shot)",
            make="search.evolution:Evolution",
            reads=("generations", "breeding.parents", "breeding.mutation", "breeding.crossover"),
        ),
        MethodRow(
            name="nsga2",
            says="finds the whole front of score and costs (NSGA-II)",
            make="search.fronts:Nsga2",
            reads=(
                *("generations", "breeding.mutation", "breeding.crossover"),
                *("breeding.objectives", "breeding.over_limit"),
            ),
        ),
        MethodRow(
            name="regularised",
            says="evolves a population in which the oldest die",
            make="search.baselines:RegularisedEvolution",
            reads=("generations", "breeding.mutation", "breeding.sample", "breeding.brood"),
        ),
        MethodRow(
            name="random",
            says="scores random networks, each different",
            make="search.baselines:RandomSearch",
            reads=("generations",),
            learns=False,
        ),
        MethodRow(
            name="exhaustive",
            says="scores all networks, for small spaces",
            make="search.baselines:Exhaustive",
            reads=(),
            learns=False,
        ),
    ],
)
"""These are our methods and the user's own."""

register_method = METHODS.register
