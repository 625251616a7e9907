"""Deep copies of tensors that are plain tensors of another class."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def plain_deep_copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """A deep copy of the tensor as a plain tensor. The caller puts the copy into ``memo``."""
    plain = tensor.as_subclass(Tensor)
    twin = plain.__deepcopy__(memo)
    del memo[id(plain)]  # this object ends here; another object with the same id would be taken for a copy
    return twin
