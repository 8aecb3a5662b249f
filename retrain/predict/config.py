"""This module holds the options of predict_images.py; it is free of torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from retrain.predict.trained import TrainedNetwork
from tools.mistake import Mistake
from tools.options.config import check_choice, check_range


@dataclass(frozen=True, kw_only=True)
class PredictConfig(TrainedNetwork):
    """The options say which trained network classifies which images."""

    USUAL: ClassVar[tuple[str, ...]] = (
        *("run_of", "weights", "export", "images", "top", "out", "plugins", "device"),
    )

    export: str = ""
    """Use a folder that export_model.py wrote, instead of a run. Its state is read, else its timm or onnx."""
    images: tuple[str, ...] = ()
    """Classify these files, and all images in these folders and in the folders inside."""
    top: int = 5
    """Print this many classes for each image, the most probable first."""
    out: str = ""
    """Also write the predictions to this new file, such as predictions.jsonl, one JSON object an image."""
    batch: int = 64
    """Classify this many images at once."""
    device: str = "auto"
    """Compute on cpu, cuda or auto, which takes cuda where there is a GPU."""
    threads: int = 0
    """Use this many CPU threads; 0 takes as many as there are cores."""

    def __post_init__(self) -> None:
        self.check_trained()
        if self.export and (self.run_of or self.weights):
            raise Mistake("export", f"cannot go with `{self.label}`", "choose one")
        if self.export and self.which != "best":
            raise Mistake("which", "chooses from the files of `run_of`", "leave it out with `export`")
        check_range("top", self.top, 1)
        check_range("batch", self.batch, 1, 100_000)
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_range("threads", self.threads, 0, 4096)

    def check_source(self) -> None:
        """Refuse to predict nothing; this is checked when all options are known."""
        if not (self.run_of or self.weights or self.export):
            raise Mistake("run_of", "name a finished run of retrain_model.py, or a folder by `export`")
        if not self.images:
            raise Mistake("images", "name image files, or folders of them")
        if self.out and Path(self.out).exists():
            raise Mistake("out", f"'{self.out}' is there already", "name a new file")
