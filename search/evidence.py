"""A search's updates are evidence for its outcome: effects with standard errors, and repeated searches.

An update follows one hypergradient, of one draw of weights and batches; another seed draws others. So the
updates are kept, and two things follow from them. Their mean, with its standard error, says what a larger
share of a signal or a head does to the validation loss. And the same optimiser, led by updates drawn anew
from those that were made, ends elsewhere. How far apart such ends are is the spread of the search's
result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from search.cuts.config import SearchOptions
from search.relaxation import RelaxedNet

REPLAYS = 200
"""The number of repeated searches, enough for a standard error to 5 %."""

TINY = 1e-12
"""The smallest share; a derivative with respect to a share is divided by it."""


@dataclass
class Updates:
    """These are the updates of one search, in their order."""

    drawn: list[list[tuple[int, float]]]
    """For each update and process, the pretraining step that its weights descend from, and the inner
    learning rate."""

    effects: list[Tensor]
    """For each update, derivatives of the validation loss, in float64 (L-1, 1 + M). The first column is
    for the share of the local signal. The others are for the shares of the heads, up to a constant in
    each row."""

    @classmethod
    def none(cls) -> "Updates":
        """Return the updates of a search that has not begun."""
        return cls([], [])

    @classmethod
    def joined(cls, searches: Sequence["Updates"]) -> "Updates":
        """Return the updates of several searches, one search after the other."""
        return cls(
            [drawn for search in searches for drawn in search.drawn],
            [effect for search in searches for effect in search.effects],
        )

    def add(self, net: RelaxedNet, drawn: list[tuple[int, float]]) -> None:
        """Add what `net.alpha.grad` and `net.beta.grad` say at the net's present alpha and beta."""
        assert net.alpha.grad is not None
        assert net.beta.grad is not None
        signals, heads = (value.detach().double().cpu().softmax(1) for value in (net.alpha, net.beta))
        slope = signals.prod(1, keepdim=True).clamp_min(TINY)
        by_signal = net.alpha.grad.double().cpu()[:, :1] / slope
        by_head = net.beta.grad.double().cpu() / heads.clamp_min(TINY)
        self.drawn.append(drawn)
        self.effects.append(torch.cat([by_signal, by_head], 1))

    def state_dict(self) -> dict[str, Any]:
        """Return the updates for a checkpoint."""
        return {"drawn": self.drawn, "effects": torch.stack(self.effects) if self.effects else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a checkpoint; older ones have no updates."""
        self.drawn = [[(origin, rate) for origin, rate in update] for update in state.get("drawn", [])]
        effects = state.get("effects")
        self.effects = [] if effects is None else list(effects.cpu())

    def lines(self, head_kinds: Sequence[str], last: int) -> list[dict[str, Any]]:
        """Return objects for hypergradients.jsonl; `last` is the number of the last update."""
        return [
            {
                "step": step,
                "origin": [origin for origin, _ in drawn],
                "inner_lr": [rate for _, rate in drawn],
                "signal": _rounded(effect[:, 0]),
                "heads": {kind: _rounded(effect[:, 1 + m]) for m, kind in enumerate(head_kinds)},
            }
            for step, (drawn, effect) in enumerate(
                zip(self.drawn, self.effects, strict=True), last + 1 - len(self.effects)
            )
        ]


def outer_optimizer(options: SearchOptions, values: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Make the optimiser that moves alpha and beta; it treats each value by itself, whatever the shape."""
    return torch.optim.Adam(
        list(values),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        weight_decay=options.weight_decay,
    )


class Effects(NamedTuple):
    """These are means over updates, as in `Updates.effects`, and the standard errors of these means."""

    mean: Tensor
    """The mean effects."""
    error: Tensor
    """The standard errors of the means."""


class Ends(NamedTuple):
    """These are the ends of searches, one in each row."""

    alpha: Tensor
    """The alpha of each end, (R, L-1, 2)."""

    beta: Tensor
    """The beta of each end, (R, L-1, M)."""


def effects(updates: Updates, *, generator: torch.Generator) -> Effects:
    """Return the mean effect of each share on the validation loss, and its standard error.

    The effect of a head is relative to the mean of the heads of its layer.
    """
    by_update = torch.stack(updates.effects)
    by_update[..., 1:] -= by_update[..., 1:].mean(-1, keepdim=True)
    count = len(by_update)
    drawn = _resampled(count, generator)
    weights = torch.zeros(REPLAYS, count, dtype=by_update.dtype)
    weights.scatter_add_(1, drawn, torch.full(drawn.shape, 1 / count, dtype=by_update.dtype))
    means = (weights @ by_update.flatten(1)).view(REPLAYS, *by_update.shape[1:])
    return Effects(by_update.mean(0), means.std(0))


def replays(updates: Updates, options: SearchOptions, *, generator: torch.Generator) -> Ends:
    """Return the ends of searches that follow updates drawn from these, with the optimiser of `options`."""
    by_update = torch.stack(updates.effects)
    drawn = _resampled(len(by_update), generator)
    rows, kinds = by_update.shape[1], by_update.shape[2] - 1
    alpha = torch.zeros(REPLAYS, rows, 2, dtype=by_update.dtype, requires_grad=True)
    beta = torch.zeros(REPLAYS, rows, kinds, dtype=by_update.dtype, requires_grad=True)
    optimizer = outer_optimizer(options, [alpha, beta])
    for indices in drawn.unbind(1):
        effect = by_update[indices]
        signals, heads = alpha.detach().softmax(2), beta.detach().softmax(2)
        toward = signals.prod(2) * effect[..., 0]
        alpha.grad = torch.stack([toward, -toward], 2)
        by_head = effect[..., 1:]
        beta.grad = heads * (by_head - (heads * by_head).sum(2, keepdim=True))
        optimizer.step()
    return Ends(alpha.detach(), beta.detach())


def _resampled(count: int, generator: torch.Generator) -> Tensor:
    """Draw indices of updates, `count` in each of REPLAYS rows, as runs of neighbours from random places on.

    Neighbours may be alike, because later weights descend from earlier ones. Runs keep this likeness.
    """
    length = max(1, round(count ** (1 / 3)))
    runs = -(-count // length)
    starts = torch.randint(count, (REPLAYS, runs), generator=generator)
    return (starts.unsqueeze(2) + torch.arange(length)).flatten(1)[:, :count] % count


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
