import math
from typing import Any

import pytest
import torch
from torch import nn

from tools.optim import make_optimizer, make_schedule
from tools.options.recipes import Recipe


def test_a_cosine_that_would_rise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"recipe\.min_lr: the cosine would rise from recipe\.lr 0\.0001"):
        Recipe(lr=1e-4)
    assert Recipe(lr=1e-4, schedule="constant").lr == 1e-4


def rates(recipe: Recipe, num_steps: int) -> list[float]:
    optimizer = make_optimizer(recipe, [nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(recipe, optimizer, num_steps)
    found = []
    for step in range(num_steps):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_cosine_is_sedonas_formula() -> None:
    found = rates(Recipe(lr=0.1, min_lr=0.001), 64)
    expected = [0.001 + 0.5 * (0.1 - 0.001) * (1 + math.cos(math.pi * t / 64)) for t in range(64)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_warmup_rises_evenly_and_the_cosine_takes_the_rest() -> None:
    found = rates(Recipe(lr=0.4, min_lr=0.0, warmup=0.1), 100)
    assert found[:11] == pytest.approx([0.04 * t for t in range(11)])
    assert found[10:] == pytest.approx([0.2 * (1 + math.cos(math.pi * t / 90)) for t in range(90)])


def test_steps_are_gn_dgls_table() -> None:
    # 150 epochs at 1e-3, 5e-4 from epoch 50, 1e-4 from epoch 100.
    recipe = Recipe(optimizer="adam", lr=1e-3, schedule="step", milestones=(1 / 3, 2 / 3), factors=(0.5, 0.1))
    found = rates(recipe, 150)
    assert found == pytest.approx([1e-3] * 50 + [5e-4] * 50 + [1e-4] * 50)


def test_constant_stays() -> None:
    assert rates(Recipe(lr=0.3, schedule="constant"), 5) == [0.3] * 5


def test_the_rate_is_a_function_of_the_step_alone() -> None:
    recipe = Recipe(lr=0.1)
    optimizer = make_optimizer(recipe, [nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(recipe, optimizer, 64)
    schedule.step_update(63)
    schedule.step_update(7)
    assert optimizer.param_groups[0]["lr"] == rates(recipe, 64)[7]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_every_optimiser_steps_by_its_own_formula(optimizer: str) -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    gradient = torch.tensor([0.3, 0.4], dtype=torch.float64)
    own: dict[str, Any] = {} if optimizer == "sgd" else {"eps": 1e-3, "beta2": 0.9}
    recipe = Recipe(optimizer=optimizer, lr=0.1, weight_decay=0.01, **own)
    made = make_optimizer(recipe, [weight])
    weight.grad = gradient.clone()
    made.step()
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    with_decay = gradient + 0.01 * start
    expected = {
        "sgd": start - 0.1 * with_decay,
        "adam": start - 0.1 * with_decay / (with_decay.abs() + 1e-3),
        "adamw": start * (1 - 0.1 * 0.01) - 0.1 * gradient / (gradient.abs() + 1e-3),
        # TensorFlow's form: the mean square starts at one, eps is inside the root.
        "rmsprop": start - 0.1 * with_decay / (0.9 + 0.1 * with_decay**2 + 1e-3).sqrt(),
    }
    torch.testing.assert_close(weight.detach(), expected[optimizer], rtol=1e-9, atol=1e-12)


def test_decay_can_spare_biases_and_norms() -> None:
    layer = nn.Linear(2, 2)
    groups = make_optimizer(Recipe(decay_all=False, weight_decay=0.1), layer.parameters()).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert groups[0]["params"][0] is layer.weight
    assert groups[1]["params"][0] is layer.bias


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "recipe.batch_size: 0 is out of range"),
        ({"steps": -1}, "recipe.steps"),
        ({"epochs": 0.0}, "recipe.epochs"),
        ({"batch_size": 10, "accumulate": 3}, "recipe.accumulate: 3 parts do not divide"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"schedule": "step"}, "recipe.milestones"),
        ({"schedule": "step", "milestones": (0.5,)}, "need as many recipe.factors"),
        ({"schedule": "step", "milestones": (0.5, 0.4), "factors": (1.0, 1.0)}, "must rise"),
        ({"nesterov": True, "optimizer": "adam"}, "recipe.nesterov"),
        ({"label_smoothing": 1.0}, "recipe.label_smoothing"),
        ({"lr": float("nan")}, "recipe.lr"),
    ],
)
def test_recipes_refuse_what_makes_no_sense(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Recipe(**options)  # type: ignore[arg-type]


def test_length_comes_from_steps_or_epochs() -> None:
    assert Recipe(steps=7).num_steps(10.5) == 7
    assert Recipe(epochs=3).num_steps(10.5) == 32
    assert Recipe().steps_between_evaluations(10.4) == 10
