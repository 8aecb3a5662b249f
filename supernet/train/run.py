"""A config becomes a trained supernet: space, data, strategy, loop, records and weights in one run folder."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from supernet.engine import AccelerateSupernetEngine
from supernet.network.documents import find_space, reduced_space, save_space, space_to
from supernet.network.storage import forget_snapshots, save_snapshot, save_supernet
from supernet.objectives import CrossEntropyObjective, Objective
from supernet.options import OBJECTIVES
from supernet.space import Space
from supernet.strategies import TailTraining, make_strategy
from supernet.strategy import Strategy
from supernet.supernet import Supernet
from supernet.train.config import SupernetConfig
from supernet.train.job import SupernetTraining
from supernet.train.measure import measure, save_measured
from supernet.train.records import Records, shift_line
from supernet.train.shift import Shift
from tools.cost import count_params
from tools.images.datasets import Data, load_data
from tools.images.loaders import make_train_loader
from tools.kernels.modules import use_kernels
from tools.layout import use_channels_last
from tools.mistake import Mistake
from tools.optim import make_optimizer, start_momentum
from tools.options.config import to_toml
from tools.options.plugins import call
from tools.options.shared import FREE
from tools.run.folder import Run
from tools.run.launch import on_main, start_trackers
from tools.run.lengthen import LENGTH, lengthen
from tools.run.loop import Loop
from tools.run.meters import MetricsLog
from tools.run.plan import Plan, Position
from tools.run.stage import Stage
from tools.run.weights import load_weights, read_weights
from tools.seeding import seed_globals


def train_supernet(config: SupernetConfig) -> None:
    """Train what the config says, or continue, or report that the run is done."""
    with Stage(config, free=FREE, length=LENGTH if config.extend else ()) as stage:
        if not stage.finished:
            _train(stage.config, stage.run, stage.accelerator)
        stage.print_summary(_summary)


def _train(config: SupernetConfig, run: Run, accelerator: Accelerator) -> None:
    _check(config, accelerator)
    weights = read_weights(Path(config.weights)) if config.weights else None
    # Mistakes in the space are reported before minutes go into reading the data.
    _space(config, num_classes=10, in_chs=3)
    data = load_data(config.images, config.seed)
    if not len(data.validation):
        raise Mistake("data.validation", "a supernet is judged on validation images", "keep some")
    space = _space(config, num_classes=data.num_classes, in_chs=data.channels)
    net = _supernet(config, space, accelerator)
    if weights is not None:
        load_weights(net, weights, source=Path(config.weights))
    strategy, tail = _strategies(config, net, data, accelerator)
    if config.compile:
        compile_parts(net, config.compile_mode)
    loader = make_train_loader(
        data.train,
        data,
        config.images,
        batch_size=config.recipe.batch_size,
        seed=config.seed,
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    num_steps = config.recipe.num_steps(loader.steps_per_epoch)
    if config.extend:
        on_main(accelerator, lambda: lengthen(run, config, num_steps))
    plan = _plan(config, data, space, loader.steps_per_epoch)
    files = _Files(config, run, net, data)
    job = SupernetTraining(
        strategy,
        tail,
        config,
        accelerator,
        num_steps=num_steps,
        records=Records(config, data, accelerator, space),
        keep=files.keep_best,
        note=files.note,
    )
    start_trackers(accelerator, config)
    if accelerator.is_main_process:
        if not run.has_begun:
            forget_snapshots(run.path)  # an earlier start left them without a checkpoint
        print(*data.notes, _heading(config, space, net, data, num_steps, accelerator), sep="\n", flush=True)
        save_space(run.path / "space.json", space)
    with contextlib.closing(loader):
        end = Loop(job, plan, run, accelerator).run(loader.batches)

    def finish() -> None:
        files.keep_last(plan.num_steps)
        if batch := config.records.latency_batch:
            costs = measure(space.full, batch_size=batch, device=accelerator.device)
            save_measured(run.path / "costs.json", costs)
        run.write_results(_results(job, end, plan.num_steps))

    on_main(accelerator, finish)


class _Files:
    """What a training leaves in its folder beside checkpoints, as it goes and at its end."""

    def __init__(self, config: SupernetConfig, run: Run, net: Supernet, data: Data) -> None:
        self._run, self._net, self._snapshots = run, net, config.records.snapshots
        self._notes = {
            "strategy": config.strategy,
            "objective": config.objective,
            "classes": list(data.class_names),
            "config": to_toml(config),
        }

    def keep_best(self, step: int, score: float) -> None:
        """Save the weights that have the best accuracy on validation images up to now."""
        notes = self._notes | {"step": step, "validation_top1": score}
        save_supernet(self._run.best_weights, self._net, notes)

    def keep_last(self, step: int) -> None:
        """Save the weights of the end."""
        save_supernet(self._run.last_weights, self._net, self._notes | {"step": step})

    def note(self, step: int, shift: Shift | None) -> None:
        """Add what an evaluation has found, and a snapshot of the weights if they are asked for."""
        if shift is not None:
            with contextlib.closing(MetricsLog(self._run.path / "shift.jsonl")) as log:
                log.append(step, shift_line(shift))
        if self._snapshots:
            save_snapshot(self._run.path, self._net, step, self._notes)


def _space(config: SupernetConfig, *, num_classes: int, in_chs: int) -> Space:
    """Return the space that is trained, which may be a copy of the one that is named."""
    full = find_space(config.space, num_classes=num_classes, image_size=config.data.size, in_chs=in_chs)
    return reduced_space(full, config.fidelity)


def _plan(config: SupernetConfig, data: Data, space: Space, steps_per_epoch: float) -> Plan:
    recipe = config.recipe
    return Plan(
        num_steps=recipe.num_steps(steps_per_epoch) + config.tail_steps,
        images_per_step=recipe.batch_size,
        evaluate_every=recipe.steps_between_evaluations(steps_per_epoch),
        checkpoint_every=recipe.checkpoint_every,
        log_every=recipe.log_every,
        seed=config.seed,
        identity={
            "training images": len(data.train),
            "classes": list(data.class_names),
            "the space": hashlib.sha256(json.dumps(space_to(space)).encode()).hexdigest()[:12],
        },
    )


def _check(config: SupernetConfig, accelerator: Accelerator) -> None:
    ranks = accelerator.num_processes
    if config.recipe.batch_size < 2 * ranks:
        raise Mistake("recipe.batch_size", "BatchNorm needs two images or more on each process")
    if config.compile and ranks > 1 and config.sync_batchnorm:
        raise Mistake("compile", "with several processes it goes with `sync_batchnorm=False`")


def _supernet(config: SupernetConfig, space: Space, accelerator: Accelerator) -> Supernet:
    seed_globals(config.seed, "init")
    net = Supernet(space, classifier_init=config.classifier_init)
    net.to(accelerator.device, torch.float64 if config.precision == "fp64" else torch.float32)
    use_channels_last(net)
    use_kernels(net, config.kernels)
    return net


def _strategies(
    config: SupernetConfig, net: Supernet, data: Data, accelerator: Accelerator
) -> tuple[Strategy, TailTraining | None]:
    """Return the strategy, and what trains the tail after it where options ask for that."""
    recipe = config.recipe
    labels = CrossEntropyObjective(
        num_classes=data.num_classes, label_smoothing=recipe.label_smoothing, smoothing=recipe.smoothing
    )
    objective: Objective = call(
        OBJECTIVES[config.objective].maker,
        num_classes=data.num_classes,
        label_smoothing=recipe.label_smoothing,
        smoothing=recipe.smoothing,
        options=config.contrast,
        mean=data.mean,
        std=data.std,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    engine = AccelerateSupernetEngine(accelerator, clip_norm=recipe.clip_norm)

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        made = make_optimizer(recipe, parameters)
        start_momentum(made)
        return made

    seed_globals(config.seed, "decoders")
    strategy = make_strategy(
        config.strategy,
        net,
        optimizer=optimizer,
        seed=config.seed,
        objective=objective,
        engine=engine,
        paths=config.paths,
        layerwise=config.layerwise,
    )
    if not config.tail_steps:
        return strategy, None
    part = config.trains_tail_apart
    tail = TailTraining(
        net, optimizer=optimizer, seed=config.seed, objective=labels, engine=engine, part=part
    )
    return strategy, tail


def compile_parts(net: Supernet, mode: str) -> None:
    """Compile every candidate, the stem's layers and the tail, each by itself.

    Shapes are static, whatever path or layer a part serves.
    """
    parts: list[nn.Module] = [module for layer in net.layers for module in layer]  # type: ignore[attr-defined]
    parts += [*net.stem, net.tail]
    # All blocks of one kind share a forward, which is compiled for training, partners and evaluation.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 8 * len(parts))
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, 16 * len(parts)
    )
    for part in parts:
        if not isinstance(part, nn.Identity):
            part.compile(mode=mode, dynamic=False)


def _heading(
    config: SupernetConfig,
    space: Space,
    net: Supernet,
    data: Data,
    num_steps: int,
    accelerator: Accelerator,
) -> str:
    tail = (
        f" and then {config.tail_steps:,} for the {config.trains_tail_apart} alone"
        if config.tail_steps
        else ""
    )
    name = f"{space.name}, {space.fidelity}" if space.fidelity else space.name
    return (
        f"{name} ({len(space.layers)} layers, {space.size:.4g} architectures, {space.num_networks:.4g} "
        f"different networks; {count_params(net):,} params) on {config.data.name}: {len(data.train):,} "
        f"training, {len(data.validation):,} validation images of {data.num_classes} classes\n"
        f"{config.strategy} with {config.objective}: {num_steps:,} steps{tail}, each of "
        f"{config.recipe.batch_size} images on {accelerator.num_processes} x {accelerator.device.type}, "
        f"{config.precision}"
    )


def _results(job: SupernetTraining, end: Position, num_steps: int) -> dict[str, Any]:
    strategy = job.strategy
    space = strategy.net.space
    sizes = [len(layer) for layer in space.layers]
    updates = [row[:size] for row, size in zip(strategy.updates.tolist(), sizes, strict=True)]
    return {
        "space": space.name,
        **space.fidelity_note,
        "architectures": space.size,
        "networks": space.num_networks,
        "steps": num_steps,
        "training_seconds": round(end.seconds, 1),
        "updates": updates,
        "saved_bytes_per_step": job.saved_bytes,
        "peak_memory_bytes": job.peak,
        "validation": {
            "last": end.latest,
            "best": {"step": end.best_step, "validation_top1": end.best_score} if end.best_step else None,
        },
    }


def _summary(run: Run, results: dict[str, Any]) -> str:
    lines = [f"trained {results['steps']:,} steps in {results['training_seconds']:,.0f} s"]
    last = results["validation"]["last"]
    accuracies = {
        name.split("/")[1]: value for name, value in last.items() if name.startswith("validation_top1/")
    }
    if accuracies:
        listed = ", ".join(f"{name} {value:.2%}" for name, value in accuracies.items())
        lines.append(f"validation top-1 of probe architectures: {listed}; mean {last['validation_top1']:.2%}")
    if "similarity" in last:
        lines.append(f"mean cosine between modules of a layer: {last['similarity']:.3f}")
    kept = results["saved_bytes_per_step"]
    if kept is not None:
        lines.append(f"activations kept for the backward pass, at a step's peak: {kept / 2**20:,.0f} MiB")
    lines.append(f"supernet {run.last_weights}, results {run.results_path}, metrics {run.metrics_path}")
    return "\n".join(lines)
