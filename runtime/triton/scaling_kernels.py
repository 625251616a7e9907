"""The decay of B \\ A, for many weights in one launch."""

# No postponed annotations here: Triton reads `tl.constexpr` from them.
import triton
import triton.language as tl


@triton.jit
def squares_kernel(table, partial, PARTS: tl.constexpr, DTYPE: tl.constexpr, SIZE: tl.constexpr):
    """A part of the sum of the squares of A's values of one weight, in float64, in a fixed order.

    table: for each weight the addresses of values, row_ptr and row_fwd, the block rows, and the values of a block.
    """
    weight, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    values = tl.load(table + weight * 5).to(tl.pointer_type(DTYPE))
    row_ptr = tl.load(table + weight * 5 + 1).to(tl.pointer_type(tl.int64))
    row_fwd = tl.load(table + weight * 5 + 2).to(tl.pointer_type(tl.int64))
    rows, unit = tl.load(table + weight * 5 + 3), tl.load(table + weight * 5 + 4)
    total = tl.zeros((SIZE,), tl.float64)
    for row in range(part, rows, PARTS):
        end = tl.load(row_fwd + row) * unit
        for first in range(tl.load(row_ptr + row) * unit, end, SIZE):
            at = first + tl.arange(0, SIZE)
            value = tl.load(values + at, mask=at < end, other=0.0).to(tl.float64)
            total += value * value
    tl.store(partial + tl.program_id(0), tl.sum(total))


@triton.jit
def scale_kernel(
    table, partial, rates, counts, most, smallest,
    PARTS: tl.constexpr, SUMS: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """θ ← θ - min(rate / size, most) θ on B \\ A of one weight. size: the root mean square of A's ``counts`` values, at
    least ``smallest``; 1 if ``counts`` is 0. WIDE: the type of the product."""
    weight, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    values = tl.load(table + weight * 5).to(tl.pointer_type(DTYPE))
    row_ptr = tl.load(table + weight * 5 + 1).to(tl.pointer_type(tl.int64))
    row_fwd = tl.load(table + weight * 5 + 2).to(tl.pointer_type(tl.int64))
    rows, unit = tl.load(table + weight * 5 + 3), tl.load(table + weight * 5 + 4)
    count = tl.load(counts + weight)
    total = tl.sum(tl.load(partial + weight * SUMS + tl.arange(0, SUMS)))
    size = tl.where(count > 0, tl.maximum(tl.sqrt(total / tl.maximum(count, 1.0)), tl.load(smallest)), 1.0)
    factor = (1.0 - tl.minimum(tl.load(rates + weight) / size, tl.load(most))).to(WIDE)
    for row in range(part, rows, PARTS):
        end = tl.load(row_ptr + row + 1) * unit
        for first in range(tl.load(row_fwd + row) * unit, end, SIZE):
            at = first + tl.arange(0, SIZE)
            value = tl.load(values + at, mask=at < end, other=0.0).to(WIDE)
            tl.store(values + at, (value * factor).to(DTYPE), mask=at < end)
