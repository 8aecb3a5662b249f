"""Tiny runs of all scripts, and the SHA-256 of what each computed.

Two commits that print the same on one machine compute the same. Times, memory, paths and texts are left out.

    python benchmarks/unchanged.py --work DIR --kernels torch > one.txt   this checkout
    python benchmarks/unchanged.py --house OTHER --work DIR2 > two.txt    another one
    python benchmarks/unchanged.py --work DIR --again                     start all finished runs once more
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file


def words(line: str) -> list[str]:
    """The options of a command line."""
    return line.split()


PLACE = words("--device cpu --threads 1")
SMALL = [
    *PLACE,
    *words("--data.image-size 16 --data.train-size 640 --data.test-size 100 --data.validation 0.2"),
    *words("--recipe.batch-size 32 --recipe.log-every 5 --recipe.lr 0.02"),
]
SHORT = [*SMALL, *words("--recipe.steps 8 --recipe.evaluate-every 4 --recipe.checkpoint-every 3")]
SUPERNET = [
    *SHORT,
    *words("--space tiny --records.probes 1 --records.calibration-images 64 --records.calibration-batch 32"),
    *words("--records.shift-images 40 --records.latency-batch 0"),
]
RESNET = [*SHORT, *words("--network resnet18 --width 0.125")]
VGG = [*SHORT, *words("--network vgg6a --width 0.125")]
SEARCH = [
    *PLACE,
    *words("--supernet spos --population 6 --generations 2 --scoring.calibration-images 64"),
    *words("--scoring.calibration-batch 32"),
]
CUTS = [
    *SMALL,
    *words("--network vgg6a --width 0.125 --heads aux1 linear --recipe.steps 8 --recipe.evaluate-every 4"),
    *words("--recipe.checkpoint-every 4 --search.steps 6 --search.inner-steps 2 --search.snapshots 3"),
    *words("--search.validation-batch 40 --search.evaluate-every 2 --search.checkpoint-every 2"),
]
TRUTH = [
    *SMALL,
    *words("--space tiny --networks 6 --recipe.steps 6 --recipe.evaluate-every 0 --data.validation 0"),
]
RANKING = [
    *PLACE,
    *words("--networks 6 --scoring.calibration-images 64 --scoring.calibration-batch 32"),
    *words("--shift-images 40 --resamples 100"),
]

RUNS: dict[str, tuple[str, list[str], int]] = {
    "spos": ("train_supernet.py", [*SUPERNET, "--strategy", "spos"], 1),
    "fair": ("train_supernet.py", [*SUPERNET, "--strategy", "fair"], 1),
    "greedy": ("train_supernet.py", [*SUPERNET, "--strategy", "greedy"], 1),
    "nongreedy": ("train_supernet.py", [*SUPERNET, "--strategy", "nongreedy"], 1),
    "nongreedy-2-ranks": ("train_supernet.py", [*SUPERNET, "--strategy", "nongreedy"], 2),
    "infonce": (
        "train_supernet.py",
        [*SUPERNET, *words("--strategy greedy --objective infonce --tail-steps 4")],
        1,
    ),
    "evolution": ("search_architecture.py", SEARCH, 1),
    "nsga2": ("search_architecture.py", [*SEARCH, "--method", "nsga2"], 1),
    "regularised": ("search_architecture.py", [*SEARCH, "--method", "regularised"], 2),
    "random": ("search_architecture.py", [*SEARCH, "--method", "random"], 1),
    "cuts": ("search_decoupling.py", CUTS, 1),
    "cuts-2-ranks": ("search_decoupling.py", CUTS, 2),
    "backprop": ("retrain_model.py", RESNET, 1),
    "architecture": ("retrain_model.py", [*SHORT, "--architecture", "evolution/best.json"], 1),
    "blocks": ("retrain_model.py", [*VGG, "--decoupling", "cuts/decoupling-2.json"], 1),
    "local-losses": ("retrain_model.py", [*VGG, "--decoupling", "uniform:3:predsim"], 2),
    "replay": ("retrain_model.py", [*VGG, *words("--decoupling uniform:3:linear --rule replay")], 1),
    "gluing": ("retrain_model.py", [*VGG, *words("--decoupling uniform:3:linear --rule gluing")], 1),
    "groups": ("retrain_model.py", [*RESNET, *words("--decoupling uniform:2:conv1c2f --groups 2")], 1),
    **{
        f"{rule}-on-2-processes": (
            "retrain_model.py",
            [*VGG, *words(f"--decoupling uniform:2:linear --rule {rule} --parallel blocks")],
            2,
        )
        for rule in ("greedy", "replay", "gluing")
    },
    "truth": ("make_truth.py", TRUTH, 1),
    "truth-of-cuts": (
        "make_truth.py",
        [
            *SMALL,
            *words("--network vgg6a --width 0.125 --decouplings uniform:2:linear uniform:3:aux1"),
            *words("--recipe.steps 6 --recipe.evaluate-every 0 --data.validation 0"),
        ],
        2,
    ),
    "ranking": ("rank_report.py", [*RANKING, *words("--supernet spos nongreedy --truth truth")], 1),
    "export": ("export_model.py", ["--weights", "blocks/weights.safetensors"], 1),
}
"""Script, options and processes of each run; a name that is a run's is read as its folder."""

