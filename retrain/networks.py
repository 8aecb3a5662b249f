"""This module makes a network in blocks from options: the chain, its cuts, and its initial weights."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from local_learning.blocks import DecoupledNet, decouple
from local_learning.catalogue import HEADS, LOSSES
from local_learning.chain import Chain
from local_learning.cuts.head_width import parse_head_width
from local_learning.cuts.profile import balanced
from local_learning.cuts.requests import parse_request
from local_learning.decoupling import Decoupling
from local_learning.later.request import parse_later
from local_learning.losses import CrossEntropy
from local_learning.published import published
from retrain.config import HELP_FROM_ABOVE, RetrainConfig
from retrain.placing.measuring import seconds_here, subject_of
from supernet.network.network import Network
from tools.images.datasets import Data
from tools.mistake import Mistake, quoted
from tools.run.weights import load_weights
from tools.seeding import seed_globals


def choose_decoupling(
    config: RetrainConfig,
    network: Network,
    chain: Chain,
    data: Data,
    accelerator: Accelerator | None = None,
    *,
    option: str = "decoupling",
) -> Decoupling:
    """Return where to cut the chain, as `decoupling` and `groups` ask.

    Arguments:
        config: The options of the training.
        network: The network that the options name.
        chain: The network as a chain.
        data: The data set.
        accelerator: Times are measured on its device, and on whole blocks if these run in parallel. Without
            it, times are the CPU's.
        option: The option by which the user named the decoupling; mistakes are about it.
    """
    if not config.decoupling:
        return Decoupling((), ())
    try:
        decoupling = _grouped(config, chain, _cuts(config, network, chain, data, accelerator))
        if config.head_width or parse_request(config.decoupling).kind != "file":
            decoupling = replace(decoupling, head_width=head_width_of(config, network))
        decoupling.blocks(chain.num_layers)  # raises an error if a file's cuts lie beyond the network
    except ValueError as error:
        named = f"`{option}` {config.decoupling}"
        if isinstance(error, Mistake) and Path(error.source) == Path(config.decoupling):
            raise error.about(named) from error  # the value already names the file
        raise Mistake(named, quoted(error)) from error
    _check_rule(config, decoupling)
    return decoupling


def head_width_of(config: RetrainConfig, network: Network) -> str | float:
    """Return the head width that `head_width` says, or the usual one of the network."""
    return parse_head_width(config.head_width or network.usual_head_width)


def make_net(
    config: RetrainConfig,
    network: Network,
    chain: Chain,
    decoupling: Decoupling,
    data: Data,
    tensors: Mapping[str, Tensor] | None = None,
) -> DecoupledNet:
    """Return the chain in blocks as the rule trains them, with given tensors in place of initial weights."""
    recipe = config.recipe
    if tensors is not None and decoupling.groups == 1 and any(map(parse_later, decoupling.heads)):
        _load_layers(config, network, chain, tensors)  # of which these heads are made
    seed_globals(config.seed, "heads")
    try:
        net = decouple(
            chain,
            decoupling,
            data.num_classes,
            data.image_size,
            image_chs=data.channels,
            options=config.local,
            last_loss=CrossEntropy(recipe.label_smoothing, recipe.smoothing),
            mean=data.mean,
            std=data.std,
        )
    except ValueError as error:
        raise Mistake(f"`decoupling` {config.decoupling}", quoted(error)) from error
    if not config.rule_row.cuts:
        net = net.joined()
    elif not config.rule_row.trains_heads:
        net.drop_heads()
    if LOSSES.is_own(config.local.loss) and (config.data.mixup or config.data.cutmix):
        _check_mixed(config, net, data)
    if tensors is not None:
        _load(config, network, net, tensors)
    return net


def _cuts(
    config: RetrainConfig,
    network: Network,
    chain: Chain,
    data: Data,
    accelerator: Accelerator | None,
) -> Decoupling:
    request = parse_request(config.decoupling)
    if request.kind == "published":
        return published(network.name, request.num_blocks)
    if request.kind == "uniform":
        return Decoupling.uniform(chain.num_layers, request.num_blocks, request.head, groups=config.groups)
    if request.kind == "balanced":
        return balanced(
            copy.deepcopy(chain).to(accelerator.device) if accelerator else chain,
            request.num_blocks,
            request.head,
            data.num_classes,
            data.image_size,
            by=config.balance,
            groups=config.groups,
            head_width=head_width_of(config, network),
            image_chs=data.channels,
            kernels=config.kernels,
            costs_of=request.head if config.rule_row.trains_heads else "",
            blocks_cost=_measure_of(config, network, chain, data, accelerator) if accelerator else None,
        )
    cuts = network.cuts_of(request.path)
    if cuts.num_layers not in (None, chain.num_layers):
        raise ValueError(
            f"it is for {cuts.network or 'a network'} of {cuts.num_layers} layers; "
            f"{network.name} has {chain.num_layers}"
        )
    return cuts.decoupling


def _measure_of(
    config: RetrainConfig, network: Network, chain: Chain, data: Data, accelerator: Accelerator
) -> Callable[[Decoupling], list[float]] | None:
    """Return a function that measures whole blocks, if the slowest of them will set the pace."""

    def blocks_cost(decoupling: Decoupling) -> list[float]:
        net = make_net(config, network, copy.deepcopy(chain), decoupling, data)
        subject = subject_of(config, network.words, chain.num_layers, decoupling, data)
        return seconds_here(net, config, subject, accelerator)

    parallel = config.parallel == "blocks" and config.balance == "time" and config.groups == 1
    return blocks_cost if parallel else None


def _grouped(config: RetrainConfig, chain: Chain, decoupling: Decoupling) -> Decoupling:
    """Return a decoupling with the groups that are asked for in every block, including the last layers'."""
    if config.groups > 1 and decoupling.groups not in (1, config.groups):
        raise Mistake(
            "", f"it has {decoupling.groups} groups of its own", f"leave out `groups` {config.groups}"
        )
    if config.groups > 1 and not decoupling.heads:
        raise ValueError(
            "one block has no head for its groups; ask for two blocks or more, or uniform:1:HEAD"
        )
    if config.groups > 1:
        decoupling = replace(decoupling, groups=config.groups).closed(chain.num_layers, decoupling.heads[-1])
    return replace(decoupling, uneven=True) if config.uneven_groups else decoupling


