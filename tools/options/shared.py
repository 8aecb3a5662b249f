"""This module holds the options of every script that works in a run folder; it is free of torch."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tools.mistake import Mistake
from tools.options.config import check_choice, check_range

# These options name places and machines, not the work, so a run may be continued with other values.
FREE = frozenset(
    {"run", "device", "threads", "trackers", "data.root", "data.workers", "data.download", "extend"}
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options say where to work, on what machine, and from which seed."""

    run: str = "runs/run"
    """Keep the run in this folder; starting again on an existing run continues it."""
    seed: int = 0
    """Set the seed of everything random: initialisation, splits, order of images, augmentation, draws."""
    device: str = "auto"
    """Compute on cpu, cuda or auto, which takes cuda where there is a GPU."""
    precision: str = "fp32"
    """Compute in fp32, in mixed precision (bf16, or fp16 on CUDA), or in fp64. fp64 serves to compare two
    ways of computing exactly."""
    threads: int = 0
    """Use this many CPU threads in each process; 0 shares a machine's cores among its processes."""
    plugins: tuple[str, ...] = ()
    """Load these Python files with parts of your own. Their names are then valid beside ours
    (docs/your_own.md)."""
    trackers: tuple[str, ...] = ()
    """Also report to these trackers of Accelerate, such as tensorboard."""

    def check_run(self, *, precisions: tuple[str, ...] = ("fp32", "bf16", "fp16", "fp64")) -> None:
        """Refuse values that are out of range."""
        if not self.run:
            raise Mistake("run", "name a folder")
        check_range("seed", self.seed, 0)
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("precision", self.precision, precisions)
        check_range("threads", self.threads, 0, 4096)


@dataclass(frozen=True, kw_only=True)
class ExtendOptions:
    """The options say how a finished training is made longer."""

    extend: bool = False
    """Continue a finished run up to the --recipe.steps or --recipe.epochs that are given now. Its schedule
    must have no end: constant, or step."""


@dataclass(frozen=True, kw_only=True)
class KernelOptions:
    """The option says by whose functions a CPU computes."""

    KERNELS_OF_BEFORE: ClassVar[dict[str, Any]] = {"kernels": "torch"}
    """What runs did before there was a choice."""

    kernels: str = "auto"
    """On a CPU, compute BatchNorm, ReLU and depthwise convolutions by torch's functions (torch) or by
    Cleave's own (native), which are faster and differ in rounding alone. auto takes native where there is a
    C compiler, in fp32 and without --compile. bf16 is native, and the
    other convolutions multiply in bf16 in training, which is faster on CPUs with AVX512-BF16 or AMX."""

    def check_kernels(self, *, precision: str, compile: bool = False) -> None:
        """Refuse a choice that is unknown, or that nothing would look at."""
        check_choice("kernels", self.kernels, ("auto", "native", "bf16", "torch"))
        if self.kernels in ("native", "bf16"):
            for name, value, wanted in (
                ("precision", precision != "fp32", "`precision` fp32"),
                ("compile", compile, "`compile=False`"),
            ):
                if value:
                    raise Mistake(
                        "kernels", f"{self.kernels} goes with {wanted}", f"leave it out with this `{name}`"
                    )


@dataclass(frozen=True, kw_only=True)
class CompileOptions(KernelOptions):
    """The options say how a network is compiled."""

    compile: bool = False
    """Compile the network with torch.compile; a supernet is compiled candidate by candidate."""
    compile_mode: str = "default"
    """Choose the mode of torch.compile: default, reduce-overhead (CUDA graphs) or max-autotune."""

    def check_fast(self) -> None:
        """Refuse values that are unknown, or that nothing would look at."""
        check_choice("compile_mode", self.compile_mode, ("default", "reduce-overhead", "max-autotune"))
        if self.compile_mode != "default" and not self.compile:
            raise Mistake("compile_mode", "goes with `compile`", "leave it out without")


@dataclass(frozen=True, kw_only=True)
class FastOptions(CompileOptions):
    """The options say how a training is made fast, and how several processes give the result of one."""

    sync_batchnorm: bool = True
    """Take BatchNorm statistics over the whole batch of all processes. Several processes then give the
    numbers of one."""
