"""This module trains a network from a config: data, chain, loop, weights and results in one run folder."""

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from local_learning.blocks import DecoupledNet
from local_learning.chain import Chain
from local_learning.cuts.profile import head_costs, kept_bytes, module_macs
from local_learning.decoupling import Decoupling, load_decoupling, save_decoupling
from local_learning.later.refresh import bytes_down, ways_down
from local_learning.published import is_tied
from retrain.config import FREE_IN_RETRAINING, RetrainConfig
from retrain.evaluation import about_chance, heads_at_chance
from retrain.job import Training
from retrain.networks import choose_decoupling, make_net
from retrain.pipeline.setup import block_setup, whole_setup
from retrain.placing.planning import plan as plan_devices
from retrain.supply import Supply
from supernet.network.network import Network
from tools.cost import count_macs, count_params
from tools.images.batches import check_shared
from tools.images.datasets import Data, load_data
from tools.mistake import Mistake
from tools.options.config import to_toml
from tools.run.folder import Run
from tools.run.launch import on_main, start_trackers
from tools.run.lengthen import LENGTH, lengthen
from tools.run.loop import Loop
from tools.run.plan import Plan, Position
from tools.run.stage import Stage
from tools.run.weights import read_weights, save_tensors


def retrain(config: RetrainConfig) -> None:
    """Train what the config says, continue it, or say that it is done; with `plan`, print a plan instead."""
    if config.plan:
        plan_devices(config)
        return
    with Stage(config, free=FREE_IN_RETRAINING, length=LENGTH if config.extend else ()) as stage:
        if not stage.finished:
            train_network(
                stage.config,
                stage.run,
                stage.accelerator,
                lambda: load_data(stage.config.data, stage.config.seed),
            )
        stage.print_summary(retraining_summary)


def train_network(
    config: RetrainConfig, run: Run, accelerator: Accelerator, load: Callable[[], Data]
) -> dict[str, Any]:
    """Run one training in its folder, from wherever it stands, and return its results.

    `load` loads the images.
    """
    # Everything that can be wrong is checked before minutes are spent on reading the data.
    network = Network.of_run(config, run, accelerator)
    weights = read_weights(Path(config.weights)) if config.weights else None
    in_blocks = _shares_blocks(config, accelerator)
    data = load()
    chain = network.chain(data.num_classes, data.image_size, data.channels)
    decoupling = _settle_decoupling(config, network, chain, data, run, accelerator)
    net = make_net(config, network, chain, decoupling, data, weights)
    facts = _facts(config, net, decoupling, data, accelerator)
    plan = _plan(config, data)
    if config.extend:
        on_main(accelerator, lambda: lengthen(run, config, plan.num_steps))
    setup = (
        block_setup(net, config, network.words, data, run, accelerator)
        if in_blocks
        else whole_setup(net, accelerator)
    )
    notes = {
        "network": network.name,
        "classes": list(data.class_names),
        "config": to_toml(config),
        **network.notes,
        "decoupling": asdict(decoupling),
    }

    def keep_best(tensors: Mapping[str, Tensor], step: int, score: float) -> None:
        save_tensors(run.best_weights, tensors, notes | {"step": step, "validation_top1": score})

    if accelerator.is_main_process:
        heading = _heading(config, network.name, data, facts, plan.num_steps, accelerator)
        print(*data.notes, heading, *([setup.words] if setup.words else []), sep="\n", flush=True)
    # From here on, neither the whole network nor the content of its weights file is needed.
    del chain, weights
    with setup.watched(), contextlib.closing(Supply(data, config, accelerator.device, setup)) as supply:
        job = Training(
            net,
            config,
            accelerator,
            num_steps=plan.num_steps,
            evaluate_every=plan.evaluate_every,
            num_images=len(data.train),
            validation=supply.validation,
            keep=keep_best,
            setup=setup,
            num_classes=data.num_classes,
        )
        start_trackers(accelerator, config)
        end = Loop(job, plan, run, accelerator, setup.spread).run(supply.batches)
        with setup.waiting():
            tensors = job.by_file_names(job.final_network)
            last = notes | {"step": plan.num_steps}
            on_main(accelerator, lambda: save_tensors(run.last_weights, tensors, last))
        tested = _tested(job, run, supply, end, validates=len(data.validation) > 0)
        results = _results(facts, plan.num_steps, end, tested)
        with setup.waiting():
            on_main(accelerator, lambda: run.write_results(results))
    return results


