"""Move compact values to a dense matrix, or a dense matrix to compact values, for any block."""

# No postponed annotations here: Triton reads `tl.constexpr` from them.
import triton
import triton.language as tl


@triton.jit
def move_kernel(
    compact, begins, ends, cols, dense, outputs, inputs, stride_n, stride_k, splits,
    R: tl.constexpr, C: tl.constexpr, GATHER: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """SIZE values of one block row: GATHER them from the dense matrix [outputs, inputs], or scatter them into it.

    A row has ``splits`` programs, enough for a full row; programs that are not needed end at once. The values of a
    block outside the matrix's edges are gathered as zero.
    """
    row, part = tl.program_id(0) // splits, tl.program_id(0) % splits
    begin = tl.load(begins + row)
    length = ((tl.load(ends + row) - begin) * (R * C)).to(tl.int32)
    if part * SIZE >= length:
        return
    flat = part * SIZE + tl.arange(0, SIZE)
    live, inner = flat < length, flat % (R * C)
    block = tl.load(cols + begin + flat // (R * C), mask=live, other=0).to(tl.int32)
    n, k = row * R + inner // C, block * C + inner % C
    inside = live & (n < outputs) & (k < inputs)
    held = compact + begin * (R * C) + flat
    place = dense + n.to(tl.int64) * stride_n + k.to(tl.int64) * stride_k
    if GATHER:
        tl.store(held, tl.load(place, mask=inside, other=0.0), mask=live)
    else:
        tl.store(place, tl.load(held, mask=live, other=0.0), mask=inside)
