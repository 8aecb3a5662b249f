"""The options of search_architecture.py; free of torch."""

from dataclasses import dataclass, field
from typing import ClassVar

from search.methods import METHODS
from tools.images.options import DataConfig, PlaceOptions
from tools.mistake import Mistake
from tools.options.config import check_choice, check_idle, check_range
from tools.options.shared import RunOptions

COSTS = ("macs", "params", "latency", "activations")


@dataclass(frozen=True, kw_only=True)
class BreedingOptions:
    """How new architectures come from known ones."""

    parents: int = 10
    """evolution: so many of the best ever breed."""
    mutation: float = 0.1
    """Probability that a choice is drawn anew, in evolution, nsga2 and regularised."""
    crossover: str = "uniform"
    """evolution, nsga2: each choice from either parent (uniform), or the first ones from one and the rest
    from the other (one_point), by which more of the scoring is shared."""
    objectives: tuple[str, ...] = ("macs",)
    """nsga2: what is to be low while the score is high: macs, params, latency, activations."""
    over_limit: str = "repair"
    """nsga2: put right what is over a limit (repair), or let it breed, unscored and dominated by all that
    is less over it (dominate)."""
    sample: int = 10
    """regularised: so many are drawn, of which the best breeds."""
    brood: int = 10
    """regularised: so many mutants are scored at once."""

    def __post_init__(self) -> None:
        check_range("breeding.parents", self.parents, 1)
        check_range("breeding.mutation", self.mutation, 0, 1, open_low=True)
        check_choice("breeding.crossover", self.crossover, ("uniform", "one_point"))
        check_choice("breeding.over_limit", self.over_limit, ("repair", "dominate"))
        check_range("breeding.sample", self.sample, 1)
        check_range("breeding.brood", self.brood, 1)
        if not self.objectives or len(set(self.objectives)) != len(self.objectives):
            raise Mistake("breeding.objectives", "name one cost or more, each once")
        for name in self.objectives:
            check_choice("breeding.objectives", name, COSTS)


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """On which images architectures are scored; the same for all of them."""

    validation_images: int = 5000
    """Images of the supernet's validation split, all classes in proportion; 0: all."""
    batch: int = 250
    """Images that are scored at once."""
    statistics: str = "cumulative"
    """BatchNorm statistics of each network: cumulative (the mean over calibration batches), ema (an average
    that forgets, as in the released code of Single Path One-Shot), or supernet (as training left them)."""
    calibration_images: int = 2048
    """Training images, without augmentation, from which these statistics are taken."""
    calibration_batch: int = 128
    """Images in each of these batches; only full batches are used."""
    momentum: float = 0.1
    """The part that the newest batch has in ema."""

    def __post_init__(self) -> None:
        check_range("scoring.validation_images", self.validation_images, 0)
        check_range("scoring.batch", self.batch, 1)
        check_choice("scoring.statistics", self.statistics, ("cumulative", "ema", "supernet"))
        check_range("scoring.calibration_images", self.calibration_images, 2)
        check_range("scoring.calibration_batch", self.calibration_batch, 2)
        check_range("scoring.momentum", self.momentum, 0, 1, open_low=True)
        used = {"validation_images", "batch", "statistics"}
        if self.statistics != "supernet":
            used |= {"calibration_images", "calibration_batch"}
        if self.statistics == "ema":
            used.add("momentum")
        check_idle("scoring", self, used, f"`scoring.statistics` {self.statistics}")


@dataclass(frozen=True, kw_only=True)
class ArchitectureSearchConfig(RunOptions):
    """In which supernet, within which limits, and how to search."""

    UNLISTED: ClassVar[dict[str, type]] = {"data": DataConfig}
    """For weights that do not say which images they saw. Others' training may only be repeated by them."""
    USUAL: ClassVar[tuple[str, ...]] = (
        *("supernet", "method", "population", "generations", "max_macs", "max_params", "top"),
        *("data.root", "scoring.batch", "seed", "device", "run"),
    )

    run: str = "runs/evolution"
    supernet: str = "runs/supernet"
    """The run of train_supernet.py, or the weights file, of the supernet."""
    method: str = "evolution"
    """evolution (of Single Path One-Shot), nsga2 (the whole front of score and costs), regularised (evolution
    in which the oldest die), random, or exhaustive (all networks, for small spaces)."""
    population: int = 50
    """How many architectures are scored together; for regularised also how many are alive."""
    generations: int = 20
    """How many populations are bred, or drawn, after the first. exhaustive goes on to the last network."""
    max_macs: float = 0.0
    """No more multiply-accumulates than these (FLOPs in the papers' sense); 0: no limit."""
    max_params: float = 0.0
    """No more parameters than these; 0: no limit."""
    max_latency: float = 0.0
    """No more milliseconds for a batch, by the table of --costs; 0: no limit."""
    max_activations: float = 0.0
    """No more MiB of activations for each image that training keeps, by the same table; 0: no limit."""
    costs: str = ""
    """Table of measured latencies and activations; none given: the costs.json beside the supernet."""
    canonical: bool = True
    """Take networks that differ only in where equal layers skip for one, as --paths.canonical in training."""
    top: int = 10
    """How many of the best are written as architectures."""
    compare: tuple[str, ...] = ()
    """Other searches of this space, such as one by random, to draw into the figures."""
    breeding: BreedingOptions = field(default_factory=BreedingOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    data: PlaceOptions = field(default_factory=PlaceOptions)
    """Where the images lie; which they are, the supernet says. What is not given is as in its training."""

    def __post_init__(self) -> None:
        self.check_run()
        if not self.supernet:
            raise Mistake("supernet", "name the run of a supernet, or its weights file")
        METHODS.check("method", self.method)
        check_range("population", self.population, 2, 1_000_000)
        check_range("generations", self.generations, 0)
        for name in ("max_macs", "max_params", "max_latency", "max_activations"):
            check_range(name, getattr(self, name), 0)
        check_range("top", self.top, 1)
        METHODS.check_idle("method", self.method, self)
