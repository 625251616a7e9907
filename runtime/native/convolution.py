"""Convolutions on the native kernels: 1-3d, strided, padded, dilated, grouped, transposed; float32 inside."""

from __future__ import annotations

import functools
import math
from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from topkast.runtime.errors import OperandError
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.operands import address, plain, sized
from topkast.runtime.reference.products import ConvArgs

from . import Conv, Image, parallel
from .extents import extents, hashable, weight_refusal
from .products import lib, matrix, scratch


def refusal(operand: Tensor, geometry: Geometry, conv: ConvArgs) -> str | None:
    """Why the kernels of this file cannot run a convolution's products with these activations (real or fake); None if
    they can."""
    dims = len(geometry.shape)
    if operand.device.type != "cpu":
        return f"activations on {operand.device.type}, not on the CPU"
    if operand.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"activations of {operand.dtype}, not float32, bfloat16 or float16"
    if operand.dim() != dims or not 3 <= dims <= 5:
        return f"{operand.dim()} dims, not a batch of images of 1 to 3 dims"
    return weight_refusal(geometry, conv)


def conv(x: Tensor, values: Tensor, index: Index, geometry: Geometry, bias: Tensor | None, args: ConvArgs) -> Tensor:
    """Convolution with W_A. x: [batch, channels, ...]."""
    address("x", x)
    y = _empty(x, None, geometry, args)
    w, keep = matrix(values, index, geometry)
    biases = None
    if bias is not None:
        sized("bias", bias, (y.shape[1],))
        bias = bias.float().contiguous()
        biases = address("bias", bias)
    if y.numel() == 0:
        return y
    images, out = _dense(x.float()), _dense(y.float())
    shape, operands = _arguments("x", images, "y", out, geometry, args)
    lib().tk_conv_forward(byref(parallel()), byref(w), byref(shape), operands[0], biases, operands[1], _work(w, shape))
    del keep
    return _given(y, out)


def conv_input_grad(dy: Tensor, x: Tensor, values: Tensor, index: Index, geometry: Geometry, args: ConvArgs) -> Tensor:
    """Gradient of the convolution's input at W_A. Only the shape and strides of x are used."""
    address("dy", dy)
    plain(x=x)
    dx = _empty(x, dy, geometry, args)
    w, keep = matrix(values, index, geometry)
    if dy.numel() == 0:
        return dx.zero_()
    grads, out = _dense(dy.float()), _dense(dx.float())
    shape, operands = _arguments("dx", out, "dy", grads, geometry, args)
    lib().tk_conv_input_grad(byref(parallel()), byref(w), byref(shape), *operands[::-1], _work(w, shape))
    del keep
    return _given(dx, out).to(dy.dtype)


def conv_weight_grad(dy: Tensor, x: Tensor, index: Index, geometry: Geometry, args: ConvArgs) -> Tensor:
    """Gradient of the convolution's weight, sampled at B, [slots * r * c]."""
    address("dy", dy), address("x", x)
    sized("dy", dy, extents(tuple(x.shape), geometry, hashable(args)))
    w, keep = matrix(None, index, geometry)
    if dy.numel() == 0:
        return dy.new_zeros(index.cols.numel() * geometry.unit)
    grad = torch.empty(index.cols.numel() * geometry.unit, device="cpu")
    grads, images = _dense(dy.float()), _dense(x.float())
    shape, operands = _arguments("x", images, "dy", grads, geometry, args)
    last = address("grad", grad), _work(w, shape)
    lib().tk_conv_weight_grad(byref(parallel()), byref(w), byref(shape), *operands[::-1], *last)
    del keep
    return grad.to(dy.dtype)


def _work(w: Any, shape: Conv) -> int:
    return scratch(lib().tk_conv_workspace(byref(w), byref(shape)))


def _arguments(
    x_name: str, x: Tensor, y_name: str, y: Tensor, geometry: Geometry, args: ConvArgs
) -> tuple[Conv, tuple[Any, Any]]:
    """The convolution in three dims (missing dims are added in front, with size 1) and its dense images.

    ``x_name`` and ``y_name`` are the names of the arguments, for errors. The batch is the vector axis. If each weight
    is applied to single positions (1x1 kernels), images and positions may be exchanged: then numbers that are next to
    each other in memory fill the vectors, without a transposition.
    """
    dims, batch, positions = x.dim() - 2, x.shape[0], math.prod(x.shape[2:])

    def three(of: Any, fill: int = 1) -> Any:
        return (fill,) * (3 - dims) + (tuple(of) * dims if len(of) == 1 else tuple(of))

    sizes = tuple(x.shape[2:]), tuple(y.shape[2:])
    rest = [three(geometry.shape[2:]), three(args.stride), three(args.padding, 0), three(args.dilation)]
    alone = rest[0] == rest[1] == (1, 1, 1) and rest[2] == (0, 0, 0) and sizes[0] == sizes[1]
    orders: list[Any] = [_order(x), _order(y)]
    if alone and orders == [0, 0] and _filled(positions) >= _filled(batch):
        sizes, batch, orders = ((1,) * (dims - 1) + (batch,),) * 2, positions, [2, 2]
    images = [
        byref(Image(address(name, t), t.stride(0), order))
        for name, t, order in ((x_name, x, orders[0]), (y_name, y, orders[1]))
    ]
    shape = Conv(batch, x.shape[1], *map(three, sizes), *rest, args.groups, args.transposed)
    return shape, (images[0], images[1])


def _filled(count: int) -> float:
    """The share of vector lanes in use if ``count`` numbers are next to each other."""
    return count / (-(-count // 32) * 32)


def _order(images: Tensor) -> int | None:
    """The memory order of each image, if it is dense: 0: channel by channel, 1: position by position; otherwise
    None."""
    one = images[:1]
    return 0 if one.is_contiguous() else 1 if one.movedim(1, -1).is_contiguous() else None


def _dense(images: Tensor) -> Tensor:
    return images.contiguous() if _order(images) is None else images


def _given(result: Tensor, computed: Tensor) -> Tensor:
    """The computed tensor in the strides and the dtype of the result."""
    return computed if computed is result else result.copy_(computed)


def _empty(x: Tensor, dy: Tensor | None, geometry: Geometry, args: ConvArgs) -> Tensor:
    """Uninitialised memory for the product's result, in the shape and strides of the dense operator's result.

    Raises:
        OperandError: the operands do not fit this convolution.
    """
    operands = tuple((tuple(t.shape), t.stride()) for t in (x, dy) if t is not None)
    shape, stride = _layout(operands, x.dtype, geometry, hashable(args))
    return x.new_empty_strided(shape, stride)


@functools.lru_cache(4096)
def _layout(operands: tuple[Any, ...], dtype: torch.dtype, geometry: Geometry, args: tuple[Any, ...]) -> Any:
    expected = extents(operands[0][0], geometry, args)
    if len(operands) > 1 and operands[1][0] != expected:
        raise OperandError(f"dy: a tensor of shape {operands[1][0]}, expected {expected}")
    with FakeTensorMode():
        x, *dy = (torch.empty_strided(*layout, dtype=dtype, device="cpu") for layout in operands)
        w = torch.empty(geometry.shape, dtype=dtype, device="cpu")
        if dy:
            backward = torch.ops.aten.convolution_backward
            found = backward(dy[0], x, w, None, *args, [True, False, False])[0]
        else:
            found = torch.ops.aten.convolution(x, w, None, *args)
        return tuple(found.shape), found.stride()
