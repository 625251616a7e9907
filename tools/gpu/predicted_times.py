"""Estimate the time of the three products and of whole steps on a GPU from what the compiler says of the kernels.

    python -m topkast.tools.gpu.predict              compiles for sm_90, prints the tables, writes gpu-estimates.json

Nothing here was measured on a GPU by topkast. A program (CTA) of a kernel reads the bytes of its loop from the L2
cache, while the tensor cores work on the turn before. The longer of the two is the time of a turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

PRODUCTS = ("spmm", "spmm_t", "sddmm")
FIXED = 2e-6  # seconds of a program outside its loop: start, the first reads, the last writes; reckoned
LAUNCH = 2.5e-6  # seconds of the GPU that a small kernel takes at least; reckoned
HALF, FLOAT = 2, 4  # bytes


@dataclass(frozen=True)
class Machine:
    """The rates of a GPU. ``cache`` is a range: no figure for reads from L2 was measured.

    Args:
        dense: FLOP/s of a large bfloat16 product of dense matrices.
        memory: bytes a second from memory.
        cache: bytes a second from L2 to all multiprocessors, low and high.
        port: bytes a second from L2 to one multiprocessor, at most.
        mma: share of ``dense`` that a kernel reaches with mma instead of wgmma.
    """

    name: str
    dense: float
    memory: float
    cache: tuple[float, float] = (5.5e12, 7.5e12)
    multiprocessors: int = 132
    shared: int = 227 * 1024
    port: float = 64 * 1.755e9
    mma: float = 0.62


MACHINES = {
    "H200": Machine("H200", 790e12, 4.3e12),  # both measured
    "H100": Machine("H100", 790e12, 3.35e12 * 4.3 / 4.8),  # the same chip; the share of its memory's 3.35 TB/s as there
}


class Shape(NamedTuple):
    """A layer: rows of activations, its inputs and outputs."""

    m: int
    k: int
    n: int


def programs(product: str, side: int, shape: Shape, fwd: float, bwd: float, facts: dict[str, Any]) -> tuple[int, float]:
    """How many programs a product has, and the turns of the loop in each.

    A turn does 2 * side * tile * depth operations: side and ``facts`` give the tile and the depth.
    """
    tile, depth = facts["tile"], facts["depth"]
    if product == "sddmm":
        return shape.n // side * math.ceil(shape.k * (1 - bwd) / tile), shape.m / depth
    outputs, contracted = (shape.k, shape.n) if product == "spmm_t" else (shape.n, shape.k)
    return math.ceil(shape.m / tile) * math.ceil(outputs / side), contracted * (1 - fwd) / depth


def product(
    name: str, side: int, shape: Shape, fwd: float, bwd: float, facts: dict[str, Any], gpu: Machine, cache: float
) -> float:
    """Seconds of one product.

    Args:
        name: one of :data:`PRODUCTS`.
        facts: of the compiled kernel, as :func:`topkast.tools.gpu.compiled.facts` gives them, with tile and depth.
        cache: bytes a second from L2.
    """
    count, turns = programs(name, side, shape, fwd, bwd, facts)
    # Registers are handed out to warps in units of 8 a thread.
    registers = 65536 // (-(-facts["registers"] // 8) * 8 * facts["threads"])
    together = max(1, min(registers, gpu.shared // (facts["shared"] + 1024), 2048 // facts["threads"]))
    rate = gpu.dense / gpu.multiprocessors * (1.0 if facts["wgmma"] else gpu.mma)

    def wave(running: int) -> float:
        here = math.ceil(running / gpu.multiprocessors)  # programs on the fullest multiprocessor
        width = min(gpu.port, cache / min(running, gpu.multiprocessors))
        loop = facts["loop"]
        return FIXED + turns * here * max(loop["operations"] / rate, loop["bytes"] / width)

    full, rest = divmod(count, together * gpu.multiprocessors)
    taken = full * wave(together * gpu.multiprocessors) + (wave(rest) if rest else 0.0)
    return max(taken, traffic(name, shape, fwd, bwd) / gpu.memory) + extra(name, shape, bwd, gpu)


def traffic(name: str, shape: Shape, fwd: float, bwd: float) -> float:
    """Bytes of memory a product reads and writes at least."""
    kept = shape.n * shape.k * ((1 - bwd) if name == "sddmm" else (1 - fwd))
    return HALF * (shape.m * (shape.k + shape.n) + kept)


def extra(name: str, shape: Shape, bwd: float, gpu: Machine) -> float:
    """Seconds of the small kernels beside a product: spmm casts B's values to bfloat16; spmm_t makes its index; sddmm
    fills its result with zeros and casts it to float32."""
    values = shape.n * shape.k * (1 - bwd)
    launches, moved = {"spmm": (1, 6 * values), "spmm_t": (1, 0.0), "sddmm": (2, 8 * values)}[name]
    return launches * LAUNCH + moved / gpu.memory


def dense(shape: Shape, gpu: Machine) -> float:
    """Seconds of a dense product by cuBLAS: tiles of 128 x 256, one for a multiprocessor at a time, or memory."""
    tiles = math.ceil(shape.m / 128) * math.ceil(shape.n / 256)
    waves = tiles / gpu.multiprocessors
    # A large product hides its last wave: with 64 waves or more nothing is lost.
    idle = math.ceil(waves) / waves if waves < 8 else 1.0
    moved = HALF * (shape.m * (shape.k + shape.n) + shape.k * shape.n)
    return max(2 * shape.m * shape.k * shape.n / gpu.dense * idle, moved / gpu.memory) + LAUNCH


def layer(
    side: int, shape: Shape, found: dict[str, Any], gpu: Machine, fwd: float = 0.9, bwd: float = 0.8
) -> dict[str, list[float]]:
    """Product, and "step", -> time over the dense one, with the fast and the slow L2."""
    sums, result = [0.0, 0.0], {}
    plain = dense(shape, gpu)
    for name in PRODUCTS:
        facts = found[f"{name} {side}"]
        both = [product(name, side, shape, fwd, bwd, facts, gpu, cache) for cache in reversed(gpu.cache)]
        result[name] = [one / plain for one in both]
        sums = [a + b for a, b in zip(sums, both, strict=True)]
    return result | {"step": [one / (3 * plain) for one in sums]}
