"""Trace a recurrent layer as one operator instead of as a copy of its cell for each step.

torch decomposes ``lstm``, ``gru`` and ``rnn`` for its compilers in Python, layer by layer, and unrolls each layer over
its sequence: the graph of 35 steps has 35 products forward and 70 backward, takes a minute to compile, and serves one
length only. Here the function of one layer is replaced while a graph is traced.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import decompositions

from topkast.runtime.ops import recurrence as _operators  # noqa: F401  (defines torch.ops.topkast.recurrence)
from topkast.runtime.state.site_module import SiteModule


def mostly_recurrent(module: nn.Module) -> bool:
    """Whether most sparse weights of a module belong to recurrent layers.

    Then generated code has little to do, because the products and the loop are operators, and sequences usually differ
    in length: the module is compiled once for all shapes, without Inductor. Plain ``torch.compile`` leaves recurrent
    layers to Python altogether.
    """
    parts = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
    own = {id(site): site for part in parts for site in part.modules() if isinstance(site, SiteModule)}
    every = [site for site in module.modules() if isinstance(site, SiteModule)]
    return 2 * sum(site.geometry.numel for site in own.values()) > sum(site.geometry.numel for site in every)


@contextlib.contextmanager
def as_one_operator() -> Iterator[None]:
    """Inside the ``with``, a recurrent layer is traced as ``topkast::recurrence``. A version of torch that decomposes
    in another way keeps its own."""
    with _lock:
        if not _inside:
            _usual.update((name, getattr(decompositions, name)) for name in _LAYERS if hasattr(decompositions, name))
            for name, function in _usual.items():
                setattr(decompositions, name, _LAYERS[name](function))
        _inside.append(None)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                for name, function in _usual.items():
                    setattr(decompositions, name, function)


# The change affects the whole process: the first thread makes it, and the last thread reverts it.
_lock = threading.Lock()
_inside, _usual = list[None](), dict[str, Any]()


def _one_layer_lstm(usual: Callable[..., Any]) -> Callable[..., Any]:
    def layer(inp: Tensor, hidden: Any, params: Any, has_biases: bool, reverse: bool = False) -> Any:
        h, c = hidden
        if len(params) in (3, 5) or not _of_one_dtype(inp, h, c, *params):  # a projection of the hidden state; autocast
            return usual(inp, hidden, params, has_biases, reverse=reverse)
        out, c = _run("lstm", inp, h, c, params, has_biases, reverse)
        return out, (out[0 if reverse else -1], c)

    return layer


def _one_layer_rnn(usual: Callable[..., Any]) -> Callable[..., Any]:
    def layer(inp: Tensor, hidden: Tensor, params: Any, has_biases: bool, hidden_fn: Any, reverse: bool = False) -> Any:
        cell = _cell(hidden_fn)
        if cell is None or not _of_one_dtype(inp, hidden, *params):
            return usual(inp, hidden, params, has_biases, hidden_fn, reverse=reverse)
        out, _ = _run(cell, inp, hidden, hidden.new_empty(0), params, has_biases, reverse)
        return out, out[0 if reverse else -1]

    return layer


def _run(
    cell: str, inp: Tensor, h: Tensor, c: Tensor, params: Any, has_biases: bool, reverse: bool
) -> tuple[Tensor, Tensor]:
    into, weight, *biases = params
    of_input, of_hidden = biases if has_biases else (None, None)
    gates = F.linear(inp, into, of_input)
    out, c, _ = torch.ops.topkast.recurrence(gates.flip(0) if reverse else gates, h, c, weight, of_hidden, cell)
    return out.flip(0) if reverse else out, c


def _of_one_dtype(*tensors: Tensor) -> bool:
    """Whether eager mode would compute every step in the dtype of its operands."""
    device = tensors[0].device.type
    return len({tensor.dtype for tensor in tensors}) == 1 and not torch.is_autocast_enabled(device)


def _cell(function: Any) -> str | None:
    """The name of the cell that a function of torch computes; None for another function."""
    if function is decompositions.gru_cell:
        return "gru"
    nonlinearity: Any = inspect.getclosurevars(function).nonlocals.get("nonlinearity")
    return {torch.tanh: "tanh", torch.relu: "relu"}.get(nonlinearity)


_LAYERS = {"one_layer_lstm": _one_layer_lstm, "one_layer_rnn": _one_layer_rnn}
