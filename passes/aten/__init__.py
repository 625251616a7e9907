"""Graph rewrites, one a file, named by a verb. The pipelines are the two lists below, read from top to bottom.

``joint`` runs on the joint forward and backward graph, before it is split; ``inference`` on any forward graph that
holds our nodes. Between capture and both, ``insert_refresh`` puts the refresh before the first op of a training graph.
"""

from __future__ import annotations

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from topkast.runtime import epilogues, planner, tiles

from .base import LOG, Pass, run, summary
from .choose_kernel import ChooseKernel
from .explain_unfused import ExplainUnfused
from .fold_batch import FoldBatch
from .fuse_convolution import FuseConvolution
from .fuse_epilogue import FuseEpilogue
from .fuse_grouped import FuseGrouped
from .fuse_matmul import FuseMatmul
from .keep_transposed import KeepTransposed
from .order_dims import OrderDims
from .recompute_weight import RecomputeWeight
from .sink_casts import SinkCasts
from .spell_bilinear import SpellBilinear
from .split_joined import SplitJoined
from .split_rows import SplitRows

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

        here = Path(__file__).parent
        runtime = here.parent / "runtime"
        folders = [here, runtime, runtime / "native", runtime / "triton"]
        files = sorted([path for folder in folders for path in folder.glob("*.py")])
        files += (runtime / "triton").glob("*.json")
        # Which kernels were chosen stands in the graph: another machine, setting or thread count chooses again.
        settings = planner.setting(), tiles.setting(), epilogues.setting()
        chosen = [torch.__version__, planner.machine(), *settings, str(torch.get_num_threads())]
        return get_hash_for_files(tuple(map(str, files)), " ".join(chosen))


__all__ = ["INFERENCE", "JOINT", "LOG", "JointPass", "inference", "joint", "summary"]
