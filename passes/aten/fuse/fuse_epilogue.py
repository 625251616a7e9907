"""Bias and activation inside an ``spmm``, on the tile of its result that is in the cache or in registers.

A bias is taken where it was added by an op of its own (``addmm``'s is part of the product already). An activation is
what a few elementwise ops make of the product and of nothing else, in whatever way they are written: a graph for
Inductor has GELU in eight ops, models write it in others. Which function they are is found by computing them in
float64 at many points. Nothing else may read what lies between: where the backward of GELU or SiLU needs the product
itself, they stay apart; ReLU's needs its own result only, so it fuses in training too.

On a GPU in bfloat16 and float16 too. There PyTorch rounds after the product and after every op that runs by itself; a
fused product computes in float32 and rounds once, at the end.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.finish.choose_kernel import problem
from topkast.passes.aten.nodes import aten, emit, is_cast, named, topkast
from topkast.passes.aten.tile_layouts import SAME, matrix, tensor
from topkast.runtime.native.products import ACTIVATIONS
from topkast.runtime.planner import epilogues
from topkast.runtime.reference.products import activation
from topkast.runtime.triton.products import DTYPES

# The kernels that take bias and activation, and the dtypes in which theirs is PyTorch's arithmetic, or a finer one.
FUSING = {"native": (torch.float32,), "triton": DTYPES, "csr": DTYPES}
_LIMIT = 64  # ops after a product that are looked at; GELU is 8, its derivative 13


def _points() -> Tensor:
    dense = torch.linspace(-12, 12, 4801, dtype=torch.float64, device="cpu")
    wide = torch.logspace(-8, 6, 57, dtype=torch.float64, device="cpu")
    return torch.cat([dense, wide, -wide])


def _passes(node: fx.Node) -> bool:
    """Whether an op's values are those it reads, the rounding of a cast aside."""
    return node.target in SAME or is_cast(node)


def _is_step(node: fx.Node, made: dict[fx.Node, Tensor], dtypes: set[torch.dtype]) -> bool:
    """Whether an elementwise op has no operands but those in ``made``, and computes in one of ``dtypes``."""
    alike = _passes(node) or torch.Tag.pointwise in getattr(node.target, "tags", ())
    if not alike or not node.all_input_nodes or not all(one in made for one in node.all_input_nodes):
        return False
    return matrix(node) == matrix(node.all_input_nodes[0]) and node.meta["val"].dtype in dtypes


def _steps(product: fx.Node) -> dict[fx.Node, Tensor]:
    """The product and the ops that depend on nothing else, with what they are of the points."""
    made, dtypes = {product: _points()}, {product.meta["val"].dtype, torch.float32}
    node = product.next
    while node.op != "root" and len(made) < _LIMIT:
        if _is_step(node, made, dtypes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: made[one])
            made[node] = args[0] if _passes(node) else node.target(*args, **kwargs)  # type: ignore[assignment, operator]
        node = node.next
    return made


def _name(values: Tensor) -> str | None:
    """Which activation has these values at the points."""
    points = _points()
    for name in ACTIVATIONS[1:]:
        expected = activation(name, points)
        if bool(((values - expected).abs() <= 1e-8 * (1 + expected.abs())).all()):
            return name
    return None


class FuseEpilogue(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is topkast.spmm.default:
                dtypes: tuple[torch.dtype, ...] = FUSING.get(str(node.kwargs["impl"]), ())
                if node.meta["val"].dtype in dtypes:
                    self._activation(graph, self._bias(graph, node))

    def _bias(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        """add(view(product), bias) -> view(product with bias); returns the product."""
        last = node
        while len(last.users) == 1 and next(iter(last.users)).target in SAME:
            last = next(iter(last.users))
        add = next(iter(last.users)) if len(last.users) == 1 else node
        if add.target is not aten.add.Tensor or add.kwargs or named(node).get("bias") is not None:
            return node
        others = [one for one in add.args if one is not last]
        bias = others[0] if len(others) == 1 else None
        value, shape = tensor(bias) if isinstance(bias, fx.Node) else None, matrix(node)
        if value is None or shape is None or tuple(value.shape) != shape[1:]:
            return node
        if value.dtype != node.meta["val"].dtype:
            return node
        return self._replace(graph, node, add, "bias", bias=bias)

    def _activation(self, graph: fx.Graph, node: fx.Node) -> None:
        shape, bias = matrix(node), named(node).get("bias")
        if shape is None or node.meta["val"].dim() != 2:
            return
        if bias is not None and tuple(bias.meta["val"].shape) != shape[1:]:
            return
        made = _steps(node)
        for last, values in made.items():
            whole = last is not node and last.meta["val"].dtype == node.meta["val"].dtype
            name = _name(values) if whole else None
            if name is None:
                continue
            inside, todo = set(), [last]
            while todo:
                inside.add(one := todo.pop())
                todo += [before for before in one.all_input_nodes if before in made and before not in inside]
            if any(user not in inside for one in inside - {last} for user in one.users):
                return self.refused(f"what comes before {name} is read by other ops", node)
            if not epilogues.pays(replace(problem(node), act=name), str(node.kwargs["impl"])):
                return self.refused(f"{name} after the product is faster", node)
            self._replace(graph, node, last, name, act=name)
            return None

    def _replace(self, graph: fx.Graph, node: fx.Node, last: fx.Node, what: str, **more: object) -> fx.Node:
        """One product for what ``node`` to ``last`` compute."""
        found = {**named(node), **more}
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        count = names.index("bias") + 1
        kwargs = {name: found[name] for name in names[count:] if name in found}
        with graph.inserting_before(last):
            new = emit(graph, node.target, *(found.get(name) for name in names[:count]), like=node, **kwargs)  # type: ignore[arg-type]
            shape = list(last.meta["val"].shape)
            rows = emit(graph, aten.view.default, new, shape, like=last) if len(shape) != 2 else new
        last.replace_all_uses_with(rows)
        graph.eliminate_dead_code()
        self.matched(what)
        return new
