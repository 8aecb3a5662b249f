"""From a config to decouplings: data, relaxed network, pretraining, search and findings, in one run."""

import contextlib
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from local_learning.build import check_name, seeded_chain
from local_learning.networks.traced import with_our_names
from search.config import FREE, DecouplingSearchConfig
from search.findings import results_of, summary, write_findings
from search.memory import SnapshotMemory
from search.relaxation import RelaxedNet
from search.sedona import Episode, Inner, Pretraining, Search, episodes
from tools.checkpoint import load_checkpoint
from tools.config import flatten
from tools.cost import count_params
from tools.datasets import Data, load_data
from tools.launch import on_main
from tools.layout import use_channels_last
from tools.loaders import TrainLoader, eval_batches, make_train_loader
from tools.loop import Loop, Plan
from tools.runs import Run
from tools.seeding import derive, seed_globals
from tools.stage import in_run
from tools.weights import load_weights, read_weights

PRETRAINING, SNAPSHOTS = "pretraining", "snapshots"


def search_decoupling(config: DecouplingSearchConfig) -> None:
    """Search as the config says, or continue, or say that it is done."""
    in_run(config, _search, summary, free=FREE)


def _search(config: DecouplingSearchConfig, run: Run, accelerator: Accelerator) -> None:
    check_name(config.network)
    ranks = accelerator.num_processes
    if config.recipe.batch_size % ranks:
        raise ValueError(
            f"--recipe.batch-size: {config.recipe.batch_size} images cannot be shared evenly among {ranks} "
            "processes"
        )
    data = load_data(config.data, config.seed)
    net = _relaxed(config, data, accelerator)
    num_steps = config.recipe.num_steps(len(data.train) / config.recipe.batch_size)
    inner = Inner(net, config, num_steps)
    accelerator.init_trackers("cleave", config={key: str(value) for key, value in flatten(config).items()})
    if accelerator.is_main_process:
        print(_heading(config, data, net, num_steps, accelerator), flush=True)
    entries = _entries(config, run, accelerator, inner, data, num_steps)

    options = config.search
    share = max(1, options.snapshots // ranks)
    memory = SnapshotMemory(
        run.path / SNAPSHOTS,
        share,
        place=options.keep_snapshots_on,
        rank=accelerator.process_index,
        device=accelerator.device,
    )
    memory.take((entries[accelerator.process_index :: ranks] or entries)[:share])
    job = Search(inner, config, accelerator, memory)
    images = config.recipe.batch_size * (options.inner_steps + 1) + options.validation_batch
    plan = Plan(
        num_steps=options.steps,
        images_per_step=images * ranks,
        evaluate_every=options.evaluate_every,
        checkpoint_every=options.checkpoint_every,
        log_every=options.log_every,
        seed=config.seed,
        identity={"training images": len(data.train), "classes": list(data.class_names)},
    )
    train, validation = _own_loaders(config, data, accelerator)

    def batches(start: int, stop: int) -> Iterator[Episode]:
        return episodes(train, validation, options.inner_steps, start, stop)

    with contextlib.closing(train), contextlib.closing(validation):
        end = Loop(job, plan, run, accelerator).run(batches)

    def finish() -> dict[str, Any]:
        found = write_findings(run, config, net, data)
        results = results_of(found, steps=options.steps, seconds=end.seconds, pretraining=num_steps)
        run.write_results(results)
        shutil.rmtree(run.path / SNAPSHOTS, ignore_errors=True)  # weights are of no use any more
        return results

    results = on_main(accelerator, finish)
    if results is not None:
        print(summary(run, results), flush=True)


def _relaxed(config: DecouplingSearchConfig, data: Data, accelerator: Accelerator) -> RelaxedNet:
    chain = seeded_chain(config, data.num_classes, data.image_size, data.channels)
    if config.weights:
        source = Path(config.weights)
        tensors = with_our_names(config.network, chain, read_weights(source))
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
        )
    except ValueError as error:
        raise ValueError(f"--network {config.network}: {error}") from error
    net.to(accelerator.device, torch.float64 if config.precision == "fp64" else torch.float32)
    use_channels_last(net)
    return net


