"""What a search's updates say of its outcome: effects with standard errors, and searches run over again.

An update goes by one hypergradient, of one draw of weights and batches; another seed has others. So the
updates are kept, and two things follow from them. Their mean, with its standard error, says what a larger
share of a signal or a head does to the validation loss. And the same optimiser, led by updates drawn anew
from those that were made, ends elsewhere: how far apart such ends are is the spread of the search's result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from search.cuts.config import SearchOptions
from search.relaxation import RelaxedNet

REPLAYS = 200
"""Enough for a standard error to 5 %."""

TINY = 1e-12
"""Shares below it are taken for it; a derivative by a share is divided by it."""


@dataclass
class Updates:
    """The updates of one search, in their order."""

    drawn: list[list[tuple[int, float]]]
    """Of each, for every process: the pretraining step that its weights descend from, and the inner rate."""

    effects: list[Tensor]
    """Of each, in float64 (L-1, 1 + M): derivatives of the validation loss by the share of the local signal,
    and by those of the heads, these up to a constant in each row."""

    @classmethod
    def none(cls) -> "Updates":
        """Of a search that has not begun."""
        return cls([], [])

    @classmethod
    def joined(cls, searches: Sequence["Updates"]) -> "Updates":
        """Those of several searches, one after the other."""
        return cls(
            [drawn for each in searches for drawn in each.drawn],
            [effect for each in searches for effect in each.effects],
        )

    def add(self, net: RelaxedNet, drawn: list[tuple[int, float]]) -> None:
        """Add what `net.alpha.grad` and `net.beta.grad` say at its present alpha and beta."""
        assert net.alpha.grad is not None
        assert net.beta.grad is not None
        signals, heads = (value.detach().double().cpu().softmax(1) for value in (net.alpha, net.beta))
        slope = signals.prod(1, keepdim=True).clamp_min(TINY)
        by_signal = net.alpha.grad.double().cpu()[:, :1] / slope
        by_head = net.beta.grad.double().cpu() / heads.clamp_min(TINY)
        self.drawn.append(drawn)
        self.effects.append(torch.cat([by_signal, by_head], 1))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"drawn": self.drawn, "effects": torch.stack(self.effects) if self.effects else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a checkpoint; one of before has no updates."""
        self.drawn = [[(origin, rate) for origin, rate in each] for each in state.get("drawn", [])]
        effects = state.get("effects")
        self.effects = [] if effects is None else list(effects.cpu())

    def lines(self, head_kinds: Sequence[str], last: int) -> list[dict[str, Any]]:
        """As objects for hypergradients.jsonl; `last` is the number of the last update."""
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
    """What moves alpha and beta; for each value by itself, whatever the shape."""
    return torch.optim.Adam(
        list(values),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        weight_decay=options.weight_decay,
    )


class Effects(NamedTuple):
    """Means over updates, and standard errors of these means; as in `Updates.effects`."""

    mean: Tensor
    error: Tensor


class Ends(NamedTuple):
    """Where searches came to, each in a row of its own."""

    alpha: Tensor
    """(R, L-1, 2)"""

    beta: Tensor
    """(R, L-1, M)"""


def effects(updates: Updates, *, generator: torch.Generator) -> Effects:
    """The mean effect of each share on the validation loss, and its standard error.

    Heads count against the mean of the heads of their layer.
    """
    found = torch.stack(updates.effects)
    found[..., 1:] -= found[..., 1:].mean(-1, keepdim=True)
    count = len(found)
    drawn = _resampled(count, generator)
    weights = torch.zeros(REPLAYS, count, dtype=found.dtype)
    weights.scatter_add_(1, drawn, torch.full(drawn.shape, 1 / count, dtype=found.dtype))
    means = (weights @ found.flatten(1)).view(REPLAYS, *found.shape[1:])
    return Effects(found.mean(0), means.std(0))


def replays(updates: Updates, options: SearchOptions, *, generator: torch.Generator) -> Ends:
    """The ends of searches that go by updates drawn from these, with the optimiser of `options`."""
    found = torch.stack(updates.effects)
    drawn = _resampled(len(found), generator)
    rows, kinds = found.shape[1], found.shape[2] - 1
    alpha = torch.zeros(REPLAYS, rows, 2, dtype=found.dtype, requires_grad=True)
    beta = torch.zeros(REPLAYS, rows, kinds, dtype=found.dtype, requires_grad=True)
    optimizer = outer_optimizer(options, [alpha, beta])
    for indices in drawn.unbind(1):
        effect = found[indices]
        signals, heads = alpha.detach().softmax(2), beta.detach().softmax(2)
        toward = signals.prod(2) * effect[..., 0]
        alpha.grad = torch.stack([toward, -toward], 2)
        by_head = effect[..., 1:]
        beta.grad = heads * (by_head - (heads * by_head).sum(2, keepdim=True))
        optimizer.step()
    return Ends(alpha.detach(), beta.detach())


def _resampled(count: int, generator: torch.Generator) -> Tensor:
    """Indices of updates, `count` in each of REPLAYS rows: runs of neighbours from random places on.

    Neighbours may be alike, as later weights descend from earlier ones; runs keep that as it is.
    """
    length = max(1, round(count ** (1 / 3)))
    runs = -(-count // length)
    starts = torch.randint(count, (REPLAYS, runs), generator=generator)
    return (starts.unsqueeze(2) + torch.arange(length)).flatten(1)[:, :count] % count


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
