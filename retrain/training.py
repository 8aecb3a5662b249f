"""From a config to a trained network: data, chain, loop, weights and results in one run folder."""

import contextlib
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from local_learning.build import build_chain, check_name
from local_learning.chain import Chain
from local_learning.networks.traced import timm_names
from retrain.backprop import Backprop
from retrain.config import FREE, RetrainConfig
from retrain.evaluation import evaluate
from tools.config import flatten, to_toml
from tools.cost import count_macs, count_params
from tools.datasets import Data, load_data
from tools.failures import RunFailed, known_cause
from tools.launch import launch, on_main
from tools.loaders import eval_batches, make_train_loader
from tools.loop import Loop, Plan, Position
from tools.runs import Run
from tools.seeding import seed_globals
from tools.weights import load_weights, read_weights, save_weights


def retrain(config: RetrainConfig) -> None:
    """Train what the config says, or continue, or say that it is done."""
    run = Run(Path(config.run))
    accelerator = launch(
        device=config.device,
        precision=config.precision,
        threads=config.threads,
        trackers=config.trackers,
        folder=run.path,
    )
    try:
        on_main(accelerator, lambda: run.open(config, free=FREE))
        if run.results:
            on_main(accelerator, lambda: print(f"{run.path} is finished\n{_summary(run, run.results or {})}"))
        else:
            _train(config, run, accelerator)
    except RuntimeError as error:
        cause = known_cause(error, accelerator.num_processes)
        if not cause:
            raise
        raise RunFailed(f"{cause}. The same command continues from the last checkpoint.") from error
    finally:
        run.close()
    accelerator.free_memory()  # DDP goes before its process group does: the other order can hang
    accelerator.end_training()


def make_chain(config: RetrainConfig, data: Data, tensors: Mapping[str, Tensor] | None = None) -> Chain:
    """The network that the config names, initialised from the seed or from the tensors given."""
    seed_globals(config.seed, "init")
    try:
        chain = build_chain(
            config.network,
            num_classes=data.num_classes,
            image_size=data.image_size,
            in_chs=data.channels,
            width=config.width,
            dropout=config.dropout,
            drop_path=config.drop_path,
            init=config.init,
            pretrained=config.pretrained,
        )
    except ValueError as error:
        raise ValueError(f"--network {config.network}: {error}") from error
    if tensors is not None:
        source = Path(config.weights)
        if config.network.startswith("timm/"):
            ours = {timm: ours for ours, timm in timm_names(chain).items()}
            tensors = {ours.get(name, name): tensor for name, tensor in tensors.items()}
        load_weights(chain, tensors, source=source, skip=("classifier.",) if config.reset_classifier else ())
    return chain


def _train(config: RetrainConfig, run: Run, accelerator: Accelerator) -> None:
    recipe = config.recipe
    # What can be wrong is looked at before minutes go into reading the data.
    check_name(config.network)
    weights = read_weights(Path(config.weights)) if config.weights else None
    parts = recipe.accumulate * accelerator.num_processes
    if recipe.batch_size % parts:
        raise ValueError(
            f"--recipe.batch-size: {recipe.batch_size} images cannot be shared evenly among "
            f"{accelerator.num_processes} processes in --recipe.accumulate {recipe.accumulate} parts each"
        )
    data = load_data(config.data, config.seed)
    chain = make_chain(config, data, weights)
    shape = (data.channels, data.image_size, data.image_size)
    facts = {"params": count_params(chain), "macs": _macs(chain, shape)}
    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    place = {"device": accelerator.device, **ranks}
    loader = make_train_loader(
        data.train, data, config.data, batch_size=recipe.batch_size, seed=config.seed, **place
    )
    validates = len(data.validation) > 0
    test, validation = (
        eval_batches(split, data, config.data, batch_size=max(recipe.batch_size, 256), **place)
        for split in (data.test, data.validation)
    )
    num_steps = recipe.num_steps(loader.steps_per_epoch)
    metadata = {"network": config.network, "classes": list(data.class_names), "config": to_toml(config)}

    def keep_best(network: nn.Module, step: int, score: float) -> None:
        save_weights(run.best_weights, network, metadata | {"step": step, "validation_top1": score})

    job = Backprop(chain, config, accelerator, num_steps=num_steps, validation=validation, keep=keep_best)
    plan = Plan(
        num_steps=num_steps,
        images_per_step=recipe.batch_size,
        evaluate_every=recipe.steps_between_evaluations(loader.steps_per_epoch) if validates else 0,
        checkpoint_every=recipe.checkpoint_every,
        log_every=recipe.log_every,
        seed=config.seed,
        identity={"training images": len(data.train), "classes": list(data.class_names)},
    )
    if accelerator.is_main_process:
        print(_heading(config, data, facts, num_steps, accelerator), flush=True)
    accelerator.init_trackers("cleave", config={key: str(value) for key, value in flatten(config).items()})
    with contextlib.closing(loader):
        end = Loop(job, plan, run, accelerator).run(loader.batches)

    last = job.final_network
    on_main(accelerator, lambda: save_weights(run.last_weights, last, metadata | {"step": num_steps}))
    # The test set is looked at here, once, for the two networks that were decided without it.
    tested = {"last": evaluate(last, test, accelerator)}
    if validates:
        best = copy.deepcopy(last)
        tensors = read_weights(run.best_weights, label="best weights")
        load_weights(best, tensors, source=run.best_weights)
        tested["best"] = evaluate(best, test, accelerator)
    results = _results(facts, num_steps, end, tested)
    on_main(accelerator, lambda: run.write_results(results))
    if accelerator.is_main_process:
        print(_summary(run, results), flush=True)


def _macs(chain: Chain, shape: tuple[int, ...]) -> int | None:
    try:
        return count_macs(chain, shape)
    except ValueError:  # an operator that cannot be counted is no reason not to train
        return None


def _heading(
    config: RetrainConfig, data: Data, facts: dict[str, int | None], num_steps: int, accelerator: Accelerator
) -> str:
    macs = "MACs unknown" if facts["macs"] is None else f"{facts['macs']:,} MACs"
    return (
        f"{config.network} ({facts['params']:,} params, {macs}) on {config.data.name}: "
        f"{len(data.train):,} training, {len(data.validation):,} validation, {len(data.test):,} test images "
        f"of {data.num_classes} classes; {num_steps:,} steps of {config.recipe.batch_size} on "
        f"{accelerator.num_processes} x {accelerator.device.type}, {config.precision}"
    )


def _results(
    facts: dict[str, int | None], num_steps: int, end: Position, tested: dict[str, Any]
) -> dict[str, Any]:
    validation: dict[str, Any] = {"last": end.latest} if end.latest else {}
    if end.latest:
        validation["best"] = {"step": end.best_step, "validation_top1": end.best_score}
    return {
        **facts,
        "steps": num_steps,
        "training_seconds": round(end.seconds, 1),
        "validation": validation,
        "test": tested,
    }


def _summary(run: Run, results: dict[str, Any]) -> str:
    lines = [f"trained {results['steps']:,} steps in {results['training_seconds']:,.0f} s"]
    for which, path in (("last", run.last_weights), ("best", run.best_weights)):
        if which in results["test"]:
            found = results["test"][which]
            name = {"last": "last step", "best": "best on validation"}[which]
            lines.append(f"test, {name}: top-1 {found['top1']:.2%}, top-5 {found['top5']:.2%}  {path}")
    lines.append(f"results {run.results_path}, metrics {run.metrics_path}")
    return "\n".join(lines)
