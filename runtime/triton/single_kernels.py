"""Products of single weights and activations, for weights with hardly any entries left.

The rows of the activations are along the last dim, so that each weight multiplies many numbers that are next to each
other in memory. One program computes each sum in a fixed order, in float32.
"""

# No postponed annotations here: Triton reads `tl.constexpr` from them.
import triton
import triton.language as tl

from .spmm_kernels import activate


@triton.jit
def single_spmm_kernel(
    x, values, begins, ends, slot_of, column_of, bias, y,
    m, inputs, outputs,
    bias_e, bias_n,
    TRANSPOSED: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile [TILE, ROWS] of y [E, m, outputs] = x [E, inputs, m] times the entries of ROWS lists.

    In the forward, a list is a row of the weight. If TRANSPOSED, a list is a column, and ``slot_of`` gives the places
    of its values. All lists are read at the same time, until the longest list ends.
    """
    group, tile, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    which = group * ROWS + tl.arange(0, ROWS)
    here = which < outputs
    begin = tl.load(begins + part * outputs + which, mask=here, other=0)
    length = (tl.load(ends + part * outputs + which, mask=here, other=0) - begin).to(tl.int32)
    time = tile * TILE + tl.arange(0, TILE)
    x_at = x + part.to(tl.int64) * inputs * m + time[None, :]
    total = tl.zeros((ROWS, TILE), tl.float32)
    for step in range(0, tl.max(length, 0)):
        there = step < length
        entry = begin + step
        column = tl.load(column_of + entry, mask=there, other=0).to(tl.int64)
        slot = entry
        if TRANSPOSED:
            slot = tl.load(slot_of + entry, mask=there, other=0)
        value = tl.load(values + slot, mask=there, other=0.0).to(tl.float32)
        met = tl.load(x_at + (column * m)[:, None], mask=there[:, None] & (time < m)[None, :], other=0.0)
        total += value[:, None] * met.to(tl.float32)
    if HAS_BIAS:
        biases = tl.load(bias + part.to(tl.int64) * bias_e + which * bias_n, mask=here, other=0.0)
        total += biases.to(tl.float32)[:, None]
    total = activate(total, ACTIVATION)
    place = y + part.to(tl.int64) * m * outputs + (time.to(tl.int64) * outputs)[None, :] + which[:, None]
    tl.store(place, total.to(y.dtype.element_ty), mask=here[:, None] & (time < m)[None, :])


@triton.jit
def single_sddmm_kernel(
    dy, x, row_of, cols, grad,
    m, inputs, slots, rows, all_rows,
    SLOTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """SLOTS entries of the gradient: dy [E · rows, m] times x [E, inputs, m] at B. Unused slots get zero."""
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    row = tl.load(row_of + slot, mask=slot < slots, other=all_rows)
    used = row < all_rows
    column = tl.load(cols + slot, mask=used, other=0).to(tl.int64)
    dy_at = dy + row.to(tl.int64) * m
    x_at = x + (row // rows * inputs + column) * m
    total = tl.zeros((SLOTS, DEPTH), tl.float32)
    for start in range(0, m, DEPTH):
        time = start + tl.arange(0, DEPTH)
        inside = used[:, None] & (time < m)[None, :]
        left = tl.load(dy_at[:, None] + time[None, :], mask=inside, other=0.0)
        right = tl.load(x_at[:, None] + time[None, :], mask=inside, other=0.0)
        total += left.to(tl.float32) * right.to(tl.float32)
    tl.store(grad + slot, tl.sum(total, 1).to(grad.dtype.element_ty), mask=slot < slots)
