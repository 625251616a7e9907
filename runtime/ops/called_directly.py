"""The products as functions that Inductor's code calls, with results in its own buffers.

An operator takes 100 µs of a step's time besides its kernel: the dispatcher reads 18 arguments, and Python then checks
each tensor. These functions do for a site what the operators ``spmm``, ``spmm_t`` and ``sddmm`` of :mod:`.operators`
do: they count the run, refuse the gradient of a site that cannot be trained, and show the dense gradient to a method
that grows by it.
"""

from __future__ import annotations

from torch import Tensor

from topkast.runtime.kernels.prepared import run
from topkast.runtime.reference import dense_gradient as gradient
from topkast.runtime.registry import count_run

from .operators import _watch, unpack


def spmm(
    x: Tensor,
    values: Tensor,
    row_ptr: Tensor,
    row_fwd: Tensor,
    cols: Tensor,
    key: Tensor,
    bias: Tensor | None = None,
    *,
    layout: str,
    out: Tensor,
) -> None:
    """Y = act(X W_A^T + bias) into ``out``. ``layout`` as :func:`topkast.runtime.native.prepared.run` takes it."""
    count_run(key, "forward", "native")
    run(layout, x, out, values, row_ptr, row_fwd, cols, bias)


def spmm_t(
    dy: Tensor,
    values: Tensor,
    row_ptr: Tensor,
    row_fwd: Tensor,
    cols: Tensor,
    key: Tensor,
    *,
    layout: str,
    out: Tensor,
) -> None:
    """dX = dY W_A into ``out``."""
    count_run(key, "input gradient", "native")
    run(layout, dy, out, values, row_ptr, row_fwd, cols)


def sddmm(
    dy: Tensor,
    x: Tensor,
    row_ptr: Tensor,
    row_fwd: Tensor,
    cols: Tensor,
    key: Tensor,
    *,
    layout: str,
    out: Tensor,
) -> None:
    """dY^T X at B into ``out``, [slots * r * c]."""
    count_run(key, "weight gradient", "native")
    _watch(key, lambda: gradient.product_rows(_rows(dy), _rows(x)))
    run(layout, dy, x, out, row_ptr, row_fwd, cols)


def _rows(activations: Tensor) -> Tensor:
    return unpack(activations) if activations.dim() == 3 else activations


CALLED = {"spmm": spmm, "spmm_t": spmm_t, "sddmm": sddmm}
