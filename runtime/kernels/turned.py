"""A's index by columns, which Triton's input gradient reads: one tensor for each site, renewed in place."""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime.layout import Geometry, Index
from topkast.runtime.triton import products

TAKING = ("triton",)  # kernels whose spmm_t has the argument


def renewed(turned: Tensor | None, index: Index, geometry: Geometry, n_fwd: int, values: Tensor) -> Tensor | None:
    """The index by columns; None if no kernel on this device takes the index.

    Args:
        turned: the result of the last call, or None. If this tensor fits, the result is the same tensor, with new
            contents.
        index: the index of A and B.
        geometry: the geometry of the weight.
        n_fwd: the number of blocks in A.
        values: B's values.
    """
    where = index.row_ptr.device
    if values.device != where or not products.fits("spmm_t", values.detach().view(-1, 1), geometry):
        return None
    size = products.turned_size(geometry, n_fwd)
    if turned is None or turned.device != where or turned.numel() != size:
        from torch._dynamo import mark_static_address

        turned = index.row_fwd.new_zeros(size, dtype=torch.int32)
        mark_static_address(turned, guard=False)  # else each replay of a CUDA graph would copy it first
    products.renew_turned(turned, index, geometry)
    return turned
