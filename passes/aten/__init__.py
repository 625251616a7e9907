"""Graph rewrites, one a file, named by a verb. The pipelines are the two lists below, read from top to bottom.

``joint`` runs on the joint forward and backward graph, before it is split; ``inference`` on any forward graph that
holds our nodes. Between capture and both, ``insert_refresh`` puts the refresh before the first op of a training graph.
"""

from __future__ import annotations

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from topkast.passes.aten.finish.choose_kernel import ChooseKernel
from topkast.passes.aten.finish.explain_unfused import ExplainUnfused
from topkast.passes.aten.finish.keep_transposed import KeepTransposed
from topkast.passes.aten.finish.recompute_weight import RecomputeWeight
from topkast.passes.aten.fuse.fuse_convolution import FuseConvolution
from topkast.passes.aten.fuse.fuse_epilogue import FuseEpilogue
from topkast.passes.aten.fuse.fuse_grouped import FuseGrouped
from topkast.passes.aten.fuse.fuse_matmul import FuseMatmul
from topkast.passes.aten.prepare.fold_batch import FoldBatch
from topkast.passes.aten.prepare.order_dims import OrderDims
from topkast.passes.aten.prepare.sink_casts import SinkCasts
from topkast.passes.aten.prepare.spell_bilinear import SpellBilinear
from topkast.passes.aten.prepare.split_joined import SplitJoined
from topkast.passes.aten.prepare.split_rows import SplitRows
from topkast.runtime.planner import plan as planner

from .base import LOG, Pass, run, summary

JOINT: list[type[Pass]] = [
    SpellBilinear,
    SinkCasts,
    SplitRows,
    SplitJoined,
    FoldBatch,
    OrderDims,
    FuseMatmul,
    FuseGrouped,
    FuseConvolution,
    ExplainUnfused,
    RecomputeWeight,
    ChooseKernel,
    FuseEpilogue,
    KeepTransposed,
]
INFERENCE: list[type[Pass]] = [one for one in JOINT if one is not RecomputeWeight]


def joint(graph: fx.Graph) -> None:
    """Rewrite a joint (or, in a compiled graph without gradients, forward) ATen graph in place."""
    run(JOINT, graph)


def inference(module: fx.GraphModule) -> fx.GraphModule:
    """Rewrite a forward ATen graph in place, and return its module."""
    run(INFERENCE, module.graph)
    module.recompile()
    return module


class JointPass(CustomGraphPass):
    """The joint pipeline in Inductor's place for it; its uuid changes with our source, so caches never go stale."""

    def __call__(self, graph: fx.Graph) -> None:
        joint(graph)

    def uuid(self) -> bytes:
        from pathlib import Path

        root = Path(__file__).parents[2]
        files = [path for room in ("passes", "runtime") for path in (root / room).rglob("*.py")]
        files = sorted([*files, *(root / "runtime").rglob("*.json")])
        # Which kernels were chosen stands in the graph: another machine, setting or thread count chooses again.
        chosen = [torch.__version__, planner.machine(), planner.setting(), str(torch.get_num_threads())]
        return get_hash_for_files(tuple(map(str, files)), " ".join(chosen))


__all__ = ["INFERENCE", "JOINT", "LOG", "JointPass", "inference", "joint", "summary"]
