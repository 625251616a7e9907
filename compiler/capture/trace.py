"""Capture a model as graphs in which every node for a parameter has the parameter's name.

Four ways are tried, the most exact first: `torch.export`, Dynamo (works with graph breaks), fx symbolic tracing (needs
no inputs), and no graph. Without a graph the caller uses the structure of the modules. The model itself is not run and
not changed: a stand-in runs, which shares the parameters and has its own buffers.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from topkast.runtime.errors import ConfigError

from .only_tensors import OnlyTensors
from .traceable import in_the_open


@dataclass
class Traced:
    """One graph. `root` resolves get_attr and call_module targets. `params` names the nodes that are parameters. In a
    graph of torch.export, `buffers` names the nodes that are buffers."""

    root: nn.Module
    graph: fx.Graph
    params: dict[fx.Node, str]
    buffers: dict[fx.Node, str] = field(default_factory=dict)


@dataclass
class Capture:
    """How the model was read (part of a sentence), and its graphs in the order of their runs (none without a trace)."""

    how: str
    graphs: list[Traced] = field(default_factory=list)


def capture(model: nn.Module, example_inputs: Any = None) -> Capture:
    """Capture `model`, with `example_inputs` (a tensor, a tuple of args or a dict of kwargs) if they are given.

    Raises ConfigError for example_inputs of another kind. A model that cannot be traced is no error; `how` gives the
    reason.
    """
    given = example_inputs is not None
    args, kwargs = arguments(example_inputs) if given else ((), {})
    if any(p.is_meta for p in model.parameters()):
        try:
            model, args, kwargs = _as_on_cpu(model, args, kwargs if given else _dummies(model)[1])
        except Exception as error:  # the copy also runs the user's code
            return Capture(f"structure (the model could not be traced: {_first_line(error)})")
    elif not given:
        args, kwargs = _dummies(model)
    names = {id(p): name for name, p in model.named_parameters()}
    what = "example_inputs" if given else "the model's dummy_inputs"
    why = ""
    if args or kwargs or given:
        for how, trace in (("torch.export", _export), ("Dynamo", _dynamo)):
            try:
                return Capture(f"{how} with {what}", trace(model, args, kwargs, names))
            except Exception as error:  # the trace runs the user's code, which can raise any error
                why = why or f"torch.export: {_first_line(error)}"
    if not given:
        try:
            return _symbolic(model, names)
        except Exception as error:
            why = why or f"fx: {_first_line(error)}"
    return Capture(f"structure (the model could not be traced: {why})")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    if hasattr(example_inputs, "keys"):  # a dict, or a transformers BatchEncoding
        return (), dict(example_inputs.items())
    raise ConfigError(
        f"example_inputs is a {type(example_inputs).__name__}: pass a tensor, a tuple of arguments or a dict of kwargs"
    )


def _dummies(model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A transformers model's own dummy inputs, on the device of its parameters; nothing for other models."""
    try:
        inputs = getattr(model, "dummy_inputs", None)
    except Exception:  # the property is user code
        return (), {}
    if not isinstance(inputs, dict) or not inputs:
        return (), {}
    config = getattr(model, "config", None)
    if getattr(model, "main_input_name", "input_ids") == "pixel_values" and "pixel_values" not in inputs:
        # The base class proposes token ids even for image models, so an image of the config's size is made.
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        inputs = {"pixel_values": torch.zeros(2, getattr(config, "num_channels", 3), height, width)}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    kwargs = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    if hasattr(config, "use_cache") and "use_cache" in inspect.signature(model.forward).parameters:
        kwargs["use_cache"] = False  # a cache would be one more kind of output to trace, and training uses no cache
    return (), kwargs


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Switch gradients on, restore the random generator afterwards, and suppress output. Without gradients the fast
    inference paths of torch.nn would hide the weights. A failed trace would print its whole graph, but here a failure
    only means that the next way is tried."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    rng = torch.random.fork_rng(devices=devices)
    with rng, torch.enable_grad(), in_the_open(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level, logging.root.manager.disable = logging.root.manager.disable, logging.WARNING
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                yield
        finally:
            logging.root.manager.disable = level


def stand_in(model: nn.Module, names: dict[int, str]) -> tuple[nn.Module, dict[int, str]]:
    """A copy whose parameters use the memory of the model's, and `names` with the copy's parameters added.

    The copy has parameters of its own, because a trace leaves garbage that holds the autograd nodes of its parameters
    until Python collects it. A node keeps the shape it began with. So if the model's own parameters were traced, a
    later change of a shape through ``.data``, as in transformers' ``resize_token_embeddings``, failed in the backward.
    """
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = p
        if type(p) is nn.Parameter:
            memo[id(p)] = nn.Parameter(p.detach(), p.requires_grad)
            memo[id(p)].__dict__.update(p.__dict__)
    return copy.deepcopy(model, memo), names | {id(memo[key]): name for key, name in names.items()}


def _as_on_cpu(model: nn.Module, *inputs: Any) -> tuple[Any, ...]:
    """A copy of a model on the meta device; the tensors of the copy and its inputs are fake tensors on the CPU.

    On the meta device itself a trace would fail if the forward makes a tensor without naming a device.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        with mode:
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake

    def faked(value: torch.Tensor) -> torch.Tensor:
        with mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")

    return copy.deepcopy(model, memo), *(tree_map_only(torch.Tensor, faked, given) for given in inputs)


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: dict[int, str]) -> list[Traced]:
    with _quiet(model):
        twin, names = stand_in(model, names)
        whole = OnlyTensors(twin)
        program = torch.export.export(whole, args, kwargs, strict=False)
    parameters = dict(whole.named_parameters(remove_duplicate=False))
    inputs = program.graph_signature.inputs_to_parameters
    params, buffers = {}, {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and inputs.get(node.name) in parameters:
            params[node] = names[id(parameters[inputs[node.name]])]
        elif node.op == "placeholder" and node.name in program.graph_signature.inputs_to_buffers:
            buffers[node] = whole.name(program.graph_signature.inputs_to_buffers[node.name])
    return [Traced(program.graph_module, program.graph, params, buffers)]


def compiled() -> set[int]:
    """The ids of all code objects that Dynamo has compiled so far."""
    from torch._dynamo.convert_frame import input_codes

    return {id(code) for code in (ref() for ref in input_codes.seen) if code is not None}


def forget(but: set[int]) -> None:
    """Remove all code from Dynamo's cache, except the code that an earlier :func:`compiled` returned."""
    import torch._dynamo
    from torch._dynamo.convert_frame import input_codes

    for code in [ref() for ref in input_codes.seen]:
        if code is not None and id(code) not in but:
            torch._dynamo.eval_frame.remove_from_cache(code)


def _dynamo(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: dict[int, str]) -> list[Traced]:
    graphs: list[Traced] = []
    twin, names = stand_in(model, names)

    def collect(module: fx.GraphModule, _: list[torch.Tensor]) -> Any:
        params = {}
        for node in module.graph.nodes:
            argument = node.meta.get("grapharg") if node.op == "placeholder" else None
            # The examples are read here, because Dynamo drops them when the compilation ends.
            name = names.get(id(argument.example)) if argument is not None else None
            if name is not None:
                params[node] = name
        graphs.append(Traced(module, module.graph, params))
        return module.forward

    counters, before = torch._dynamo.utils.counters, compiled()
    counted = copy.deepcopy(counters)
    try:
        with _quiet(model), torch._dynamo.config.patch(allow_rnn=True):
            torch.compile(twin, backend=collect, dynamic=False)(*args, **kwargs)
    finally:
        # Code that was compiled here belongs to the collecting backend. In Dynamo's cache this code would count as
        # recompilations and graph breaks of the user's own forward.
        forget(before)
        counters.clear()
        counters.update(counted)
    if not any(graph.params for graph in graphs):
        raise RuntimeError("Dynamo captured no graph that reads a parameter")
    return graphs


class _Tracer(fx.Tracer):
    """Traces down to functions. A module stays whole if it has no matrix, or if it branches on its input."""

    proxy_buffer_attributes = True  # otherwise the trace would increase BatchNorm's step counter

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    # While fx traces, these two methods get every module call and attribute read of the process, including calls of a
    # model that another thread trains.
    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        mine = threading.get_ident() == self.thread
        return super().call_module(m, forward, args, kwargs) if mine else forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        mine = threading.get_ident() == self.thread
        return super().getattr(attr, attr_val, parameter_proxy_cache) if mine else attr_val

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        # ``trace`` sets and restores this flag. While it is set, compiled models refuse to run, even in other threads.
        torch.fx._symbolic_trace._is_fx_tracing_flag = False
        return super().create_args_for_root(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (nn.RNNBase, nn.MultiheadAttention)):
            return True
        library = m.__module__.startswith("torch.nn") or isinstance(m, fx.GraphModule)
        return library and all(p.ndim < 2 for p in m.parameters())


def _symbolic(model: nn.Module, names: dict[int, str]) -> Capture:
    how, root = "fx symbolic tracing", model
    if isinstance(model, fx.GraphModule) and not _calls_weights(model):
        graph, how = model.graph, "the model's own graph"
    else:
        with _quiet(model):
            root, names = stand_in(model, names)
            # Optional arguments keep their defaults, because forwards branch on flags and None.
            arguments = inspect.signature(root.forward).parameters.values()
            fixed = {a.name: a.default for a in arguments if a.default is not a.empty}
            graph = _Tracer().trace(root, concrete_args=fixed or None)
    params = {}
    for node in graph.nodes:
        value = attribute(root, node.target) if node.op == "get_attr" else None
        if id(value) in names:
            params[node] = names[id(value)]
    return Capture(how, [Traced(root, graph, params)])


def _calls_weights(module: fx.GraphModule) -> bool:
    called = [module.get_submodule(str(node.target)) for node in module.graph.nodes if node.op == "call_module"]
    return any(p.ndim > 1 for part in called for p in part.parameters())


def attribute(root: nn.Module, target: Any) -> Any:
    """The attribute that a get_attr node reads, by a dotted path from `root`; None if the attribute does not exist."""
    value: Any = root
    for part in str(target).split("."):
        value = getattr(value, part, None)
    return value
