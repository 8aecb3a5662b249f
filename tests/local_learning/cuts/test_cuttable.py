"""What cannot be trained in blocks ends in one line that says why."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from local_learning.blocks import decouple
from local_learning.build import build_chain
from local_learning.chain import Chain
from local_learning.decoupling import Decoupling
from search.relaxation import RelaxedNet
from tests.local_learning.nets import CLASSES, SIZE, small_chain


def conv(in_chs: int = 8, norm: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_chs, 8, 1), norm or nn.BatchNorm2d(8), RELU)


RELU = nn.ReLU()


def classifier() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


class Twice(nn.Module):
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, features


class First(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0]


def cut(*cuts: int) -> Decoupling:
    return Decoupling(cuts, ("linear",) * len(cuts))


def refusal(chain: Any, decoupling: Decoupling, image_size: Any = SIZE) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        decouple(chain, decoupling, CLASSES, image_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sequential_is_told_how_to_be_a_chain() -> None:
    modules = nn.Sequential(conv(3), conv(), classifier())
    assert "this is a Sequential, not a Chain; Chain(modules[:n], modules[n:])" in refusal(modules, cut(1))
    decouple(Chain(list(modules)[:2], modules[2:]), cut(1), CLASSES, SIZE)


def test_the_layer_that_gives_a_tuple_is_named() -> None:
    chain = Chain([conv(3), Twice(), First(), conv()], classifier())
    for place in (2, 3):
        assert refusal(chain, cut(place)).startswith("layer 2 gives a tuple; a layer takes one tensor")
    with pytest.raises(ValueError, match="layer 2 gives a tuple"):
        RelaxedNet(chain, ("linear",), CLASSES, SIZE)


def test_images_are_square() -> None:
    chain = small_chain("resnet18")
    assert "image_size is (16, 24); it is one whole number" in refusal(chain, cut(1), (16, 24))
    size: Any = (16, 24)
    with pytest.raises(ValueError, match=r"image_size is \(16, 24\); it must be one whole number"):
        build_chain("resnet18", num_classes=2, image_size=size)
    net = decouple(chain, Decoupling((1,), ("infopro",)), CLASSES, SIZE)
    images = torch.rand(2, 3, SIZE, SIZE + 8, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=f"images of 3 x {SIZE} x {SIZE}, and these are 3 x {SIZE} x {SIZE + 8}"
    ):
        net.losses(images, torch.tensor([0, 1]))


def test_weights_on_both_sides_of_a_cut_are_refused_and_within_a_block_are_not() -> None:
    shared, norm = conv(), nn.BatchNorm2d(8, affine=False)
    chain = Chain([conv(3), shared, conv(), shared], classifier())
    said = refusal(chain, cut(3))
    assert said.startswith("layer 2 and layer 4 have '0.weight' in common, and a cut is between them")
    decouple(chain, cut(1), CLASSES, SIZE)
    statistics = Chain([conv(3, norm), conv(8, norm)], classifier())
    assert "'1.running_mean' in common" in refusal(statistics, cut(1))
    tied = Chain([conv(3), conv()], nn.Sequential(nn.Conv2d(8, 8, 1), classifier()))
    tied.classifier[0].weight = tied.layers[1][0].weight  # type: ignore[index]
    assert refusal(tied, cut(2)).startswith("layer 2 and the classifier have '0.weight' in common")


def test_one_module_without_weights_may_be_in_every_block() -> None:
    chain = Chain([conv(3), conv(), conv()], classifier())  # all with one ReLU
    images, targets = torch.rand(2, 3, SIZE, SIZE), torch.tensor([0, 1])
    assert len(decouple(chain, cut(1, 2), CLASSES, SIZE).losses(images, targets)) == 3
