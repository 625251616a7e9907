"""Run one script in this process and print what it cost as a line of JSON: ``python -m ... bert sparse inductor``."""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

import topkast
from topkast.runtime.planner import cache

from .scripts import SCRIPTS

SIDES = ("eager", "dense", "sparse")


def run(script: str, side: str, backend: str) -> dict[str, Any]:
    """Run a script.

    Args:
        script: a key of :data:`SCRIPTS`.
        side: a member of :data:`SIDES`; "dense" is plain ``torch.compile``, "eager" the model as it is.
        backend: "inductor" or "aot_eager".

    Returns:
        After each step the seconds, the CPU seconds, and the number of graphs that Dynamo compiled; and the number of
        problems that the planner has times for.
    """

    def prepare(model: nn.Module) -> nn.Module:
        if side == "sparse":
            return topkast.compile(model, 0.9, 0.8, backend=backend)
        if side == "dense":
            model.compile(backend=backend)
        return model

    torch.manual_seed(0)
    counters.clear()
    start, cpu, steps = time.perf_counter(), cpu_seconds(), []
    for says in SCRIPTS[script](prepare):
        spent = {"seconds": time.perf_counter() - start, "cpu seconds": cpu_seconds() - cpu}
        steps.append({"step": says, **spent, "graphs": counters["stats"]["unique_graphs"]})
    return {"steps": steps, "measured": len(cache.entries())}


def cpu_seconds() -> float:
    """CPU seconds of this process, and of the compilers that it started and that have ended."""
    used = (resource.getrusage(part) for part in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:])))
