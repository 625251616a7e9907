"""Marks of units, one bit for each unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def packed(bits: Tensor) -> Tensor:
    """Bool [n] as bits, eight in a byte."""
    eights = nn.functional.pad(bits, (0, -bits.numel() % 8)).view(-1, 8).to(torch.uint8)
    return (eights * 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpacked(marks: Tensor, count: int) -> Tensor:
    """The inverse of :func:`packed`. count: the number of units."""
    return (marks[:, None] >> torch.arange(8, dtype=torch.uint8, device=marks.device) & 1).bool().view(-1)[:count]
