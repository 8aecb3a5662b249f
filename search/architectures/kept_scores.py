"""Scores of a supernet's networks are kept as they come, so that none is ever computed twice."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from search.architectures.config import ScoringOptions
from search.architectures.evaluations import append_evaluations, read_evaluations
from search.architectures.images import ScoringImages, digest, keep_identity
from search.evaluator import SubnetEvaluator
from search.method import Scored
from supernet.additive import counted
from supernet.space import Architecture
from supernet.supernet import Supernet
from tools.run.folder import Run
from tools.run.launch import from_main, on_main
from tools.run.meters import MetricsLog, Progress
from tools.run.signals import waiting_signals

SCORED_TOGETHER = 64
"""How many networks are scored together. They are neighbours, which share most of their layers."""


def kept_scores(
    net: Supernet,
    weights: Path,
    networks: Iterable[Architecture],
    images: ScoringImages,
    options: ScoringOptions,
    *,
    folder: Path,
    accelerator: Accelerator,
) -> dict[Architecture, float]:
    """Return the scores of all networks; those that the folder lacks are computed and kept in it.

    They are added to the folder's evaluations.jsonl.

    Raises:
        ValueError: if the scores in the folder are of other weights, other images or other statistics.
    """
    wanted, run = list(networks), Run(folder)
    scored = from_main(
        accelerator, lambda: _read(run, net, weights, images, options, accelerator.mixed_precision)
    )
    known = {network.architecture: network.score for network in scored}
    missing = sorted(set(wanted) - known.keys(), key=lambda network: network.choices)
    if missing:
        known |= _score(net, missing, images, options, run, accelerator)
    return {network: known[network] for network in wanted}


def _score(
    net: Supernet,
    missing: list[Architecture],
    images: ScoringImages,
    options: ScoringOptions,
    run: Run,
    accelerator: Accelerator,
) -> dict[Architecture, float]:
    """Score networks, and keep each few as soon as they are scored."""
    costs = {name: counted(net.space.full, name) for name in ("macs", "params")}
    main = accelerator.is_main_process
    log = MetricsLog(run.metrics_path) if main else None
    progress = Progress(total=len(missing), start=0, shown=main, unit="network")
    progress.write(f"{run.path}: {len(missing):,} networks, on {images.num_validation:,} validation images")
    start, scores = time.perf_counter(), dict[Architecture, float]()
    try:
        with waiting_signals() as wish:
            evaluator = SubnetEvaluator(
                net,
                images.calibration,
                images.validation,
                momentum=options.momentum if options.statistics == "ema" else None,
                autocast=accelerator.autocast,
                on_batch=lambda: wish.heed(f"{len(scores):,} of {len(missing):,} scores are made and kept"),
            )
            for first in range(0, len(missing), SCORED_TOGETHER):
                chunk = missing[first : first + SCORED_TOGETHER]
                scored = list(map(Scored, chunk, evaluator(chunk)))

                def keep(scored: list[Scored] = scored) -> None:
                    append_evaluations(run.evaluations_path, scored, costs, net.space)

                on_main(accelerator, keep)
                scores |= dict(scored)
                pace = len(scores) / (time.perf_counter() - start)
                if log:
                    log.append(len(scores), {"networks_per_second": pace})
                progress.advance(len(chunk))
                left = (len(missing) - len(scores)) / pace
                progress.say(len(scores), {"networks per second": pace}, left)
    finally:
        progress.close()
        if log:
            log.close()
    return scores


def _read(
    run: Run, net: Supernet, weights: Path, images: ScoringImages, options: ScoringOptions, precision: str
) -> list[Scored]:
    """Read what was scored before, by the same weights on the same images."""
    run.path.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"supernet_sha256": digest(weights), "statistics": options.statistics}
    content["precision"] = str(next(net.parameters()).dtype) if precision == "no" else precision
    if options.statistics != "supernet":
        content["calibration_batch"] = options.calibration_batch
    if options.statistics == "ema":
        content["momentum"] = options.momentum
    content |= images.indices
    keep_identity(run.path / "scoring.json", content, begun=run.evaluations_path.exists(), run=run.path)
    return read_evaluations(run.evaluations_path, net.space)
