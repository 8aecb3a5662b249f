"""These are the options of local losses and of gluing. Free of torch."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from typing import ClassVar

from local_learning.catalogue import HEADS, LOSSES
from local_learning.later.request import parse_later
from tools.mistake import Mistake
from tools.options.config import check_choice, check_range

WHERE_TO_CUT = frozenset(
    {"decoupling", "balance", "alignment", "alignment_every", "parallel", "pipeline", "plan"}
)
"""These options and groups of a training say where to cut, and on how many processes to train the blocks."""
HOW_BLOCKS_LEARN = frozenset(
    {"rule", "groups", "uneven_groups", "block_rates", "local", "gluing", "head_width"}
)
"""These options and groups of a training say how blocks learn."""
OF_THE_MACHINE = frozenset({"plugins", "architecture", "compile", "compile_mode", "cluster"})
"""These options and groups of a training name files, machines and compilers."""
OF_THE_RECORDS = frozenset({"recipe.log_every", "recipe.evaluate_every", "recipe.checkpoint_every"})
"""These options of a training say how often something is recorded or kept."""


@dataclass(frozen=True, kw_only=True)
class LocalLosses:
    """These options set the losses by which heads train their blocks."""

    NAMES: ClassVar[dict[str, Iterable[str]]] = {
        "losses": LOSSES,
        "heads_with_losses": [name for name in HEADS if HEADS[name].loss],
    }

    loss: str = "cross_entropy"
    """The loss of heads that have none of their own: {losses}, or one you registered. These heads have their
    own: {heads_with_losses}. The classifier always has cross-entropy."""
    similarity: float = 0.99
    """The share of similarity matching in PredSim's loss; the rest is cross-entropy."""
    reconstruction: tuple[float, float] = (5.0, 5.0)
    """The weight of InfoPro's reconstruction at the first and at the last local head. It is linear in
    between."""
    prediction: tuple[float, float] = (1.0, 1.0)
    """The weight of InfoPro's cross-entropy or contrast at the first and at the last local head. It is
    linear in between."""
    temperature: float = 0.07
    """The temperature of the contrastive loss of the infopro_contrast head."""
    diversity: float = 0.5
    """The weight of GN-DGL's diversity term between neuron groups; 0 leaves it out."""
    diversity_gradient: str = "stopped"
    """Where the gradient of the diversity term goes: stopped or released. With stopped, as in the paper,
    the other groups' outputs are constants. With released, as in the released code, it flows into both
    groups of a pair, which doubles it."""
    head_rate: float = 1.0
    """Multiply the learning rate of the heads at the cuts, but not of the blocks below them."""
    head_warmup: float = 0.0
    """Raise the learning rate of these heads from 0 over this part of the training."""
    last_layer: float = 1.0
    """Multiply the first weights of the last layer of these heads; below 1, a head begins with less certain
    predictions."""
    refresh: int = 0
    """Every so many steps, bring heads made of later layers to what these layers were this many steps ago. 0
    never does. The processes of `parallel` blocks send the weights down."""
    momentum: float = 0.0
    """Keep this part of a head's own weights at each `local.refresh`, and move by the rest."""
    whole_first: float = 0.0
    """Train the network by backpropagation for the first part of the steps, in percent, and the heads beside
    it."""
    join_last: float = 0.0
    """Train the network by backpropagation for the last part of the steps, in percent."""
    movement: float = 0.0
    """Add this many times the mean square by which each layer below a cut changes the features, if it keeps
    their shape (TRGL)."""
    shared_heads: bool = True
    """Let each group's head see the other groups' features too, detached (GN-DGL's stop-gradient variant)."""

    def __post_init__(self) -> None:
        LOSSES.check("local.loss", self.loss)
        check_range("local.similarity", self.similarity, 0, 1)
        _check_ends("local.reconstruction", self.reconstruction)
        _check_ends("local.prediction", self.prediction)
        check_range("local.temperature", self.temperature, 0, open_low=True)
        check_range("local.diversity", self.diversity, 0)
        check_choice("local.diversity_gradient", self.diversity_gradient, ("stopped", "released"))
        check_range("local.head_rate", self.head_rate, 0)
        check_range("local.head_warmup", self.head_warmup, 0, 1)
        check_range("local.last_layer", self.last_layer, 0)
        check_range("local.refresh", self.refresh, 0)
        check_range("local.momentum", self.momentum, 0, 0.999999)
        if self.momentum and not self.refresh:
            raise Mistake("local.momentum", "goes with `local.refresh`", "nothing is brought down without")
        check_range("local.movement", self.movement, 0)
        check_range("local.whole_first", self.whole_first, 0, 100)
        check_range("local.join_last", self.join_last, 0, 100)

    def idle_with(self, heads: Collection[str], *, grouped: bool) -> set[str]:
        """Return the options that blocks with these heads, in neuron groups or not, do not look at."""
        names = {field.name for field in fields(self)}
        used = {"head_rate", "head_warmup", "movement", "whole_first", "join_last"}
        later = [parse_later(head) is not None for head in heads]
        used |= ({"refresh", "momentum"} if any(later) else set()) | (set() if all(later) else {"last_layer"})
        for row in map(HEADS.get, heads):
            if row is None or (row.reads is None and row.loss):
                return set()  # nobody knows what the loss of a user's own looks at
            used |= {option.removeprefix("local.") for option in row.reads or ("local.loss",)}
        if grouped:
            used |= {"shared_heads", "diversity"} | ({"diversity_gradient"} if self.diversity else set())
        return names - used


@dataclass(frozen=True, kw_only=True)
class GluingOptions:
    """These options say how BlockProp finds its gluing variables, the inputs of all blocks but the first."""

    penalty: tuple[float, ...] = (1.0,)
    """The weight of the squared gap (lambda) at each boundary between blocks, or one weight for all."""
    step: tuple[float, ...] = (0.01,)
    """The size of the h-steps (gamma) at each boundary between blocks, or one size for all."""
    h_steps: int = 1
    """How many steps a gluing variable takes in an h-step; with 0 only the last block learns."""
    cache: bool = False
    """Start from the gluing variables stored for each image (Algorithm 2) instead of a forward pass."""
    h_every: int = 1
    """Take h-steps only at every n-th visit of an image, and use the stored variables in between. Numbers
    above 1 need the cache."""
    refresh: int = 0
    """Start from a forward pass again at every n-th visit of an image: 0 is never, 1 is always. Numbers
    above 0 need the cache."""

    def __post_init__(self) -> None:
        for name in ("penalty", "step"):
            values = getattr(self, name)
            if not values:
                raise Mistake(f"gluing.{name}", "give one number for all boundaries, or one for each")
            for value in values:
                check_range(f"gluing.{name}", value, 0, open_low=True)
        check_range("gluing.h_steps", self.h_steps, 0)
        check_range("gluing.h_every", self.h_every, 1)
        check_range("gluing.refresh", self.refresh, 0)
        for name, off in (("h_every", 1), ("refresh", 0)):
            if getattr(self, name) > off and not self.cache:
                raise Mistake(f"gluing.{name}", "needs `gluing.cache`", "nothing is stored without")

    def idle(self) -> dict[str, str]:
        """Return the options that have no effect beside the other options' values, each with the reason."""
        return {} if self.h_steps else {"step": "`gluing.h_steps` 0"}


def _check_ends(option: str, ends: tuple[float, ...]) -> None:
    if len(ends) != 2:
        raise Mistake(option, f"takes two numbers, for the first and the last head, not {len(ends)}")
    for value in ends:
        check_range(option, value, 0)
