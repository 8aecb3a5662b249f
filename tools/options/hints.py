"""This module guesses which option an unknown word most likely means; it is free of torch."""

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
"""Other tools have options of these names; ours are called as given here."""


def options_meant(word: str, known: Collection[str]) -> list[str]:
    """Return the known options that end as a word does, or as its usual name here; none if there are none.

    If the word names a group that has such options, only that group's options are returned.
    """
    group, _, last = word.removeprefix("--").rpartition(".")
    last = ELSEWHERE.get(last, last)
    ending = [name for name in known if name == f"--{last}" or name.endswith(f".{last}")]
    return [name for name in ending if name.startswith(f"--{group}.")] or ending
