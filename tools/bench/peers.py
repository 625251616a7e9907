"""What others offer for the three products of an unstructured layer, each as timed parts of one training step.

All of it at one shape and sparsity, in pairs with the dense layer.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from topkast.runtime.layout import index_masks
from topkast.tools.common.pairs import bound, measure, show, spread

from .layer import Layer, random_layer

Parts = Sequence[Callable[[], object]]

SHAPE = (256, 1024, 4096)
FWD, BWD = 0.9, 0.8


def masks(layer: Layer) -> tuple[Tensor, Tensor]:
    """(A, B) as bool [N, K], of a layer with 1x1 blocks."""
    fwd, bwd = index_masks(layer.index, layer.geometry)
    return fwd.view(layer.weight.shape), bwd.view(layer.weight.shape)


def masked_dense(layer: Layer) -> Parts:
    """W * mask anew each step (the weight has moved), dense products, the gradient masked."""
    fwd, bwd = (mask.float() for mask in masks(layer))
    held: list[Tensor] = []

    def forward() -> Tensor:
        held[:] = [layer.weight * fwd]
        return layer.x @ held[0].T

    return [forward, lambda: layer.dy @ held[0], lambda: (layer.dy.T @ layer.x).mul_(bwd)]


def mkl_csr(layer: Layer) -> Parts:
    """``torch.sparse`` CSR. The transpose is a matrix of its own, whose values are gathered anew each step."""
    fwd, bwd = masks(layer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        kept = (layer.weight * fwd).to_sparse_csr()
        pattern = bwd.float().to_sparse_csr()
        # Values that are their own numbers, transposed, are the permutation between the two.
        numbers = torch.arange(1.0, kept.values().numel() + 1, dtype=torch.float64)
        numbered = torch.sparse_csr_tensor(
            kept.crow_indices(), kept.col_indices(), numbers, kept.shape, check_invariants=False
        )
        turned = numbered.to_dense().T.contiguous().to_sparse_csr()
    order = turned.values().long() - 1

    def input_gradient() -> Tensor:
        values = kept.values()[order]
        transpose = torch.sparse_csr_tensor(
            turned.crow_indices(), turned.col_indices(), values, turned.shape, check_invariants=False
        )
        return (transpose @ layer.dy.T).T

    def weight_gradient() -> Tensor:
        return torch.sparse.sampled_addmm(pattern, layer.dy.T, layer.x, beta=0.0)

    return [lambda: (kept @ layer.x.T).T, input_gradient, weight_gradient]


def sparselab_step(layer: Layer) -> Parts | None:
    """The package ``sparselab`` (its backward set is its forward set: less work than ours); None: not installed."""
    if importlib.util.find_spec("sparselab") is None:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        import sparselab

        n, k = layer.weight.shape
        linear = sparselab.SparseLinear(k, n, bias=False, sparsity=1 - float(masks(layer)[0].float().mean()))
    _set_gomp_threads(torch.get_num_threads())
    x = layer.x.clone().requires_grad_()
    held: list[Tensor] = []

    def forward() -> None:
        held[:] = [linear(x)]

    parameters = [x, *linear.parameters()]
    return [forward, lambda: torch.autograd.grad(held[0], parameters, layer.dy)]


def _set_gomp_threads(count: int) -> None:
    """Its wheel brings an OpenMP runtime of its own, which ``torch.set_num_threads`` does not reach."""
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    for path in paths:
        if Path(path).name.startswith("libgomp"):
            ctypes.CDLL(path).omp_set_num_threads(count)


def measure_peers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every way there is, for each number of threads."""
    layer = random_layer((8, 64, 96) if args.quick else SHAPE, (1, 1), FWD, BWD)
    impls = layer.impls(args.impl)
    # sparselab comes last: the threads of its own pool may go on spinning. Its gradient is taken at A only.
    ways: dict[str, tuple[float, Callable[[], Parts | None]]] = {
        "masked dense": (1.0, partial(masked_dense, layer)),
        "MKL CSR": (bound(FWD, BWD), partial(mkl_csr, layer)),
        "topkast 1x1": (bound(FWD, BWD), lambda: layer.sparse(impls) if impls else None),
        "sparselab": (1 - FWD, partial(sparselab_step, layer)),
    }
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for name, (limit, build) in ways.items():
            row = {"name": name, "threads": threads, "bound": limit, "ratio": None}
            parts = build()
            if parts:
                pairs = measure(layer.dense(), parts, args.repeats)
                seconds = [spread(column)["median"] for column in zip(*pairs.sparse, strict=True)]
                row |= {"ratio": pairs.ratio(), "seconds": pairs.seconds(), "seconds of parts": seconds}
            rows.append(row)
    return rows


def peer_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"one training step of the layer {SHAPE} at {FWD}/{BWD}, time / dense, median and quartiles")
    for head in ("threads", "how", "bound", "ratio", "ms", "ms of parts"):
        table.add_column(head, justify="right")
    for row in rows:
        figures = ["not installed" if row["name"] == "sparselab" else "does not fit", "", ""]
        if row["ratio"]:
            parts = ", ".join(f"{1e3 * seconds:.1f}" for seconds in row["seconds of parts"])
            figures = [show(row["ratio"]), f"{1e3 * row['seconds']['sparse']:.1f}", parts]
        table.add_row(str(row["threads"]), row["name"], f"{row['bound']:.3f}", *figures)
    return table
