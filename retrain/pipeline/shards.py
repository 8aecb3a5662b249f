"""This module splits and unites the states of neuron groups that are on a process each."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from local_learning.blocks import DecoupledNet
from local_learning.slices import Slice
from retrain.pipeline.role import Role

Order = list[list[str]]
"""The names of an optimiser's parameters, by parameter group; its state has numbers in their place."""


def order_of(optimizer: torch.optim.Optimizer, block: nn.Module) -> Order:
    """Return the names of a block's parameters in an optimiser's order."""
    names = {parameter: name for name, parameter in block.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


class Shards:
    """A `Shards` says which part of a role's state a process has: rows of the first block, and all the rest.

    If no neuron group is on a process of its own, it leaves states unchanged.
    """

    def __init__(self, role: Role, net: DecoupledNet, whole: Mapping[int, Order]) -> None:
        """Take in `whole` the orders of the own blocks' optimisers where all groups are together."""
        self._role, self._whole = role, whole
        block = net.blocks[role.own.start]
        self._rows: Mapping[str, slice] = block.rows if isinstance(block, Slice) else {}
        self._in_net = {f"blocks.{role.own.start}.{name}": rows for name, rows in self._rows.items()}

    def together(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state with the rows of all groups on the first group's process, and elsewhere unchanged.

        All these processes must call this at the same time. Tensors with the same name are parts of one.
        """
        role = self._role
        if role.groups == 1:
            return dict(state)
        of_all: list[Any] | None = [None] * role.groups if role.place == 0 else None
        torch.distributed.gather_object(_on_cpu(state), of_all, group=role.cpu_group, group_dst=0)
        united: dict[str, Any] = _united(of_all) if of_all else dict(state)
        return united

    def own(self, network: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's rows of a network's tensors."""
        return {name: _rows(tensor, self._in_net.get(name)) for name, tensor in network.items()}

    def named(self, state: Mapping[str, Any], order: Order) -> dict[str, Any]:
        """Return an optimiser's state by names, because its numbers differ where all groups are together."""
        names = [name for group in order for name in group]
        return {**state, "state": {names[number]: values for number, values in state["state"].items()}}

    def numbered(self, index: int, named: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state of a block's optimiser for all groups, by numbers again."""
        return _numbered(named, self._whole[index])

    def own_optimizer(self, index: int, state: Mapping[str, Any], order: Order) -> dict[str, Any]:
        """Return this process's part of a block's optimiser state that is for all groups."""
        named = self.named(state, self._whole[index])
        rows = self._rows if index == self._role.own.start else {}
        here = {name for group in order for name in group}
        named["state"] = {
            name: {key: _rows(value, rows.get(name)) for key, value in values.items()}
            for name, values in named["state"].items()
            if name in here
        }
        return _numbered(named, order)


def _numbered(named: Mapping[str, Any], order: Order) -> dict[str, Any]:
    numbers = {name: number for number, name in enumerate(name for group in order for name in group)}
    groups, start = [], 0
    for values, names in zip(named["param_groups"], order, strict=True):
        groups.append({**values, "params": list(range(start, start + len(names)))})
        start += len(names)
    state = {numbers[name]: values for name, values in named["state"].items()}
    return {**named, "state": dict(sorted(state.items())), "param_groups": groups}


def _rows(value: Any, rows: slice | None) -> Any:
    # A view would carry the whole tensor along whenever it is sent.
    return value[rows].clone() if rows and isinstance(value, Tensor) and value.ndim else value


def _on_cpu(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.cpu()
    return {key: _on_cpu(value) for key, value in state.items()} if isinstance(state, Mapping) else state


def _united(parts: Iterable[Any]) -> Any:
    first, *rest = parts
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for part in (first, *rest) for key in part)
        return {key: _united([part[key] for part in (first, *rest) if key in part]) for key in keys}
    return torch.cat([first, *rest]) if rest and isinstance(first, Tensor) and first.ndim else first
