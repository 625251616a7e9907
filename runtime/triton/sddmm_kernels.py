"""The gradient of the weight at B: a product of two dense matrices, sampled at blocks."""

# No postponed annotations here: Triton reads `tl.constexpr` from them.
import triton
import triton.language as tl


@triton.jit
def sddmm_kernel(
    dy, x, row_ptr, cols, grad,
    m, outputs, inputs, rows, groups, all_rows, slots, span,
    dy_e, dy_m, dy_n, x_e, x_m, x_k,
    R: tl.constexpr, C: tl.constexpr, HEIGHT: tl.constexpr, EXACT: tl.constexpr, EVEN: tl.constexpr,
    SWAP: tl.constexpr, PARTIAL: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """TILE columns of one block row's blocks, one block after the other: several small blocks share one read of dY.

    A row has ``groups`` programs, enough for a full row; programs that are not needed end at once. EXACT: the blocks
    divide the matrix, and HEIGHT, a power of two, equals R. EVEN: DEPTH divides m. SWAP: the product is computed
    transposed, because wgmma needs 64 rows, and a block may have fewer, but TILE is never less.

    PARTIAL: the second number of a program says which ``span`` rows of activations it sums over; ``grad`` has a part
    [slots, R, C] for each, and :func:`sum_parts_kernel` adds these. Else ``span`` is m, and unused slots get zero here.
    """
    row, group, split = tl.program_id(0) // groups, tl.program_id(0) % groups, tl.program_id(1)
    if not PARTIAL:
        used = tl.load(row_ptr + all_rows) * (R * C)
        step = tl.num_programs(0).to(tl.int64) * 1024
        for start in range(used + tl.program_id(0).to(tl.int64) * 1024, slots.to(tl.int64) * (R * C), step):
            unused = start + tl.arange(0, 1024)
            nothing = tl.zeros((1024,), grad.dtype.element_ty)
            tl.store(grad + unused, nothing, mask=unused < slots.to(tl.int64) * (R * C))
    begin = tl.load(row_ptr + row)
    length = ((tl.load(row_ptr + row + 1) - begin) * C).to(tl.int32)
    if group * TILE >= length:
        return
    part, block_row = (row // rows).to(tl.int64), row % rows
    flat = group * TILE + tl.arange(0, TILE)
    slot, inner = begin + flat // C, flat % C
    column = tl.load(cols + slot, mask=flat < length, other=0).to(tl.int32) * C + inner
    # C is a multiple of 16, so runs of 16 columns stay together: wide reads are possible.
    column = tl.multiple_of(tl.max_contiguous(column, [16]), [16])
    within = tl.arange(0, HEIGHT)
    out = block_row * R + within
    times = tl.arange(0, DEPTH)
    dy_at = dy + part * dy_e + (times.to(tl.int64) * dy_m)[None, :] + (out.to(tl.int64) * dy_n)[:, None]
    x_at = x + part * x_e + (times.to(tl.int64) * x_m)[:, None] + (column.to(tl.int64) * x_k)[None, :]
    first, last = split * span, m
    if PARTIAL:
        last = min(first + span, m)
        dy_at += first.to(tl.int64) * dy_m
        x_at += first.to(tl.int64) * x_m
    total = tl.zeros((TILE, HEIGHT) if SWAP else (HEIGHT, TILE), tl.float32)
    for start in range(first, last, DEPTH):
        if EXACT and EVEN:
            left, right = tl.load(dy_at), tl.load(x_at)
        else:
            inside = start + times < last
            left = tl.load(dy_at, mask=inside[None, :] & ((within < R) & (out < outputs))[:, None], other=0.0)
            right = tl.load(x_at, mask=inside[:, None] & (column < inputs)[None, :], other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        if SWAP:
            total = tl.dot(tl.trans(right), tl.trans(left), total, input_precision=PRECISION)
        else:
            total = tl.dot(left, right, total, input_precision=PRECISION)
        dy_at += DEPTH * dy_m
        x_at += DEPTH * x_m
    grad += split.to(tl.int64) * slots * (R * C)
    columns = slot.to(tl.int64) * (R * C) + inner
    if SWAP:
        place = grad + columns[:, None] + (within * C)[None, :]
        tl.store(place, total.to(grad.dtype.element_ty), mask=(within < R)[None, :] & (flat < length)[:, None])
    else:
        place = grad + columns[None, :] + (within * C)[:, None]
        tl.store(place, total.to(grad.dtype.element_ty), mask=(within < R)[:, None] & (flat < length)[None, :])


@triton.jit
def sum_parts_kernel(parts, row_ptr, grad, all_rows, slots, unit, PARTS: tl.constexpr, SIZE: tl.constexpr):
    """grad [slots, unit] = the sum of ``parts`` [PARTS, slots, unit] in float32, in their order. Unused slots get zero,
    and their parts, which nobody wrote, are not read."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    used = tl.load(row_ptr + all_rows) * unit
    total = tl.zeros((SIZE,), tl.float32)
    for part in range(PARTS):
        total += tl.load(parts + part * slots.to(tl.int64) * unit + at, mask=at < used, other=0.0)
    tl.store(grad + at, total.to(grad.dtype.element_ty), mask=at < slots.to(tl.int64) * unit)
