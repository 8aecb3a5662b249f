"""The options of predict_images.py; free of torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from retrain.predict.trained import TrainedNetwork
from tools.mistake import Mistake
from tools.options.config import check_choice, check_range


@dataclass(frozen=True, kw_only=True)
class PredictConfig(TrainedNetwork):
    """Which trained network, and for which images."""

    USUAL: ClassVar[tuple[str, ...]] = (
        *("run_of", "weights", "export", "images", "top", "out", "plugins", "device"),
    )

    export: str = ""
    """A folder that export_model.py wrote, instead of a run: its state, or else its timm or onnx."""
    images: tuple[str, ...] = ()
    """Images to classify: files, and folders of which all images are taken, in folders inside too."""
    top: int = 5
    """How many classes to tell for each image, the most probable first."""
    out: str = ""
    """Also write all that is told to this new file, such as predictions.jsonl, one JSON object an image."""
    batch: int = 64
    """Images that are classified at once."""
    device: str = "auto"
    """Where to compute: cpu, cuda, or auto, which takes cuda where there is any."""
    threads: int = 0
    """CPU threads; 0: as many as there are cores."""

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
        """Refuse to predict nothing; not before all options are known."""
        if not (self.run_of or self.weights or self.export):
            raise Mistake("run_of", "name a finished run of retrain_model.py, or a folder by `export`")
        if not self.images:
            raise Mistake("images", "name image files, or folders of them")
        if self.out and Path(self.out).exists():
            raise Mistake("out", f"'{self.out}' is there already", "name a new file")
