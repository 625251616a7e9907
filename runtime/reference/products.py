"""The specification of every product, in plain PyTorch on a transient dense W_A: correct for any device, dtype and
layout.

Each function takes the weight as (values, index, geometry). The results of faster kernels are compared with these
functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from topkast.runtime.layout import Geometry, Index, slot_units


class ConvArgs(NamedTuple):
    """The arguments of ``aten.convolution`` after the bias, in its order."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


def weight(values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """W_A in the weight's own shape: values on A, zero elsewhere."""
    units, in_fwd = slot_units(index, geometry)
    kept = torch.where(in_fwd[:, None], values.view(-1, geometry.unit), 0)
    # One more unit at the end receives the writes of the unused slots.
    blocks = values.new_zeros(geometry.units + 1, geometry.unit)
    blocks[units] = kept
    return geometry.from_blocks(blocks[:-1])


def weight_grad(grad: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """A dense gradient sampled at B, [slots * r * c]; unused slots get zero."""
    units, _ = slot_units(index, geometry)
    used = units < geometry.units
    picked = geometry.to_blocks(grad)[units.clamp(max=geometry.units - 1)]
    return torch.where(used[:, None], picked, 0).view(-1)


def activation(name: str, y: Tensor) -> Tensor:
    """Apply the activation of ``spmm`` to its result: "relu", "gelu", "gelu_tanh", "silu", or "" for none."""
    return _ACTIVATIONS[name](y) if name else y


def activation_grad(name: str, dy: Tensor, x: Tensor) -> Tensor:
    """The gradient of an activation at x: dy times the derivative."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        return torch.autograd.grad(activation(name, at), at, dy)[0]


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    "silu": torch.nn.functional.silu,
}


def pack(x: Tensor, width: int) -> Tensor:
    """Rows [M, n] as tiles [M / width, n, width]; M is a multiple of ``width``."""
    return x.unflatten(0, (-1, width)).mT.contiguous()


def unpack(tiles: Tensor) -> Tensor:
    """Tiles as rows: the inverse of :func:`pack`."""
    return tiles.mT.flatten(0, 1)


class DenseProducts:
    """Every product as a dense product on a transient W_A, and as a dense gradient sampled at B.

    Args:
        weight: (values, index, geometry) -> W_A in the weight's own shape.
        weight_grad: (dense gradient, index, geometry) -> the gradient at B.
    """

    def __init__(self, weight: Callable[..., Tensor], weight_grad: Callable[..., Tensor]):
        self.weight, self.weight_grad = weight, weight_grad

    def matrix(self, values: Tensor, index: Index, geometry: Geometry) -> Tensor:
        """W_A as [rows, cols], in the strides of the original weight."""
        dense = self.weight(values, index, geometry)
        return dense.permute(geometry.perm).reshape(geometry.rows, geometry.cols)

    def spmm(self, x: Tensor, values: Tensor, index: Index, geometry: Geometry, bias: Tensor | None) -> Tensor:
        """Y = X W_A^T (+ bias). x: [M, cols] or [E, M, cols] with E weights stacked in the rows."""
        w = _batched(self.matrix(values, index, geometry), x).mT
        if bias is None:
            return x @ w
        return torch.baddbmm(bias, x, w) if x.dim() == 3 else torch.addmm(bias, x, w)

    def spmm_t(self, dy: Tensor, values: Tensor, index: Index, geometry: Geometry) -> Tensor:
        """dX = dY W_A. dy: [M, rows] or [E, M, rows / E]."""
        return dy @ _batched(self.matrix(values, index, geometry), dy)

    def sddmm(self, dy: Tensor, x: Tensor, index: Index, geometry: Geometry) -> Tensor:
        """dY^T X at B, [slots * r * c]. dy: [M, rows] or [E, M, rows / E], x: [M, cols] or [E, M, cols]."""
        product = dy.mT @ x
        dense = product.reshape(geometry.permuted).permute(geometry.inverse)
        return self.weight_grad(dense, index, geometry)

    def grouped_spmm(self, x: Tensor, ends: Tensor, values: Tensor, index: Index, geometry: Geometry) -> Tensor:
        """Y = X W_A^T, each row with its own weight. x: [M, cols]; see :mod:`topkast.runtime.ops.grouped_mm`."""
        return _grouped(x, self.matrix(values, index, geometry).unflatten(0, (ends.numel(), -1)).mT, ends)

    def grouped_spmm_t(self, dy: Tensor, ends: Tensor, values: Tensor, index: Index, geometry: Geometry) -> Tensor:
        """dX = dY W_A, each row with its own weight. dy: [M, rows / E]."""
        return _grouped(dy, self.matrix(values, index, geometry).unflatten(0, (ends.numel(), -1)), ends)

    def grouped_sddmm(self, dy: Tensor, x: Tensor, ends: Tensor, index: Index, geometry: Geometry) -> Tensor:
        """dY^T X of each run of rows at its weight's part of B. dy: [M, rows / E], x: [M, cols]."""
        product = dy.new_zeros(ends.numel(), dy.shape[1], x.shape[1])
        for part, begin, end in runs(ends):
            torch.mm(dy[begin:end].mT, x[begin:end], out=product[part])
        dense = product.reshape(geometry.permuted).permute(geometry.inverse)
        return self.weight_grad(dense, index, geometry)

    def conv(
        self, x: Tensor, values: Tensor, index: Index, geometry: Geometry, bias: Tensor | None, args: ConvArgs
    ) -> Tensor:
        """Convolution with W_A, 1-3d, grouped or transposed."""
        return torch.ops.aten.convolution(x, self.weight(values, index, geometry), bias, *args)

    def conv_input_grad(
        self, dy: Tensor, x: Tensor, values: Tensor, index: Index, geometry: Geometry, args: ConvArgs
    ) -> Tensor:
        """Gradient of the convolution's input at W_A. Only the shape and strides of x are used."""
        w = self.weight(values, index, geometry)
        return torch.ops.aten.convolution_backward(dy, x, w, None, *args, [True, False, False])[0]

    def conv_weight_grad(self, dy: Tensor, x: Tensor, index: Index, geometry: Geometry, args: ConvArgs) -> Tensor:
        """Gradient of the convolution's weight, sampled at B, [slots * r * c]."""
        like = dy.new_empty(geometry.shape)
        dense = torch.ops.aten.convolution_backward(dy, x, like, None, *args, [False, True, False])[1]
        return self.weight_grad(dense, index, geometry)


REFERENCE = DenseProducts(weight, weight_grad)


def _batched(found: Tensor, like: Tensor) -> Tensor:
    """[rows, cols] -> [batch, rows / batch, cols] if the activations have a batch dim (one weight for each entry)."""
    return found.unflatten(0, (like.shape[0], -1)) if like.dim() == 3 else found


def runs(ends: Tensor) -> Iterator[tuple[int, int, int]]:
    """(e, first row, last row + 1) of every weight that has rows. On a GPU this waits for the device."""
    begin = 0
    for part, end in enumerate(ends.tolist()):
        if end > begin:
            yield part, begin, end
        begin = end


def _grouped(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """[M, K] times [E, K, N], each weight with its own run of rows."""
    y = x.new_zeros(x.shape[0], weights.shape[2])
    for part, begin, end in runs(ends):
        torch.mm(x[begin:end], weights[part], out=y[begin:end])
    return y
