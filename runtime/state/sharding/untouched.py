"""A tensor of which this process fills a few rows. The other rows are pages that nobody has written, so they take no
memory."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor


def with_rows(tensor: Tensor, rows: slice) -> Tensor:
    """A tensor with the shape of ``tensor`` and with these rows of it. The other rows are zeros without memory on the
    CPU; on another device they take memory.

    Args:
        tensor: two dimensions, contiguous.
        rows: the rows to copy.
    """
    found = _untouched(tensor) if tensor.device.type == "cpu" and tensor.nbytes else torch.zeros_like(tensor)
    found[rows] = tensor[rows]
    return found


def _untouched(like: Tensor) -> Tensor:
    # Not torch.zeros: below 32 MB malloc gives memory that was used before, and such memory is filled with zeros.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, like.nbytes, **private)
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape)
