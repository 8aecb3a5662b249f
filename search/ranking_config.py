"""The options of rank_report.py; free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from search.architecture_config import ScoringOptions
from supernet.config import check_shift_images
from tools.config import check_range
from tools.data import DataConfig
from tools.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class RankReportConfig(RunOptions):
    """Whose scores are to be compared with which truth, and what else is to be told.

    A run, a file or a supernet is called by the end of its path, or as NAME=PATH says.
    """

    run: str = "runs/ranking"
    supernet: tuple[str, ...] = ()
    """Runs of train_supernet.py, or weights files: their networks are scored here."""
    truth: str = ""
    """What networks are worth when trained alone: the JSON of NAS-Bench-Macro, a .csv or .jsonl of choices
    and accuracies, or a run of make_truth.py."""
    scores: tuple[str, ...] = ()
    """More scores, by higher is better: runs of search_architecture.py, or .csv or .jsonl of choices
    and scores."""
    losses: tuple[str, ...] = ()
    """The same, by lower is better."""
    truth_is_loss: bool = False
    """The lower a number of the truth is, the better."""
    space: str = ""
    """The space of the choices, where no supernet says it."""
    networks: int = 0
    """Score so many of the truth's networks, drawn by --seed; 0: all."""
    uncalibrated: int = 0
    """Score the first so many also with the BatchNorm statistics that training left."""
    snapshots: int = 50
    """Networks that are scored at each snapshot that a supernet's training kept (--records.snapshots)."""
    shift_images: int = 1000
    """Validation images on which the modules of each layer are compared; 0: they are not."""
    resamples: int = 2000
    """Resamples behind each interval."""
    search: tuple[str, ...] = ()
    """Also tell of these runs of search_architecture.py."""
    cuts: tuple[str, ...] = ()
    """Also tell of these runs of search_decoupling.py."""
    trained: tuple[str, ...] = ()
    """Also tell of these runs of retrain_model.py, or of make_truth.py with --decouplings."""
    title: str = ""
    """Heading of the report."""
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    data: DataConfig = field(default_factory=DataConfig)
    """Where nothing is given, that of each supernet's training; only the place of the images may differ."""

    def __post_init__(self) -> None:
        self.check_run()
        check_range("--networks", self.networks, 0)
        check_range("--uncalibrated", self.uncalibrated, 0)
        check_range("--snapshots", self.snapshots, 0)
        check_shift_images("--shift-images", self.shift_images)
        check_range("--resamples", self.resamples, 100)
        if self.networks == 1:
            raise ValueError("--networks: a ranking needs two networks or more")
        if self.uncalibrated and self.scoring.statistics == "supernet":
            raise ValueError("--uncalibrated: all are, with --scoring.statistics supernet; leave it out")
        for option in ("supernet", "scores", "losses", "search", "cuts", "trained"):
            _check_words(option, getattr(self, option))

    def check_sources(self) -> None:
        """Refuse what gives nothing to tell, or tells half; not before all options are known."""
        ranked = (*self.supernet, *self.scores, *self.losses)
        if self.truth and not ranked:
            raise ValueError("--supernet: there is nothing to compare the truth with; name one, or --scores")
        if not (ranked or self.search or self.cuts or self.trained):
            raise ValueError("--supernet: name a supernet to rank by, or scores, or runs to tell of")
        if ranked and not self.truth:
            raise ValueError(
                "--truth: name the truth to compare with: a table of accuracies, or a run of make_truth.py"
            )
        if ranked and not self.supernet and not self.space:
            raise ValueError("--space: name the space of the choices; no supernet says it")
        if self.supernet and self.space:
            raise ValueError("--space: the supernet says it; leave it out")
        names(*ranked)
        for each in (self.search, self.cuts, self.trained):
            names(*each)


def names(*asked: str) -> dict[str, Path]:
    """What each is called, and where it is: as it says itself, or by the ends of the paths that differ."""
    paths = [Path(word.partition("=")[2] or word) for word in asked]
    found: dict[str, Path] = {}
    for word, path in zip(asked, paths, strict=True):
        name = word.partition("=")[0] if "=" in word else _short(path, paths)
        if name in found:
            raise ValueError(
                f"--supernet, --scores, --trained: two are called '{name}'; name one NAME={path}"
            )
        found[name] = path
    return found


def _check_words(option: str, words: Sequence[str]) -> None:
    for word in words:
        name, given, path = word.partition("=")
        if not name or (given and not path) or "/" in name * bool(given):
            raise ValueError(f"--{option}: '{word}' is neither a path nor NAME=PATH")


def _short(path: Path, others: Sequence[Path]) -> str:
    """The fewest last parts of a path that no other path ends in."""
    parts = _told(path)
    for count in range(1, len(parts) + 1):
        end = parts[-count:]
        if sum(_told(other)[-count:] == end for other in others) == 1:
            return "/".join(end)
    return "/".join(parts)


def _told(path: Path) -> tuple[str, ...]:
    """A path's parts, without a file's usual name where its folder says more."""
    usual = ("weights.safetensors", "best.safetensors", "evaluations.jsonl", "truth.jsonl")
    return path.parts[:-1] if path.name in usual and len(path.parts) > 1 else path.parts
