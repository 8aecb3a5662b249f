"""Blocks on processes of their own against other ways to use the same machine, and against the model of them.

    python -m benchmarks.blocks
    python -m benchmarks.blocks --cases backprop blocks model --rounds 1 --steps 24
    python -m benchmarks.blocks --device cuda --width 1 --blocks 2 --steps 300

Each case is a command of its own, run once a round, by turns: the same network, images and batches, steady
state, no evaluation. Ratios are of one round. Cases, each process with one thread or one GPU:

    backprop            one process
    backprop-2-threads  one process with two threads (CPU only)
    ddp                 backpropagation on K processes that share the rows, BatchNorm's statistics included
    ddp-own-statistics  the same, but each process takes BatchNorm's statistics of its own rows
    sequential          the rule of the blocks in one process (CPU only)
    blocks              K blocks on K processes
    1f1b                torch.distributed.pipelining on K processes, its stages balanced without heads, with
                        several numbers of microbatches, of which the fastest counts
    model               no training: what the model of `--plan` expects, from blocks that are measured in one
                        process alone and (on CPU) in K processes at the same time
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from local_learning.build import build_chain
from local_learning.chain import Chain
from local_learning.cuts.profile import Costs, measure_costs
from local_learning.decoupling import Decoupling, load_decoupling
from retrain.placing.block_costs import load_block_costs
from retrain.placing.forecast import BlockCost, BlockCosts, Conditions, Line, backprop, forecast
from retrain.placing.measuring import placed
from tools.layout import use_channels_last
from tools.run.launch import launch

CLASSES = 10
TRAIN_SIZE = 2000
TIMES = 3
"""Layers are measured so often before the cuts are chosen; the best counts."""

BARS = {
    ("blocks", "backprop"): 1.85,
    ("blocks", "backprop-2-threads"): 1.05,
    ("blocks", "ddp"): 1.1,
    ("blocks", "ddp-own-statistics"): 1.1,
    ("blocks", "1f1b"): 1.2,
    ("sequential", "backprop"): 0.95,
    ("blocks", "sequential"): None,
}
CASES = {
    "cuda": ("backprop", "ddp", "ddp-own-statistics", "blocks", "1f1b", "model"),
    "cpu": (*dict.fromkeys(name for pair in reversed(BARS) for name in reversed(pair)), "model"),
}


def main() -> None:
    asked = parse()
    # Layers are measured in the way in which they are trained.
    launch(device=asked.device, precision="fp32", threads=1, trackers=(), folder=Path("."))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = settle(asked, folder)
        link = last_line(launched(asked.blocks, f"{asked.worker} --ping {asked.message_bytes}"))
        say(link=f"{asked.blocks} processes, {asked.message_bytes / 1e6:.3g} MB", **link)
        speeds: dict[str, list[float]] = {case: [] for case in commands}
        models: dict[str, list[BlockCosts]] = {}
        for number in range(asked.rounds):
            if "model" in asked.cases:
                for label, costs in profiles(asked, folder, number).items():
                    models.setdefault(label, []).append(costs)
            for case, command in commands.items():
                speeds[case].append(speed(case, command, folder / f"{case}-{number}", asked))
            say(round=number, **{case: round(found[-1], 1) for case, found in speeds.items()})
    for case, found in speeds.items():
        say(case=case, images_per_second=spread(found, 1))
    if pipelines := [found for case, found in speeds.items() if case.startswith("1f1b")]:
        speeds["1f1b"] = max(pipelines, key=statistics.median)
    for (one, other), bar in BARS.items():
        if one in speeds and other in speeds:
            ratios = [x / y for x, y in zip(speeds[one], speeds[other], strict=True)]
            say(ratio=f"{one} / {other}", **spread(ratios, 3), bar=bar)
    on = Conditions(batch_size=asked.batch_size, **link)
    for label, each in models.items():
        say(model=label, **foreseen(each, on, speeds))


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--network", default="resnet50")
    options.add_argument("--width", type=float, default=0.25)
    options.add_argument("--image-size", type=int, default=32)
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--head", default="aux1")
    options.add_argument("--blocks", type=int, default=2, help="and processes of most cases")
    options.add_argument("--decoupling", help="a decoupling.json in place of balanced cuts")
    options.add_argument("--microbatches", type=int, nargs="+", default=[2, 4, 8], help="of 1f1b")
    options.add_argument("--device", default="cpu", choices=list(CASES))
    options.add_argument("--cases", nargs="+", default=[], help="some of the cases; all by default")
    options.add_argument("--steps", type=int, default=60, help="the first sixth is not timed")
    options.add_argument("--rounds", type=int, default=3)
    asked = options.parse_args()
    asked.cases = asked.cases or list(CASES[asked.device])
    if unknown := set(asked.cases) - set(CASES[asked.device]):
        options.error(f"--cases: on {asked.device} there is no {', '.join(sorted(unknown))}")
    asked.log_every = max(1, asked.steps // 6)
    return asked


def settle(asked: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Choose the cuts, once for all; the command of each case, which goes on with where to write."""
    chain = build_chain(
        asked.network, num_classes=CLASSES, image_size=asked.image_size, width=asked.width
    ).to(asked.device)
    use_channels_last(chain)

    @cache
    def costs(head: str, rows: int) -> Costs:
        return best_costs(chain, head, rows, asked)

    trunk = costs(asked.head, asked.batch_size)
    if not asked.decoupling:  # as the trainer chooses them
        cuts = f"--decoupling balanced:{asked.blocks}:{asked.head} --parallel blocks --recipe.steps 1"
        line = launched(asked.blocks, f"{script_of(asked)} --threads 1 {cuts}")
        run([*line, "--run", str(folder / "chosen")])
        asked.decoupling = str(folder / "chosen" / "decoupling.json")
    decoupling = load_decoupling(asked.decoupling)
    asked.blocks = decoupling.num_blocks
    # Without heads, and with as many rows at a time as a pipeline has: its balance is another one.
    bare = costs("", max(2, asked.batch_size // 4))
    stages = Decoupling.balanced(bare.layers, bare.heads, bare.classifier, asked.blocks, asked.head)
    heads = [
        costs(head, asked.batch_size).heads[cut - 1]
        for cut, head in zip(decoupling.cuts, decoupling.heads, strict=True)
    ]
    times = [
        sum(trunk.layers[index] for index in layers) + head
        for layers, head in zip(decoupling.blocks(chain.num_layers), [*heads, trunk.classifier], strict=True)
    ]
    say(
        setup=f"{asked.network} {asked.width}x, {asked.image_size}x{asked.image_size}, "
        f"batch {asked.batch_size}, {asked.device}",
        cuts=decoupling.cuts,
        heads=decoupling.heads,
        pipeline_cuts=stages.cuts,
        share_of_heads=round(sum(heads) / sum(times), 3),
        limit_by_layers=round((sum(trunk.layers) + trunk.classifier) / max(times), 3),
    )
    # What a batch hands on, at most: the bytes with which the next layer begins.
    entries = measure_costs(chain, "", CLASSES, asked.image_size, by="memory", batch_size=2).entries
    largest = max(entries[min(cut, chain.num_layers - 1)] for cut in decoupling.cuts)
    asked.message_bytes = int(largest) // 2 * asked.batch_size
    return commands_of(asked, stages.cuts)


def commands_of(asked: argparse.Namespace, stages: Sequence[int]) -> dict[str, list[str]]:
    """Of each case."""
    script = f"{script_of(asked)} --recipe.steps {asked.steps} --recipe.log-every {asked.log_every}"
    asked.script = script
    asked.worker = f"--module benchmarks.one_f_one_b {share_of(asked)} --image-size {asked.image_size}"
    worker = f"{asked.worker} --batch-size {asked.batch_size} --train-size {TRAIN_SIZE} --lr 0.02"
    worker += f" --steps {asked.steps} --warm-up {asked.log_every} --cuts {' '.join(map(str, stages))}"
    cut, ranks = f"--decoupling {asked.decoupling}", asked.blocks
    found = {
        "backprop": launched(1, f"{script} --threads 1"),
        "backprop-2-threads": launched(1, f"{script} --threads 2"),
        "ddp": launched(ranks, f"{script} --threads 1 --parallel data"),
        "ddp-own-statistics": launched(ranks, f"{script} --threads 1 --parallel data --no-sync-batchnorm"),
        "sequential": launched(1, f"{script} --threads 1 {cut}"),
        "blocks": launched(ranks, f"{script} --threads 1 {cut} --parallel blocks"),
    }
    for count in asked.microbatches:
        if count >= ranks and asked.batch_size % count == 0:
            found[f"1f1b, {count}"] = launched(ranks, f"{worker} --microbatches {count}")
    return {case: line for case, line in found.items() if case.split(",")[0] in asked.cases}


def share_of(asked: argparse.Namespace) -> str:
    """The options that both kinds of workers have."""
    return f"--network {asked.network} --width {asked.width} --device {asked.device}"


def script_of(asked: argparse.Namespace) -> str:
    """What all cases of ours have in common."""
    script = f"retrain_model.py {share_of(asked)} --data.name shapes --data.image-size {asked.image_size}"
    script += f" --data.train-size {TRAIN_SIZE} --data.test-size 100 --data.validation 0"
    return (
        f"{script} --recipe.lr 0.02 --recipe.checkpoint-every 100000 --recipe.batch-size {asked.batch_size}"
    )


def launched(ranks: int, line: str) -> list[str]:
    """The command line of a script on so many processes."""
    if ranks == 1:
        return [sys.executable, *shlex.split(line)]
    launcher = "-m accelerate.commands.launch --multi_gpu --num_machines 1 --mixed_precision no"
    launcher += f" --dynamo_backend no --main_process_port 0 --num_processes {ranks}"
    return [sys.executable, *shlex.split(f"{launcher} {line}")]


def speed(case: str, command: list[str], folder: Path, asked: argparse.Namespace) -> float:
    """Images per second of one run, but for its first steps."""
    if case.startswith("1f1b"):
        return float(last_line(command)["images_per_second"])
    run([*command, "--run", str(folder)])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [after["step"] - before["step"] for before, after in pairwise(lines)]
    return float(statistics.harmonic_mean([line["images_per_second"] for line in lines[1:]], weights=steps))


def run(*commands: list[str]) -> str:
    """Run commands at the same time; what the last of them printed."""
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    out = ""
    for process in started:
        out, error = process.communicate()
        if process.returncode:
            raise SystemExit(f"{shlex.join(process.args)}\n{error}")  # type: ignore[arg-type]
    return out


def last_line(command: list[str]) -> dict[str, Any]:
    """The JSON line that a command printed last."""
    found: dict[str, Any] = json.loads(run(command).strip().splitlines()[-1])
    return found


def best_costs(chain: Chain, head: str, rows: int, asked: argparse.Namespace) -> Costs:
    """Each layer's and head's best time of several measurements."""
    size = asked.image_size
    several = [measure_costs(chain, head, CLASSES, size, by="time", batch_size=rows) for _ in range(TIMES)]
    layers = zip(*(each.layers for each in several), strict=True)
    heads = zip(*(each.heads for each in several), strict=True)
    last = min(each.classifier for each in several)
    return replace(several[0], layers=tuple(map(min, layers)), heads=tuple(map(min, heads)), classifier=last)


def profiles(asked: argparse.Namespace, folder: Path, number: int) -> dict[str, BlockCosts]:
    """The blocks' costs, measured alone and in as many processes at a time as there are blocks."""
    line = f"{asked.script} --threads 1 --decoupling {asked.decoupling}"
    line += f" --plan --cluster.devices {asked.blocks}"
    found = {}
    for label, count in {"measured alone": 1, "measured together": asked.blocks}.items():
        if count == 1 or asked.device == "cpu":
            files = [folder / f"profile-{number}-{count}-{each}.json" for each in range(count)]
            run(*(launched(1, f"{line} --cluster.profile {file}") for file in files))
            found[label] = mean_costs([load_block_costs(file) for file in files])
    return found


def mean_costs(several: Sequence[BlockCosts]) -> BlockCosts:
    """Costs whose times are the mean of several."""
    mean = statistics.fmean

    def line(lines: Sequence[Line]) -> Line:
        return Line(fixed=mean(each.fixed for each in lines), per_row=mean(each.per_row for each in lines))

    def merged(of: Sequence[BlockCost]) -> BlockCost:
        forward, passes = line([each.forward for each in of]), line([each.passes for each in of])
        return replace(of[0], forward=forward, passes=passes, update=mean(each.update for each in of))

    blocks = tuple(map(merged, zip(*(each.blocks for each in several), strict=True)))
    return replace(several[0], blocks=blocks, whole=merged([each.whole for each in several]))


def foreseen(several: Sequence[BlockCosts], on: Conditions, speeds: dict[str, list[float]]) -> dict[str, Any]:
    """The model's images per second beside those measured; each round has a measurement of its own."""
    expected = {
        "blocks": [forecast(each, placed(each, len(each.blocks), on, apart=True), on) for each in several],
        "backprop": [backprop(each, 1, on) for each in several],
    }
    limits = [
        whole.pace / max(stage.busy for stage in found.stages)
        for found, whole in zip(expected["blocks"], expected["backprop"], strict=True)
    ]
    line: dict[str, Any] = {"limit": spread(limits, 3), "limited_by": expected["blocks"][-1].limit}
    for case, found in expected.items():
        predicted = statistics.median(each.images_per_second for each in found)
        line[case] = {"predicted": round(predicted, 1)}
        if case in speeds:
            measured = statistics.median(speeds[case])
            error = round(100 * (predicted / measured - 1), 1)
            line[case] |= {"measured": round(measured, 1), "error_percent": error}
    return line


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    found = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
