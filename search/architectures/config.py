"""These are the options of search_architecture.py. Free of torch."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from search.methods import METHODS
from tools.images.options import DataConfig, PlaceOptions
from tools.mistake import Mistake
from tools.options.config import check_choice, check_idle, check_range
from tools.options.shared import KernelOptions, RunOptions

COSTS = ("macs", "params", "latency", "activations")


@dataclass(frozen=True, kw_only=True)
class BreedingOptions:
    """These options say how new architectures are bred from known ones."""

    parents: int = 10
    """How many of the best ever breed in evolution."""
    mutation: float = 0.1
    """The probability that a choice is drawn anew, in evolution, nsga2 and regularised."""
    crossover: str = "uniform"
    """How evolution and nsga2 combine two parents: uniform or one_point. With uniform each choice comes
    from either parent. With one_point the first ones come from one parent and the rest from the other,
    which shares more of the scoring."""
    objectives: tuple[str, ...] = ("macs",)
    """Which costs nsga2 keeps low while the score is high: macs, params, latency, activations."""
    over_limit: str = "repair"
    """What nsga2 does with a network over a limit: repair or dominate. With dominate it breeds, unscored
    and dominated by all networks that are less over the limits."""
    sample: int = 10
    """How many networks regularised draws at a time; the best of them breeds."""
    brood: int = 10
    """How many mutants regularised scores at once."""

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
    """These options say on which images architectures are scored; all are scored on the same."""

    validation_images: int = 5000
    """How many images of the supernet's validation split are used, all classes in proportion; 0 takes all."""
    batch: int = 250
    """How many images are scored at once."""
    statistics: str = "cumulative"
    """Which BatchNorm statistics each network gets: cumulative, ema or supernet. With cumulative they are
    the mean over calibration batches. With ema they are a moving average, as in the released code of
    Single Path One-Shot. With supernet they stay as training left them."""
    calibration_images: int = 2048
    """How many training images, without augmentation, these statistics are taken from."""
    calibration_batch: int = 128
    """How many images are in a batch of these; only full batches are used."""
    momentum: float = 0.1
    """The weight of the newest batch when scoring.statistics is ema."""

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
class ArchitectureSearchConfig(KernelOptions, RunOptions):
    """These options say which supernet is searched, within which limits, and how."""

    UNLISTED: ClassVar[dict[str, type]] = {"data": DataConfig}
    """These options are for weights that do not say which images they saw. Where weights say it, the
    options may only repeat it."""
    USUAL: ClassVar[tuple[str, ...]] = (
        *("supernet", "method", "population", "generations", "max_macs", "max_params", "top"),
        *("data.root", "scoring.batch", "seed", "device", "run"),
    )
    EARLIER: ClassVar[dict[str, Any]] = KernelOptions.KERNELS_OF_BEFORE
    NAMES: ClassVar[dict[str, Iterable[str]]] = {"methods": METHODS}

    FILES: ClassVar[tuple[str, ...]] = ("supernet",)
    """These options name files that a new run reads."""

    run: str = "runs/evolution"
    supernet: str = "runs/supernet"
    """The supernet: the run of train_supernet.py, or a weights file."""
    method: str = "evolution"
    """How to search: {methods}, or your own. {methods.says}"""
    population: int = 50
    """How many architectures are scored together; in regularised also how many are alive."""
    generations: int = 20
    """How many populations are bred or drawn after the first. An exhaustive search goes on to the last
    network."""
    max_macs: float = 0.0
    """The most multiply-accumulates of a network (FLOPs in the papers' sense); 0 sets no limit."""
    max_params: float = 0.0
    """The most parameters of a network; 0 sets no limit."""
    max_latency: float = 0.0
    """The most milliseconds for a batch, by the table of --costs; 0 sets no limit."""
    max_activations: float = 0.0
    """The most MiB of activations that training keeps for each image, by the table of --costs; 0 sets no
    limit."""
    costs: str = ""
    """A table of measured latencies and activations. By default it is the costs.json beside the supernet."""
    canonical: bool = True
    """Count networks that differ only in where equal layers skip as one, like --paths.canonical in
    training."""
    top: int = 10
    """How many of the best networks are written as architectures."""
    compare: tuple[str, ...] = ()
    """Runs of other searches of this space, such as a random one, to draw into the figures."""
    breeding: BreedingOptions = field(default_factory=BreedingOptions)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    data: PlaceOptions = field(default_factory=PlaceOptions)
    """Where the images lie. Which images they are, the supernet says; what is not given is as in its
    training."""

    def __post_init__(self) -> None:
        self.check_run()
        self.check_kernels(precision=self.precision)
        if not self.supernet:
            raise Mistake("supernet", "name the run of a supernet, or its weights file")
        METHODS.check("method", self.method)
        check_range("population", self.population, 2, 1_000_000)
        check_range("generations", self.generations, 0)
        for name in ("max_macs", "max_params", "max_latency", "max_activations"):
            check_range(name, getattr(self, name), 0)
        check_range("top", self.top, 1)
        METHODS.check_idle("method", self.method, self)
