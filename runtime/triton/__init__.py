"""The CUDA kernels, in Triton. This file can be imported without Triton; the other files need Triton.

On the CPU the kernels run in Triton's interpreter (``TRITON_INTERPRET=1``), only for tests, because this is orders of
magnitude slower. There a kernel is a candidate only if ``TOPKAST_KERNEL`` names it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading

import torch

NAMES = ("triton", "csr", "transient")


@functools.cache
def available() -> bool:
    """Whether Triton is installed. torch's CUDA builds include Triton."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run on CPU tensors, in the interpreter. Triton reads this variable too, when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(device: torch.device) -> bool:
    """Whether the kernels of this folder should be used for tensors on this device."""
    if device.type == "cpu":
        # The interpreter runs one kernel at a time. A thread that chooses sets therefore uses other code.
        alone = threading.current_thread() is threading.main_thread()
        return interpreted() and os.environ.get("TOPKAST_KERNEL") in NAMES and available() and alone
    return device.type == "cuda" and available()
