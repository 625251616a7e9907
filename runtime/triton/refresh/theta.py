"""Assemble θ, take θ apart and move values between indices on the GPU, as ``reference.theta`` does, without waiting
for the GPU: no size here depends on the content of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.triton import runs_on
from topkast.runtime.triton.launching import launch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SIZE = 1024


def fits(geometry: Geometry, *tensors: Tensor) -> bool:
    """Whether this file can move these tensors of a weight."""
    (r, c), (rows, columns) = geometry.block, geometry.grid
    places = {(t.device, t.dtype) for t in tensors}
    known = len(places) == 1 and all(dtype in _DTYPES and runs_on(device) for device, dtype in places)
    return known and rows * r * columns * c < 2**31 and all(t.is_contiguous() for t in tensors)


def assemble(values: Tensor, reservoir: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """The same as :func:`topkast.runtime.reference.theta.assemble`."""
    operands.on_device(values, index, geometry, reservoir=reservoir)
    # A matrix may have either memory order. Only a permutation of more dims needs another move afterwards.
    direct = len(geometry.shape) == 2 or geometry.perm == tuple(range(len(geometry.shape)))
    theta = values.new_empty(geometry.shape if direct else geometry.permuted)
    matrix = (theta.permute(geometry.perm) if direct else theta).view(geometry.rows, geometry.cols)
    _move(matrix, values, reservoir, index, geometry, store=False)
    return theta if direct else theta.permute(geometry.inverse).contiguous()


def store(theta: Tensor, values: Tensor, reservoir: Tensor, index: Index, geometry: Geometry) -> None:
    """The same as :func:`topkast.runtime.reference.theta.store`."""
    operands.sized("theta", theta, geometry.shape)
    operands.on_device(values, index, geometry, theta=theta, reservoir=reservoir)
    values.zero_()  # slots that are not used
    matrix = theta.permute(geometry.perm).reshape(geometry.rows, geometry.cols)
    _move(matrix, values, reservoir, index, geometry, store=True)


def follow(tensor: Tensor, before: Index, after: Index, geometry: Geometry) -> Tensor:
    """The same as :func:`topkast.runtime.reference.theta.follow`."""
    from .theta_kernels import follow_kernel

    operands.on_device(tensor, before, geometry)
    operands.on_device(None, after, geometry, tensor=tensor)
    found = tensor.new_zeros(after.cols.numel() * geometry.unit)
    (rows, columns), places = geometry.grid, _places(before, geometry, ranks=False)
    splits = -(-columns * geometry.unit // _SIZE)
    launch(
        follow_kernel, (rows * splits,), tensor,
        tensor, found, after.row_ptr, after.cols, places, columns, splits, UNIT=geometry.unit, SIZE=_SIZE, num_warps=4,
    )  # fmt: skip
    return found


def _places(index: Index, geometry: Geometry, ranks: bool) -> Tensor:
    """The place of every unit, see :mod:`topkast.runtime.triton.refresh.theta_kernels`; -1 for all units outside B, but
    for ``ranks``."""
    from .theta_kernels import ranks_kernel, slots_kernel

    rows, columns = geometry.grid
    places = torch.full((geometry.units,), -1, dtype=torch.int32, device=index.cols.device)
    launch(
        slots_kernel, (rows, -(-columns // _SIZE)), places,
        index.row_ptr, index.cols, places, columns, SIZE=_SIZE, num_warps=4,
    )  # fmt: skip
    if ranks:
        launch(ranks_kernel, (rows,), places, index.row_ptr, places, columns, SIZE=_SIZE, num_warps=4)
    return places


def _move(
    matrix: Tensor, values: Tensor, reservoir: Tensor, index: Index, geometry: Geometry, store: bool
) -> None:  # fmt: skip
    from .theta_kernels import theta_kernel

    (r, c), (rows, columns) = geometry.block, geometry.grid
    total = rows * r * columns * c
    launch(
        theta_kernel, (-(-total // _SIZE),), matrix,
        matrix, values, reservoir, _places(index, geometry, ranks=True), total, columns * c,
        *matrix.shape, *matrix.stride(), columns, R=r, C=c, STORE=store, SIZE=_SIZE, num_warps=4,
    )  # fmt: skip
