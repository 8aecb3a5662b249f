"""This module reads networks that were trained alone, whole or in blocks, and says when two are
comparable."""

import math
import tomllib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from local_learning.ensemble import accuracies_of_heads
from local_learning.options import (
    HOW_BLOCKS_LEARN,
    OF_THE_MACHINE,
    OF_THE_RECORDS,
    WHERE_TO_CUT,
    GluingOptions,
    LocalLosses,
)
from local_learning.rules.catalogue import RULES, usual_rule
from search.report.cut_searches import ChosenCuts, CutSearch
from search.report.runs import finished_results
from supernet.network.choice import NetworkChoice
from supernet.network.documents import ArchitectureFile, checked_stem, read_architecture
from supernet.network.network import COPY
from tools.images.options import DataConfig
from tools.options.config import to_toml, with_earlier
from tools.options.recipes import Recipe
from tools.options.shared import FREE, ExtendOptions, FastOptions, RunOptions
from tools.run.meters import read_metrics

OTHER_CUTS = FREE | WHERE_TO_CUT | OF_THE_MACHINE | OF_THE_RECORDS
"""Two trainings in blocks may differ in these options and still say which cuts are better."""
WHOLE_OR_CUT = OTHER_CUTS | HOW_BLOCKS_LEARN | {"stem"}
"""A training in blocks and one in one piece may differ in these options and still say what cutting costs."""


@dataclass(frozen=True, kw_only=True)
class _Shared(ExtendOptions, FastOptions, NetworkChoice, RunOptions):
    """These are the options of a training that are not retrain_model.py's alone.

    Where an older run does not have an option, its value is the default here, or the one in EARLIER.
    """

    local: LocalLosses = field(default_factory=LocalLosses)
    gluing: GluingOptions = field(default_factory=GluingOptions)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True, kw_only=True)
class FinishedTraining:
    """A `FinishedTraining` is a finished run of retrain_model.py."""

    name: str
    network: str
    options: Mapping[str, Any]
    """The options by dotted name."""
    accuracy: float
    """The accuracy of the last step's weights on the test images."""
    last_two_accuracy: float | None = None
    """The accuracy of the last two heads together."""
    head_accuracies: tuple[float, ...] = ()
    """The accuracy of each head below the last one by itself."""
    test_images: int | None = None
    cuts: tuple[int, ...] = ()
    named_heads: tuple[str, ...] = ()
    """The heads at its cuts, as far as they are known, whether its rule trains them or not."""
    groups: int = 1
    kept_bytes: Sequence[float] = ()
    """The bytes that each process keeps at once for the backward pass of one image."""
    macs: float = 0
    params: float = 0
    steps: int = 0
    seconds: float = 0
    processes: int | None = None
    course: Sequence[tuple[float, float]] = ()
    """The accuracy in percent on the validation images, by step."""
    found_by: tuple[str, ...] = ()
    """The searches of the report that chose these cuts and heads."""
    balanced_by: tuple[str, ...] = ()
    """The searches of the report that chose them for blocks of similar length."""

    @property
    def stem(self) -> str:
        """Return how the stem of an architecture is counted where the network is cut."""
        return str(self.options.get("stem", "unit")) if self.options.get("architecture") else "unit"

    @property
    def headless(self) -> bool:
        """Return whether its rule trains no heads, whatever heads are named."""
        row = RULES.get(str(self.options.get("rule")))
        return row is not None and row.cuts and not row.trains_heads

    @property
    def heads(self) -> tuple[str, ...]:
        """Return the heads at its cuts, as far as they are trained and known."""
        return () if self.headless else self.named_heads

    @property
    def error(self) -> float:
        """Return the standard error of its accuracy by the choice of test images; NaN if it is not known."""
        images = math.nan if self.test_images is None else self.test_images
        return math.sqrt(self.accuracy * (1 - self.accuracy) / images)

    @property
    def kept_mib(self) -> float:
        """Return the MiB kept at once for the backward pass of one image, on the process that keeps most."""
        return float(max(self.kept_bytes, default=math.nan)) / 2**20


