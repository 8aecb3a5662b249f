"""BlockProp's two algorithms against backpropagation, in one process and with a block on each process.

    python -m benchmarks.gluing
    python -m benchmarks.gluing --network resnet18 --train-size 512 --rounds 1

Each case is a training of retrain_model.py, run once a round, by turns: the same network, images, batches and
cuts, one thread for each process. The first epoch is not counted, in which Algorithm 2 has nothing stored yet
and does what Algorithm 1 does. The epochs that are counted hold one with h-steps to `--h-every` of all.
Prints one JSON line for each case and ratio. Ratios are of one round. Cases:

    backprop             one process
    backprop-2-threads   one process with two threads
    algorithm-1          gluing in one process
    algorithm-2          gluing with a cache in one process
    algorithm-1-blocks   gluing with a block on each process
    algorithm-2-blocks   gluing with a cache and a block on each process
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.blocks import launched, run, say, spread
from local_learning.decoupling import load_decoupling

RATIOS = (
    ("algorithm-1", "backprop"),
    ("algorithm-2", "backprop"),
    ("algorithm-1-blocks", "backprop"),
    ("algorithm-2-blocks", "backprop"),
    ("algorithm-2-blocks", "backprop-2-threads"),
    ("algorithm-2-blocks", "algorithm-1-blocks"),
)


def main() -> None:
    asked = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = commands_of(asked, folder)
        found: dict[str, list[dict[str, float]]] = {case: [] for case in commands}
        for number in range(asked.rounds):
            for case, command in commands.items():
                found[case].append(speeds(command, folder / f"{case}-{number}", asked))
            say(
                round=number,
                **{case: round(each[-1]["images_per_second"], 1) for case, each in found.items()},
            )
    for case, rounds in found.items():
        each = {name: spread([one[name] for one in rounds], 1) for name in rounds[0]}
        say(case=case, **each)
    for one, other in RATIOS:
        if one in found and other in found:
            pairs = zip(found[one], found[other], strict=True)
            ratios = [x["images_per_second"] / y["images_per_second"] for x, y in pairs]
            say(ratio=f"{one} / {other}", **spread(ratios, 3))


def commands_of(asked: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Choose the cuts, once for all; the command of each case, which goes on with where to write."""
    script = f"retrain_model.py --network {asked.network} --width {asked.width} --device cpu"
    script += f" --data.name shapes --data.image-size {asked.image_size} --data.train-size {asked.train_size}"
    script += " --data.test-size 100 --data.validation 0 --data.augment none --recipe.lr 0.005"
    script += f" --recipe.batch-size {asked.batch_size} --recipe.checkpoint-every 100000"
    chosen = folder / "chosen"
    cuts = f"--threads 1 --decoupling balanced:{asked.blocks}:linear --recipe.steps 1"
    run([*launched(1, f"{script} {cuts}"), "--run", str(chosen)])
    epoch = asked.train_size // asked.batch_size
    script += f" --recipe.steps {epoch * (1 + asked.h_every)} --recipe.log-every {epoch}"
    gluing = f"{script} --threads 1 --decoupling {chosen / 'decoupling.json'} --rule gluing"
    gluing += f" --gluing.penalty {asked.penalty}"
    cached = f"{gluing} --gluing.cache --gluing.h-every {asked.h_every}"
    say(
        setup=f"{asked.network} {asked.width}x, {asked.image_size}x{asked.image_size}, "
        f"batch {asked.batch_size}, {asked.train_size} images, h-steps at every {asked.h_every}th visit",
        cuts=load_decoupling(chosen / "decoupling.json").cuts,
    )
    found = {
        "backprop": launched(1, f"{script} --threads 1"),
        "backprop-2-threads": launched(1, f"{script} --threads 2"),
        "algorithm-1": launched(1, gluing),
        "algorithm-2": launched(1, cached),
        "algorithm-1-blocks": launched(asked.blocks, f"{gluing} --parallel blocks"),
        "algorithm-2-blocks": launched(asked.blocks, f"{cached} --parallel blocks"),
    }
    return {case: command for case, command in found.items() if case in asked.cases}


def speeds(command: list[str], folder: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Images per second of one run: of all epochs that count, and with a cache of both kinds of them."""
    run([*command, "--run", str(folder)])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # An image's n-th visit is in the n-th epoch; the first one is left out.
    epochs = [float(line["images_per_second"]) for line in lines if "images_per_second" in line][1:]
    assert len(epochs) == asked.h_every
    found = {"images_per_second": statistics.harmonic_mean(epochs)}
    if "--gluing.cache" in command and asked.h_every > 1:
        found |= {
            "with_h_steps": epochs[-1],
            "between_h_steps": statistics.harmonic_mean(epochs[:-1]),
        }
    return found


def parse() -> Any:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--network", default="resnet50")
    options.add_argument("--width", type=float, default=0.25)
    options.add_argument("--image-size", type=int, default=32)
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--train-size", type=int, default=1024, help="images, of whole batches")
    options.add_argument("--blocks", type=int, default=2, help="and processes of the cases with blocks")
    options.add_argument("--h-every", type=int, default=4, help="h-steps of Algorithm 2")
    options.add_argument("--penalty", type=float, default=1.0)
    options.add_argument("--rounds", type=int, default=3)
    cases = dict.fromkeys(case for pair in reversed(RATIOS) for case in reversed(pair))
    options.add_argument("--cases", nargs="+", default=list(cases), choices=list(cases))
    asked = options.parse_args()
    if asked.train_size % asked.batch_size:
        options.error("--train-size: must be a multiple of --batch-size, so that an epoch is whole steps")
    return asked


if __name__ == "__main__":
    main()
