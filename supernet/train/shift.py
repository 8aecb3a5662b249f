"""Representation shift is how differently a layer's modules see the same images (LWSL, Fig. 4)."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from supernet.supernet import Supernet
from tools.batchnorm import frozen_statistics
from tools.similarity import cka_matrix, cosine_matrix


class Shift(NamedTuple):
    """A shift has matrices for each layer, between its candidates that have weights.

    They are means over batches.
    """

    outputs: list[Tensor]
    """The cosines between the modules' outputs."""
    branches: list[Tensor]
    """The cosines between outputs without the shortcut, where there is one: it adds the same to all of
    them."""
    cka: list[Tensor]
    """The linear CKA between the modules' outputs, within each batch."""


@torch.no_grad()
def representation_shift(net: Supernet, batches: Iterable[Tensor]) -> Shift:
    """Compare the modules of every layer on the mean of the outputs of the layer below.

    BatchNorm takes its statistics from each batch, as in training. Give batches of equal size.
    """
    modules = [layer.weighted for layer in net.space.layers]
    sums: list[list[Tensor]] = [[], [], []]
    training, count = net.training, 0
    with frozen_statistics(net.train()):
        for images in batches:
            count += 1
            features = net.begin(images)
            for index, choices in enumerate(modules):
                given = [net.candidate(index, choice)(features) for choice in choices]
                own = [
                    outputs - features
                    if getattr(net.candidate(index, choice), "has_skip", False)
                    else outputs
                    for outputs, choice in zip(given, choices, strict=True)
                ]
                compared = cosine_matrix(given), cosine_matrix(own), cka_matrix(given)
                for matrices, matrix in zip(sums, compared, strict=True):
                    if count == 1:
                        matrices.append(matrix)
                    else:
                        matrices[index] += matrix
                features = torch.stack(given).mean(0)
    net.train(training)
    return Shift(*([matrix / count for matrix in matrices] for matrices in sums))
