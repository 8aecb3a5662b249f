"""This module lets a finished run go on to more steps, if its steps are those of the longer training."""

import os
from typing import Any

from tools.mistake import Mistake
from tools.options.config import of_run
from tools.options.recipes import Recipe
from tools.run.checkpoint import latest_step
from tools.run.folder import Run

LENGTH = frozenset({f"recipe.{name}" for name in ("steps", "epochs", "warmup", "milestones", "factors")})
"""These options say how long a training is, or are given in parts of its length."""


def lengthen(run: Run, config: Any, num_steps: int) -> None:
    """Turn a finished run into an unfinished one of `num_steps`; call this on one process.

    A run that is not finished stays as it is. The results so far are kept as results-<steps>.json.

    Raises:
        ValueError: The run's training is not the beginning of the longer one; the message is one line.
    """
    results = run.results
    if results is None:
        return
    done = int(results["steps"])
    old = of_run(type(config), run.config_path.read_text("utf-8"), source=str(run.config_path), checked=False)
    check_longer(old.recipe, config.recipe, done, num_steps, str(run.path))
    if latest_step(run.checkpoints) != done:
        raise Mistake("extend", f"the checkpoint of step {done} is not in {run.checkpoints} any more")
    os.replace(run.results_path, run.path / f"results-{done}.json")
    run.keep_config(config)


def check_longer(old: Recipe, new: Recipe, done: int, num_steps: int, run: str) -> None:
    """Refuse to go on from `done` steps to `num_steps` if the rates so far differ from the new recipe's."""
    if num_steps <= done:
        raise Mistake(
            "extend",
            f"'{run}' has {done:,} steps already, and {num_steps:,} are asked for",
            "give more by `recipe.steps` or `recipe.epochs`",
        )
    if new.schedule == "cosine":
        raise Mistake(
            "extend",
            f"the cosine of '{run}' ended at its last step, where that of a longer training would "
            "still be high: it is no beginning of one. Start a new run of the whole length, or "
            f"one with `weights` {run}/weights.safetensors and a cosine of its own",
        )
    for option, before, after in (
        ("recipe.warmup", [round(old.warmup * done)], [round(new.warmup * num_steps)]),
        ("recipe.milestones", _turns(old, done, done), _turns(new, num_steps, done)),
    ):
        if before != after:
            right = " ".join(f"{turn / num_steps:.6g}" for turn in before)
            raise Mistake(
                option,
                "is in parts of the length",
                f"for the rates that '{run}' had, of {num_steps:,} steps "
                f"{f'it begins with {right}' if right else f'none may be in the first {done:,}'}",
            )
    if new.factors[: len(_turns(old, done, done))] != old.factors[: len(_turns(old, done, done))]:
        raise Mistake(
            "recipe.factors", f"those of '{run}' were {old.factors}", "`extend` can only add to them"
        )


def _turns(recipe: Recipe, num_steps: int, before: int) -> list[int]:
    """Return the steps at which the rate changes, as far as they lie before another step."""
    return [step for part in recipe.milestones if (step := round(part * num_steps)) < before]