def _check_rule(config: RetrainConfig, decoupling: Decoupling) -> None:
    """Refuse what the rule or the images would make meaningless."""
    rule, grouped = config.rule_row, decoupling.groups != 1
    for name in HELP_FROM_ABOVE:
        if grouped and getattr(config.local, name):
            raise Mistake(f"local.{name}", "is for blocks without neuron groups", "leave it out")
    if grouped and rule.cuts and not rule.trains_heads:
        raise Mistake("groups", f"their heads teach them, which `rule` {config.rule} does without")
    if rule.trains_heads and not config.local.refresh and any(map(_is_averaged, decoupling.heads)):
        raise Mistake(
            "local.refresh",
            "heads with +man have copies that follow the layers",
            "say how often, such as `local.refresh` 1 with `local.momentum` 0.995",
        )
    rows = [row for row in map(HEADS.get, decoupling.heads) if row]
    pairs = (grouped and config.local.diversity > 0) or any(row.needs_classes for row in rows)
    if pairs and rule.trains_heads and (config.data.mixup or config.data.cutmix):
        raise Mistake(
            "`data.mixup` and `data.cutmix`", "the loss between groups or images needs one class each"
        )


def _is_averaged(kind: str) -> bool:
    later = parse_later(kind)
    return later is not None and later.averaged


def _check_mixed(config: RetrainConfig, net: DecoupledNet, data: Data) -> None:
    """Try a user's own loss on targets that are probabilities, before a training does."""
    trial = copy.deepcopy(net).eval()
    images = torch.zeros(2, data.channels, data.image_size, data.image_size).to(next(trial.parameters()))
    targets = torch.arange(2) % data.num_classes
    mixed = functional.one_hot(targets, data.num_classes).to(images)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        trial.losses(images, targets)
        try:
            trial.losses(images, mixed)
        except Exception as error:  # whatever a user's code may raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise Mistake(
                "`data.mixup` and `data.cutmix`",
                f"`local.loss` {config.local.loss} does not take the probabilities that they make "
                f"of classes ({reason})",
                "leave them out, or let it take both",
            ) from None


def _load_layers(
    config: RetrainConfig, network: Network, chain: Chain, tensors: Mapping[str, Tensor]
) -> None:
    """Load given weights into a chain that has no heads yet."""
    skip = ("heads.", "classifier.") if config.reset_classifier else ("heads.",)
    load_weights(chain, network.with_chain_names(chain, tensors), source=Path(config.weights), skip=skip)


def _load(config: RetrainConfig, network: Network, net: DecoupledNet, tensors: Mapping[str, Tensor]) -> None:
    """Start from given weights; heads start anew unless the file has every one of them."""
    view, source = net.with_names(), Path(config.weights)
    tensors = network.with_chain_names(view, tensors)
    own = {name: tensor.shape for name, tensor in view.state_dict().items() if name.startswith("heads.")}
    given = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("heads.")}
    skip: tuple[str, ...] = () if own == given else ("heads.",)
    if config.reset_classifier:
        skip = ("heads.", "classifier.")
    load_weights(view, tensors, source=source, skip=skip)
