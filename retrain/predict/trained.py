"""Which trained network: the options by which a script names one; free of torch."""

from dataclasses import dataclass
from pathlib import Path

from tools.mistake import Mistake
from tools.options.config import check_choice
from tools.run.folder import Run


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A finished run's network, or a file's."""

    run_of: str = ""
    """A finished run of retrain_model.py."""
    weights: str = ""
    """A weights file of such a run instead, wherever it is now, or an exported state.safetensors."""
    which: str = "best"
    """The run's weights that were best on validation (best), or those after the last step (last)."""
    plugins: tuple[str, ...] = ()
    """Python files with parts of your own that the network has (docs/your_own.md)."""

    def check_trained(self) -> None:
        """Refuse what contradicts itself; whether a network is named at all, scripts ask later."""
        check_choice("which", self.which, ("best", "last"))
        if self.run_of and self.weights:
            raise Mistake("weights", "cannot go with `run_of`", "choose one")
        if self.weights and self.which != "best":
            raise Mistake("which", "chooses from the files of `run_of`", "leave it out with `weights`")

    @property
    def label(self) -> str:
        """The option that names the network."""
        return "weights" if self.weights else "run_of"

    @property
    def weights_path(self) -> Path:
        """The weights file that the options name."""
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
