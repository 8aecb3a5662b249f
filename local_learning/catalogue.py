"""This catalogue lists heads and losses by name, with what others need to know of them. Free of torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.options.catalogue import Catalogue, Row, import_part


@dataclass(frozen=True, kw_only=True)
class HeadRow(Row):
    """A head is the auxiliary network at a cut, together with the loss that goes with it.

    `make` is called with `in_chs`, `in_size` and `num_classes`. It also gets those of the following that it
    takes: `width`, `image_shape`, and the `chain` that is cut, the number of the layer after which it is
    (`cut`), and the shapes of what each layer gives for two images (`shapes`). `reads` names options of
    local losses.
    """

    loss: Callable[..., Any] | str = ""
    """What makes the head's own loss from a `local_learning.losses.LossPlace`. A head without one has that of
    `local.loss`."""
    searchable: bool = True
    """Whether the head gives logits and nothing else, so that several heads can be mixed."""
    sees_images: bool = False
    """Whether the head's loss looks at the network's input images."""
    hidden: int = 0
    """The hidden channels in a network of full width, where the head's paper gives a number."""
    needs_classes: bool = False
    """Whether the head's loss needs one class for each image, not probabilities."""
    takes_map: bool = True
    """Whether the head takes a square map. One that does not takes features as the layer gives them."""
    draws_weights: bool = False
    """Whether the maker draws the first weights itself."""

    @property
    def loss_maker(self) -> Callable[..., Any] | None:
        """What makes the head's own loss, if it has one."""
        return (import_part(self.loss) if isinstance(self.loss, str) else self.loss) if self.loss else None


def _plain(name: str, says: str, hidden: int = 0) -> HeadRow:
    make = f"local_learning.heads:{name}"
    return HeadRow(name=name, says=says, make=make, reads=("local.loss",), hidden=hidden)


def _aux(depth: int, says: str) -> HeadRow:
    return HeadRow(
        name=f"aux{depth}",
        says=says,
        make="local_learning.heads:aux",
        given={"depth": depth},
        reads=("local.loss",),
        hidden=2048,
    )


def _later(kind: str, says: str = "", family: str = "") -> HeadRow:
    return HeadRow(
        name=kind,
        says=says,
        make="local_learning.later.head:later_head",
        given={"kind": kind},
        family=family,
        reads=("local.loss",),
        takes_map=False,
        draws_weights=True,
    )


HEADS: Catalogue[HeadRow] = Catalogue(
    "head",
    HeadRow,
    [
        _aux(1, "a depthwise convolution and a wide classifier (SEDONA)"),
        _aux(2, "aux1 with one inverted residual"),
        _aux(3, "aux1 with two inverted residuals"),
        _aux(4, "aux1 with three inverted residuals"),
        _plain("mlp_sr", "1x1 convolutions on a small map, and an MLP (DGL)"),
        HeadRow(
            name="predsim",
            says="a pooled classifier beside a convolution for similarity matching (PredSim)",
            make="local_learning.heads:PredSimHead",
            reads=("local.similarity",),
            loss="local_learning.losses:predsim_loss",
            searchable=False,
            hidden=2048,
        ),
        HeadRow(
            name="infopro",
            says="a classifier beside a decoder of the image (InfoPro)",
            make="local_learning.heads:InfoProHead",
            reads=("local.reconstruction", "local.prediction"),
            loss="local_learning.losses:infopro_loss",
            searchable=False,
            sees_images=True,
            hidden=128,
        ),
        HeadRow(
            name="infopro_contrast",
            says="a projection for supervised contrast beside a decoder of the image (InfoPro)",
            make="local_learning.heads:InfoProContrastHead",
            reads=("local.reconstruction", "local.prediction", "local.temperature"),
            loss="local_learning.losses:infopro_contrast_loss",
            searchable=False,
            sees_images=True,
            hidden=128,
            needs_classes=True,
        ),
        _plain("conv1c2f", "one convolution and two linear layers (InfoPro, GN-DGL)", 128),
        _plain("linear", "a global average and a linear classifier"),
        _plain("linear4", "an average over each of 4x4 parts of the map and a linear classifier"),
        _later(
            "aug1",
            "a copy of the last layer and the classifier, with new weights (AugLocal)",
            r"aug(\d+|:all).*",
        ),
        _later("aug2", "two of the later layers; aug2@0.5 has half their channels, aug2/pool half the map"),
        _later("aug3", "three of them; aug:all has all, and =copy behind a head starts with their weights"),
    ],
)
"""These are the heads of the papers and the user's own. A decoupling may use others."""

LOSSES: Catalogue[Row] = Catalogue(
    "loss", Row, [Row(name="cross_entropy", says="cross-entropy", make="local_learning.losses:CrossEntropy")]
)
"""These are the losses for heads that have none of their own."""
