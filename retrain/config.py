"""The options of retrain_model.py; free of torch."""

from dataclasses import dataclass, field

from tools.config import check_choice, check_range
from tools.data import DataConfig
from tools.recipes import Recipe

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
    pretrained: bool = False
    """Start a timm model from its published weights (from timm's cache, or fetched)."""
    weights: str = ""
    """Start from this weights file: one of ours, or one with the timm model's own names."""
    reset_classifier: bool = False
    """Leave the classifier as initialised when --weights come from a set of other classes."""
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
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("--run: name a folder")
        check_range("--width", self.width, 0, open_low=True)
        check_range("--dropout", self.dropout, 0, 0.99)
        check_range("--drop-path", self.drop_path, 0, 0.99)
        check_choice("--init", self.init, ("fan_in", "fan_out"))
        check_range("--seed", self.seed, 0)
        check_choice("--device", self.device, ("auto", "cpu", "cuda"))
        check_choice("--precision", self.precision, ("fp32", "bf16", "fp16", "fp64"))
        check_range("--threads", self.threads, 0)
        check_choice("--compile-mode", self.compile_mode, ("default", "reduce-overhead", "max-autotune"))
        if self.pretrained and self.weights:
            raise ValueError("--pretrained: cannot go with --weights; choose one")
        if self.reset_classifier and not self.weights:
            raise ValueError("--reset-classifier: goes with --weights; there is nothing to reset without it")
