"""This module holds the options by which a script names a trained network; it is free of torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tools.mistake import Mistake
from tools.options.config import check_choice
from tools.run.folder import Run


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """The options name a trained network by its finished run or by a file."""

    FILES: ClassVar[tuple[str, ...]] = ("weights",)
    """These options name files that a new run reads."""

    run_of: str = ""
    """Take the network of this finished run of retrain_model.py."""
    weights: str = ""
    """Take the network of this weights file instead. The file is from such a run, wherever it is now, or is
    an exported state.safetensors."""
    which: str = "best"
    """Take the run's weights that were best on validation (best), or those after the last step (last)."""
    plugins: tuple[str, ...] = ()
    """Load these Python files with parts of your own that the network has (docs/your_own.md)."""

    def check_trained(self) -> None:
        """Refuse options that contradict each other; whether a network is named is checked later."""
        check_choice("which", self.which, ("best", "last"))
        if self.run_of and self.weights:
            raise Mistake("weights", "cannot go with `run_of`", "choose one")
        if self.weights and self.which != "best":
            raise Mistake("which", "chooses from the files of `run_of`", "leave it out with `weights`")

    @property
    def label(self) -> str:
        """Return the option that names the network."""
        return "weights" if self.weights else "run_of"

    @property
    def weights_path(self) -> Path:
        """Return the weights file that the options name."""
        if self.weights:
            return Path(self.weights)
        run = Run(Path(self.run_of))
        if not run.config_path.exists():
            raise Mistake("run_of", f"'{run.path}' is no run's folder")
        if run.results is None:
            raise Mistake(
                "run_of",
                f"'{run.path}' has not finished",
                "start its command again, or name a file by `weights`",
            )
        path = run.best_weights if self.which == "best" else run.last_weights
        if not path.exists():
            last = self.which == "best" and run.last_weights.exists()
            cure = "take `which` last" if last else "name another run"
            raise Mistake("which", f"there is no file '{path}'", cure)
        return path
