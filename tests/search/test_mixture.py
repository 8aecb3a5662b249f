import copy
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from local_learning.heads import make_head
from search.mixture import mixed_logits
from tools.batchnorm import frozen_statistics
from tools.second_order import FastSecondOrder

AUX = ("aux1", "aux2", "aux3", "aux4")
CHOICES = [kinds for count in (1, 2, 3, 4) for kinds in combinations(AUX, count)]
CHOICES += [("aux3", "linear", "aux1"), ("aux4", "aux2"), ("mlp_sr", "conv1c2f"), ("mlp_sr", "aux2")]
SIZES = (1, 2, 3, 16)
CASES = [(kinds, size) for kinds in CHOICES[14:] for size in SIZES]
CASES += [(kinds, SIZES[index % 4]) for index, kinds in enumerate(CHOICES[:14])]
"""The largest mixture and those of mixed sorts at every size, the others at one each."""


def heads_of(kinds: tuple[str, ...], size: int) -> list[nn.Module]:
    torch.manual_seed(0)
    heads = [make_head(kind, 16, size, 5, width=0.02).double() for kind in kinds]
    for head in heads:
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.5)
    return heads


def one_by_one(heads: list[nn.Module], features: Tensor, mixture: Tensor) -> Tensor:
    return torch.stack([head(features) for head in heads], dim=-1) @ mixture


def mixed(heads: list[nn.Module], features: Tensor, mixture: Tensor) -> Tensor:
    return mixed_logits(heads, [features] * len(heads), mixture)


def derivatives(function: object, heads: list[nn.Module], features: Tensor, mixture: Tensor) -> list[Tensor]:
    assert callable(function)
    leaves = [features, mixture, *nn.ModuleList(heads).parameters()]
    logits = function(heads, features, mixture)
    first = torch.autograd.grad(logits.pow(2).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([g.pow(2).sum() for g in first]).sum(), leaves)
    return [logits.detach(), *(g.detach() for g in first), *second]


@pytest.mark.parametrize(("kinds", "size"), CASES)
def test_heads_run_as_one_are_heads_run_one_by_one(kinds: tuple[str, ...], size: int) -> None:
    ours = heads_of(kinds, size)
    theirs = copy.deepcopy(ours)
    source = torch.Generator().manual_seed(1)
    features = torch.randn(7, 16, size, size, dtype=torch.float64, generator=source, requires_grad=True)
    mixture = torch.rand(len(kinds), dtype=torch.float64, generator=source, requires_grad=True)
    with FastSecondOrder():
        found = derivatives(mixed, ours, features, mixture)
    expected = derivatives(one_by_one, theirs, features, mixture)
    largest = max(float(each.abs().max()) for each in expected)  # what is zero but for rounding stays so
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12 * largest)
    for head, other_head in zip(ours, theirs, strict=True):
        for (name, buffer), other_buffer in zip(head.named_buffers(), other_head.buffers(), strict=True):
            assert torch.allclose(buffer, other_buffer, rtol=1e-12), name


def test_statistics_that_are_frozen_stay_and_evaluation_uses_them() -> None:
    heads = heads_of(AUX, 8)
    features, mixture = torch.randn(7, 16, 8, 8, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    mixed(heads, features, mixture)
    before = [buffer.clone() for head in heads for buffer in head.buffers()]
    with frozen_statistics(nn.ModuleList(heads)):
        mixed(heads, features, mixture)
    after = [buffer for head in heads for buffer in head.buffers()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    for head in heads:
        head.eval()
    found, expected = mixed(heads, features, mixture), one_by_one(heads, features, mixture)
    assert torch.allclose(found, expected, rtol=1e-12)
