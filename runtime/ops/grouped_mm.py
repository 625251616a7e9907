"""Products of E sparse weights that are stacked in one weight: a mixture of experts. Each weight has a run of the rows.

Rows ``ends[e - 1]:ends[e]`` of the activations belong to weight ``e`` (from row 0 for the first weight). A run may be
empty. Rows after the last run belong to no weight, and their results are zero. As in
:mod:`topkast.runtime.ops.operators`, the products are not differentiable: they occur only in graphs that passes
rewrote, and the gradient of each product is another of the products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime.kernels.candidates import launch
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.reference import dense_gradient as gradient
from topkast.runtime.reference.products import runs
from topkast.runtime.registry import count_run

from .operators import _GEOMETRY, _INDEX, _SPARSE, _fake_values, _geometry, _watch

SCHEMAS = {
    "grouped_spmm": f"(Tensor x, Tensor ends, {_SPARSE}, str impl='reference') -> Tensor",
    "grouped_spmm_t": f"(Tensor dy, Tensor ends, {_SPARSE}, str impl='reference') -> Tensor",
    "grouped_sddmm": f"(Tensor dy, Tensor x, Tensor ends, {_INDEX}, {_GEOMETRY}, str impl='reference') -> Tensor",
}
_library = torch.library.Library("topkast", "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))


def grouped_spmm(x, ends, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, impl="reference"):
    """Y = X W_A^T, each row with its own weight. x: [M, cols], ends: int [E] -> [M, rows / E]."""
    count_run(key, "forward", impl)
    index, geometry = Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block)
    return launch(impl, "grouped_spmm")(x, ends, values, index, geometry)


def grouped_spmm_t(dy, ends, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, impl="reference"):
    """dX = dY W_A, each row with its own weight. dy: [M, rows / E], ends: int [E] -> [M, cols]."""
    count_run(key, "input gradient", impl)
    index, geometry = Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block)
    return launch(impl, "grouped_spmm_t")(dy, ends, values, index, geometry)


def grouped_sddmm(dy, x, ends, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, impl="reference"):
    """dY^T X of each run at its weight's part of B, [slots * r * c]. dy: [M, rows / E], x: [M, cols]."""
    count_run(key, "weight gradient", impl)
    index, geometry = Index(row_ptr, row_fwd, cols), _geometry(shape, perm, lead, block)
    _watch(key, lambda: _rows(dy, x, ends, geometry))
    return launch(impl, "grouped_sddmm")(dy, x, ends, index, geometry)


def _rows(dy: Tensor, x: Tensor, ends: Tensor, geometry: Geometry) -> gradient.Rows:
    """The dense gradient, a few rows at a time, for a method that grows by the gradient."""
    n, limits = geometry.rows // ends.numel(), {part: (begin, end) for part, begin, end in runs(ends)}

    def rows(first: int, last: int) -> Tensor:
        def of_one(part: int) -> Tensor:
            begin, end = limits.get(part, (0, 0))
            columns = slice(max(0, first - part * n), min(n, last - part * n))
            return dy[begin:end, columns].mT @ x[begin:end]

        return torch.cat([of_one(part) for part in range(first // n, (last - 1) // n + 1)])

    return rows


def _fake_grouped_spmm(x, ends, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, impl="reference"):
    return x.new_empty(x.shape[0], _geometry(shape, perm, lead, block).rows // ends.shape[0])


def _fake_grouped_spmm_t(
    dy, ends, values, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, impl="reference"
):
    return dy.new_empty(dy.shape[0], _geometry(shape, perm, lead, block).cols)


def _fake_grouped_sddmm(dy, x, ends, row_ptr, row_fwd, cols, key, shape, perm, lead, block, n_fwd, impl="reference"):
    return _fake_values(dy, cols, block)


for _name in SCHEMAS:
    _library.impl(_name, globals()[_name], "CompositeExplicitAutograd")
    torch.library.register_fake(f"topkast::{_name}", globals()[f"_fake_{_name}"], lib=_library)