def _shares_blocks(config: RetrainConfig, accelerator: Accelerator) -> bool:
    """Return whether the processes have different blocks, and refuse work that they cannot share."""
    count, recipe = accelerator.num_processes, config.recipe
    if count > 1 and config.parallel == "none":
        raise Mistake(
            "parallel", f"there are {count} processes to share the work", "say data or blocks, or start one"
        )
    if config.parallel == "blocks" and count > 1:
        return True
    check_shared(recipe.batch_size, count, parts=recipe.accumulate)
    return False


def _settle_decoupling(
    config: RetrainConfig, network: Network, chain: Chain, data: Data, run: Run, accelerator: Accelerator
) -> Decoupling:
    """Return the cuts of this run: the first process chooses them once, and from then on a file has them."""
    path = run.path / "decoupling.json"

    def settle() -> None:
        if not run.has_begun:
            decoupling = choose_decoupling(config, network, chain, data, accelerator)
            save_decoupling(path, decoupling, network.name, chain.num_layers, **network.stem_note)

    if not config.decoupling:
        return Decoupling((), ())
    on_main(accelerator, settle)
    return load_decoupling(path)


def _facts(
    config: RetrainConfig, net: DecoupledNet, decoupling: Decoupling, data: Data, accelerator: Accelerator
) -> dict[str, Any]:
    """Return what the network costs in inference, and the cost of its busiest module where it is cut."""
    shape = (data.channels, data.image_size, data.image_size)
    facts: dict[str, Any] = {"params": count_params(net.chain()), "macs": None}
    with contextlib.suppress(ValueError):  # an operator that cannot be counted does not prevent training
        facts["macs"] = count_macs(net.chain(), shape)
    if len(net.blocks) > 1:
        facts |= {"cuts": list(decoupling.cuts), "heads": list(decoupling.heads)}
        facts |= {"groups": decoupling.groups, "head_width": decoupling.head_width}
        facts |= {"head_params": count_params(net) - facts["params"]}
        with contextlib.suppress(ValueError):
            facts["busiest_module_macs"] = max(module_macs(net, shape))
        if accelerator.is_main_process and all(block.head is not None for block in net.blocks):
            with contextlib.suppress(ValueError, RuntimeError):  # of a user's own head
                facts["head_costs"] = [asdict(costs) for costs in head_costs(net, shape)]
    if config.local.refresh:
        facts["refresh_bytes"] = bytes_down(ways_down(net), 8 if config.precision == "fp64" else 4)
    facts |= {
        "classes": data.num_classes,
        "test_images": len(data.test),
        "processes": accelerator.num_processes,
    }
    if accelerator.is_main_process and all(block.head is not None for block in net.blocks):
        # Replay and gluing keep other things. A user's own head that takes no two images may still train.
        with contextlib.suppress(ValueError, RuntimeError):
            facts["kept_bytes"] = kept_bytes(net, shape)
    return facts


def _plan(config: RetrainConfig, data: Data) -> Plan:
    recipe = config.recipe
    steps_per_epoch = len(data.train) / recipe.batch_size
    return Plan(
        num_steps=recipe.num_steps(steps_per_epoch),
        images_per_step=recipe.batch_size,
        evaluate_every=recipe.steps_between_evaluations(steps_per_epoch) if len(data.validation) else 0,
        checkpoint_every=recipe.checkpoint_every,
        log_every=recipe.log_every,
        seed=config.seed,
        identity={"training images": len(data.train), "classes": list(data.class_names)},
    )


