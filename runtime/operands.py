"""What a kernel checks of its tensors before it runs, whoever calls: where their memory is, and how long it is.

Native code and CUDA kernels read and write at addresses. A tensor of another size, or one whose memory is elsewhere (a
DTensor, a fake tensor, one on the meta device), would make them read or write what is not theirs. Only sizes are looked
at, never what is in a tensor: an index from outside goes through :func:`topkast.runtime.layout.check_index`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from .errors import OperandError
from .layout import Geometry, Index

_PLAIN = {Tensor, nn.Parameter}
_DISPATCH = Tensor.__torch_dispatch__  # who replaces it need not have memory of its own


def address(name: str, tensor: Tensor) -> int:
    """Where a tensor's memory begins.

    Raises:
        OperandError: it has no memory of its own on the CPU.
    """
    if (type(tensor) in _PLAIN or _is_plain(tensor)) and tensor.is_cpu:
        try:
            found = tensor.data_ptr()
        except RuntimeError:  # sparse, or wrapped by a transform of torch.func
            _refuse(name, tensor)
        if found or not tensor.numel():
            return found
    _refuse(name, tensor)


def place(name: str, tensor: Tensor, count: int, more: bool = False) -> int:
    """Where the values of a tensor begin that is read or written in place.

    Args:
        name: the argument's.
        tensor: what is read or written.
        count: how many values it must have.
        more: whether it may have more.

    Raises:
        OperandError: it has others, or they are not float32 one after the other, in memory here.
    """
    if tensor.numel() < count or not (more or tensor.numel() == count):
        wrong(name, tensor, f"{'at least ' if more else ''}{count} values")
    if tensor.dtype != torch.float32 or not tensor.is_contiguous():
        wrong(name, tensor, "float32, contiguous")
    return address(name, tensor)


def plain(**tensors: Tensor) -> None:
    """Raise OperandError for a tensor, on whatever device, that need not have memory of its own."""
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            _refuse(name, tensor)


def stored(like: Tensor, **tensors: Tensor) -> None:
    """Raise OperandError for tensors that are not plain ones on the device of ``like``: of CUDA kernels, which take
    their addresses themselves."""
    for name, tensor in tensors.items():
        if not _is_plain(tensor) or tensor.device != like.device or tensor.device.type == "meta":
            _refuse(name, tensor)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor).__torch_dispatch__ is _DISPATCH


def _refuse(name: str, tensor: Tensor) -> NoReturn:
    kind, where = type(tensor).__name__, f"on {tensor.device}, {tensor.layout}"
    raise OperandError(
        f"{name}: a {kind} of shape {tuple(tensor.shape)} {where} has no memory here that a kernel could use; it must "
        "be a plain, strided tensor on the kernel's own device (of a DTensor: its .to_local() on a model that is not "
        "sharded)"
    )


def sized(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise OperandError for a tensor of another shape."""
    if tensor.shape != shape:
        wrong(name, tensor, shape)


def wrong(name: str, tensor: Tensor, expected: object) -> NoReturn:
    """Raise OperandError: the argument, its shape and dtype, and what is expected."""
    kind = str(tensor.dtype).removeprefix("torch.")
    raise OperandError(f"{name}: a tensor of shape {tuple(tensor.shape)} ({kind}), expected {expected}")


def weight(values: Tensor | None, index: Index, geometry: Geometry) -> None:
    """Raise OperandError for an index, or for values, of another weight than this one."""
    (row_ptr, row_fwd, cols), (rows, columns) = index, geometry.grid
    if row_ptr.shape != (rows + 1,) or row_ptr.dtype != torch.int64:
        wrong("row_ptr", row_ptr, f"int64 [{rows + 1}], of {rows} rows of blocks")
    if row_fwd.shape != (rows,) or row_fwd.dtype != torch.int64:
        wrong("row_fwd", row_fwd, f"int64 [{rows}], of {rows} rows of blocks")
    kind = cols.dtype
    if cols.dim() != 1 or not (kind == torch.int32 or (kind == torch.uint16 and columns <= 2**16)):
        wrong("cols", cols, f"one dim of uint16 (up to 65,536 columns of blocks) or int32; there are {columns}")
    if values is not None and values.numel() != (count := cols.numel() * geometry.unit):
        wrong("values", values, f"{count} values: {cols.numel()} slots of {geometry.block[0]}x{geometry.block[1]}")


def rows(name: str, x: Tensor, count: int, geometry: Geometry, each: bool, width: int = 0) -> int:
    """How many rows activations have.

    Args:
        name: the argument's.
        x: [M, count]; [E, M, count], or of ``each`` of E weights stacked in the matrix' rows [E, M, count / E]; tiles
            [M / width, count, width].
        width: 0 unless they are tiles.

    Raises:
        OperandError: they are not.
    """
    shape = x.shape
    if width:
        if len(shape) != 3 or shape[1:] != (count, width):
            wrong(name, x, f"tiles [M / {width}, {count}, {width}]")
        return shape[0] * width
    if len(shape) == 2:
        if shape[1] != count:
            wrong(name, x, f"[M, {count}]")
        return shape[0]
    if len(shape) != 3:
        wrong(name, x, f"[M, {count}], or a batch of such")
    stacked(name, shape[0], geometry)
    if shape[2] != (count := count // shape[0] if each else count):
        wrong(name, x, f"[{shape[0]}, M, {count}]")
    return shape[1]


def stacked(name: str, parts: int, geometry: Geometry) -> None:
    """Raise OperandError where a weight is no stack of ``parts`` weights without a block row in common."""
    if parts < 1 or (parts > 1 and geometry.rows % (parts * geometry.block[0])):
        raise OperandError(
            f"{name}: {parts} weights, expected a number of them that cuts {geometry.rows} rows into whole rows of "
            f"{geometry.block[0]}x{geometry.block[1]} blocks"
        )


def runs(ends: Tensor, m: int, geometry: Geometry) -> list[tuple[int, int, int]]:
    """(e, first row, last row + 1) of every stacked weight that has rows.

    Raises:
        OperandError: ``ends`` are not as many as the weights, or do not ascend from 0 to at most ``m``.
    """
    if ends.dim() != 1 or ends.is_floating_point():
        wrong("ends", ends, "integers [E]")
    stacked("ends", ends.numel(), geometry)
    limits = [0, *ends.tolist()]
    if any(a > b for a, b in itertools.pairwise([*limits, m])):
        raise OperandError(f"ends: {limits[1:]}, expected numbers that ascend from 0 to at most {m}, the rows")
    return [(e, a, b) for e, (a, b) in enumerate(itertools.pairwise(limits)) if b > a]


def nested(fwd: Tensor, bwd: Tensor) -> None:
    """Raise OperandError for two sets that are no masks of one grid."""
    for name, mask in (("fwd", fwd), ("bwd", bwd)):
        if mask.dtype != torch.bool or mask.dim() != 2 or mask.shape != bwd.shape:
            wrong(name, mask, f"bool, two dims, the shape of bwd, {tuple(bwd.shape)}")


def alike(name: str, count: int, other: str, expected: int) -> None:
    """Raise OperandError where two operands have different numbers of rows."""
    if count != expected:
        raise OperandError(f"{name}: {count} rows, expected {expected}, those of {other}")


def one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise OperandError for a value that is not allowed."""
    if value not in allowed:
        raise OperandError(f"{name}={value!r}: must be one of {', '.join(map(repr, allowed))}")
