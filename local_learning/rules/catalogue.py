"""The rules by name, and what others need to know of them. Free of torch."""

from dataclasses import dataclass

from tools.options.catalogue import Catalogue, Row


@dataclass(frozen=True, kw_only=True)
class RuleRow(Row):
    """How a batch becomes updates of blocks, and what follows from it.

    `make` is called with the engine, and with those of `options` (of gluing) and `num_images` that it takes.
    """

    cuts: bool = True
    """Blocks are trained apart. Without, the network is trained as one block, whatever the cuts."""
    trains_heads: bool = True
    """Each block learns by the loss of its head. Without, heads are left away."""
    errors_come_down: bool = False
    """Each block hands the one below an error signal, as large as the activations that go up."""
    forwards: int = 1
    """Forward passes of a batch through the layers of a block below the last. With two, the first one only
    hands activations on, and the second one trains."""
    measures: str = ""
    """What each block but the last reports beside its loss, numbered from 1."""
    in_halves: bool = True
    """Its updates are large enough for half precision and for activations that are sent rounded."""
    forecast: bool = False
    """There is a model of how fast it is on many devices."""


RULES: Catalogue[RuleRow] = Catalogue(
    "rule",
    RuleRow,
    [
        RuleRow(
            name="backprop",
            says="the whole network by one loss, as if there were no cuts",
            make="local_learning.rules.greedy:Greedy",  # on a network of one block
            reads=(),
            cuts=False,
            trains_heads=False,
            forecast=True,
        ),
        RuleRow(
            name="greedy",
            says="each block by the loss of its head (DGL, SEDONA, PredSim, InfoPro, GN-DGL)",
            make="local_learning.rules.greedy:Greedy",
            reads=("local", "head_width"),
            forecast=True,
        ),
        RuleRow(
            name="replay",
            says="each block by an error signal that is some steps old (Features Replay)",
            make="local_learning.rules.replay:Replay",
            reads=(),
            trains_heads=False,
            errors_come_down=True,
            forwards=2,
            forecast=True,
        ),
        RuleRow(
            name="gluing",
            says="blocks joined by gluing variables that move downhill on their own (BlockProp)",
            make="local_learning.rules.gluing:Gluing",
            reads=("gluing",),
            trains_heads=False,
            measures="gluing",
            in_halves=False,
        ),
    ],
)
"""Ours, and a user's own."""

register_rule = RULES.register
