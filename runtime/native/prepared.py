"""Products whose layout is known before their tensors: compiled code calls the library with addresses.

The functions of :mod:`.products` look at every tensor and fill the library's structs at each call. Here this is done
once for each layout: compiled code has checked the sizes and strides of its tensors already.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, addressof, c_int32
from itertools import chain
from typing import NamedTuple

from torch import Tensor

from topkast.runtime.errors import ConfigError, OperandError
from topkast.runtime.layout import Geometry
from topkast.runtime.reference.products import ConvArgs

from . import Conv, Image, Matrix, View, parallel
from .convolution import shaped
from .products import lib, scratch

KINDS = ("spmm", "spmm_t", "sddmm", "conv", "conv_input_grad", "conv_weight_grad")  # three of each, as in the library
_REFUSED = {
    1: (OperandError, "row_ptr: it ends after the slots that cols has"),
    2: (ConfigError, "tiles of activations: the kernels in use take tiles of another width; compile again"),
}


class Product(Structure):
    _fields_ = (("w", Matrix), ("first", View), ("second", View), ("kind", c_int32), ("act", c_int32))


class ConvProduct(Structure):
    _fields_ = (("w", Matrix), ("conv", Conv), ("first", Image), ("second", Image), ("kind", c_int32))


class Layout(NamedTuple):
    """The layout of a product of matrices, in whole numbers.

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


def conv_text(name: str, matrix: Sequence[int], x: Tensor, y: Tensor, geometry: Geometry, args: ConvArgs) -> str | None:
    """The layout of a convolution's product, as :func:`run` reads it; None if images are not dense.

    Args:
        name: one of the last three of :data:`KINDS`.
        matrix: rows, columns, slots, r, c and col_bytes, as :class:`Layout` has them.
        x, y: images and result of the convolution, or gradients with their layout; may be on the meta device.
        geometry: the geometry of the weight.
        args: the arguments of the convolution.
    """
    (batch, channels, *dims, groups, transposed), images = shaped(x, y, geometry, args)
    if any(order is None for _, order in images):
        return None
    both = images if name == "conv" else images[::-1]
    numbers = (KINDS.index(name), *matrix, batch, channels, *chain(*dims), groups, int(transposed), *chain(*both))
    return " ".join(map(str, numbers))


class _Prepared:
    """A product that waits for addresses."""

    def __init__(self, text: str) -> None:
        kind, rows, columns, slots, r, c, col_bytes, *rest = map(int, text.split())
        matrix = Matrix(0, 0, 0, 0, rows, columns, slots, r, c, col_bytes)
        if kind < 3:
            m, first, second, act = rest[0], rest[1:5], rest[5:9], rest[9]
            self.product: Structure = Product(matrix, View(0, m, *first), View(0, m, *second), kind, act)
            self.run, workspace = lib().tk_run_prepared, lib().tk_prepared_workspace
        else:
            dims = [tuple(rest[at : at + 3]) for at in range(2, 20, 3)]
            conv = Conv(*rest[:2], *dims, *rest[20:22])
            self.product = ConvProduct(matrix, conv, Image(0, *rest[22:24]), Image(0, *rest[24:26]), kind - 3)
            self.run, workspace = lib().tk_run_prepared_conv, lib().tk_prepared_conv_workspace
        self.at = addressof(self.product)
        self.floats = workspace(self.at)


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
        layout: what :meth:`Layout.text` or :func:`conv_text` gave. The tensors must have this layout: only the end of
            ``row_ptr`` and the width of tiles are checked.
        first, second: as in :class:`Layout`; the result of all but weight gradients is written into ``second``.
        values: B's values; for a weight gradient this gradient, which is written.
        row_ptr, row_fwd, cols: the index, contiguous.
        bias: of spmm and conv, one number for each output.

    Raises:
        OperandError: the index ends after the slots.
        ConfigError: the instruction set in use takes other tiles.
    """
    ready = _known.get(layout)
    if ready is None:
        ready = _known[layout] = _Prepared(layout)
    status = ready.run(
        addressof(parallel()), ready.at, values.data_ptr(), row_ptr.data_ptr(), row_fwd.data_ptr(), cols.data_ptr(),
        first.data_ptr(), second.data_ptr(), None if bias is None else bias.data_ptr(), scratch(ready.floats),
    )  # fmt: skip
    if status:
        error, text = _REFUSED[status]
        raise error(text)
