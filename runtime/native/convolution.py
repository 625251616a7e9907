"""Convolutions on the native kernels: 1-3d, strided, padded, dilated, grouped, transposed; float32 inside."""

from __future__ import annotations

import functools
import math
from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ..layout import Geometry, Index
from ..reference import ConvArgs
from . import Conv, Image, parallel
from .products import MAX_BLOCK, lib, matrix, scratch

FORMATS = {3: (torch.contiguous_format,), 4: (torch.contiguous_format, torch.channels_last)}
FORMATS[5] = (torch.contiguous_format, torch.channels_last_3d)


def refusal(operand: Tensor, geometry: Geometry, conv: ConvArgs) -> str | None:
    """Why the kernels of this file cannot run the products of a convolution with these activations (real or fake)."""
    dims, (r, c) = len(geometry.shape), geometry.block
    order = (1, 0, *range(2, dims)) if conv.transposed else tuple(range(dims))
    rows = geometry.rows if conv.transposed else geometry.rows // conv.groups
    if operand.device.type != "cpu":
        return f"activations on {operand.device.type}, not on the CPU"
    if operand.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"activations of {operand.dtype}, not float32, bfloat16 or float16"
    if operand.dim() != dims or dims not in FORMATS:
        return f"{operand.dim()} dims, not a batch of images of 1 to 3 dims"
    if (geometry.perm, geometry.lead) != (order, 1):
        return "another op sees its weight as another matrix"
    if max(r, c) > MAX_BLOCK:
        return f"blocks of {r}x{c}, above {MAX_BLOCK}x{MAX_BLOCK}"
    if rows % r and conv.groups > 1 and not conv.transposed:
        return f"blocks of {r} rows cross the border of groups of {rows} rows"
    if geometry.units * geometry.unit >= 2**31:
        return "2^31 weights or more"
    return None


def conv(x: Tensor, values: Tensor, index: Index, geometry: Geometry, bias: Tensor | None, args: ConvArgs) -> Tensor:
    """Convolution with W_A. x: [batch, channels, ...]."""
    y = _empty(x, None, geometry, args)
    if y.numel() == 0:
        return y
    images, out, bias = _dense(x.float()), y.float(), None if bias is None else bias.float().contiguous()
    w, keep = matrix(values, index, geometry)
    shape, operands = _arguments(images, out, geometry, args)
    biases = None if bias is None else bias.data_ptr()
    lib().tk_conv_forward(byref(parallel()), byref(w), byref(shape), operands[0], biases, operands[1], _work(w, shape))
    del keep
    return out.to(x.dtype)


def conv_input_grad(dy: Tensor, x: Tensor, values: Tensor, index: Index, geometry: Geometry, args: ConvArgs) -> Tensor:
    """Gradient of the convolution's input at W_A. Of x only shape and strides count."""
    dx = _empty(x, dy, geometry, args)
    if dy.numel() == 0:
        return dx.zero_()
    grads, out = _dense(dy.float()), dx.float()
    w, keep = matrix(values, index, geometry)
    shape, operands = _arguments(out, grads, geometry, args)
    lib().tk_conv_input_grad(byref(parallel()), byref(w), byref(shape), *operands[::-1], _work(w, shape))
    del keep
    return out.to(dy.dtype)


def conv_weight_grad(dy: Tensor, x: Tensor, index: Index, geometry: Geometry, args: ConvArgs) -> Tensor:
    """Gradient of the convolution's weight, sampled at B, [slots * r * c]."""
    if dy.numel() == 0:
        return dy.new_zeros(index.cols.numel() * geometry.unit)
    grad = torch.empty(index.cols.numel() * geometry.unit, device="cpu")
    grads, images = _dense(dy.float()), _dense(x.float())
    w, keep = matrix(None, index, geometry)
    shape, operands = _arguments(images, grads, geometry, args)
    last = grad.data_ptr(), _work(w, shape)
    lib().tk_conv_weight_grad(byref(parallel()), byref(w), byref(shape), *operands[::-1], *last)
    del keep
    return grad.to(dy.dtype)


def _work(w: Any, shape: Conv) -> int:
    return scratch(lib().tk_conv_workspace(byref(w), byref(shape)))


def _arguments(x: Tensor, y: Tensor, geometry: Geometry, args: ConvArgs) -> tuple[Conv, tuple[Any, Any]]:
    """The convolution in three dims, ones in front, and its dense images.

    The batch is the vector axis. Where weights meet a position alone, images and positions may change places: what lies
    side by side in memory then fills the vectors, without being turned.
    """
    dims, batch, positions = x.dim() - 2, x.shape[0], math.prod(x.shape[2:])

    def three(of: Any, fill: int = 1) -> Any:
        return (fill,) * (3 - dims) + (tuple(of) * dims if len(of) == 1 else tuple(of))

    sizes = tuple(x.shape[2:]), tuple(y.shape[2:])
    rest = [three(geometry.shape[2:]), three(args.stride), three(args.padding, 0), three(args.dilation)]
    alone = rest[0] == rest[1] == (1, 1, 1) and rest[2] == (0, 0, 0) and sizes[0] == sizes[1]
    plain = all(_format(images) is torch.contiguous_format for images in (x, y))
    orders = [int(_format(images) is not torch.contiguous_format) for images in (x, y)]
    if alone and plain and _filled(positions) >= _filled(batch):
        sizes, batch, orders = ((1,) * (dims - 1) + (batch,),) * 2, positions, [2, 2]
    images: Any = (byref(Image(t.data_ptr(), t.stride(0), order)) for t, order in zip((x, y), orders, strict=True))
    shape = Conv(batch, x.shape[1], *map(three, sizes), *rest, args.groups, args.transposed)
    return shape, tuple(images)


def _filled(count: int) -> float:
    """The share of lanes in use where so many lie side by side."""
    return count / (-(-count // 32) * 32)


def _format(images: Tensor) -> torch.memory_format | None:
    """How each image lies, if densely."""
    one = images[:1]
    return next((form for form in FORMATS[images.dim()] if one.is_contiguous(memory_format=form)), None)


def _dense(images: Tensor) -> Tensor:
    return images.contiguous() if _format(images) is None else images


def _empty(x: Tensor, dy: Tensor | None, geometry: Geometry, args: ConvArgs) -> Tensor:
    """What the product returns, uninitialised, in the shape and strides of the dense operator's result."""
    operands = tuple((tuple(t.shape), t.stride()) for t in (x, dy) if t is not None)
    shape, stride = _layout(
        operands, x.dtype, geometry.shape, tuple(tuple(a) if isinstance(a, list) else a for a in args)
    )
    return x.new_empty_strided(shape, stride)


@functools.lru_cache(4096)
def _layout(operands: tuple[Any, ...], dtype: torch.dtype, weight: tuple[int, ...], args: tuple[Any, ...]) -> Any:
    with FakeTensorMode():
        x, *dy = (torch.empty_strided(*layout, dtype=dtype, device="cpu") for layout in operands)
        w = torch.empty(weight, dtype=dtype, device="cpu")
        if dy:
            backward = torch.ops.aten.convolution_backward
            found = backward(dy[0], x, w, None, *args, [True, False, False])[0]
        else:
            found = torch.ops.aten.convolution(x, w, None, *args)
        return tuple(found.shape), found.stride()
