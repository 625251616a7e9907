"""The checks that a kernel makes on its tensors before it runs, for every caller: the place and size of their memory.

Native code and CUDA kernels read and write at addresses. A tensor of another size, or a tensor with its memory
elsewhere (a DTensor, a fake tensor, a tensor on the meta device), would make them read or write foreign memory. The
checks read
only sizes, never the content of a tensor: an index from another source is checked by
:func:`topkast.runtime.layout.check_index`.
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
_DISPATCH = Tensor.__torch_dispatch__  # a class that replaces this need not have its own memory


def address(name: str, tensor: Tensor) -> int:
    """The address at which a tensor's memory begins.

    Raises:
        OperandError: the tensor has no memory of its own on the CPU.
    """
    if (type(tensor) in _PLAIN or _is_plain(tensor)) and tensor.is_cpu:
        try:
            found = tensor.data_ptr()
        except RuntimeError:  # a sparse tensor, or a tensor wrapped by a transform of torch.func
            _refuse(name, tensor)
        if found or not tensor.numel():
            return found
    _refuse(name, tensor)


def place(name: str, tensor: Tensor, count: int, more: bool = False) -> int:
    """The address at which the values of a tensor begin. The tensor is read or written in place.

    Args:
        name: the name of the argument.
        tensor: the tensor to read or write.
        count: how many values the tensor must have.
        more: whether the tensor may have more values.

    Raises:
        OperandError: the tensor has another number of values, or is not float32, contiguous and in the CPU's memory.
    """
    if tensor.numel() < count or not (more or tensor.numel() == count):
        wrong(name, tensor, f"{'at least ' if more else ''}{count} values")
    if tensor.dtype != torch.float32 or not tensor.is_contiguous():
        wrong(name, tensor, "float32, contiguous")
    return address(name, tensor)


def plain(**tensors: Tensor) -> None:
    """Raise OperandError for a tensor, on any device, that may have no memory of its own."""
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            _refuse(name, tensor)


def stored(**tensors: Tensor) -> None:
    """Raise OperandError for tensors that have no memory of their own on the device of the first tensor."""
    device = next(iter(tensors.values())).device
    for name, tensor in tensors.items():
        if not _is_plain(tensor) or tensor.device != device or tensor.is_meta or tensor.layout != torch.strided:
            _refuse(name, tensor)


def on_device(values: Tensor | None, index: Index, geometry: Geometry, **activations: Tensor) -> None:
    """Raise OperandError unless all tensors belong to one weight and are in memory on one device. CUDA kernels call
    this function, because they use addresses themselves."""
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
    """Raise OperandError if a tensor has another shape."""
    if tensor.shape != shape:
        wrong(name, tensor, shape)


def wrong(name: str, tensor: Tensor, expected: object) -> NoReturn:
    """Raise OperandError with the argument, its shape and dtype, and the expected operand."""
    kind = str(tensor.dtype).removeprefix("torch.")
    raise OperandError(f"{name}: a tensor of shape {tuple(tensor.shape)} ({kind}), expected {expected}")


def weight(values: Tensor | None, index: Index, geometry: Geometry) -> None:
    """Raise OperandError if the index or the values do not belong to this weight."""
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
    """Raise OperandError if the last of ``count`` rows ends after the existing slots. ``row_ptr`` is an address,
    because a read through the tensor would take longer than all other checks together."""
    last = c_int64.from_address(row_ptr + 8 * count).value
    if not 0 <= last <= cols.numel():
        wrong("cols", cols, f"{last} slots, where row_ptr ends")


def broadcasts(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise OperandError if a tensor does not broadcast to a shape."""
    own = (1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape)
    if len(own) != len(shape) or any(a not in (1, b) for a, b in zip(own, shape, strict=True)):
        wrong(name, tensor, f"what broadcasts to {tuple(shape)}")


def rows(name: str, x: Tensor, count: int, geometry: Geometry, each: bool, width: int = 0) -> int:
    """How many rows activations have.

    Args:
        name: the name of the argument.
        x: [M, count]; or, for E weights stacked in the matrix' rows, [E, M, count], or [E, M, count / E] if ``each``;
            or tiles [M / width, count, width].
        width: the width of the tiles; 0 for rows.

    Raises:
        OperandError: the activations have another shape.
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
    """Raise OperandError if a weight is not a stack of ``parts`` weights that share no block row."""
    if parts < 1 or (parts > 1 and geometry.rows % (parts * geometry.block[0])):
        raise OperandError(
            f"{name}: {parts} weights, expected a number of them that cuts {geometry.rows} rows into whole rows of "
            f"{geometry.block[0]}x{geometry.block[1]} blocks"
        )


def runs(ends: Tensor, m: int, geometry: Geometry) -> list[tuple[int, int, int]]:
    """(e, first row, last row + 1) of every stacked weight that has rows.

    Raises:
        OperandError: ``ends`` has another length than the number of weights, or does not ascend from 0 to at most
        ``m``.
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
    """Raise OperandError if ``count`` scores cannot be taken from the last dim."""
    if score.dim() == 0 or not 0 <= count <= score.shape[-1]:
        wrong("score", score, f"at least as many scores in its last dim as are to be taken, {count}, from 0 on")


def nested(fwd: Tensor, bwd: Tensor) -> None:
    """Raise OperandError if the two sets are not masks of one grid."""
    for name, mask in (("fwd", fwd), ("bwd", bwd)):
        if mask.dtype != torch.bool or mask.dim() != 2 or mask.shape != bwd.shape:
            wrong(name, mask, f"bool, two dims, the shape of bwd, {tuple(bwd.shape)}")


def pair(dy: Tensor, x: Tensor, geometry: Geometry, widths: Sequence[int] = ()) -> None:
    """Raise OperandError unless the activations belong to one gradient: dy [M, rows] or [E, M, rows / E], x [M, cols]
    or [E, M, cols]; or tiles with these ``widths`` of dy and of x."""
    of_dy, of_x = widths or (0, 0)
    m = rows("dy", dy, geometry.rows, geometry, True, of_dy)
    alike("x", rows("x", x, geometry.cols, geometry, False, of_x), "dy", m)
    if not (of_dy or of_x) and dy.shape[:-1] != x.shape[:-1]:
        wrong("x", x, f"as many weights as dy, of shape {tuple(dy.shape)}")


def alike(name: str, count: int, other: str, expected: int) -> None:
    """Raise OperandError if two operands have different numbers of rows."""
    if count != expected:
        raise OperandError(f"{name}: {count} rows, expected {expected}, those of {other}")


def one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise OperandError if a value is not allowed."""
    if value not in allowed:
        raise OperandError(f"{name}={value!r}: must be one of {', '.join(map(repr, allowed))}")
