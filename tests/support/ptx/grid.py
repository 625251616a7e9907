"""Run all programs of a launch, one after the other. Which runs first must not matter: see ``Global.store``."""

from __future__ import annotations

import itertools

import numpy as np

from . import Fault, arithmetic, matrices, moves
from .lanes import Lanes
from .memories import Array, Global
from .text import parse

STEPS = {**arithmetic.STEPS, **moves.STEPS, **matrices.STEPS}
TOGETHER = ("bar", "barrier", "ret", "cp", "wgmma", "mma", "ldmatrix", "stmatrix", "shfl", "redux")


def launch(
    ptx: str, arguments: list[int], grid: tuple[int, int, int], threads: int, shared: int, memory: Global
) -> int:
    """Run a kernel on memory; how many instructions ran."""
    program, count = parse(ptx), 0
    for z, y, x in itertools.product(*map(range, reversed(grid))):
        cta = Lanes(program, memory, arguments, (x, y, z), grid, threads, shared)
        with np.errstate(all="ignore"):
            count += _run(cta)
    return count


def _run(cta: Lanes) -> int:
    program, at, count = cta.program, 0, 0
    apart: Array | None = None  # while a branch divides the threads: where each is; the hindmost go first
    while at < len(program.instructions):
        step, mask = program.instructions[at], None
        at, count = at + 1, count + 1
        if step.guard:
            mask = cta.get(step.guard[0], "p", 1) ^ step.guard[1]
        if apart is not None:
            here = apart == at - 1
            mask = here if mask is None else mask & here
            apart = np.where(here, at, apart)
            if step.op[0] in TOGETHER:
                raise Fault(f"{program.name}: the threads are apart at {step.text}")
        if step.op[0] == "bra":
            target = program.labels[step.args[-1]]
            if mask is None or mask.all():
                at = target
            elif mask.any():
                apart = np.where(mask, target, at if apart is None else apart)
        elif step.op[0] == "ret":
            if mask is None or mask.all():
                break
            if mask.any():
                raise Fault(f"{program.name}: some threads return")
        elif mask is None or mask.any() or step.op[0] in ("cp", "bar"):
            try:
                STEPS[step.op[0]](cta, step, mask)
            except Exception as error:
                raise Fault(f"{program.name}, program {cta.place}: {step.text[:120]}: {error!r}") from error
        if apart is not None:
            at = int(apart.min())
            if (apart == at).all():
                apart = None
    if cta.copies != [[]] and any(cta.copies):
        raise Fault(f"{program.name}: a copy was never waited for")
    return count
