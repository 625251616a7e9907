"""The products of :mod:`topkast.runtime.reference.products` in bfloat16 with sums in float32, for processors with
AVX512_BF16. The kernels of :mod:`.products` go through float32 instead."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.operands import address

from . import After, Matrix, Parallel, View, library, parallel, products
from .products import lib, matrix, scratch, view

MAX_SIDE = 2**25  # rows and columns: dW counts places in a chunk of 128 samples in 32 bits

SMOOTH = ("gelu", "gelu_tanh", "silu")  # activations, in the order of the library's numbers


def runs_on(device: torch.device) -> bool:
    """Whether the processor and the library have these products."""
    found = library()
    return found is not None and device.type == "cpu" and bool(found.tk_bf16())


def fits(product: str, operand: Tensor, geometry: Geometry) -> bool:
    """Whether the kernels of this file can run a product with these activations (real or fake)."""
    return (
        product in ("spmm", "spmm_t", "sddmm")
        and operand.dtype == torch.bfloat16
        and products.fits(product, operand, geometry)
        and max(geometry.rows, geometry.cols) < MAX_SIDE
        and runs_on(operand.device)
    )


def spmm(
    x: Tensor, values: Tensor, index: Index, geometry: Geometry, bias: Tensor | None, *, after: After | None = None
) -> Tensor:
    """Y = X W_A^T + bias, in bfloat16. x: [M, cols] or [E, M, cols] in bfloat16, any strides; values in any dtype: they
    are rounded here. ``after`` is for two dimensions, and a bias of [rows] or none."""
    operands.rows("x", x, geometry.cols, geometry, False)
    xs = _stack("x", x)
    y = torch.empty(len(xs), xs.shape[1], geometry.rows // len(xs), dtype=torch.bfloat16, device="cpu")
    per_row = None
    if bias is not None and bias.shape == (geometry.rows,) and len(xs) == 1:
        address("bias", bias)
        per_row, bias = bias.float().contiguous(), None
    if bias is not None:
        operands.broadcasts("bias", bias, y.shape if x.dim() == 3 else y.shape[1:])
        if after is not None:
            operands.wrong("bias", bias, f"[{geometry.rows}] or none, where an activation follows")
    at = None if per_row is None else per_row.data_ptr()
    for part in range(len(xs)):
        w, keep = matrix(values, index, geometry, part, len(xs), torch.bfloat16)
        run, here, to = parallel(), view("x", xs[part]), view("y", y[part])
        lib().tk_bf16_spmm(byref(run), byref(w), byref(here), at, byref(to), after, _work(run, w, here.m))
        del keep
    y = y if x.dim() == 3 else y[0]
    return y if bias is None else (y + bias).to(x.dtype)


def spmm_t(dy: Tensor, values: Tensor, index: Index, geometry: Geometry, *, after: After | None = None) -> Tensor:
    """dX = dY W_A, in bfloat16. dy: [M, rows] or [E, M, rows / E] in bfloat16, any strides. ``after`` is for two
    dimensions."""
    operands.rows("dy", dy, geometry.rows, geometry, True)
    dys = _stack("dy", dy)
    dx = torch.empty(len(dys), dys.shape[1], geometry.cols, dtype=torch.bfloat16, device="cpu")
    for part in range(len(dys)):
        w, keep = matrix(values, index, geometry, part, len(dys), torch.bfloat16)
        run, here, to = parallel(), view("dy", dys[part]), view("dx", dx[part])
        lib().tk_bf16_spmm_t(byref(run), byref(w), byref(here), byref(to), after, _work(run, w, here.m))
        del keep
    return dx if dy.dim() == 3 else dx[0]


def sddmm(dy: Tensor, x: Tensor, index: Index, geometry: Geometry, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """dY^T X at B, [slots * r * c], summed in float32, in ``dtype``. dy: [M, rows] or [E, M, rows / E], x: [M, cols] or
    [E, M, cols], both in bfloat16, any strides."""
    operands.pair(dy, x, geometry, ())
    threads = parallel()

    def run(w: Matrix, left: View, right: View, to: int) -> None:
        lib().tk_bf16_sddmm(byref(threads), byref(w), byref(left), byref(right), to, _work(threads, w, left.m))

    return products.sampled(dy, _stack("dy", dy).unbind(), x, _stack("x", x).unbind(), index, geometry, dtype, run)


def spmm_activate(
    x: Tensor, values: Tensor, index: Index, geometry: Geometry, bias: Tensor | None, act: str
) -> tuple[Tensor, Tensor]:
    """Y as :func:`spmm` gives it, and act(Y). x: [M, cols]; bias: [rows] or None; ``act`` is one of :data:`SMOOTH`."""
    operands.sized("x", x, (x.shape[0], geometry.cols))
    activated = torch.empty(x.shape[0], geometry.rows, dtype=torch.bfloat16, device="cpu")
    return spmm(x, values, index, geometry, bias, after=_after(act, activated, False)), activated


def spmm_t_activate_grad(
    dy: Tensor, before: Tensor, values: Tensor, index: Index, geometry: Geometry, act: str
) -> Tensor:
    """dX as :func:`spmm_t` gives it, times the derivative of the activation at ``before``, [M, cols], contiguous. dy:
    [M, rows]; ``act`` is one of :data:`SMOOTH`."""
    operands.sized("dy", dy, (dy.shape[0], geometry.rows))
    _like("before", before, (dy.shape[0], geometry.cols))
    before = before.contiguous()  # kept until the call has ended
    return spmm_t(dy, values, index, geometry, after=_after(act, before, True))


def activate_grad(dy: Tensor, x: Tensor, act: str) -> Tensor:
    """dy times the derivative of the activation at x, both in bfloat16; ``act`` is one of :data:`SMOOTH`."""
    operands.one_of("act", act, SMOOTH)
    _like("x", x, x.shape)
    _like("dy", dy, x.shape)
    x, dy = x.contiguous(), dy.contiguous()
    dx = torch.empty_like(x)
    at = address("x", x), address("dy", dy), dx.data_ptr()
    lib().tk_bf16_activate_grad(byref(parallel()), SMOOTH.index(act), *at, x.numel())
    return dx


def _after(act: str, other: Tensor, backward: bool) -> After:
    operands.one_of("act", act, SMOOTH)
    return After(SMOOTH.index(act), backward, view("before", other))


def _like(name: str, given: Tensor, shape: Sequence[int]) -> None:
    operands.sized(name, given, tuple(shape))
    if given.dtype != torch.bfloat16:
        operands.wrong(name, given, "bfloat16")


def _stack(name: str, activations: Tensor) -> Tensor:
    """The activations with a first dim for the stacked weights."""
    address(name, activations)
    if activations.dtype != torch.bfloat16:
        operands.wrong(name, activations, "bfloat16")
    return activations if activations.dim() == 3 else activations[None]


def _work(run: Parallel, w: Matrix, m: int) -> int:
    return scratch(lib().tk_bf16_workspace(byref(run), byref(w), m))
