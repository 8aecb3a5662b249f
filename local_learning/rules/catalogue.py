"""This catalogue lists the rules by name, with what others need to know of them. Free of torch."""

from dataclasses import dataclass

from tools.options.catalogue import Catalogue, Row


@dataclass(frozen=True, kw_only=True)
class RuleRow(Row):
    """A rule turns a batch into updates of blocks; its row says what follows from that.

    `make` is called with the engine. It also gets `options` (those of gluing) and `num_images` if it takes
    them.
    """

    cuts: bool = True
    """Whether blocks are trained apart. Without, the network is trained as one block, whatever the cuts."""
    trains_heads: bool = True
    """Whether each block learns by the loss of its head. Without, heads are left out."""
    errors_come_down: bool = False
    """Whether each block hands the one below an error signal, as large as the activations that go up."""
    forwards: int = 1
    """How often a batch passes forward through the layers of a block below the last. With two passes, the
    first only hands activations on, and the second trains."""
    measures: str = ""
    """The name of what each block but the last reports beside its loss. Blocks are numbered from 1."""
    in_halves: bool = True
    """Whether its updates are large enough for half precision, and for activations that are rounded before
    they are sent."""
    forecast: bool = False
    """Whether there is a model of how fast it is on many devices."""


RULES: Catalogue[RuleRow] = Catalogue(
    "rule",
    RuleRow,
    [
        RuleRow(
            name="backprop",
            says="trains the whole network by one loss, as if there were no cuts",
            make="local_learning.rules.greedy:Greedy",  # on a network of one block
            reads=(),
            cuts=False,
            trains_heads=False,
            forecast=True,
        ),
        RuleRow(
            name="greedy",
            says="trains each block by the loss of its head (DGL, SEDONA, PredSim, InfoPro, GN-DGL)",
            make="local_learning.rules.greedy:Greedy",
            reads=("local.loss",),
            forecast=True,
        ),
        RuleRow(
            name="replay",
            says="trains each block by an error signal that is some steps old (Features Replay)",
            make="local_learning.rules.replay:Replay",
            reads=(),
            trains_heads=False,
            errors_come_down=True,
            forwards=2,
            forecast=True,
        ),
        RuleRow(
            name="gluing",
            says="joins blocks by gluing variables that move downhill on their own (BlockProp)",
            make="local_learning.rules.gluing:Gluing",
            reads=("gluing",),
            trains_heads=False,
            measures="gluing",
            in_halves=False,
        ),
    ],
)
"""These are our rules and the user's own."""

register_rule = RULES.register


def usual_rule(*, cut: bool) -> str:
    """Return the rule by which a network is trained when none is named."""
    return "greedy" if cut else "backprop"
