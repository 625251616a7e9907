"""The products as functions that Inductor's code calls, with results in its own buffers.

An operator takes 100 µs of a step's time besides its kernel: the dispatcher reads 18 arguments, and Python then checks
each tensor. These functions do for a site what the operators of :mod:`.operators` do: they count the run, refuse the
gradient of a site that cannot be trained, and show the dense gradient to a method that grows by it. Each takes the
``layout`` of :func:`topkast.runtime.native.prepared.run`.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Callable
from typing import Any

from torch import Tensor

from topkast.runtime.kernels.prepared import run
from topkast.runtime.layout import Geometry
from topkast.runtime.reference import dense_gradient as gradient
from topkast.runtime.reference.products import ConvArgs
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
    """Y = act(X W_A^T + bias), or a convolution, into ``out``."""
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
    """dX = dY W_A into ``out``; or the gradient of a convolution's input."""
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


def conv_weight_grad(
    dy: Tensor,
    x: Tensor,
    row_ptr: Tensor,
    row_fwd: Tensor,
    cols: Tensor,
    key: Tensor,
    *,
    layout: str,
    weight: str,
    out: Tensor,
) -> None:
    """The gradient of a convolution's weight at B into ``out``. ``weight`` has the arguments of its geometry, and those
    of the convolution, as a text of Python."""
    count_run(key, "weight gradient", "native")
    _watch(key, lambda: _conv_rows(dy, x, *literal_eval(weight)))
    run(layout, dy, x, out, row_ptr, row_fwd, cols)


def _conv_rows(dy: Tensor, x: Tensor, geometry: tuple[Any, ...], args: tuple[Any, ...]) -> gradient.Rows:
    return gradient.conv_rows(dy, x, Geometry(*geometry), ConvArgs(*args))


def _rows(activations: Tensor) -> Tensor:
    return unpack(activations) if activations.dim() == 3 else activations


CALLED: dict[str, Callable[..., None]] = {
    "spmm": spmm, "spmm_t": spmm_t, "sddmm": sddmm,
    "conv": spmm, "conv_input_grad": spmm_t, "conv_weight_grad": conv_weight_grad,
}  # fmt: skip
