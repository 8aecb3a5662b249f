"""Networks are built by name, as chains: those of the papers, and any timm model that can be traced."""

import math
from typing import Any, Protocol

import timm
from torch import nn

from local_learning.chain import Chain
from local_learning.networks.catalogue import NETWORKS, TIMM, check_named
from local_learning.networks.init import initialise
from local_learning.networks.traced import build_traced, split
from tools.mistake import Mistake, quoted
from tools.options.plugins import call, takes
from tools.seeding import seed_globals

register_network = NETWORKS.register


def build_chain(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    width: float = 1.0,
    in_chs: int = 3,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    init: str = "fan_in",
    stem: str = "fused",
    pretrained: bool = False,
) -> Chain:
    """Build the network called `name` for square images of `image_size` pixels.

    Initial weights come from torch's global generator, which the caller seeds. A timm model fits this
    image size only. A builder registered by `@register_network(name)` is called with those of the options
    that it takes. It gives a Chain, an nn.Sequential whose last module is the classifier, or a module that
    can be traced as timm's models are.

    Arguments:
        width: A factor on the channels of the papers' networks.
        dropout: The dropout rate of networks that have dropout.
        drop_path: The drop-path rate of timm models.
        init: The Kaiming initialisation of the papers' networks: fan_in (SEDONA), or fan_out (DGL, InfoPro
            and GN-DGL). Timm models have their own.
        stem: Whether a ResNet's stem is part of layer 1 (fused, as in SEDONA) or a layer (unit, as in DGL
            and InfoPro).
        pretrained: Whether a timm model starts from timm's weights.

    Raises:
        ValueError: in one line, for an unknown name or an option that the network does not have.
    """
    _check_numbers(num_classes=num_classes, image_size=image_size, width=width, in_chs=in_chs)
    _check_rates(dropout=dropout, drop_path=drop_path)
    if stem not in ("fused", "unit"):
        raise ValueError(f"stem is {stem!r}; it must be fused or unit")
    if init not in ("fan_in", "fan_out"):
        raise ValueError(f"init is {init!r}; it must be fan_in or fan_out")

    check_name(name)
    images = {"num_classes": num_classes, "image_size": image_size, "in_chs": in_chs}
    if NETWORKS.is_own(name):
        options = {"width": width, "init": init, "stem": stem, "pretrained": pretrained}
        return _own(name, images, options | {"dropout": dropout, "drop_path": drop_path})
    row = NETWORKS.get(name)
    if stem == "unit" and not (row and row.looks_at("stem")):
        raise ValueError(f"stem: only the ResNets have one that can be a layer of its own; {name} has not")
    if row is None:
        if width != 1.0:
            raise ValueError(f"width: {name} cannot be scaled; leave it at 1 and choose another timm model")
        if init != "fan_in":
            raise ValueError(f"init: {name} is initialised as timm does it; leave it at fan_in")
        return build_traced(
            name.removeprefix(TIMM),
            **images,
            dropout=dropout,
            drop_path=drop_path,
            pretrained=pretrained,
        )

    if drop_path:
        raise ValueError(f"drop_path: {name} has none; only timm models do")
    if dropout and not row.looks_at("dropout"):
        raise ValueError(f"dropout: {name} has none; leave it at 0")
    if pretrained:
        raise ValueError(f"pretrained: there are no weights for {name}; timm/<model name> may have some")
    if image_size < row.smallest_image:
        raise ValueError(f"image_size is {image_size}; {name} needs at least {row.smallest_image}")

    chain: Chain = call(row.maker, **images, width=width, dropout=dropout, stem=stem)
    initialise(chain, init)
    return chain


def check_name(name: str) -> None:
    """Refuse a name that is neither a known network nor, behind timm/, a model of timm."""
    if not (name.startswith(TIMM) and timm.is_model(name.removeprefix(TIMM))):
        check_named(name, models=timm.list_models())


def _own(name: str, images: dict[str, int], options: dict[str, Any]) -> Chain:
    """Return the network that a user's function builds.

    The function need not take options that it has no use for.
    """
    builder = NETWORKS[name].maker
    defaults = build_chain.__kwdefaults__ or {}
    for option, value in options.items():
        if value != defaults[option] and not takes(builder, option):
            raise ValueError(f"{option}: {name} does not take it; leave it at {defaults[option]}")
    model = call(builder, **images, **options)
    if isinstance(model, Chain):
        return model
    if isinstance(model, nn.Sequential) and len(model) > 1:
        return Chain(list(model)[:-1], model[-1])
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        return split(model, name, (images["in_chs"], images["image_size"], images["image_size"]))
    raise ValueError(
        f"what builds {name} gave a {type(model).__name__}; it must give a Chain, an nn.Sequential that ends "
        "in the classifier, or a module with forward_features and forward_head"
    )


def _check_numbers(*, num_classes: int, image_size: int, width: float, in_chs: int) -> None:
    counts: dict[str, Any] = {"num_classes": num_classes, "image_size": image_size, "in_chs": in_chs}
    for option, value in counts.items():
        if not isinstance(value, int):
            raise ValueError(f"{option} is {value!r}; it must be one whole number (images are square)")
        if value < 1:
            raise ValueError(f"{option} is {value}; it must be at least 1")
    if not (width > 0 and math.isfinite(width)):
        raise ValueError(f"width is {width}; it must be a number above 0")


def _check_rates(**rates: float) -> None:
    for option, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{option} is {rate}; it must be at least 0 and below 1")


class NetworkOptions(Protocol):
    """These are the options by which a script's user names a network."""

    @property
    def network(self) -> str: ...
    @property
    def width(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def drop_path(self) -> float: ...
    @property
    def init(self) -> str: ...
    @property
    def stem(self) -> str: ...
    @property
    def pretrained(self) -> bool: ...
    @property
    def seed(self) -> int: ...


def seeded_chain(options: NetworkOptions, num_classes: int, image_size: int, in_chs: int) -> Chain:
    """Build the network that the options name, initialised from their seed."""
    seed_globals(options.seed, "init")
    try:
        return build_chain(
            options.network,
            num_classes=num_classes,
            image_size=image_size,
            in_chs=in_chs,
            width=options.width,
            dropout=options.dropout,
            drop_path=options.drop_path,
            init=options.init,
            stem=options.stem,
            pretrained=options.pretrained,
        )
    except ValueError as error:
        raise Mistake(f"`network` {options.network}", quoted(error)) from error
