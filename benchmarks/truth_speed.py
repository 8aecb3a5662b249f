"""How many networks of a truth this checkout trains in an hour, against another one, on the same networks.

    git worktree add ../before COMMIT
    python benchmarks/truth_speed.py --before ../before
    python benchmarks/truth_speed.py --before ../before --cases macro --data-root DIR --kernels native

Each case is make_truth.py in a process of its own, by turns, with every network trained once and twice. The
difference of the two is what a training costs, and the rest is the start. Processor time of all processes is
counted, so that another program on the machine disturbs little. The lines of truth.jsonl are compared, too.
"""

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
SHAPES = "--data.name shapes --data.train-size 1000 --data.test-size 500"
CIFAR = "--data.name cifar10 --data.train-size 5000 --data.test-size 1000 --data.image-size 16"
CASES = {
    "mini": f"--space {HERE}/configs/demo/mini.toml {SHAPES} --recipe.batch-size 64",
    "macro": f"--space {HERE}/benchmarks/nas_bench_macro_quarter.toml {CIFAR} --recipe.batch-size 128",
}
ADOPT_ORPHANS = 36
"""prctl's PR_SET_CHILD_SUBREAPER: what the script leaves behind becomes this process's child."""


def main() -> None:
    """Run all cases, and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="another checkout")
    parser.add_argument("--cases", nargs="+", default=["mini"], choices=list(CASES))
    parser.add_argument("--data-root", default="", help="where CIFAR-10 lies, for macro")
    parser.add_argument("--networks", type=int, default=6)
    parser.add_argument(
        "--kernels", default="torch", help="of this checkout; the other does as it always does"
    )
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    houses = {"before": asked.before.resolve(), "now": HERE}
    for case in asked.cases:
        options = [*CASES[case].split(), "--networks", str(asked.networks)]
        options += ["--data.root", str(Path(asked.data_root).resolve())] if case == "macro" else []
        times: dict[str, dict[str, list[float]]] = {name: {"training": [], "start": []} for name in houses}
        truths = set()
        for _ in range(asked.rounds):
            for name, house in houses.items():
                own = [*options, "--kernels", asked.kernels] if name == "now" else options
                once, _ = timed(house, [*own, "--repeats", "1"])
                twice, truth = timed(house, [*own, "--repeats", "2"])
                times[name]["training"].append((twice - once) / asked.networks)
                times[name]["start"].append(2 * once - twice)
                truths.add(truth)
        print(
            json.dumps({"case": case, "kernels": asked.kernels} | compared(times, len(truths) == 1)),
            flush=True,
        )


def timed(house: Path, options: list[str]) -> tuple[float, bytes]:
    """The processor seconds of one truth, of all its processes, and its lines."""
    env = os.environ | {"PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, str(house / "make_truth.py"), *options, "--recipe.epochs", "1"]
        line += ["--device", "cpu", "--threads", "1", "--jobs", "1", "--run", folder + "/run"]
        before = used()
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=env)
        while True:  # the server from which workers are forked ends after the script
            try:
                os.wait()
            except ChildProcessError:
                break
        return used() - before, Path(folder, "run", "truth.jsonl").read_bytes()


def used() -> float:
    """The processor seconds of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compared(times: dict[str, dict[str, list[float]]], same: bool) -> dict[str, Any]:
    """What the medians of the two come to."""
    middle = {
        name: {part: statistics.median(seconds) for part, seconds in parts.items()}
        for name, parts in times.items()
    }
    return {
        "same_truth": same,
        "seconds_a_training": {name: round(parts["training"], 2) for name, parts in middle.items()},
        "networks_an_hour": {name: round(3600 / parts["training"]) for name, parts in middle.items()},
        "ratio": round(middle["before"]["training"] / middle["now"]["training"], 3),
        "range": [
            round(
                find(
                    old / new for old, new in zip(*(times[name]["training"] for name in times), strict=True)
                ),
                3,
            )
            for find in (min, max)
        ],
        "start_seconds": {name: round(parts["start"], 1) for name, parts in middle.items()},
        "start_ratio": round(middle["before"]["start"] / middle["now"]["start"], 3),
    }


if __name__ == "__main__":
    main()
