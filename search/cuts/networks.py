"""The options of a search of cuts become its relaxed network and the images of each process."""

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from local_learning.cuts.head_width import parse_head_width
from search.cuts.config import DecouplingSearchConfig
from search.hypergradient import hypergradient
from search.relaxation import RelaxedNet
from supernet.network.network import Network
from tools.images.datasets import Data
from tools.images.loaders import TrainLoader, make_train_loader
from tools.kernels.modules import use_kernels
from tools.layout import use_channels_last
from tools.mistake import Mistake, quoted
from tools.run.weights import load_weights, read_weights
from tools.seeding import derive, seed_globals


def settled(config: DecouplingSearchConfig, network: Network) -> DecouplingSearchConfig:
    """Return the options with what the network settles.

    It settles how its stem is counted, and how wide its heads are.
    """
    width = config.head_width or network.usual_head_width
    return replace(config, stem=network.options.stem, head_width=width)


def make_relaxed(
    config: DecouplingSearchConfig, network: Network, data: Data, accelerator: Accelerator
) -> RelaxedNet:
    """Build the network with all heads on all layers, on the device where it is searched."""
    chain = network.chain(data.num_classes, data.image_size, data.channels)
    if config.weights:
        source = Path(config.weights)
        tensors = network.with_chain_names(chain, read_weights(source))
        trunk = {name: tensor for name, tensor in tensors.items() if not name.startswith("heads.")}
        load_weights(chain, trunk, source=source)
    seed_globals(config.seed, "heads")
    try:
        net = RelaxedNet(
            chain,
            config.heads,
            data.num_classes,
            data.image_size,
            image_chs=data.channels,
            label_smoothing=config.recipe.label_smoothing,
            smoothing=config.recipe.smoothing,
            logit_scaling=bool(config.search.compat),
            head_width=parse_head_width(config.head_width),
        )
    except ValueError as error:
        raise Mistake(network.asked_for, quoted(error)) from error
    net.to(accelerator.device, torch.float64 if config.precision == "fp64" else torch.float32)
    use_channels_last(net)
    use_kernels(net, config.kernels)
    return net


def check_derivatives(network: Network, net: RelaxedNet, data: Data) -> None:
    """Check before a long pretraining that torch can differentiate this network twice."""
    shape = (2, data.channels, data.image_size, data.image_size)
    batch = (torch.randn(shape).to(net.alpha), torch.arange(2, device=net.alpha.device) % data.num_classes)
    try:
        hypergradient(net, [batch, batch], batch, lr=1e-3, momentum=0.9, weight_decay=0.0)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise Mistake(network.asked_for, f"it cannot be searched: {reason}") from None


def own_loaders(
    config: DecouplingSearchConfig, data: Data, accelerator: Accelerator
) -> tuple[TrainLoader, TrainLoader]:
    """Return loaders of whole batches, which differ between processes.

    Validation images are not augmented.
    """
    seed = derive(config.seed, "search", accelerator.process_index)
    plain = replace(
        config.data, augment="none", rotate=0.0, cutout=0, color_jitter=0.0, auto_augment="", erase=0.0
    )
    size = min(config.search.validation_batch, len(data.validation))
    train = make_train_loader(
        data.train,
        data,
        config.data,
        batch_size=config.recipe.batch_size,
        seed=seed,
        device=accelerator.device,
    )
    validation = make_train_loader(
        data.validation, data, plain, batch_size=size, seed=seed, device=accelerator.device
    )
    return train, validation
