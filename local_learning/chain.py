"""Every network here takes one form, the chain: layers in a row, and a classifier."""

from collections.abc import Iterable

from torch import Tensor, nn

from tools.layout import guard_convolutions


class Chain(nn.Module):
    """A chain is a network as an ordered list of layers and a classifier.

    A layer takes one tensor, returns one tensor, and is never cut inside. The classifier turns the last
    layer's output into logits. `width` is the factor by which the network's channels were scaled; heads
    are scaled by it too. Parameters are named "layers.<index>.<...>" and "classifier.<...>".
    """

    def __init__(self, layers: Iterable[nn.Module], classifier: nn.Module, *, width: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.classifier = classifier
        self.width = width
        guard_convolutions(self)

    @property
    def num_layers(self) -> int:
        """The number of layers, without the classifier."""
        return len(self.layers)

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for layer in self.layers:
            features = layer(features)
        logits: Tensor = self.classifier(features)
        return logits
