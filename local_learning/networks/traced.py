"""Any timm model becomes a chain, cut where one tensor carries everything; its output stays the model's."""

import operator
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, fx, nn

from local_learning.chain import Chain
from local_learning.networks.articulation import Cut, find_cuts, free_nodes, open_modules, worth_tracing
from local_learning.networks.tracing import Trace, Untraceable, follow_modes, trace
from tools.mistake import Mistake


def build_traced(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    in_chs: int = 3,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    pretrained: bool = False,
) -> Chain:
    """Build the timm model `name` as a chain for images of `image_size` pixels.

    Layers and classifier are graphs over the model's own modules and keep their names (see `timm_names`).

    Raises:
        ValueError: in one line, if timm has no such model or option, or if the model cannot be split.
    """
    model = _create(
        name,
        pretrained=pretrained,
        num_classes=num_classes,
        in_chans=in_chs,
        img_size=image_size,
        drop_rate=dropout,
        drop_path_rate=drop_path,
    )
    return split(model, f"timm/{name}", (in_chs, image_size, image_size))


def split(model: nn.Module, name: str, image_shape: tuple[int, int, int]) -> Chain:
    """Split a model with timm's `forward_features` and `forward_head` into a chain that shares its weights.

    Raises:
        ValueError: if the model cannot be split; the message says why.
    """
    try:
        traced, inside = trace(model, image_shape, worth_tracing(model))
        opened = open_modules(traced, model, inside)
        traced, opened = trace(model, image_shape, opened)
        if not isinstance(traced.values[traced.boundary], Tensor):
            raise Untraceable("its features are not one tensor")
        follow_modes(traced, model, image_shape, opened)
        cuts = find_cuts(traced, model, opened)
    except Untraceable as reason:
        raise ValueError(f"{name} cannot be split into layers: {reason}") from reason
    if len(cuts) < 2:
        raise ValueError(
            f"{name} cannot be split into layers: no tensor between its blocks carries everything"
        )
    chain = _assemble(traced, model, cuts)
    _verify(chain, model, name, image_shape)
    return chain


def timm_names(chain: Chain) -> dict[str, str]:
    """Return timm's own name of each parameter and buffer, by its key in the chain's state dict."""
    return {key: re.sub(r"^(layers\.\d+|classifier)\.", "", key) for key in chain.state_dict()}


def with_our_names(network: str, chain: Chain, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a weights file by the chain's names; a file of a timm model may have timm's."""
    if not network.startswith("timm/"):
        return dict(tensors)
    ours = {timm_name: name for name, timm_name in timm_names(chain).items()}
    return {ours.get(name, name): tensor for name, tensor in tensors.items()}


# ---- timm ----------------------------------------------------------------------------------------------

_OPTION = {"drop_rate": "dropout", "drop_path_rate": "drop_path", "in_chans": "in_chs"}


def _create(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
    """Make the model, leaving out options for which its family has no argument."""
    while True:
        try:
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
            return model
        except TypeError as error:
            # Families report it as Python does, or with a list of the options that they do not know.
            unknown = [option for option in options if f"'{option}'" in str(error)]
            if "unexpected keyword" not in str(error) or not unknown:
                raise ValueError(f"timm/{name} cannot be made: {_line(error)}") from error
            for option in unknown:
                if options.pop(option) and option in _OPTION:
                    raise ValueError(f"{_OPTION[option]}: timm/{name} has no such option") from error
        except Exception as error:
            if pretrained:
                raise Mistake(
                    "pretrained",
                    f"no weights could be found for timm/{name} ({_line(error)})",
                    "`weights` FILE takes a file",
                ) from error
            size = options.get("img_size")
            raise ValueError(f"timm/{name} cannot be made for image_size {size}: {_line(error)}") from error


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


# ---- layers --------------------------------------------------------------------------------------------


def _assemble(traced: Trace, model: nn.Module, cuts: list[Cut]) -> Chain:
    for name, constant in traced.constants.items():
        model.register_buffer(name, constant, persistent=False)
    nodes = list(traced.graph.nodes)
    free = free_nodes(traced)
    images = nodes[0]
    layers = []
    carrier, start = images, 1
    for cut in cuts:
        stop = nodes.index(cut.node) + 1
        layers.append(_graph_module(model, traced, nodes[start:stop], carrier, cut.carrier, free, "Layer"))
        carrier, start = cut.carrier, stop
    output = nodes[-1].args[0]
    assert isinstance(output, fx.Node)
    behind = nodes[nodes.index(traced.boundary) + 1 : -1]
    classifier = _graph_module(model, traced, behind, traced.boundary, output, free, "Classifier")
    return Chain(layers, classifier)


def _graph_module(
    model: nn.Module,
    traced: Trace,
    nodes: list[fx.Node],
    carrier: fx.Node,
    result: fx.Node,
    free: set[fx.Node],
    kind: str,
) -> fx.GraphModule:
    """Make a module that computes `result` from `carrier` by these nodes."""
    graph = fx.Graph()
    made = {carrier: graph.placeholder("inputs")}

    def make(node: fx.Node) -> fx.Node:
        if node not in made:
            if node not in free and isinstance(traced.values[node], int):
                made[node] = graph.call_method("size", (made[carrier], 0))  # the batch, from before the cut
            else:
                assert node in free
                made[node] = copy_of(node)
        return made[node]

    def copy_of(node: fx.Node) -> fx.Node:
        new = graph.node_copy(node, make)
        new.meta = {}
        return new

    for node in nodes:
        if node not in free:
            made[node] = copy_of(node)
    graph.output(make(result))
    for node in reversed(graph.nodes):
        if not node.users and (node.target == "size" or node.target is operator.getitem):
            graph.erase_node(node)  # a size that the model's code read, which is a known number by now
    module = fx.GraphModule(model, graph, class_name=kind)
    _keep_persistence(module, model)
    return module


def _keep_persistence(module: nn.Module, model: nn.Module) -> None:
    """Leave only the model's own buffers persistent; torch.fx makes every tensor that it copies one."""
    persistent = model.state_dict(keep_vars=True).keys()
    for path, part in module.named_modules():
        for name in part._buffers:
            if (f"{path}.{name}" if path else name) not in persistent:
                part._non_persistent_buffers_set.add(name)


def _verify(chain: Chain, model: nn.Module, name: str, image_shape: tuple[int, int, int]) -> None:
    """Check that the chain gives the model's output, also at another batch size than that of the trace."""
    images = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0))
    training = model.training
    model.eval()
    chain.eval()
    with torch.no_grad():
        expected = model(images)
        try:
            same = torch.allclose(chain(images), expected, rtol=1e-5, atol=1e-6)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(f"{name} cannot be split into layers: {_line(error)}") from error
    model.train(training)
    chain.train(training)
    if not same:
        raise ValueError(f"{name} cannot be split into layers: the pieces do not give the model's output")
