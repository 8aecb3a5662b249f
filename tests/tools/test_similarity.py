"""How alike outputs are, against the definitions."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tools.similarity import cka_matrix, cosine_matrix, off_diagonal_mean


def hsic_by_tuples(one: list[list[float]], other: list[list[float]]) -> float:
    """The mean over different images i, j, q, r of K_ij (L_ij + L_qr - 2 L_iq)."""
    places = list(itertools.permutations(range(len(one)), 4))
    return math.fsum(
        one[i][j] * (other[i][j] + other[q][r] - 2 * other[i][q]) for i, j, q, r in places
    ) / len(places)


def kernel(outputs: Tensor) -> list[list[float]]:
    rows = outputs.double().flatten(1).tolist()
    return [[math.fsum(a * b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cka_is_its_definition() -> None:
    base = random(7, 3, 2, 2, seed=0)
    outputs = [base, base.relu() + 0.3 * random(7, 3, 2, 2, seed=1), random(7, 5, seed=2) + 4]
    kernels = [kernel(each) for each in outputs]
    found = cka_matrix(outputs)
    for one, other in itertools.combinations(range(3), 2):
        products = [
            hsic_by_tuples(kernels[a], kernels[b]) for a, b in ((one, other), (one, one), (other, other))
        ]
        expected = products[0] / math.sqrt(products[1] * products[2])
        assert float(found[one, other]) == pytest.approx(expected, abs=1e-10)
        assert float(found[other, one]) == pytest.approx(expected, abs=1e-10)
    assert found.diagonal().tolist() == [1.0] * 3


def test_cka_does_not_change_with_rotation_scale_and_shift() -> None:
    base = random(30, 8, seed=0)
    rotation, _ = torch.linalg.qr(random(8, 8, seed=1))
    found = cka_matrix([base, 3 * base @ rotation + 5])
    assert float(found[0, 1]) == pytest.approx(1, abs=1e-12)
    assert float(cosine_matrix([base, base @ rotation])[0, 1]) < 0.9


def test_what_has_nothing_in_common_is_not_alike_for_having_many_numbers() -> None:
    found = cka_matrix([random(40, 4000, seed=0), random(40, 4000, seed=1)])
    assert abs(float(found[0, 1])) < 0.05


def test_outputs_that_are_the_same_for_all_images_are_like_nothing() -> None:
    for seed in range(50):
        same = random(1, 3, seed=seed).expand(6, 3) + 1e-13 * random(6, 3, seed=seed + 1)
        found = cka_matrix([same, random(6, 3, seed=seed + 2), torch.zeros(6, 3)])
        assert found.tolist() == torch.eye(3).tolist()
    assert cka_matrix([torch.eye(4)[:, :1], torch.eye(4)[:, 1:3]]).abs().max() <= 1


def test_the_mean_off_the_diagonal() -> None:
    assert float(off_diagonal_mean(torch.tensor([[1.0, 0.2], [0.4, 1.0]]))) == pytest.approx(0.3)
    assert float(off_diagonal_mean(torch.tensor([[0.7]]))) == 1
