"""The arithmetic of a product with a weight of int8, in plain PyTorch; the native kernels must give the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of whole numbers from 0 to 255, with a scale and a zero point for each row.

    Args:
        x: float32 [M, columns].

    Returns:
        The numbers (int32 [M, columns]), the scales (float32 [M, 1]) and the zero points (int32 [M, 1]). The scale of a
        row is NaN if the row holds a NaN or an infinity, or if its range is not finite. The numbers then mean nothing.
    """
    zero = x.new_zeros(x.shape[0], 1)
    extended = torch.cat([x, zero], dim=1)
    low, high = extended.amin(dim=1, keepdim=True), extended.amax(dim=1, keepdim=True)
    span = high - low
    scale = (span / torch.full_like(span, 255)).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.where(span.isfinite(), scale, torch.nan)
    inverse = 1 / scale
    point = (-low * inverse).round().nan_to_num().clamp(0, 255).int()
    numbers = ((x * inverse).round().nan_to_num().int() + point).clamp(0, 255)
    return numbers, scale, point


def spmm_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ (scale * weight).T + bias`` with ``x`` quantised row by row.

    The sums are exact. Each float32 operation is rounded by itself; no product is fused with an addition.

    Args:
        x: float32 [M, columns].
        weight: int8 [rows, columns].
        scale: float32 [rows].
        bias: float32 [rows]; None adds nothing.

    Returns:
        float32 [M, rows].
    """
    numbers, row_scale, point = quantise_rows(x)
    wide = weight.double()  # exact: a sum of int8 products is far below 2^53
    sums = (numbers.double() @ wide.t() - point.double() * wide.sum(dim=1)).to(torch.int32)
    y = sums.float() * (row_scale * scale)
    return y if bias is None else y + bias


def conv_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution with a weight of int8 and ``x`` quantised image by image; as exact as :func:`spmm_int8`.

    Args:
        x: float32 [batch, channels, ...], of 1 to 3 further dimensions.
        weight: int8 [rows, channels of a group, ...].
        scale: float32 [rows].
        bias: float32 [rows]; None adds nothing.
        strides, dilations: one for each dimension.
        pads: zeros before the image in each dimension, then those behind it.
        groups: of channels.

    Returns:
        float32 [batch, rows, ...].
    """
    dims = len(strides)
    numbers, image_scale, point = quantise_rows(x.flatten(1))
    sides = [pads[d + side * dims] for d in reversed(range(dims)) for side in (0, 1)]
    wide = F.pad((numbers - point).double().reshape(x.shape), sides)
    plain = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    sums = plain(wide, weight.double(), None, tuple(strides), 0, tuple(dilations), groups).to(torch.int32)
    ones = [1] * dims
    y = sums.float() * (image_scale * scale).reshape(len(x), len(weight), *ones)
    return y if bias is None else y + bias.reshape(-1, *ones)


def spmm_int8_of_tensor(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`spmm_int8` with one scale and one zero point for all of ``x``, as ONNX's DynamicQuantizeLinear gives them.

    This is what a file computes by standard operators. ``x`` is finite.
    """
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    span = high - low
    step = span / torch.full_like(span, 255)
    step = torch.where(step == 0, 1, step)
    point = (-low / step).round().clamp(0, 255)
    numbers = ((x / step).round() + point).clamp(0, 255)
    sums = (numbers.double() - point.double()) @ weight.double().t()
    y = sums.float() * (step * scale)
    return y if bias is None else y + bias
