"""How alike the outputs of several networks are."""

from collections.abc import Sequence

import torch
from torch import Tensor


def cosine_matrix(outputs: Sequence[Tensor]) -> Tensor:
    """Cosines between the flattened outputs (B, ...) of each pair, as means over the images; float64."""
    unit = [torch.nn.functional.normalize(each.detach().double().flatten(1)) for each in outputs]
    return torch.stack([torch.stack([(one * other).sum(1).mean() for other in unit]) for one in unit])


def off_diagonal_mean(matrix: Tensor) -> Tensor:
    """The mean of all that is not on the diagonal; 1 for a single number, which is like itself."""
    count = len(matrix)
    if count == 1:
        return matrix.new_ones(())
    return (matrix.sum() - matrix.diagonal().sum()) / (count * (count - 1))
