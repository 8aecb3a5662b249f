"""What is said of a search's outcome, against searches that really differ by chance."""

import pytest
import torch
from torch import Tensor

from local_learning.build import build_chain
from search.cuts.config import SearchOptions
from search.evidence import REPLAYS, Updates, effects, outer_optimizer, replays
from search.relaxation import RelaxedNet

ROWS, KINDS, COUNT = 3, 2, 60


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_updates(seed: int, mean: Tensor) -> Updates:
    """Of a search whose hypergradients are `mean` and noise of standard deviation 1."""
    noise = torch.randn(COUNT, ROWS, 1 + KINDS, generator=generator(seed), dtype=torch.float64)
    return Updates([[(0, 0.1)]] * COUNT, list(mean + noise))


def searched(updates: Updates, options: SearchOptions) -> tuple[Tensor, Tensor]:
    """The end of a search by these updates, through autograd: the loss is linear in the shares."""
    alpha = torch.zeros(ROWS, 2, dtype=torch.float64, requires_grad=True)
    beta = torch.zeros(ROWS, KINDS, dtype=torch.float64, requires_grad=True)
    optimizer = outer_optimizer(options, [alpha, beta])
    for effect in updates.effects:
        local, heads = alpha.softmax(1)[:, 0], beta.softmax(1)
        loss = (local * effect[:, 0]).sum() + (heads * effect[:, 1:]).sum()
        alpha.grad, beta.grad = torch.autograd.grad(loss, [alpha, beta])
        optimizer.step()
    return alpha.detach(), beta.detach()


@pytest.mark.parametrize("size", [0.0, 0.3])
def test_replays_spread_as_searches_of_other_seeds_do(size: float) -> None:
    options = SearchOptions(lr=0.05)
    mean = size * torch.randn(ROWS, 1 + KINDS, generator=generator(99), dtype=torch.float64)
    real = [drawn_updates(seed, mean) for seed in range(40)]
    ends = torch.stack([searched(updates, options)[0].softmax(1)[:, 0] for updates in real])
    told = torch.stack(
        [
            replays(updates, options, generator=generator(1)).alpha.softmax(2)[..., 0].std(0)
            for updates in real[:10]
        ]
    )
    assert (told.mean(0) / ends.std(0)).tolist() == pytest.approx([1] * ROWS, rel=0.3)


def test_without_noise_every_replay_ends_where_the_search_did() -> None:
    options = SearchOptions(lr=0.05, weight_decay=0.01, beta1=0.5)
    effect = torch.randn(ROWS, 1 + KINDS, generator=generator(3), dtype=torch.float64)
    updates = Updates([[(0, 0.1)]] * 20, [effect] * 20)
    alpha, beta = searched(updates, options)
    found = replays(updates, options, generator=generator(1))
    assert found.alpha.shape == (REPLAYS, ROWS, 2)
    torch.testing.assert_close(found.alpha, alpha.expand(REPLAYS, -1, -1))
    torch.testing.assert_close(found.beta, beta.expand(REPLAYS, -1, -1))


def test_the_standard_error_of_an_effect_covers_its_mean() -> None:
    mean = torch.linspace(-1, 1, ROWS * (1 + KINDS), dtype=torch.float64).view(ROWS, 1 + KINDS)
    centred = mean.clone()
    centred[:, 1:] -= mean[:, 1:].mean(1, keepdim=True)
    inside = []
    for seed in range(60):
        found = effects(drawn_updates(seed, mean), generator=generator(seed))
        inside.append((found.mean - centred).abs() < 1.96 * found.error)
    assert 0.88 < torch.stack(inside).double().mean() < 0.99


def test_runs_of_neighbours_keep_what_they_have_in_common() -> None:
    """Where ten updates in a row are alike, errors are larger than of as many that are not."""
    blocks = torch.randn(6, 1, 1, generator=generator(5), dtype=torch.float64)
    alike = blocks.repeat_interleave(10, 0).expand(60, ROWS, 1 + KINDS)
    mixed = alike[torch.randperm(60, generator=generator(6))]
    errors = [
        effects(Updates([[(0, 0.1)]] * 60, list(each.clone())), generator=generator(7)).error[0, 0]
        for each in (alike, mixed)
    ]
    assert errors[0] > 1.3 * errors[1]


def test_effects_are_derivatives_by_shares() -> None:
    torch.manual_seed(0)
    net = RelaxedNet(
        build_chain("vgg6a", num_classes=4, image_size=16, width=0.0625), ("aux1", "linear"), 4, 16
    )
    with torch.no_grad():
        net.alpha.normal_()
        net.beta.normal_()
    wanted = torch.randn(4, 3, dtype=torch.float64, generator=generator(8))
    local, heads = net.alpha.double().softmax(1)[:, 0], net.beta.double().softmax(1)
    loss = (local * wanted[:, 0]).sum() + (heads * wanted[:, 1:]).sum()
    net.alpha.grad, net.beta.grad = torch.autograd.grad(loss, [net.alpha, net.beta])
    updates = Updates.none()
    updates.add(net, [(3, 0.5), (4, 0.1)])
    (found,) = updates.effects
    torch.testing.assert_close(found[:, 0], wanted[:, 0], rtol=1e-5, atol=1e-6)
    # Those of heads are known up to a constant: the mean by the shares themselves.
    centred = wanted[:, 1:] - (heads.detach() * wanted[:, 1:]).sum(1, keepdim=True)
    torch.testing.assert_close(found[:, 1:], centred, rtol=1e-4, atol=1e-5)
    again = Updates.none()
    again.load_state_dict(updates.state_dict())
    assert again.drawn == [[(3, 0.5), (4, 0.1)]]
    assert torch.equal(again.effects[0], found)
    (line,) = again.lines(("aux1", "linear"), 9)
    assert (line["step"], line["origin"], line["inner_lr"]) == (9, [3, 4], [0.5, 0.1])
    assert line["heads"]["linear"] == pytest.approx(found[:, 2].tolist(), rel=1e-5)
