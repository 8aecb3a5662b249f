"""This module holds the options of rank_report.py. It is free of torch."""

import itertools
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from search.architectures.config import ScoringOptions
from search.report.runs import labelled, mistake_of
from supernet.train.config import check_shift_images
from tools.images.options import LARGEST, DataConfig, PlaceOptions
from tools.mistake import Mistake
from tools.options.config import check_range, flatten
from tools.options.shared import RunOptions

BASELINES = {
    "MACs": "multiply-accumulates alone",
    "params": "parameters alone",
    "depth": "layers that are more than a skip or a projection",
    "ReLU units": "outputs of ReLUs, or other activations, in the searchable layers",
    "roots of units": "the square root of each searchable layer's units, added up",
    "additive fit": "a sum of worths of choices, fitted to the truth of other networks (10 folds)",
    "chance": "a random order",
}
"""Every score is compared with these baselines; each name comes with what it means."""
SOURCES = ("supernet", "scores", "losses")
"""These options name what gives scores."""


@dataclass(frozen=True)
class ScoreSource:
    """A `ScoreSource` is a supernet or a file that gives scores."""

    option: str
    """The source was named with this option."""
    path: Path

    @property
    def is_supernet(self) -> bool:
        """Return whether networks are scored here with a supernet's weights; a file already holds scores."""
        return self.option == "supernet"

    @property
    def lower_is_better(self) -> bool:
        """Return whether the numbers of the source are losses."""
        return self.option == "losses"


