"""This module measures how alike the outputs of several networks are."""

from collections.abc import Sequence

import torch
from torch import Tensor


def cosine_matrix(outputs: Sequence[Tensor]) -> Tensor:
    """Return the mean cosine over the images of each pair of flattened outputs (B, ...), in float64."""
    unit = [torch.nn.functional.normalize(output.detach().double().flatten(1)) for output in outputs]
    return torch.stack([torch.stack([(one * other).sum(1).mean() for other in unit]) for one in unit])


def cka_matrix(outputs: Sequence[Tensor]) -> Tensor:
    """Return the linear centred kernel alignment of each pair of outputs (B, ...), in float64.

    Unlike the cosine, it does not change when an output is rotated or scaled. With more features than images,
    any two outputs would look alike. So products of kernels are estimated without bias (HSIC_1 of Song et
    al., 2012), and unlike outputs score about 0, a little above or below. Outputs that hardly differ between
    images score 0 with every other. At least four images are needed.
    """
    kernels, norms = [], []
    for output in outputs:
        features = output.detach().double().flatten(1)
        centred = features - features.mean(0)  # changes nothing but the rounding
        if centred.norm() <= 1e-9 * features.norm():
            centred = torch.zeros_like(centred)
        kernels.append((centred @ centred.T).fill_diagonal_(0.0))
        norms.append(kernels[-1].square().mean())
    hsic = torch.stack([torch.stack([_hsic(one, other) for other in kernels]) for one in kernels])
    own = hsic.diagonal()
    varies = own > 1e-6 * torch.stack(norms)
    scale = torch.where(varies, own, torch.inf).sqrt()
    return (hsic / (scale[:, None] * scale[None])).clamp(-1, 1).fill_diagonal_(1.0)


def _hsic(one: Tensor, other: Tensor) -> Tensor:
    """Return the unbiased estimate of how much two kernels without diagonals depend on each other."""
    count = len(one)
    sums = one.sum() * other.sum() / ((count - 1) * (count - 2))
    mixed = 2 * (one.sum(0) * other.sum(0)).sum() / (count - 2)
    return ((one * other).sum() + sums - mixed) / (count * (count - 3))


def off_diagonal_mean(matrix: Tensor) -> Tensor:
    """Return the mean of all elements off the diagonal, or 1 for a single element."""
    count = len(matrix)
    if count == 1:
        return matrix.new_ones(())
    return (matrix.sum() - matrix.diagonal().sum()) / (count * (count - 1))
