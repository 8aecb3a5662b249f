"""This module holds the options of retrain_model.py; it is free of torch."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from local_learning.catalogue import HEADS
from local_learning.cuts.head_width import PAPER, check_head_width
from local_learning.cuts.requests import parse_request
from local_learning.decoupling import Decoupling, load_decoupling
from local_learning.later.request import parse_later
from local_learning.options import GluingOptions, LocalLosses
from local_learning.published import published
from local_learning.rules.catalogue import RULES, RuleRow, usual_rule
from supernet.network.choice import NetworkChoice
from tools.images.options import DataConfig
from tools.mistake import Mistake
from tools.options.config import check_choice, check_idle, check_range, within
from tools.options.recipes import Recipe
from tools.options.shared import FREE, ExtendOptions, FastOptions, KernelOptions, RunOptions

PARALLEL = ("none", "data", "blocks")

HELP_FROM_ABOVE = ("whole_first", "join_last", "refresh", "movement")
"""By these options of `local`, blocks are not wholly apart, or not all of the time."""

FREE_IN_RETRAINING = FREE | {
    *("parallel", "plan", "pipeline.queue", "pipeline.patience"),
    *(f"cluster.{name}" for name in ("devices", "profile", "speed", "bandwidth", "latency", "memory")),
}
"""These options change no result beyond rounding, so a run may be continued with other values of them."""


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """The options say how blocks on processes of their own work together (--parallel blocks)."""

    queue: int = 4
    """Let this many batches be under way between two neighbouring blocks. Neither block then waits for every
    delay of the other. With greedy rules the weights do not depend on it, but memory does."""
    transfer: str = "full"
    """Send activations between blocks as they are (full), or rounded to half as many bytes (bf16)."""
    patience: float = 28.0
    """End the run when a process gives no sign of life for this many seconds. A process that lives but makes
    no progress has twice as long, or 20 times its longest step if that is longer."""

    def __post_init__(self) -> None:
        check_range("pipeline.queue", self.queue, 1)
        check_choice("pipeline.transfer", self.transfer, ("full", "bf16"))
        check_range("pipeline.patience", self.patience, 5)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The options describe the machines for which --plan computes; they need not be here."""

    devices: tuple[int, ...] = (8, 64, 512)
    """Plan for these numbers of devices."""
    profile: str = ""
    """Read the blocks' times and sizes from this file; if it is missing, measure them here and write it. A
    file may come from elsewhere, such as from a device of the cluster's kind."""
    speed: float = 1.0
    """Take a device of the cluster to be this many times as fast as the measured one."""
    bandwidth: float = 10.0
    """Take the link of each device to the others to carry this many GB/s."""
    latency: float = 20.0
    """Take one message to need this many microseconds."""
    memory: float = 0.0
    """Take one device to have this many GiB of memory, to say what does not fit; 0 means unknown."""

    def __post_init__(self) -> None:
        for count in self.devices:
            check_range("cluster.devices", count, 1, 1_000_000)
        check_range("cluster.speed", self.speed, 0, open_low=True)
        check_range("cluster.bandwidth", self.bandwidth, 0, open_low=True)
        check_range("cluster.latency", self.latency, 0)
        check_range("cluster.memory", self.memory, 0)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options say how one network is trained, whole or in blocks, on any number of processes."""

    NAMES: ClassVar[dict[str, Iterable[str]]] = {"heads": HEADS, "rules": RULES}

    reset_classifier: bool = False
    """Leave the classifier as initialised when --weights come from a set of other classes."""
    decoupling: str = ""
    """Cut the network as a decoupling.json says, or into K blocks by uniform:K:HEAD, balanced:K:HEAD or
    published:K. The heads are {heads}, and your own. {heads.says}"""
    head_width: str = ""
    """Set the hidden channels of the heads at the cuts: paper (the papers' numbers times --width), map (as
    fits a head's map), or a factor on the papers' numbers. The default is what the file of --decoupling says,
    or paper if it says nothing. Without a file, it is paper for the papers' networks, and map for all
    others."""
    rule: str = ""
    """Train the blocks by one of these rules: {rules}, or your own. The default is greedy with --decoupling,
    and backprop without. {rules.says}"""
    groups: int = 1
    """Split each block into this many neuron groups, in width (GN-DGL). The classifier is then a block of its
    own."""
    uneven_groups: bool = False
    """Let groups differ by one channel where they do not divide the channels."""
    balance: str = "time"
    """Make the blocks of balanced:K:HEAD equal in time (measured here), macs or memory (activations kept)."""
    block_rates: tuple[float, ...] = ()
    """Multiply the learning rate of each block by its factor; by default, every factor is 1."""
    alignment: bool = False
    """Also report at each evaluation the cosine between each layer's gradient and backpropagation's. It is
    the mean since the last evaluation, and takes two more passes of each batch that is measured."""
    alignment_every: int = 1
    """Measure --alignment on every n-th batch, counted from each evaluation; 1 measures every batch."""
    local: LocalLosses = field(default_factory=LocalLosses)
    gluing: GluingOptions = field(default_factory=GluingOptions)


@dataclass(frozen=True, kw_only=True)
class RetrainConfig(TrainingOptions, ExtendOptions, FastOptions, NetworkChoice, RunOptions):
    """The options say which network to train, on which data, by which recipe, on what machine."""

    USUAL: ClassVar[tuple[str, ...]] = (
        *("network", "architecture", "decoupling", "rule", "weights", "parallel"),
        *("data.name", "data.root", "recipe.epochs", "recipe.batch_size", "recipe.lr", "device", "run"),
    )
    EARLIER: ClassVar[dict[str, Any]] = {
        **NetworkChoice.EARLIER,
        **KernelOptions.KERNELS_OF_BEFORE,
        "head_width": lambda config: PAPER if config.decoupling else "",
    }

    run: str = "runs/retrain"
    parallel: str = "data"
    """Share the rows of each batch among processes (data), or the blocks (blocks), or refuse several
    processes (none). With blocks, each block is trained on a process of its own, which sends its activations
    on. With more processes than blocks, they also share the rows. With one process for each of the --groups
    of all blocks, each process has one group."""
    plan: bool = False
    """Train nothing, but measure the blocks and print how --cluster.devices would share them. The plan also
    says how fast that would be, and what limits it."""
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        self.check_run()
        self.check_network()
        self.check_fast()
        self.check_kernels(precision=self.precision, compile=self.compile)
        self._check_decoupling()
        self._check_parallel()
        if self.reset_classifier and not self.weights:
            raise Mistake("reset_classifier", "goes with `weights`", "there is nothing to reset without it")

    @property
    def chosen_rule(self) -> str:
        """Return the rule that is asked for, or the usual rule with or without cuts."""
        return self.rule or usual_rule(cut=bool(self.decoupling))

    @property
    def rule_row(self) -> RuleRow:
        """Return the facts about the chosen rule."""
        return RULES[self.chosen_rule]

    def _check_decoupling(self) -> None:
        RULES.check("rule", self.chosen_rule)
        rule = self.rule_row
        check_range("groups", self.groups, 1)
        check_choice("balance", self.balance, ("time", "macs", "memory"))
        for rate in self.block_rates:
            check_range("block_rates", rate, 0)
        widened = self.head_width not in ("", PAPER)  # all older runs, of any kind, have PAPER
        if widened:
            check_head_width(self.head_width)
            if self.decoupling and not rule.trains_heads:
                raise Mistake("head_width", f"`rule` {self.chosen_rule} trains no heads", "leave it out")
        if self.decoupling:
            parse_request(self.decoupling)
        elif rule.cuts:
            raise Mistake("rule", f"{self.rule} needs `decoupling`, such as uniform:4:aux2")
        elif self.alignment:
            raise Mistake("alignment", "compares the gradients of blocks", "it needs `decoupling`")
        elif widened:
            raise Mistake("head_width", "is about the heads of a `decoupling`", "leave it out without")
        elif self.groups > 1:
            raise Mistake("groups", "splits the blocks of a `decoupling`, such as uniform:4:conv1c2f")
        elif self.uneven_groups or self.balance != "time":
            option = "uneven_groups" if self.uneven_groups else "balance"
            raise Mistake(option, "is about the blocks of a `decoupling`", "leave it out without")
        else:
            check_idle("local", self.local, (), "a training without `decoupling`")
        check_range("alignment_every", self.alignment_every, 1)
        if self.alignment_every > 1 and not self.alignment:
            raise Mistake("alignment_every", "goes with `alignment`", "nothing is measured without")
        if self.alignment and not self.data.validation:
            raise Mistake(
                "alignment",
                "is measured when the training evaluates, which `data.validation` 0 turns off",
                "leave out one of them",
            )
        self._check_help_from_above()
        RULES.check_idle("rule", self.chosen_rule, self)
        if not rule.in_halves and self.precision in ("bf16", "fp16"):
            raise Mistake(
                "precision",
                f"`rule` {self.chosen_rule} moves by less than {self.precision} tells",
                "use fp32",
            )
        if self.gluing.cache:
            self._check_cache()

    def _check_help_from_above(self) -> None:
        """Check the options by which blocks are not wholly apart, or not all of the time."""
        local = self.local
        if local.whole_first + local.join_last > 100:
            raise Mistake(
                "`local.whole_first` and `local.join_last`",
                "are more than all steps together",
                "give at most 100 % for both",
            )
        for name in HELP_FROM_ABOVE:
            if getattr(local, name) and self.groups > 1:
                raise Mistake(f"local.{name}", "is for blocks without neuron groups", "leave out `groups`")
        for name in ("whole_first", "join_last"):
            if getattr(local, name) and self.parallel == "blocks":
                raise Mistake(
                    f"local.{name}",
                    "trains the whole network, which no process of `parallel` blocks has",
                    "leave one of the two out",
                )
            if getattr(local, name) and self.extend:
                raise Mistake(
                    f"local.{name}", "is a part of the length, which `extend` changes", "start a new run"
                )
            if getattr(local, name) and not self.rule_row.trains_heads:
                raise Mistake(f"local.{name}", f"`rule` {self.chosen_rule} has blocks without heads")
            if getattr(local, name) and self.precision == "fp16":
                raise Mistake(
                    f"local.{name}",
                    "blocks that go backward together cannot each scale their gradients",
                    "use bf16 or fp32",
                )

    def _check_parallel(self) -> None:
        check_choice("parallel", self.parallel, PARALLEL)
        if self.plan and not self.decoupling:
            raise Mistake(
                "plan", "shares blocks among devices", "it needs `decoupling`, such as uniform:4:aux2"
            )
        if self.parallel != "blocks" and self.pipeline.transfer != "full":
            raise Mistake("pipeline.transfer", "rounds what `parallel` blocks sends", "leave it out without")
        if self.parallel != "blocks":
            return
        if not self.rule_row.cuts:
            raise Mistake(
                "`parallel` blocks", "needs `decoupling`, such as balanced:2:aux2, and a rule but backprop"
            )
        if self.alignment:
            raise Mistake(
                "alignment",
                "compares with backpropagation through all blocks, which no process of "
                "`parallel` blocks holds",
                "leave one of them out",
            )
        if self.precision == "fp16":
            raise Mistake(
                "precision",
                "blocks on processes of their own would each scale its gradients in its own way",
                "with `parallel` blocks use bf16 or fp32",
            )
        if self.pipeline.transfer == "bf16" and not self.rule_row.in_halves:
            raise Mistake(
                "pipeline.transfer", f"`rule` {self.chosen_rule} moves by less than bf16 tells", "use full"
            )

    def _check_cache(self) -> None:
        changes = ("mixup", "cutmix", "rotate", "cutout", "color_jitter", "auto_augment", "erase")
        if self.data.augment != "none" or any(getattr(self.data, name) for name in changes):
            raise Mistake(
                "gluing.cache",
                "gluing variables are kept for each image, which must not change from one visit to the next",
                f"it goes with `data.augment` none, without {', '.join(changes)}",
            )

    def idle(self) -> dict[str, str]:
        """Return the options that have no effect beside the other options' values, each with the reason."""
        idle = within("data", self.data.idle_in_training())
        if not self.plan:  # a plan takes the command of a training as it stands
            idle |= {f"cluster.{each.name}": "a training without `plan`" for each in fields(ClusterOptions)}
        if self.parallel != "blocks" and not self.plan:
            idle |= dict.fromkeys(("pipeline.queue", "pipeline.patience"), f"`parallel` {self.parallel}")
        if self.parallel == "none":
            idle["sync_batchnorm"] = "`parallel` none"
        if not self.data.validation and self.data.name != "folder":  # which may have a folder of them
            idle["recipe.evaluate_every"] = "`data.validation` 0"
        return idle | self._idle_in_blocks()

    def _idle_in_blocks(self) -> dict[str, str]:
        """What the way in which this network is cut leaves idle."""
        idle: dict[str, str] = {}
        if not self.decoupling:
            return idle
        request = parse_request(self.decoupling)
        if request.kind != "balanced":
            idle["balance"] = f"`decoupling` {self.decoupling}"
        if request.kind != "file" and self.groups == 1:
            idle["uneven_groups"] = "`groups` 1"
        if not self.rule_row.trains_heads:
            return idle | {f"local.{each.name}": f"`rule` {self.chosen_rule}" for each in fields(LocalLosses)}
        asked = self._asked()
        if asked is None:
            return idle
        grouped = self.groups > 1 or asked.groups != 1
        who = f"a training with heads {', '.join(dict.fromkeys(asked.heads))}"
        return idle | {f"local.{name}": who for name in self.local.idle_with(asked.heads, grouped=grouped)}

    def _asked(self) -> Decoupling | None:
        """Any cuts with the heads that --decoupling asks for; None where these are not known."""
        request = parse_request(self.decoupling)
        with contextlib.suppress(ValueError, OSError):  # which are told where the cuts are settled
            match request.kind:
                case "file":
                    asked = load_decoupling(request.path)
                    list(map(parse_later, asked.heads))
                    return asked
                case "published":
                    return published(self.network, request.num_blocks)
                case _:
                    return Decoupling((1,), (request.head,))
        return None
