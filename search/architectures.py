"""From a config to the best networks of a supernet: images, method, scores, and what is written of them."""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from search.architecture_config import ArchitectureSearchConfig
from search.architecture_findings import results_of, summary, write_findings
from search.architecture_images import ScoringImages, scoring_images
from search.evaluations import append_evaluations, read_evaluations
from search.evaluator import SubnetEvaluator
from search.method import Method, Scored
from search.methods import make_method
from search.trie import Work
from supernet.additive import Additive, activations, counted, latency
from supernet.measure import Measured, load_measured
from supernet.space import Space
from supernet.storage import load_supernet, weights_file
from supernet.supernet import Supernet
from tools.config import flatten
from tools.files import read_document, write_document
from tools.launch import on_main
from tools.layout import use_channels_last
from tools.meters import MetricsLog, Progress, read_metrics
from tools.options import FREE
from tools.runs import Run
from tools.signals import Wish, waiting_signals
from tools.stage import in_run

LESS_MEMORY = "lower --scoring.batch and --scoring.calibration-batch"


def search_architecture(config: ArchitectureSearchConfig) -> None:
    """Search as the config says, or continue, or say that it is done."""
    in_run(config, _search, summary, free=FREE | {"supernet", "compare", "top"}, smaller=LESS_MEMORY)


def _search(config: ArchitectureSearchConfig, run: Run, accelerator: Accelerator) -> None:
    net = load_supernet(Path(config.supernet))
    space = net.space
    measured = _measured(config, space)
    costs = _costs(space, measured)
    method = make_method(config, space, costs)
    others = {Path(name).name: _other(Path(name), space) for name in config.compare}
    images = scoring_images(config, space, accelerator.device)
    net.to(accelerator.device, torch.float64 if config.precision == "fp64" else torch.float32)
    use_channels_last(net)
    on_main(accelerator, lambda: _compare_images(config, run, images))
    told: list[Any] = [on_main(accelerator, lambda: read_evaluations(run.evaluations_path, space))]
    if accelerator.num_processes > 1:
        broadcast_object_list(told)
    accelerator.init_trackers("cleave", config={key: str(value) for key, value in flatten(config).items()})
    if accelerator.is_main_process:
        print(_heading(config, method, images, measured, len(told[0]), accelerator), flush=True)
    with waiting_signals() as wish:
        course = _Course(config, run, accelerator, method, costs, wish, images.batches)
        done = course.go(net, images, told[0])

    def finish() -> dict[str, Any]:
        write_findings(run, config, method, costs, others)
        seconds = sum(line["seconds"] for line in read_metrics(run.metrics_path))
        results = results_of(method, costs, done, measured=measured, seconds=seconds)
        run.write_results(results)
        return results

    results = on_main(accelerator, finish)
    if results is not None:
        print(summary(run, results), flush=True)


