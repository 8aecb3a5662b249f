"""These are the options of train_supernet.py. Free of torch."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from supernet.options import (
    CLASSIFIER_INITS,
    OBJECTIVES,
    STRATEGIES,
    ContrastOptions,
    FidelityOptions,
    LayerwiseOptions,
    PathOptions,
)
from supernet.spaces import check_space
from tools.images.options import DataConfig
from tools.mistake import Mistake
from tools.options.config import check_choice, check_range, within
from tools.options.recipes import Recipe
from tools.options.shared import ExtendOptions, FastOptions, KernelOptions, RunOptions


def check_shift_images(option: str, count: int) -> None:
    """Refuse a number of images that is too small to compare modules on."""
    check_range(option, count, 0)
    if 0 < count < 4:
        raise Mistake(option, "modules are compared on 4 images or more", "0: they are not")


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """These options say what is recorded during the training, at each evaluation, and at its end."""

    probes: int = 4
    """How many random architectures are scored on validation images, beside the cheapest and the dearest."""
    validation_images: int = 0
    """How many validation images score them, with all classes in proportion; 0 takes all."""
    calibration_images: int = 2048
    """How many training images give a single network its BatchNorm statistics; they are the same for all
    networks."""
    calibration_batch: int = 128
    """How many images are in a batch of these. The statistics are the mean over batches."""
    shift_images: int = 1000
    """How many validation images are used to compare the outputs of each layer's modules; 0 compares none."""
    snapshots: bool = False
    """Keep the supernet of each evaluation in snapshots/, for a report on how its ranking develops."""
    latency_batch: int = 1
    """The batch size for which each candidate's latency is measured at the end; 0 measures nothing."""

    def __post_init__(self) -> None:
        check_range("records.probes", self.probes, 0, 1000)
        check_range("records.validation_images", self.validation_images, 0)
        check_range("records.calibration_images", self.calibration_images, 2)
        check_range("records.calibration_batch", self.calibration_batch, 2)
        check_shift_images("records.shift_images", self.shift_images)
        check_range("records.latency_batch", self.latency_batch, 0)


@dataclass(frozen=True, kw_only=True)
class SupernetConfig(ExtendOptions, FastOptions, RunOptions):
    """These options say which space is trained, how, on which data, by which recipe and on what machine."""

    USUAL: ClassVar[tuple[str, ...]] = (
        *("space", "strategy", "data.name", "data.root", "data.image_size", "fidelity.width"),
        *("recipe.epochs", "recipe.batch_size", "recipe.lr", "precision", "device", "seed", "run"),
    )
    EARLIER: ClassVar[dict[str, Any]] = {"classifier_init": "timm", **KernelOptions.KERNELS_OF_BEFORE}
    NAMES: ClassVar[dict[str, Iterable[str]]] = {"strategies": STRATEGIES, "objectives": OBJECTIVES}

    FILES: ClassVar[tuple[str, ...]] = ("weights",)
    """These options name files that a new run reads."""

    run: str = "runs/supernet"
    space: str = "nas_bench_macro"
    """The space: lwsl_table1, lwsl_fit, cream, nas_bench_macro, tiny, your own, or its .toml or .json
    file."""
    strategy: str = "spos"
    """How a batch trains the supernet: {strategies}, or your own. {strategies.says}"""
    objective: str = "cross_entropy"
    """What the supernet is trained for: {objectives}, or your own. {objectives.says}"""
    weights: str = ""
    """Start from the weights of another supernet of this space."""
    tail_steps: int = 0
    """How many steps follow those of the recipe, to train only the classifier or the tail, on uniform
    paths. After infonce they train the classifier; after --layerwise.last-decoder local they train the
    tail."""
    classifier_init: str = "torch"
    """How the classifier is initialised: torch or timm. With torch, losses begin near log(classes). With
    timm, weights are uniform within 1/sqrt(classes), which suits the thousand classes of ImageNet."""
    fidelity: FidelityOptions = field(default_factory=FidelityOptions)
    paths: PathOptions = field(default_factory=PathOptions)
    layerwise: LayerwiseOptions = field(default_factory=LayerwiseOptions)
    contrast: ContrastOptions = field(default_factory=ContrastOptions)
    records: RecordOptions = field(default_factory=RecordOptions)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        self.check_run()
        self.check_fast()
        self.check_kernels(precision=self.precision, compile=self.compile)
        if not self.space:
            raise Mistake("space", "name a preset or a file")
        check_space(self.space, "space")
        STRATEGIES.check("strategy", self.strategy)
        OBJECTIVES.check("objective", self.objective)
        check_choice("classifier_init", self.classifier_init, CLASSIFIER_INITS)
        check_range("tail_steps", self.tail_steps, 0)
        if self.extend and self.tail_steps:
            raise Mistake("extend", "cannot go with `tail_steps`, which are trained behind the last step")
        self._check_recipe()
        self._check_objective()
        self._check_idle()
        _ = self.images
        if self.precision == "fp16" and self.layerwise.update == "deferred":
            raise Mistake(
                "layerwise.update", "fp16 scales its losses anew at each update", "leave it immediate"
            )

    @property
    def images(self) -> DataConfig:
        """The options of the images that are trained on; `data` says those of the full size."""
        return self.fidelity.images(self.data)

    @property
    def trains_tail_apart(self) -> str:
        """The part that the strategy leaves untrained: fc, tail, or nothing."""
        local = self.layerwise.last_decoder == "local"
        if local and STRATEGIES[self.strategy].looks_at("layerwise.last_decoder"):
            return "tail"
        return "" if OBJECTIVES[self.objective].labels else "fc"

    def _check_idle(self) -> None:
        """Refuse options that this strategy or objective does not look at."""
        by = f"`strategy` {self.strategy} by `objective` {self.objective}"
        STRATEGIES.check_idle("strategy", self.strategy, self, by)
        OBJECTIVES.check_idle("objective", self.objective, self, by)

    def _check_recipe(self) -> None:
        if self.recipe.accumulate > 1:
            raise Mistake(
                "recipe.accumulate",
                "a supernet's batch is not run in parts",
                "greedy and nongreedy need less memory",
            )
        if self.recipe.ema:
            raise Mistake("recipe.ema", "a supernet keeps no average of its weights", "leave it at 0")

    def _check_objective(self) -> None:
        if self.tail_steps and not self.trains_tail_apart:
            raise Mistake(
                "tail_steps",
                "this training has trained the tail already",
                "they go with `objective` infonce or `layerwise.last_decoder` local",
            )
        if self.trains_tail_apart and not self.tail_steps:
            raise Mistake(
                "tail_steps",
                f"this training leaves the {self.trains_tail_apart} untrained, and no "
                "architecture could be scored",
                "give some",
            )
        if not OBJECTIVES[self.objective].labels and (self.data.mixup or self.data.cutmix):
            raise Mistake(
                "`data.mixup` and `data.cutmix`", f"mix labels, which {self.objective} does not use"
            )

    def idle(self) -> dict[str, str]:
        """Return the options that have no effect beside the other options' values, each with the reason."""
        return within("data", self.data.idle_in_training())
