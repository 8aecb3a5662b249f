"""A model is traced into a graph, module by module, with its shapes known.

Plain torch.fx stops at Python that looks at a shape, and bakes in whatever depends on the mode. Here every
step of the trace also runs on tensors that have a shape and no numbers. Spatial sizes are plain numbers,
because a graph holds for one image size; only the batch stays symbolic. Modules are calls in the graph
unless they have to be looked into. So nearly everything that a mode changes stays inside modules and follows
train() and eval(). Flags that are read outside of them (functional dropout in a model's own forward) become
reads of `self.training`.
"""

import copy
import operator
import types
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

# No size of a real model is by chance a multiple of this prime. So a number shows whether it comes from the
# batch. Such tensors cost nothing, and any batch size runs through the graph afterwards.
_BATCH = 61


class Untraceable(Exception):
    """The model's own forward cannot be traced; the message says why."""


@dataclass(kw_only=True)
class Trace:
    """A trace is the graph of `classifier(trunk(images))`, with what is known about its nodes."""

    graph: fx.Graph
    """The graph of the model."""
    boundary: fx.Node
    """The call between the trunk and the classifier. Its one argument is the trunk's output."""
    values: dict[fx.Node, Any]
    """What each node gave, a number or a tensor that has only a shape."""
    paths: dict[fx.Node, tuple[str, ...]]
    """The names of the modules in which each node runs and, last, the node's own name there."""
    constants: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that the forward made of numbers alone, by the names under which the graph reads them."""


def trace(model: nn.Module, image_shape: tuple[int, ...], inside: Collection[str]) -> tuple[Trace, set[str]]:
    """Trace `model`, looking into those modules named in `inside` that allow it.

    The modules that were looked into are returned with the trace.

    Raises:
        Untraceable: if the forward of the model itself does what a graph cannot hold.
    """
    inside = set(inside)
    while True:
        tracer, graph = _attempt(model, image_shape, inside, training=False)
        if graph is not None:
            return _finish(tracer, graph), inside
        assert tracer.failure is not None
        if tracer.failed_in is None:
            raise Untraceable(_one_line(tracer.failure)) from tracer.failure
        # Its siblings would fail in the same way.
        culprit = type(model.get_submodule(tracer.failed_in))
        inside = {name for name in inside if type(model.get_submodule(name)) is not culprit}


def follow_modes(
    traced: Trace, model: nn.Module, image_shape: tuple[int, ...], inside: Collection[str]
) -> None:
    """Let `traced` do in training what the model does there.

    It is compared with a trace of the model in training mode.

    Raises:
        Untraceable: if the modes differ by more than flags.
    """
    tracer, graph = _attempt(model, image_shape, inside, training=True)
    if graph is None:
        raise Untraceable(_one_line(tracer.failure))
    ours, theirs = list(traced.graph.nodes), list(graph.nodes)
    if len(ours) != len(theirs):
        raise Untraceable("its forward does other operations in training than in evaluation")
    for node, other in zip(ours, theirs, strict=True):
        if (node.op, node.name) != (other.op, other.name):
            raise Untraceable(f"its forward does {other.name} in training and {node.name} in evaluation")
        arguments = _merge((node.args, node.kwargs), (other.args, other.kwargs), node, traced)
        node.args, node.kwargs = arguments


class _Trunk(nn.Module):
    """This module marks where a timm model's trunk ends; every timm model has the two methods called here."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.boundary = nn.Identity()

    def forward(self, images: Any) -> Any:
        model: Any = self.model
        return model.forward_head(self.boundary(model.forward_features(images)))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, image_shape: tuple[int, ...], inside: Collection[str]) -> None:
        functions = tuple(get_notrace_functions())  # type: ignore[no-untyped-call]
        super().__init__(autowrap_functions=functions)
        self.image_shape = image_shape
        self.inside = {f"model.{name}" for name in inside}
        self.values: dict[fx.Node, Any] = {}
        self.paths: dict[fx.Node, tuple[str, ...]] = {}
        self.failure: Exception | None = None
        self.failed_in: str | None = None
        self._running = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name != "model" and module_qualified_name not in self.inside

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            name = self.path_of_module(m)
            if self.failed_in is None and name in self.inside:
                self.failed_in = name.removeprefix("model.")
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(
        self,
        kind: str,
        target: fx.node.Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Any = None,
    ) -> fx.Proxy:
        proxy: fx.Proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)
        node = proxy.node
        module = str(target) if kind == "call_module" else self.scope.module_path
        inner = () if kind == "call_module" else (f"({node.name})",)
        self.paths[node] = (*module.removeprefix("model").removeprefix(".").split("."), *inner)
        if not module.removeprefix("model"):
            self.paths[node] = inner
        self.values[node] = self._run(node)
        return proxy

    def _run(self, node: fx.Node) -> Any:
        """Return the node's value, with shapes alone; modules run as they are, untraced."""
        args, kwargs = self._plain(node.args), self._plain(node.kwargs)
        self._running = True
        try:
            with torch.device("meta"), torch.no_grad():
                if node.op == "placeholder":
                    return torch.empty(self.image_shape)
                if node.op == "get_attr":
                    return _shape_alone(_attribute(self.root, str(node.target)))
                if node.op == "call_module":
                    return self.root.get_submodule(str(node.target))(*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                assert callable(node.target)
                return node.target(*args, **kwargs)
        finally:
            self._running = False

    def _plain(self, argument: Any) -> Any:
        """Put values in the place of nodes, and ordinary lists in that of the graph's.

        Modules may write to their arguments, and the graph's lists cannot be written to.
        """
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if isinstance(argument, dict):
            return {key: self._plain(value) for key, value in argument.items()}
        if isinstance(argument, list):
            return [self._plain(value) for value in argument]
        if isinstance(argument, tuple):
            return tuple(self._plain(value) for value in argument)
        return _shape_alone(argument)


class _Proxy(fx.Proxy):
    """A traced value that knows its shape: everything but the batch is a number."""

    @property
    def _value(self) -> Any:
        assert isinstance(self.tracer, _Tracer)
        return self.tracer.values[self.node]

    def __getattr__(self, name: str) -> Any:
        if isinstance(self._value, Tensor):
            if name == "shape":
                return self._sizes()
            if name == "size":
                return self._size
            if name == "ndim":
                return self._value.ndim
            if name == "dim":
                return lambda: self._value.ndim
        return super().__getattr__(name)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(self._value, tuple | list) and isinstance(index, int):
            item = self._value[index]
            if _is_known(item):
                return item  # spatial sizes that a module returned
        return self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self) -> Any:
        if isinstance(self._value, tuple | list | Tensor) and len(self._value) % _BATCH:
            return iter([self[index] for index in range(len(self._value))])
        raise fx.proxy.TraceError("it loops over the images of a batch")

    def _sizes(self) -> tuple[Any, ...]:
        sizes = tuple(self._value.shape)
        if _is_known(sizes):
            return sizes
        batch = self.tracer.create_proxy("call_method", "size", (self, 0), {})
        return (batch, *sizes[1:])

    def _size(self, dim: int | None = None) -> Any:
        return self._sizes() if dim is None else self._sizes()[dim]


