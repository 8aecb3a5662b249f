"""What sharing of beginnings saves: our evaluator against the same work done candidate by candidate.

python -m benchmarks.evaluator --supernet runs/supernet --data-root DIR [--device cuda] [--many 1000]

Cases, each on the populations that a real evolution under a limit produces: SPOS's evolution, the same with
one-point crossover, all networks that share their first choices, and the protocol of the released SPOS code
(as many recalibration images as it takes, an average that forgets, candidate by candidate) against our
defaults. Both ways get the same batches in memory; they run by turns, and their scores must be identical.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau

from search.architectures.config import ScoringOptions
from search.architectures.images import scoring_images
from search.evaluator import SubnetEvaluator
from search.evolution import Evolution
from search.limits import Limits
from supernet.calibrate import gathering
from supernet.network.storage import load_supernet, supernet_space
from supernet.sampling import stream
from supernet.space import Architecture
from supernet.supernet import Supernet
from tools.images.options import DataConfig
from tools.layout import use_channels_last
from tools.run.launch import launch


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--supernet", type=Path, required=True)
    options.add_argument("--data-root", required=True)
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=0)
    options.add_argument("--max-macs", type=float, default=50e6)
    options.add_argument("--generations", type=int, nargs="+", default=[1, 4, 8], help="those to measure")
    options.add_argument("--population", type=int, default=50)
    options.add_argument("--calibration-images", type=int, default=512)
    options.add_argument("--validation-images", type=int, default=1250)
    options.add_argument("--spos", type=int, default=0, help="candidates to score by SPOS's protocol too")
    options.add_argument("--spos-images", type=int, default=25600)
    options.add_argument(
        "--prefixes", type=int, default=2, help="shared beginnings of four choices to traverse"
    )
    options.add_argument("--spos-alone", type=int, default=2, help="so many of them candidate by candidate")
    options.add_argument("--only-spos", action="store_true")
    options.add_argument("--many", type=int, default=0, help="only time so many candidates, ours alone")
    asked = options.parse_args()
    # As the script does it, threads and memory allocator included.
    launch(device=asked.device, precision="fp32", threads=asked.threads, trackers=(), folder=Path())
    net = load_supernet(asked.supernet).to(asked.device)
    use_channels_last(net)
    images = Images(asked)
    if asked.many:
        report(many(net, images, asked))
        return
    for crossover in () if asked.only_spos else ("uniform", "one_point"):
        for line in evolved(net, images, asked, crossover):
            report(line)
    for line in () if asked.only_spos else exhaustive(net, images, asked):
        report(line)
    if asked.spos:
        report(against_spos(net, asked))


class Images:
    """Batches in memory, the same for both ways."""

    def __init__(self, asked: argparse.Namespace, **scoring: Any) -> None:
        options = {
            "calibration_images": asked.calibration_images,
            "validation_images": asked.validation_images,
            **scoring,
        }
        found = scoring_images(
            asked.supernet,
            supernet_space(asked.supernet),
            ScoringOptions(**options),
            data=DataConfig(name="cifar10", root=asked.data_root),
            seed=0,
            device=torch.device(asked.device),
        )
        self.calibration, self.validation = list(found.calibration), list(found.validation)


@torch.no_grad()
def alone(
    net: Supernet, architecture: Architecture, images: "Images", momentum: float | None = None
) -> float:
    """The score of one candidate by itself: extract, recalibrate, validate."""
    chain = net.extract(architecture).eval()
    with gathering([chain], momentum):
        for batch in images.calibration:
            chain(batch.images)
    correct = sum((chain(batch.images).argmax(1) == batch.targets).sum() for batch in images.validation)
    return int(correct) / sum(len(batch.targets) for batch in images.validation)


def compared(net: Supernet, images: Images, population: Sequence[Architecture]) -> dict[str, Any]:
    """Both ways on one population by turns, so that a disturbance hits both: half, whole, half, whole."""
    single: list[float] = []
    ours = theirs = 0.0
    half = -(-len(population) // 2)
    for part in (population[:half], population[half:]):
        start = clock(net)
        single += [alone(net, each, images) for each in part]
        theirs += clock(net) - start
        evaluator = SubnetEvaluator(net, images.calibration, images.validation)
        start = clock(net)
        shared = evaluator(population)
        ours += (clock(net) - start) / 2
    assert shared[: len(single)] == single, "scores differ"
    work = evaluator.work
    return {
        "networks": len(population),
        "seconds": round(ours, 2),
        "seconds_one_by_one": round(theirs, 2),
        "ratio": round(theirs / ours, 3),
        "layers": work.layers,
        "layers_one_by_one": work.layers_alone,
        "macs_ratio": round(work.saving, 3),
        "scores": "identical",
    }


def evolved(
    net: Supernet, images: Images, asked: argparse.Namespace, crossover: str
) -> Iterator[dict[str, Any]]:
    """Populations of one evolution."""
    evaluator = SubnetEvaluator(net, images.calibration, images.validation)
    evolution = Evolution(
        net.space, max_macs=asked.max_macs, seed=0, crossover=crossover, population=asked.population
    )
    for generation in range(max(asked.generations) + 1):
        population = evolution.ask()
        if generation in asked.generations:
            case = {"case": f"evolution, {crossover} crossover", "generation": generation}
            yield case | compared(net, images, population)
        evolution.tell(evaluator(population))


def exhaustive(net: Supernet, images: Images, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All networks that share their first four choices."""
    rng = stream(0, "benchmark")
    every = list(Limits(net.space).networks())
    for start in rng.sample(sorted({each.choices[:4] for each in every}), asked.prefixes):
        population = [each for each in every if each.choices[:4] == start]
        yield {"case": f"all that begin with {''.join(map(str, start))}"} | compared(net, images, population)