def _heading(
    config: RetrainConfig,
    network: str,
    data: Data,
    facts: dict[str, Any],
    num_steps: int,
    accelerator: Accelerator,
) -> str:
    macs = "MACs unknown" if facts["macs"] is None else f"{facts['macs']:,} MACs"
    lines = [
        f"{network} ({facts['params']:,} params, {macs}) on {config.data.name}: "
        f"{len(data.train):,} training, {len(data.validation):,} validation, {len(data.test):,} test images "
        f"of {data.num_classes} classes; {num_steps:,} steps of {config.recipe.batch_size} on "
        f"{accelerator.num_processes} x {accelerator.device.type}, {config.precision}"
    ]
    if "cuts" in facts:
        places = ", ".join(str(cut) for cut in facts["cuts"])
        parts = [f"{config.chosen_rule} in {len(facts['cuts']) + 1} blocks, cut after {places}"]
        if facts["groups"] != 1:
            groups = facts["groups"]
            parts.append(f"{groups if isinstance(groups, int) else ', '.join(map(str, groups))} groups")
        if facts["head_params"]:
            kinds = ", ".join(dict.fromkeys(facts["heads"]))
            parts.append(f"heads {kinds} ({facts['head_params']:,} params)")
        if "busiest_module_macs" in facts:
            parts.append(f"the busiest module has {facts['busiest_module_macs']:,} MACs")
        lines.append("; ".join(parts))
        lines += _about_heads(facts)
        if config.local.refresh and "refresh_bytes" in facts:
            lines.append(
                f"  every {config.local.refresh} steps, {facts['refresh_bytes'] / 1024:,.0f} KiB of weights "
                f"come down to the heads, {facts['refresh_bytes'] / config.local.refresh:,.0f} bytes a step"
            )
        if config.decoupling.startswith("published:") and is_tied(network, len(facts["cuts"]) + 1):
            lines.append(
                "the published values tie at this number of blocks: these cuts are one choice of several"
            )
    return "\n".join(lines)


def _about_heads(facts: Mapping[str, Any]) -> list[str]:
    """Return a line on the costs of the head at each cut."""
    lines = []
    for cut, kind, cost in zip(facts["cuts"], facts["heads"], facts.get("head_costs", ()), strict=False):
        line = (
            f"  after layer {cut}, {kind}: {cost['params']:,} params; {cost['macs']:,} MACs, "
            f"{cost['of_block']:.0%} of its block's and {cost['of_above']:.2f} times those of all that is "
            f"above; keeps {cost['kept_bytes'] / 1024:,.0f} KiB for an image"
        )
        lines.append(line)
        if cost["depth"] > cost["depth_above"]:
            lines.append(
                f"    it has {cost['depth']} convolutions and linear layers, and all that is above has "
                f"{cost['depth_above']}: the block may leave to the head what the network cannot do; "
                "aug:all has as many"
            )
    return lines


def _tested(job: Training, run: Run, supply: Supply, end: Position, *, validates: bool) -> dict[str, Any]:
    """Use the test set, here and once, for the two networks that were chosen without it."""
    tested = {"last": job.measure(job.final_network, supply.test)}
    if validates and end.best_step == end.step:
        tested["best"] = tested["last"]
    elif validates:
        best = copy.deepcopy(job.final_network)
        job.load_from_file(best, read_weights(run.best_weights, label="run"))
        tested["best"] = job.measure(best, supply.test)
    return tested


def _results(facts: dict[str, Any], num_steps: int, end: Position, tested: dict[str, Any]) -> dict[str, Any]:
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


def retraining_summary(run: Run, results: dict[str, Any]) -> str:
    """Return what the training came to, in words."""
    lines = [f"trained {results['steps']:,} steps in {results['training_seconds']:,.0f} s"]
    for which, path in (("last", run.last_weights), ("best", run.best_weights)):
        if which in results["test"]:
            accuracies = results["test"][which]
            name = {"last": "last step", "best": "best on validation"}[which]
            lines.append(f"test, {name}: {_accuracy(accuracies)}  {path}")
            if "last_two_top1" in accuracies:
                heads = ", ".join(
                    f"{accuracies[key]:.2%}" for key in accuracies if key.startswith("heads_top1/")
                )
                together = [
                    f"{words} {_accuracy(accuracies, prefix)}"
                    for words, prefix in (("last two together", "last_two_"), ("all by depth", "layerwise_"))
                ]
                lines.append("; ".join([f"  heads below {heads}", *together]))
    if "classes" in results:  # runs of before do not say how many there are
        weak = heads_at_chance(results["test"]["last"], results["classes"])
        lines += [about_chance(block, accuracy, results["classes"]) for block, accuracy in weak.items()]
    lines.append(f"results {run.results_path}, metrics {run.metrics_path}")
    return "\n".join(lines)


def _accuracy(accuracies: dict[str, Any], prefix: str = "") -> str:
    """Return top-1 and top-5 in words; ensembles of older runs have no top-5."""
    measured = {k: accuracies[f"{prefix}top{k}"] for k in (1, 5) if f"{prefix}top{k}" in accuracies}
    return ", ".join(f"top-{k} {value:.2%}" for k, value in measured.items())
