"""What a kernel checks of its tensors before it runs, whoever calls: where their memory is, and how long it is.

Native code and CUDA kernels read and write at addresses. A tensor of another size, or one whose memory is elsewhere (a
DTensor, a fake tensor, one on the meta device), would make them read or write what is not theirs. Only sizes are looked
at, never what is in a tensor: an index from outside goes through :func:`topkast.runtime.layout.check_index`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from ctypes import c_int64
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


def stored(**tensors: Tensor) -> None:
    """Raise OperandError for tensors without memory of their own on the device of the first."""
    device = next(iter(tensors.values())).device
    for name, tensor in tensors.items():
        if not _is_plain(tensor) or tensor.device != device or tensor.is_meta or tensor.layout != torch.strided:
            _refuse(name, tensor)


def on_device(values: Tensor | None, index: Index, geometry: Geometry, **activations: Tensor) -> None:
    """Raise OperandError unless these belong to one weight and are in memory on one device: of CUDA kernels, which take
    addresses themselves."""
    weight(values, index, geometry)
    stored(**activations, **({} if values is None else {"values": values}), **index._asdict())


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


def within(row_ptr: int, count: int, cols: Tensor) -> None:
    """Raise OperandError where the last of ``count`` rows ends past the slots that there are; ``row_ptr`` is its
    address, as to ask the tensor would take longer than all the rest."""
    last = c_int64.from_address(row_ptr + 8 * count).value
    if not 0 <= last <= cols.numel():
        wrong("cols", cols, f"{last} slots, where row_ptr ends")


def broadcasts(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise OperandError for a tensor that does not broadcast to a shape."""
    own = (1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape)
    if len(own) != len(shape) or any(a not in (1, b) for a, b in zip(own, shape, strict=True)):
        wrong(name, tensor, f"what broadcasts to {tuple(shape)}")


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
    if ends.numel() != geometry.permuted[0]:
        wrong("ends", ends, f"[{geometry.permuted[0]}], one for each weight")
    limits = [0, *ends.tolist()]
    if any(a > b for a, b in itertools.pairwise([*limits, m])):
        raise OperandError(f"ends: {limits[1:]}, expected numbers that ascend from 0 to at most {m}, the rows")
    return [(e, a, b) for e, (a, b) in enumerate(itertools.pairwise(limits)) if b > a]


def counted(score: Tensor, count: int) -> None:
    """Raise OperandError where so many scores cannot be taken."""
    if score.dim() == 0 or not 0 <= count <= score.shape[-1]:
        wrong("score", score, f"at least as many scores in its last dim as are to be taken, {count}, from 0 on")


def nested(fwd: Tensor, bwd: Tensor) -> None:
    """Raise OperandError for two sets that are no masks of one grid."""
    for name, mask in (("fwd", fwd), ("bwd", bwd)):
        if mask.dtype != torch.bool or mask.dim() != 2 or mask.shape != bwd.shape:
            wrong(name, mask, f"bool, two dims, the shape of bwd, {tuple(bwd.shape)}")


def pair(dy: Tensor, x: Tensor, geometry: Geometry, widths: Sequence[int] = ()) -> None:
    """Raise OperandError for activations that are not those of one gradient: dy [M, rows] or [E, M, rows / E], x
    [M, cols] or [E, M, cols]; or tiles of these ``widths``, of dy and of x."""
    of_dy, of_x = widths or (0, 0)
    m = rows("dy", dy, geometry.rows, geometry, True, of_dy)
    alike("x", rows("x", x, geometry.cols, geometry, False, of_x), "dy", m)
    if not (of_dy or of_x) and dy.shape[:-1] != x.shape[:-1]:
        wrong("x", x, f"as many weights as dy, of shape {tuple(dy.shape)}")


def alike(name: str, count: int, other: str, expected: int) -> None:
    """Raise OperandError where two operands have different numbers of rows."""
    if count != expected:
        raise OperandError(f"{name}: {count} rows, expected {expected}, those of {other}")


def one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise OperandError for a value that is not allowed."""
    if value not in allowed:
        raise OperandError(f"{name}={value!r}: must be one of {', '.join(map(repr, allowed))}")
