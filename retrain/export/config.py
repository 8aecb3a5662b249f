"""This module holds the options of export_model.py; it is free of torch."""

from dataclasses import dataclass
from typing import ClassVar

from retrain.predict.trained import TrainedNetwork
from tools.mistake import Mistake
from tools.options.config import check_choice, check_range

KIND, VERSION = "export", 1
FORMATS = ("state", "timm", "onnx", "torch_export")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(TrainedNetwork):
    """The options say which trained network to export, in which formats, and to where."""

    USUAL: ClassVar[tuple[str, ...]] = ("run_of", "weights", "which", "formats", "out", "exits", "data_root")

    formats: tuple[str, ...] = ("state",)
    """Export in one or more of the formats state, timm, onnx and torch_export. state is safetensors of the
    plain module, timm is a folder for timm.create_model, and torch_export is a program of torch.export."""
    out: str = "exported"
    """Write this folder, which must be new or empty."""
    exits: bool = False
    """Keep the auxiliary heads as early exits. The network then returns a tuple of logits, from the first
    head to the classifier."""
    images: int = 32
    """Compare every format with the network on this many images of the run's data set. They are compared all
    at once, and the first one alone."""
    data_root: str = ""
    """Read the run's data set from this folder, if it is not where it was."""
    opset: int = 20
    """Use this version of ONNX's operators."""

    def __post_init__(self) -> None:
        self.check_trained()
        for name in self.formats:
            check_choice("formats", name, FORMATS)
            if self.formats.count(name) > 1:
                raise Mistake("formats", f"{name} is there twice")
        check_range("images", self.images, 2, 1024)
        check_range("opset", self.opset, 18, 23)
        if self.opset != type(self).opset and "onnx" not in self.formats:
            raise Mistake("opset", "is of onnx alone", "leave it out, or add onnx to `formats`")
        if not self.formats:
            raise Mistake("formats", f"name one or more of {', '.join(FORMATS)}")
        if not self.out:
            raise Mistake("out", "name a folder")
        if self.exits and "timm" in self.formats:
            raise Mistake(
                "exits", "timm's networks have one output", "leave out `exits`, or timm in `formats`"
            )

    def check_source(self) -> None:
        """Refuse to export nothing; this is checked when all options are known."""
        if not (self.run_of or self.weights):
            raise Mistake("run_of", "name a finished run of retrain_model.py, or a file by `weights`")
