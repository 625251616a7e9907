"""Choosing and storing sets in native code, where it fits; else as :mod:`..choose` and :mod:`..layout` do it."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from .. import choose, layout
from ..layout import Index
from . import library, parallel


def largest(score: Tensor, count: int) -> Tensor:
    """:func:`topkast.runtime.choose.largest`, for scores that are not negative."""
    lib = library()
    if lib is None or score.device.type != "cpu" or score.dtype != torch.float32 or score.numel() == 0:
        return choose.largest(score, count)
    score = score.contiguous()
    mask = torch.empty(score.shape, dtype=torch.bool, device="cpu")
    rows, n = score.shape[:-1].numel(), score.shape[-1]
    lib.tk_largest(byref(parallel()), score.data_ptr(), rows, n, count, mask.data_ptr())
    return mask


def build_index(fwd: Tensor, bwd: Tensor, slots: int) -> Index:
    """:func:`topkast.runtime.layout.build_index`."""
    lib = library()
    if lib is None or fwd.device.type != "cpu":
        return layout.build_index(fwd, bwd, slots)
    fwd, bwd = fwd.contiguous(), bwd.contiguous()
    rows, columns = bwd.shape
    row_ptr, row_fwd = (torch.empty(n, dtype=torch.int64, device="cpu") for n in (rows + 1, rows))
    cols = torch.zeros(slots, dtype=layout.column_type(columns), device="cpu")
    lib.tk_build_index(
        byref(parallel()), fwd.data_ptr(), bwd.data_ptr(), rows, columns,
        row_ptr.data_ptr(), row_fwd.data_ptr(), cols.data_ptr(), cols.element_size(),
    )  # fmt: skip
    return Index(row_ptr, row_fwd, cols)