def _entries(
    config: DecouplingSearchConfig,
    run: Run,
    accelerator: Accelerator,
    inner: Inner,
    data: Data,
    num_steps: int,
) -> list[list[Any]]:
    """The snapshots that search starts from: those of pretraining, or the one of the initial weights."""
    options = config.search
    if options.pretrained_run:
        entries = _entries_of(Path(options.pretrained_run), inner)
        return entries[-options.snapshots :] if options.compat else _best(entries, options.snapshots)
    part = run.part(PRETRAINING)
    memory = SnapshotMemory(
        part.path / SNAPSHOTS, options.snapshots, place=options.keep_snapshots_on, device=accelerator.device
    )
    if not options.pretraining:
        told: list[Any] = [None]
        if accelerator.is_main_process:
            memory.keep_latest(inner.state(), 0, 0.0)
            told = [memory.state_dict()["entries"]]
    else:
        _pretrain(config, part, accelerator, inner, data, num_steps, memory)
        told = [memory.entries()]
    if accelerator.num_processes > 1:
        broadcast_object_list(told)
    return list(told[0])


def _pretrain(
    config: DecouplingSearchConfig,
    part: Run,
    accelerator: Accelerator,
    inner: Inner,
    data: Data,
    num_steps: int,
    memory: SnapshotMemory,
) -> None:
    recipe = config.recipe
    place = {
        "device": accelerator.device,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
    }
    loader = make_train_loader(
        data.train, data, config.data, batch_size=recipe.batch_size, seed=config.seed, **place
    )
    validation = eval_batches(
        data.validation, data, config.data, batch_size=max(recipe.batch_size, 256), **place
    )
    job = Pretraining(inner, config, accelerator, memory, validation)
    plan = Plan(
        num_steps=num_steps,
        images_per_step=recipe.batch_size,
        evaluate_every=recipe.steps_between_evaluations(loader.steps_per_epoch),
        checkpoint_every=recipe.checkpoint_every,
        log_every=recipe.log_every,
        seed=config.seed,
        identity={"training images": len(data.train), "classes": list(data.class_names)},
    )
    with contextlib.closing(loader):
        Loop(job, plan, part, accelerator).run(loader.batches)


def _own_loaders(
    config: DecouplingSearchConfig, data: Data, accelerator: Accelerator
) -> tuple[TrainLoader, TrainLoader]:
    """Whole batches for each process, different ones; validation images as they are."""
    seed = derive(config.seed, "search", accelerator.process_index)
    plain = replace(config.data, augment="none")
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


def _entries_of(run: Path, inner: Inner) -> list[list[Any]]:
    """The snapshots that another run's pretraining left."""
    option = "--search.pretrained-run"
    found = load_checkpoint(run / PRETRAINING / "checkpoints")
    if found is None:
        raise ValueError(f"{option}: there is no pretraining in '{run}'")
    entries: list[list[Any]] = found[1]["job"]["memory"]["entries"]
    # A run may have been moved since.
    entries = [[str(run / PRETRAINING / SNAPSHOTS / Path(path).name), *rest] for path, *rest in entries]
    memory = SnapshotMemory(run, len(entries), place="disk")
    memory.take(entries)
    given = {name: tensor.shape for name, tensor in memory.read(memory.snapshots[-1]).items()}
    if given != {name: tensor.shape for name, tensor in inner.state().items()}:
        raise ValueError(f"{option}: '{run}' has another network, other heads or other classes")
    return entries


def _best(entries: list[list[Any]], count: int) -> list[list[Any]]:
    """The entries of highest score, in their order."""
    best = sorted(range(len(entries)), key=lambda index: (-entries[index][2], -index))[:count]
    return [entries[index] for index in sorted(best)]


def _heading(
    config: DecouplingSearchConfig, data: Data, net: RelaxedNet, num_steps: int, accelerator: Accelerator
) -> str:
    layers, kinds = len(net.layers), len(net.head_kinds)
    own = count_params(nn.ModuleList([net.layers, net.classifier]))
    heads = count_params(net.heads)
    count = sum(math.comb(layers - 1, k) * kinds**k for k in range(layers))
    options = config.search
    start = (
        f"pretraining of {options.pretrained_run}"
        if options.pretrained_run
        else f"{num_steps:,} steps of pretraining"
        if options.pretraining
        else "no pretraining"
    )
    return (
        f"{config.network} ({layers} layers, {own:,} params; {kinds} heads on each of {layers - 1}, "
        f"{heads:,} params; {count:.3g} decouplings) on {config.data.name}: {len(data.train):,} training, "
        f"{len(data.validation):,} validation images\n{start}, {options.steps:,} updates of alpha and beta "
        f"through {options.inner_steps} steps of {config.recipe.batch_size} on {accelerator.num_processes} x "
        f"{accelerator.device.type}, {config.precision}"
    )
