"""The specification of products with int8 weights: exact integers, and float32 operations that are rounded one by one.

x is quantised to unsigned 8 bits with a scale s and a zero point z: x is about s * (q - z). The sums of q * w are exact
integers of at most 32 bits; here float64 holds them, which is exact up to 2^53.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 255


def matmul_per_row(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """What ``topkast.SparseMatMulInt8`` computes: each row of x has a scale of its own.

    Args:
        x: float32 [..., columns]. A row that holds NaN or an infinity, or whose range is not finite, gives NaN.
        weight: int8 [rows, columns].
        scale: float32 [rows], of the weight's rows.
        bias: float32 [rows], or None.

    Returns:
        float32 [..., rows].
    """
    none = x.new_zeros(())
    low, high = torch.minimum(x.amin(-1, keepdim=True), none), torch.maximum(x.amax(-1, keepdim=True), none)
    bad = ~(x.isfinite().all(-1, keepdim=True) & (high - low).isfinite())
    y = _product(x.masked_fill(bad, 0), low.masked_fill(bad, 0), high.masked_fill(bad, 0), weight, scale, bias)
    return y.masked_fill(bad, torch.nan)


def matmul_per_tensor(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """What standard operators compute: ONNX's DynamicQuantizeLinear gives all of x one scale. Arguments as above; x is
    finite."""
    none = x.new_zeros(())
    low, high = torch.minimum(x.amin(), none), torch.maximum(x.amax(), none)
    return _product(x, low, high, weight, scale, bias)


def _product(x: Tensor, low: Tensor, high: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    step = (high - low) / STEPS
    step = torch.where(step == 0, torch.ones_like(step), step)
    zero = (-low / step).round().clamp(0, STEPS)
    q = ((x / step).round() + zero).clamp(0, STEPS)
    sums = (q.double() - zero.double()) @ weight.double().t()
    y = sums.float() * (step * scale)
    return y if bias is None else y + bias
