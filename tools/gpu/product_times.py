"""Tables 1 and 4: the products of one layer, of a training step and of inference on few rows; and single weights.

Each beside the dense products (cuBLAS, which torch.compile calls for them too), the masked dense ones, and what PyTorch
itself has for blocks, ``torch.sparse._triton_ops.bsr_dense_addmm``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from topkast.runtime.layout import index_masks
from topkast.runtime.reference.products import REFERENCE
from topkast.runtime.triton import products as BLOCKS
from topkast.runtime.triton.transient import TRANSIENT
from topkast.tools.bench.layer import Layer, random_layer
from topkast.tools.common.pairs import bound

from .timing import device, micros, ratio, seconds

Add = Callable[[dict[str, Any]], None]
Parts = list[Callable[[], Any]]

NAMES = ("forward", "input gradient", "weight gradient")
SPARSITIES = [(0.9, 0.8), (0.8, 0.5), (0.95, 0.9)]


def run_products(dry: bool, add: Add) -> None:
    """Three products of a training step, in bfloat16."""
    sides, m = ([64], 32) if dry else ([4096, 8192], 8192)
    blocks = [(16, 16), (1, 1)] if dry else [(128, 128), (64, 64), (32, 32), (1, 1)]
    for side, (fwd, bwd), block in itertools.product(sides, SPARSITIES, blocks):
        if block == (1, 1) and (fwd, bwd) != SPARSITIES[0]:
            continue  # dense arithmetic: the sparsity hardly matters
        layer = random_layer((m, side, side), block, fwd, bwd, device(dry)).to(torch.bfloat16)
        ours = "transient" if block == (1, 1) else "triton"
        ways = {"dense": layer.dense(), ours: _ours(layer, ours), "masked dense": _masked(layer)}
        row: dict[str, Any] = {"m": m, "k": side, "n": side, "fwd": fwd, "bwd": bwd, "block": block}
        add(row | {"bound": bound(fwd, bwd)} | _measured(ways, device(dry)))
        stock = None if block == (1, 1) or bwd != 0.8 else _bsr(layer)
        if stock is not None:
            times = seconds([layer.dense()[0], stock], device(dry), repeats=7)
            add(
                row
                | {"bsr_dense_addmm": "forward", "ratio": ratio(times[1], times[0]), "microseconds": micros(times[1])}
            )


def run_single(dry: bool, add: Add) -> None:
    """The same on single weights, of which hardly any are left: the kernel that walks them, and the transient one."""
    shapes = [(32, 64)] if dry else [(8192, 4096), (256, 4096), (16, 4096)]
    sparsities = [(0.99, 0.98)] if dry else [(0.99, 0.98), (0.995, 0.99), (0.999, 0.998)]
    for (m, side), (fwd, bwd), dtype in itertools.product(shapes, sparsities, (torch.bfloat16, torch.float32)):
        layer = random_layer((m, side, side), (1, 1), fwd, bwd, device(dry)).to(dtype)
        ways = {"dense": layer.dense(), "csr": _ours(layer, "csr"), "transient": _ours(layer, "transient")}
        row: dict[str, Any] = {"m": m, "k": side, "n": side, "fwd": fwd, "bwd": bwd, "dtype": str(dtype)}
        add(row | {"bound": bound(fwd, bwd)} | _measured(ways, device(dry)))


def run_decode(dry: bool, add: Add) -> None:
    """The forward product on 1, 16 and 256 rows, with bias and GELU, at 0.9, in bfloat16."""
    sides, blocks = ([64], [(16, 16)]) if dry else ([4096, 8192], [(128, 128), (64, 64), (32, 32), (16, 16)])
    for side, block, m in itertools.product(sides, blocks, (1, 16, 256)):
        layer = random_layer((m, side, side), block, 0.9, 0.9, device(dry)).to(torch.bfloat16)
        bias = torch.randn(side, device=layer.x.device).to(torch.bfloat16)
        weight = layer.values, layer.index, layer.geometry, bias
        runs: dict[str, Callable[..., Tensor]] = {
            "dense": lambda layer=layer, b=bias: F.gelu(F.linear(layer.x, layer.weight, b)),
            "triton": partial(BLOCKS.spmm, layer.x, *weight, act="gelu"),
            "triton, GELU apart": lambda x=layer.x, w=weight: F.gelu(BLOCKS.spmm(x, *w)),
            "transient": lambda x=layer.x, w=weight: F.gelu(TRANSIENT.spmm(x, *w)),
        }
        stock = _bsr(layer)
        if stock is not None:
            runs["bsr_dense_addmm"] = stock
        times = dict(zip(runs, seconds(list(runs.values()), device(dry), repeats=31), strict=True))
        add({
            "m": m, "k": side, "n": side, "fwd": 0.9, "block": block,
            "ratio": {name: ratio(found, times["dense"]) for name, found in times.items() if name != "dense"},
            "microseconds": {name: micros(found) for name, found in times.items()},
        })  # fmt: skip


def _ours(layer: Layer, kernel: str) -> Parts:
    return layer.sparse(dict.fromkeys(("spmm", "spmm_t", "sddmm"), kernel))


def _masked(layer: Layer) -> Parts:
    """W * mask anew each step (the weight has moved), dense products, the gradient masked."""
    fwd, bwd = (
        layer.geometry.from_blocks(mask[:, None].expand(-1, layer.geometry.unit)).to(layer.weight.dtype)
        for mask in index_masks(layer.index, layer.geometry)
    )
    held: list[torch.Tensor] = []

    def forward() -> torch.Tensor:
        held[:] = [layer.weight * fwd]
        return layer.x @ held[0].T

    return [forward, lambda: layer.dy @ held[0], lambda: (layer.dy.T @ layer.x).mul_(bwd)]


def _bsr(layer: Layer) -> Callable[[], Any] | None:
    """The forward product as PyTorch has it for block-sparse weights; None on the CPU."""
    if layer.x.device.type == "cpu":
        return None
    from torch.sparse._triton_ops import bsr_dense_addmm

    dense = REFERENCE.weight(layer.values, layer.index, layer.geometry)
    weight = dense.to_sparse_bsr(layer.geometry.block)
    like = layer.x.new_zeros(dense.shape[0], layer.x.shape[0])
    return lambda: bsr_dense_addmm(like, weight, layer.x.T, beta=0)


def _measured(ways: dict[str, Parts], where: torch.device) -> dict[str, Any]:
    """Ratios to the dense way of every product, and of their sum."""
    runs = [run for parts in ways.values() for run in parts]
    times = seconds(runs, where)
    found = {name: times[3 * i : 3 * i + 3] for i, name in enumerate(ways)}
    step = {name: [sum(each) for each in zip(*parts, strict=True)] for name, parts in found.items()}
    row: dict[str, Any] = {"step": {name: ratio(step[name], step["dense"]) for name in ways if name != "dense"}}
    for i, product in enumerate(NAMES):
        row[product] = {name: ratio(found[name][i], found["dense"][i]) for name in ways if name != "dense"}
    row["microseconds"] = {name: [micros(part) for part in parts] for name, parts in found.items()}
    return row
