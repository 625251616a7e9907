"""A number that depends on a tensor's values: it shows later, without a copy, whether the tensor has changed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

SAMPLE = 4096  # the largest number of values that are read
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def fingerprint(values: Tensor) -> Tensor | None:
    """An int64 scalar on the tensor's device; None if the tensor holds no numbers (meta and fake tensors)."""
    values = values.detach()
    if values.device.type == "meta" or isinstance(values, FakeTensor):
        return None
    flat = values.reshape(-1)
    few = flat[:: max(1, -(-flat.numel() // SAMPLE))]
    # The sum of integers does not depend on the order. The factors make an exchange of two values visible.
    bits = few.contiguous().view(INTEGERS[values.element_size()]).long()
    return (bits * torch.arange(1, bits.numel() + 1, device=bits.device)).sum()


def unchanged(values: Tensor, before: Tensor | None) -> bool:
    """Whether a tensor has the same values as when ``before`` was taken; False if ``before`` is None."""
    now = None if before is None else fingerprint(values)
    return before is not None and now is not None and torch.equal(before.to(now.device), now)
