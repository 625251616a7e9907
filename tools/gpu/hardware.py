"""What this GPU can do: bandwidth from its memory and from its L2 cache, and products of dense matrices."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from topkast.runtime.kernels.candidates import KERNELS
from topkast.runtime.planner.cache import machine
from topkast.tools.bench.layer import random_layer

from .timing import device, seconds


def run(dry: bool, add: Callable[[dict[str, Any]], None]) -> None:
    where = device(dry)
    if not dry:
        facts = torch.cuda.get_device_properties(where)
        add({
            "name": facts.name, "capability": [facts.major, facts.minor], "bytes": facts.total_memory,
            "multiprocessors": facts.multi_processor_count, "l2": facts.L2_cache_size, "cuda": torch.version.cuda,
        })  # fmt: skip
    add({"machine": machine()})
    # Counted twice, read and written. Half of 16 MiB is a fraction of the L2 of every GPU this is meant for.
    for what, size, times in (("memory", 2**20 if dry else 2**31, 1), ("L2", 2**16 if dry else 2**23, 50)):
        one, two = (torch.empty(size, dtype=torch.uint8, device=where) for _ in range(2))

        def copies(one: Any = one, two: Any = two, times: int = times) -> None:
            for _ in range(times):
                two.copy_(one)

        taken = statistics.median(seconds([copies], where, warm=True)[0])
        add({"copy": what, "bytes": size, "terabytes a second": round(2 * size * times / taken / 1e12, 3)})
    _reads(dry, where, add)
    side = 128 if dry else 8192
    for dtype, precision in ((torch.bfloat16, "highest"), (torch.float32, "high"), (torch.float32, "highest")):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(side, side, device=where).to(dtype) for _ in range(2))
        taken = statistics.median(seconds([partial(torch.matmul, a, b)], where, repeats=5)[0])
        add({"dense": str(dtype), "precision": precision, "teraflops": round(2 * side**3 / taken / 1e12, 2)})
    # Our kernel on a full weight: what it loses to cuBLAS before anything is sparse.
    torch.set_float32_matmul_precision("highest")
    block = (16, 16) if dry else (128, 128)
    layer = random_layer((side, side, side), block, 0.0, 0.0, where).to(torch.bfloat16)
    products = KERNELS["triton"].products
    full = layer.values, layer.index, layer.geometry
    runs = {
        "spmm": lambda: products.spmm(layer.x, *full, None),
        "spmm_t": lambda: products.spmm_t(layer.dy, *full),
        "sddmm": lambda: products.sddmm(layer.dy, layer.x, *full[1:]),
    }
    for name, spent in zip(runs, seconds(list(runs.values()), where, repeats=5), strict=True):
        rate = 2 * side**3 / statistics.median(spent) / 1e12
        add({"triton on a full weight": name, "block": block, "teraflops": round(rate, 2)})


def _reads(dry: bool, where: torch.device, add: Callable[[dict[str, Any]], None]) -> None:
    """Reading alone, from L2: the products read their operands there and write little. A sum reads every byte once; its
    first pass has enough programs for a whole GPU from 8 MiB on."""
    for size in (2**16,) if dry else (2**23, 2**24):
        held = torch.ones(size // 4, device=where)

        def sums(held: torch.Tensor = held) -> None:
            for _ in range(50):
                held.sum()

        taken = statistics.median(seconds([sums], where, warm=True)[0])
        add({"read": "L2", "bytes": size, "terabytes a second": round(50 * size / taken / 1e12, 3)})
