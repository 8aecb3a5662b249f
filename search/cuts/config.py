"""These are the options of search_decoupling.py. Free of torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from local_learning.catalogue import HEADS
from local_learning.cuts.head_width import PAPER, check_head_width
from local_learning.later.request import parse_later
from local_learning.networks.catalogue import NETWORKS
from supernet.network.choice import NetworkChoice
from tools.images.options import DataConfig
from tools.mistake import Mistake
from tools.options.config import check_choice, check_range, within
from tools.options.recipes import Recipe
from tools.options.shared import KernelOptions, RunOptions

SEDONA_2021 = "sedona-2021"
REPLACE, OLDEST = "replace", "oldest"


def _check_later(kind: str) -> None:
    """Check a head of later layers."""
    try:
        later = parse_later(kind)
    except Mistake as mistake:
        raise mistake.about("heads") from None
    if later is not None and later.slope:
        raise Mistake("heads", f"'{kind}' has a slope", "a search chooses the depth at each cut by itself")
    if later is not None and later.averaged:
        raise Mistake("heads", f"'{kind}' has copies that follow the layers, which a search does not move")


def searchable_heads() -> tuple[str, ...]:
    """Return those of our heads that give logits and nothing else, so that they can be mixed."""
    return tuple(name for name in HEADS.ours if HEADS[name].searchable)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """These options are for the bilevel search of alpha and beta (SEDONA, Algorithm 1 and Appendix E.1)."""

    steps: int = 2000
    """How many updates alpha and beta get."""
    inner_steps: int = 5
    """How many training steps come before the validation loss in each update (T)."""
    lr: float = 0.01
    """The learning rate of Adam for alpha and beta."""
    weight_decay: float = 1e-6
    """The weight decay of alpha and beta."""
    beta1: float = 0.9
    """The decay of the mean of gradients in this Adam."""
    beta2: float = 0.999
    """The decay of the mean of squared gradients in this Adam."""
    validation_batch: int = 1024
    """How many validation images each update uses."""
    statistics: str = "running"
    """Which BatchNorm statistics the validation loss uses: running or batch. With running they are as
    training left them. With batch they are those of the validation images, and are differentiated."""
    pretraining: bool = True
    """Train the weights by the recipe first, with alpha and beta at zero. Without, search begins with
    initial weights."""
    pretrained_run: str = ""
    """Take the weights that the pretraining of this run left, instead of pretraining again."""
    repeats: int = 1
    """How many searches start from the same pretraining, each with its own batches and draws. Their alpha
    and beta are averaged. Several searches show better than one how far another search would agree."""
    snapshots: int = 0
    """From how many weights inner optimisation may start, the best of pretraining (N). With 0, a tenth of
    those that were evaluated are kept, as in the paper. With 1 there is nothing to draw from."""
    memory: str = REPLACE
    """Which weights a step from drawn weights replaces: replace or oldest. With replace it replaces the
    drawn weights, so that all stay in use. Hypergradients are then divided by the inner learning rate,
    so that all weights count alike. With oldest it replaces the oldest weights, as in the paper. After
    some hundred updates all weights then descend from the same ones."""
    inner_lr: float = 0.0
    """The learning rate of the inner steps; 0 takes that of the pretraining step from which the weights
    are."""
    keep_snapshots_on: str = "host"
    """Where these weights are kept: host (memory), device, or disk."""
    keep_graphs: int = 1
    """How many inner steps, counted from the last, keep their graph instead of making it again. The first
    of them costs no memory; all others cost memory and save time."""
    compat: str = ""
    """Search as the released code does: sedona-2021. It differentiates the last training loss, and scales
    the heads' logits. It keeps the last snapshots instead of the best, and a step replaces the snapshot
    that it started from."""
    evaluate_every: int = 20
    """How many steps lie between records of alpha and beta."""
    checkpoint_every: int = 100
    """How many steps lie between checkpoints; one is always made at the end."""
    log_every: int = 10
    """How many steps lie between lines of metrics."""
    slack: float = 1.25
    """How much longer than with the best balanced cuts the longest block of cost-aware decouplings may
    take."""
    controls: int = 0
    """How many random decouplings of each kind of Table 4 are written for each number of blocks in show.
    The kinds are random cuts and random heads."""
    show: tuple[int, ...] = (2, 4, 8)
    """The numbers of blocks that figures and text are about."""

    def __post_init__(self) -> None:
        check_range("search.steps", self.steps, 1)
        check_range("search.inner_steps", self.inner_steps, 1)
        check_range("search.lr", self.lr, 0, open_low=True)
        check_range("search.weight_decay", self.weight_decay, 0)
        check_range("search.beta1", self.beta1, 0, 0.999999)
        check_range("search.beta2", self.beta2, 0, 0.999999)
        check_range("search.validation_batch", self.validation_batch, 1)
        check_choice("search.statistics", self.statistics, ("running", "batch"))
        check_range("search.repeats", self.repeats, 1, 1000)
        check_range("search.snapshots", self.snapshots, 0)
        check_choice("search.memory", self.memory, (REPLACE, OLDEST))
        check_range("search.inner_lr", self.inner_lr, 0)
        check_choice("search.keep_snapshots_on", self.keep_snapshots_on, ("host", "device", "disk"))
        check_range("search.keep_graphs", self.keep_graphs, 0)
        if self.compat:
            check_choice("search.compat", self.compat, (SEDONA_2021,))
            if self.inner_steps < 2:
                raise Mistake(
                    "search.inner_steps",
                    "the released code looks at the loss in front of the last step",
                    "it needs 2 or more",
                )
        for name in ("evaluate_every", "checkpoint_every", "log_every"):
            check_range(f"search.{name}", getattr(self, name), 1)
        check_range("search.slack", self.slack, 1)
        check_range("search.controls", self.controls, 0, 1000)
        if not self.show:
            raise Mistake("search.show", "name one number of blocks or more")
        for blocks in self.show:
            check_range("search.show", blocks, 2)
        if self.pretrained_run and not self.pretraining:
            raise Mistake("search.pretrained_run", "cannot go with `search.pretraining=False`")
        if self.compat and self.memory != REPLACE:
            raise Mistake("search.memory", "`search.compat` replaces the drawn weights", "leave it out")

    @property
    def per_rate(self) -> bool:
        """Whether hypergradients are divided by the inner learning rate, to which they are proportional."""
        return self.memory == REPLACE and not self.compat

    def kept(self, num_steps: int, evaluate_every: int) -> int:
        """Return how many of the weights that a pretraining of `num_steps` steps evaluates are kept."""
        evaluated = math.ceil(num_steps / evaluate_every)
        return self.snapshots or math.ceil(evaluated / 10)


def _recipe() -> Recipe:
    return Recipe(steps=40_000, weight_decay=1e-3, evaluate_every=80)


@dataclass(frozen=True, kw_only=True)
class DecouplingSearchConfig(NetworkChoice, KernelOptions, RunOptions):
    """These options say which network is searched, with which heads, on which data, and how."""

    USUAL: ClassVar[tuple[str, ...]] = (
        *("network", "architecture", "width", "heads", "search.steps", "search.show"),
        *("data.name", "data.root", "recipe.steps", "recipe.batch_size", "device", "seed", "run"),
    )
    EARLIER: ClassVar[dict[str, Any]] = {
        **NetworkChoice.EARLIER,
        **KernelOptions.KERNELS_OF_BEFORE,
        "search.memory": lambda config: REPLACE if config.search.compat else OLDEST,
        "search.snapshots": 50,
        "head_width": PAPER,
    }
    NAMES: ClassVar[dict[str, Iterable[str]]] = {"networks": NETWORKS, "heads": searchable_heads()}

    run: str = "runs/sedona"
    network: str = "resnet50"
    """The network: {networks}, timm/<model name>, or your own. It needs two layers or more."""
    weights: str = ""
    """Start from the layers and the classifier in this weights file: one of ours, or one with the timm
    model's own names."""
    precision: str = "fp32"
    """The precision: fp32, or fp64 to compare two ways exactly."""
    heads: tuple[str, ...] = ("aux1", "aux2", "aux3", "aux4")
    """The kinds of head to choose from: {heads}, and your own."""
    head_width: str = ""
    """How many hidden channels heads have: paper, map, or a factor on the papers' numbers. With paper they
    are the papers' numbers times --width. With map they fit the map that a head is on. By default it is
    paper for the papers' networks, and map for all others."""
    search: SearchOptions = field(default_factory=SearchOptions)
    data: DataConfig = field(default_factory=lambda: DataConfig(validation=0.4))
    recipe: Recipe = field(default_factory=_recipe)
    """The recipe of the pretraining and of the inner optimisation."""

    def __post_init__(self) -> None:
        self.check_run(precisions=("fp32", "fp64"))
        self.check_kernels(precision=self.precision)
        self.check_network()
        for kind in self.heads:
            HEADS.check("heads", kind, among=searchable_heads())
            if not HEADS[kind].searchable:
                raise Mistake("heads", f"'{kind}' says of itself that it cannot be searched")
            _check_later(kind)
        if self.head_width:
            check_head_width(self.head_width)
        if len(set(self.heads)) != len(self.heads) or not self.heads:
            raise Mistake("heads", "name one kind or more, each once")
        self._check_recipe()

    def _check_recipe(self) -> None:
        recipe, data = self.recipe, self.data
        fixed = {
            "optimizer": "sgd",
            "nesterov": False,
            "accumulate": 1,
            "decay_all": True,
            "clip_norm": 0.0,
            "ema": 0.0,
        }
        for name, value in fixed.items():
            if getattr(recipe, name) != value:
                raise Mistake(
                    f"recipe.{name}",
                    "the search differentiates plain SGD with momentum and weight decay",
                    f"leave it at {value}",
                )
        if data.mixup or data.cutmix:
            raise Mistake("`data.mixup` and `data.cutmix`", "leave them out of a search")
        if not data.validation:
            raise Mistake("data.validation", "the search needs validation images", "SEDONA takes 0.4")

    def idle(self) -> dict[str, str]:
        """Return the options that nobody looks at as the others stand, and who does not."""
        idle = within("data", self.data.idle_in_training())
        if self.search.pretraining:
            return idle
        idle |= dict.fromkeys(("recipe.checkpoint_every", "recipe.log_every"), "a search without pretraining")
        if self.search.memory == REPLACE:
            who = "a search from the initial weights alone"
            idle |= dict.fromkeys(("search.snapshots", "recipe.evaluate_every"), who)
        return idle
