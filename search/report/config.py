"""The options of rank_report.py; free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from search.architectures.config import ScoringOptions
from supernet.train.config import check_shift_images
from tools.images.options import MOST, DataConfig, PlaceOptions
from tools.options.config import check_range, flag, flatten
from tools.options.shared import RunOptions

BASELINES = {
    "MACs": "multiply-accumulates alone",
    "params": "parameters alone",
    "depth": "layers that are more than a skip or a projection",
    "additive fit": "a sum of worths of choices, fitted to the truth of other networks (10 folds)",
    "chance": "a random order",
}
"""What every score is compared with, and what it is."""
SOURCES = ("supernet", "scores", "losses")


@dataclass(frozen=True, kw_only=True)
class RankReportConfig(RunOptions):
    """Whose scores are to be compared with which truth, and what else is to be told.

    A run, a file or a supernet is called by the end of its path, or as NAME=PATH says.
    """

    UNLISTED: ClassVar[dict[str, type]] = {"data": DataConfig}
    """For weights that do not say which images they saw. Others' training may only be repeated by them."""
    USUAL: ClassVar[tuple[str, ...]] = (
        *("supernet", "truth", "scores", "search", "cuts", "trained", "space", "networks", "title"),
        *("data.root", "scoring.batch", "device", "run"),
    )

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
    """More scores, by lower is better; files and runs like those of --scores."""
    truth_note: str = ""
    """How the truth was made, in a few words, for the report."""
    truth_is_loss: bool = False
    """The lower a number of the truth is, the better."""
    space: str = ""
    """The space of the choices, where no supernet says it."""
    image_size: int = 0
    """Side of the images for which the costs of --space are counted; 0: 32."""
    networks: int = 0
    """Score so many of the truth's networks, drawn by --seed; 0: all."""
    uncalibrated: int = 0
    """Score the first so many also with the BatchNorm statistics that training left."""
    snapshots: int = 50
    """Networks that are scored at each snapshot that a supernet's training kept (--records.snapshots)."""
    shift_images: int = 1000
    """Validation images on which the modules of each layer are compared; 0: they are not."""
    resamples: int = 10_000
    """Up to 30 networks: how many orders of them, and exchanges of two scores, are drawn at most for p
    values and intervals. Of more networks nothing is drawn."""
    search: tuple[str, ...] = ()
    """Also tell of these runs of search_architecture.py."""
    cuts: tuple[str, ...] = ()
    """Also tell of these runs of search_decoupling.py."""
    trained: tuple[str, ...] = ()
    """Also tell of these runs of retrain_model.py, or of make_truth.py with --decouplings."""
    title: str = ""
    """Heading of the report."""
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    data: PlaceOptions = field(default_factory=PlaceOptions)
    """Where the images lie; which they are, each supernet says. What is not given is as in its training."""

    def __post_init__(self) -> None:
        self.check_run()
        check_range("image_size", self.image_size, 0, MOST["image_size"])
        check_range("networks", self.networks, 0)
        check_range("uncalibrated", self.uncalibrated, 0)
        check_range("snapshots", self.snapshots, 0)
        check_shift_images("shift_images", self.shift_images)
        check_range("resamples", self.resamples, 100, 1_000_000)
        if self.networks == 1:
            raise ValueError("--networks: a ranking needs two networks or more")
        if self.uncalibrated and self.scoring.statistics == "supernet":
            raise ValueError("--uncalibrated: all are, with --scoring.statistics supernet; leave it out")

    def check_sources(self) -> None:
        """Refuse what gives nothing to tell, or tells half; not before all options are known."""
        ranked = (*self.supernet, *self.scores, *self.losses)
        told = self.search or self.cuts or self.trained
        if self.truth and not ranked and not self.search:
            raise ValueError("--supernet: there is nothing to compare the truth with; name one, or --scores")
        if not (ranked or told):
            raise ValueError("--supernet: name a supernet to rank by, or scores, or runs to tell of")
        if ranked and not self.truth:
            raise ValueError(
                "--truth: name the truth to compare with: a table of accuracies, or a run of make_truth.py"
            )
        if self.truth and not self.supernet and not self.space:
            raise ValueError("--space: name the space of the choices; no supernet says it")
        if self.supernet and self.space:
            raise ValueError("--space: the supernet says it; leave it out")
        if self.supernet and self.image_size:
            raise ValueError("--image-size: the supernet says it; leave it out")
        for option in ("space", "image_size", "truth_is_loss"):
            if getattr(self, option) and not self.truth:
                raise ValueError(f"{flag(option)}: is about --truth; name one, or leave it out")
        if self.uncalibrated and not self.supernet:
            raise ValueError("--uncalibrated: scores networks of a --supernet; name one, or leave it out")
        self.sources()
        for option in ("search", "cuts", "trained"):
            _named(f"--{option}", getattr(self, option))

    @property
    def space_size(self) -> int:
        """Side of the images for which the costs of a space that is named are counted."""
        return self.image_size or DataConfig(**flatten(self.data)).size

    def sources(self) -> dict[str, tuple[str, Path]]:
        """All that gives scores, by name: the option that says so, and where it is."""
        options = [option for option in SOURCES for _ in getattr(self, option)]
        words = [word for option in SOURCES for word in getattr(self, option)]
        found = _named("--supernet, --scores, --losses", words)
        for name in found:
            if name in BASELINES:
                raise ValueError(
                    f"--supernet, --scores, --losses: '{name}' is a baseline's name; take another NAME="
                )
        return dict(zip(found, zip(options, found.values(), strict=True), strict=True))


def names(*asked: str) -> dict[str, Path]:
    """What each is called, and where it is: as it says itself, or by the ends of the paths that differ."""
    split = [_split(word) for word in asked]
    paths = [path for _, path in split]
    found: dict[str, Path] = {}
    for given, path in split:
        name = given or _short(path, paths)
        if name in found:
            raise ValueError(f"two are called '{name}'; call one otherwise, as in NAME={path}")
        found[name] = path
    return found


def _named(option: str, words: Sequence[str]) -> dict[str, Path]:
    try:
        return names(*words)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _split(word: str) -> tuple[str, Path]:
    """The name that a word gives, if it does, and the path."""
    name, given, path = word.partition("=")
    if not given or Path(word).exists():
        name, path = "", word
    if not path or (given and path != word and (not name or "/" in name or name in (".", ".."))):
        raise ValueError(f"'{word}' is neither a path nor NAME=PATH")
    return name, Path(path)


def _short(path: Path, others: Sequence[Path]) -> str:
    """The fewest last parts of a path that no other path ends in."""
    parts = _told(path)
    for count in range(1, len(parts) + 1):
        end = parts[-count:]
        if sum(_told(other)[-count:] == end for other in others) == 1:
            return "/".join(end)
    return "/".join(parts)


def _told(path: Path) -> tuple[str, ...]:
    """A path's parts from the root on, without a file's usual name where its folder says more."""
    parts = path.absolute().resolve().parts[1:] if ".." in path.parts else path.absolute().parts[1:]
    usual = ("weights.safetensors", "evaluations.jsonl", "truth.jsonl")
    return parts[:-1] if parts[-1:] and parts[-1] in usual else parts
