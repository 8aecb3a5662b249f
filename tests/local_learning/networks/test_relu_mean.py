import torch
from torch import nn

from local_learning.networks.relu_mean import ReluMean
from tools.cost import saved_activation_bytes


def plain(inputs: torch.Tensor) -> torch.Tensor:
    return nn.functional.relu(inputs).mean((2, 3))


def test_it_is_relu_and_mean_with_its_first_and_second_derivatives() -> None:
    inputs = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        inputs[0, 0, 0, :3] = 0  # where ReLU has no derivative, torch takes 0
    assert torch.allclose(ReluMean()(inputs), plain(inputs), rtol=0, atol=1e-15)

    def derivatives(outputs: torch.Tensor) -> list[torch.Tensor]:
        (first,) = torch.autograd.grad(outputs.pow(3).sum(), inputs, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), inputs)
        return [first.detach(), second]

    for ours, theirs in zip(derivatives(ReluMean()(inputs)), derivatives(plain(inputs)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-13, atol=1e-15)


def test_it_keeps_a_quarter() -> None:
    inputs = torch.randn(2, 8, 16, 16, requires_grad=True)
    assert saved_activation_bytes(lambda: torch.autograd.backward(ReluMean()(inputs).sum())) == inputs.numel()
    assert saved_activation_bytes(lambda: torch.autograd.backward(plain(inputs).sum())) == 4 * inputs.numel()


def test_it_works_in_half_precision_and_channels_last() -> None:
    inputs = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    assert torch.equal(ReluMean()(inputs), plain(inputs))
    assert ReluMean()(inputs.bfloat16()).dtype == torch.bfloat16
