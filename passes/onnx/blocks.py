"""A dense matrix with zeros as blocks that are not: the stored form of :mod:`topkast.runtime.layout`, A alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Block = tuple[int, int]

MAX_BLOCK = 64  # rows and columns of a block, as the kernels take them


@dataclass(frozen=True)
class Blocks:
    """A matrix [rows, columns].

    Args:
        shape: (rows, columns), not padded to whole blocks.
        values: float32 [slots, r, c], block row by block row, columns ascending.
        row_ptr: int64 [block rows + 1]: where each block row's slots begin.
        cols: int64 [slots], block columns.
        scale: float32 [rows] if the values are integers, which are to be multiplied by the scale of their row.
    """

    shape: tuple[int, int]
    values: Array
    row_ptr: Array
    cols: Array
    scale: Array | None = None

    @property
    def block(self) -> Block:
        return self.values.shape[1], self.values.shape[2]

    @property
    def grid(self) -> tuple[int, int]:
        return len(self.row_ptr) - 1, -(-self.shape[1] // self.block[1])

    @property
    def density(self) -> float:
        """Share of the grid's blocks that are stored."""
        return len(self.cols) / max(1, self.grid[0] * self.grid[1])

    def rows_of_slots(self) -> Array:
        """Block row of each slot, int64 [slots]."""
        return np.repeat(np.arange(self.grid[0]), np.diff(self.row_ptr))


def encode(matrix: Array, block: Block) -> Blocks:
    """The blocks of ``matrix`` (float32, 2-D) that hold anything but zeros."""
    (rows, columns), (r, c) = matrix.shape, block
    padded = np.pad(matrix, ((0, -rows % r), (0, -columns % c))) if rows % r or columns % c else matrix
    grid = padded.reshape(padded.shape[0] // r, r, padded.shape[1] // c, c)
    at_row, at_col = np.nonzero(grid.any(axis=(1, 3)))
    row_ptr = np.zeros(grid.shape[0] + 1, np.int64)
    np.cumsum(np.bincount(at_row, minlength=grid.shape[0]), out=row_ptr[1:])
    return Blocks((rows, columns), np.ascontiguousarray(grid[at_row, :, at_col, :]), row_ptr, at_col.astype(np.int64))


def fitting(
    matrix: Array, blocks: Iterable[Block], most: int, within: int | None = None, value_bytes: int = 4
) -> Blocks:
    """``matrix`` in that of ``blocks``, either way round, or in single weights, which stores the least.

    Args:
        matrix: float32, 2-D.
        blocks: those the model was trained with; a matrix may be cut from one, transposed, or none of them.
        most: rows or columns of a block; larger ones are cut into equal parts.
        within: rows of a group, whose border no block may cross; None: there are no groups.
        value_bytes: what a value takes in the file.
    """
    tried = {(1, 1)} | {(_part(r, most), _part(c, most)) for block in blocks for r, c in (block, block[::-1])}
    tried = {block for block in tried if within is None or within % block[0] == 0}
    # Each slot costs an index of two bytes beside its values.
    encoded = (encode(matrix, block) for block in sorted(tried))
    return min(encoded, key=lambda b: b.values.size * value_bytes + len(b.cols) * 2)


def digest(matrix: Array) -> str:
    """What two equal matrices, float32 [out, in], have in common."""
    return hashlib.sha256(repr(matrix.shape).encode() + np.ascontiguousarray(matrix).tobytes()).hexdigest()


def _part(size: int, most: int) -> int:
    return next(part for part in range(min(size, most), 0, -1) if size % part == 0)
