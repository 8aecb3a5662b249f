import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from local_learning.heads import make_head
from local_learning.networks.expansion import AT_ONCE, Expansion
from tools.batchnorm import SharedBatchNorm, frozen_statistics
from tools.cost import saved_activation_bytes

SIZE = 12


class Plain(nn.Module):
    """The same by torch's own modules."""

    def __init__(self, expansion: Expansion) -> None:
        super().__init__()
        self.conv, self.bn = copy.deepcopy(expansion.conv), copy.deepcopy(expansion.bn)

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.relu(self.bn(self.conv(inputs))).mean((2, 3))


def both() -> tuple[Expansion, Plain]:
    torch.manual_seed(0)
    expansion = Expansion(6, 16).double()
    nn.init.normal_(expansion.bn.weight)
    nn.init.normal_(expansion.bn.bias)
    return expansion, Plain(expansion)


def inputs_of(size: int = SIZE) -> Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randn(4, 6, size, size, dtype=torch.float64, generator=source, requires_grad=True)


def derivatives(module: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Outputs, first and second derivatives."""
    outputs = module(inputs)
    leaves = [inputs, *module.parameters()]
    first = torch.autograd.grad(outputs.pow(3).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([g.pow(2).sum() for g in first]).sum(), leaves)
    return [outputs.detach(), *(g.detach() for g in first), *second]


@pytest.mark.parametrize("at_once", [AT_ONCE, 3 * 16 * SIZE**2, 1])
@pytest.mark.parametrize("size", [SIZE, 2])
def test_it_is_its_four_operators_up_to_the_second_derivative(
    at_once: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_learning.networks.expansion.AT_ONCE", at_once)
    ours, plain = both()
    inputs = inputs_of(size)
    for one, other in zip(derivatives(ours, inputs), derivatives(plain, inputs), strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


def test_running_statistics_move_once_a_step_or_not_at_all() -> None:
    ours, plain = both()
    for module in (ours, plain):
        for _ in range(3):
            torch.autograd.backward(module(inputs_of()).sum())
        with frozen_statistics(module):
            torch.autograd.backward(module(inputs_of()).sum())
    for (name, one), other in zip(ours.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(one, other, rtol=1e-14), name
    ours.eval()
    plain.eval()
    assert torch.allclose(ours(inputs_of()), plain(inputs_of()), rtol=1e-13)


def test_single_precision_is_as_exact_as_the_operators() -> None:
    exact = derivatives(both()[1], inputs_of())
    ours, plain = (
        derivatives(module.float(), inputs_of().detach().float().requires_grad_()) for module in both()
    )
    for one, other, truth in zip(ours, plain, exact, strict=True):
        scale = float(truth.abs().max())
        errors = [float((each - truth).abs().max()) / scale for each in (one, other)]
        assert errors[0] <= 4 * errors[1] + 1e-6


def test_with_statistics_over_processes_it_shows_its_map() -> None:
    ours, _ = both()
    with SharedBatchNorm():
        assert not ours.folds(inputs_of())
    assert ours.folds(inputs_of())


def test_it_keeps_none_of_its_maps() -> None:
    ours, plain = both()
    inputs = inputs_of().detach()
    for module in (ours, plain):
        module.requires_grad_()
    kept = [saved_activation_bytes(partial(_forward_and_back, module, inputs)) for module in (ours, plain)]
    means = 4 * 16 * 6 * 8
    assert kept[0] <= inputs.nbytes + 2 * means
    assert kept[1] > 5 * inputs.nbytes


def _forward_and_back(module: nn.Module, inputs: Tensor) -> None:
    torch.autograd.backward(module(inputs).sum())


def test_what_is_made_again_is_made_from_the_weights_of_the_call() -> None:
    """Recomputation from the module's own weights would be silently wrong here."""
    ours, plain = both()
    given = {name: torch.randn_like(p).requires_grad_() for name, p in ours.named_parameters()}
    gradients = []
    for module in (ours, plain):
        outputs = functional_call(module, given, (inputs_of(),))
        gradients.append(torch.autograd.grad(outputs.pow(2).sum(), list(given.values())))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


def test_in_a_head_under_autocast() -> None:
    torch.manual_seed(0)
    head = make_head("aux2", 16, 32, 10, width=0.25)
    inputs = torch.randn(16, 16, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(inputs).float().square().mean()
    torch.autograd.backward(loss)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in head.parameters())
