"""A supernet holds all candidates of a space with shared weights; single networks are taken out of it."""

import copy

from timm.models._efficientnet_builder import efficientnet_init_weights
from torch import Tensor, nn

from local_learning.chain import Chain
from supernet.options import CLASSIFIER_INITS
from supernet.space import Architecture, Space
from supernet.stem import layers_with_stem
from supernet.tail import build_tail
from tools.layout import guard_convolutions
from tools.options.config import check_choice


class Supernet(nn.Module):
    """A supernet is a stem, the candidates of every searchable layer, and a tail.

    `layers[l][j]` is candidate j of searchable layer l. Initial weights are those of
    `initialise_as_timm`, and come from torch's global generator.
    """

    def __init__(self, space: Space, *, classifier_init: str = "torch") -> None:
        super().__init__()
        self.space = space
        self.stem = nn.ModuleList(_stem(space))
        self.layers = nn.ModuleList(
            nn.ModuleList(op.build(place, space.style) for op in layer)
            for layer, place in zip(space.layers, space.places, strict=True)
        )
        self.tail = _tail(space)
        initialise_as_timm(self, self.tail, classifier_init)
        guard_convolutions(self)

    def begin(self, images: Tensor) -> Tensor:
        """Return what the stem gives to the first searchable layer."""
        for layer in self.stem:
            images = layer(images)
        return images

    def candidate(self, layer: int, choice: int) -> nn.Module:
        """Return candidate `choice` of the searchable layer with index `layer`."""
        of_layer = self.layers[layer]
        assert isinstance(of_layer, nn.ModuleList)
        return of_layer[choice]

    def middle(self, features: Tensor, architecture: Architecture) -> Tensor:
        """Return what the architecture's layers make of the stem's output."""
        for layer, choice in enumerate(architecture.choices):
            features = self.candidate(layer, choice)(features)
        return features

    def forward(self, images: Tensor, architecture: Architecture) -> Tensor:
        """Return the logits of one architecture."""
        self.space.validate(architecture)
        logits: Tensor = self.tail(self.middle(self.begin(images), architecture))
        return logits

    def extract(self, architecture: Architecture, *, fresh: bool = False, stem: str = "fused") -> Chain:
        """Return one architecture as a chain, with a copy of the shared weights or, with `fresh`, new ones.

        The chain is one like any other: the chosen layers without the skips, then the tail as classifier.
        With `stem` fused the stem is part of the first layer; with unit its layers come first.
        """
        self.space.validate(architecture)
        reference = next(self.parameters())
        if fresh:
            return build_architecture(self.space, architecture, stem=stem).to(
                reference.device, reference.dtype
            )
        chosen = [self.candidate(layer, choice) for layer, choice in enumerate(architecture.choices)]
        chain = copy.deepcopy(_chain(list(self.stem), chosen, self.tail, stem)).train(self.training)
        chain.zero_grad()  # a copy of a parameter brings its gradient along
        return chain


def build_architecture(
    space: Space, architecture: Architecture, *, stem: str = "fused", classifier_init: str = "torch"
) -> Chain:
    """Build a single network of a space, with initial weights from torch's global generator.

    With `stem` fused the stem is part of the first layer; with unit its layers come first.
    """
    space.validate(architecture)
    places = zip(space.layers, space.places, architecture.choices, strict=True)
    chosen = [layer[choice].build(place, space.style) for layer, place, choice in places]
    chain = _chain(_stem(space), chosen, _tail(space), stem)
    initialise_as_timm(chain, chain.classifier, classifier_init)
    return chain


def initialise_as_timm(module: nn.Module, tail: nn.Module, classifier_init: str) -> None:
    """Give a new module timm's initial weights for such networks, but its classifier torch's.

    timm's range for a classifier, 1 / sqrt(classes), fits a thousand classes. With ten classes the first
    losses are far above log(classes). With `classifier_init` "timm" that range is used all the same.
    """
    check_choice("classifier_init", classifier_init, CLASSIFIER_INITS)
    classifier = tail.get_submodule("fc")
    of_torch = copy.deepcopy(classifier.state_dict())  # as it was built, so that no more is drawn
    efficientnet_init_weights(module)
    if classifier_init == "torch":
        classifier.load_state_dict(of_torch)


def _stem(space: Space) -> list[nn.Module]:
    places = zip(space.stem, space.stem_places, strict=True)
    return [fixed.op.build(place, space.style) for fixed, place in places]


def _tail(space: Space) -> nn.Module:
    return build_tail(space.tail, space.layers[-1].out_chs, space.num_classes, space.style)


def _chain(stem: list[nn.Module], chosen: list[nn.Module], tail: nn.Module, how: str) -> Chain:
    there = [layer for layer in chosen if not isinstance(layer, nn.Identity)]
    return Chain(layers_with_stem(stem, there, how), tail)
