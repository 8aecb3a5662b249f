"""This module scores networks with a supernet for a report, and compares the supernet's modules."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from search.architectures.config import ScoringOptions
from search.architectures.images import ScoringImages, scoring_images
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
from tools.similarity import off_diagonal_mean

SHIFT_BATCH = 250
"""Modules are compared on this many images at once. An incomplete last batch is left out, unless it is the
only one."""

Scores = dict[Architecture, float]


@dataclass(frozen=True, kw_only=True)
class SupernetAnswers:
    """A `SupernetAnswers` holds what a report asks of one supernet, and what is known of its training."""

    space: Space
    config: SupernetConfig | None
    """The config of its training, if its weights say it."""
    steps: int | None
    """The length of its training. This and the next two are known only if its run is there."""
    training_seconds: float | None
    saved_bytes_per_step: float | None
    """The bytes that autograd kept at the peak of a training step."""
    scores: Scores
    uncalibrated: Scores
    """Scores of the first few networks with the BatchNorm statistics that training left."""
    course: Sequence[tuple[int, Scores]]
    """Scores of a few networks with the weights of each kept step."""
    shift: Shift | None
    likeness_course: Sequence[tuple[int, float]]
    """The mean cosine between modules of a layer, by step of the training."""
    maps: Sequence[Tensor]
    """The output of each module of the first layer for one image, as the mean over channels."""
    measured: Measured | None
    scored_on: int
    """The number of validation images."""
    apart: bool
    """Whether these images are known to be apart from those of the training."""


def ask_supernet(
    name: str,
    path: Path,
    networks: Sequence[Architecture],
    config: RankReportConfig,
    run: Run,
    accelerator: Accelerator,
) -> SupernetAnswers:
    """Score the networks that have no score yet, and compare the modules.

    The scores are kept in a folder of the report's run.
    """
    folder = run.path / "scores" / name
    net = _loaded(path, config, accelerator)
    images = _images(path, net, config.scoring, config, accelerator)

    def scores(part: str, few: Sequence[Architecture], *, weights: Path = path) -> Scores:
        scored = net if weights == path else _loaded(weights, config, accelerator)
        place = folder / part
        return kept_scores(
            scored, weights, few, images, config.scoring, folder=place, accelerator=accelerator
        )

    course = [
        (step, scores(f"step-{step:08d}", networks[: config.snapshots], weights=weights))
        for step, weights in (snapshots(path) if config.snapshots else ())
    ]
    shift, maps = _compared_modules(path, net, config, accelerator)
    of_all = scores("", networks)
    uncalibrated = Scores()
    if config.uncalibrated:
        options = _without_calibration(config.scoring.validation_images, config.scoring.batch)
        uncalibrated = kept_scores(
            net,
            path,
            networks[: config.uncalibrated],
            _images(path, net, options, config, accelerator),
            options,
            folder=folder / "uncalibrated",
            accelerator=accelerator,
        )
    home = weights_file(path).parent
    text, results = supernet_notes(path).get("config"), _results(home)
    return SupernetAnswers(
        space=net.space,
        config=of_run(SupernetConfig, text, source=str(path)) if text else None,
        steps=results.get("steps"),
        training_seconds=results.get("training_seconds"),
        saved_bytes_per_step=results.get("saved_bytes_per_step"),
        scores=of_all,
        uncalibrated=uncalibrated,
        course=course,
        shift=shift,
        likeness_course=_likeness_course(home / "shift.jsonl"),
        maps=maps,
        measured=load_measured(home / "costs.json") if (home / "costs.json").exists() else None,
        scored_on=images.num_validation,
        apart=images.apart,
    )


def _loaded(weights: Path, config: RankReportConfig, accelerator: Accelerator) -> Supernet:
    net = load_supernet(weights)
    net.to(accelerator.device, torch.float64 if config.precision == "fp64" else torch.float32)
    use_channels_last(net)
    return net


def _images(
    path: Path, net: Supernet, options: ScoringOptions, config: RankReportConfig, accelerator: Accelerator
) -> ScoringImages:
    return scoring_images(
        path, net.space, options, data=config.data, seed=config.seed, device=accelerator.device
    )


def _without_calibration(validation_images: int, batch: int) -> ScoringOptions:
    """Return options that score with the BatchNorm statistics that training left."""
    return ScoringOptions(statistics="supernet", validation_images=validation_images, batch=batch)


@torch.no_grad()
def _compared_modules(
    path: Path, net: Supernet, config: RankReportConfig, accelerator: Accelerator
) -> tuple[Shift | None, list[Tensor]]:
    """Return the shift of every layer, and the first layer's maps of one image.

    Supernets with the same split are compared on the same images.
    """
    if not config.shift_images:
        return None, []
    images = _images(path, net, _without_calibration(config.shift_images, SHIFT_BATCH), config, accelerator)
    if images.num_validation < 4:
        return None, []
    parts = [batch.images.to(next(net.parameters()).dtype) for batch in images.validation]
    whole = [part for part in parts if len(part) == len(parts[0])]
    shift = representation_shift(net, whole)
    with frozen_statistics(net.train()):
        features = net.begin(whole[0])
        layer = net.space.layers[0]
        maps = [net.candidate(0, choice)(features)[0].float().mean(0).cpu() for choice in layer.weighted]
    net.eval()
    return shift, maps


def _results(home: Path) -> dict[str, Any]:
    """Return the results of the supernet's training, or nothing if its run is not there."""
    file = home / "results.json"
    return read_document(file, "results", 1) if file.exists() else {}


def _likeness_course(file: Path) -> list[tuple[int, float]]:
    """Return the similarity of the supernet's modules by step, or nothing if its run is not there."""
    lines = read_metrics(file) if file.exists() else []
    return [(line["step"], _likeness(line["outputs"])) for line in lines]


def _likeness(matrices: Sequence[Sequence[Sequence[float]]]) -> float:
    """Return the mean over layers of the cosines between different modules, from a line of shift.jsonl."""
    layers = [float(off_diagonal_mean(torch.tensor(matrix, dtype=torch.float64))) for matrix in matrices]
    return sum(layers) / len(layers)
