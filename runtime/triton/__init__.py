"""The CUDA kernels, in Triton. This file imports without Triton; the others need it.

On the CPU they run in Triton's interpreter (``TRITON_INTERPRET=1``), orders of magnitude slower and only to be tested:
there they are offered for what ``TOPKAST_KERNEL`` names them for, and for nothing else.
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
    """Whether Triton is installed; torch's CUDA builds bring it."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run on CPU tensors, in the interpreter. Triton asks the environment too, when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(device: torch.device) -> bool:
    """Whether the kernels of this folder are to be used for tensors there."""
    if device.type == "cpu":
        # The interpreter runs one kernel at a time; a thread that chooses sets has its own way to do it.
        alone = threading.current_thread() is threading.main_thread()
        return interpreted() and os.environ.get("TOPKAST_KERNEL") in NAMES and available() and alone
    return device.type == "cuda" and available()
