"""The options of local losses and of gluing; free of torch."""

from dataclasses import dataclass

from local_learning.catalogue import LOSSES
from tools.mistake import Mistake
from tools.options.config import check_choice, check_range


@dataclass(frozen=True, kw_only=True)
class LocalLosses:
    """The losses of heads."""

    loss: str = "cross_entropy"
    """Of heads that have no loss of their own (predsim, infopro, infopro_contrast have): cross_entropy, or
    your own. The classifier's is cross-entropy in any case."""
    similarity: float = 0.99
    """PredSim: share of similarity matching in the loss; the rest is cross-entropy."""
    reconstruction: tuple[float, float] = (5.0, 5.0)
    """InfoPro: weight of the reconstruction at the first and at the last local head, linear in between."""
    prediction: tuple[float, float] = (1.0, 1.0)
    """InfoPro: weight of cross-entropy or contrast at the first and at the last local head, likewise."""
    temperature: float = 0.07
    """Temperature of the supervised contrast of infopro_contrast."""
    diversity: float = 0.5
    """GN-DGL: weight of the diversity term between neuron groups; 0 leaves it out."""
    diversity_gradient: str = "stopped"
    """stopped (as in the paper: the other groups' outputs are constants) or released (as in the released
    code: the gradient flows into both groups of a pair, which doubles it)."""
    shared_heads: bool = True
    """GN-DGL's stop-gradient variant: each group's head sees the other groups' features too, detached."""

    def __post_init__(self) -> None:
        LOSSES.check("local.loss", self.loss)
        check_range("local.similarity", self.similarity, 0, 1)
        _check_ends("local.reconstruction", self.reconstruction)
        _check_ends("local.prediction", self.prediction)
        check_range("local.temperature", self.temperature, 0, open_low=True)
        check_range("local.diversity", self.diversity, 0)
        check_choice("local.diversity_gradient", self.diversity_gradient, ("stopped", "released"))


@dataclass(frozen=True, kw_only=True)
class GluingOptions:
    """How BlockProp finds its gluing variables, the inputs of all blocks but the first."""

    penalty: tuple[float, ...] = (1.0,)
    """Weight of the squared gap at each boundary between blocks (lambda), or one for all."""
    step: tuple[float, ...] = (0.01,)
    """Size of the h-steps at each boundary (gamma), or one for all."""
    h_steps: int = 1
    """Steps that a gluing variable takes in an h-step; with 0 only the last block learns."""
    cache: bool = False
    """Start from the gluing variables stored for each image (Algorithm 2), not from the forward pass."""
    h_every: int = 1
    """Take h-steps at every n-th visit of an image, and the stored variables as they are in between; over 1
    it needs cache."""
    refresh: int = 0
    """Start from the forward pass again at every n-th visit of an image: 0 never, 1 always; over 0 it needs
    cache."""

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


def _check_ends(option: str, ends: tuple[float, ...]) -> None:
    if len(ends) != 2:
        raise Mistake(option, f"takes two numbers, for the first and the last head, not {len(ends)}")
    for value in ends:
        check_range(option, value, 0)