class _Course:
    """The way from the first population to the last."""

    def __init__(
        self,
        config: ArchitectureSearchConfig,
        run: Run,
        accelerator: Accelerator,
        method: Method,
        costs: Mapping[str, Additive],
        wish: Wish,
        batches: int,
    ) -> None:
        self._config, self._run, self._accelerator = config, run, accelerator
        self._method, self._costs, self._wish, self._batches = method, costs, wish, batches
        main = accelerator.is_main_process
        self._log = MetricsLog(run.metrics_path) if main else None
        self._progress = Progress(total=method.planned, start=0, shown=main, unit="network")
        self._told = self._new = self._asked = self._passed = 0
        self._seconds = 0.0
        self._work = Work(0, 0, 0, 0)

    def go(self, net: Supernet, images: ScoringImages, known: Sequence[Scored]) -> Work:
        """Score what the method asks for until it asks no more; returns the work that was done."""
        options = self._config.scoring
        evaluator = SubnetEvaluator(
            net,
            images.calibration,
            images.validation,
            momentum=options.momentum if options.statistics == "ema" else None,
            autocast=self._accelerator.autocast,
            on_batch=self._on_batch,
        )
        evaluator.scores |= dict(known)
        try:
            while asked := self._method.ask():
                new = [each for each in asked if each not in evaluator.scores]
                self._asked, self._passed = len(new), 0
                self._progress.advance(len(asked) - len(new))
                start = time.perf_counter()
                scores = evaluator(asked)
                found = [Scored(each, evaluator.scores[each]) for each in new]
                self._keep(found)
                self._method.tell(scores)
                self._told += len(asked)
                if new:
                    self._tell(scores, len(new), time.perf_counter() - start, evaluator.work)
        finally:
            self._progress.close()
            if self._log:
                self._log.close()
        return self._work

    def _keep(self, found: Sequence[Scored]) -> None:
        if found:
            path = self._run.evaluations_path
            on_main(self._accelerator, lambda: append_evaluations(path, found, self._costs))

    def _on_batch(self) -> None:
        """A batch has gone through the population: show it, and see whether to stop."""
        before, self._passed = self._passed, self._passed + 1
        share = [self._asked * passed // self._batches for passed in (before, self._passed)]
        self._progress.advance(share[1] - share[0])
        self._wish.heed(f"the scores of {self._told} networks are kept")

    def _tell(self, scores: Sequence[float], new: int, seconds: float, work: Work) -> None:
        """A line of metrics, and one for the user."""
        self._work = Work(*map(sum, zip(self._work, work, strict=True)))
        self._new, self._seconds = self._new + new, self._seconds + seconds
        best = self._method.best()[0]
        line = {
            "generation": len(self._method.history) - 1,
            "best": best.score,
            "mean": math.fsum(scores) / len(scores),
            "networks_per_second": new / seconds,
        }
        if self._log:
            more = {"new": new, "seconds": seconds, "saving": work.saving}
            self._log.append(self._told, line | more | {"best_choices": list(best.architecture.choices)})
        self._accelerator.log(line, step=self._told)
        left = max(0, self._method.planned - self._told) * self._seconds / self._new
        self._progress.say(self._told, line, left)


def _measured(config: ArchitectureSearchConfig, space: Space) -> Measured | None:
    """The table of measured costs that is named, or lies beside the supernet."""
    path = Path(config.costs) if config.costs else weights_file(Path(config.supernet)).with_name("costs.json")
    if not config.costs and not path.exists():
        return None
    try:
        measured = load_measured(path)
    except ValueError as error:
        raise ValueError(f"--costs: {error}") from None
    sizes = [len(layer) for layer in space.layers]
    if any([len(row) for row in table] != sizes for table in (measured.seconds, measured.saved_bytes)):
        raise ValueError(f"--costs: '{path}' is of space {measured.space}, which has other candidates")
    return measured


def _costs(space: Space, measured: Measured | None) -> dict[str, Additive]:
    """All costs that can be limited here, by name."""
    costs = [counted(space, "macs"), counted(space, "params")]
    if measured:
        costs += [latency(measured), activations(measured)]
    return {cost.name: cost for cost in costs}


def _other(run: Path, space: Space) -> list[Scored]:
    found = read_evaluations(run / "evaluations.jsonl", space)
    if not found:
        raise ValueError(f"--compare: there are no scores in '{run}'")
    return found


def _compare_images(config: ArchitectureSearchConfig, run: Run, images: ScoringImages) -> None:
    """Write which images and which weights the scores are of; refuse to mix them with others."""
    path = run.path / "scoring.json"
    digest = hashlib.sha256(weights_file(Path(config.supernet)).read_bytes()).hexdigest()
    content = {"supernet_sha256": digest, **images.indices}
    if path.exists() and run.evaluations_path.exists():
        before = read_document(path, "scoring", 1)
        for name, value in content.items():
            if before.get(name) != value:
                raise ValueError(
                    f"--run: the scores in '{run.path}' were made with another {name.split('_')[0]}; "
                    "name a new folder"
                )
    else:
        write_document(path, "scoring", 1, content)


def _heading(
    config: ArchitectureSearchConfig,
    method: Method,
    images: ScoringImages,
    measured: Measured | None,
    known: int,
    accelerator: Accelerator,
) -> str:
    space, limits = method.space, method.within.limits
    asked = " and ".join(map(str, limits)) or "no limits"
    lines = [f"{space.name} ({space.num_networks:.4g} networks), {asked}"]
    if measured and any(limit.cost.name == "latency" for limit in limits):
        lines.append(
            f"latencies are those of a batch of {measured.batch_size} on {measured.device} with "
            f"{measured.threads} threads, measured on {measured.date}, and hold for nothing else"
        )
    lines.append(
        f"{method.name}, up to {method.planned:,} networks, each on {images.num_validation:,} validation "
        f"images with BatchNorm statistics of {images.said_of_calibration} on {accelerator.num_processes} x "
        f"{accelerator.device.type}, {config.precision}"
    )
    if known:
        lines.append(f"continuing {config.run}: {known} networks are scored already")
    return "\n".join(lines)
