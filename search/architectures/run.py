"""A config becomes the best networks of a supernet: images, method, scores, and findings."""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from search.architectures.config import ArchitectureSearchConfig
from search.architectures.evaluations import append_evaluations, read_evaluations
from search.architectures.findings import (
    architecture_results,
    architecture_summary,
    write_architecture_findings,
)
from search.architectures.images import ScoringImages, digest, keep_identity, scoring_images, what
from search.architectures.methods import make_method
from search.evaluator import SubnetEvaluator
from search.method import Method, Scored
from search.trie import work
from supernet.additive import Additive, activations, counted, latency
from supernet.network.storage import load_supernet, supernet_space, weights_file
from supernet.space import Architecture, Space
from supernet.supernet import Supernet
from supernet.train.measure import Measured, load_measured
from tools.files.atomic import read_document
from tools.kernels.modules import use_kernels
from tools.layout import use_channels_last
from tools.mistake import Mistake, quoted
from tools.options.config import flag
from tools.options.shared import FREE
from tools.run.folder import Run
from tools.run.launch import from_main, on_main, start_trackers
from tools.run.meters import MetricsLog, Progress, read_metrics
from tools.run.signals import Wish, waiting_signals
from tools.run.stage import Stage


def search_architecture(config: ArchitectureSearchConfig) -> None:
    """Search as the config says, or continue, or report that the run is done."""
    free = FREE | {"supernet", "costs", "compare", "top", "scoring.batch"}
    with Stage(config, free=free, smaller=f"lower {flag('scoring.batch')}") as stage:
        if stage.finished:
            stage.on_main(lambda: _write_again(stage.config, stage.run))
        else:
            _search(stage.config, stage.run, stage.accelerator)
        stage.print_summary(architecture_summary)


def _search(config: ArchitectureSearchConfig, run: Run, accelerator: Accelerator) -> None:
    net = load_supernet(Path(config.supernet))
    space = net.space.full
    measured = _measured(config, space)
    costs = _costs(space, measured)
    method = make_method(config, space, costs)
    images = scoring_images(
        Path(config.supernet),
        net.space,
        config.scoring,
        data=config.data,
        seed=config.seed,
        device=accelerator.device,
    )
    net.to(accelerator.device, torch.float64 if config.precision == "fp64" else torch.float32)
    use_channels_last(net)
    use_kernels(net, config.kernels)
    on_main(accelerator, lambda: _compare_images(config, run, images, measured))
    others = on_main(accelerator, lambda: _others(config, run, space)) or {}
    known = from_main(accelerator, lambda: read_evaluations(run.evaluations_path, space))
    start_trackers(accelerator, config)
    if accelerator.is_main_process:
        heading = _heading(config, method, net.space, images, measured, len(known), accelerator)
        print(*images.notes, heading, sep="\n", flush=True)
    with waiting_signals() as wish:
        _Course(config, run, accelerator, method, costs, wish, images.batches, net).go(images, known)

    def finish() -> None:
        write_architecture_findings(run, config, method, costs, measured, others, net.space)
        seconds = sum(line.get("seconds", 0.0) for line in read_metrics(run.metrics_path))
        count = images.num_validation
        run.write_results(
            architecture_results(method, costs, net.space, measured=measured, seconds=seconds, images=count)
        )

    on_main(accelerator, finish)


def _write_again(config: ArchitectureSearchConfig, run: Run) -> None:
    """Write a finished search's findings once more, for options that only change these.

    All scores are there.
    """
    if not config.compare and config.top == type(config).top:
        return
    trained = supernet_space(Path(config.supernet))
    space = trained.full
    measured = _measured(config, space)
    costs = _costs(space, measured)
    method = make_method(config, space, costs)
    scores = dict(read_evaluations(run.evaluations_path, space))
    while proposed := method.ask():
        if not all(architecture in scores for architecture in proposed):
            raise Mistake("run", f"'{run.path}' lacks scores of a search with these options")
        method.tell([scores[architecture] for architecture in proposed])
    others = _others(config, run, space)
    write_architecture_findings(run, config, method, costs, measured, others, trained)


