"""The options by which a script's user names one network; free of torch."""

from dataclasses import dataclass
from typing import Any, ClassVar

from supernet.options import CLASSIFIER_INITS
from tools.mistake import Mistake
from tools.options.config import check_choice, check_range


@dataclass(frozen=True, kw_only=True)
class NetworkChoice:
    """A network by name, or an architecture of a space."""

    EARLIER: ClassVar[dict[str, Any]] = {
        "classifier_init": lambda config: "timm" if config.architecture else "torch"
    }

    network: str = "resnet18"
    """resnet18/34/50/101/152, resnet32, resnet110, vgg19, vgg6a, mlp, timm/<model name>, or your own."""
    architecture: str = ""
    """Take the network that this architecture.json describes instead, such as one that a search found."""
    width: float = 1.0
    """Factor on the number of channels of the papers' networks."""
    dropout: float = 0.0
    """Dropout before the classifier, for the networks that have it."""
    drop_path: float = 0.0
    """Rate of stochastic depth, for the timm models that have it."""
    init: str = "fan_in"
    """Kaiming initialisation of the papers' networks: fan_in or fan_out."""
    classifier_init: str = "torch"
    """First weights of an architecture's classifier: torch (losses begin near log(classes)), or timm (uniform
    within 1/sqrt(classes), as for ImageNet's thousand)."""
    stem: str = "fused"
    """The stem of a ResNet or of an architecture: part of the first layer (fused, as in SEDONA), or layers
    of its own (unit, as in DGL)."""
    pretrained: bool = False
    """Start a timm model from its published weights (from timm's cache, or fetched)."""
    weights: str = ""
    """Start from this weights file: one of ours, or one with the timm model's own names."""

    def check_network(self) -> None:
        """Refuse what is out of range, or does not go together."""
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
        """Refuse what is about a network, where an option names architectures, which a source describes."""
        network = type(self).__dataclass_fields__["network"].default
        if self.network != network:
            raise Mistake("network", f"cannot go with {option}", f"leave {self.network} out")
        for name in ("width", "drop_path", "init", "pretrained"):
            if getattr(self, name) != getattr(NetworkChoice, name):
                raise Mistake(name, "goes with `network`", f"{source} says it all")
