"""Exact selection by radix, and the index of the chosen sets. Counts are integers, so the order does not matter."""

# No postponed annotations here: Triton reads `tl.constexpr` from them.
import triton
import triton.language as tl


@triton.jit
def key_of(score):
    """The bits of a number that is not negative; they have the same order as the numbers. NaN counts as infinity."""
    bits = score.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.minimum(bits, 0x7F800000)


@triton.jit
def histogram_kernel(score, state, counts, n, span, SHIFT: tl.constexpr, BITS: tl.constexpr, SIZE: tl.constexpr):
    """For one span of one row: among the keys that match the threshold so far, count each value of the next digit."""
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    BINS: tl.constexpr = 1 << BITS
    above = tl.load(state + row * 2) >> (SHIFT + BITS)
    found = tl.zeros((BINS,), tl.int32)
    for start in range(0, span, SIZE):
        at = part.to(tl.int64) * span + start + tl.arange(0, SIZE)
        key = key_of(tl.load(score + row.to(tl.int64) * n + at, mask=at < n, other=0.0))
        same = (at < n) & (key >> (SHIFT + BITS) == above)
        found += tl.histogram((key >> SHIFT) & (BINS - 1), BINS, mask=same)
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
    tl.store(state + row * 2, tl.load(state + row * 2) + (digit << SHIFT))
    tl.store(state + row * 2 + 1, wanted - tl.sum(tl.where(bins == digit, above, 0), 0))


@triton.jit
def mask_kernel(
    score, state, counts, mask, n, span, BINS: tl.constexpr, PARTS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """Mark the keys above the threshold and the first keys equal to it. ``counts``: the counts of the last digit."""
    row, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    threshold, wanted = tl.load(state + row * 2), tl.load(state + row * 2 + 1)
    before = tl.arange(0, PARTS)
    earlier = counts + (row * parts + before).to(tl.int64) * BINS + threshold % BINS
    taken = tl.sum(tl.load(earlier, mask=before < part, other=0), 0)
    for start in range(0, span, SIZE):
        at = part.to(tl.int64) * span + start + tl.arange(0, SIZE)
        place = row.to(tl.int64) * n + at
        key = key_of(tl.load(score + place, mask=at < n, other=0.0))
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
