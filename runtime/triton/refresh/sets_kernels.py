"""Exact selection by radix, and the index of the chosen sets. Counts are integers, so the order does not matter."""

# No postponed annotations here: Triton reads `tl.constexpr` from them.
import triton
import triton.language as tl


@triton.jit
def key_of(score, WIDE: tl.constexpr):
    """The bits of a number that is not negative; they have the same order as the numbers. NaN counts as infinity.

    WIDE: a float64, whose key is int64. Other numbers become float32 first, which is exact.
    """
    if WIDE:
        key = tl.minimum(score.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000)
    else:
        key = tl.minimum(score.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x7F800000)
    return key


@triton.jit
def block_scores_kernel(
    dense, scores, rows, columns, grid_columns, stride_n, stride_k,
    R: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """The squared norms of UNITS neighbouring blocks, in the order of ``reference.selection.scores``: the rows of a
    block one after the other, then the two halves of its columns, until one column is left."""
    unit, inner = tl.program_id(1) * UNITS + tl.arange(0, UNITS), tl.arange(0, WIDTH)
    k = unit[:, None] * C + inner[None, :]
    live = (inner < C)[None, :] & (k < columns)
    total = tl.zeros((UNITS, WIDTH), tl.float64)
    for i in range(R):
        n = tl.program_id(0) * R + i + tl.zeros((UNITS, 1), tl.int32)
        place = dense + n.to(tl.int64) * stride_n + k.to(tl.int64) * stride_k
        value = tl.load(place, mask=live & (n < rows), other=0.0).to(tl.float64)
        total += value * value
    for level in tl.static_range(LEVELS):
        total = tl.sum(tl.reshape(total, (UNITS, 2, WIDTH >> (level + 1))), 1)
    score = tl.reshape(total, (UNITS,))
    score = tl.where(score != score, float("inf"), score)
    tl.store(scores + tl.program_id(0).to(tl.int64) * grid_columns + unit, score, mask=unit < grid_columns)


@triton.jit
def histogram_kernel(
    score, state, counts, n, span, WIDE: tl.constexpr, SHIFT: tl.constexpr, BITS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """For one span of one row: among the keys that match the threshold so far, count each value of the next digit."""
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    BINS: tl.constexpr = 1 << BITS
    above = tl.load(state + row * 2) >> (SHIFT + BITS)
    found = tl.zeros((BINS,), tl.int32)
    for start in range(0, span, SIZE):
        at = part.to(tl.int64) * span + start + tl.arange(0, SIZE)
        key = key_of(tl.load(score + row.to(tl.int64) * n + at, mask=at < n, other=0.0), WIDE)
        same = (at < n) & (key >> (SHIFT + BITS) == above)
        found += tl.histogram(((key >> SHIFT) & (BINS - 1)).to(tl.int32), BINS, mask=same)
    tl.store(counts + (row * parts + part).to(tl.int64) * BINS + tl.arange(0, BINS), found)


@triton.jit
def digit_kernel(state, counts, parts, SHIFT: tl.constexpr, BINS: tl.constexpr):
    """The threshold's next digit, and how many keys with this digit are still needed."""
    row, bins = tl.program_id(0), tl.arange(0, BINS)
    total = tl.zeros((BINS,), tl.int32)
    for part in range(parts):
        total += tl.load(counts + (row * parts + part).to(tl.int64) * BINS + bins)
    wanted = tl.load(state + row * 2 + 1)
    above = tl.sum(total, 0) - tl.cumsum(total, 0)
    digit = tl.max(tl.where(above + total >= wanted, bins, 0), 0)
    tl.store(state + row * 2, tl.load(state + row * 2) + (digit.to(state.dtype.element_ty) << SHIFT))
    tl.store(state + row * 2 + 1, wanted - tl.sum(tl.where(bins == digit, above, 0), 0))


@triton.jit
def mask_kernel(
    score, state, counts, mask, n, span,
    WIDE: tl.constexpr, SHIFT: tl.constexpr, BINS: tl.constexpr, PARTS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Mark the keys above the threshold and the first keys equal to it. ``counts``: the counts of the last digit."""
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    threshold, wanted = tl.load(state + row * 2), tl.load(state + row * 2 + 1)
    before = tl.arange(0, PARTS)
    earlier = counts + (row * parts + before).to(tl.int64) * BINS + ((threshold >> SHIFT) & (BINS - 1))
    taken = tl.sum(tl.load(earlier, mask=before < part, other=0), 0)
    for start in range(0, span, SIZE):
        at = part.to(tl.int64) * span + start + tl.arange(0, SIZE)
        place = row.to(tl.int64) * n + at
        key = key_of(tl.load(score + place, mask=at < n, other=0.0), WIDE)
        equal = ((key == threshold) & (at < n)).to(tl.int32)
        first = taken + tl.cumsum(equal, 0) <= wanted
        chosen = (key > threshold) | ((equal == 1) & first)
        tl.store(mask + place, chosen.to(tl.uint8), mask=at < n)
        taken += tl.sum(equal, 0)


@triton.jit
def index_kernel(fwd, bwd, row_ptr, row_fwd, cols, columns, SIZE: tl.constexpr):
    """One row of the index: A's columns, then the columns of B \\ A, both ascending."""
    row = tl.program_id(0)
    next_fwd, next_explored = tl.load(row_ptr + row), tl.load(row_fwd + row)
    for start in range(0, columns, SIZE):
        column = start + tl.arange(0, SIZE)
        place = row.to(tl.int64) * columns + column
        in_fwd = (tl.load(fwd + place, mask=column < columns, other=0) != 0).to(tl.int32)
        explored = (tl.load(bwd + place, mask=column < columns, other=0) != 0).to(tl.int32) - in_fwd
        value = column.to(cols.dtype.element_ty)
        tl.store(cols + next_fwd + tl.cumsum(in_fwd, 0) - 1, value, mask=in_fwd == 1)
        tl.store(cols + next_explored + tl.cumsum(explored, 0) - 1, value, mask=explored == 1)
        next_fwd += tl.sum(in_fwd, 0)
        next_explored += tl.sum(explored, 0)


@triton.jit
def masks_kernel(row_ptr, row_fwd, cols, fwd, bwd, columns, SIZE: tl.constexpr):
    """Mark the units of one row that are in A, and those that are in B."""
    row = tl.program_id(0)
    at = tl.load(row_ptr + row) + tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    live = at < tl.load(row_ptr + row + 1)
    unit = row.to(tl.int64) * columns + tl.load(cols + at, mask=live, other=0).to(tl.int64)
    tl.store(bwd + unit, tl.full((SIZE,), 1, tl.uint8), mask=live)
    tl.store(fwd + unit, tl.full((SIZE,), 1, tl.uint8), mask=live & (at < tl.load(row_fwd + row)))
