"""Activations of numbers in bfloat16, after a product or apart from it, on the kernels that compute them fast."""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime.native import bfloat16
from topkast.runtime.native.bfloat16 import SMOOTH, activate_grad, spmm_activate, spmm_t_activate_grad

__all__ = ["KERNEL", "SMOOTH", "activate_grad", "fits", "spmm_activate", "spmm_t_activate_grad"]

KERNEL = "bf16"  # the kernel whose products compute an activation, or its gradient, too


def fits(x: Tensor) -> bool:
    """Whether :func:`activate_grad` can run; x may be a fake tensor."""
    return x.dtype == torch.bfloat16 and bfloat16.runs_on(x.device)