UNCOUNTED = re.compile(
    r"seconds|per_second|peak_memory|latency|timing|provenance|sha256|commit|versions|machine|plugins"
    r"|^idle/|^queue/|balanced|^words$|^(config|run|source|sources|path|folder|made_with|when)$"
)
"""Names of what may differ: times and what is balanced by them, memory, places, where results come from."""

UNCOUNTED_TEXT = re.compile(r"\b[0-9a-f]{10}\b(, changed since)?|\bin \d+ s\b")
"""A commit, and how long something took, within a text."""


def command(house: Path, script: str, options: list[str], ranks: int) -> list[str]:
    """The command line of a run."""
    if ranks == 1:
        return [sys.executable, str(house / script), *options]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launcher += ["--num_processes", str(ranks), "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, "--main_process_port", "0", str(house / script), *options]


def counted(value: Any) -> Any:
    """A document without what differs from one start to the next."""
    if isinstance(value, dict):
        return {name: counted(inner) for name, inner in sorted(value.items()) if not UNCOUNTED.search(name)}
    if isinstance(value, str):
        return UNCOUNTED_TEXT.sub("", value)
    return [counted(inner) for inner in value] if isinstance(value, list) else value


def digests(folder: Path) -> Iterator[tuple[str, str]]:
    """The SHA-256 of each file of a run that holds numbers."""
    for path in sorted(folder.rglob("*")):
        name, suffix = path.relative_to(folder), path.suffix
        if "checkpoints" in name.parts or "balanced" in path.name or not path.is_file():
            continue
        if suffix == ".safetensors":
            tensors = sorted(load_file(path).items())
            yield (
                str(name),
                _digest(part for key, value in tensors for part in (key.encode(), value.tobytes())),
            )
        elif suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if suffix == ".jsonl" else [path.read_text()]
            yield str(name), _digest(json.dumps(counted(json.loads(line))).encode() for line in lines)
        elif suffix in (".csv", ".npz"):
            yield str(name), _digest([path.read_bytes()])


def _digest(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]


def main() -> None:
    """Run what is asked for, and print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--house", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--again", action="store_true", help="finished runs are started once more")
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--kernels", default="", help="whose functions compute, where a script can choose")
    asked = parser.parse_args()
    env = os.environ | {"PYTHONPATH": str(asked.house.resolve()), "OMP_NUM_THREADS": "1"}
    asked.work.mkdir(parents=True, exist_ok=True)
    for name in asked.only:
        script, options, ranks = RUNS[name]
        if asked.again or not (asked.work / f"{name}.done").exists():
            if script == "export_model.py":  # which writes to new folders only
                shutil.rmtree(asked.work / name, ignore_errors=True)
            folder = ["--out" if script == "export_model.py" else "--run", name]
            if asked.kernels and script not in ("rank_report.py", "export_model.py"):
                folder += ["--kernels", asked.kernels]
            line = command(asked.house.resolve(), script, [*options, *folder], ranks)
            done = subprocess.run(line, cwd=asked.work, env=env, capture_output=True, text=True)
            (asked.work / f"{name}.said").write_text(done.stdout + done.stderr)
            if done.returncode:
                print(f"{name}: ended with {done.returncode}: {done.stderr.strip()[-300:]}", flush=True)
                continue
            (asked.work / f"{name}.done").touch()
        for file, digest in digests(asked.work / name):
            print(f"{digest}  {name}/{file}", flush=True)


if __name__ == "__main__":
    main()
