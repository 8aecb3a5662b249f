"""This catalogue lists the networks by name, with the options that each of them has. Free of torch."""

from collections.abc import Collection
from dataclasses import dataclass

from tools.mistake import Mistake
from tools.options.catalogue import Catalogue, Row
from tools.options.config import suggest
from tools.options.plugins import ORIGIN

TIMM = "timm/"
"""A model of timm has this before its name."""


@dataclass(frozen=True, kw_only=True)
class NetworkRow(Row):
    """This row describes a network that can be built by name.

    `make` is called with `num_classes`, `image_size` and `in_chs`, and with those of the other options of
    `build_chain` that it takes. It gives a Chain, an nn.Sequential whose last module is the classifier, or
    a module that can be traced as timm's models are.
    """

    smallest_image: int = 1
    """The smallest side of an image, in pixels, at which something is left of every map."""


def resnet_row(name: str, block: str, depths: tuple[int, ...], small: bool = False) -> NetworkRow:
    """Return the row of a ResNet of these residual blocks in each stage."""
    return NetworkRow(
        name=name,
        says=f"a ResNet of {sum(depths)} residual blocks, each of them a layer",
        make="local_learning.networks.resnet:resnet",
        given={"block": block, "depths": depths, "small": small},
        reads=("width", "init", "stem"),
        smallest_image=8,  # behind a 3x3 stem the last of four stages still sees one whole pixel
    )


NETWORKS: Catalogue[NetworkRow] = Catalogue(
    "network",
    NetworkRow,
    [
        resnet_row("resnet18", "basic", (2, 2, 2, 2)),
        resnet_row("resnet34", "basic", (3, 4, 6, 3)),
        resnet_row("resnet50", "bottleneck", (3, 4, 6, 3)),
        resnet_row("resnet101", "bottleneck", (3, 4, 23, 3)),
        resnet_row("resnet152", "bottleneck", (3, 8, 36, 3)),
        resnet_row("resnet32", "basic", (5, 5, 5), small=True),
        resnet_row("resnet110", "basic", (18, 18, 18), small=True),
        NetworkRow(
            name="vgg19",
            says="VGG-19 with BatchNorm, as SEDONA cuts it",
            make="local_learning.networks.vgg:vgg19",
            reads=("width", "init", "dropout"),
            smallest_image=32,
        ),
        NetworkRow(
            name="vgg6a",
            says="the VGG6a of the local-loss and GN-DGL papers",
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
"""These are the papers' networks and the user's own. Beside them, "timm/<model name>" is any timm model."""


def check_named(name: str, option: str = "", models: Collection[str] = ()) -> None:
    """Refuse what is not the name of a network; `models` of timm are among those that were perhaps meant."""
    if name in NETWORKS:
        return
    hint = suggest(name, [*NETWORKS, *(f"{TIMM}{model}" for model in models)])
    if hint.endswith("?"):
        hint += "" if models else f" A model of timm is {TIMM}<model name>."
    else:
        hint = f"; the networks are {', '.join(NETWORKS)} and {TIMM}<model name>."
    raise Mistake(option, f"network '{name}' is unknown{hint} {ORIGIN}")
