"""Move θ between its dense form, B's values and the reservoir, and values between two indices.

A kernel finds a value by the place of its unit: a slot of B, or -1 - rank for the unit with this rank among the units
outside B.
"""

# No postponed annotations here: Triton reads `tl.constexpr` from them.
import triton
import triton.language as tl


@triton.jit
def slots_kernel(row_ptr, cols, places, columns, SIZE: tl.constexpr):
    """Write the slot of every unit of one row that is in B."""
    row = tl.program_id(0)
    begin, end = tl.load(row_ptr + row), tl.load(row_ptr + row + 1)
    at = begin + tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    column = tl.load(cols + at, mask=at < end, other=0).to(tl.int64)
    tl.store(places + row.to(tl.int64) * columns + column, at.to(tl.int32), mask=at < end)


@triton.jit
def ranks_kernel(row_ptr, places, columns, SIZE: tl.constexpr):
    """Number the units of one row that are outside B; their places are -1 before."""
    row = tl.program_id(0)
    first = row.to(tl.int64) * columns
    rank = (first - tl.load(row_ptr + row)).to(tl.int32)
    for start in range(0, columns, SIZE):
        column = start + tl.arange(0, SIZE)
        place = tl.load(places + first + column, mask=column < columns, other=0)
        outside = (place < 0).to(tl.int32)
        before = rank + tl.cumsum(outside, 0) - 1
        tl.store(places + first + column, -1 - before, mask=(column < columns) & (place < 0))
        rank += tl.sum(outside, 0)


@triton.jit
def theta_kernel(
    dense, values, reservoir, places, total, width, rows, columns, stride_n, stride_k, grid_columns,
    R: tl.constexpr, C: tl.constexpr, STORE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """SIZE values of the matrix, filled up to whole blocks: read them from B's values or the reservoir, or STORE them
    there. Outside the matrix's edges zeros are stored.

    width: the columns of the filled matrix. total: its values.
    """
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    n, k = (at // width).to(tl.int32), (at % width).to(tl.int32)
    live = at < total
    inside = live & (n < rows) & (k < columns)
    place = tl.load(places + (n // R).to(tl.int64) * grid_columns + k // C, mask=live, other=0)
    in_b = place >= 0
    unit = tl.where(in_b, place, -1 - place).to(tl.int64)
    own = unit * (R * C) + (n % R) * C + k % C
    cell = dense + n.to(tl.int64) * stride_n + k.to(tl.int64) * stride_k
    if STORE:
        value = tl.load(cell, mask=inside, other=0.0)
        tl.store(values + own, value, mask=live & in_b)
        tl.store(reservoir + own, value, mask=live & (place < 0))
    else:
        kept = tl.load(values + own, mask=inside & in_b, other=0.0)
        value = tl.where(in_b, kept, tl.load(reservoir + own, mask=inside & (place < 0), other=0.0))
        tl.store(cell, value, mask=inside)


@triton.jit
def follow_kernel(
    tensor, found, row_ptr, cols, places, columns, splits, UNIT: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """SIZE values in the slots of one row of the new index: their old values, or zero if they were not in B."""
    row, part = tl.program_id(0) // splits, tl.program_id(0) % splits
    begin = tl.load(row_ptr + row)
    flat = part * SIZE + tl.arange(0, SIZE)
    live = flat < (tl.load(row_ptr + row + 1) - begin) * UNIT
    column = tl.load(cols + begin + flat // UNIT, mask=live, other=0).to(tl.int64)
    place = tl.load(places + row.to(tl.int64) * columns + column, mask=live, other=-1).to(tl.int64)
    value = tl.load(tensor + place * UNIT + flat % UNIT, mask=place >= 0, other=0.0)
    tl.store(found + begin * UNIT + flat, value, mask=live)
