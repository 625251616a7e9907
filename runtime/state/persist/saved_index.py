"""The tensors of an index in a state dict. Code that averages them gets an error that says what can be averaged.

Columns are stored as bytes. Arithmetic would run on them and would give the columns of other weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkast.runtime.errors import CheckpointError
from topkast.runtime.state.content.plain_copy import plain_deep_copy

WHAT_TO_AVERAGE = (
    "the positions of sparse weights cannot be averaged or scaled; average topkast.dense_state_dict(model), or use "
    "topkast.averaged(model)"
)
_OPERATIONS = {"add", "sub", "subtract", "mul", "multiply", "div", "divide", "truediv", "true_divide", "floordiv"}
_OPERATIONS |= {"floor_divide", "lerp", "mean", "addcmul", "addcdiv", "mod", "pow", "neg"}
ARITHMETIC = {prefix + name for name in _OPERATIONS for prefix in ("", "i", "r", "foreach_")}


class SavedIndex(Tensor):
    """A tensor of an index. It can be stored, moved and compared like a plain tensor, but arithmetic is an error. A
    copy is a ``SavedIndex`` too; a file or another process gets a plain tensor."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name.strip("_") in ARITHMETIC:
            raise CheckpointError(f"{name} of an index in a state dict: {WHAT_TO_AVERAGE}")
        # One call, not a with-block: an interrupt at its end would turn off every tensor subclass in this thread.
        found = torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})
        return as_saved(found) if type(found) is Tensor and _is_index(found) else found

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a plain tensor."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        memo[id(self)] = twin = as_saved(plain_deep_copy(self, memo))
        return twin


def as_saved(tensor: Tensor) -> Tensor:
    """A tensor of an index as a state dict holds it, with the same memory. A tensor of another class is unchanged."""
    return tensor.as_subclass(SavedIndex) if type(tensor) is Tensor else tensor


def as_plain(tensor: Tensor) -> Tensor:
    """The tensor as a plain tensor, which a site may hold."""
    return tensor.as_subclass(Tensor) if isinstance(tensor, SavedIndex) else tensor


def _is_index(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.uint8, torch.uint16, torch.int32, torch.int64) and tensor.dim() > 0
