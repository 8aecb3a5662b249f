"""These options say how supernets are trained. Free of torch."""

from dataclasses import dataclass, replace

from tools.images.options import DataConfig
from tools.mistake import Mistake
from tools.options.catalogue import Catalogue, Row
from tools.options.config import check_choice, check_range

CLASSIFIER_INITS = ("torch", "timm")


@dataclass(frozen=True, kw_only=True)
class FidelityOptions:
    """These options let a smaller copy of the space be trained, of which every string names the same network.

    Limits and reported costs stay those of the full size.
    """

    width: float = 1.0
    """Train a copy with this part of the channels, rounded to multiples of 4."""
    image_size: int = 0
    """Train on images of this side; 0 takes those of the full size, which --data.image-size gives."""

    def __post_init__(self) -> None:
        check_range("fidelity.width", self.width, 0, 1, open_low=True)
        check_range("fidelity.image_size", self.image_size, 0)

    def images(self, data: DataConfig) -> DataConfig:
        """Return the options of the images on which the copy is trained; `data` says the full size."""
        if self.image_size > data.size:
            raise Mistake(
                "fidelity.image_size",
                f"{self.image_size} is more than the {data.size} pixels of the full size",
                "`data.image_size` sets those",
            )
        return replace(data, image_size=self.image_size) if self.image_size else data


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """These options say which paths spos and fair train."""

    draw: str = "strings"
    """What spos draws uniformly: strings of choices, or different networks (strings, networks). One
    network has several strings where some of its layers are skipped."""
    canonical: bool = True
    """Let spos move skips to the end among equal layers, so that one network always uses the same weights."""
    min_macs: float = 0.0
    """The fewest multiply-accumulates (FLOPs in the papers' sense) of a path that spos draws."""
    max_macs: float = 0.0
    """The most multiply-accumulates of a path that spos draws; 0 sets no limit."""
    bin_macs: float = 0.0
    """Let spos first draw an interval of this width between min-macs and max-macs, and then a path in it;
    0 draws any path alike. The released code of Single Path One-Shot takes 10e6 between 290e6 and
    360e6."""
    skip: str = "auto"
    """Whether skip takes its turn like the other candidates in fair: op, left_out or auto. With auto it
    does where all layers have the same number of candidates."""
    shared_scale: str = "sum"
    """Whether fair takes the sum or the mean over the paths of the gradients of stem and tail, which all
    paths share."""

    def __post_init__(self) -> None:
        check_choice("paths.draw", self.draw, ("strings", "networks"))
        if self.draw == "networks" and not self.canonical:
            raise Mistake(
                "paths.canonical", "networks are drawn with their skips last", "leave it on, or draw strings"
            )
        check_range("paths.min_macs", self.min_macs, 0)
        check_range("paths.max_macs", self.max_macs, 0)
        check_range("paths.bin_macs", self.bin_macs, 1 if self.bin_macs else 0)
        check_choice("paths.skip", self.skip, ("auto", "op", "left_out"))
        check_choice("paths.shared_scale", self.shared_scale, ("sum", "mean"))
        if self.max_macs and self.max_macs <= self.min_macs:
            raise Mistake("paths.max_macs", "must be over `paths.min_macs`")
        if self.bin_macs and not self.max_macs:
            raise Mistake(
                "paths.bin_macs", "divides the way from `paths.min_macs` to `paths.max_macs`", "give both"
            )


@dataclass(frozen=True, kw_only=True)
class LayerwiseOptions:
    """These options settle what Algorithms 1 and 2 of LWSL leave open."""

    partner: str = "module"
    """How nongreedy draws the module that is stacked on another one: module, layer or permutation. It is
    drawn for each module, once for the whole layer, or by a permutation of the next layer's modules."""
    partner_statistics: str = "batch"
    """What a partner's BatchNorm does in nongreedy: batch, track or eval. With batch the running
    statistics stay as they are, with track they move, and with eval they are used."""
    decoders: str = "layer"
    """Whether all modules of a layer share one decoder (layer), or each has its own (module)."""
    decoder_gradient: str = "sum"
    """Whether a decoder's gradient is a sum or a mean over the modules that share it."""
    last_decoder: str = "tail"
    """What stands behind the last layer: the tail itself (tail), or a local decoder (local). After a local
    decoder the tail needs --tail-steps."""
    skip_in_mean: bool = False
    """Count skip among the modules whose mean is the next layer's input."""
    skip_as_partner: bool = False
    """Let nongreedy draw skip as a partner."""
    stem: str = "layer"
    """Train the stem with layer 1 by the mean of its modules' gradients (layer), or leave it frozen
    (frozen)."""
    update: str = "immediate"
    """Update each layer as soon as it has its gradients (immediate), or all at the end (deferred). The
    numbers are the same."""

    def __post_init__(self) -> None:
        check_choice("layerwise.partner", self.partner, ("module", "layer", "permutation"))
        check_choice("layerwise.partner_statistics", self.partner_statistics, ("batch", "track", "eval"))
        check_choice("layerwise.decoders", self.decoders, ("layer", "module"))
        check_choice("layerwise.decoder_gradient", self.decoder_gradient, ("sum", "mean"))
        check_choice("layerwise.last_decoder", self.last_decoder, ("tail", "local"))
        check_choice("layerwise.stem", self.stem, ("layer", "frozen"))
        check_choice("layerwise.update", self.update, ("immediate", "deferred"))


