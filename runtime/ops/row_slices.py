"""Some rows of a sparse weight as a separate sparse weight, and the gradient of these rows at all slots of the weight.

A model may cut a weight before it uses the parts, for example attention with a packed projection of queries, keys and
values. The number of slots in the rows is not known when a graph is compiled. So the part has the largest possible
number of slots, and the slots at its end stay unused, as in any index.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCHEMAS = {
    "rows_index": "(Tensor row_ptr, Tensor row_fwd, Tensor cols, int start, int stop, int slots)"
    " -> (Tensor, Tensor, Tensor)",
    "rows_values": "(Tensor values, Tensor row_ptr, Tensor cols, int start, int slots) -> Tensor",
    "rows_grad": "(Tensor grad, Tensor row_ptr, Tensor cols, int start, int stop, int slots) -> Tensor",
}
_library = torch.library.Library("topkast", "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))


def _taken(row_ptr: Tensor, cols: Tensor, start: int, slots: int) -> Tensor:
    return (torch.arange(slots, device=cols.device) + row_ptr[start]).clamp(max=cols.shape[0] - 1)


def rows_index(
    row_ptr: Tensor, row_fwd: Tensor, cols: Tensor, start: int, stop: int, slots: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Index of the block rows from ``start`` to ``stop``, with room for ``slots`` blocks."""
    taken = _taken(row_ptr, cols, start, slots)
    # torch cannot gather uint16; the numbers are only moved, so they are viewed as int16.
    picked = cols.view(torch.int16)[taken].view(cols.dtype) if cols.dtype == torch.uint16 else cols[taken]
    return row_ptr[start : stop + 1] - row_ptr[start], row_fwd[start:stop] - row_ptr[start], picked


def rows_values(values: Tensor, row_ptr: Tensor, cols: Tensor, start: int, slots: int) -> Tensor:
    """The values that belong to :func:`rows_index`."""
    return values.view(cols.shape[0], -1)[_taken(row_ptr, cols, start, slots)].view(-1)


def rows_grad(grad: Tensor, row_ptr: Tensor, cols: Tensor, start: int, stop: int, slots: int) -> Tensor:
    """The gradient at all slots, from a gradient at the slots of :func:`rows_values`; zero at the other slots."""
    part = grad.view(slots, -1)
    place = torch.arange(slots, device=cols.device)
    # One more place at the end receives the contents of the unused slots.
    place = torch.where(place < row_ptr[stop] - row_ptr[start], place + row_ptr[start], cols.shape[0])
    full = grad.new_zeros(cols.shape[0] + 1, part.shape[1])
    full[place] = part
    return full[:-1].reshape(-1)


def _fake_rows_index(row_ptr, row_fwd, cols, start, stop, slots):
    return row_ptr.new_empty(stop - start + 1), row_fwd.new_empty(stop - start), cols.new_empty(slots)


def _fake_rows_values(values, row_ptr, cols, start, slots):
    return values.new_empty(slots * (values.shape[0] // cols.shape[0]))


def _fake_rows_grad(grad, row_ptr, cols, start, stop, slots):
    return grad.new_empty(cols.shape[0] * (grad.shape[0] // slots))


for _name in SCHEMAS:
    _library.impl(_name, globals()[_name], "CompositeExplicitAutograd")
    torch.library.register_fake(f"topkast::{_name}", globals()[f"_fake_{_name}"], lib=_library)
