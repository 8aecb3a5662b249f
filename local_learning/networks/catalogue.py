"""Networks by name, and which options each of them has. Free of torch."""

from dataclasses import dataclass

from tools.options.catalogue import Catalogue, Row


@dataclass(frozen=True, kw_only=True)
class NetworkRow(Row):
    """A network that can be built by name.

    `make` is called with `num_classes`, `image_size` and `in_chs`, and with those of the other options of
    `build_chain` that it takes. It gives a Chain, an nn.Sequential whose last module is the classifier, or a
    module that can be traced as timm's are.
    """

    smallest_image: int = 1
    """Pixels below which nothing is left of a map."""


def _resnet(name: str, layers: int) -> NetworkRow:
    return NetworkRow(
        name=name,
        says=f"a ResNet of {layers} residual blocks, each of them a layer",
        make=f"local_learning.networks.resnet:{name}",
        reads=("width", "init", "stem"),
        smallest_image=8,  # behind a 3x3 stem the last of four stages still sees one whole pixel
    )


NETWORKS: Catalogue[NetworkRow] = Catalogue(
    "network",
    NetworkRow,
    [
        _resnet("resnet18", 8),
        _resnet("resnet34", 16),
        _resnet("resnet50", 16),
        _resnet("resnet101", 33),
        _resnet("resnet152", 50),
        _resnet("resnet32", 15),
        _resnet("resnet110", 54),
        NetworkRow(
            name="vgg19",
            says="VGG-19 with BatchNorm, as SEDONA cuts it",
            make="local_learning.networks.vgg:vgg19",
            reads=("width", "init", "dropout"),
            smallest_image=32,
        ),
        NetworkRow(
            name="vgg6a",
            says="VGG6a of the local-loss and GN-DGL papers",
            make="local_learning.networks.vgg:vgg6a",
            reads=("width", "init", "dropout"),
            smallest_image=8,
        ),
        NetworkRow(
            name="mlp",
            says="one hidden layer, as BlockProp has it",
            make="local_learning.networks.mlp:mlp",
            reads=("width", "init", "dropout"),
        ),
    ],
)
"""The papers' networks, and a user's own. Beside them, "timm/<model name>" is any timm model."""