@dataclass(frozen=True, kw_only=True)
class RankReportConfig(RunOptions):
    """The options say which scores are compared with which truth, and which runs the report describes.

    A run, a file or a supernet is called by the end of its path, or as NAME=PATH says.
    """

    UNLISTED: ClassVar[dict[str, type]] = {"data": DataConfig}
    """These options describe the images of weights that do not say which images they saw. For other weights,
    they may only repeat what the training had."""
    USUAL: ClassVar[tuple[str, ...]] = (
        *("supernet", "truth", "scores", "search", "cuts", "trained", "space", "networks", "title"),
        *("data.root", "scoring.batch", "device", "run"),
    )

    run: str = "runs/ranking"
    supernet: tuple[str, ...] = ()
    """Score networks with the weights of these runs of train_supernet.py, or of these weights files."""
    truth: str = ""
    """Compare the scores with this truth: the JSON of NAS-Bench-Macro, a .csv or .jsonl of choices and
    accuracies, or a run of make_truth.py. The truth is what each network reaches when it is trained alone."""
    scores: tuple[str, ...] = ()
    """Compare these scores, where higher is better: runs of search_architecture.py, or .csv or .jsonl files
    of choices and scores."""
    losses: tuple[str, ...] = ()
    """Compare these scores, where lower is better: files and runs like those of --scores."""
    truth_note: str = ""
    """Print this short note on how the truth was made."""
    truth_is_loss: bool = False
    """Take a lower number of the truth to be better."""
    space: str = ""
    """Read the choices in this space, where no supernet says it."""
    image_size: int = 0
    """Count the costs of --space for images of this side; 0 means 32."""
    networks: int = 0
    """Score this many of the truth's networks, drawn by --seed; 0 scores all."""
    uncalibrated: int = 0
    """Score this many networks a second time, with the BatchNorm statistics that training left."""
    snapshots: int = 50
    """Score this many networks at each snapshot that a supernet's training kept (--records.snapshots)."""
    shift_images: int = 1000
    """Compare the modules of each layer on this many validation images; 0 does not compare them."""
    resamples: int = 10_000
    """Draw at most this many orders and exchanges of two scores for p values and intervals, for up to 30
    networks. With more networks, nothing is drawn."""
    search: tuple[str, ...] = ()
    """Describe these runs of search_architecture.py too."""
    cuts: tuple[str, ...] = ()
    """Describe these runs of search_decoupling.py too."""
    trained: tuple[str, ...] = ()
    """Describe these runs of retrain_model.py too, or of make_truth.py with --decouplings."""
    title: str = ""
    """Give the report this heading."""
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    data: PlaceOptions = field(default_factory=PlaceOptions)
    """These options say where the images lie. Each supernet says which images they are. An option that is not
    given is as in the supernet's training."""

    def __post_init__(self) -> None:
        self.check_run()
        check_range("image_size", self.image_size, 0, LARGEST["image_size"])
        check_range("networks", self.networks, 0)
        check_range("uncalibrated", self.uncalibrated, 0)
        check_range("snapshots", self.snapshots, 0)
        check_shift_images("shift_images", self.shift_images)
        check_range("resamples", self.resamples, 100, 1_000_000)
        if self.networks == 1:
            raise Mistake("networks", "a ranking needs two networks or more")
        if self.uncalibrated and self.scoring.statistics == "supernet":
            raise Mistake("uncalibrated", "all are, with `scoring.statistics` supernet", "leave it out")

    def idle(self) -> dict[str, str]:
        """Return the options that have no effect beside the other options' values, each with the reason."""
        idle = {"trackers": "a report"}
        if not self.supernet:
            scoring = [f"scoring.{each.name}" for each in fields(ScoringOptions)]
            # Unlisted options beside these may say for which images the costs of `space` are counted.
            data = (
                [f"data.{each.name}" for each in fields(self.data)] if type(self.data) is PlaceOptions else []
            )
            names = ("snapshots", "shift_images", "precision", *scoring, *data)
            idle |= dict.fromkeys(names, "a report without `supernet`")
        if not (self.supernet or self.scores or self.losses):
            idle |= dict.fromkeys(("networks", "resamples", "seed"), "a report without scores to rank by")
        if not self.truth:
            idle["truth_note"] = "a report without `truth`"
        return idle

    def check_sources(self) -> None:
        """Refuse options that give the report nothing to compare or describe, or only half of it.

        This needs all options, so `__post_init__` cannot do it.
        """
        self._check_ranking()
        self._check_space()
        for option in ("space", "image_size", "truth_is_loss"):
            if getattr(self, option) and not self.truth:
                raise Mistake(option, "is about `truth`", "name one, or leave it out")
        if self.uncalibrated and not self.supernet:
            raise Mistake("uncalibrated", "scores networks of a `supernet`", "name one, or leave it out")
        self.sources()
        for option in ("search", "cuts", "trained"):
            labelled(getattr(self, option), option)

    def _check_ranking(self) -> None:
        """Refuse scores without a truth, and a truth without scores."""
        has_scores = bool(self.supernet or self.scores or self.losses)
        if self.truth and not has_scores and not self.search:
            raise Mistake("supernet", "there is nothing to compare the truth with", "name one, or `scores`")
        if not (has_scores or self.search or self.cuts or self.trained):
            raise Mistake("supernet", "name a supernet to rank by, or scores, or runs to tell of")
        if has_scores and not self.truth:
            raise Mistake(
                "truth", "name the truth to compare with: a table of accuracies, or a run of make_truth.py"
            )

    def _check_space(self) -> None:
        """Refuse a ranking without a space, and a space that is named twice."""
        if self.truth and not self.supernet and not self.space:
            raise Mistake("space", "name the space of the choices; no supernet says it")
        for option in ("space", "image_size"):
            if self.supernet and getattr(self, option):
                raise Mistake(option, "the supernet says it", "leave it out")

    @property
    def space_size(self) -> int:
        """Return the side of the images for which the costs of a named space are counted."""
        return self.image_size or DataConfig(**flatten(self.data)).size

    def sources(self) -> dict[str, ScoreSource]:
        """Return the sources of scores by name."""
        options = [option for option in SOURCES for _ in getattr(self, option)]
        words = [word for option in SOURCES for word in getattr(self, option)]
        paths = labelled(words, *SOURCES)
        for name in paths:
            if name in BASELINES:
                raise mistake_of(SOURCES, f"'{name}' is a baseline's name; take another NAME=")
        pairs = zip(options, paths.values(), strict=True)
        return dict(zip(paths, itertools.starmap(ScoreSource, pairs), strict=True))
