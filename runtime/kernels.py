"""The kernels that can run a product. A kernel never changes what is computed, only how.

A new implementation is a module with the functions of :mod:`topkast.runtime.reference` it speeds up, listed here with
the case it fits. ``passes/choose_kernel.py`` asks :func:`candidates` and writes the chosen name into the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from . import reference

PRODUCTS = ("spmm", "spmm_t", "sddmm", "conv", "conv_input_grad", "conv_weight_grad")


@dataclass(frozen=True)
class Kernel:
    """One implementation.

    Args:
        name: as it stands in the graph and in the report.
        module: where its functions are, under the products' names.
        fits: (product, device, dtype, block) -> whether it can run that.
    """

    name: str
    module: ModuleType
    fits: Callable[[str, torch.device, torch.dtype, tuple[int, int]], bool]


KERNELS = {
    kernel.name: kernel
    for kernel in [
        Kernel("reference", reference, lambda product, device, dtype, block: True),
    ]
}


def candidates(product: str, device: torch.device, dtype: torch.dtype, block: tuple[int, int]) -> list[str]:
    """Names of the kernels that fit, in the order of the table; never empty."""
    return [kernel.name for kernel in KERNELS.values() if kernel.fits(product, device, dtype, block)]


def launch(kernel: str, product: str) -> Callable[..., Any]:
    """The function that runs ``product``."""
    return getattr(KERNELS[kernel].module, product)
