"""Networks that were trained alone, whole or in blocks: what their runs say, and when two are alike."""

import math
import tomllib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
"""Options in which two trainings in blocks may differ and still say which cuts are better."""
WHOLE_OR_CUT = OTHER_CUTS | HOW_BLOCKS_LEARN | {"stem"}
"""The same for a training in blocks and one in one piece."""


@dataclass(frozen=True, kw_only=True)
class _Shared(ExtendOptions, FastOptions, NetworkChoice, RunOptions):
    """The options of a training that are not retrain_model.py's alone.

    What a run of before lacks of them, it did as their defaults say, or EARLIER.
    """

    local: LocalLosses = field(default_factory=LocalLosses)
    gluing: GluingOptions = field(default_factory=GluingOptions)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True, kw_only=True)
class FinishedTraining:
    """A finished run of retrain_model.py."""

    name: str
    network: str
    options: Mapping[str, Any]
    """By dotted name."""
    accuracy: float
    """The last step's weights on the test images."""
    last_two_accuracy: float | None = None
    """The same of the last two heads together."""
    test_images: int | None = None
    cuts: tuple[int, ...] = ()
    named_heads: tuple[str, ...] = ()
    """The heads at its cuts as far as they are known, whether its rule trains them or not."""
    groups: int = 1
    kept_bytes: Sequence[float] = ()
    """What each process keeps at once for going backward, of one image."""
    macs: float = 0
    params: float = 0
    steps: int = 0
    seconds: float = 0
    processes: int | None = None
    course: Sequence[tuple[float, float]] = ()
    """Accuracy in percent on the validation images, by step."""
    found_by: tuple[str, ...] = ()
    """The searches that chose its cuts and heads, of those that the report was given."""
    balanced_by: tuple[str, ...] = ()
    """Those that chose them when told to make blocks of like length."""

    @property
    def stem(self) -> str:
        """How that of an architecture is counted where it is cut."""
        return str(self.options.get("stem", "unit")) if self.options.get("architecture") else "unit"

    @property
    def headless(self) -> bool:
        """Whether its rule trains no heads, whatever is named."""
        row = RULES.get(str(self.options.get("rule")))
        return row is not None and row.cuts and not row.trains_heads

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads at its cuts, as far as they are trained and known."""
        return () if self.headless else self.named_heads

    @property
    def error(self) -> float:
        """The standard error of its accuracy by the choice of test images; nan where it is not known."""
        images = math.nan if self.test_images is None else self.test_images
        return math.sqrt(self.accuracy * (1 - self.accuracy) / images)

    @property
    def kept_mib(self) -> float:
        """What is kept at once for going backward, of one image, on the process that keeps most."""
        return float(max(self.kept_bytes, default=math.nan)) / 2**20


def read_training(name: str, path: Path, searches: Sequence[CutSearch] = ()) -> FinishedTraining:
    """What a finished run of retrain_model.py says; `searches` may have chosen its cuts."""
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
    """The options, beside those `apart`, in which two trainings differ."""
    return [
        name
        for name in sorted(one.options.keys() | other.options.keys())
        if name.split(".")[0] not in apart
        and name not in apart
        and one.options.get(name) != other.options.get(name)
    ]


def differ_in_cuts_alone(one: FinishedTraining, other: FinishedTraining) -> bool:
    """Whether two differ in where they are cut and by which heads, and in nothing else that matters."""
    sizes = [
        (training.network, len(training.cuts), len(training.heads), training.groups)
        for training in (one, other)
    ]
    same = (one.cuts, one.heads) == (other.cuts, other.heads)
    return sizes[0] == sizes[1] and not same and not differing(one, other, OTHER_CUTS)


def _is_of(training: FinishedTraining, search: CutSearch, choices: Sequence[ChosenCuts]) -> bool:
    """Whether a training's cuts and heads are one of a search's choices."""
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
    """The options of a run by dotted name, with what one of before does not say."""
    usual = with_earlier(_Shared(architecture=given.get("architecture", "")), text, "config.toml")
    options = {**_by_dotted_name(to_toml(usual)), **given}
    if architecture:
        options["stem"] = checked_stem(architecture)  # which the options of a run of before do not know
    options["head_width"] = results.get("head_width", "paper" if "cuts" in results else "")
    if options.get("decoupling") and not options.get("rule"):
        options["rule"] = usual_rule(cut=True)
    return options


def _by_dotted_name(text: str) -> dict[str, Any]:
    """The options in a config.toml."""
    options: dict[str, Any] = {}
    for key, value in tomllib.loads(text).items():
        group = value if isinstance(value, dict) else None
        options |= {key: value} if group is None else {f"{key}.{name}": group[name] for name in group}
    return options
