"""Bias and activation inside an ``spmm``, on the tile of its result that is in the cache or in registers.

    before: h = spmm(x, values, ...); y = gelu(add(h, bias))
    after:  y = spmm(x, values, ..., bias, act="gelu")

A bias is fused if an op of its own adds the bias (``addmm``'s is part of the product already). An activation is a few
elementwise ops that read the product and nothing else, in whatever way they are written: a graph for Inductor has GELU
in eight ops, models write GELU in others. The pass computes the ops in float64 at many points, and so finds which
function they are. Nothing else may read the values between: the backward of GELU or SiLU needs the product itself, so
they stay apart; ReLU's needs its own result only, so ReLU fuses in training too.

On a GPU in bfloat16 and float16 too. There PyTorch rounds after the product and after every op that runs by itself; a
fused product computes in float32 and rounds once, at the end.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.finish.choose_kernel import problem
from topkast.passes.aten.functions import activation_name, points, results_of
from topkast.passes.aten.nodes import aten, emit, topkast
from topkast.passes.aten.tile_layouts import KEEPS_ORDER, matrix_shape, value_of
from topkast.passes.aten.weight_call import WeightCall
from topkast.runtime.kernels.candidates import FUSING
from topkast.runtime.planner import epilogues


class FuseEpilogue(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is topkast.spmm.default:
                dtypes = FUSING.get(str(WeightCall.of(node).options["impl"]), ())
                if node.meta["val"].dtype in dtypes:
                    self._activation(graph, self._bias(graph, node))

    def _bias(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        """add(view(product), bias) -> view(product with bias); returns the product."""
        last = node
        while len(last.users) == 1 and next(iter(last.users)).target in KEEPS_ORDER:
            last = next(iter(last.users))
        add = next(iter(last.users)) if len(last.users) == 1 else node
        if add.target is not aten.add.Tensor or add.kwargs or WeightCall.of(node).options.get("bias") is not None:
            return node
        others = [term for term in add.args if term is not last]
        bias = others[0] if len(others) == 1 else None
        value, shape = value_of(bias) if isinstance(bias, fx.Node) else None, matrix_shape(node)
        if value is None or shape is None or tuple(value.shape) != shape[1:]:
            return node
        if value.dtype != node.meta["val"].dtype:
            return node
        return self._fuse(graph, node, add, "bias", bias=bias)

    def _activation(self, graph: fx.Graph, node: fx.Node) -> None:
        shape, options = matrix_shape(node), WeightCall.of(node).options
        if shape is None or node.meta["val"].dim() != 2:
            return
        bias = options.get("bias")
        if bias is not None and tuple(bias.meta["val"].shape) != shape[1:]:
            return
        results = results_of({node: points()}, node)
        for last, values in results.items():
            is_whole = last is not node and last.meta["val"].dtype == node.meta["val"].dtype
            name = activation_name(values) if is_whole else None
            if name is None:
                continue
            inside, todo = set(), [last]
            while todo:
                inside.add(step := todo.pop())
                todo += [before for before in step.all_input_nodes if before in results and before not in inside]
            if any(user not in inside for step in inside - {last} for user in step.users):
                return self.refused(f"what comes before {name} is read by other ops", node)
            if not epilogues.pays(replace(problem(node), act=name), str(options["impl"])):
                return self.refused(f"{name} after the product is faster", node)
            self._fuse(graph, node, last, name, act=name)
            return None

    def _fuse(self, graph: fx.Graph, node: fx.Node, last: fx.Node, what: str, **options: object) -> fx.Node:
        """One product, with more options, for all ops from ``node`` to ``last``; returns the product."""
        call = WeightCall.of(node)
        with graph.inserting_before(last):
            new = replace(call, options={**call.options, **options}).write(graph, node)
            shape = list(last.meta["val"].shape)
            both_matrices = len(shape) == new.meta["val"].dim() == 2  # as wide as one another, so of one shape
            rows = new if both_matrices else emit(graph, aten.view.default, new, shape, like=last)
        self.replace(last, rows, what)
        graph.eliminate_dead_code()
        return new
