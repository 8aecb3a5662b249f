"""How long a script takes from its start to its first training step, against another checkout, by turns.

git worktree add ../before COMMIT
python benchmarks/starts.py --before ../before [--rounds 5]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "retrain_model.py": "--config configs/demo/retrain.toml --network resnet18 --width 0.125",
    "train_supernet.py": "--config configs/demo/supernet.toml --space configs/demo/mini.toml --strategy spos",
}


def main() -> None:
    """Start every script in both checkouts, and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    houses = {"before": asked.before.resolve(), "now": HERE}
    for script, options in SCRIPTS.items():
        seconds: dict[str, list[float]] = {name: [] for name in houses}
        for turn in range(asked.rounds + 1):
            for name, house in houses.items():
                found = first_step(house, script, options.split())
                if turn:  # the first start fills the caches
                    seconds[name].append(found)
        for name, found_by in seconds.items():
            spread = [round(find(found_by), 2) for find in (min, max)]
            line = {"script": script, "checkout": name, "seconds": round(statistics.median(found_by), 2)}
            print(json.dumps(line | {"range": spread}), flush=True)


def first_step(house: Path, script: str, options: list[str]) -> float:
    """Return the seconds until a script has reported its first step."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-u", script, *options, "--recipe.steps", "3", "--recipe.log-every", "1"]
        start = time.perf_counter()
        with subprocess.Popen(
            [*line, "--device", "cpu", "--run", f"{folder}/run"],
            cwd=house,
            env=os.environ | {"PYTHONPATH": str(house)},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert any(said.startswith("step 1/") for said in process.stdout), f"{script} made no step"
            taken = time.perf_counter() - start
            process.kill()
        return taken


if __name__ == "__main__":
    main()
