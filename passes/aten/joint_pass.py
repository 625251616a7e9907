"""The joint pipeline as Inductor calls it. A file of its own, because importing Inductor takes long."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from topkast.runtime.planner import cache
from topkast.runtime.planner.plan import setting

from . import joint
from .base import run
from .finish.launch_kernels import LaunchKernels
from .log import PassLog


class JointPass(CustomGraphPass):
    """The joint pipeline in Inductor's place for such passes; its uuid changes with our source, so no cache goes stale.

    Args:
        log: gets what the passes did.
        keys: positions, among the graph's inputs, of the keys of sites whose products Inductor may launch. Empty for a
            graph with a site that looks at dense gradients, because only an operator sees these.
    """

    def __init__(self, log: PassLog, keys: Iterable[int] = ()) -> None:
        self.log, self.keys = log, frozenset(keys)

    def __call__(self, graph: fx.Graph) -> None:
        joint(graph, self.log)
        if self.keys:
            run([lambda: LaunchKernels(self.log, self.keys)], graph, self.log)

    def uuid(self) -> bytes:
        from pathlib import Path

        root = Path(__file__).parents[2]
        files = [path for room in ("passes", "runtime") for path in (root / room).rglob("*.py")]
        files = sorted([*files, *(root / "runtime").rglob("*.json")])
        # The chosen kernels stand in the graph: another machine, setting, thread count or checkpoint chooses again,
        # and so does a process after the times were cleared.
        times = [cache.loaded(), cache.generation()]
        chosen = [torch.__version__, cache.machine(), setting(), str(torch.get_num_threads()), *times]
        chosen.append(str(bool(self.keys)))  # whether Inductor launches our kernels
        return get_hash_for_files(tuple(map(str, files)), " ".join(chosen))
