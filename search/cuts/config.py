"""The options of search_decoupling.py; free of torch."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from local_learning.catalogue import HEADS
from local_learning.cuts.head_width import PAPER, check_head_width
from supernet.network.choice import NetworkChoice
from tools.images.options import DataConfig
from tools.mistake import Mistake
from tools.options.config import check_choice, check_range
from tools.options.recipes import Recipe
from tools.options.shared import RunOptions

SEARCHABLE = tuple(name for name in HEADS.ours if HEADS[name].searchable)
"""Our heads that can be mixed: those that give logits and nothing else. A user's own must be like them."""

SEDONA_2021 = "sedona-2021"
REPLACE, OLDEST = "replace", "oldest"


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Bilevel optimisation of alpha and beta (SEDONA, Algorithm 1 and Appendix E.1)."""

    steps: int = 2000
    """Updates of alpha and beta."""
    inner_steps: int = 5
    """Training steps before the validation loss is looked at (T)."""
    lr: float = 0.01
    """Learning rate of Adam for alpha and beta."""
    weight_decay: float = 1e-6
    """Weight decay of alpha and beta."""
    beta1: float = 0.9
    """Decay of the mean of gradients in this Adam."""
    beta2: float = 0.999
    """Decay of the mean of their squares."""
    validation_batch: int = 1024
    """Validation images in each update."""
    statistics: str = "running"
    """BatchNorm in the validation loss: running (as training left them) or batch (of the validation images,
    and differentiated)."""
    pretraining: bool = True
    """Train the weights by the recipe with alpha and beta at zero first; without, search begins with
    initial weights."""
    pretrained_run: str = ""
    """Take the weights that the pretraining of this run left, instead of pretraining again."""
    repeats: int = 1
    """Searches from the same pretraining, each with batches and draws of its own; alpha and beta are their
    means. Several tell more surely than one how far another search would agree."""
    snapshots: int = 0
    """Weights to start inner optimisation from, the best of pretraining (N); 0 keeps a tenth of those that
    were evaluated, as the paper does. With 1 there is no sampling."""
    memory: str = REPLACE
    """What a step from drawn weights replaces. replace: the drawn weights, so that all stay in use;
    hypergradients are divided by the inner learning rate, so that all weights count alike. oldest: the oldest
    weights, as the paper has it; after some hundred updates all descend from the same ones."""
    inner_lr: float = 0.0
    """Learning rate of the inner steps; 0 takes that of the pretraining step which the weights are from."""
    keep_snapshots_on: str = "host"
    """Where these weights are kept: host (memory), device, or disk."""
    keep_graphs: int = 1
    """Inner steps, counted from the last, whose graph is kept instead of made again; all but the first cost
    memory and save time."""
    compat: str = ""
    """sedona-2021: search as the released code does. It differentiates the last training loss, scales the
    heads' logits, keeps the last snapshots instead of the best, and moves each in its place."""
    evaluate_every: int = 20
    """Steps between records of alpha and beta."""
    checkpoint_every: int = 100
    """Steps between checkpoints; one is always made at the end."""
    log_every: int = 10
    """Steps between lines of metrics."""
    slack: float = 1.25
    """For the cost-aware decouplings: how much longer the longest block may take than with the best
    balanced cuts."""
    controls: int = 0
    """So many random decouplings of each kind of Table 4 (random cuts, random heads) for each number of
    blocks in show."""
    show: tuple[int, ...] = (2, 4, 8)
    """Numbers of blocks that figures and text are about."""

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
        """How many of the weights that a pretraining of so many steps evaluates are kept."""
        evaluated = math.ceil(num_steps / evaluate_every)
        return self.snapshots or math.ceil(evaluated / 10)


def _recipe() -> Recipe:
    return Recipe(steps=40_000, weight_decay=1e-3, evaluate_every=80)


@dataclass(frozen=True, kw_only=True)
class DecouplingSearchConfig(NetworkChoice, RunOptions):
    """Which network, with which heads, on which data, and how to search."""

    USUAL: ClassVar[tuple[str, ...]] = (
        *("network", "architecture", "width", "heads", "search.steps", "search.show"),
        *("data.name", "data.root", "recipe.steps", "recipe.batch_size", "device", "seed", "run"),
    )
    EARLIER: ClassVar[dict[str, Any]] = {
        **NetworkChoice.EARLIER,
        "search.memory": lambda config: REPLACE if config.search.compat else OLDEST,
        "search.snapshots": 50,
        "head_width": PAPER,
    }

    run: str = "runs/sedona"
    network: str = "resnet50"
    """resnet18/34/50/101/152, resnet32, resnet110, vgg19, vgg6a, timm/<model name>, or your own."""
    weights: str = ""
    """Start from the trunk in this weights file: one of ours, or one with the timm model's own names."""
    precision: str = "fp32"
    """fp32, or fp64 to compare two ways exactly."""
    heads: tuple[str, ...] = ("aux1", "aux2", "aux3", "aux4")
    """The kinds of head to choose from: of aux1 to aux4, mlp_sr, conv1c2f, linear, and your own."""
    head_width: str = ""
    """Hidden channels of the heads: paper (the papers' numbers times --width), map (as fits the map that a
    head is on), or a factor on the papers' numbers. By default paper for the papers' networks, and map for
    all others."""
    search: SearchOptions = field(default_factory=SearchOptions)
    data: DataConfig = field(default_factory=lambda: DataConfig(validation=0.4))
    recipe: Recipe = field(default_factory=_recipe)
    """Of the pretraining and of the inner optimisation."""

    def __post_init__(self) -> None:
        self.check_run(precisions=("fp32", "fp64"))
        self.check_network()
        for kind in self.heads:
            HEADS.check("heads", kind, among=SEARCHABLE)
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
