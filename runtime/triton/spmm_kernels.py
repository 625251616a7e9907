"""Products of a block-sparse weight and activations, forward and transposed.

Every output tile has a list of the blocks that it sums over. The blocks are placed one after the other, so their
contracted sides form one flat dimension. The loop reads this dimension in steps of any size: a step is inside one
block, or covers several small blocks. So one kernel supports all blocks. One program computes each sum in a fixed
order, in float32.
"""

# No postponed annotations here: Triton reads `tl.constexpr` from them.
import triton
import triton.language as tl


@triton.jit
def transpose_kernel(
    row_ptr, row_fwd, cols, begins, ends, slot_of, row_of, rows, columns,
    STEPS: tl.constexpr, BLOCK: tl.constexpr, PLACED: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """For one block column of one weight: the rows that have this column in A, and their slots, in ascending order.

    A's columns ascend within a row, so a binary search finds the column. There is no sort, and no order-dependent sum.
    PLACED: ``begins`` says where the column's list begins; else every list has room for all rows. Without FILL the
    rows are only counted, and ``ends`` gets the counts.
    """
    column, part = tl.program_id(0), tl.program_id(1)
    base = (part * columns + column).to(tl.int64) * rows
    if PLACED:
        base = tl.load(begins + part * columns + column).to(tl.int64) if FILL else base * 0
    end = base
    for first in range(0, rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        inside = row < rows
        low = tl.load(row_ptr + part * rows + row, mask=inside, other=0)
        stop = tl.load(row_fwd + part * rows + row, mask=inside, other=0)
        high = stop
        for _ in range(STEPS):
            middle = (low + high) // 2
            searching = low < high
            less = searching & (tl.load(cols + middle, mask=searching, other=0).to(tl.int32) < column)
            high = tl.where(searching & (less == 0), middle, high)
            low = tl.where(less, middle + 1, low)
        found = low < stop
        found = found & (tl.load(cols + low, mask=found, other=0).to(tl.int32) == column)
        if FILL:
            place = end + tl.cumsum(found.to(tl.int32), 0) - 1
            tl.store(slot_of + place, low, mask=found)
            tl.store(row_of + place, row, mask=found)
        end += tl.sum(found.to(tl.int32), 0)
    if not PLACED:
        tl.store(begins + part * columns + column, base)
    tl.store(ends + part * columns + column, end)


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """The epilogue's activation, in float32."""
    if ACTIVATION == "relu":
        y = tl.where(y < 0.0, 0.0, y)  # NaN stays NaN
    elif ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh(a)) / 2 = 1 / (1 + exp(-2a))
        y = y / (1.0 + tl.exp(-1.5957691216057308 * y * (1.0 + 0.044715 * y * y)))
    elif ACTIVATION == "silu":
        y = y / (1.0 + tl.exp(-y))
    return y


@triton.jit
def spmm_kernel(
    x, values, begins, ends, slot_of, block_of, bias, y,
    m, inputs, outputs, lists,
    x_e, x_m, x_k, bias_e, bias_n,
    INNER: tl.constexpr, OUTER: tl.constexpr, WIDTH: tl.constexpr, TRANSPOSED: tl.constexpr, EXACT: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    TILE: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile [TILE, WIDTH] of y [E, m, outputs] = x [E, m, inputs] times the blocks of one list.

    In the forward, a list is a block row. If TRANSPOSED, a list is a block column, and ``slot_of`` gives the places of
    its values. Blocks have INNER entries in the contracted direction and OUTER in the other. EXACT: steps divide
    blocks, blocks divide the matrix, and WIDTH, a power of two, equals OUTER: only the activations' rows need a mask.
    """
    # A band of GROUP tiles of x goes through all lists: this part of x stays in the cache, while the weight is small.
    tiles, number, part = tl.cdiv(m, TILE), tl.program_id(0), tl.program_id(1)
    first = number // (GROUP * lists) * GROUP
    height = min(tiles - first, GROUP)
    inside = number % (GROUP * lists)
    tile, which = first + inside % height, inside // height

    begin = tl.load(begins + part * lists + which)
    length = ((tl.load(ends + part * lists + which) - begin) * INNER).to(tl.int32)
    rows = tile * TILE + tl.arange(0, TILE)
    out = tl.arange(0, WIDTH)
    # Rows past the end read other rows again; their results are not stored.
    x_rows = x + part.to(tl.int64) * x_e + ((rows % m).to(tl.int64) * x_m)[:, None]
    total = tl.zeros((TILE, WIDTH), tl.float32)
    for start in range(0, length, DEPTH):
        step = start + tl.arange(0, DEPTH)
        if INNER % DEPTH == 0:
            entry = begin + start // INNER
            inner = tl.multiple_of(start % INNER, DEPTH) + tl.arange(0, DEPTH)
            block = tl.load(block_of + entry).to(tl.int32)
            slot = entry
            if TRANSPOSED:
                slot = tl.load(slot_of + entry)
        else:
            entry = begin + step // INNER
            inner = step % INNER
            block = tl.load(block_of + entry, mask=step < length, other=0).to(tl.int32)
            slot = entry
            if TRANSPOSED:
                slot = tl.load(slot_of + entry, mask=step < length, other=0)
        at = block * INNER + inner
        left_at = x_rows + (at.to(tl.int64) * x_k)[None, :]
        w = values + (slot.to(tl.int64) * (INNER * OUTER) + inner * (OUTER if TRANSPOSED else 1))[:, None]
        w = w + (out * (1 if TRANSPOSED else INNER))[None, :]
        if EXACT:
            left, right = tl.load(left_at), tl.load(w)
        else:
            there = (step < length) & (at < inputs)
            left = tl.load(left_at, mask=there[None, :], other=0.0)
            right = tl.load(w, mask=there[:, None] & (out < OUTER)[None, :], other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision=PRECISION)

    columns = which * OUTER + out
    live = (rows < m)[:, None] & ((out < OUTER) & (columns < outputs))[None, :]
    if HAS_BIAS:
        biases = bias + part.to(tl.int64) * bias_e + columns * bias_n
        total += tl.load(biases, mask=(out < OUTER) & (columns < outputs), other=0.0).to(tl.float32)[None, :]
    total = activate(total, ACTIVATION)
    place = y + part.to(tl.int64) * m * outputs + (rows.to(tl.int64) * outputs)[:, None] + columns[None, :]
    tl.store(place, total.to(y.dtype.element_ty), mask=live)
