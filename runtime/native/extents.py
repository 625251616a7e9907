"""The shapes of images that a convolution's kernels take and return. The kernels rely on these sizes."""

from __future__ import annotations

import functools
from typing import Any

from topkast.runtime.errors import OperandError
from topkast.runtime.layout import Geometry
from topkast.runtime.reference.products import ConvArgs

from .products import MAX_BLOCK

Sizes = tuple[int, ...]


def weight_refusal(geometry: Geometry, conv: ConvArgs) -> str | None:
    """Why the kernels cannot run a convolution's products with this weight; None if they can."""
    dims, (r, c) = len(geometry.shape), geometry.block
    order = (1, 0, *range(2, dims)) if conv.transposed else tuple(range(dims))
    rows = geometry.rows if conv.transposed else geometry.rows // conv.groups
    if (geometry.perm, geometry.lead) != (order, 1):
        return "another op sees its weight as another matrix"
    if max(r, c) > MAX_BLOCK:
        return f"blocks of {r}x{c}, above {MAX_BLOCK}x{MAX_BLOCK}"
    if rows % r and conv.groups > 1 and not conv.transposed:
        return f"blocks of {r} rows cross the border of groups of {rows} rows"
    if geometry.units * geometry.unit >= 2**31:
        return "2^31 weights or more"
    return None


def hashable(args: ConvArgs) -> tuple[Any, ...]:
    """The arguments as a key of :func:`extents`."""
    return tuple(tuple(a) if isinstance(a, list) else a for a in args)


@functools.lru_cache(4096)
def extents(x: Sizes, geometry: Geometry, args: tuple[Any, ...]) -> Sizes:
    """The shape of a convolution's result.

    Raises:
        OperandError: this weight cannot be applied to these images, or the kernels do not support the weight.
    """
    conv, (first, second, *kernel) = ConvArgs(*args), geometry.shape
    dims = len(kernel)
    channels = first if conv.transposed else second * conv.groups
    if not 1 <= dims <= 3 or len(x) != dims + 2 or x[1] != channels:
        raise OperandError(
            f"x: a tensor of shape {x}, expected images [batch, {channels}, ...] of {dims} (1 to 3) dims"
        )
    for name in ("stride", "padding", "dilation", *(["output_padding"] if conv.transposed else [])):
        numbers, least = getattr(conv, name), 0 if "padding" in name else 1
        if len(numbers) not in (1, dims) or min(numbers) < least:
            raise OperandError(f"{name}: {list(numbers)}, expected 1 or {dims} numbers from {least} on")
    if conv.groups < 1 or first % conv.groups:
        raise OperandError(f"groups: {conv.groups}, expected a number that divides {first}")
    why = weight_refusal(geometry, conv)
    if why is not None:
        raise OperandError(f"geometry: {why}")
    given = conv.stride, conv.padding, conv.dilation, conv.output_padding
    stride, padding, dilation, extra = (tuple(a) * dims if len(a) == 1 else tuple(a) for a in given)
    out = []
    for d, size in enumerate(x[2:]):
        reach = dilation[d] * (kernel[d] - 1)
        if conv.transposed:
            out.append((size - 1) * stride[d] - 2 * padding[d] + reach + extra[d] + 1)
        else:
            out.append((size + 2 * padding[d] - reach - 1) // stride[d] + 1)
    return (x[0], second * conv.groups if conv.transposed else first, *out)
