"""These options name one network, by its name or as an architecture. Free of torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from local_learning.networks.catalogue import NETWORKS, TIMM, check_named
from supernet.options import CLASSIFIER_INITS
from tools.mistake import Mistake
from tools.options.config import check_choice, check_range


@dataclass(frozen=True, kw_only=True)
class NetworkChoice:
    """These options name a network, or an architecture of a space."""

    NAMES: ClassVar[dict[str, Iterable[str]]] = {"networks": NETWORKS}
    EARLIER: ClassVar[dict[str, Any]] = {
        "classifier_init": lambda config: "timm" if config.architecture else "torch"
    }

    FILES: ClassVar[tuple[str, ...]] = ("architecture", "weights")
    """These options name files that a new run reads."""

    network: str = "resnet18"
    """The network: {networks}, timm/<model name>, or your own."""
    architecture: str = ""
    """Take the network that this architecture.json describes, such as one that a search found."""
    width: float = 1.0
    """A factor on the number of channels, for the papers' networks."""
    dropout: float = 0.0
    """The rate of dropout before the classifier, for the networks that have it."""
    drop_path: float = 0.0
    """The rate of stochastic depth, for the timm models that have it."""
    init: str = "fan_in"
    """The Kaiming initialisation of the papers' networks: fan_in or fan_out."""
    classifier_init: str = "torch"
    """How an architecture's classifier is initialised: torch or timm. With torch, losses begin near
    log(classes). With timm, weights are uniform within 1/sqrt(classes), which suits the thousand
    classes of ImageNet."""
    stem: str = "fused"
    """Whether the stem of a ResNet or of an architecture is part of the first layer (fused, as in SEDONA)
    or has layers of its own (unit, as in DGL)."""
    pretrained: bool = False
    """Start a timm model from its published weights, which come from timm's cache or are downloaded."""
    weights: str = ""
    """Start from this weights file: one of ours, or one with the timm model's own names."""

    def check_network(self) -> None:
        """Refuse values that are out of range, or that do not go together."""
        if not self.network.startswith(TIMM):
            check_named(self.network, "network")
        check_range("width", self.width, 0, open_low=True)
        check_range("dropout", self.dropout, 0, 0.99)
        check_range("drop_path", self.drop_path, 0, 0.99)
        check_choice("init", self.init, ("fan_in", "fan_out"))
        check_choice("classifier_init", self.classifier_init, CLASSIFIER_INITS)
        check_choice("stem", self.stem, ("fused", "unit"))
        if self.pretrained and self.weights:
            raise Mistake("pretrained", "cannot go with `weights`", "choose one")
        if self.classifier_init != NetworkChoice.classifier_init and not self.architecture:
            raise Mistake("classifier_init", "goes with `architecture`", "`network` has an `init` of its own")
        if self.architecture:
            self.check_no_network("`architecture`", "the file of `architecture`")

    def check_no_network(self, option: str, source: str) -> None:
        """Refuse options about a network where another option names architectures.

        `option` is that other option, and `source` is what describes the architectures.
        """
        network = type(self).__dataclass_fields__["network"].default
        if self.network != network:
            raise Mistake("network", f"cannot go with {option}", f"leave {self.network} out")
        for name in ("width", "drop_path", "init", "pretrained"):
            if getattr(self, name) != getattr(NetworkChoice, name):
                raise Mistake(name, "goes with `network`", f"{source} says it all")
