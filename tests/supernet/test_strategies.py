"""What holds for all strategies: states, precision, clipping, soft targets."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from supernet import strategies
from supernet.engine import AccelerateSupernetEngine
from supernet.options import STRATEGIES, ContrastOptions, LayerwiseOptions, PathOptions, StrategyRow
from supernet.strategies import make_strategy
from supernet.strategy import Strategy
from supernet.supernet import Supernet
from tests.supernet.nets import (
    LOCAL,
    adam,
    batch,
    changed,
    info_nce,
    layerwise,
    make,
    sgd,
    small_net,
    small_space,
    snapshot,
    step_gradients,
)
from tools.options.catalogue import Catalogue

OBJECTIVES = {"cross_entropy": None, "infonce": info_nce}


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate's state is global; the precision chosen here is for here."""
    _forget_accelerate()
    yield
    _forget_accelerate()


def _forget_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def built(name: str, objective: str, optimizer: Any, seed: int = 0, **options: Any) -> Strategy:
    """With weights and decoders that depend on the seed."""
    maker = OBJECTIVES[objective]
    torch.manual_seed(100 + seed)
    net = Supernet(small_space(16)).double().train()
    return make_strategy(
        name, net, optimizer=optimizer, seed=3, objective=maker() if maker else None, **options
    )


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def assert_same_state(one: object, other: object) -> None:
    """Bit for bit, with all that optimisers keep."""
    if isinstance(one, Tensor):
        assert isinstance(other, Tensor)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same_state(value, other[key])
    elif isinstance(one, list | tuple):
        assert isinstance(other, list | tuple)
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same_state(left, right)
    else:
        assert one == other


