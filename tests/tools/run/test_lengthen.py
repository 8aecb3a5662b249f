"""A finished run made longer is the longer run, to the last bit; where it cannot be, a line says why."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.forked import run
from tests.script import SMALL, weights
from tools.optim import make_optimizer, make_schedule
from tools.options.recipes import Recipe
from tools.run.lengthen import check_longer

SHORT = [*SMALL, "--data.train-size", "160", "--recipe.checkpoint-every", "100"]
STEP = ["--recipe.schedule", "step", "--recipe.evaluate-every", "2"]
RECORDS = ["--records.probes", "0", "--records.shift-images", "0", "--records.latency-batch", "0"]
BEGUN = ["--recipe.steps", "4", "--recipe.milestones", ".5", "--recipe.factors", ".1"]
WHOLE = ["--recipe.steps", "8", "--recipe.milestones", ".25", ".75", "--recipe.factors", ".1", ".01"]


def step(*milestones: float, factors: tuple[float, ...] = (0.1, 0.01), warmup: float = 0.0) -> Recipe:
    factors = factors[: len(milestones)]
    return Recipe(schedule="step", milestones=milestones, factors=factors, warmup=warmup)


def rates(recipe: Recipe, num_steps: int, up_to: int) -> list[float]:
    optimizer = make_optimizer(recipe, [torch.nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(recipe, optimizer, num_steps)
    found = []
    for each in range(up_to):
        schedule.step_update(each)
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (Recipe(schedule="constant"), Recipe(schedule="constant")),
        (Recipe(schedule="constant", warmup=0.2), Recipe(schedule="constant", warmup=0.05)),
        (step(0.5), step(0.125)),
        (step(0.5), step(0.125, 0.25)),
        (step(1.0), step(0.25)),
    ],
)
def test_rates_of_before_are_those_of_the_longer_training(old: Recipe, new: Recipe) -> None:
    check_longer(old, new, 100, 400, "r")
    assert rates(old, 100, 100) == rates(new, 400, 100)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (Recipe(), Recipe(), "extend: the cosine of 'r' ended at its last step, where that of a longer"),
        (step(0.5), step(0.5), "recipe.milestones: is in parts of the length; .* it begins with 0.125$"),
        (step(1.0), step(0.125), "recipe.milestones: .* of 400 steps none may be in the first 100$"),
        (step(0.5), step(0.125, factors=(0.2,)), "recipe.factors: those of 'r' were"),
        (step(0.5, warmup=0.1), step(0.125, warmup=0.1), "recipe.warmup: .* it begins with 0.025$"),
    ],
)
def test_other_rates_are_refused_with_what_would_be_right(old: Recipe, new: Recipe, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        check_longer(old, new, 100, 400, "r")
    assert rates(old, 100, 100) != rates(new, 400, 100)
    with pytest.raises(ValueError, match="'r' has 100 steps already, and 100 are asked for; give more"):
        check_longer(old, new, 100, 100, "r")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "network"),
    [
        ("retrain_model.py", ["--network", "vgg6a", "--width", "0.125", "--decoupling", "uniform:2:linear"]),
        ("train_supernet.py", ["--space", "tiny", *RECORDS]),
    ],
)
def test_a_lengthened_run_is_the_longer_one(script: str, network: list[str], tmp_path: Path) -> None:
    base = [*SHORT, *STEP, *network, "--run"]
    for folder, length in ((tmp_path / "parts", BEGUN), (tmp_path / "whole", WHOLE)):
        done = run(script, *base, str(folder), *length)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "parts"
    shutil.copytree(folder, tmp_path / "bare")
    refused = run(script, *base, str(folder), *WHOLE)
    assert (refused.returncode, "--recipe.steps (was 4, is 8)" in refused.stderr) == (2, True)
    for _ in range(2):  # the second time there is nothing left to do
        done = run(script, *base, str(folder), *WHOLE, "--extend")
        assert done.returncode == 0, done.stderr
    assert "is finished" in done.stdout
    for name in ("weights.safetensors", "best.safetensors"):
        longer, whole = weights(folder, name), weights(tmp_path / "whole", name)
        assert all(torch.equal(longer[key], whole[key]) for key in whole)
    assert json.loads((folder / "results-4.json").read_text())["steps"] == 4
    assert json.loads((folder / "results.json").read_text())["steps"] == 8
    shutil.rmtree(tmp_path / "bare" / "checkpoints")
    done = run(script, *base, str(tmp_path / "bare"), *WHOLE, "--extend")
    assert "--extend: the checkpoint of step 4 is not in" in done.stderr
    assert (tmp_path / "bare" / "results.json").exists()