class _Course:
    """This is the way of a search from its first population to its last."""

    def __init__(
        self,
        config: ArchitectureSearchConfig,
        run: Run,
        accelerator: Accelerator,
        method: Method,
        costs: Mapping[str, Additive],
        wish: Wish,
        batches: int,
        net: Supernet,
    ) -> None:
        self._config, self._run, self._accelerator = config, run, accelerator
        self._method, self._costs, self._wish, self._batches = method, costs, wish, batches
        self._net = net
        main = accelerator.is_main_process
        self._log = MetricsLog(run.metrics_path) if main else None
        self._progress = Progress(total=method.planned, start=0, shown=main, unit="network")
        self._scored = self._new = self._current = self._passed = 0
        self._seconds = 0.0
        self._written = set()
        if main and run.metrics_path.exists():
            self._written = {line["step"] for line in read_metrics(run.metrics_path)}

    def go(self, images: ScoringImages, known: Sequence[Scored]) -> None:
        """Score what the method proposes until it proposes no more."""
        options = self._config.scoring
        evaluator = SubnetEvaluator(
            self._net,
            images.calibration,
            images.validation,
            momentum=options.momentum if options.statistics == "ema" else None,
            autocast=self._accelerator.autocast,
            on_batch=self._on_batch,
        )
        evaluator.scores |= dict(known)
        try:
            while proposed := self._method.ask():
                new = [architecture for architecture in proposed if architecture not in evaluator.scores]
                self._current, self._passed = len(new), 0
                self._progress.advance(len(proposed) - len(new))
                start = time.perf_counter()
                scores = evaluator(proposed)
                self._keep([Scored(architecture, evaluator.scores[architecture]) for architecture in new])
                self._method.tell(scores)
                self._scored += len(proposed)
                self._report(proposed, scores, len(new), time.perf_counter() - start)
        finally:
            self._progress.close()
            if self._log:
                self._log.close()

    def _keep(self, scored: Sequence[Scored]) -> None:
        if scored:
            path, space = self._run.evaluations_path, self._net.space
            on_main(self._accelerator, lambda: append_evaluations(path, scored, self._costs, space))

    def _on_batch(self) -> None:
        """Show that a batch has gone through the population, and see whether to stop."""
        before, self._passed = self._passed, self._passed + 1
        share = [self._current * passed // self._batches for passed in (before, self._passed)]
        self._progress.advance(share[1] - share[0])
        self._wish.heed(f"the scores of {self._scored} networks are kept")

    def _report(
        self, proposed: list[Architecture], scores: Sequence[float], new: int, seconds: float
    ) -> None:
        """Write a line of metrics and one for the user; of known networks, only where metrics lack it."""
        best = self._method.best()[0]
        line: dict[str, Any] = {
            "generation": len(self._method.history) - 1,
            "best": best.score,
            "mean": math.fsum(scores) / len(scores),
        }
        facts = {"best_choices": list(best.architecture.choices), "new": new}
        facts["saving"] = work(proposed, self._net.space).saving
        if new:
            self._new, self._seconds = self._new + new, self._seconds + seconds
            line["networks_per_second"] = new / seconds
            facts["seconds"] = seconds
        elif self._scored in self._written:
            return
        if self._log:
            self._log.append(self._scored, line | facts)
        self._accelerator.log(line, step=self._scored)
        if new:
            left = max(0, self._method.planned - self._scored) * self._seconds / self._new
            self._progress.say(self._scored, line, left)


def _measured(config: ArchitectureSearchConfig, space: Space) -> Measured | None:
    """Return the table of measured costs that is named, or lies beside the supernet."""
    path = Path(config.costs) if config.costs else weights_file(Path(config.supernet)).with_name("costs.json")
    if not config.costs and not path.exists():
        return None
    try:
        measured = load_measured(path)
    except ValueError as error:
        raise Mistake("costs", quoted(error)) from None
    sizes = [len(layer) for layer in space.layers]
    other = any([len(row) for row in table] != sizes for table in (measured.seconds, measured.saved_bytes))
    if other or measured.space != space.name or measured.image_size not in (None, space.image_size):
        size = f" at {measured.image_size} pixels" if measured.image_size else ""
        raise Mistake(
            "costs",
            f"'{path}' is of space {measured.space}{size}; the supernet is of {space.name} at "
            f"{space.image_size}",
        )
    return measured


def _costs(space: Space, measured: Measured | None) -> dict[str, Additive]:
    """Return all costs that can be limited here, by name."""
    costs = [counted(space, "macs"), counted(space, "params")]
    if measured:
        costs += [latency(measured), activations(measured)]
    return {cost.name: cost for cost in costs}


def _others(config: ArchitectureSearchConfig, run: Run, space: Space) -> dict[str, list[Scored]]:
    """Return the scores of other searches, which must be of the same supernet and images."""
    scored = {}
    mine = read_document(run.path / "scoring.json", "scoring", 1)
    for name in config.compare:
        other = Path(name)
        try:
            scored[name] = read_evaluations(other / "evaluations.jsonl", space)
            theirs = read_document(other / "scoring.json", "scoring", 1) if scored[name] else {}
        except ValueError as error:
            raise Mistake("compare", quoted(error)) from None
        if not scored[name]:
            raise Mistake("compare", f"there are no scores in '{name}'")
        for key in ("supernet_sha256", "validation_images", "calibration_images"):
            if theirs.get(key) != mine[key]:
                raise Mistake("compare", f"the scores in '{name}' are of another {what(key)}")
    return scored


def _compare_images(
    config: ArchitectureSearchConfig, run: Run, images: ScoringImages, measured: Measured | None
) -> None:
    table = hashlib.sha256(repr(measured).encode()).hexdigest() if measured else ""
    content = {"supernet_sha256": digest(Path(config.supernet)), "costs_sha256": table, **images.indices}
    begun = run.evaluations_path.exists()
    keep_identity(run.path / "scoring.json", content, begun=begun, run=run.path)


def _heading(
    config: ArchitectureSearchConfig,
    method: Method,
    trained: Space,
    images: ScoringImages,
    measured: Measured | None,
    known: int,
    accelerator: Accelerator,
) -> str:
    space, limits = method.space, method.within.limits
    in_words = " and ".join(map(str, limits)) or "no limits"
    lines = [f"{space.name} ({space.num_networks:.4g} networks), {in_words}"]
    if trained.fidelity:
        lines.append(
            f"scores of {trained.fidelity}; costs and limits of the full size, {space.image_size} px"
        )
    named = {limit.cost.name for limit in limits} | set(config.breeding.objectives)
    if measured and "latency" in named:
        lines.append(
            f"latencies are those of a batch of {measured.batch_size} on {measured.device} with "
            f"{measured.threads} threads, measured on {measured.date}; they hold for nothing else"
        )
    lines.append(
        f"{method.name}, up to {method.planned:,} networks, each on {images.num_validation:,} validation "
        f"images with BatchNorm statistics of {images.said_of_calibration} on {accelerator.num_processes} x "
        f"{accelerator.device.type}, {config.precision}"
    )
    if not images.apart:
        lines.append(
            "the weights file does not say how the supernet was trained: the images are split by "
            f"{flag('seed')}, and may be among those that it was trained on"
        )
    if known:
        lines.append(f"continuing {config.run}: {known} networks are scored already")
    return "\n".join(lines)