def against_spos(net: Supernet, asked: argparse.Namespace) -> dict[str, Any]:
    """Random networks at our defaults; some of them as the released code scores them, candidate by candidate.

    The order of the scores is compared over all of them. For that the released protocol runs through our
    evaluator too, which gives the same numbers (a test), on its last 60 batches: what was before them has a
    weight of 0.2 %.
    """
    defaults = Images(asked, calibration_images=2048, validation_images=5000)
    released = Images(asked, calibration_images=asked.spos_images, validation_images=5000)
    rng = stream(1, "benchmark")
    population = rng.sample(list(Limits(net.space).networks()), asked.spos)
    start = clock(net)
    ours = SubnetEvaluator(net, defaults.calibration, defaults.validation)(population)
    seconds = clock(net) - start
    alone_start = clock(net)
    single = [alone(net, each, released, momentum=0.1) for each in population[: asked.spos_alone]]
    spent = (clock(net) - alone_start) / asked.spos_alone
    late = released.calibration[-60:]
    theirs = SubnetEvaluator(net, late, defaults.validation, momentum=0.1)(population)
    return {
        "case": "the released SPOS protocol against our defaults",
        "networks": len(population),
        "seconds_each": round(seconds / len(population), 2),
        "seconds_each_spos": round(spent, 2),
        "ratio": round(spent / (seconds / len(population)), 2),
        "kendall_tau": round(float(kendalltau(ours, theirs).statistic), 4),
        "last_60_batches_against_all": [round(x - y, 4) for x, y in zip(theirs, single, strict=False)],
    }


def many(net: Supernet, images: Images, asked: argparse.Namespace) -> dict[str, Any]:
    """How long so many random candidates take."""
    rng = stream(2, "benchmark")
    population = rng.sample(list(Limits(net.space).networks()), asked.many)
    evaluator = SubnetEvaluator(net, images.calibration, images.validation)
    start = clock(net)
    evaluator(population)
    return {
        "case": f"{asked.many} random networks on {asked.validation_images} images",
        "seconds": round(clock(net) - start, 1),
        "macs_ratio": round(evaluator.work.saving, 3),
    }


def clock(net: Supernet) -> float:
    """Now, when the device has done its work."""
    if next(net.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def report(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
