"""A traced trunk can be cut after any point where one tensor carries everything on.

Such a point is a cut only if it does not lie inside a unit such as a residual block. That holds even where
the unit itself narrows to one tensor (the parts of an MBConv without a shortcut). Modules are *open*, so
that cuts may lie between their children, or closed. Sequences are open. So is any module that strings
together composite modules, as a stage does with its blocks. A child of a closed module is closed.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from local_learning.networks.tracing import Trace, Untraceable, is_notrace, reads_mode

_SEQUENCES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_STEMS = ("stem", "patch_embed", "pos_embed")  # timm's names for what comes before the blocks


@dataclass(frozen=True)
class Cut:
    """A cut lies after `node`, and `carrier` is the tensor that crosses it."""

    node: fx.Node
    """The last node before the cut."""
    carrier: fx.Node
    """The node whose tensor crosses the cut."""


def worth_tracing(model: nn.Module) -> set[str]:
    """Return the names of the modules that may be open, as far as one can know without a graph."""
    return {
        name
        for name, module in model.named_modules()
        if name
        and num_weights(module) > 1
        and (_is_sequence(module) or _num_composite_parts(module) > 1)
        and not type(module).__module__.startswith("torch.nn.modules.transformer")
        and not type(module).__module__.startswith("torch.nn.modules.activation")
        and not reads_mode(module)
        and not is_notrace(module)
    }


def open_modules(traced: Trace, model: nn.Module, inside: Iterable[str]) -> set[str]:
    """Return those of the modules traced into in which cuts may lie; the model itself is always open."""
    modules = dict(model.named_modules())
    inside = set(inside)
    opened = {name for name in inside if _is_sequence(modules[name])}
    for left, right, _ in _narrow_points(traced):
        parent = _common(traced.paths[left], traced.paths[right])
        children = [_child(traced.paths[node], parent, modules) for node in (left, right)]
        if not all(child is not None and num_weights(child) > 1 for child in children):
            continue
        if _is_sequence(modules[parent]):
            # The sequence of a stage: this makes the modules around it open.
            opened.update(ancestor for ancestor in _ancestors(parent) if ancestor in inside)
        elif parent and all(child is not None and _depth(child) > 1 for child in children):
            opened.add(parent)
    return {name for name in opened if all(ancestor in opened for ancestor in _ancestors(name))}


def find_cuts(traced: Trace, model: nn.Module, opened: Iterable[str]) -> list[Cut]:
    """Return the cuts between layers and, last, the end of the trunk.

    A composite module is a layer. So is a single convolution or linear layer with what follows it. What
    comes before the first block (the stem) belongs to that block's layer, if there are blocks.

    Raises:
        Untraceable: if weights are shared across the end of the trunk.
    """
    allowed = {"", *opened}
    spans = _shared_spans(traced, model)
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    places = [
        Cut(left, carrier)
        for left, right, carrier in _narrow_points(traced)
        if _common(traced.paths[left], traced.paths[right]) in allowed
        and not any(first <= order[left] < last for first, last in spans)
    ]
    end = Cut(traced.boundary.prev, _argument(traced.boundary))
    if any(first < order[traced.boundary] < last for first, last in spans):
        raise Untraceable("its classifier shares weights with its blocks")
    places = [place for place in places if order[place.node] < order[end.node]] + [end]

    pieces = _pieces(traced, model, places)
    first = next((kind for kind in ("block", "composite", "single") if kind in pieces), None)
    cuts: list[Cut] = []
    stem = True
    for index, kind in enumerate(pieces):
        if kind and not stem and _advances(places[index - 1], cuts):
            cuts.append(places[index - 1])
        stem = stem and kind != first
    return [*cuts, end]


def free_nodes(traced: Trace) -> set[fx.Node]:
    """Return the nodes that any layer can compute again for itself.

    These are reads of attributes, and what follows from buffers alone.
    """
    free: set[fx.Node] = set()
    learned: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            free.add(node)
            if getattr(traced.values[node], "requires_grad", False):
                learned.add(node)
        elif (
            node.op in ("call_function", "call_method")
            and node.all_input_nodes
            and all(source in free and source not in learned for source in node.all_input_nodes)
        ):
            free.add(node)
    return free


def num_weights(module: nn.Module) -> int:
    """Return how many convolutions and linear layers a module has.

    Counted are submodules with a matrix or a kernel of their own.
    """
    return sum(
        any(sum(size > 1 for size in parameter.shape) > 1 for parameter in part.parameters(recurse=False))
        for part in module.modules()
    )


# ---- graph ---------------------------------------------------------------------------------------------


def _narrow_points(traced: Trace) -> list[tuple[fx.Node, fx.Node, fx.Node]]:
    """Return (node, next node, carrier) for each point where one tensor carries everything on.

    A batch size does not count, because a layer reads it from its own input.
    """
    free = free_nodes(traced)
    nodes = [node for node in traced.graph.nodes if node not in free]
    order = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max((_last(user, order) for user in node.users), default=-1) for node in nodes}
    steps = [n for n in nodes if n.op not in ("placeholder", "output") and not _is_size(traced, n)]
    points = []
    for left, right in itertools.pairwise(steps):
        if order[left] >= order[traced.boundary]:
            break
        crossing = [n for n in nodes[: order[left] + 1] if last_use[n] > order[left]]
        tensors = [n for n in crossing if isinstance(traced.values[n], Tensor)]
        if len(tensors) != 1:
            continue
        carrier = tensors[0]
        batch = list(traced.values[carrier].shape[:1])
        if all(n is carrier or (_is_size(traced, n) and [traced.values[n]] == batch) for n in crossing):
            points.append((left, right, carrier))
    return points


def _last(user: fx.Node, order: Mapping[fx.Node, int]) -> int:
    """Return where a use happens; a use by a free node counts where that node is used in turn."""
    if user in order:
        return order[user]
    return max((_last(reader, order) for reader in user.users), default=-1)


def _is_size(traced: Trace, node: fx.Node) -> bool:
    return isinstance(traced.values.get(node), int)


def _argument(node: fx.Node) -> fx.Node:
    argument = node.args[0]
    assert isinstance(argument, fx.Node)
    return argument


def _advances(place: Cut, cuts: list[Cut]) -> bool:
    return place.carrier.op != "placeholder" and (not cuts or cuts[-1].carrier is not place.carrier)


def _pieces(traced: Trace, model: nn.Module, places: list[Cut]) -> list[str]:
    """Name what lies before the first place, between the first and the second, and so on.

    A piece is a "single" convolution or linear layer, a "composite" of several in a stem, a "block" of
    several, or "" for one without weights.
    """
    pieces: list[str] = []
    count, is_block = 0, False
    ends = [place.node for place in places]
    for node in traced.graph.nodes:
        if node.op == "call_module" and node is not traced.boundary:
            path = traced.paths[node]
            num = num_weights(model.get_submodule(str(node.target)))
            count += num
            is_block |= num > 1 and not path[0].startswith(_STEMS)
        if node is ends[len(pieces)]:
            pieces.append(
                ("" if count == 0 else "single") if count < 2 else "block" if is_block else "composite"
            )
            count, is_block = 0, False
            if len(pieces) == len(ends):
                break
    return pieces


def _shared_spans(traced: Trace, model: nn.Module) -> list[tuple[int, int]]:
    """Return the first and the last use of each parameter or state that is used more than once."""
    spans: dict[int, tuple[int, int]] = {}
    for index, node in enumerate(traced.graph.nodes):
        owned: list[Tensor] = []
        if node.op == "call_module" and node is not traced.boundary:
            module = model.get_submodule(str(node.target))
            owned = [*module.parameters(), *module.buffers()]
        elif node.op != "get_attr":
            reads = (source for source in node.all_input_nodes if source.op == "get_attr")
            owned = [model.get_parameter(str(r.target)) for r in reads if _is_parameter(model, r)]
        for tensor in owned:
            first, _ = spans.get(id(tensor), (index, index))
            spans[id(tensor)] = (first, index)
    return [(first, last) for first, last in spans.values() if first < last]


def _is_parameter(model: nn.Module, node: fx.Node) -> bool:
    owner, _, name = str(node.target).rpartition(".")
    try:
        return name in model.get_submodule(owner)._parameters
    except AttributeError:  # a constant of the trace
        return False


# ---- modules -------------------------------------------------------------------------------------------


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, _SEQUENCES) and type(module).forward in {s.forward for s in _SEQUENCES}


def _num_composite_parts(module: nn.Module) -> int:
    """Count the composite modules in a module that do not contain one another."""
    return sum((_num_composite_parts(child) or 1) for child in module.children() if num_weights(child) > 1)


def _depth(module: nn.Module) -> int:
    if any(True for _ in module.parameters(recurse=False)):
        return 0  # a layer with an activation inside, such as timm's BatchNormAct2d
    return max((1 + _depth(child) for child in module.children()), default=0)


def _ancestors(name: str) -> list[str]:
    """Return the modules around a module, without the model."""
    atoms = name.split(".")
    return [".".join(atoms[:length]) for length in range(1, len(atoms))]


def _common(left: tuple[str, ...], right: tuple[str, ...]) -> str:
    """Return the deepest module around two nodes."""
    shared = []
    for a, b in zip(left[:-1], right[:-1], strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)


def _child(path: tuple[str, ...], parent: str, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """Return the child of `parent` that a node is or lies in; None for the parent's own operations."""
    depth = len(parent.split(".")) if parent else 0
    return modules.get(".".join(path[: depth + 1]))
