"""Products whose layout is known before their tensors: compiled code calls the library with addresses.

The functions of :mod:`.products` look at every tensor and fill the library's structs at each call. Here this is done
once for each layout: compiled code has checked the sizes and strides of its tensors already.
"""

from __future__ import annotations

from ctypes import Structure, addressof, c_int32
from typing import NamedTuple

from torch import Tensor

from topkast.runtime.errors import ConfigError, OperandError

from . import Matrix, View, parallel
from .products import lib, scratch

KINDS = ("spmm", "spmm_t", "sddmm")  # in the order of the library's numbers
_REFUSED = {
    1: (OperandError, "row_ptr: it ends after the slots that cols has"),
    2: (ConfigError, "tiles of activations: the kernels in use take tiles of another width; compile again"),
}


class Product(Structure):
    _fields_ = (("w", Matrix), ("first", View), ("second", View), ("kind", c_int32), ("act", c_int32))


class Layout(NamedTuple):
    """The layout of a product, in whole numbers.

    Args:
        kind: a position in :data:`KINDS`.
        rows, columns, slots, r, c, col_bytes: the matrix, as the library's struct has them.
        m: rows of activations.
        first, second: each of the two activations: columns, stride of the rows, stride of the columns, width of the
            tiles or 0. These are x and the result of spmm, dy and the result of spmm_t, dy and x of sddmm.
        act: a position in :data:`~topkast.runtime.native.products.ACTIVATIONS`.
    """

    kind: int
    rows: int
    columns: int
    slots: int
    r: int
    c: int
    col_bytes: int
    m: int
    first: tuple[int, int, int, int]
    second: tuple[int, int, int, int]
    act: int = 0

    def text(self) -> str:
        """The numbers, as compiled code holds them; :func:`run` reads this text."""
        return " ".join(map(str, (*self[:8], *self.first, *self.second, self.act)))


class _Prepared:
    """A product that waits for addresses."""

    def __init__(self, text: str) -> None:
        kind, rows, columns, slots, r, c, col_bytes, m, *rest = map(int, text.split())
        matrix = Matrix(0, 0, 0, 0, rows, columns, slots, r, c, col_bytes)
        first, second, act = rest[:4], rest[4:8], rest[8]
        self.product = Product(matrix, View(0, m, *first), View(0, m, *second), kind, act)
        self.at = addressof(self.product)
        self.floats = lib().tk_prepared_workspace(self.at)


_known: dict[str, _Prepared] = {}


def run(
    layout: str,
    first: Tensor,
    second: Tensor,
    values: Tensor,
    row_ptr: Tensor,
    row_fwd: Tensor,
    cols: Tensor,
    bias: Tensor | None = None,
) -> None:
    """Run a product of tensors of a known layout, in float32 on the CPU.

    Args:
        layout: what :meth:`Layout.text` gave. The tensors must have this layout: only the end of ``row_ptr`` and the
            width of tiles are checked.
        first, second: as in :class:`Layout`; the result of spmm and spmm_t is written into ``second``.
        values: B's values; of sddmm the gradient of these, which is written.
        row_ptr, row_fwd, cols: the index, contiguous.
        bias: of spmm, [rows].

    Raises:
        OperandError: the index ends after the slots.
        ConfigError: the instruction set in use takes other tiles.
    """
    ready = _known.get(layout)
    if ready is None:
        ready = _known[layout] = _Prepared(layout)
    status = lib().tk_run_prepared(
        addressof(parallel()), ready.at, values.data_ptr(), row_ptr.data_ptr(), row_fwd.data_ptr(), cols.data_ptr(),
        first.data_ptr(), second.data_ptr(), None if bias is None else bias.data_ptr(), scratch(ready.floats),
    )  # fmt: skip
    if status:
        error, text = _REFUSED[status]
        raise error(text)
