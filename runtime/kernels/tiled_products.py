"""Products whose activations are tiles [M / width, n, width]: the native kernels compute on tiles."""

from collections.abc import Callable
from typing import Any

from topkast.runtime.native.products import pack, sddmm, spmm, spmm_t, width

PRODUCTS: dict[str, Callable[..., Any]] = {"spmm": spmm, "spmm_t": spmm_t, "sddmm": sddmm}

__all__ = ["PRODUCTS", "pack", "width"]
