"""What a report asks of a supernet: scores, what recalibration does, its course, its modules' likeness."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from search.architectures.images import scoring_images
from search.architectures.kept_scores import kept_scores
from search.report.config import RankReportConfig
from supernet.network.storage import load_supernet, snapshots, supernet_notes, weights_file
from supernet.space import Architecture, Space
from supernet.supernet import Supernet
from supernet.train.config import SupernetConfig
from supernet.train.measure import Measured, load_measured
from supernet.train.shift import Shift, representation_shift
from tools.batchnorm import frozen_statistics
from tools.files.atomic import read_document
from tools.layout import use_channels_last
from tools.options.config import of_run
from tools.run.folder import Run
from tools.run.meters import read_metrics

SHIFT_BATCH = 250
"""Images on which modules are compared at once; what does not fill a batch is left out, but for the first."""

Scores = dict[Architecture, float]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Of one supernet."""

    space: Space
    config: SupernetConfig | None
    """How it was trained, where its weights say so."""
    results: dict[str, Any]
    """What its training wrote at its end, where the run is there."""
    scores: Scores
    uncalibrated: Scores
    """By the statistics that training left, of the first few."""
    course: list[tuple[int, Scores]]
    """Of a few networks by the weights of each step that was kept."""
    shift: Shift | None
    shift_course: list[dict[str, Any]]
    """Lines that its training wrote of it."""
    maps: list[Tensor]
    """What each module of the first layer makes of one image, as the mean over channels."""
    measured: Measured | None
    scored_on: int
    """Validation images."""
    apart: bool
    """Whether these are known to be apart from those of the training."""


def ask(
    name: str,
    path: Path,
    networks: Sequence[Architecture],
    config: RankReportConfig,
    run: Run,
    accelerator: Accelerator,
) -> Answers:
    """Score what is not scored yet, in a folder of the report's run, and compare the modules."""
    folder = run.path / "scores" / name
    net = _ready(path, config, accelerator)
    images = _images(path, net, config, accelerator)

    def scores(part: str, weights: Path, asked: Sequence[Architecture], options: RankReportConfig) -> Scores:
        return kept_scores(
            net if weights == path else _ready(weights, config, accelerator),
            weights,
            asked,
            images if options is config else _images(path, net, options, accelerator),
            options.scoring,
            folder=folder / part,
            accelerator=accelerator,
        )

    left = _with_statistics_of_training(config)
    course = [
        (step, scores(f"step-{step:08d}", weights, networks[: config.snapshots], config))
        for step, weights in (snapshots(path) if config.snapshots else ())
    ]
    shift, maps = _compared(path, net, config, accelerator)
    home = weights_file(path).parent
    notes = supernet_notes(path)
    text = notes.get("config")
    return Answers(
        space=net.space,
        config=of_run(SupernetConfig, text, source=str(path)) if text else None,
        results=read_document(home / "results.json", "results", 1)
        if (home / "results.json").exists()
        else {},
        scores=scores("", path, networks, config),
        uncalibrated=scores("uncalibrated", path, networks[: config.uncalibrated], left)
        if config.uncalibrated
        else {},
        course=course,
        shift=shift,
        shift_course=read_metrics(home / "shift.jsonl") if (home / "shift.jsonl").exists() else [],
        maps=maps,
        measured=load_measured(home / "costs.json") if (home / "costs.json").exists() else None,
        scored_on=images.num_validation,
        apart=images.apart,
    )


def _ready(path: Path, config: RankReportConfig, accelerator: Accelerator) -> Supernet:
    net = load_supernet(path)
    net.to(accelerator.device, torch.float64 if config.precision == "fp64" else torch.float32)
    use_channels_last(net)
    return net


def _images(path: Path, net: Supernet, config: RankReportConfig, accelerator: Accelerator) -> Any:
    return scoring_images(
        path, net.space, config.scoring, data=config.data, seed=config.seed, device=accelerator.device
    )


def _with_statistics_of_training(config: RankReportConfig, images: int = -1) -> RankReportConfig:
    """The same images, or so many, and no calibration."""
    options = type(config.scoring)(
        statistics="supernet",
        validation_images=config.scoring.validation_images if images < 0 else images,
        batch=config.scoring.batch if images < 0 else SHIFT_BATCH,
    )
    return replace(config, scoring=options, uncalibrated=0)


@torch.no_grad()
def _compared(
    path: Path, net: Supernet, config: RankReportConfig, accelerator: Accelerator
) -> tuple[Shift | None, list[Tensor]]:
    """The shift of every layer, and one image's maps; of supernets with one split on the same images."""
    if not config.shift_images:
        return None, []
    found = _images(path, net, _with_statistics_of_training(config, config.shift_images), accelerator)
    if found.num_validation < 4:
        return None, []
    parts = [batch.images.to(next(net.parameters()).dtype) for batch in found.validation]
    whole = [part for part in parts if len(part) == len(parts[0])]
    shift = representation_shift(net, whole)
    with frozen_statistics(net.train()):
        features = net.begin(whole[0])
        layer = net.space.layers[0]
        maps = [net.candidate(0, choice)(features)[0].float().mean(0).cpu() for choice in layer.weighted]
    net.eval()
    return shift, maps
