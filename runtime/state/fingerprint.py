"""A number that changes with a tensor's values: for comparing a tensor with itself, later, without a copy of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

SAMPLE = 4096  # values that are looked at, at most
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def fingerprint(values: Tensor) -> Tensor | None:
    """An int64 scalar on the tensor's device; None of what holds no numbers."""
    values = values.detach()
    if values.device.type == "meta" or isinstance(values, FakeTensor):
        return None
    flat = values.reshape(-1)
    few = flat[:: max(1, -(-flat.numel() // SAMPLE))]
    # Whole numbers: their sum does not depend on its order. The places count, or two that are exchanged would not.
    bits = few.contiguous().view(INTEGERS[values.element_size()]).long()
    return (bits * torch.arange(1, bits.numel() + 1, device=bits.device)).sum()


def unchanged(values: Tensor, before: Tensor | None) -> bool:
    """Whether a tensor is what it was when its fingerprint was taken; no if none was."""
    now = None if before is None else fingerprint(values)
    return before is not None and now is not None and torch.equal(before.to(now.device), now)
