"""Choose and store sets in native code if it fits, otherwise in plain PyTorch (``reference.selection``, ``layout``)."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from topkast.runtime import layout, operands
from topkast.runtime.layout import Index
from topkast.runtime.operands import address
from topkast.runtime.reference import selection as choose

from . import library, parallel

PART = 2**20  # the number of units that are checked at once


def largest(score: Tensor, count: int) -> Tensor:
    """The same as :func:`topkast.runtime.reference.selection.largest`, for scores that are not negative."""
    operands.plain(score=score)
    lib = library()
    if lib is None or score.device.type != "cpu" or score.dtype != torch.float32 or score.numel() == 0:
        return choose.largest(score, count)
    operands.counted(score, count)
    address("score", score)
    score = score.contiguous()
    mask = torch.empty(score.shape, dtype=torch.bool, device="cpu")
    rows, n = score.shape[:-1].numel(), score.shape[-1]
    lib.tk_largest(byref(parallel()), address("score", score), rows, n, count, address("mask", mask))
    return mask


def build_index(fwd: Tensor, bwd: Tensor, slots: int) -> Index:
    """The same as :func:`topkast.runtime.layout.build_index`."""
    operands.plain(fwd=fwd, bwd=bwd)
    lib = library()
    if lib is None or fwd.device.type != "cpu":
        return layout.build_index(fwd, bwd, slots)
    operands.nested(fwd, bwd)
    _within(fwd, bwd, slots)
    fwd, bwd = fwd.contiguous(), bwd.contiguous()
    rows, columns = bwd.shape
    row_ptr, row_fwd = (torch.empty(n, dtype=torch.int64, device="cpu") for n in (rows + 1, rows))
    cols = torch.zeros(slots, dtype=layout.column_type(columns), device="cpu")
    lib.tk_build_index(
        byref(parallel()), address("fwd", fwd), address("bwd", bwd), rows, columns,
        address("row_ptr", row_ptr), address("row_fwd", row_fwd), address("cols", cols), cols.element_size(),
    )  # fmt: skip
    return Index(row_ptr, row_fwd, cols)


def _within(fwd: Tensor, bwd: Tensor, slots: int) -> None:
    """Raise OperandError if ``cols`` has no room for B, or if A is not inside B: the library would write past the end
    of ``cols``.

    The check reads a few rows at a time, because another mask would need as much memory as the sets.
    """
    address("fwd", fwd), address("bwd", bwd)
    count, step = 0, max(1, PART // max(1, bwd.shape[1]))
    for a, b in zip(fwd.split(step), bwd.split(step), strict=True):
        here = int(b.count_nonzero())
        if int((a | b).count_nonzero()) != here:
            operands.wrong("fwd", fwd, "a set inside bwd")
        count += here
    if count > slots:
        operands.wrong("bwd", bwd, f"at most {slots} members, the number of slots, not {count}")