def read_training(name: str, path: Path, searches: Sequence[CutSearch] = ()) -> FinishedTraining:
    """Read a finished run of retrain_model.py, and note which of `searches` chose its cuts."""
    results = finished_results(path, option="trained", script="retrain_model.py", key="test")
    text = (path / "config.toml").read_text(encoding="utf-8")
    last = results["test"]["last"]
    given = _by_dotted_name(text)
    copy = path / COPY
    architecture = read_architecture(copy) if given.get("architecture") and copy.exists() else None
    training = FinishedTraining(
        name=name,
        network=architecture.name if architecture else str(given.get("network", "")),
        options=_options(given, text, architecture, results),
        accuracy=float(last["top1"]),
        last_two_accuracy=last.get("last_two_top1"),
        head_accuracies=tuple(accuracies_of_heads(last).values()),
        test_images=results.get("test_images"),
        cuts=tuple(results.get("cuts", ())),
        named_heads=tuple(results.get("heads", ())),
        groups=results.get("groups", 1),
        kept_bytes=results.get("kept_bytes", ()),
        macs=results["macs"],
        params=results["params"],
        steps=results["steps"],
        seconds=results["training_seconds"],
        processes=results.get("processes"),
        course=[
            (line["step"], 100 * line["validation_top1"])
            for line in read_metrics(path / "metrics.jsonl")
            if "validation_top1" in line
        ],
    )
    return replace(
        training,
        found_by=tuple(search.name for search in searches if _is_of(training, search, search.decouplings)),
        balanced_by=tuple(search.name for search in searches if _is_of(training, search, search.balanced)),
    )


def differing(one: FinishedTraining, other: FinishedTraining, apart: Set[str]) -> list[str]:
    """Return the options in which two trainings differ, without those in `apart`."""
    return [
        name
        for name in sorted(one.options.keys() | other.options.keys())
        if name.split(".")[0] not in apart
        and name not in apart
        and one.options.get(name) != other.options.get(name)
    ]


def differ_in_cuts_alone(one: FinishedTraining, other: FinishedTraining) -> bool:
    """Return whether two trainings differ in their cuts or heads, and in nothing else that matters."""
    sizes = [
        (training.network, len(training.cuts), len(training.heads), training.groups)
        for training in (one, other)
    ]
    same = (one.cuts, one.heads) == (other.cuts, other.heads)
    return sizes[0] == sizes[1] and not same and not differing(one, other, OTHER_CUTS)


def _is_of(training: FinishedTraining, search: CutSearch, choices: Sequence[ChosenCuts]) -> bool:
    """Return whether a training's cuts and heads are one of a search's choices."""
    return (training.network, training.stem) == (search.network, search.stem) and any(
        training.cuts == chosen.cuts
        and (training.headless or training.heads == chosen.heads)
        and training.groups == chosen.groups
        and (training.headless or training.options.get("head_width", "paper") == chosen.head_width)
        for chosen in choices
    )


def _options(
    given: Mapping[str, Any], text: str, architecture: ArchitectureFile | None, results: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of a run by dotted name, completed where an older run does not say them."""
    usual = with_earlier(_Shared(architecture=given.get("architecture", "")), text, "config.toml")
    options = {**_by_dotted_name(to_toml(usual)), **given}
    if architecture:
        options["stem"] = checked_stem(architecture)  # which the options of a run of before do not know
    options["head_width"] = results.get("head_width", "paper" if "cuts" in results else "")
    if options.get("decoupling") and not options.get("rule"):
        options["rule"] = usual_rule(cut=True)
    return options


def _by_dotted_name(text: str) -> dict[str, Any]:
    """Return the options in a config.toml by dotted name."""
    options: dict[str, Any] = {}
    for key, value in tomllib.loads(text).items():
        group = value if isinstance(value, dict) else None
        options |= {key: value} if group is None else {f"{key}.{name}": group[name] for name in group}
    return options
