"""This module measures the costs of a run's blocks on this machine, and finds where they are best placed."""

import torch
from accelerate import Accelerator

from local_learning.blocks import DecoupledNet
from local_learning.decoupling import Decoupling
from retrain.config import RetrainConfig
from retrain.placing.block_costs import block_seconds, measure_block_costs
from retrain.placing.forecast import BlockCosts, Conditions, Subject, stage_forecast
from retrain.placing.placement import Placement, place_by
from tools.images.datasets import Data
from tools.kernels.modules import use_kernels
from tools.optim import make_optimizer


def conditions_of(config: RetrainConfig) -> Conditions:
    """Return the conditions under which a run trains its blocks, on the cluster of its options."""
    return Conditions(
        batch_size=config.recipe.batch_size,
        accumulate=config.recipe.accumulate,
        queue=config.pipeline.queue,
        transfer=config.pipeline.transfer,
        bandwidth=config.cluster.bandwidth,
        latency=config.cluster.latency,
        speed=config.cluster.speed,
    )


def placed(costs: BlockCosts, devices: int, on: Conditions, *, apart: bool = False) -> Placement:
    """Return the placement whose slowest stage is fastest, including the links of its devices.

    Raises:
        ValueError: These devices cannot share the batch evenly.
    """
    return place_by(
        lambda blocks, copies: stage_forecast(costs, blocks, copies, on).seconds,
        len(costs.blocks),
        devices,
        batch_size=on.batch_size,
        accumulate=on.accumulate,
        apart=apart,
    )


def subject_of(
    config: RetrainConfig, network: str, num_layers: int, decoupling: Decoupling, data: Data
) -> Subject:
    """Return what costs are measured on: a network, in words, in these blocks."""
    return Subject(
        network=network,
        rule=config.chosen_rule,
        num_layers=num_layers,
        cuts=decoupling.cuts,
        heads=decoupling.heads,
        groups=decoupling.groups_of(num_layers),
        image_shape=(data.channels, data.image_size, data.image_size),
        num_classes=data.num_classes,
        optimizer=config.recipe.optimizer,
        precision=config.precision,
        kernels=config.kernels,
        head_width=decoupling.head_width,
    )


def measure_here(
    net: DecoupledNet, config: RetrainConfig, subject: Subject, accelerator: Accelerator
) -> BlockCosts:
    """Train each block for a few steps on this process's device, and return the costs."""
    large = max(4, min(config.recipe.batch_size, _enough(subject, accelerator) // 4))
    return measure_block_costs(
        _as_trained(net, config, accelerator),
        subject,
        lambda parameters: make_optimizer(config.recipe, parameters),
        device=accelerator.device,
        batch_sizes=(max(2, large // 4), large),
        autocast=accelerator.autocast,
    )


def seconds_here(
    net: DecoupledNet, config: RetrainConfig, subject: Subject, accelerator: Accelerator
) -> list[float]:
    """Return the seconds of a step of each block, alone on this process's device, on the rows of a batch."""
    return block_seconds(
        _as_trained(net, config, accelerator),
        subject,
        lambda parameters: make_optimizer(config.recipe, parameters),
        device=accelerator.device,
        rows=min(config.recipe.batch_size // config.recipe.accumulate, _enough(subject, accelerator)),
        autocast=accelerator.autocast,
    )


def _as_trained(net: DecoupledNet, config: RetrainConfig, accelerator: Accelerator) -> DecoupledNet:
    """Give a net the numbers and the functions with which the run computes."""
    if accelerator.device.type == "cpu":
        use_kernels(net, config.kernels)
    return net.to(torch.float64 if config.precision == "fp64" else torch.float32)


def _enough(subject: Subject, accelerator: Accelerator) -> int:
    """Return a number of rows on which a measurement neither takes too long nor is all overhead."""
    small = subject.image_shape[1] <= 64
    return 512 if accelerator.device.type == "cuda" else 128 if small else 32
