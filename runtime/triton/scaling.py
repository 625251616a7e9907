"""The decay of B \\ A on a GPU: two launches for all weights of a step, where plain PyTorch needs 53 for each weight.

The first launch sums the squares of A, because the decay depends on the size of A's weights; the second scales B \\ A.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from topkast.runtime.layout import Geometry, Index

from . import runs_on

PARTS = 64  # programs for one weight, each of which takes every 64th block row
_SIZE = 1024
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Part = tuple[Tensor, Index, Geometry]  # B's values, index and geometry of a weight


def fits(values: Tensor) -> bool:
    """Whether this file can run for these values."""
    return values.dtype in _DTYPES and values.is_contiguous() and runs_on(values.device)


@functools.lru_cache(maxsize=64)
def _stored(device: torch.device, dtype: torch.dtype, numbers: tuple[float, ...]) -> Tensor:
    """Numbers on the device. They are copied once: addresses stay, and a learning rate stays for many steps."""
    return torch.tensor(numbers, dtype=dtype, device=device)


def _table(parts: Sequence[Part]) -> Tensor:
    facts: list[int] = []
    for values, index, geometry in parts:
        facts += (values.data_ptr(), index.row_ptr.data_ptr(), index.row_fwd.data_ptr())
        facts += (index.row_fwd.numel(), geometry.unit)
    return _stored(parts[0][0].device, torch.int64, tuple(facts))


def _type(dtype: torch.dtype) -> object:
    import triton.language as tl

    return getattr(tl, {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}.get(
        dtype, "float16"))  # fmt: skip


def squares_of_a(parts: Sequence[Part]) -> Tensor:
    """Sums of the squares of A's values, float64 [weights, :data:`PARTS`]: the parts of a weight's sum, in a fixed
    order. All values have one dtype and one device."""
    from .scaling_kernels import squares_kernel

    values = parts[0][0]
    found = values.new_empty(len(parts), PARTS, dtype=torch.float64)
    with torch.cuda.device_of(values):
        squares_kernel[(len(parts) * PARTS,)](
            _table(parts), found, PARTS=PARTS, DTYPE=_type(values.dtype), SIZE=_SIZE, num_warps=4
        )
    return found


def scale_explored(
    parts: Sequence[Part],
    sums: Tensor,
    rates: Tensor | Sequence[float],
    counts: Sequence[int],
    most: float,
    launched: list[object],
) -> None:
    """θ ← θ - min(rate / size, most) θ on B \\ A of every weight, in place.

    Args:
        parts: the weights; all values have one dtype and one device.
        sums: as from :func:`squares_of_a`, [weights, a power of two].
        rates: one for each weight.
        counts: values of A of each weight, for the mean; 0: the rate is not divided by the size of A's weights.
        most: the largest share that is removed.
        launched: an empty list, which gets an entry by the launch. If an interrupt came out of this function, a call
            with the same list launches only what was not launched.
    """
    from .scaling_kernels import scale_kernel

    if launched:
        return

    values = parts[0][0]
    device, dtype = values.device, values.dtype
    if not isinstance(rates, Tensor):
        rates = _stored(device, torch.float64, tuple(rates))
    limits = _stored(device, torch.float64, (most, torch.finfo(dtype).tiny))
    with torch.cuda.device_of(values):
        # One statement: an interrupt before another line could not know whether the kernel was launched.
        launched.append(scale_kernel[(len(parts) * PARTS,)](
            _table(parts), sums, rates, _stored(device, torch.float64, tuple(map(float, counts))),
            limits, limits[1:], PARTS=PARTS, SUMS=sums.shape[1], DTYPE=_type(dtype),
            WIDE=_type(torch.float64 if dtype == torch.float64 else torch.float32), SIZE=_SIZE, num_warps=4,
        ))  # fmt: skip
    for one, _, _ in parts:
        torch.autograd.graph.increment_version(one)