@dataclass(frozen=True, kw_only=True)
class ContrastOptions:
    """These options are for InfoNCE as in SimCLR, with two random views of every image."""

    temperature: float = 0.5
    """The temperature of the softmax (SimCLR: 0.5 for CIFAR-10, 0.1 for ImageNet)."""
    projection: int = 128
    """How many numbers an image is projected to."""
    min_area: float = 0.08
    """The smallest part of an image's area that a view shows."""
    jitter: float = 0.5
    """The strength of the views' colour jitter (0.5 for CIFAR-10, 1 for ImageNet)."""
    grey: float = 0.2
    """The probability that a view is grey."""
    blur: float = 0.0
    """The probability that a view is blurred (0.5 for ImageNet)."""

    def __post_init__(self) -> None:
        check_range("contrast.temperature", self.temperature, 0, open_low=True)
        check_range("contrast.projection", self.projection, 1)
        check_range("contrast.min_area", self.min_area, 0, 1, open_low=True)
        check_range("contrast.jitter", self.jitter, 0, 1.25)
        check_range("contrast.grey", self.grey, 0, 1)
        check_range("contrast.blur", self.blur, 0, 1)


@dataclass(frozen=True, kw_only=True)
class StrategyRow(Row):
    """A strategy is a way to train a supernet.

    `make` is called with the supernet. It also gets `optimizer`, `seed`, `objective`, `engine` and
    `options` if it takes them. It gives a `supernet.strategy.Strategy`.
    """

    by_layer: bool = False
    """Whether its `options` are those of `layerwise`, and not those of `paths`."""
    layers_at_once: int = 0
    """How many layers' activations are kept while one layer learns; 0 is all of them."""
    outranks: tuple[str, ...] = ()
    """Strategies that rank networks worse, as this one's paper claims."""
    claim: str = ""
    """The question whether they do rank worse, which a report answers."""


_BY_LAYER = tuple(
    f"layerwise.{name}"
    for name in ("decoders", "decoder_gradient", "last_decoder", "skip_in_mean", "stem", "update")
)

STRATEGIES: Catalogue[StrategyRow] = Catalogue(
    "strategy",
    StrategyRow,
    [
        StrategyRow(
            name="spos",
            says="a random network in each step",
            make="supernet.paths:SinglePath",
            reads=("paths.draw", "paths.canonical", "paths.min_macs", "paths.max_macs", "paths.bin_macs"),
        ),
        StrategyRow(
            name="fair",
            says="in each step as many networks as a layer has operations, so that each learns once",
            make="supernet.paths:StrictFairness",
            reads=("paths.skip", "paths.shared_scale"),
        ),
        StrategyRow(
            name="greedy",
            says="layer by layer, each by a loss of its own behind it (LWSL, layer-wise supernet learning)",
            make="supernet.layerwise:GreedyStrategy",
            reads=_BY_LAYER,
            by_layer=True,
            layers_at_once=1,
        ),
        StrategyRow(
            name="nongreedy",
            says="layer by layer, each by the loss behind it and the next one (LWSL, layer-wise "
            "supernet learning)",
            make="supernet.layerwise:NonGreedyStrategy",
            reads=(
                *_BY_LAYER,
                *("layerwise.partner", "layerwise.partner_statistics", "layerwise.skip_as_partner"),
            ),
            by_layer=True,
            layers_at_once=2,
            outranks=("spos",),
            claim="Does non-greedy layer-wise training rank better than single paths, as LWSL has it "
            "(.538 against .205)?",
        ),
    ],
)
"""These are our strategies and the user's own."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveRow(Row):
    """An objective is what a supernet is trained for.

    `make` is called with those of `num_classes`, `label_smoothing`, `smoothing`, `options` (of contrast),
    `mean`, `std`, `seed`, `rank` and `world_size` that it takes. It gives a
    `supernet.objectives.Objective`.
    """

    labels: bool = True
    """Whether it uses the labels. Without, the classifier is left untrained, and labels may be mixed."""


OBJECTIVES: Catalogue[ObjectiveRow] = Catalogue(
    "objective",
    ObjectiveRow,
    [
        ObjectiveRow(
            name="cross_entropy",
            says="the labels",
            make="supernet.objectives:CrossEntropyObjective",
            reads=(),
        ),
        ObjectiveRow(
            name="infonce",
            says="two views of each image, no labels",
            make="supernet.objectives:info_nce",
            reads=("contrast",),
            labels=False,
        ),
    ],
)
"""These are our objectives and the user's own."""