def _is_known(value: Any) -> bool:
    """Return whether a value consists of numbers that do not come from the batch."""
    if isinstance(value, tuple | list):
        return all(_is_known(item) for item in value)
    return isinstance(value, int) and (value == 0 or value % _BATCH != 0)


def _attempt(
    model: nn.Module, image_shape: tuple[int, ...], inside: Collection[str], *, training: bool
) -> tuple[_Tracer, fx.Graph | None]:
    # A copy is traced, because a forward may cache tensors in its modules, and those have no numbers here.
    shapes: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        shapes[id(tensor)] = _shape_alone(tensor)
    root = _Trunk(copy.deepcopy(model, shapes)).train(training)
    tracer = _Tracer((_BATCH, *image_shape), inside)
    try:
        with torch.random.fork_rng([]):
            return tracer, tracer.trace(root)
    except Exception as error:
        tracer.failure = error
        return tracer, None


def _finish(tracer: _Tracer, graph: fx.Graph) -> Trace:
    """Name everything as the model does."""
    boundary = next(node for node in graph.nodes if node.target == "boundary")
    constants = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            name = str(node.target)
            if node.op == "get_attr" and not name.startswith("model."):
                constants[name] = _attribute(tracer.root, name)
            node.target = name.removeprefix("model.")
    return Trace(
        graph=graph, boundary=boundary, values=tracer.values, paths=tracer.paths, constants=constants
    )


def _merge(ours: Any, theirs: Any, node: fx.Node, traced: Trace) -> Any:
    """Return our arguments; a flag that is True in training and False in evaluation then reads the mode."""
    if isinstance(ours, fx.Node):
        if not isinstance(theirs, fx.Node) or ours.name != theirs.name:
            raise Untraceable(f"the arguments of {node.name} differ between training and evaluation")
        return ours
    if isinstance(ours, dict):
        return {key: _merge(ours[key], theirs[key], node, traced) for key in ours}
    if isinstance(ours, tuple | list):
        return type(ours)(_merge(a, b, node, traced) for a, b in zip(ours, theirs, strict=True))
    if ours is False and theirs is True:
        with traced.graph.inserting_before(node):
            flag = traced.graph.create_node("get_attr", "training")
        traced.values[flag] = False
        traced.paths[flag] = ("(training)",)
        return flag
    if ours != theirs:
        raise Untraceable(f"the arguments of {node.name} differ between training and evaluation")
    return ours


def _attribute(root: nn.Module, name: str) -> Any:
    value: Any = root
    for atom in name.split("."):
        value = getattr(value, atom)
    return value


def _shape_alone(value: Any) -> Any:
    """Return a tensor of this shape that holds no numbers, or whatever else `value` is as it is."""
    if not isinstance(value, Tensor) or value.device.type == "meta":
        return value
    empty = torch.empty_like(value, device="meta")
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def _one_line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def reads_mode(module: nn.Module) -> bool:
    """Return whether the module's own code looks at `training`; a graph must then not look into it."""
    methods = (
        member
        for kind in type(module).__mro__
        if kind not in nn.Module.__mro__
        for member in vars(kind).values()
        if isinstance(member, types.FunctionType)
    )
    return any("training" in method.__code__.co_names for method in methods)


def is_notrace(module: nn.Module) -> bool:
    """Return whether timm says that no graph must look into modules of this class."""
    return isinstance(module, tuple(get_notrace_modules()))  # type: ignore[no-untyped-call]
