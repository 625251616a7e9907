"""Graph rewrites on AOTAutograd's ATen graphs, one a file, named by a verb.

``JOINT`` and ``INFERENCE`` are the pipelines, read from top to bottom. ``joint`` runs on the joint forward and backward
graph, before the graph is split; ``inference`` on any forward graph that holds our nodes. Both write a ``PassLog``.
"""

from __future__ import annotations

from torch import fx

from topkast.passes.aten.finish.choose_kernel import ChooseKernel, problems
from topkast.passes.aten.finish.explain_unfused import ExplainUnfused
from topkast.passes.aten.finish.keep_sums import KeepSums
from topkast.passes.aten.finish.keep_transposed import KeepTransposed
from topkast.passes.aten.finish.recompute_weight import RecomputeWeight
from topkast.passes.aten.finish.split_sums import SplitSums
from topkast.passes.aten.fuse.fuse_activation import FuseActivation
from topkast.passes.aten.fuse.fuse_convolution import FuseConvolution
from topkast.passes.aten.fuse.fuse_epilogue import FuseEpilogue
from topkast.passes.aten.fuse.fuse_grouped import FuseGrouped
from topkast.passes.aten.fuse.fuse_matmul import FuseMatmul
from topkast.passes.aten.fuse.fuse_recurrent import FuseRecurrent
from topkast.passes.aten.prepare.fold_batch import FoldBatch
from topkast.passes.aten.prepare.order_dims import OrderDims
from topkast.passes.aten.prepare.sink_casts import SinkCasts
from topkast.passes.aten.prepare.spell_bilinear import SpellBilinear
from topkast.passes.aten.prepare.split_joined import SplitJoined
from topkast.passes.aten.prepare.split_rows import SplitRows
from topkast.runtime.planner.plan import Problem

from .base import Pass, run
from .log import PassLog, summary

JOINT: list[type[Pass]] = [
    # Prepare: bring each product with a weight into a form that the second part fuses.
    SpellBilinear,  # first, because the passes below look at the matrix products that it writes
    SinkCasts,  # before all that follow a weight through moves, because a cast is no move and would hide the weight
    SplitRows,  # after SinkCasts, because a sum of gradients of pieces can be joined only term by term
    SplitJoined,  # after SplitRows, because a joined matrix may be a piece of a weight, and SplitRows makes it a weight
    FoldBatch,  # before OrderDims, because OrderDims reads single products, and FoldBatch makes a single one of a sum
    OrderDims,  # last of its part, because it orders the products as the passes above leave them
    # Fuse: make dense products sparse. The four look at different operators; their order does not matter.
    FuseMatmul,  # after OrderDims, because it needs the dimensions of a weight in their own order
    FuseRecurrent,  # after SinkCasts, because a cast would hide the weight
    FuseGrouped,  # after SinkCasts, because a cast would hide the stacked weights
    FuseConvolution,  # after SinkCasts and SplitRows, because a convolution's weight may be cast or cut
    # Finish: decide how the sparse products run, and what happens to the weights that stay dense.
    ExplainUnfused,  # after all that fuse products, because a weight that is still read now stays dense
    RecomputeWeight,  # after all that fuse products, because only the weights that stay dense are made again
    ChooseKernel,  # after all that fuse products, because each sparse product gets its kernel here
    KeepSums,  # after ChooseKernel, because only some kernels sum in float32
    FuseEpilogue,  # after ChooseKernel, because only some kernels take a bias and an activation
    FuseActivation,  # after FuseEpilogue, because an activation inside a product is better than one after it
    KeepTransposed,  # after both, because only native products take tiles, and a fused activation is no value
    SplitSums,  # last, because KeepTransposed writes the sums that read tiles
]
# Without RecomputeWeight, because nothing is kept for a backward.
INFERENCE: list[type[Pass]] = [rule for rule in JOINT if rule is not RecomputeWeight]


def joint(graph: fx.Graph, log: PassLog) -> None:
    """Rewrite a joint (or, in a compiled graph without gradients, forward) ATen graph in place."""
    run(JOINT, graph, log)


def products(graph: fx.Graph) -> list[tuple[Problem, int, fx.Node]]:
    """The sparse products of a joint or forward graph, how often each runs in a call of the graph, and the placeholder
    of its site's key.

    The graph is rewritten as far as its products, which nobody must run: they have no kernels.
    """
    run(JOINT[: JOINT.index(ChooseKernel)], graph, PassLog())
    return problems(graph)


def inference(module: fx.GraphModule, log: PassLog | None = None) -> fx.GraphModule:
    """Rewrite a forward ATen graph in place, and return its module.

    Args:
        module: the graph's module, compiled again afterwards.
        log: gets what the passes did; None if nobody reads that.
    """
    run(INFERENCE, module.graph, PassLog() if log is None else log)
    module.recompile()
    return module


__all__ = ["INFERENCE", "JOINT", "PassLog", "inference", "joint", "products", "summary"]
