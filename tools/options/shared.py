"""The options that every script which works in a run folder has; free of torch."""

from dataclasses import dataclass

from tools.mistake import Mistake
from tools.options.config import check_choice, check_range

# These name places and machines, not the work: a run may be continued with others.
FREE = frozenset(
    {"run", "device", "threads", "trackers", "data.root", "data.workers", "data.download", "extend"}
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where, on what machine, and from which seed."""

    run: str = "runs/run"
    """Folder of the run; starting on an existing run continues it."""
    seed: int = 0
    """Decides all that is random: initialisation, splits, order, augmentation, what is drawn."""
    device: str = "auto"
    """Where to compute: cpu, cuda, or auto, which takes cuda where there is any."""
    precision: str = "fp32"
    """fp32; mixed precision in bf16 or (on CUDA) fp16; or fp64, to compare two ways exactly."""
    threads: int = 0
    """CPU threads of each process; 0 shares the cores between the processes of a machine."""
    plugins: tuple[str, ...] = ()
    """Python files with parts of your own, whose names are then valid beside ours (docs/your_own.md)."""
    trackers: tuple[str, ...] = ()
    """Also report to these of Accelerate's trackers, such as tensorboard."""

    def check_run(self, *, precisions: tuple[str, ...] = ("fp32", "bf16", "fp16", "fp64")) -> None:
        """Refuse what is out of range."""
        if not self.run:
            raise Mistake("run", "name a folder")
        check_range("seed", self.seed, 0)
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("precision", self.precision, precisions)
        check_range("threads", self.threads, 0, 4096)


@dataclass(frozen=True, kw_only=True)
class ExtendOptions:
    """How a finished training is made longer."""

    extend: bool = False
    """Go on with a finished run up to the --recipe.steps or --recipe.epochs that are given now, where its
    schedule has no end: constant, or step."""


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """How a network is compiled."""

    compile: bool = False
    """Compile the network with torch.compile, a supernet candidate by candidate."""
    compile_mode: str = "default"
    """What torch.compile goes for: default, reduce-overhead (CUDA graphs) or max-autotune."""

    def check_fast(self) -> None:
        """Refuse what is unknown, or would not be looked at."""
        check_choice("compile_mode", self.compile_mode, ("default", "reduce-overhead", "max-autotune"))
        if self.compile_mode != "default" and not self.compile:
            raise Mistake("compile_mode", "goes with `compile`", "leave it out without")


@dataclass(frozen=True, kw_only=True)
class FastOptions(CompileOptions):
    """How a training is made fast, and the same on several processes."""

    sync_batchnorm: bool = True
    """Take BatchNorm statistics over all processes' parts of the batch, so that n give the numbers of one."""
