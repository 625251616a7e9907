"""Activations and their gradients inside products in bfloat16, on the part of a result that is in the cache.

    before: h = spmm(x, ..., impl="bf16"); y = h/2 * (1 + erf(h / sqrt(2)))
            dh = spmm_t(dz, ..., impl="bf16") * (13 ops on h)
    after:  h, y = spmm_activate(x, ..., "gelu")
            dh = spmm_t_activate_grad(dz, h, ..., "gelu")

Inductor computes them in a loop each over all of memory, with an erf or tanh for float32; results of 8 bits need less.
In a step of two layers, 1024 to 4096 and back on 2048 rows, GELU and its gradient take 26 of 113 ms; here they add 6 to
the products. Unlike in :mod:`.fuse_epilogue`, other ops may read what lies between: the backward reads the product
itself. If other ops, like dropout, stand between the gradient and a product, the gradient alone becomes an operator,
``activate_grad``.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.functions import activation_name, is_same, keeps_values, points, results_of
from topkast.passes.aten.nodes import aten, emit, topkast
from topkast.passes.aten.tile_layouts import KEEPS_ORDER, matrix_shape
from topkast.passes.aten.weight_call import WeightCall
from topkast.runtime.kernels.activations import KERNEL, SMOOTH
from topkast.runtime.reference.products import activation_grad

_LEAST = 1 << 16  # numbers: fewer take Inductor less than a tenth of a millisecond


class FuseActivation(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if not _is_product(node, topkast.spmm.default) or not _has_plain_bias(node):
                continue
            results = results_of({node: points()}, node)
            for last, values in results.items():
                name = activation_name(values) if _is_like(last, node) else None
                if name in SMOOTH:
                    self._gradients(graph, node, results, name)
                    self._activation(graph, node, last, name)
                    break

    def _activation(self, graph: fx.Graph, node: fx.Node, last: fx.Node, name: str) -> None:
        """Let a product give the activation that ``last`` computes of its result."""
        call = WeightCall.of(node)
        with graph.inserting_before(node):
            args = (*call.operands.values(), *call.args, call.options.get("bias"), name)
            both = emit(graph, topkast.spmm_activate.default, *args, like=node)
            plain, activated = (emit(graph, operator.getitem, both, at, like=node) for at in (0, 1))
            activated = emit(graph, aten.view.default, activated, list(last.meta["val"].shape), like=last)
        self.replace(last, activated, name)
        node.replace_all_uses_with(plain)
        graph.erase_node(node)

    def _gradients(self, graph: fx.Graph, node: fx.Node, results: dict[fx.Node, Tensor], name: str) -> None:
        """Let the product before a gradient of the activation compute the gradient too; if there is no such product, an
        operator of its own."""
        given = torch.randn(len(points()), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected = activation_grad(name, given, points())
        for dy in _partners(results):
            both = results_of({**results, dy: given}, dy)
            for last, values in both.items():
                if last is not dy and last not in results and _is_like(last, node) and is_same(values, expected):
                    self._gradient(graph, node, dy, last, name, _only_leads_to(last, dy, both))
                    break

    def _gradient(self, graph: fx.Graph, node: fx.Node, dy: fx.Node, last: fx.Node, name: str, is_alone: bool) -> None:
        product = dy
        while is_alone and product.target in KEEPS_ORDER and len(product.all_input_nodes[0].users) == 1:
            product = product.all_input_nodes[0]
        with graph.inserting_before(last):
            if is_alone and _is_product(product, topkast.spmm_t.default):
                call = WeightCall.of(product)
                args = (*call.operands.values(), node, *call.args, name)
                new = emit(graph, topkast.spmm_t_activate_grad.default, *args, like=last)
            else:
                rows = emit(graph, aten.view.default, dy, list(node.meta["val"].shape), like=dy)
                new = emit(graph, topkast.activate_grad.default, rows, node, name, like=last)
            new = emit(graph, aten.view.default, new, list(last.meta["val"].shape), like=last)
        self.replace(last, new, f"gradient of {name}")


def _is_product(node: fx.Node, target: object) -> bool:
    """Whether a node is a product that can compute activations, of numbers enough."""
    shape = matrix_shape(node) if node.target is target else None
    if shape is None or node.meta["val"].dim() != 2 or shape[0] * shape[1] < _LEAST:
        return False
    return WeightCall.of(node).options.get("impl") == KERNEL


def _has_plain_bias(node: fx.Node) -> bool:
    """Whether a product has no bias, or one number for each column."""
    bias = WeightCall.of(node).options.get("bias")
    return bias is None or tuple(bias.meta["val"].shape) == tuple(node.meta["val"].shape[1:])


def _is_like(node: fx.Node, product: fx.Node) -> bool:
    """Whether a value has the dtype and the rows and columns of a product."""
    return node.meta["val"].dtype == product.meta["val"].dtype and matrix_shape(node) == matrix_shape(product)


def _only_leads_to(last: fx.Node, dy: fx.Node, results: dict[fx.Node, Tensor]) -> bool:
    """Whether all that reads ``dy`` serves ``last`` alone."""
    inside, todo = {last}, [last]
    while todo:
        for before in todo.pop().all_input_nodes:
            if before in results and before not in inside:
                inside.add(before)
                todo.append(before)
    readers, found = [dy], {dy}
    while readers:
        for user in readers.pop().users:
            if user not in inside:
                return False
            if user is not last and user not in found:
                found.add(user)
                readers.append(user)
    return True


def _is_pointwise(node: fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _partners(results: dict[fx.Node, Tensor]) -> list[fx.Node]:
    """Values like the product, the first of ``results``, that elementwise ops combine with functions of the product."""
    product, found = next(iter(results)), dict[fx.Node, None]()
    for node in results:
        for user in node.users:
            if user in results or not _is_pointwise(user):
                continue
            for other in user.all_input_nodes:
                # Back through casts, and through ops on this value alone, like a division by 2 at the function's end.
                while other not in results and (_is_like(other, product) or keeps_values(other)):
                    if _is_like(other, product):
                        found[other] = None
                    before = other.all_input_nodes
                    if len(before) != 1 or not (keeps_values(other) or _is_pointwise(other)):
                        break
                    other = before[0]
    return list(found)
