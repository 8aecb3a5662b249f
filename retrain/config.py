"""The options of retrain_model.py; free of torch."""

from dataclasses import dataclass, field

from local_learning.options import GluingOptions, LocalLosses
from local_learning.requests import parse_request
from tools.config import check_choice, check_range
from tools.data import DataConfig
from tools.recipes import Recipe

RULES = ("backprop", "greedy", "replay", "gluing")

# These name places and machines, not the training: a run may be continued with others.
FREE = frozenset({"run", "device", "threads", "trackers", "data.root", "data.workers", "data.download"})


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Which network, on which data, by which recipe, on what machine."""

    run: str = "runs/retrain"
    """Folder of the run; starting on an existing run continues it."""
    network: str = "resnet18"
    """resnet18/34/50/101/152, resnet32, resnet110, vgg19, vgg6a, mlp, or timm/<model name>."""
    width: float = 1.0
    """Factor on the number of channels of the papers' networks."""
    dropout: float = 0.0
    """Dropout before the classifier, for the networks that have it."""
    drop_path: float = 0.0
    """Rate of stochastic depth, for the timm models that have it."""
    init: str = "fan_in"
    """Kaiming initialisation of the papers' networks: fan_in or fan_out."""
    stem: str = "fused"
    """A ResNet's stem: part of its first layer (fused, as in SEDONA) or a layer (unit, as in DGL)."""
    pretrained: bool = False
    """Start a timm model from its published weights (from timm's cache, or fetched)."""
    weights: str = ""
    """Start from this weights file: one of ours, or one with the timm model's own names."""
    reset_classifier: bool = False
    """Leave the classifier as initialised when --weights come from a set of other classes."""
    decoupling: str = ""
    """Where to cut and with which heads: a decoupling.json, uniform:K:HEAD, balanced:K:HEAD or published:K
    for K blocks. Heads: aux1 to aux4, mlp_sr, predsim, infopro, infopro_contrast, conv1c2f, linear."""
    rule: str = ""
    """How the blocks learn: backprop (the cuts are ignored), greedy, replay (Features Replay) or gluing
    (BlockProp). By default greedy with --decoupling, backprop without."""
    groups: int = 1
    """Neuron groups that each block is split into, in width (GN-DGL); the classifier is then alone."""
    uneven_groups: bool = False
    """Let groups differ by one channel where they do not divide the channels."""
    balance: str = "time"
    """What balanced:K:HEAD makes equal: time (measured here), macs, or memory (activations kept)."""
    block_rates: tuple[float, ...] = ()
    """Factor on the learning rate of each block; none: 1 for all."""
    alignment: bool = False
    """At each evaluation, also take the cosine between each layer's gradient and backpropagation's."""
    seed: int = 0
    """Decides initialisation, splits, order, augmentation and dropout."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: str = "fp32"
    """fp32; mixed precision in bf16 or (on CUDA) fp16; or fp64, to compare two ways exactly."""
    threads: int = 0
    """CPU threads of each process; 0 shares the cores between the processes of a machine."""
    compile: bool = False
    """Compile the network with torch.compile."""
    compile_mode: str = "default"
    """default, reduce-overhead (CUDA graphs) or max-autotune."""
    sync_batchnorm: bool = True
    """Take BatchNorm statistics over all processes' parts of the batch, so that n give the numbers of one."""
    trackers: tuple[str, ...] = ()
    """Also report to these of Accelerate's trackers, such as tensorboard."""
    local: LocalLosses = field(default_factory=LocalLosses)
    gluing: GluingOptions = field(default_factory=GluingOptions)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("--run: name a folder")
        check_range("--width", self.width, 0, open_low=True)
        check_range("--dropout", self.dropout, 0, 0.99)
        check_range("--drop-path", self.drop_path, 0, 0.99)
        check_choice("--init", self.init, ("fan_in", "fan_out"))
        check_choice("--stem", self.stem, ("fused", "unit"))
        check_range("--seed", self.seed, 0)
        check_choice("--device", self.device, ("auto", "cpu", "cuda"))
        check_choice("--precision", self.precision, ("fp32", "bf16", "fp16", "fp64"))
        check_range("--threads", self.threads, 0)
        check_choice("--compile-mode", self.compile_mode, ("default", "reduce-overhead", "max-autotune"))
        self._check_decoupling()
        if self.pretrained and self.weights:
            raise ValueError("--pretrained: cannot go with --weights; choose one")
        if self.reset_classifier and not self.weights:
            raise ValueError("--reset-classifier: goes with --weights; there is nothing to reset without it")

    @property
    def chosen_rule(self) -> str:
        """The rule asked for, or the one that goes with having cuts or not."""
        return self.rule or ("greedy" if self.decoupling else "backprop")

    def _check_decoupling(self) -> None:
        check_range("--groups", self.groups, 1)
        check_choice("--balance", self.balance, ("time", "macs", "memory"))
        for rate in self.block_rates:
            check_range("--block-rates", rate, 0)
        if self.rule:
            check_choice("--rule", self.rule, RULES)
        if self.decoupling:
            parse_request(self.decoupling)
        elif self.chosen_rule != "backprop":
            raise ValueError(f"--rule: {self.rule} needs --decoupling, such as uniform:4:aux2")
        elif self.alignment:
            raise ValueError("--alignment: compares the gradients of blocks; it needs --decoupling")
        elif self.groups > 1:
            raise ValueError("--groups: splits the blocks of a --decoupling, such as uniform:4:conv1c2f")
        if self.chosen_rule == "gluing" and self.precision in ("bf16", "fp16"):
            raise ValueError(
                f"--precision: gluing variables move by less than {self.precision} can tell; use fp32"
            )
        if self.gluing.cache and self.chosen_rule == "gluing":
            self._check_cache()

    def _check_cache(self) -> None:
        changes = ("mixup", "cutmix", "rotate", "cutout", "color_jitter", "auto_augment", "erase")
        if self.data.augment != "none" or any(getattr(self.data, name) for name in changes):
            raise ValueError(
                "--gluing.cache: gluing variables are kept for each image, which must not change from one "
                f"visit to the next; it goes with --data.augment none, without {', '.join(changes)}"
            )
