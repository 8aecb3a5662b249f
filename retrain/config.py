"""The options of retrain_model.py; free of torch."""

from dataclasses import dataclass, field

from local_learning.options import GluingOptions, LocalLosses
from local_learning.requests import parse_request
from supernet.chosen import NetworkChoice
from tools.config import check_choice, check_range
from tools.data import DataConfig
from tools.options import FastOptions, RunOptions
from tools.recipes import Recipe

RULES = ("backprop", "greedy", "replay", "gluing")


@dataclass(frozen=True, kw_only=True)
class RetrainConfig(FastOptions, NetworkChoice, RunOptions):
    """Which network, on which data, by which recipe, on what machine."""

    run: str = "runs/retrain"
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
    local: LocalLosses = field(default_factory=LocalLosses)
    gluing: GluingOptions = field(default_factory=GluingOptions)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        self.check_run()
        self.check_network()
        self.check_fast()
        self._check_decoupling()
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
