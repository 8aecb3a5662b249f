"""Which option a word that is none most likely means; free of torch."""

from collections.abc import Collection

ELSEWHERE = {
    "learning-rate": "lr",
    "base-lr": "lr",
    "bs": "batch-size",
    "batch": "batch-size",
    "num-epochs": "epochs",
    "max-epochs": "epochs",
    "num-steps": "steps",
    "max-steps": "steps",
    "iterations": "steps",
    "wd": "weight-decay",
    "optim": "optimizer",
    "opt": "optimizer",
    "scheduler": "schedule",
    "lr-scheduler": "schedule",
    "clip-grad": "clip-norm",
    "num-workers": "workers",
    "img-size": "image-size",
    "input-size": "image-size",
    "dataset": "data.name",
    "data": "data.name",
    "data-dir": "data.root",
    "data-path": "data.root",
    "arch": "network",
    "model": "network",
    "checkpoint": "weights",
    "output-dir": "run",
    "out-dir": "run",
    "resume": "run",
    "amp": "precision",
    "mixed-precision": "precision",
}
"""What options that are usual in other tools are called here."""


def options_meant(word: str, known: Collection[str]) -> list[str]:
    """The known options that end as a word does, or as what it is called here; none where that is unlike all.

    Those of the word's own group come alone, where it names one that has them.
    """
    group, _, last = word.removeprefix("--").rpartition(".")
    last = ELSEWHERE.get(last, last)
    ending = [name for name in known if name == f"--{last}" or name.endswith(f".{last}")]
    return [name for name in ending if name.startswith(f"--{group}.")] or ending
