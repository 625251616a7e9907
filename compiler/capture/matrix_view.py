"""Which dimensions of a parameter become matrix rows and which columns, given the view of it that a product contracts.

The view is a meta tensor over the parameter's own contiguous strides, so the stride and size of each of its dimensions
say which dimensions of the parameter it walks: the same one, a part of it (split, slice), or several merged (flatten).
"""

from __future__ import annotations

import torch


def walked(shape: torch.Size, view: torch.Tensor) -> list[set[int]]:
    """For each dimension of `view`, the dimensions of the parameter that it walks."""
    whole = torch.empty(shape, device="meta")
    if view.shape == shape and view.stride() == whole.stride() and not view.storage_offset():
        return [{i} for i in range(len(shape))]
    dims = []
    for size, step in zip(view.shape, view.stride(), strict=True):
        # Equal strides, a part of dimension i (split, slice), or a merge of several dimensions (flatten).
        dims.append({i for i, s in enumerate(whole.stride())
                     if shape[i] > 1 and size > 1 and step and (s <= step < s * shape[i] or step <= s < step * size)
                     })  # fmt: skip
    return dims


def layout_of(
    shape: torch.Size, view: torch.Tensor, contracted: set[int], batch: set[int]
) -> tuple[tuple[int, ...], int] | None:
    """(perm, lead): batch dimensions, outputs, then contracted dimensions; None if a dimension is of both kinds."""
    axes = walked(shape, view)
    last = {i for d in contracted for i in axes[d]}
    front = {i for d in batch for i in axes[d]}
    out = {i for d, dims in enumerate(axes) if d not in contracted | batch for i in dims}
    if last & (front | out):
        return None
    for i in set(range(len(shape))) - last - front - out:
        if shape[i] > 1:
            front.add(i)  # a dimension an index took away: one of several matrices, as in a batch
        elif last and not (front or out):
            out.add(i)
        else:
            last.add(i)
    lead = sorted(front) + sorted(out - front)
    return ((*lead, *sorted(last)), len(lead)) if lead and last else None
