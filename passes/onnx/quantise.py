"""Round a matrix to int8: one scale for each row, symmetric, and no product of it saturates on any CPU.

On CPUs with AVX2 and without VNNI, ONNX Runtime's MatMulInteger (uint8 x int8) adds the products of the columns 2j and
2j + 1 in 16 bits, and saturates there. 255 times the sum of two neighbouring weights must therefore stay below 2^15, so
the sum of two neighbours of one sign may be 128 at most. Two neighbours of different signs cannot reach the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from topkast.passes.onnx.blocks import Array
from topkast.runtime.errors import ConfigError

# Precision of sparse weights -> the type in which a file stores their values.
STORED: dict[str, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}

LARGEST = 127
PAIR = 128  # 255 * 128 = 32640 < 2^15
# The rounding error (root mean square) that a row may have, as a share of the median magnitude of its weights that are
# not zero. A row of normally distributed weights has 1 to 2 %. At 10 % the largest weight is about 44 times the median:
# a usual weight has three steps then, and its products are no better than with three bits.
LIMIT = 0.1
LONGEST = 2**31 // (255 * 128)  # entries of a row: the sum of more products may not fit into 32 bits


@dataclass(frozen=True)
class Quantised:
    """A matrix in int8.

    Args:
        values: int8 [rows, columns].
        scale: float32 [rows]: each row of the matrix is about its values times its scale.
    """

    values: Array
    scale: Array


def quantise(matrix: Array, name: str) -> Quantised:
    """``matrix`` (float32 [rows, columns]) in int8.

    Args:
        matrix: the weight, [out, in].
        name: what a message calls the weight.

    Raises:
        ConfigError: a value is NaN or infinite, or int8 loses too much of a row (:data:`LIMIT`).
    """
    if not np.isfinite(matrix).all():
        raise ConfigError(f"precision='int8': {name} holds NaN or infinities; keep_float={name!r} keeps it in float")
    wide = matrix.astype(np.float64)
    scale = np.maximum(np.abs(wide).max(axis=1, initial=0) / LARGEST, _largest_pairs(wide) / PAIR).astype(np.float32)
    # A scale of less than the smallest normal float32 has too few digits.
    scale = np.where(scale == 0, np.float32(1), np.maximum(scale, np.finfo(np.float32).tiny)).astype(np.float32)
    values = _rounded(wide, scale)
    while (too_large := _largest_pairs(values) > PAIR).any():  # because the scale was rounded down
        scale[too_large] = np.nextafter(scale[too_large], np.float32(np.inf))
        values[too_large] = _rounded(wide[too_large], scale[too_large])
    _refuse_large_losses(wide, values * scale.astype(np.float64)[:, None], name)
    return Quantised(values.astype(np.int8), scale)


def _rounded(wide: Array, scale: Array) -> Array:
    return np.clip(np.rint(wide / scale.astype(np.float64)[:, None]), -LARGEST, LARGEST)


def _largest_pairs(wide: Array) -> Array:
    """For each row, the largest sum of the positive ones, or of the negative ones, in a pair of neighbours."""
    pairs = np.pad(wide, ((0, 0), (0, wide.shape[1] % 2))).reshape(len(wide), (wide.shape[1] + 1) // 2, 2)
    sums = [np.abs(part.sum(axis=2)).max(axis=1, initial=0) for part in (pairs.clip(min=0), pairs.clip(max=0))]
    return np.maximum(*sums)


def _refuse_large_losses(wide: Array, rounded: Array, name: str) -> None:
    counts = np.count_nonzero(wide, axis=1)
    error = np.sqrt(((wide - rounded) ** 2).sum(axis=1) / np.maximum(counts, 1))
    for row in np.flatnonzero(error > 0):
        usual = np.median(np.abs(wide[row][wide[row] != 0]))
        if error[row] > LIMIT * usual:
            raise ConfigError(
                f"precision='int8': {name}, row {row}: its largest weight is {np.abs(wide[row]).max():.3g}, the median "
                f"is {usual:.3g}, so int8 rounds by {error[row] / usual:.0%} of the median (at most {LIMIT:.0%} is "
                f"allowed); keep_float={name!r} keeps it in float"
            )
