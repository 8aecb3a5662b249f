"""Second derivatives against torch's own and against finite differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tools.second_order import FastSecondOrder

CONVOLUTIONS = {
    "plain": ((4, 6, 7, 7), (5, 6, 3, 3), {"padding": 1}),
    "strided": ((4, 6, 8, 8), (5, 6, 3, 3), {"stride": 2, "padding": 1}),
    "dilated": ((2, 6, 9, 9), (4, 6, 3, 3), {"dilation": 2}),
    "grouped": ((4, 6, 5, 5), (9, 2, 1, 1), {"groups": 3}),
    "depthwise": ((4, 6, 7, 7), (6, 1, 3, 3), {"stride": (2, 1), "padding": (1, 1), "groups": 6}),
    "by name": ((2, 3, 6, 6), (4, 3, 3, 3), {"padding": "same"}),
}


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [
        torch.randn(*shape, dtype=torch.float64, generator=source, requires_grad=True) for shape in shapes
    ]


def derivatives(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    first = torch.autograd.grad(function(*inputs).pow(3).sum(), inputs, create_graph=True)
    source = torch.Generator().manual_seed(1)
    weights = [torch.randn(g.shape, dtype=torch.float64, generator=source) for g in first]
    second = torch.autograd.grad(first, inputs, weights, materialize_grads=True)
    return [*(g.detach() for g in first), *second]


def assert_same(function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    expected = derivatives(function, inputs)
    with FastSecondOrder():
        found = derivatives(function, inputs)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("biased", [False, True])
def test_convolutions(case: str, biased: bool) -> None:
    shape, weight, options = CONVOLUTIONS[case]
    shapes = [shape, weight, (weight[0],)] if biased else [shape, weight]
    assert_same(lambda *inputs: F.conv2d(*inputs, **options), leaves(*shapes))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (8, 4)])
@pytest.mark.parametrize("eps", [1e-5, 0.7])  # a large one shows where the variance is not that of x^
def test_batch_norm(shape: tuple[int, ...], eps: float) -> None:
    inputs = leaves(shape, (4,), (4,))
    assert_same(lambda x, w, b: torch.tanh(F.batch_norm(x, None, None, w, b, True, 0.1, eps)), inputs)
    with FastSecondOrder():
        assert torch.autograd.gradgradcheck(
            lambda x, w, b: F.batch_norm(x, None, None, w, b, True, 0.1, eps), inputs
        )


def test_hard_sigmoid_of_which_torch_has_no_second_derivative() -> None:
    inputs = leaves((40,))
    with FastSecondOrder():
        found = derivatives(lambda x: F.hardsigmoid(x), inputs)
    expected = derivatives(lambda x: (x + 3).clamp(0, 6) / 6, inputs)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12)


def test_only_some_derivatives_are_asked_for() -> None:
    x, w, scale, shift = leaves((4, 3, 6, 6), (5, 3, 3, 3), (5,), (5,))

    def function(x: Tensor) -> Tensor:
        return F.batch_norm(F.conv2d(x, w.detach()), None, None, scale.detach(), shift.detach(), True)

    assert_same(function, [x])
    assert_same(lambda w: F.conv2d(x.detach(), w), [w])
    assert_same(
        lambda scale: F.batch_norm(x.detach(), None, None, scale, shift[:3].detach(), True), [leaves((3,))[0]]
    )


def test_running_statistics_move_as_always_and_evaluation_is_left_alone() -> None:
    x, scale, shift = leaves((6, 4, 3, 3), (4,), (4,))
    statistics = []
    for context in (FastSecondOrder, torch.enable_grad):
        mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
        with context():
            outputs = F.batch_norm(x, mean, var, scale, shift, True, 0.3)
            fixed = F.batch_norm(x, mean, var, scale, shift, False)
        statistics.append((mean, var, outputs, fixed))
    for one, other in zip(*statistics, strict=True):
        assert torch.equal(one, other)
