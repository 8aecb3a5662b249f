"""This module holds the options of make_truth.py; it is free of torch."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from local_learning.cuts.head_width import PAPER
from retrain.config import ClusterOptions, RetrainConfig, TrainingOptions
from supernet.network.choice import NetworkChoice
from supernet.options import FidelityOptions
from supernet.spaces import check_space
from tools.images.options import DataConfig
from tools.mistake import Mistake
from tools.options.config import MEANT_NOTHING, check_range, flatten, idle_options
from tools.options.recipes import Recipe
from tools.options.shared import CompileOptions, KernelOptions, RunOptions


@dataclass(frozen=True, kw_only=True)
class TruthConfig(TrainingOptions, CompileOptions, NetworkChoice, RunOptions):
    """The options say which networks to train, how often each, how many at once, and how."""

    USUAL: ClassVar[tuple[str, ...]] = (
        *("space", "networks", "architectures", "network", "decouplings", "repeats", "jobs"),
        *("data.name", "data.root", "fidelity.width", "recipe.epochs", "recipe.lr", "device", "run"),
    )
    LISTED_BY: ClassVar[dict[str, str]] = dict.fromkeys(
        ("data", "recipe", "local", "gluing"), "retrain_model.py"
    )
    EARLIER: ClassVar[dict[str, Any]] = {
        **NetworkChoice.EARLIER,
        **KernelOptions.KERNELS_OF_BEFORE,
        "head_width": lambda config: PAPER if config.decoupling or config.decouplings else "",
    }
    RETIRED: ClassVar[dict[str, Any]] = {
        **{"extend": False, "plan": False, "pipeline.transfer": "full"},
        **dict.fromkeys(("sync_batchnorm", "parallel", "pipeline.queue", "pipeline.patience"), MEANT_NOTHING),
        **{f"cluster.{each.name}": MEANT_NOTHING for each in fields(ClusterOptions)},
    }

    FILES: ClassVar[tuple[str, ...]] = (*NetworkChoice.FILES, "architectures")

    run: str = "runs/truth"
    space: str = ""
    """Draw --networks from this space: a preset, or a .toml or .json file of your own. With --architectures,
    it is the space of the lines in .jsonl files."""
    networks: int = 32
    """Draw this many different networks from --space; --seed decides which."""
    max_macs: float = 0.0
    """Draw only networks of at most this many multiply-accumulates (the papers' FLOPs); 0 draws any."""
    architectures: tuple[str, ...] = ()
    """Train these networks: architecture.json files, or .jsonl files whose lines have choices (with
    --space)."""
    decouplings: tuple[str, ...] = ()
    """Train one network with each of these in turn: decoupling.json files, uniform:K:HEAD, balanced:K:HEAD,
    published:K. --network or --architecture names the network."""
    repeats: int = 1
    """Train each network this many times: with --seed, with --seed + 1, and so on. The images stay split as
    by --seed."""
    jobs: int = 1
    """Run this many trainings at once in each launched process."""
    keep_weights: bool = False
    """Keep the weights of every training."""
    fidelity: FidelityOptions = field(default_factory=FidelityOptions)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        check_range("networks", self.networks, 1)
        check_range("max_macs", self.max_macs, 0)
        check_range("repeats", self.repeats, 1, 1000)
        check_range("jobs", self.jobs, 1)
        self._check_together()
        if self.decouplings:
            for text in self.decouplings:
                self._check_cut(text)
        elif self.has_source:
            source = "`architectures`" if self.architectures else "`space`"
            self.check_no_network(source, source)
            self.training(architecture="its own")
        else:
            self.training()

    @property
    def has_source(self) -> bool:
        """Return whether the options name networks."""
        return bool(self.space or self.architectures or self.decouplings)

    @property
    def draws(self) -> bool:
        """Return whether the networks are drawn."""
        return bool(self.space) and not self.architectures

    def check_source(self) -> None:
        """Refuse to go on without networks, because the options' defaults name none."""
        if not self.has_source:
            raise Mistake(
                "space",
                "name a space to draw `networks` from",
                "or give `architectures`, or `decouplings` of one network",
            )

    @property
    def images(self) -> DataConfig:
        """Return the options of the images that are trained on; `data` says those of the full size."""
        return self.fidelity.images(self.data)

    def training(self, **changes: Any) -> RetrainConfig:
        """Return the options of retrain_model.py for one of the trainings."""
        mine = {each.name for each in fields(self)}
        shared = {each.name: getattr(self, each.name) for each in fields(RetrainConfig) if each.name in mine}
        return RetrainConfig(**(shared | {"data": self.images, "trackers": ()} | changes))

    def idle(self) -> dict[str, str]:
        """Return the options that have no effect on any training, each with the reason."""
        if self.decouplings:
            trainings = [self.training(decoupling=text) for text in self.decouplings]
        else:
            trainings = [self.training(architecture="its own") if self.has_source else self.training()]
        first, *others = map(idle_options, trainings)
        mine = flatten(self)
        return {
            name: who
            for name, who in first.items()
            if name in mine and all(name in other for other in others)
        }

    def _check_cut(self, text: str) -> None:
        """Check the options of a training with one of the decouplings."""
        try:
            self.training(decoupling=text)
        except Mistake as mistake:
            raise (mistake.about("decouplings") if mistake.option == "decoupling" else mistake) from None

    def _check_together(self) -> None:
        if self.space:
            check_space(self.space, "space")
        for option, given in (("space", self.space), ("architectures", self.architectures)):
            if self.decouplings and given:
                raise Mistake(
                    "decouplings", f"cannot go with `{option}`", "the networks come from one of the two"
                )
        for name in ("width", "image_size"):
            if self.decouplings and getattr(self.fidelity, name) != getattr(FidelityOptions, name):
                own = "width" if name == "width" else "data.image_size"
                raise Mistake(
                    f"fidelity.{name}", "is about the networks of a `space`", f"one that is cut has `{own}`"
                )
        if self.decouplings and self.decoupling:
            raise Mistake("decoupling", "cannot go with `decouplings`", "add it to them")
        if (self.space or self.architectures) and self.architecture:
            raise Mistake(
                "architecture", "goes with `decouplings`", "one network or more are `architectures`"
            )
        for option, values in (("architectures", self.architectures), ("decouplings", self.decouplings)):
            for value in values:
                if values.count(value) > 1:
                    raise Mistake(option, f"{value} is named twice", "`repeats` trains again")
        lines = [path for path in self.architectures if path.endswith(".jsonl")]
        if lines and not self.space:
            raise Mistake("space", f"the lines of {lines[0]} do not say of which space they are", "name it")
        if self.space and self.architectures and not lines:
            raise Mistake("space", "cannot go with `architectures` that say of which space they are")
        for name in ("networks", "max_macs"):
            if not self.draws and getattr(self, name) != getattr(TruthConfig, name) and self.has_source:
                raise Mistake(name, "goes with `space` alone, which is drawn from")
        if self.decoupling.startswith("balanced:") and self.balance == "time":
            raise Mistake(
                "balance",
                "time measured beside other trainings means little, and each repeat would be cut elsewhere",
                "take macs or memory",
            )