# Each strategy with each objective, and with each optimizer.
@pytest.mark.parametrize(
    ("name", "objective", "optimizer"),
    [
        (name, *both)
        for name in STRATEGIES
        for both in (
            ("cross_entropy", adam if name in LOCAL else sgd),
            ("infonce", sgd if name in LOCAL else adam),
        )
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one(name: str, objective: str, optimizer: Any) -> None:
    straight = built(name, objective, optimizer)
    for step in range(2):
        straight.step(*batch(step, size=16), step)
    saved = through_a_file(straight.state_dict())
    for step in range(2, 4):
        losses = straight.step(*batch(step, size=16), step)
    resumed = built(name, objective, optimizer, seed=1)
    assert changed(snapshot(straight), snapshot(resumed))
    resumed.step(*batch(20, size=16), 20)  # what it did before must not matter
    resumed.load_state_dict(saved)
    for step in range(2, 4):
        again = resumed.step(*batch(step, size=16), step)
    assert_same_state(again, losses)
    assert not changed(snapshot(straight), snapshot(resumed))
    assert_same_state(resumed.state_dict(), straight.state_dict())


def test_a_state_is_no_view_of_what_goes_on() -> None:
    strategy = built("fair", "cross_entropy", sgd)
    strategy.step(*batch(size=16), 0)
    state = strategy.state_dict()
    updates = state["updates"].clone()
    strategy.step(*batch(1, size=16), 1)
    assert torch.equal(state["updates"], updates)
    assert not torch.equal(strategy.updates, updates)


@pytest.mark.parametrize(
    "options", [{"decoders": "module", "last_decoder": "local"}, {"stem": "frozen", "update": "deferred"}]
)
def test_options_do_not_hinder_resuming(options: dict[str, Any]) -> None:
    found = []
    for cut in (False, True):
        strategy = built("nongreedy", "cross_entropy", adam, layerwise=layerwise(**options))
        for step in range(4):
            if cut and step == 2:
                state = through_a_file(strategy.state_dict())
                strategy = built("nongreedy", "cross_entropy", adam, 1, layerwise=layerwise(**options))
                strategy.load_state_dict(state)
            strategy.step(*batch(step, size=16), step)
        found.append(strategy.state_dict())
    assert_same_state(*found)


# ---- engines -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("name", STRATEGIES)
def test_accelerate_in_full_precision_is_plain_pytorch(name: str) -> None:
    plain = make(name, optimizer=adam)
    strategy = make(name, optimizer=adam, engine=AccelerateSupernetEngine(Accelerator(cpu=True)))
    for step in range(3):
        assert_same_state(strategy.step(*batch(step), step), plain.step(*batch(step), step))
    assert not changed(snapshot(strategy), snapshot(plain))


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_bfloat16_gives_nearly_the_losses_of_single_precision(name: str, objective: str) -> None:
    engine = AccelerateSupernetEngine(Accelerator(cpu=True, mixed_precision="bf16"))
    maker = OBJECTIVES[objective]
    images, targets = batch(rows=8, size=16)
    found = []
    for each in (engine, None):
        net = small_net(small_space(16)).float()
        strategy = make(name, net, optimizer=sgd, engine=each, objective=maker() if maker else None)
        first = strategy.step(images.float(), targets, 0)
        second = strategy.step(images.float(), targets, 1)
        assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
        assert all(parameter.grad is None for parameter in net.parameters())
        assert all(bool(values.isfinite().all()) for values in snapshot(strategy).values())
        found.append([first, second])
    for low, full in zip(*found, strict=True):
        assert low.keys() == full.keys()
        for key, value in full.items():
            assert low[key].dtype == torch.float32
            assert float(low[key]) == pytest.approx(float(value), rel=0.03)
            assert float(low[key]) != float(value)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("name", STRATEGIES)
def test_clipping_shortens_the_gradient_of_each_update(name: str) -> None:
    clip = 0.05
    plain = make(name)
    clipped = make(name, engine=AccelerateSupernetEngine(Accelerator(cpu=True), clip_norm=clip))
    wanted = step_gradients(plain, *batch())
    clipped.step(*batch(), 0)
    shortened = 0
    for own, other in zip(clipped.optimizers, plain.optimizers, strict=True):
        kept = _kept(own)
        full = _kept(other)
        norm = float(torch.cat([values.flatten() for values in full if values is not None]).norm())
        # The 1e-6 is torch's, so that nothing is divided by 0.
        factor = min(1.0, clip / (norm + 1e-6))
        shortened += factor < 1
        for mine, values in zip(kept, full, strict=True):
            assert (mine is None) == (values is None)
            if mine is not None and values is not None:
                torch.testing.assert_close(mine, values * factor, rtol=1e-9, atol=1e-14)
    assert shortened == len(plain.optimizers)
    assert any(value is not None for value in wanted.values())


@pytest.mark.usefixtures("fresh_accelerate")
def test_gradients_below_the_clip_are_left_as_they_are() -> None:
    plain = make("greedy", optimizer=sgd)
    clipped = make(
        "greedy", optimizer=sgd, engine=AccelerateSupernetEngine(Accelerator(cpu=True), clip_norm=1e6)
    )
    for step in range(2):
        plain.step(*batch(step), step)
        clipped.step(*batch(step), step)
    assert not changed(snapshot(plain), snapshot(clipped))


def _kept(optimizer: Any) -> list[Tensor | None]:
    """What a Keeping saw, perhaps wrapped by Accelerate."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return list(inner.kept.values())


# ---- targets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_probabilities_do_for_labels(name: str) -> None:
    images, targets = batch()
    as_one_hot = nn.functional.one_hot(targets, 5).double()
    by_class, by_chance = (
        step_gradients(make(name), images, targets),
        step_gradients(make(name), images, as_one_hot),
    )
    for key, value in by_class.items():
        other = by_chance[key]
        assert (value is None) == (other is None)
        if value is not None and other is not None:
            torch.testing.assert_close(other, value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", STRATEGIES)
def test_mixed_labels_are_mixed_gradients(name: str) -> None:
    """Cross-entropy is linear in the target."""
    images, one = batch()
    other = (one + 2) % 5
    hot = [nn.functional.one_hot(targets, 5).double() for targets in (one, other)]
    mixed = step_gradients(make(name), images, 0.3 * hot[0] + 0.7 * hot[1])
    parts = [step_gradients(make(name), images, targets) for targets in (one, other)]
    for key, value in mixed.items():
        left, right = (part[key] for part in parts)
        if value is None or left is None or right is None:
            assert value is left is right is None
        else:
            torch.testing.assert_close(value, 0.3 * left + 0.7 * right, rtol=1e-9, atol=1e-12)


# ---- names and options ---------------------------------------------------------------------------------


def test_an_unknown_strategy_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"strategy: unknown value 'gredy'; did you mean 'greedy'"):
        make_strategy("gredy", small_net(), optimizer=sgd, seed=0)


@pytest.mark.parametrize(("by_layer", "kind"), [(False, PathOptions), (True, LayerwiseOptions)])
def test_the_row_says_which_options_a_strategy_gets(
    by_layer: bool, kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine(net: Supernet, *, options: Any, **rest: Any) -> Strategy:
        assert isinstance(options, kind)
        return make_strategy("spos", net, **rest)

    known = Catalogue("strategy", StrategyRow, [STRATEGIES["spos"]])
    known.register("mine", by_layer=by_layer)(mine)
    monkeypatch.setattr(strategies, "STRATEGIES", known)
    make_strategy("mine", small_net(), optimizer=sgd, seed=0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_decoders_are_where_the_supernet_is_and_in_its_precision(name: str) -> None:
    for objective in OBJECTIVES:
        strategy = built(name, objective, sgd)
        assert {parameter.dtype for parameter in strategy.decoders.parameters()} <= {torch.float64}
        named = [
            id(each) for opt in strategy.optimizers for group in opt.param_groups for each in group["params"]
        ]
        assert len(named) == len(set(named))


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (PathOptions, {"skip": "never"}, "paths.skip"),
        (PathOptions, {"shared_scale": "max"}, "paths.shared_scale"),
        (PathOptions, {"max_macs": -1}, "paths.max_macs"),
        (PathOptions, {"min_macs": 5, "max_macs": 5}, "paths.max_macs: must be over paths.min_macs"),
        (PathOptions, {"bin_macs": 5}, "paths.bin_macs"),
        (LayerwiseOptions, {"partner": "random"}, "layerwise.partner:"),
        (LayerwiseOptions, {"partner_statistics": "none"}, "layerwise.partner_statistics"),
        (LayerwiseOptions, {"decoders": "both"}, "layerwise.decoders"),
        (LayerwiseOptions, {"decoder_gradient": "max"}, "layerwise.decoder_gradient"),
        (LayerwiseOptions, {"last_decoder": "none"}, "layerwise.last_decoder"),
        (LayerwiseOptions, {"stem": "thawed"}, "layerwise.stem"),
        (LayerwiseOptions, {"update": "never"}, "layerwise.update"),
        (ContrastOptions, {"temperature": 0}, "contrast.temperature"),
        (ContrastOptions, {"min_area": 0}, "contrast.min_area"),
    ],
)
def test_options_out_of_range_are_named(kind: Any, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**values)
