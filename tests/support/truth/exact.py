"""The truth: the oracle in float64, also where the model asks for less.

Norms, rotary embeddings, softmaxes and routers of many models are computed in float32 whatever the model's dtype is.
Then a model in float64 has the rounding errors of float32, other ones than the oracle's, and is no truth: an error
budget measured from it is a lottery.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .oracle import Oracle

LESS = (torch.float32, torch.bfloat16, torch.float16)
CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)


class Wide(TorchFunctionMode):
    """Whoever asks for a smaller floating-point dtype gets float64."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(torch.dtype, _widened, (args, kwargs or {}))
        return (torch.Tensor.double if function in CASTS else function)(*args, **kwargs)


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in LESS else dtype


class Truth(Oracle):
    """An oracle whose forward computes nothing in less than float64."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with Wide():
            return super().__call__(*args, **kwargs)
