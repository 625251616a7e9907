"""Which function some elementwise ops compute, in whatever way they are written. The ops are computed in float64 at
many points, and compared there with functions that have a name."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from topkast.runtime.kernels.candidates import FUSED_ACTIVATIONS
from topkast.runtime.reference.products import activation

from .nodes import is_cast
from .tile_layouts import KEEPS_ORDER, matrix_shape

_LIMIT = 64  # how many ops after a value are looked at; GELU is 8, its derivative 13


def points() -> Tensor:
    """The numbers at which functions are compared."""
    dense = torch.linspace(-12, 12, 4801, dtype=torch.float64, device="cpu")
    wide = torch.logspace(-8, 6, 57, dtype=torch.float64, device="cpu")
    return torch.cat([dense, wide, -wide])


def keeps_values(node: fx.Node) -> bool:
    """Whether an op's values are those it reads, the rounding of a cast aside."""
    return node.target in KEEPS_ORDER or is_cast(node)


def _depends_on(results: dict[fx.Node, Tensor], node: fx.Node, dtypes: set[torch.dtype]) -> bool:
    """Whether an elementwise op has no operands but those in ``results``, and computes in one of ``dtypes``."""
    elementwise = keeps_values(node) or torch.Tag.pointwise in getattr(node.target, "tags", ())
    read = node.all_input_nodes
    if not elementwise or not read or not all(operand in results for operand in read):
        return False
    return matrix_shape(node) == matrix_shape(read[0]) and node.meta["val"].dtype in dtypes


def results_of(known: dict[fx.Node, Tensor], start: fx.Node) -> dict[fx.Node, Tensor]:
    """Values of the ops that depend on nothing but ``known``, together with these.

    Args:
        known: values of nodes, the same number of points for each.
        start: a node of ``known``; only ops after it are looked at.
    """
    results, dtypes = dict(known), {start.meta["val"].dtype, torch.float32}
    node = start.next
    while node.op != "root" and len(results) < _LIMIT + len(known):
        if node not in results and _depends_on(results, node, dtypes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda operand: results[operand])
            results[node] = args[0] if keeps_values(node) else node.target(*args, **kwargs)  # type: ignore[assignment, operator]
        node = node.next
    return results


def is_same(values: Tensor, expected: Tensor) -> bool:
    """Whether two functions have the same values at the points, but for the rounding of float64."""
    return bool(((values - expected).abs() <= 1e-8 * (1 + expected.abs())).all())


def activation_name(values: Tensor) -> str | None:
    """Which activation has these values at the points."""
    at = points()
    return next((name for name in FUSED_ACTIVATIONS[1:] if is_same(values, activation(name, at))), None)
