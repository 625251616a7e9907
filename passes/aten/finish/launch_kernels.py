"""Let Inductor launch the Triton kernels itself.

before: y = spmm(x, values, ..., impl="triton")
after:  y = triton_kernel_wrapper_functional(spmm_kernel, x, values, ..., y=empty(...))["y"]

An operator of ours takes 50 to 130 µs of the host's time, most of it in Python; the code that Inductor generates for a
launch takes a few. The operators are opaque until here, so that all other passes see one node for a product.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx
from torch._higher_order_ops.triton_kernel_wrap import (
    get_mutated_tensors,
    triton_kernel_wrapper_functional,
    triton_kernel_wrapper_mutation,
)

from topkast.passes.aten.base import Pass
from topkast.passes.aten.log import PassLog
from topkast.passes.aten.nodes import emit, is_static, lasting_meta, topkast
from topkast.passes.aten.weight_call import WeightCall
from topkast.runtime.kernels.traced import trace, traceable
from topkast.runtime.kernels.turned import TAKING
from topkast.runtime.layout import Index

# Operator -> the name of the product, and the product as reports name it.
PRODUCTS = {
    topkast.spmm.default: ("spmm", "forward"),
    topkast.spmm_t.default: ("spmm_t", "input gradient"),
    topkast.sddmm.default: ("sddmm", "weight gradient"),
}


class LaunchKernels(Pass):
    """Without operators, nothing in Python notices that a product ran. So the log gets what is launched, see
    :mod:`topkast.passes.dynamo.count_launches`.

    Args:
        log: its ``launched`` is written.
        keys: positions of the keys, among the graph's inputs, of the sites whose products may be launched.
    """

    def __init__(self, log: PassLog, keys: frozenset[int]) -> None:
        super().__init__()
        self.log, self.keys = log, keys

    def rewrite(self, graph: fx.Graph) -> None:
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        for node in list(graph.nodes):
            if node.target not in PRODUCTS:
                continue
            product, name = PRODUCTS[node.target]
            call, kernel = WeightCall.of(node), str(node.kwargs.get("impl"))
            if not traceable(kernel, node.meta["val"]):
                continue
            if not all(map(is_static, node.all_input_nodes)):
                self.refusals["sizes that change"] += 1  # a launch's grid and tiles follow from the sizes
                continue
            position = inputs.index(call.key) if call.key in inputs else -1
            if position not in self.keys:
                self.refusals["a key that is no input of the graph"] += 1
                continue
            with graph.inserting_before(node):
                new = _launches(graph, node, call, kernel, product)
            self.log.launched[position, name, kernel] += 1
            self.replace(node, new, kernel)


def _launches(graph: fx.Graph, node: fx.Node, call: WeightCall, kernel: str, product: str) -> fx.Node:
    """Insert the nodes that compute a product; the node of its result."""
    options = call.options
    given = [*call.operands.values(), *([] if call.values is None else [call.values]), *call.index]
    act = options.get("act", "")
    extra = options.get("bias" if product == "spmm" else "turned")
    if extra is not None and product == "spmm_t" and kernel not in TAKING:
        extra = None
    inputs = [*given, *([] if extra is None else [extra])]

    def arguments(*tensors: Any) -> tuple[Any, ...]:
        before = len(given) - 3
        taken = (*tensors[:before], Index(*tensors[before : before + 3]), call.geometry)
        more = None if extra is None else tensors[-1]
        if product == "spmm":
            return *taken, more, *(((), act) if act else ())  # only kernels that fuse an activation have this argument
        return taken if extra is None else (*taken, (), more)

    fakes = [one.meta["val"] for one in inputs]
    traced = trace(kernel, product, fakes[0].fake_mode, arguments, fakes)
    return _inserted(graph, traced, dict(zip(traced.find_nodes(op="placeholder"), inputs, strict=True)), node)


def _inserted(graph: fx.Graph, traced: fx.Graph, known: dict[fx.Node, fx.Node], like: fx.Node) -> fx.Node:
    """Copy the nodes of ``traced``. A launch that writes to tensors becomes one that returns what it wrote."""
    for node in traced.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            return known[node.args[0]]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: known[one])
        if node.target is not triton_kernel_wrapper_mutation:
            known[node] = emit(graph, node.target, *args, like=like, **kwargs)
            continue
        fakes = fx.map_arg(kwargs["kwargs"], lambda one: one.meta["val"])
        written = get_mutated_tensors(kwargs["kernel_idx"], kwargs["constant_args_idx"], fakes, {})
        launch = emit(graph, triton_kernel_wrapper_functional, like=like, **kwargs, tensors_to_clone=written)
        for name in written:
            result = graph.call_function(operator.getitem, (launch, name))
            result.meta = {**lasting_meta(like), "val": launch.meta["val"][name]}
            old = node.kwargs["kwargs"][name]
            known.update({key: result for key, value in known.items() if value is known[old]})
    raise AssertionError("a graph without an output")
